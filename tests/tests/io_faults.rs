//! Disks that are full, broken or read-only, and a clock that was set back: nothing that was told is
//! lost, the error says where, and when the trouble is over it goes on.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_state::{cri, json_file};
use holdfast_tests::crash::{self, Summary};
use holdfast_tests::life::{After, Runtime, Who};
use holdfast_tests::processes::shim_of;
use holdfast_tests::tracer::{Deed, Point, Rule, Tracer};
use holdfast_tests::{Holdfast, Proc, binary, eventually, unique_id};
use nix::libc::{EIO, ENOSPC};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Set in a test that runs in namespaces of its own.
const INSIDE: &str = "HOLDFAST_TEST_INSIDE";

/// Runs a test that mounts something once more, in namespaces for mounts and processes that are its
/// own: a mount of the machine's would be seen by every process there is, and nothing that such a test
/// leaves, or ends, can be anyone else's. `true` where that was done, and all is over.
fn ran_by_itself(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        assert_eq!(std::process::id(), 1, "not in a process namespace of its own");
        return false;
    }
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(std::env::current_exe().expect("the path of the running test"))
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare is installed (util-linux)");
    assert!(status.success(), "{test} in its own namespaces: {status}");
    true
}

/// A file system of its own in memory, as the state root of a test. Dropped, it is unmounted.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: &Path, size: &str) -> Self {
        assert!(std::env::var_os(INSIDE).is_some(), "nothing is mounted where others live");
        fs::create_dir(path).expect("make a mount point");
        let options = format!("size={size},mode=0700");
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
            .expect("mount a tmpfs (these tests need root)");
        Self(path.to_owned())
    }

    fn remount(&self, flags: MsFlags) {
        let flags = flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).expect("remount a tmpfs");
    }

    fn resize(&self, size: &str) {
        let options = format!("size={size}");
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(options.as_str()))
            .expect("resize a tmpfs");
    }

    /// Takes all the space there is; returns the file that has it.
    fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.join(".filler");
        let mut file = fs::File::create(&path).expect("make a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn create<'a>(id: &'a str, runtime: &'a str, bundle: &'a str, script: &'a str) -> Vec<&'a str> {
    vec![
        "run",
        "-d",
        "--name",
        id,
        "--runtime",
        runtime,
        "--bundle",
        bundle,
        "--",
        "sh",
        "-c",
        script,
    ]
}

fn names(holdfast: &Holdfast) -> (String, String, String) {
    let runtime = binary("fake-runtime").display().to_string();
    let bundle = holdfast.scratch.bundle().display().to_string();
    (unique_id("io").to_string(), runtime, bundle)
}

/// The life of a container in which this call fails once goes on to its end.
async fn goes_on(who: Who, key: &str, time: u32, errno: i32, after: After) {
    let point = Point { key: key.to_owned(), time };
    let trial = crash::trial(Runtime::Fake, who, point, Deed::Fail(errno), after).await;
    assert!(trial.reached, "{trial:#?}");
    assert!(trial.violations.is_empty(), "{trial:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_fails_at_its_last_step_onto_the_disk_leaves_no_container() {
    // The entry of the new directory in the state root.
    goes_on(Who::Daemon, "fsync", 1, ENOSPC, After::Finish).await;
    goes_on(Who::Daemon, "fsync ID", 1, EIO, After::Finish).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_output_cannot_be_opened_does_not_stay_creating() {
    goes_on(Who::Daemon, "openat ID/init/output.log", 1, ENOSPC, After::Finish).await;
    goes_on(Who::Daemon, "openat ID/RANDOM/output.log", 1, ENOSPC, After::Finish).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_a_full_disk_refused_are_written_later_in_their_order() {
    for time in [1, 3] {
        goes_on(
            Who::Daemon,
            "write .journal/00000000000000000001.jsonl",
            time,
            ENOSPC,
            After::Finish,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_was_told_outlives_the_daemon_though_the_shim_could_not_write_it() {
    goes_on(Who::InitShim, "openat ID/init/.exit.json.PID", 1, ENOSPC, After::Further).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_fail_anywhere_lose_nothing() {
    let (began, seed) = (Instant::now(), crash::seed());
    println!("HOLDFAST_SEED={seed}");
    let mut all = Vec::new();
    for who in [Who::Daemon, Who::InitShim, Who::ExecShim] {
        for point in crash::points(Runtime::Fake, who).await {
            all.extend(crash::faults(&point).into_iter().map(|deed| (who, point.clone(), deed)));
        }
    }
    let every = all.len().div_ceil(20);
    let first = usize::try_from(seed).unwrap_or_default() % every;
    let mut summary = Summary::default();
    for (number, (who, point, deed)) in all.into_iter().skip(first).step_by(every).enumerate() {
        if began.elapsed() > Duration::from_secs(50) {
            break;
        }
        let after = [After::Finish, After::Further][number % 2];
        summary.add(crash::trial(Runtime::Fake, who, point, deed, after).await);
    }
    println!("{}", summary.table());
    assert!(summary.violations().is_empty(), "seed {seed}: {:#?}", summary.violations());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_state_root_loses_no_status_and_goes_on_when_there_is_space() {
    if ran_by_itself("a_full_state_root_loses_no_status_and_goes_on_when_there_is_space") {
        return;
    }
    let mut holdfast = Holdfast::without_daemon();
    let tmpfs = Tmpfs::mount(&holdfast.root(), "2m");
    holdfast.start_daemon().await;
    let (id, runtime, bundle) = names(&holdfast);
    let gate = holdfast.scratch.gate();
    let script = gate.script_on_host("echo before");
    holdfast.ok(&create(&id, &runtime, &bundle, &script)).await;
    holdfast.said(&id, "before").await;

    let filler = tmpfs.fill();
    let other = unique_id("io").to_string();
    let refused = holdfast.run(&create(&other, &runtime, &bundle, "exit 0")).await;
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("No space left on device"), "{refused:?}");
    assert!(refused.stderr.contains(&other), "the error says where: {refused:?}");
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    gate.open(9);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");

    fs::remove_file(filler).expect("make space");
    holdfast.ok(&create(&other, &runtime, &bundle, "exit 4")).await;
    assert_eq!(holdfast.ok(&["wait", &other]).await, "4\n");
    holdfast.ok(&["delete", &id, &other]).await;
    // The shim that could not write its status tries that again each second.
    holdfast.nothing_left().await;
    holdfast.close().await;
    drop(tmpfs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_told_while_the_disk_was_full_is_there_after_a_restart() {
    if ran_by_itself("a_status_told_while_the_disk_was_full_is_there_after_a_restart") {
        return;
    }
    let mut holdfast = Holdfast::without_daemon();
    let tmpfs = Tmpfs::mount(&holdfast.root(), "2m");
    holdfast.start_daemon().await;
    let (id, runtime, bundle) = names(&holdfast);
    let gate = holdfast.scratch.gate();
    let script = gate.script_on_host("true");
    holdfast.ok(&create(&id, &runtime, &bundle, &script)).await;
    let filler = tmpfs.fill();
    gate.open(9);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    fs::remove_file(filler).expect("make space");
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    holdfast.ok(&["delete", &id]).await;
    // Its shim, which could not write the status, tries that again each second.
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_state_root_is_said_and_its_containers_run_on() {
    if ran_by_itself("a_read_only_state_root_is_said_and_its_containers_run_on") {
        return;
    }
    let mut holdfast = Holdfast::without_daemon();
    let tmpfs = Tmpfs::mount(&holdfast.root(), "8m");
    holdfast.start_daemon().await;
    let (id, runtime, bundle) = names(&holdfast);
    let gate = holdfast.scratch.gate();
    let script = gate.script_on_host("echo before");
    holdfast.ok(&create(&id, &runtime, &bundle, &script)).await;
    holdfast.said(&id, "before").await;
    // No remounting while files are open for writing; a real disk does it by itself.
    let other = unique_id("io").to_string();
    holdfast.kill_daemon().await;
    let remounted = mount(
        None::<&str>,
        &tmpfs.0,
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None::<&str>,
    );
    assert!(remounted.is_err(), "a shim holds the output open for writing");
    // What no process holds open for writing can be seen through a second mount that is read-only.
    let bind = Some(tmpfs.0.as_path());
    mount(bind, &tmpfs.0, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind a mount");
    let second = Tmpfs(tmpfs.0.clone());
    second.remount(MsFlags::MS_BIND | MsFlags::MS_RDONLY);
    let said = holdfast.try_start_daemon(&binary("holdfast"), &[]).await;
    let said = said.expect_err("a daemon over what it can't write");
    let root = holdfast.root().display().to_string();
    assert!(said.contains("Read-only file system") && said.contains(&root), "{said}");
    drop(second);

    holdfast.start_daemon().await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.ok(&create(&other, &runtime, &bundle, "exit 4")).await;
    assert_eq!(holdfast.ok(&["wait", &other]).await, "4\n");
    gate.open(9);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_a_full_disk_refuses_is_counted_and_told_and_holds_nobody_up() {
    let mut holdfast = Holdfast::without_daemon();
    let (id, runtime, bundle) = names(&holdfast);
    let (gate, space) = (holdfast.scratch.gate(), holdfast.scratch.path().join("space"));
    let full = Rule::always("write ID/init/output.log", Deed::Fail(ENOSPC)).until(space.clone());
    let shim = binary("holdfast-shim");
    let tracer = Tracer::new(&holdfast.scratch, &id, &shim, "/init ", &[full]).await;
    let program = tracer.program().as_os_str();
    let args = ["--shim".as_ref(), program];
    holdfast.try_start_daemon(&binary("holdfast"), &args).await.expect("the daemon starts");
    // A whole pipe and more: whoever is held up by it does not come to the gate.
    let marker = holdfast.scratch.path().join("wrote");
    let first = format!("head -c 300000 /dev/zero | tr '\\0' x; echo; touch {}", marker.display());
    let script = gate.script_on_host(&first);
    holdfast.ok(&create(&id, &runtime, &bundle, &script)).await;
    eventually("the container to have written all", || marker.exists()).await;
    fs::write(&space, "").expect("make a file");
    gate.open(9);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    let logs = holdfast.run(&["logs", &id]).await;
    assert_eq!(logs.stdout.lines().last(), Some("after"), "{logs:?}");
    assert!(logs.stderr.contains(" bytes of the log could not be written]"), "{logs:?}");
    let log = fs::read_to_string(holdfast.root().join(&id).join("init/shim-log.json"));
    let log: Vec<Value> = log
        .expect("read the shim's log")
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let told: Vec<&str> = log.iter().filter_map(|line| line["msg"].as_str()).collect();
    assert!(told[0].contains("output.log: No space left on device"), "{told:?}");
    let goes_on = told.last().expect("a line");
    let number = goes_on.split(' ').find_map(|word| word.parse::<u64>().ok());
    assert!(goes_on.contains("goes on") && number.is_some_and(|n| n > 0), "{told:?}");
    holdfast.close().await;
}

/// The disk is really full here, and holds the logs alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_logs_holds_nobody_up_in_any_format() {
    if ran_by_itself("a_full_disk_of_logs_holds_nobody_up_in_any_format") {
        return;
    }
    let holdfast = Holdfast::start().await;
    let (_, runtime, bundle) = names(&holdfast);
    let logs = holdfast.scratch.path().join("logs");
    let disk = Tmpfs::mount(&logs, "1m");
    for driver in ["cri", "json-file", "file"] {
        let (id, gate) = (unique_id("io").to_string(), holdfast.scratch.gate());
        let path = logs.join(driver);
        let log = format!("{driver}:{},max-size=0", path.display());
        let marker = holdfast.scratch.path().join(format!("{driver}-wrote"));
        let script = gate.script_on_host(&format!("seq 1 500000; touch {}", marker.display()));
        let mut args = create(&id, &runtime, &bundle, &script);
        args.splice(2..2, ["--log", log.as_str()]);
        holdfast.ok(&args).await;
        eventually("three megabytes to be written", || marker.exists()).await;
        assert!(fs::metadata(&path).expect("its log").len() > 900_000, "{driver}");
        let shim = shim_of(&holdfast.root(), &id, "init");
        disk.resize("64m");
        gate.open(9);
        assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
        let content = fs::read_to_string(&path).expect("its log");
        assert!(content.contains("bytes of the log could not be written]"), "{driver}");
        let last = content.lines().last().expect("a line");
        assert!(last.contains("after") && !content.contains('\0'), "{driver}: {last}");
        let is_whole = |line: &str| match driver {
            "cri" => cri::decode(line.as_bytes()).is_some(),
            "json-file" => json_file::decode(line.as_bytes()).is_some(),
            _ => true,
        };
        assert!(content.ends_with('\n') && content.lines().all(is_whole), "{driver}: a torn entry");
        fs::remove_file(&path).expect("remove a log");
        // As long as it has the log open, that takes its room.
        shim.ended().await;
        disk.resize("1m");
    }
    drop(disk);
    holdfast.close().await;
}

/// A disk that does not answer stops the log. The container goes on until its pipe is full, can be killed,
/// and its status and output are there when the disk is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_disk_of_logs_keeps_no_container_from_being_killed() {
    if ran_by_itself("a_frozen_disk_of_logs_keeps_no_container_from_being_killed") {
        return;
    }
    for driver in ["cri", "file"] {
        let holdfast = Holdfast::start().await;
        let (id, runtime, bundle) = names(&holdfast);
        let disk = Ext4::mount(&holdfast.scratch.path().join("logs"));
        let log = format!("{driver}:{}", disk.path.join("log").display());
        let mark = |name: &str| holdfast.scratch.path().join(name);
        let script = format!(
            "echo before; until [ -e {} ]; do sleep 0.01; done; seq 1 20000; echo written; touch {}; exec sleep 1000",
            mark("go").display(),
            mark("wrote").display()
        );
        let mut args = create(&id, &runtime, &bundle, &script);
        args.splice(2..2, ["--log", log.as_str()]);
        holdfast.ok(&args).await;
        disk.freeze(true);
        fs::write(mark("go"), "").expect("make a file");
        eventually("the container to have written all", || mark("wrote").exists()).await;
        let pid = holdfast.inspect(&id).await["pid"].as_i64().expect("a pid");
        let process = Proc::of(i32::try_from(pid).expect("a pid")).expect("its process");
        process.signal(Signal::SIGKILL);
        process.ended().await;
        disk.freeze(false);
        assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n");
        let logs = holdfast.ok(&["logs", &id]).await;
        let lines: Vec<_> = logs.lines().collect();
        assert_eq!(
            (lines.len(), lines.first(), lines.last()),
            (20_002, Some(&"before"), Some(&"written"))
        );
        holdfast.close().await;
    }
}

/// A disk that can be frozen, in a file. Dropped, it is thawed and unmounted.
struct Ext4 {
    path: std::path::PathBuf,
}

impl Ext4 {
    fn mount(path: &Path) -> Self {
        assert!(std::env::var_os(INSIDE).is_some(), "nothing is mounted where others live");
        fs::create_dir(path).expect("make a mount point");
        let image = path.with_extension("image");
        fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("make an image");
        run("mkfs.ext4", &["-q", &image.display().to_string()]);
        run("mount", &["-o", "loop", &image.display().to_string(), &path.display().to_string()]);
        Self { path: path.to_owned() }
    }

    fn freeze(&self, freeze: bool) {
        let what = if freeze { "--freeze" } else { "--unfreeze" };
        run("fsfreeze", &[what, &self.path.display().to_string()]);
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        let _ = std::process::Command::new("fsfreeze").args(["--unfreeze", &path]).output();
        let _ = std::process::Command::new("umount").args(["--lazy", &path]).output();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (as root): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_from_the_future_are_as_good_as_any() {
    let mut holdfast = Holdfast::start().await;
    let (id, runtime, bundle) = names(&holdfast);
    let gate = holdfast.scratch.gate();
    let script = gate.script_on_host("echo before");
    holdfast.ok(&create(&id, &runtime, &bundle, &script)).await;
    let ended = unique_id("io").to_string();
    holdfast.ok(&create(&ended, &runtime, &bundle, "exit 3")).await;
    assert_eq!(holdfast.ok(&["wait", &ended]).await, "3\n");
    holdfast.take_daemon().end(Signal::SIGTERM).await;

    // As if the clock had been set back by years since then.
    let later = |text: &mut Value| *text = json!("2099-01-01T00:00:00.000000000Z");
    for id in [&id, &ended] {
        let dir = holdfast.root().join(id);
        holdfast_tests::edit_json(&dir.join("init/process.json"), |record| {
            later(&mut record["holdfast"]["created"]);
        });
    }
    holdfast_tests::journal::edit(&holdfast.root(), |mut event| {
        later(&mut event["time"]);
        Some(event)
    });
    holdfast_tests::edit_json(&holdfast.root().join(&ended).join("init/exit.json"), |exit| {
        later(&mut exit["time"]);
    });
    holdfast.start_daemon().await;
    assert_eq!(holdfast.json(&["info", "--json"]).await["problems"], json!([]));
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    assert_eq!(holdfast.ok(&["wait", &ended]).await, "3\n");
    gate.open(9);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    // Ordered by their numbers, not by their times.
    let events = holdfast_tests::journal::events_of(&holdfast.root(), &id);
    let words: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(words, ["created", "started", "exited"]);
    assert!(events.is_sorted_by_key(|event| event["seq"].as_u64()), "{events:?}");
    holdfast.close().await;
}
