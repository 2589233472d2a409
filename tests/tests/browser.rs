//! The web page in a real browser. `cargo xtask web-test` installs one, and renews docs/web.png.

use std::fs;
use std::time::{Duration, Instant};

use futures::StreamExt;
use holdfast_tests::browser::Browser;
use holdfast_tests::{Holdfast, binary, executable, skip};

const TOKEN: &str = "0123456789abcdef";

/// What a hostile program writes: markup, a terminal's escape sequences, marks of direction.
const HOSTILE: &str = r#"printf '<script>document.title="owned"</script><img src=x onerror="document.title=1">\n'
printf '\033]0;owned\007\033[2J\033[31mred\033[0m \342\200\256txt.exe\n'; echo to-stderr >&2; sleep 100000"#;

/// Writes numbered lines for ever.
const TICKING: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";

/// What a server in the picture does, and a database.
const SERVING: &str = r#"i=0; while :; do i=$((i+1))
echo "10.0.0.$((i % 9 + 2)) GET /items/$((i * 7 % 100)) 200 $((i * 13 % 900 + 100)) bytes"
[ $((i % 7)) = 0 ] && echo 'slow answer: 512 ms' >&2
j=0; while [ $j -lt $((i % 5 * 900)) ]; do j=$((j+1)); done; sleep 0.15; done"#;
const STORING: &str = "x=$(head -c 9000000 /dev/zero | tr '\\0' x); while :; do sleep 1000; done";

/// A daemon with the page, always on the same port.
struct Served {
    holdfast: Holdfast,
    flags: Vec<String>,
    url: String,
}

impl Served {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(args: &[&str]) -> Self {
        let holdfast = Holdfast::without_daemon();
        let token = holdfast.scratch.path().join("token");
        fs::write(&token, TOKEN).expect("write the token");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("its number");
        drop(free);
        let mut flags =
            vec![format!("--web={address}"), format!("--web-token={}", token.display())];
        flags.extend(args.iter().map(|arg| (*arg).to_owned()));
        let mut served = Self { holdfast, flags, url: format!("http://{address}/") };
        served.start_daemon().await;
        served
    }

    async fn start_daemon(&mut self) {
        let flags = self.flags.clone();
        self.holdfast.start_daemon_by(|daemon| _ = daemon.args(flags)).await;
    }

    async fn run(&self, id: &str, options: &[&str], args: &[&str]) {
        self.holdfast.run_detached(&[&["--name", id], options].concat(), args).await;
    }
}

async fn log_in(browser: &Browser, url: &str) {
    browser.open(url).await;
    browser.until("!document.getElementById('login').hidden").await;
    browser.write("#token", TOKEN).await;
    browser.click("#login button").await;
    browser.until("document.getElementById('connection').textContent === 'Live'").await;
}

/// No complaint of the browser's may be about anything but a connection or a refused token.
async fn no_complaints(browser: &Browser) {
    let complaints = browser.complaints().await;
    let expected = |text: &String| {
        ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_INCOMPLETE_CHUNKED_ENCODING", "401"]
            .iter()
            .any(|part| text.contains(part))
    };
    let others: Vec<_> = complaints.iter().filter(|text| !expected(text)).collect();
    assert!(others.is_empty(), "{others:#?}");
}

/// The lines of the ticking container are there, each once.
async fn only_consecutive(browser: &Browser) {
    let text = browser.run("return document.getElementById('output').textContent").await;
    let text = text.as_str().expect("text");
    let numbers: Vec<u64> =
        text.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok()).collect();
    let all: Vec<u64> = (numbers[0]..).take(numbers.len()).collect();
    assert_eq!(numbers, all, "{text}");
}

#[tokio::test]
async fn the_page_shows_what_containers_do_runs_nothing_of_theirs_and_survives_the_daemon() {
    let mut served = Served::start().await;
    let Some(browser) = Browser::start().await else {
        return skip("chromedriver is not installed; see cargo xtask web-test");
    };
    let label = "note=<img src=x onerror=\"document.title=2\">";
    served.run("hostile", &["--label", label], &["sh", "-c", HOSTILE]).await;
    served.run("ticking", &["--memory", "64m"], &["sh", "-c", TICKING]).await;
    served.run("failing", &["--restart", "on-failure:2"], &["sh", "-c", "exit 3"]).await;
    served.run("finished", &[], &["true"]).await;
    served.run("frozen", &[], &["sleep", "100000"]).await;
    served.holdfast.ok(&["pause", "frozen"]).await;

    browser.open(&served.url).await;
    browser.until("!document.getElementById('login').hidden").await;
    browser.write("#token", "not-the-right-token").await;
    browser.click("#login button").await;
    browser
        .until("document.getElementById('login-error').textContent.includes('not accept')")
        .await;
    browser.until("document.getElementById('page').hidden").await;
    log_in(&browser, &served.url).await;

    browser.until("document.querySelectorAll('#rows tr').length === 5").await;
    browser.until("document.getElementById('rows').innerText.includes('exited 3')").await;
    browser.until("document.getElementById('legend').innerText.includes('Restarts: 2')").await;
    browser.until("document.getElementById('legend').innerText.includes('Failures: 3')").await;
    browser.until("document.getElementById('legend').innerText.includes('Exits with 0: 1')").await;
    let counts = "5 containers: 2 running, 1 paused, 0 created, 2 stopped (1 failed)";
    browser.until(&format!("document.getElementById('counts').innerText === '{counts}'")).await;
    browser.until("/[0-9] (KiB|MiB)/.test(document.getElementById('rows').innerText)").await;
    browser.until("/[0-9] %/.test(document.getElementById('rows').innerText)").await;

    // What a container writes, is named or is labelled stays text.
    browser.run("document.getElementById('filter').focus()").await;
    browser.write("#filter", "hostile").await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    browser.click("#rows .link").await;
    let output = "document.getElementById('output').textContent";
    browser.until(&format!("{output}.includes('to-stderr')")).await;
    browser.until(&format!("{output}.includes('txt.exe')")).await;
    let text = browser.text("#output").await;
    for part in [
        "<script>document.title=\"owned\"</script><img src=x onerror=\"document.title=1\">",
        "\u{241b}]0;owned\u{2407}\u{241b}[2J\u{241b}[31mred\u{241b}[0m <U+202E>txt.exe",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(browser.text("#output .stderr").await, "to-stderr\n");
    browser.until("document.getElementById('facts').innerText.includes('note=<img src=x')").await;
    assert_eq!(browser.run("return document.querySelectorAll('img').length").await, 0);
    assert_eq!(browser.run("return document.scripts.length").await, 1);
    assert_eq!(browser.run("return document.title").await, "Holdfast");

    // Output goes on live, and after the daemon was away, with no line lost and none shown twice.
    browser.press("\u{e00c}").await;
    browser.until("document.getElementById('details').hidden").await;
    browser.run("document.getElementById('filter').value = ''; document.getElementById('filter').dispatchEvent(new Event('input'))").await;
    browser.run("location.hash = 'ticking'").await;
    let last =
        "Number(document.getElementById('output').textContent.match(/line (\\d+)\\n$/)?.[1] ?? 0)";
    browser.until(&format!("{last} > 5")).await;
    browser.run(&format!("window.before = {last}")).await;
    browser.until(&format!("{last} > window.before + 5")).await;
    served.holdfast.kill_daemon().await;
    browser
        .until("document.getElementById('connection').textContent.startsWith('No connection')")
        .await;
    served.start_daemon().await;
    browser.until("document.getElementById('connection').textContent === 'Live'").await;
    browser.run(&format!("window.before = {last}")).await;
    browser.until(&format!("{last} > window.before + 20")).await;
    only_consecutive(&browser).await;
    // A tab in the background asks for nothing, and goes on when it is looked at again.
    browser.run(&format!("window.before = {last}")).await;
    for hidden in [true, false] {
        let script = format!(
            "Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});
             document.dispatchEvent(new Event('visibilitychange'))"
        );
        browser.run(&script).await;
    }
    browser.until(&format!("{last} > window.before + 5")).await;
    only_consecutive(&browser).await;

    // A container that is started again, in the page that is open.
    served.holdfast.ok(&["restart", "--time", "0", "ticking"]).await;
    browser.until("document.getElementById('runs').innerText.includes('killed by signal 9')").await;
    browser.until("document.getElementById('legend').innerText.includes('Restarts: 3')").await;
    browser.until(&format!("/line \\d+\\nline 1\\nline 2\\n/.test({output})")).await;

    // It fits a telephone.
    browser.resize(400, 800).await;
    for hash in ["ticking", ""] {
        browser.run(&format!("location.hash = '{hash}'")).await;
        browser
            .until(&format!("document.getElementById('details').hidden === {}", hash.is_empty()))
            .await;
        let width = browser.run("return document.documentElement.scrollWidth").await;
        assert!(width.as_u64().is_some_and(|width| width <= 400), "{hash}: {width}");
    }
    // It can be used with a keyboard alone.
    browser.press("/").await;
    browser.until("document.activeElement.id === 'filter'").await;
    for key in ["f", "r", "o", "z"] {
        browser.press(key).await;
    }
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    for _ in 0..20 {
        browser.press("\u{e004}").await;
        if browser.run("return document.activeElement.textContent").await == "frozen" {
            break;
        }
    }
    browser.press("\u{e007}").await;
    browser.until("document.getElementById('details-title').textContent === 'frozen'").await;

    let addresses = browser.run("return performance.getEntriesByType('resource').map(it => it.name).concat(location.href)").await;
    assert!(!addresses.to_string().contains(TOKEN), "{addresses}");
    assert!(!addresses.to_string().contains("attach"), "{addresses}");
    no_complaints(&browser).await;
    // The browser itself refuses markup, should the page ever make some.
    let refused =
        "try { document.body.innerHTML = '<p>'; return 'made' } catch (e) { return e.name }";
    assert_eq!(browser.run(refused).await, "TypeError");

    // A log-out forgets the token.
    browser.click("#log-out").await;
    browser.until("document.getElementById('page').hidden && sessionStorage.length === 0").await;
    browser.close().await;
    served.holdfast.close().await;
}

/// Regression: all of the text was laid out anew for each piece, and the page answered after seconds.
#[tokio::test]
async fn a_container_that_writes_all_the_time_leaves_the_page_quick_and_small() {
    let served = Served::start().await;
    let Some(browser) = Browser::start().await else {
        return skip("chromedriver is not installed; see cargo xtask web-test");
    };
    served.run("flood", &[], &["seq", "1", "1000000000"]).await;
    log_in(&browser, &served.url).await;
    browser.run("location.hash = 'flood'").await;
    let output = "document.getElementById('output')";
    browser.until(&format!("{output}.textContent.length > 150000")).await;
    for _ in 0..20 {
        let began = Instant::now();
        browser.run(&format!("window.before = {output}.lastChild.textContent")).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        browser.until(&format!("{output}.lastChild.textContent !== window.before")).await;
        let kept = browser.run(&format!("return {output}.textContent.length")).await;
        assert!(kept.as_u64().is_some_and(|kept| kept < 300_000), "{kept}");
    }
    no_complaints(&browser).await;
    browser.close().await;
    served.holdfast.close().await;
}

/// The variable that names the file for the picture in the documentation, and with which the long form runs.
const PICTURE: &str = "HOLDFAST_WEB_PICTURE";

#[tokio::test]
async fn a_thousand_containers_take_one_list_and_a_hundred_rows() {
    if std::env::var_os(PICTURE).is_none() {
        return skip("a part of the long form: cargo xtask web-test");
    }
    let Some(browser) = Browser::start().await else {
        return skip("chromedriver is not installed");
    };
    // Without isolation and with one shim for all, so that they cost little.
    let runtime = binary("fake-runtime").display().to_string();
    let served = Served::start_with(&["--runtime", &runtime, "--shim-group", "all"]).await;
    let started = futures::stream::iter(0..1000).for_each_concurrent(8, async |number| {
        served.run(&format!("c{number:04}"), &[], &["sleep", "100000"]).await;
    });
    started.await;
    log_in(&browser, &served.url).await;
    browser
        .until("document.getElementById('counts').innerText.includes('Shown: 100 of 1000')")
        .await;
    assert_eq!(browser.run("return document.querySelectorAll('#rows tr').length").await, 100);
    let asked = "return performance.getEntriesByType('resource').filter(it => it.name.includes('/v1/')).length";
    let before = browser.run(asked).await.as_u64().expect("a number");
    browser.write("#filter", "c0777").await;
    browser.until("document.getElementById('counts').innerText.includes('Shown: 1 of 1')").await;
    served.holdfast.ok(&["kill", "--signal", "KILL", "c0777"]).await;
    browser.until("document.getElementById('rows').innerText.includes('killed by signal 9')").await;
    browser.until("document.getElementById('legend').innerText.includes('Failures: 1')").await;
    let after = browser.run(asked).await.as_u64().expect("a number");
    // None for each container. The page asks for usage every three seconds.
    assert!(after - before < 50, "{before} to {after}");
    no_complaints(&browser).await;
    browser.close().await;
    served.holdfast.close().await;
}

#[tokio::test]
async fn the_picture_of_the_documentation_is_renewed() {
    let Some(file) = std::env::var_os(PICTURE) else {
        return skip("a part of the long form: cargo xtask web-test");
    };
    let Some(browser) = Browser::start().await else {
        return skip("chromedriver is not installed");
    };
    let served = Served::start().await;
    let programs = served.holdfast.scratch.bundle().join("rootfs/bin");
    for (name, script) in [("serve", SERVING), ("store", STORING), ("import", "sleep 0.4; exit 3")]
    {
        executable::script(programs.join(name), &format!("#!/bin/sh\n{script}\n"));
    }
    for id in ["web-1", "web-2", "web-3"] {
        let options = ["--restart", "always", "--memory", "128m", "--label", "app=shop"];
        served.run(id, &options, &["serve", "--port", "8080"]).await;
    }
    served.run("database", &["--restart", "always", "--memory", "256m"], &["store"]).await;
    served.run("cache", &["--memory", "64m"], &["sleep", "100000"]).await;
    served.run("importer", &["--restart", "on-failure:4"], &["import", "--all"]).await;
    served.run("nightly-report", &[], &["sh", "-c", "sleep 1"]).await;
    served.run("maintenance", &[], &["sleep", "100000"]).await;
    served.holdfast.ok(&["pause", "maintenance"]).await;
    browser.resize(1280, 860).await;
    browser.scheme("light").await;
    log_in(&browser, &served.url).await;
    browser.run("const range = document.getElementById('range'); range.value = 900; range.dispatchEvent(new Event('change'))").await;
    for id in ["web-2", "web-2", "web-1"] {
        // So that the time line shows something.
        tokio::time::sleep(Duration::from_secs(5)).await;
        served.holdfast.ok(&["kill", "--signal", "KILL", id]).await;
    }
    browser.run("location.hash = 'web-2'").await;
    browser.until("document.querySelectorAll('#rows tr').length === 8").await;
    browser.until("document.getElementById('runs').rows.length === 3").await;
    browser.until("document.querySelector('polyline')?.points.length > 6").await;
    let picture = browser.picture().await;
    let base64 = served.holdfast.scratch.path().join("picture");
    fs::write(&base64, picture).expect("write the picture");
    let decoded = std::process::Command::new("base64").arg("-d").arg(base64).output();
    let decoded = decoded.expect("run base64").stdout;
    assert!((10_000..200_000).contains(&decoded.len()), "{} bytes", decoded.len());
    fs::write(file, decoded).expect("write the picture");
    browser.close().await;
    served.holdfast.close().await;
}
