//! The daemon as its users meet it: killed, ended, restarted, with runtimes that hang and fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::{join, join_all};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Holdfast, Proc, binary, edit_json, eventually, executable, is_runtime, runtime_name, skip,
    unique_id,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SIGKILL: &str = "137\n";

fn bundle(holdfast: &Holdfast) -> String {
    holdfast.scratch.bundle().into_os_string().into_string().expect("a path in UTF-8")
}

fn name() -> String {
    unique_id("daemon").to_string()
}

fn process(info: &Value) -> Proc {
    let pid = info["pid"].as_i64().expect("a pid").try_into().expect("a pid");
    Proc::of(pid).expect("the process is there")
}

/// All containers, by their ids in the order of `ids`.
async fn all(holdfast: &Holdfast, ids: &[String]) -> Vec<Value> {
    let all = holdfast.json(&["ps", "--all", "--json"]).await;
    let all = all.as_array().expect("an array");
    assert_eq!(all.len(), ids.len(), "{all:?}");
    let find = |id: &String| all.iter().find(|info| info["id"] == json!(id)).cloned();
    ids.iter().map(|id| find(id).unwrap_or_else(|| panic!("no {id} in {all:?}"))).collect()
}

#[tokio::test]
async fn fifty_containers_outlive_the_killed_daemon_and_every_status_and_all_output_is_there() {
    let mut holdfast = Holdfast::start().await;
    // The first six end, three while the daemon is dead and three when it is back.
    let gates = [(); 6].map(|()| holdfast.scratch.gate());
    let mut ids = Vec::new();
    for gate in &gates {
        // Written while it is up; `after`, as it is let through.
        let script = gate.script("echo 'sleeps' >&2; echo before");
        ids.push(holdfast.run_detached(&["--name", &name()], &["sh", "-c", &script]).await);
    }
    for _ in 6..50 {
        ids.push(holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await);
    }
    for id in &ids[..6] {
        holdfast.said(id, "before").await;
    }
    let before = all(&holdfast, &ids).await;
    let processes: Vec<Proc> = before.iter().map(process).collect();
    assert!(before.iter().all(|info| info["status"] == "running" && info["restored"] == false));

    let shims: Vec<_> = ids[..3].iter().map(|id| holdfast.end_of_shim(id)).collect();
    holdfast.kill_daemon().await;
    gates[0].open(1);
    gates[1].open(42);
    processes[2].signal(Signal::SIGKILL);
    for shim in shims {
        shim.come().await;
    }
    assert!(processes[3..].iter().all(Proc::lives), "no container notices");

    holdfast.start_daemon().await;
    let back = all(&holdfast, &ids).await;
    for (index, info) in back.iter().enumerate() {
        let (status, exit) = match index {
            0 => ("stopped", json!(1)),
            1 => ("stopped", json!(42)),
            2 => ("stopped", json!(137)),
            _ => ("running", Value::Null),
        };
        assert_eq!((&info["status"], &info["exitStatus"]), (&json!(status), &exit), "{info}");
        assert_eq!(info["restored"], true, "{info}");
        let pid = if index < 3 { Value::Null } else { json!(processes[index].pid) };
        assert_eq!(info["pid"], pid, "{info}");
    }
    assert_eq!(back[2]["exit"]["status"], json!({ "signal": 9 }));
    assert_eq!(holdfast.json(&["ps", "--json"]).await.as_array().unwrap().len(), 47);
    assert_eq!(holdfast.json(&["info", "--json"]).await["restored"], 50);

    gates[3].open(0);
    gates[4].open(255);
    holdfast.ok(&["kill", &ids[5]]).await;
    let wait: Vec<_> = std::iter::once("wait").chain(ids[..6].iter().map(String::as_str)).collect();
    assert_eq!(holdfast.ok(&wait).await, "1\n42\n137\n0\n255\n137\n");
    for (index, id) in ids[..6].iter().enumerate() {
        let logs = holdfast.run(&["logs", id]).await;
        let stdout = if matches!(index, 2 | 5) { "before\n" } else { "before\nafter\n" };
        assert_eq!((logs.code, logs.stdout.as_str()), (Some(0), stdout), "container {index}");
        assert_eq!(logs.stderr, "sleeps\n");
    }
    assert!(processes[6..].iter().all(Proc::lives));
    holdfast.close().await;
}

#[tokio::test]
async fn events_go_on_where_they_stopped_when_the_daemon_was_killed() {
    let mut holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", &gate.script("true")]).await;
    let shim = holdfast.end_of_shim(&id);
    holdfast.kill_daemon().await;
    gate.open(3);
    shim.come().await;
    holdfast.start_daemon().await;
    let mut events = holdfast.begin(&["events", "--replay", "--json"]);
    let mut told = Vec::new();
    let mut cursor = String::new();
    for place in 1..=5 {
        if place == 5 {
            holdfast.ok(&["delete", &id]).await;
        }
        let line: Value = serde_json::from_str(&events.line().await).expect("JSON");
        if line["gap"].is_object() {
            // The numbers that the one that was killed had set aside.
            assert_eq!(
                (&line["gap"]["first"], &line["gap"]["reason"]),
                (&json!(3), &json!("unclean"))
            );
            told.push("gap".to_owned());
            continue;
        }
        assert_eq!(line["container"], json!(id), "{line}");
        told.push(line["event"].as_str().expect("a word").to_owned());
        if place == 4 {
            cursor = line["cursor"].as_str().expect("a place").to_owned();
        }
    }
    assert_eq!(told, ["created", "started", "gap", "exited", "deleted"]);
    drop(events);
    // Who has stored a place goes on behind it.
    let mut events = holdfast.begin(&["events", "--since", &cursor, "--json"]);
    assert!(events.line().await.contains("deleted"));
    drop(events);
    let refused = holdfast.fails(2, &["events", "--since", "x:7"]).await;
    assert!(refused.contains("give a cursor"), "{refused}");
    let mut events = holdfast.begin(&["events", "--since", "0123456789abcdef:7", "--json"]);
    assert!(events.line().await.contains("other-journal"));
    assert!(events.line().await.contains("created"));
    drop(events);
    holdfast.close().await;
}

#[tokio::test]
async fn sigterm_and_sigint_end_the_daemon_in_order_and_leave_the_containers_running() {
    let mut holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let id = name();
    let script = gate.script("echo before");
    holdfast.run_detached(&["--name", &id], &["sh", "-c", &script]).await;
    let created = name();
    let args = ["create", "--name", &created, "--bundle", &bundle(&holdfast), "--", "true"];
    holdfast.ok(&args).await;
    let first = process(&holdfast.inspect(&id).await);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // One that waits keeps the daemon from nothing, and is told.
        let wait = holdfast.begin(&["wait", &id]);
        let mut events = holdfast.begin(&["events", "--replay"]);
        assert!(events.line().await.contains("created"));
        let status = holdfast.take_daemon().end(signal).await;
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
        assert!(!holdfast.root().join("holdfast.sock").exists(), "{signal}");
        let wait = wait.end().await;
        assert_eq!((wait.code, wait.stdout.as_str()), (Some(1), ""), "{signal}: {wait:?}");
        assert!(wait.stderr.contains("daemon") || wait.stderr.contains("run on"), "{wait:?}");
        events.end().await;
        assert!(first.lives(), "{signal}");

        holdfast.start_daemon().await;
        let info = holdfast.inspect(&id).await;
        assert_eq!((&info["status"], &info["restored"]), (&json!("running"), &json!(true)));
        assert_eq!(process(&info), first);
        assert_eq!(holdfast.inspect(&created).await["status"], "created");
    }
    holdfast.ok(&["start", &created]).await;
    gate.open(12);
    assert_eq!(holdfast.ok(&["wait", &created, &id]).await, "0\n12\n");
    assert_eq!(holdfast.ok(&["logs", &id]).await, "before\nafter\n");
    holdfast.close().await;
}

#[tokio::test]
async fn a_foreground_run_whose_daemon_dies_says_that_the_container_runs_on() {
    let mut holdfast = Holdfast::start().await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let gate = holdfast.scratch.gate();
        let (bundle, id, script) = (bundle(&holdfast), name(), gate.script("echo before"));
        let args = ["run", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", &script];
        let mut run = holdfast.begin(&args);
        assert_eq!(run.line().await, "before");
        let process = process(&holdfast.inspect(&id).await);
        holdfast.take_daemon().end(signal).await;
        let run = run.end().await;
        assert_eq!((run.code, run.stdout.as_str()), (Some(125), ""), "{signal}: {run:?}");
        assert!(run.stderr.starts_with("holdfast: ") && run.stderr.contains("run"), "{run:?}");
        assert!(process.lives());
        holdfast.start_daemon().await;
        gate.open(7);
        assert_eq!(holdfast.ok(&["wait", &id]).await, "7\n");
        assert_eq!(holdfast.ok(&["logs", &id]).await, "before\nafter\n");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn who_follows_a_container_is_told_that_the_daemon_ended_before_it() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sh", "-c", "echo ready; exec sleep 100000"]).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let mut logs = holdfast.begin(&["logs", "--follow", &id]);
        assert_eq!(logs.line().await, "ready");
        let mut events = holdfast.begin(&["events", "--replay", "--json"]);
        events.line().await;
        holdfast.take_daemon().end(signal).await;
        for follower in [logs, events] {
            let ran = follower.end().await;
            assert_eq!(ran.code, Some(1), "{signal}: {ran:?}");
            assert!(ran.stderr.starts_with("holdfast: "), "{signal}: {ran:?}");
        }
        holdfast.start_daemon().await;
    }
    holdfast.close().await;
}

#[tokio::test]
async fn a_container_runs_on_when_the_command_in_the_foreground_is_killed() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let (bundle, id, script) = (bundle(&holdfast), name(), gate.script("echo before"));
    let args = ["run", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", &script];
    let mut run = holdfast.begin(&args);
    assert_eq!(run.line().await, "before");
    run.signal(Signal::SIGKILL);
    assert_eq!(run.end().await.code, None);
    gate.open(7);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "7\n");
    assert_eq!(holdfast.ok(&["logs", &id]).await, "before\nafter\n");
    holdfast.close().await;
}

#[tokio::test]
async fn what_was_to_be_removed_is_removed_though_it_ended_while_the_daemon_was_dead() {
    let mut holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let id = name();
    let script = gate.script("true");
    holdfast.run_detached(&["--rm", "--name", &id], &["sh", "-c", &script]).await;
    let shim = holdfast.end_of_shim(&id);
    holdfast.kill_daemon().await;
    gate.open(3);
    shim.come().await;
    assert!(holdfast.root().join(&id).exists(), "there was nobody to remove it");
    holdfast.start_daemon().await;
    // This waits for the deletion that goes on, unless it finds it done.
    holdfast.run(&["delete", &id]).await;
    assert_eq!(holdfast.leftovers(), [""; 0]);
    holdfast.close().await;
}

/// Where the fake runtime writes the numbers of the processes that hang.
fn trace(holdfast: &Holdfast) -> PathBuf {
    holdfast.scratch.path().join("trace")
}

/// A further bundle, at which the fake runtime does this in place of its work.
fn bundle_that_makes_it(holdfast: &Holdfast, mode: &str) -> String {
    let dir = holdfast.scratch.path().join(mode);
    std::fs::create_dir_all(&dir).expect("make a directory");
    std::fs::copy(holdfast.scratch.bundle().join("config.json"), dir.join("config.json"))
        .expect("copy a configuration");
    edit_json(&dir.join("config.json"), |config| {
        config["annotations"] = json!({ "fake": mode, "fake-trace": trace(holdfast) });
    });
    dir.to_str().expect("a path in UTF-8").to_owned()
}

fn fake_runtime() -> String {
    binary("fake-runtime").to_str().expect("a path in UTF-8").to_owned()
}

/// Twenty healthy containers, started at the same moment, live and end.
async fn twenty_healthy(holdfast: &Holdfast) {
    let bundle = bundle(holdfast);
    let script = "echo well; exit 5";
    let args = ["run", "--rm", "--bundle", &bundle, "--", "sh", "-c", script];
    for ran in join_all((0..20).map(|_| holdfast.run(&args))).await {
        let got = (ran.code, ran.stdout.as_str(), ran.stderr.as_str());
        assert_eq!(got, (Some(5), "well\n", ""));
    }
}

#[tokio::test]
async fn a_runtime_that_hangs_fails_in_its_time_and_leaves_nothing() {
    let holdfast = Holdfast::start().await;
    let (runtime, hangs) = (fake_runtime(), bundle_that_makes_it(&holdfast, "complain-and-hang"));
    let began = Instant::now();
    let args = ["run", "--timeout", "2s", "--runtime", &runtime, "--bundle", &hangs, "--", "true"];
    let hanging = async {
        let message = holdfast.fails(125, &args).await;
        (message, began.elapsed())
    };
    let ((message, took), ()) = join(hanging, twenty_healthy(&holdfast)).await;
    let expected = "holdfast: container did not start before the specified timeout of 2s";
    assert!(message.starts_with(expected), "{message}");
    // The daemon, which would give it up later than the shim, does not know what the runtime said.
    assert!(message.contains("made to hang"), "{message}");
    assert!(took >= Duration::from_secs(2), "it was not given its time: {took:?}");
    holdfast.nothing_left().await;
    assert_eq!(holdfast.json(&["ps", "--all", "--json"]).await, json!([]));
    holdfast.close().await;
}

/// Until then nobody knows whether the container will be there.
#[tokio::test]
async fn a_detached_run_waits_for_a_start_that_goes_on_without_its_daemon() {
    let mut holdfast = Holdfast::start().await;
    let (runtime, hangs) = (fake_runtime(), bundle_that_makes_it(&holdfast, "hang-in-create"));
    let id = name();
    let args = ["--reconnect", "20s", "run", "-d", "--timeout", "1h", "--runtime", &runtime];
    let running =
        holdfast.begin(&[&args[..], &["--name", &id, "--bundle", &hangs, "true"]].concat());
    let trace = trace(&holdfast);
    eventually("the runtime to hang", || trace.exists()).await;
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    // The start goes on until its shim gives it up.
    shim_of(&holdfast.root(), &id, "init").signal(Signal::SIGTERM);
    let ran = running.end().await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(125), ""), "{ran:?}");
    assert!(ran.stderr.contains("the start was given up"), "{ran:?}");
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn twenty_healthy_containers_are_not_held_up_by_a_runtime_that_hangs() {
    let holdfast = Holdfast::start().await;
    let (runtime, hangs) = (fake_runtime(), bundle_that_makes_it(&holdfast, "hang-in-create"));
    let id = name();
    // However slow the machine is: the one hangs until all others have come and gone.
    let args = ["run", "--timeout", "1h", "--runtime", &runtime, "--bundle", &hangs];
    let hanging = holdfast.begin(&[args.as_slice(), &["--name", &id, "--", "true"]].concat());
    twenty_healthy(&holdfast).await;
    let left = holdfast.json(&["ps", "--all", "--json"]).await;
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
    assert_eq!((&left[0]["id"], &left[0]["status"]), (&json!(id), &json!("creating")), "{left}");

    // The runtime, and what it left in a session of its own.
    let trace = trace(&holdfast);
    eventually("the fake runtime to hang", || trace.exists()).await;
    let pids = std::fs::read_to_string(&trace).expect("read the trace");
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().expect("a pid")).collect();
    let hang: Vec<_> = pids.into_iter().map(|pid| Proc::of(pid).expect("it hangs")).collect();
    assert_eq!(hang.len(), 2);

    shim_of(&holdfast.root(), &id, "init").signal(Signal::SIGTERM);
    let hanging = hanging.end().await;
    assert_eq!((hanging.code, hanging.stdout.as_str()), (Some(125), ""));
    assert_eq!(hanging.stderr, "holdfast: shim error: the start was given up\n");
    assert!(hang.iter().all(|process| !process.exists()), "{hang:?}");
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn a_runtime_that_fails_is_quoted() {
    let holdfast = Holdfast::start().await;
    let runtime = fake_runtime();
    for (mode, message) in [
        ("fail", "oci runtime error: made to fail"),
        ("fail-stderr", "oci runtime error: made to fail on the standard error"),
    ] {
        let bundle = bundle_that_makes_it(&holdfast, mode);
        for (code, command) in [(125, ["run"].as_slice()), (125, &["run", "-d"]), (1, &["create"])]
        {
            let args = [command, &["--runtime", &runtime, "--bundle", &bundle, "--", "true"]];
            assert_eq!(
                holdfast.fails(code, &args.concat()).await,
                format!("holdfast: {message}\n")
            );
            assert_eq!(holdfast.leftovers(), [""; 0]);
        }
    }
    holdfast.close().await;
}

#[tokio::test]
async fn runc_is_quoted_on_bad_arguments_a_missing_binary_and_a_missing_root_file_system() {
    if !is_runtime("runc") {
        return skip("about runc's own words, and another runtime is under test");
    }
    let holdfast = Holdfast::start().await;
    let good = bundle(&holdfast);
    // Bad arguments: an option that runc does not have.
    let wrapper = holdfast.scratch.path().join("runc-with-bad-arguments");
    let script = format!("#!/bin/sh\nexec {} --no-such-option \"$@\"\n", runtime_name());
    executable::script(&wrapper, &script);
    let wrapper = wrapper.to_str().unwrap();
    let args = ["run", "--runtime", wrapper, "--bundle", &good, "--", "true"];
    let message = holdfast.fails(125, &args).await;
    assert!(message.starts_with("holdfast: oci runtime error: "), "{message}");
    assert!(message.contains("no-such-option"), "{message}");
    assert_eq!(holdfast.leftovers(), [""; 0]);

    // A configuration that is one, and that runc does not take.
    let bad = bundle_that_makes_it(&holdfast, "unused");
    edit_json(&PathBuf::from(&bad).join("config.json"), |config| {
        config["root"]["path"] = json!(format!("{good}/rootfs"));
        config["process"]["cwd"] = json!("relative");
    });
    let message = holdfast.fails(125, &["run", "--bundle", &bad, "--", "true"]).await;
    assert!(message.starts_with("holdfast: oci runtime error: "), "{message}");
    assert!(message.contains("Cwd") && message.contains("absolute"), "{message}");

    let message = holdfast.fails(127, &["run", "--bundle", &good, "--", "/no/such/binary"]).await;
    assert!(message.starts_with("holdfast: oci runtime error: "), "{message}");
    let words = "/no/such/binary\": stat /no/such/binary: no such file or directory";
    assert!(message.contains(words), "{message}");

    // This one's root file system is `rootfs` beside its configuration, where none is.
    let rootless = bundle_that_makes_it(&holdfast, "rootless");
    let message = holdfast.fails(125, &["run", "--bundle", &rootless, "--", "true"]).await;
    assert!(message.starts_with("holdfast: oci runtime error: "), "{message}");
    assert!(message.contains(&format!("{rootless}/rootfs")), "{message}");
    assert!(message.contains("no such file or directory"), "{message}");

    assert_eq!(holdfast.leftovers(), [""; 0]);
    assert_eq!(holdfast.json(&["ps", "--all", "--json"]).await, json!([]));
    holdfast.close().await;
}

#[tokio::test]
async fn what_cannot_be_restored_is_shown_and_all_else_is_restored() {
    let mut holdfast = Holdfast::start().await;
    let good = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let ended = holdfast.run_detached(&["--name", &name()], &["sh", "-c", "exit 6"]).await;
    holdfast.ok(&["wait", &ended]).await;
    holdfast.kill_daemon().await;
    let broken = holdfast.root().join("broken");
    std::fs::create_dir_all(broken.join("init")).unwrap();
    std::fs::write(broken.join("init/process.json"), "garbage").unwrap();
    holdfast.start_daemon().await;
    let aside = holdfast.root().join(".broken");
    let told =
        format!("holdfast: not restored: {}/broken-1: set aside: process.json: ", aside.display());
    let ps = holdfast.run(&["ps", "--all", "--json"]).await;
    assert_eq!(ps.code, Some(0));
    assert!(ps.stderr.starts_with(&told), "{ps:?}");
    assert_eq!(ps.stderr.lines().count(), 1, "{ps:?}");
    assert!(!broken.exists() && aside.join("broken-1/broken/init/process.json").exists());
    // At each later start too, as long as it is there.
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    let ps = holdfast.run(&["ps", "--all", "--json"]).await;
    assert!(ps.stderr.starts_with(&told), "{ps:?}");
    let listed: Value = serde_json::from_str(&ps.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(holdfast.inspect(&good).await["status"], "running");
    assert_eq!(holdfast.ok(&["wait", &ended]).await, "6\n");
    holdfast.ok(&["kill", &good]).await;
    assert_eq!(holdfast.ok(&["wait", &good]).await, SIGKILL);
    std::fs::remove_dir_all(&aside).unwrap();
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    holdfast.close().await;
}

#[tokio::test]
async fn where_files_run_out_a_container_is_refused_in_time_and_the_others_are_well() {
    let holdfast = Holdfast::start().await;
    let pid = holdfast.daemon().process().pid.to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=120:120"]).status();
    assert!(limited.expect("run prlimit").success());
    let runtime = fake_runtime();
    let mut made = Vec::new();
    let bundle = bundle(&holdfast);
    let refused = loop {
        let args = ["run", "-d", "--runtime", &runtime, "--bundle", &bundle, "--", "sleep", "1000"];
        let ran = holdfast.run(&args).await;
        if ran.code != Some(0) {
            break ran.stderr;
        }
        made.push(ran.stdout.trim().to_owned());
    };
    assert_eq!(
        refused,
        "holdfast: no more containers: nearly all open files of this process are in use, of 120; \
         raise LimitNOFILE= of the unit, or ulimit -Hn\n"
    );
    assert!(made.len() > 5, "only {} were made", made.len());
    for id in &made {
        assert_eq!(holdfast.inspect(id).await["status"], "running");
    }
    // One that goes makes room for another.
    holdfast.ok(&["delete", "--force", &made[0]]).await;
    let args = ["run", "--rm", "--runtime", &runtime, "--bundle", &bundle, "--", "true"];
    assert_eq!(holdfast.run(&args).await.code, Some(0));
    let rest: Vec<&str> = made[1..].iter().map(String::as_str).collect();
    holdfast.nothing_but(&rest).await;
    holdfast.close().await;
}

/// Seen before: the daemon was gone after `kill -HUP`, and its log ended with `listening`.
#[tokio::test]
async fn a_stray_signal_is_logged_and_ends_no_daemon() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    for signal in [
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
        Signal::SIGVTALRM,
        Signal::SIGPROF,
        Signal::SIGIO,
        Signal::SIGPWR,
        Signal::SIGSTKFLT,
        Signal::SIGXCPU,
        Signal::SIGXFSZ,
    ] {
        holdfast.daemon().signal(signal);
        let line = format!("{signal}: ");
        eventually("a line in the log", || holdfast.daemon_log().contains(&line)).await;
        let log = holdfast.daemon_log();
        assert!(log.lines().any(|it| it.contains(&line) && it.ends_with("running on")), "{log}");
        assert_eq!(holdfast.inspect(&id).await["status"], "running");
    }
    let expected = "SIGHUP: there is no configuration to read again; running on";
    assert!(holdfast.daemon_log().contains(expected), "{}", holdfast.daemon_log());
    holdfast.daemon().signal(Signal::SIGPIPE);
    assert_eq!(holdfast.inspect(&id).await["status"], "running");

    // The one that ends a process with a core, unless it wants it.
    let process = process(&holdfast.inspect(&id).await);
    holdfast.daemon().signal(Signal::SIGQUIT);
    eventually("a line in the log", || holdfast.daemon_log().contains("SIGQUIT: going down")).await;
    assert_eq!(holdfast.take_daemon().ended().await.code(), Some(0));
    assert!(process.lives() && !holdfast.root().join("holdfast.sock").exists());
    holdfast.start_daemon().await;
    holdfast.close().await;
}

#[tokio::test]
async fn further_signals_do_not_disturb_a_daemon_that_is_going_down() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    // It takes its time: somebody reads nothing of what is sent to it.
    let mut events = holdfast.begin(&["events", "--replay"]);
    events.line().await;
    events.signal(Signal::SIGSTOP);
    for signal in [Signal::SIGTERM, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        holdfast.daemon().signal(signal);
    }
    let status = holdfast.take_daemon().end(Signal::SIGTERM).await;
    assert_eq!(status.code(), Some(0), "{status}");
    assert!(!holdfast.root().join("holdfast.sock").exists());
    drop(events);
    holdfast.start_daemon().await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

/// Seen before: a signal that came so early ended it only after the restore, however long that took.
#[tokio::test]
async fn sigterm_and_sigint_during_the_restore_end_the_daemon_with_a_line() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let process = process(&holdfast.inspect(&id).await);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
        holdfast.kill_daemon().await;
        let mut command = holdfast.command(&["daemon", "--runtime", runtime_name()]);
        // The restore's first step, made slow: so it is under way when the signal comes. Not slower:
        // strace may hold up a thread that has been killed in it, until that time is over.
        let micros = if signal == Signal::SIGHUP { 3_000_000 } else { 15_000_000 };
        let script = format!(
            "exec strace -f -o /dev/null -e trace=mkdir,flock -e inject=flock:delay_enter={micros} \"$@\""
        );
        let mut slow = tokio::process::Command::new("sh");
        slow.args(["-c", &script, "sh"]).arg(command.as_std().get_program());
        slow.args(command.as_std().get_args()).env_remove("HOLDFAST_LOG").kill_on_drop(true);
        command = slow;
        let child = command.stderr(std::process::Stdio::piped()).spawn().expect("run strace");
        let strace = child.id().unwrap().cast_signed();
        // Once there is a handler for the last of them, those before it have somebody who is told.
        let last = holdfast_sys::stray::SIGNALS[holdfast_sys::stray::SIGNALS.len() - 1];
        let started = || {
            let children = holdfast_tests::processes::children(strace);
            children.into_iter().filter_map(Proc::of).find(|one| {
                one.command().contains("daemon") && one.mask_has("SigCgt", last) == Some(true)
            })
        };
        eventually("the daemon to begin", || started().is_some()).await;
        let daemon = started().unwrap();
        daemon.signal(signal);
        if signal == Signal::SIGHUP {
            eventually("the socket", || holdfast.root().join("holdfast.sock").exists()).await;
            eventually("an answer", || {
                std::os::unix::net::UnixStream::connect(holdfast.root().join("holdfast.sock"))
                    .is_ok()
            })
            .await;
            daemon.signal(Signal::SIGTERM);
        }
        let output = holdfast_tests::soon("the daemon", child.wait_with_output()).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{signal}: {said}");
        let expected = match signal {
            Signal::SIGHUP => "SIGHUP: there is no configuration".to_owned(),
            signal => format!("{signal} during the restore: going down"),
        };
        assert!(said.contains(&expected), "{said}");
        assert_eq!(said.contains("listening"), signal == Signal::SIGHUP, "{said}");
        assert!(process.lives());
        holdfast.start_daemon().await;
        assert_eq!(holdfast.inspect(&id).await["status"], "running");
    }
    holdfast.close().await;
}

/// Seen before: it did not come to listen. tracing reports a failed write by a print macro, and that
/// panics in whichever task has something to log.
#[tokio::test]
async fn a_daemon_whose_log_nobody_reads_works_on() {
    let mut holdfast = Holdfast::without_daemon();
    let mut command = holdfast.command(&["daemon", "--runtime", runtime_name()]);
    let (reader, writer) = std::io::pipe().unwrap();
    let mut child = command.stderr(writer).spawn().unwrap();
    drop((command, reader));
    let socket = holdfast.root().join("holdfast.sock");
    eventually("the socket", || socket.exists()).await;
    let pid = child.id().unwrap().cast_signed();
    Proc::of(pid).unwrap().signal(Signal::SIGHUP);
    let id = holdfast.run_detached(&[], &["sh", "-c", "exit 6"]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "6\n");
    Proc::of(pid).unwrap().signal(Signal::SIGTERM);
    let status = holdfast_tests::soon("the daemon", child.wait()).await.unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
    holdfast.start_daemon().await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "6\n");
    holdfast.close().await;
}

/// A user who is not root, nor anybody else.
const STRANGER: u32 = 65534;

/// Runs the command line as another user, who can't reach where it was built.
async fn as_stranger(holdfast: &Holdfast, args: &[&str]) -> (Option<i32>, String) {
    let program = holdfast.scratch.path().join("holdfast");
    if !program.exists() {
        executable::copied(binary("holdfast"), &program);
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(holdfast.scratch.path(), open).expect("let others pass");
    }
    let mut command = tokio::process::Command::new(program);
    command.args(args).uid(STRANGER).gid(STRANGER).env_clear().current_dir("/");
    let ran = holdfast_tests::ran(command).await;
    assert_eq!(ran.stdout, "", "{args:?}");
    (ran.code, ran.stderr)
}

/// Seen before: `no daemon answers at …; start one with …: Permission denied`.
#[tokio::test]
async fn another_user_is_told_that_the_daemon_serves_root() {
    let holdfast = Holdfast::start().await;
    let root = holdfast.root();
    let socket = root.join("holdfast.sock");
    let expected = format!(
        "holdfast: the daemon at {} serves root and its own user only (permission denied); try \
         sudo, or choose another with --root or --address\n",
        socket.display()
    );
    let root_arg = root.to_str().unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    // Both the directory and the socket refuse it.
    for root_mode in [0o700, 0o755] {
        mode(&root, root_mode);
        for (code, args) in [(1, &["ps"][..]), (125, &["run", "--rootfs", "host", "true"])] {
            let args = [&["--root", root_arg], args].concat();
            let said = as_stranger(&holdfast, &args).await;
            assert_eq!(said, (Some(code), expected.clone()), "{root_mode:o}");
        }
    }
    // And so does the daemon itself, should somebody have opened its socket to all.
    mode(&socket, 0o666);
    for _ in 0..20 {
        for (code, args) in [(1, &["ps"][..]), (125, &["run", "--rootfs", "host", "true"])] {
            let args = [&["--root", root_arg], args].concat();
            let (got, said) = as_stranger(&holdfast, &args).await;
            let expected = "holdfast: this daemon serves root and its own user only, not user 65534; \
                            try sudo\n";
            assert_eq!((got, said.as_str()), (Some(code), expected));
        }
    }
    assert_eq!(holdfast.json(&["ps", "--all", "--json"]).await, json!([]));
    holdfast.close().await;
}

#[tokio::test]
async fn a_plain_user_is_told_where_a_daemon_would_be() {
    let holdfast = Holdfast::without_daemon();
    let theirs = holdfast.scratch.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::chown(&theirs, Some(STRANGER), Some(STRANGER)).unwrap();
    let root = theirs.join("root");
    let missing = root.join("holdfast.sock");
    let (code, said) = as_stranger(&holdfast, &["--root", root.to_str().unwrap(), "ps"]).await;
    let expected = format!("holdfast: no daemon answers at {}; start one with", missing.display());
    assert!(code == Some(1) && said.starts_with(&expected), "{code:?} {said}");
    for args in [&["ps"][..], &["daemon"]] {
        let (code, said) = as_stranger(&holdfast, args).await;
        assert!(code == Some(1) && said.contains("XDG_RUNTIME_DIR is not set"), "{code:?} {said}");
    }
    assert_eq!(std::fs::read_dir(&theirs).unwrap().count(), 0);
}

#[tokio::test]
async fn a_socket_of_a_dead_daemon_and_what_is_no_socket_have_words_of_their_own() {
    let mut holdfast = Holdfast::start().await;
    let socket = holdfast.root().join("holdfast.sock");
    holdfast.kill_daemon().await;
    let said = holdfast.fails(1, &["ps"]).await;
    assert!(said.contains("has died") && said.contains("`holdfast daemon`"), "{said}");
    let file = holdfast.scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    let said = holdfast.fails(1, &["--address", file.to_str().unwrap(), "ps"]).await;
    assert!(said.contains("is not the socket of a daemon"), "{said}");
    let missing = holdfast.scratch.path().join("missing");
    let said = holdfast.fails(1, &["--address", missing.to_str().unwrap(), "ps"]).await;
    assert!(said.contains("no daemon answers at") && !said.contains("died"), "{said}");
    assert!(socket.exists());
    holdfast.start_daemon().await;
    holdfast.close().await;
}

/// At 91d2b83 each start moved it back to where it had been when it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_stays_in_the_cgroup_to_which_somebody_has_moved_it() {
    let holdfast = Holdfast::start().await;
    let pids = Path::new("/sys/fs/cgroup/pids");
    let base = if pids.is_dir() { pids } else { Path::new("/sys/fs/cgroup") };
    let (name, pid) = (unique_id("moved").to_string(), holdfast.daemon().process().pid);
    let dir = base.join(&name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("cgroup.procs"), pid.to_string()).unwrap();
    for _ in 0..3 {
        let id = holdfast.run_detached(&[], &["true"]).await;
        holdfast.ok(&["wait", &id]).await;
    }
    let is_in = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(is_in.lines().any(|line| line.ends_with(&format!("/{name}"))), "{is_in}");
    holdfast.close().await;
    eventually("the cgroup to be empty", || fs::remove_dir(&dir).is_ok()).await;
}
