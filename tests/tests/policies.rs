//! Restart policies: who is started again, how often, and what holds over the ends of daemons.

use std::path::Path;

use holdfast_tests::{Holdfast, eventually, journal};
use serde_json::Value;

/// A program that writes a line for each of its runs, and then does what follows.
fn counting(file: &Path, then: &str) -> String {
    format!("echo run >> {}; {then}", file.display())
}

/// Returns the options that let a container write into the directory of the test.
fn writable(holdfast: &Holdfast) -> String {
    let path = holdfast.scratch.path().display();
    format!("{path}:{path}")
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).unwrap_or_default().lines().count()
}

fn starts(holdfast: &Holdfast, id: &str) -> usize {
    let events = journal::events_of(&holdfast.root(), id);
    events.iter().filter(|event| event["event"] == "started").count()
}

async fn status_of(holdfast: &Holdfast, id: &str) -> (Value, Value) {
    let info = holdfast.inspect(id).await;
    (info["status"].clone(), info["restart"].clone())
}

/// Waits until a container is in this run, and its program runs.
async fn in_run(holdfast: &Holdfast, id: &str, run: u64) {
    until(holdfast, id, run, "running").await;
}

/// Waits until a container has this status in this run, and returns what the daemon tells of it.
async fn until(holdfast: &Holdfast, id: &str, run: u64, status: &str) -> Value {
    holdfast.until(id, |info| info["run"] == run && info["status"] == status).await
}

#[tokio::test]
async fn a_container_that_fails_is_restarted_as_often_as_its_policy_says() {
    let holdfast = Holdfast::start().await;
    let (file, volume) = (holdfast.scratch.path().join("runs"), writable(&holdfast));
    let script = counting(&file, "exit 3");
    let options = ["--restart", "on-failure:3", "--volume", &volume];
    let id = holdfast.run_detached(&options, &["sh", "-c", &script]).await;
    let restart = until(&holdfast, &id, 4, "stopped").await["restart"].clone();
    assert_eq!(restart["policy"], "on-failure:3");
    assert_eq!((&restart["count"], &restart["stopped"]), (&3.into(), &false.into()));
    assert_eq!((lines(&file), starts(&holdfast, &id)), (4, 4));
    let listed: Value =
        serde_json::from_str(&holdfast.ok(&["ps", "--all", "--json"]).await).unwrap();
    assert_eq!(listed[0]["restart"]["count"], 3, "{listed}");
    // A user's start counts anew.
    holdfast.ok(&["start", &id]).await;
    eventually("the last run of the second time", || lines(&file) == 8).await;
    holdfast.close().await;
}

#[tokio::test]
async fn a_success_ends_on_failure_and_a_stop_ends_always_until_the_next_start() {
    let holdfast = Holdfast::start().await;
    let succeeds = holdfast.run_detached(&["--restart", "on-failure"], &["true"]).await;
    let always = holdfast.run_detached(&["--restart", "always"], &["sleep", "100000"]).await;
    holdfast.ok(&["kill", "--signal", "KILL", &always]).await;
    in_run(&holdfast, &always, 2).await;
    holdfast.ok(&["stop", "--time", "0", &always]).await;
    let (status, restart) = status_of(&holdfast, &always).await;
    assert_eq!((status, &restart["stopped"]), ("stopped".into(), &true.into()));
    assert_eq!(restart["count"], 1);
    holdfast.ok(&["start", &always]).await;
    let (status, restart) = status_of(&holdfast, &always).await;
    assert_eq!((status, &restart["count"]), ("running".into(), &0.into()));
    holdfast.ok(&["kill", "--signal", "KILL", &always]).await;
    in_run(&holdfast, &always, 4).await;
    holdfast.ok(&["restart", "--time", "0", &always]).await;
    assert_eq!(status_of(&holdfast, &always).await.1["count"], 0);
    // By now, a wrong restart would long have been there.
    assert_eq!(holdfast.inspect(&succeeds).await["run"], 1);
    holdfast.close().await;
}

#[tokio::test]
async fn what_exits_while_there_is_no_daemon_is_restarted_by_the_next_and_what_was_stopped_is_not()
{
    let mut holdfast = Holdfast::start().await;
    let failing = holdfast.run_detached(&["--restart", "always"], &["sleep", "100000"]).await;
    let stopped = holdfast.run_detached(&["--restart", "always"], &["sleep", "100000"]).await;
    holdfast.ok(&["stop", "--time", "0", &stopped]).await;
    let pid = holdfast.inspect(&failing).await["pid"].as_i64().expect("a pid");
    let process = holdfast_tests::Proc::of(i32::try_from(pid).expect("a pid")).expect("it lives");
    holdfast.kill_daemon().await;
    process.signal(nix::sys::signal::Signal::SIGKILL);
    process.gone().await;
    holdfast.start_daemon().await;
    in_run(&holdfast, &failing, 2).await;
    assert_eq!(status_of(&holdfast, &failing).await.1["count"], 1);
    let (status, restart) = status_of(&holdfast, &stopped).await;
    assert_eq!((status, &restart["stopped"]), ("stopped".into(), &true.into()));
    assert_eq!(holdfast.inspect(&stopped).await["run"], 1);
    holdfast.close().await;
}

/// Kills the daemon at many moments of a crash loop. The program itself counts its runs.
#[tokio::test]
async fn each_restart_is_counted_once_however_often_the_daemon_is_killed() {
    let mut holdfast = Holdfast::start().await;
    let (file, volume) = (holdfast.scratch.path().join("runs"), writable(&holdfast));
    let script = counting(&file, "exit 1");
    let options = ["--restart", "on-failure:6", "--volume", &volume];
    let id = holdfast.run_detached(&options, &["sh", "-c", &script]).await;
    for round in 0..12 {
        // Spread over the delays of the back-off and the starts between them.
        tokio::time::sleep(std::time::Duration::from_millis(40 + 37 * round)).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
    }
    let info = until(&holdfast, &id, 7, "stopped").await;
    assert_eq!(info["restart"]["count"], 6, "{info}");
    // A start that the end of its daemon has cut off may have failed: it has a number, but no program ran.
    let runs = std::fs::read(holdfast.root().join(&id).join("init/runs.json")).expect("the runs");
    let runs: Vec<Value> = serde_json::from_slice(&runs).expect("JSON");
    let failed = runs.iter().filter(|run| !run["error"].is_null()).count();
    let ran = lines(&file);
    assert!((7 - failed..=7).contains(&ran), "{ran} runs, {failed} failed starts: {runs:?}");
    holdfast.close().await;
}

#[tokio::test]
async fn a_policy_that_makes_no_sense_is_refused() {
    let holdfast = Holdfast::start().await;
    for policy in ["sometimes", "on-failure:0", "on-failure:x"] {
        let error =
            holdfast.fails(125, &["run", "--rootfs", "host", "--restart", policy, "true"]).await;
        assert!(error.contains("not a restart policy"), "{error}");
    }
    let both = ["run", "--rootfs", "host", "--rm", "--restart", "always", "true"];
    assert!(holdfast.fails(125, &both).await.contains("--rm"));
    let error = holdfast
        .fails(125, &["run", "--rootfs", "host", "--label", "holdfast.restart=x", "true"])
        .await;
    assert!(error.contains("not a restart policy"), "{error}");
    holdfast.close().await;
}

/// If tasks were known by the name alone, the exit of the second container would wake the task of the first,
/// which ends.
#[tokio::test]
async fn a_later_container_of_the_same_name_has_a_policy_of_its_own() {
    let holdfast = Holdfast::start().await;
    let name = holdfast_tests::unique_id("again").to_string();
    // Six failures: the next restart comes after seconds.
    let options = ["--name", &name, "--restart", "always"];
    let id = holdfast.run_detached(&options, &["sh", "-c", "exit 1"]).await;
    let root = holdfast.root();
    eventually("six exits", || {
        journal::events_of(&root, &id).iter().filter(|event| event["event"] == "exited").count()
            >= 6
    })
    .await;
    holdfast.ok(&["delete", "--force", &id]).await;
    holdfast.run_detached(&options, &["sleep", "100000"]).await;
    holdfast.ok(&["kill", "--signal", "KILL", &id]).await;
    in_run(&holdfast, &id, 2).await;
    holdfast.close().await;
}
