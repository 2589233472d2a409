//! Reboots: which containers are made again, which are started, and what becomes of those that cannot be.
//!
//! A reboot is played: daemon, shims and containers are killed, and the state root is emptied, as a tmpfs is,
//! or its files bear another boot id, as on a disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use holdfast_tests::{Holdfast, Proc, edit_json, eventually, processes, runtime, soon, unique_id};
use nix::sys::signal::Signal;
use serde_json::Value;

/// What a reboot leaves of the state root.
#[derive(Clone, Copy, PartialEq)]
enum Root {
    Empty,
    Kept,
}

fn definitions(holdfast: &Holdfast) -> PathBuf {
    holdfast.scratch.path().join("var/definitions")
}

/// Returns the names of the files in the directory of the definitions.
fn defined(holdfast: &Holdfast) -> Vec<String> {
    let entries = fs::read_dir(definitions(holdfast)).expect("read the definitions").flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

async fn start_daemon(holdfast: &mut Holdfast) {
    let directory = definitions(holdfast);
    holdfast.start_daemon_by(|daemon| _ = daemon.arg("--definitions").arg(&directory)).await;
}

async fn start() -> Holdfast {
    let mut holdfast = Holdfast::without_daemon();
    start_daemon(&mut holdfast).await;
    holdfast
}

/// Starts a container that writes a line for each of its runs into a file, and waits for the first.
async fn run(holdfast: &Holdfast, name: &str, options: &[&str]) -> String {
    let id = unique_id(name).to_string();
    let path = holdfast.scratch.path().display();
    let volume = format!("{path}:{path}");
    let script = format!("echo run >> {path}/{id}; exec sleep 100000");
    let usual = ["--name", &id, "--volume", &volume];
    let options = [&usual[..], options].concat();
    let id = holdfast.run_detached(&options, &["sh", "-c", &script]).await;
    has_run(holdfast, &id, 1).await;
    id
}

/// Waits until the program of a container has begun so often. One that runs may still be killed
/// before it has written its line.
async fn has_run(holdfast: &Holdfast, id: &str, times: usize) {
    eventually("the program", || runs(holdfast, id) == times).await;
}

fn runs(holdfast: &Holdfast, id: &str) -> usize {
    let content = fs::read_to_string(holdfast.scratch.path().join(id));
    content.unwrap_or_default().lines().count()
}

/// Returns the first process of a container. If that has ended, its pid may be a stranger's.
fn init(container: &Path) -> Option<Proc> {
    let pid = fs::read_to_string(container.join("init/pid")).ok()?;
    let record = fs::read(container.join("init/process.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    let start_time = record["startTime"].as_str().unwrap_or_default();
    let process = Proc::of(pid.trim().parse().ok()?)?;
    let is_it = start_time.is_empty() || process.identity().ends_with(&format!("@{start_time}"));
    is_it.then_some(process)
}

async fn reboot(holdfast: &mut Holdfast, left: Root) {
    if holdfast.running_daemon().is_some() {
        holdfast.kill_daemon().await;
    }
    let root = holdfast.root();
    // Shims first: they would record the ends of the containers.
    let shims = processes::shims(&root);
    let entries = fs::read_dir(&root).expect("read the state root").flatten();
    let containers: Vec<PathBuf> = entries
        .map(|it| it.path())
        .filter(|path| path.join("init/process.json").exists())
        .collect();
    let inits: Vec<_> = containers.iter().filter_map(|path| init(path)).collect();
    for all in [shims, inits] {
        all.iter().for_each(|process| process.signal(Signal::SIGKILL));
        for process in all {
            process.ended().await;
        }
    }
    for container in &containers {
        let mut delete = tokio::process::Command::new(runtime());
        delete.arg("--root").arg(holdfast.scratch.runtime_state());
        delete.args(["delete", "--force"]).arg(container.file_name().expect("a name"));
        holdfast_tests::ran(delete).await;
    }
    if left == Root::Empty {
        fs::remove_dir_all(&root).expect("empty the state root");
        return;
    }
    for container in &containers {
        edit_json(&container.join("init/process.json"), |record| {
            record["holdfast"]["bootId"] = "another".into();
        });
    }
    edit_json(&root.join(".definitions"), |marker| marker["bootId"] = "another".into());
}

/// Waits until the daemon has dealt with all definitions.
async fn made_again(holdfast: &Holdfast) {
    let said = || holdfast.daemon_log().contains("made again after the reboot containers=");
    eventually("the containers to be made again", said).await;
}

async fn status(holdfast: &Holdfast, id: &str) -> Value {
    let all = holdfast.json(&["ps", "--all", "--json"]).await;
    let found = all.as_array().expect("an array").iter().find(|it| it["id"] == id);
    found.map_or(Value::Null, |it| it["status"].clone())
}

#[tokio::test]
async fn after_a_reboot_those_are_made_again_whose_policy_says_so_and_once_each() {
    let mut holdfast = start().await;
    made_again(&holdfast).await;
    let health = ["--health-cmd", "true", "--label", "a=b", "--env", "X=y"];
    let always = run(&holdfast, "always", &[&health[..], &["--restart", "always"]].concat()).await;
    let unless = run(&holdfast, "unless", &["--restart", "unless-stopped"]).await;
    let always_stopped = run(&holdfast, "stopped", &["--restart", "always"]).await;
    let unless_stopped = run(&holdfast, "stopped", &["--restart", "unless-stopped"]).await;
    let begun_again = run(&holdfast, "again", &["--restart", "unless-stopped"]).await;
    let failing = run(&holdfast, "failing", &["--restart", "on-failure"]).await;
    let plain = run(&holdfast, "plain", &[]).await;
    let deleted = run(&holdfast, "deleted", &["--restart", "always"]).await;
    holdfast.ok(&["stop", "--time", "0", &always_stopped, &unless_stopped, &begun_again]).await;
    holdfast.ok(&["start", &begun_again]).await;
    has_run(&holdfast, &begun_again, 2).await;
    holdfast.fails(1, &["rm", &deleted]).await;
    assert!(defined(&holdfast).contains(&format!("{deleted}.json")));
    holdfast.ok(&["rm", "--force", &deleted]).await;
    let outliving = [&always, &unless, &always_stopped, &unless_stopped, &begun_again];
    let mut names: Vec<_> = outliving.iter().map(|id| format!("{id}.json")).collect();
    names.sort();
    assert_eq!(defined(&holdfast), names);
    let file = definitions(&holdfast).join(&names[0]);
    let mode = |path: &Path| fs::metadata(path).expect("metadata").mode() & 0o777;
    assert_eq!((mode(&definitions(&holdfast)), mode(&file)), (0o700, 0o600));

    reboot(&mut holdfast, Root::Empty).await;
    start_daemon(&mut holdfast).await;
    made_again(&holdfast).await;
    for id in [&always, &unless, &always_stopped, &begun_again] {
        assert_eq!(status(&holdfast, id).await, "running", "{id}");
    }
    assert_eq!(status(&holdfast, &unless_stopped).await, "created");
    for id in [&failing, &plain, &deleted] {
        assert!(status(&holdfast, id).await.is_null(), "{id}");
    }
    let info = holdfast.inspect(&always).await;
    assert!(info["labels"]["a"] == "b" && info["health"]["status"] == "starting", "{info}");
    assert!(info["config"]["process"]["env"].to_string().contains("X=y"), "{info}");
    eventually("the program of each", || {
        let twice = [&always, &unless, &always_stopped];
        twice.iter().all(|id| runs(&holdfast, id) == 2) && runs(&holdfast, &begun_again) == 3
    })
    .await;

    // The next daemon of this boot starts nothing.
    holdfast.ok(&["stop", "--time", "0", &always]).await;
    holdfast.kill_daemon().await;
    start_daemon(&mut holdfast).await;
    assert_eq!(status(&holdfast, &always).await, "stopped");
    holdfast.ok(&["start", &unless_stopped]).await;
    has_run(&holdfast, &unless_stopped, 2).await;
    assert!(!holdfast.daemon_log().contains("made again"), "{}", holdfast.daemon_log());

    // Now nobody has stopped it.
    reboot(&mut holdfast, Root::Empty).await;
    start_daemon(&mut holdfast).await;
    made_again(&holdfast).await;
    assert_eq!(status(&holdfast, &unless_stopped).await, "running");
    assert_eq!(status(&holdfast, &always).await, "running");
    has_run(&holdfast, &always, 3).await;
    has_run(&holdfast, &unless, 3).await;
    holdfast.close().await;
}

#[tokio::test]
async fn after_a_reboot_with_a_state_root_on_disk_the_containers_go_on_in_their_next_run() {
    let mut holdfast = start().await;
    made_again(&holdfast).await;
    let always = run(&holdfast, "always", &["--restart", "always"]).await;
    let always_stopped = run(&holdfast, "stopped", &["--restart", "always"]).await;
    let unless_stopped = run(&holdfast, "stopped", &["--restart", "unless-stopped"]).await;
    let plain = run(&holdfast, "plain", &[]).await;
    holdfast.ok(&["stop", "--time", "0", &always_stopped, &unless_stopped]).await;
    reboot(&mut holdfast, Root::Kept).await;
    start_daemon(&mut holdfast).await;
    made_again(&holdfast).await;
    eventually("the programs", || {
        runs(&holdfast, &always) == 2 && runs(&holdfast, &always_stopped) == 2
    })
    .await;
    let info = holdfast.inspect(&always).await;
    assert_eq!((&info["run"], &info["restart"]["count"]), (&2.into(), &1.into()), "{info}");
    let info = holdfast.inspect(&always_stopped).await;
    assert_eq!((&info["run"], &info["restart"]["count"]), (&2.into(), &0.into()), "{info}");
    for id in [&unless_stopped, &plain] {
        assert_eq!(status(&holdfast, id).await, "stopped");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn what_cannot_be_made_again_is_named_and_holds_up_no_other() {
    let mut holdfast = start().await;
    made_again(&holdfast).await;
    let gone = holdfast.scratch.path().join("gone");
    fs::create_dir(&gone).expect("make a directory");
    let volume = format!("{}:/mnt", gone.display());
    let options = ["--restart", "always", "--volume", &volume];
    let broken = run(&holdfast, "broken", &options).await;
    let garbled = run(&holdfast, "garbled", &["--restart", "always"]).await;
    let later = run(&holdfast, "later", &["--restart", "always"]).await;
    let good = run(&holdfast, "good", &["--restart", "always"]).await;
    reboot(&mut holdfast, Root::Empty).await;
    fs::remove_dir(&gone).expect("remove a directory");
    let file = |id: &str| definitions(&holdfast).join(format!("{id}.json"));
    fs::write(file(&garbled), "{").expect("write");
    edit_json(&file(&later), |definition| definition["version"] = 1000.into());
    start_daemon(&mut holdfast).await;
    made_again(&holdfast).await;
    assert_eq!(status_of_good(&holdfast, &good).await, "running");
    let all = [&broken, &garbled, &later];
    for round in 0..2 {
        let log = holdfast.daemon_log();
        let info = holdfast.json(&["info", "--json"]).await;
        for id in all {
            let path = definitions(&holdfast).join(format!("{id}.json"));
            let problems = info["problems"].as_array().expect("an array");
            let problem = problems.iter().find(|it| it["path"] == path.display().to_string());
            let problem = problem.unwrap_or_else(|| panic!("{id} is not in {info}"));
            assert!(problem["reason"].as_str().is_some_and(|it| it.len() > 10), "{problem}");
            assert!(round > 0 || log.contains(id.as_str()), "{log}");
        }
        // A further daemon of this boot does not try again, and still says so.
        holdfast.kill_daemon().await;
        start_daemon(&mut holdfast).await;
    }
    // The user gives one up, and makes another one anew.
    holdfast.ok(&["rm", &garbled]).await;
    holdfast.fails(1, &["rm", &garbled]).await;
    let bundle = holdfast.scratch.bundle();
    let bundle = bundle.to_str().expect("a path in UTF-8");
    holdfast.ok(&["run", "-d", "--name", &later, "--bundle", bundle, "sleep", "100000"]).await;
    let info = holdfast.json(&["info", "--json"]).await;
    assert_eq!(info["problems"].as_array().map(Vec::len), Some(1), "{info}");
    let mut names = [format!("{broken}.json"), format!("{good}.json")];
    names.sort();
    assert_eq!(defined(&holdfast), names);

    // What failed is tried again after the next boot.
    fs::create_dir(&gone).expect("make a directory");
    reboot(&mut holdfast, Root::Empty).await;
    start_daemon(&mut holdfast).await;
    made_again(&holdfast).await;
    assert_eq!(holdfast.inspect(&broken).await["status"], "running");
    assert_eq!(holdfast.json(&["info", "--json"]).await["problems"], Value::Array(Vec::new()));
    holdfast.close().await;
}

/// `ps` complains of what could not be made again.
async fn status_of_good(holdfast: &Holdfast, id: &str) -> Value {
    let ran = holdfast.run(&["ps", "--all", "--json"]).await;
    assert!(ran.stderr.contains("not restored"), "{ran:?}");
    let all: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let found = all.as_array().expect("an array").iter().find(|it| it["id"] == id);
    found.map_or(Value::Null, |it| it["status"].clone())
}

#[tokio::test]
async fn a_daemon_that_is_killed_after_a_boot_leaves_the_rest_to_the_next_and_none_runs_twice() {
    let mut holdfast = start().await;
    made_again(&holdfast).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(run(&holdfast, "many", &["--restart", "always"]).await);
    }
    reboot(&mut holdfast, Root::Empty).await;
    for round in 0..6 {
        start_daemon(&mut holdfast).await;
        tokio::time::sleep(Duration::from_millis(17 + 29 * round)).await;
        holdfast.kill_daemon().await;
    }
    start_daemon(&mut holdfast).await;
    let done = async {
        loop {
            let all = holdfast.json(&["ps", "--json"]).await;
            if all.as_array().map(Vec::len) == Some(ids.len()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("all to run", done).await;
    eventually("the programs", || ids.iter().all(|id| runs(&holdfast, id) >= 2)).await;
    for id in &ids {
        assert_eq!(runs(&holdfast, id), 2, "{id}: {}", holdfast.daemon_log());
    }
    holdfast.close().await;
}

/// Starts a command whose output does not matter.
fn begin(holdfast: &Holdfast, args: &[&str]) -> tokio::process::Child {
    let mut command = holdfast.command(args);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start a command")
}

/// Kills the daemon at many moments of creations and deletions.
#[tokio::test]
async fn there_is_a_definition_exactly_for_each_container_that_exists() {
    let mut holdfast = start().await;
    made_again(&holdfast).await;
    let bundle = holdfast.scratch.bundle();
    let bundle = bundle.to_str().expect("a path in UTF-8").to_owned();
    for round in 0..14 {
        let name = unique_id("cut").to_string();
        let no_wait = ["--reconnect", "0"];
        let options = ["--restart", "always", "--name", &name, "--bundle", &bundle];
        let words = ["sleep", "100000"];
        let create = [&no_wait[..], &["run", "-d"], &options, &words].concat();
        let mut child = begin(&holdfast, &create);
        if round % 2 == 1 {
            soon("the creation", child.wait()).await.expect("wait");
            child = begin(&holdfast, &[&no_wait[..], &["rm", "--force", &name]].concat());
        }
        tokio::time::sleep(Duration::from_millis(4 * (round / 2) * (round / 2))).await;
        holdfast.kill_daemon().await;
        soon("the command", child.wait()).await.expect("wait");
        start_daemon(&mut holdfast).await;
        // A start whose daemon has died may still end in either way.
        let same = async {
            loop {
                let all = holdfast.json(&["ps", "--all", "--json"]).await;
                let ids = all.as_array().expect("an array").iter();
                let ids: Vec<_> = ids.filter(|it| it["status"] != "creating").collect();
                let mut names: Vec<_> = ids
                    .iter()
                    .map(|it| format!("{}.json", it["id"].as_str().expect("an id")))
                    .collect();
                names.sort();
                if names == defined(&holdfast) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        soon(&format!("round {round}: a definition for each"), same).await;
    }
    holdfast.close().await;
}

#[tokio::test]
async fn without_definitions_no_container_outlives_a_reboot_and_info_says_so() {
    let mut holdfast = Holdfast::start().await;
    assert!(holdfast.ok(&["info"]).await.contains("no container outlives it"));
    let always = run(&holdfast, "always", &["--restart", "always"]).await;
    reboot(&mut holdfast, Root::Empty).await;
    holdfast.start_daemon().await;
    assert!(status(&holdfast, &always).await.is_null());
    assert!(!holdfast.root().join(".definitions").exists());
    holdfast.close().await;
}
