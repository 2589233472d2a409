//! Health checks: what makes a container unhealthy, what follows, and what is left of a check.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use holdfast_state::Timestamp;
use holdfast_tests::{Holdfast, eventually, journal, soon};
use serde_json::Value;

/// Returns the options that let a container write into the directory of the test.
fn writable(holdfast: &Holdfast) -> String {
    let path = holdfast.scratch.path().display();
    format!("{path}:{path}")
}

fn file(holdfast: &Holdfast, name: &str) -> PathBuf {
    holdfast.scratch.path().join(name)
}

/// Starts a container that sleeps, with a health check and further options.
async fn checked(holdfast: &Holdfast, check: &str, options: &[&str]) -> String {
    let volume = writable(holdfast);
    let usual = ["--volume", &volume, "--health-cmd", check, "--health-interval", "100ms"];
    let options = [&usual[..], options].concat();
    holdfast.run_detached(&options, &["sleep", "100000"]).await
}

async fn until_health(holdfast: &Holdfast, id: &str, status: &str) -> Value {
    holdfast.until(id, |info| info["health"]["status"] == status).await["health"].clone()
}

/// Waits until no exec of a container is known or on disk.
async fn no_exec(holdfast: &Holdfast, id: &str) {
    holdfast.until(id, |info| info["execs"].as_array().is_some_and(Vec::is_empty)).await;
    let directory = holdfast.root().join(id);
    let is_init = |name: &Path| name.ends_with("init") || name.ends_with(".bundle");
    eventually("the execs to be gone", || {
        let entries = fs::read_dir(&directory).expect("the container's directory").flatten();
        entries.map(|entry| entry.path()).all(|path| is_init(&path))
    })
    .await;
}

async fn metric(holdfast: &Holdfast, name: &str) -> u64 {
    let (_, metrics) = holdfast.ask("GET /metrics", "").await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().expect("a number")
}

#[tokio::test]
async fn failures_in_a_row_make_a_container_unhealthy_and_one_success_makes_it_healthy() {
    let holdfast = Holdfast::start().await;
    let sign = file(&holdfast, "sign");
    let script = format!("echo looked; cat {} && head -c 10000 /dev/zero", sign.display());
    let id = checked(&holdfast, &script, &["--health-retries", "2"]).await;
    let health = until_health(&holdfast, &id, "unhealthy").await;
    assert!(health["failingStreak"].as_u64() >= Some(2), "{health}");
    let last = &health["log"][0];
    assert!(last["exitCode"] == 1 && last["start"].as_str() < last["end"].as_str(), "{last}");
    assert!(last["output"].as_str().is_some_and(|it| it.starts_with("looked\n")), "{last}");
    assert!(holdfast.ok(&["ps"]).await.contains(" (unhealthy)"));
    assert_eq!(holdfast.ok(&["ps", "-q", "--filter", "health=unhealthy"]).await.trim(), id);
    assert_eq!(metric(&holdfast, "holdfast_health{state=\"unhealthy\"}").await, 1);

    fs::write(&sign, "x").expect("write a file");
    until_health(&holdfast, &id, "healthy").await;
    let five = |info: &Value| {
        let log = info["health"]["log"].as_array().expect("results");
        log.len() == 5 && log.iter().all(|result| result["exitCode"] == 0)
    };
    let health = holdfast.until(&id, five).await["health"].clone();
    assert_eq!(health["failingStreak"], 0);
    assert_eq!(health["log"][4]["output"].as_str().map(str::len), Some(4096));
    assert!(holdfast.ok(&["ps"]).await.contains(" (healthy)"));
    assert!(metric(&holdfast, "holdfast_health_checks_total{result=\"success\"}").await >= 5);

    holdfast.ok(&["stop", "--time", "0", &id]).await;
    no_exec(&holdfast, &id).await;
    // The last health stays until the next start.
    assert_eq!(holdfast.inspect(&id).await["health"]["status"], "healthy");
    fs::remove_file(&sign).expect("remove a file");
    holdfast.ok(&["start", &id]).await;
    // Not `starting`: it may have become unhealthy by now.
    assert_ne!(holdfast.inspect(&id).await["health"]["status"], "healthy");
    until_health(&holdfast, &id, "unhealthy").await;
    holdfast.close().await;
}

#[tokio::test]
async fn a_check_that_hangs_is_killed_with_its_children_and_has_failed() {
    let holdfast = Holdfast::start().await;
    let script = "echo begun; sleep 54321 & sleep 54321";
    let options = ["--health-cmd", script, "--health-timeout", "2s", "--health-interval", "3s"];
    let options = [&options[..], &["--health-retries", "1"]].concat();
    let id = holdfast.run_detached(&options, &["sleep", "100000"]).await;
    // Not always the first: if its start takes two seconds, it has written nothing.
    let expected = |result: &Value| {
        result["exitCode"].is_null() && result["output"] == "the check took longer than 2s: begun\n"
    };
    let is_killed =
        |info: &Value| info["health"]["log"].as_array().is_some_and(|log| log.iter().any(expected));
    // The status is written behind the result.
    holdfast.until(&id, |info| is_killed(info) && info["health"]["status"] == "unhealthy").await;
    assert!(metric(&holdfast, "holdfast_health_checks_total{result=\"timeout\"}").await >= 1);
    let children = async {
        loop {
            let processes = holdfast.json(&["top", "--json", &id]).await;
            if processes.as_array().is_some_and(|all| all.len() == 1) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("the end of the children", children).await;
    holdfast.ok(&["stop", "--time", "0", &id]).await;
    no_exec(&holdfast, &id).await;
    holdfast.close().await;
}

#[tokio::test]
async fn a_check_that_cannot_be_started_has_failed_and_says_why() {
    let holdfast = Holdfast::start().await;
    let body = serde_json::json!({
        "id": holdfast_tests::unique_id("check").to_string(),
        "bundle": holdfast.scratch.bundle(),
        "args": ["sleep", "100000"],
        "health": { "command": ["/no/such/program"], "intervalMs": 100, "retries": 1 },
        "start": true,
    });
    let (_, made) = holdfast.ask("POST /v1/containers", &body.to_string()).await;
    let made: Value = serde_json::from_str(&made).expect("JSON");
    assert_eq!(made["health"]["status"], "starting", "{made}");
    let id = made["id"].as_str().expect("an id");
    let health = until_health(&holdfast, id, "unhealthy").await;
    let last = &health["log"][0];
    assert!(last["exitCode"].is_null(), "{last}");
    assert!(last["output"].as_str().is_some_and(|it| it.contains("/no/such/program")), "{last}");
    holdfast.close().await;
}

#[tokio::test]
async fn an_unhealthy_container_is_restarted_as_often_as_its_policy_allows() {
    let holdfast = Holdfast::start().await;
    let options =
        ["--health-retries", "1", "--restart-on-unhealthy", "--stop-signal", "KILL", "--restart"];
    let one = checked(&holdfast, "false", &[&options[..], &["on-failure:1"]].concat()).await;
    // It has used up its restarts, and runs on.
    let is_last =
        |info: &Value| info["run"] == 2 && info["health"]["failingStreak"].as_u64() >= Some(3);
    let info = holdfast.until(&one, is_last).await;
    assert_eq!((&info["status"], &info["restart"]["count"]), (&"running".into(), &1.into()));

    let rest = &options[..options.len() - 1];
    let none = checked(&holdfast, "false", rest).await;
    // Each of its runs is short, so the third may be missed.
    let in_third = |info: &Value| info["run"].as_u64() >= Some(3);
    let info = holdfast.until(&none, in_third).await;
    assert_eq!(info["restart"]["policy"], "no");
    assert_eq!(info["restart"]["count"].as_u64().map(|count| count + 1), info["run"].as_u64());
    holdfast.ok(&["stop", "--time", "0", &none]).await;
    let run = holdfast.inspect(&none).await["run"].clone();
    // Without a policy, an exit is not followed by a restart.
    let exits = checked(&holdfast, "true", rest).await;
    until_health(&holdfast, &exits, "healthy").await;
    holdfast.ok(&["kill", "--signal", "KILL", &exits]).await;
    holdfast.ok(&["wait", &exits]).await;
    let third = checked(&holdfast, "false", rest).await;
    holdfast.until(&third, in_third).await;
    // By now, wrong restarts would long have been there.
    assert_eq!(holdfast.inspect(&none).await["run"], run);
    assert_eq!(holdfast.inspect(&none).await["status"], "stopped");
    assert_eq!(holdfast.inspect(&exits).await["run"], 1);
    holdfast.close().await;
}

/// At each moment of the restart the daemon may die: each is counted once, and none is forgotten.
#[tokio::test]
async fn a_restart_of_an_unhealthy_container_goes_on_over_the_ends_of_daemons() {
    let mut holdfast = Holdfast::start().await;
    let options = ["--health-retries", "1", "--restart-on-unhealthy", "--restart", "on-failure:5"];
    let options = [&options[..], &["--stop-signal", "KILL"]].concat();
    let id = checked(&holdfast, "false", &options).await;
    for round in 0..10 {
        // Spread over the checks, the stops and the starts.
        tokio::time::sleep(Duration::from_millis(90 + 41 * round)).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
    }
    let done = |info: &Value| info["run"] == 6 && info["status"] == "running";
    let info = holdfast.until(&id, done).await;
    assert_eq!(info["restart"]["count"], 5, "{info}");
    let events = journal::events_of(&holdfast.root(), &id);
    let of_run = |run: u64, kind: &str| {
        let is_it =
            |it: &&Value| it["process"] == "init" && it["run"] == run && it["event"] == kind;
        events.iter().filter(is_it).count()
    };
    for run in 1..=5 {
        let ends = of_run(run, "exited") + of_run(run, "start-failed");
        assert_eq!(ends, 1, "run {run}: {events:?}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn the_health_and_the_schedule_outlive_the_daemon_and_a_check_that_was_cut_off_does_not_count()
 {
    let mut holdfast = Holdfast::start().await;
    let healthy = checked(&holdfast, "true", &[]).await;
    let rare = ["--health-cmd", "true", "--health-interval", "1h"];
    let rare = holdfast.run_detached(&rare, &["sleep", "100000"]).await;
    let mark = file(&holdfast, "begun");
    let script = format!("echo begun >> {}; sleep 54321", mark.display());
    let options = ["--health-retries", "1", "--health-timeout", "1h"];
    let hangs = checked(&holdfast, &script, &options).await;
    until_health(&holdfast, &healthy, "healthy").await;
    eventually("a check", || mark.exists()).await;
    let is_check = |info: &Value| info["execs"][0]["pid"].is_number();
    let info = holdfast.until(&hangs, is_check).await;
    let pid = info["execs"][0]["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    let process = holdfast_tests::Proc::of(pid.expect("a pid")).expect("it lives");
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    assert_eq!(holdfast.inspect(&healthy).await["health"]["status"], "healthy");
    process.gone().await;
    let lines = || fs::read_to_string(&mark).unwrap_or_default().lines().count();
    eventually("the next check", || lines() == 2).await;
    let health = &holdfast.inspect(&hangs).await["health"];
    assert_eq!((&health["status"], &health["failingStreak"]), (&"starting".into(), &0.into()));
    let all = |info: &Value| info["health"]["log"].as_array().is_some_and(|all| all.len() == 5);
    holdfast.until(&healthy, all).await;
    // The daemon checks nobody because it was started.
    let health = &holdfast.inspect(&rare).await["health"];
    assert!(health["status"] == "starting" && health["log"].is_null(), "{health}");
    holdfast.close().await;
}

/// All checks at once after each start of a daemon would take the processor time of everything else.
#[tokio::test]
async fn a_new_daemon_goes_on_with_the_schedule() {
    let mut holdfast = Holdfast::start().await;
    let check = ["--health-cmd", "true", "--health-interval", "4s"];
    let id = holdfast.run_detached(&check, &["sleep", "100000"]).await;
    let begins = async |holdfast: &Holdfast| {
        let info = holdfast.until(&id, |info| !info["health"]["log"].is_null()).await;
        let time = |value: &Value| -> SystemTime {
            let time: Timestamp = value.as_str().expect("a time").parse().expect("a time");
            SystemTime::try_from(&time).expect("a time")
        };
        (time(&info["started"]), time(&info["health"]["log"][0]["start"]))
    };
    let (_, first) = begins(&holdfast).await;
    // In the middle between two checks.
    let middle = first + Duration::from_secs(2);
    tokio::time::sleep(middle.duration_since(SystemTime::now()).unwrap_or_default()).await;
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    let (started, next) = begins(&holdfast).await;
    let after = next.duration_since(started).expect("later").as_millis();
    assert!(after >= 8000 && after % 4000 < 2000, "a check {after} ms after the start");
    holdfast.close().await;
}

#[tokio::test]
async fn a_container_that_exits_during_a_check_has_not_become_unhealthy() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let mark = file(&holdfast, "begun");
    let volume = writable(&holdfast);
    let check = format!("echo begun > {}; sleep 54321", mark.display());
    let options = ["--health-cmd", &check, "--health-interval", "100ms", "--health-retries", "1"];
    let more = ["--restart-on-unhealthy", "--volume", &volume];
    let script = gate.script("true");
    let id = holdfast.run_detached(&[&options[..], &more].concat(), &["sh", "-c", &script]).await;
    eventually("a check", || mark.exists()).await;
    gate.open(0);
    assert_eq!(holdfast.ok(&["wait", &id]).await.trim(), "0");
    no_exec(&holdfast, &id).await;
    // The time within which a check that was killed would count.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let info = holdfast.inspect(&id).await;
    assert_eq!((&info["run"], &info["status"]), (&1.into(), &"stopped".into()), "{info}");
    assert_eq!(info["health"]["status"], "starting", "{info}");
    holdfast.close().await;
}

#[tokio::test]
async fn a_paused_container_is_not_checked_and_failures_in_the_start_period_do_not_count() {
    let holdfast = Holdfast::start().await;
    let id = checked(&holdfast, "false", &["--health-start-period", "1h"]).await;
    let all = |info: &Value| info["health"]["log"].as_array().is_some_and(|all| all.len() == 5);
    let health = holdfast.until(&id, all).await["health"].clone();
    assert_eq!((&health["status"], &health["failingStreak"]), (&"starting".into(), &0.into()));
    assert!(holdfast.ok(&["ps"]).await.contains(" (health: starting)"));
    holdfast.ok(&["pause", &id]).await;
    // A check that had begun is frozen, and the next one waits for it.
    let log = holdfast.inspect(&id).await["health"]["log"].clone();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(holdfast.inspect(&id).await["health"]["log"], log);
    holdfast.ok(&["resume", &id]).await;
    holdfast.until(&id, |info| info["health"]["log"] != log).await;
    holdfast.close().await;
}

#[tokio::test]
async fn in_the_start_period_checks_come_at_an_interval_of_their_own() {
    let holdfast = Holdfast::start().await;
    let usual = ["--health-cmd", "true", "--health-interval", "1h", "--health-start-period", "1h"];
    let options = [&usual[..], &["--health-start-interval", "100ms"]].concat();
    let id = holdfast.run_detached(&options, &["sleep", "100000"]).await;
    until_health(&holdfast, &id, "healthy").await;
    holdfast.close().await;
}

#[tokio::test]
async fn health_options_that_make_no_sense_are_refused() {
    let holdfast = Holdfast::start().await;
    let run = ["run", "--rootfs", "host"];
    for (options, reason) in [
        (&["--health-interval", "1s"][..], "--health-cmd"),
        (&["--health-cmd", "true", "--health-interval", "0s"], "1ms"),
        (&["--health-cmd", "true", "--health-retries", "0"], "--health-retries"),
        (&["--health-start-interval", "1s"], "--health-cmd"),
        (&["--health-cmd", "true", "--no-healthcheck"], "--no-healthcheck"),
        (&["--health-cmd", "true", "--restart-on-unhealthy", "--rm"], "--rm"),
        (&["--label", "holdfast.health={}"], "command"),
    ] {
        let error = holdfast.fails(125, &[&run, options, &["true"]].concat()).await;
        assert!(error.contains(reason), "{options:?}: {error}");
    }
    holdfast.ok(&["run", "--rootfs", "host", "--no-healthcheck", "true"]).await;
    holdfast.close().await;
}

/// The checks of all containers at once would leave no processor time for anything else.
#[tokio::test]
async fn a_check_that_hangs_does_not_delay_those_of_other_containers() {
    let holdfast = Holdfast::start().await;
    let mut hanging = Vec::new();
    for _ in 0..17 {
        hanging.push(checked(&holdfast, "sleep 54321", &["--health-timeout", "1h"]).await);
    }
    for id in &hanging {
        holdfast.until(id, |info| info["execs"][0]["status"] == "running").await;
    }
    let id = checked(&holdfast, "true", &[]).await;
    until_health(&holdfast, &id, "healthy").await;
    holdfast.close().await;
}
