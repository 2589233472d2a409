//! Tests of what handles, statistics and records offer to an embedder.

use std::time::Duration;

use holdfast_supervisor::{
    Error, ErrorKind, EventKind, ExecOptions, ExitStatus, Status, Stdin, Stdio, Supervisor,
};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Scratch, edit_json, eventually, executable, read_all, said, soon, status, unique_id,
};
use nix::libc::{SIGKILL, SIGTERM};
use tokio::io::AsyncWriteExt;

const MEMORY: u64 = 32 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_by_the_oom_killer_is_in_the_exit_record_although_no_supervisor_was_there() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    edit_json(&scratch.bundle().join("config.json"), |config| {
        config["linux"]["resources"]["memory"] = serde_json::json!({ "limit": MEMORY });
    });
    let (hungry, modest) = (unique_id("hungry"), unique_id("modest"));
    let gates = [scratch.gate(), scratch.gate()];
    let eats = format!("{}; tail /dev/zero; exit 7", gates[0].wait("echo ready"));
    let started = supervisor.run(scratch.script(&eats).id(hungry.clone())).await.unwrap();
    let waits = scratch.script(&gates[1].script("echo ready")).id(modest.clone());
    let other = supervisor.run(waits).await.unwrap();
    for container in [&started, &other] {
        said(container, "ready").await;
        assert!(!container.info().oom_killed);
    }
    let ends = [&hungry, &modest].map(|id| shim_of(&scratch.root(), id.as_str(), "init"));
    soon("the shutdown", supervisor.shutdown()).await;
    gates.iter().for_each(|gate| gate.open(7));
    for shim in ends {
        shim.ended().await;
    }
    let supervisor = scratch.open().await;
    for (id, oom_killed) in [(&hungry, true), (&modest, false)] {
        let container = supervisor.get(id).unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(7));
        let info = container.info();
        assert_eq!((info.oom_killed, info.exit.unwrap().oom_killed), (oom_killed, oom_killed));
        // The next run has not been killed.
        assert_eq!(supervisor.past_exit(id).await.unwrap().oom_killed, oom_killed);
        container.delete().await.unwrap();
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_is_stopped_and_killed_with_all_that_it_has_begun() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "1000"])).await.unwrap();
    let script =
        "(sh -c 'trap \"\" TERM; sleep 1001 & echo ready; wait') & sleep 1002 & wait; wait";
    for by_stop in [false, true] {
        // It does not care about SIGTERM.
        let script = format!("trap '' TERM; {script}");
        let exec = container.exec(ExecOptions::new(["sh", "-c", &script])).await.unwrap();
        let mut lines = exec.stdout().unwrap();
        let mut line = String::new();
        soon("ready", tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line)).await.unwrap();
        let commands = || async {
            let all = exec.processes().await.unwrap();
            all.into_iter().map(|process| process.command).collect::<Vec<_>>()
        };
        let both = |found: &[String]| {
            ["sleep 1001", "sleep 1002"].iter().all(|it| found.iter().any(|found| found == it))
        };
        soon("its children", async { while !both(&commands().await) {} }).await;
        if by_stop {
            let exit = soon("the stop", exec.stop(SIGTERM, Duration::from_millis(100))).await;
            assert_eq!(exit.unwrap().status, ExitStatus::Signal(SIGKILL));
        } else {
            exec.kill().await.unwrap();
        }
        assert_eq!(soon("its end", exec.wait()).await.unwrap(), ExitStatus::Signal(SIGKILL));
        // The kernel may take a moment to remove what was killed.
        let left = || async { container.processes().await.unwrap() };
        soon("all to be gone", async { while left().await.len() > 1 {} }).await;
        assert_eq!(left().await[0].command, "sleep 1000");
        for error in [exec.kill().await.unwrap_err(), exec.processes().await.unwrap_err()] {
            assert!(matches!(error, Error::WrongExecState { status: "stopped", .. }), "{error}");
        }
        // It has ended, which is what is wanted.
        exec.stop(SIGTERM, Duration::MAX).await.unwrap();
    }
    container.delete_forced().await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_input_for_one_writer_ends_with_that_writer() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let options = scratch.script("cat; echo end").stdio(Stdio::new().stdin(Stdin::Once));
    let container = supervisor.run(options).await.unwrap();
    let mut input = container.stdin().unwrap();
    input.write_all(b"some\n").await.unwrap();
    said(&container, "some").await;
    assert_eq!(container.try_wait(), None);
    drop(input);
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!(read_all(container.logs().unwrap()).await.stdout, b"some\nend\n");
    // The next run has an input of its own.
    container.start().await.unwrap();
    drop(container.stdin().unwrap());
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    container.delete().await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_run_are_measured_at_once() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = unique_id(name);
        let options = scratch.options(["sleep", "1000"]).id(id.clone()).pids_limit(50);
        supervisor.run(options).await.unwrap();
        ids.push(id);
    }
    let ended = supervisor.run(scratch.options(["true"])).await.unwrap();
    status(&ended).await;
    let all = supervisor.stats_all().await.unwrap();
    assert_eq!(all.iter().map(|(of, _)| of.id().clone()).collect::<Vec<_>>(), ids);
    for (container, stats) in &all {
        assert_eq!((stats.pids, stats.pids_limit, stats.oom_kills), (Some(1), Some(50), Some(0)));
        let used = stats.memory_bytes.unwrap();
        assert!(stats.memory_working_set_bytes.unwrap() <= used, "{stats:?}");
        assert!(stats.memory_peak_bytes.is_none_or(|peak| peak > 0), "{stats:?}");
        // The bundle says a network of its own.
        let traffic = (stats.network_received_bytes, stats.network_sent_bytes);
        assert_eq!(traffic, (Some(0), Some(0)));
        assert!(stats.cpu_nanos.is_some() && stats.cpu_user_nanos.is_some(), "{stats:?}");
        container.delete_forced().await.unwrap();
    }
    assert!(supervisor.stats_all().await.unwrap().is_empty());
    ended.delete().await.unwrap();
    scratch.close(supervisor).await;
}

/// Opens a state root with a shim that is this script.
async fn open_with_shim(scratch: &Scratch, script: &str) -> Result<Supervisor, Error> {
    let shim = scratch.path().join("shim");
    executable::script(&shim, &format!("#!/bin/sh\n{script}\n"));
    soon("the supervisor", Supervisor::builder(scratch.root()).shim(shim).open()).await
}

#[tokio::test]
async fn a_shim_that_does_not_understand_the_library_is_refused_by_its_version() {
    let scratch = Scratch::new();
    for (script, found) in [
        ("echo holdfast-shim 0.0.9 protocol 1", "is holdfast-shim 0.0.9 protocol 1"),
        ("echo usage >&2; exit 1", "is a release that does not report its version"),
        ("echo", "protocol"),
        ("head -c 100000 /dev/zero | tr '\\0' x", "is xxxx"),
    ] {
        let error = open_with_shim(&scratch, script).await.unwrap_err();
        assert!(matches!(error, Error::ShimVersion { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let text = error.to_string();
        assert!(text.contains(found) && text.contains("needs protocol 4"), "{text}");
        assert!(text.len() < 400, "{text}");
        // Nothing was created.
        assert!(!scratch.root().exists());
    }
    let newer = open_with_shim(&scratch, "echo holdfast-shim 9.0.0 protocol 9").await.unwrap();
    scratch.close(newer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_has_little_of_the_environment_of_its_supervisor() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "1000"])).await.unwrap();
    let shim = container.info().shim_pid.expect("a shim");
    eventually("the shim's environment", || {
        std::fs::read(format!("/proc/{shim}/environ")).is_ok_and(|text| !text.is_empty())
    })
    .await;
    let text = std::fs::read(format!("/proc/{shim}/environ")).unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    let names: Vec<_> = text.split('\0').filter_map(|it| Some(it.split_once('=')?.0)).collect();
    let allowed = ["PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];
    assert!(names.contains(&"PATH") && names.iter().all(|it| allowed.contains(it)), "{names:?}");
    // The tests themselves have more.
    assert!(std::env::vars_os().count() > allowed.len());
    container.delete_forced().await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_hears_of_an_event_finds_the_state_that_it_reports() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let id = unique_id("seen");
    let first = scratch.options(["true"]).id(id.clone());
    let container = supervisor.create(first).await.unwrap();
    // A matter of instants, so more than once.
    for run in 1..=30 {
        let starting = {
            let container = container.clone();
            tokio::spawn(async move { container.start().await })
        };
        loop {
            let event = soon("an event", events.next()).await.unwrap().unwrap();
            if matches!(event.kind, EventKind::Exited { .. }) {
                break;
            }
        }
        let info = container.info();
        assert_eq!((info.status, info.run, info.pid), (Status::Stopped, run, None));
        assert!(container.try_wait().is_some());
        starting.await.unwrap().unwrap();
    }
    container.delete().await.unwrap();
    loop {
        let event = soon("an event", events.next()).await.unwrap().unwrap();
        if event.kind == EventKind::Deleted {
            break;
        }
    }
    assert!(supervisor.get(&id).is_err());
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_input_of_a_container_that_has_ended_is_a_wrong_state_and_one_that_goes_is_not_found() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for _ in 0..20 {
        let options = || scratch.options(["true"]).stdio(Stdio::new().stdin(Stdin::Pipe));
        let ended = supervisor.run(options()).await.unwrap();
        status(&ended).await;
        let error = ended.stdin().unwrap_err();
        assert!(matches!(error, Error::WrongState { status: "stopped", .. }), "{error}");
        ended.delete().await.unwrap();
        let goes = supervisor.run(options().auto_remove()).await.unwrap();
        status(&goes).await;
        for error in [goes.stdin().unwrap_err(), goes.logs().err().unwrap_or(Error::Closed)] {
            let is_right = matches!(error, Error::NotFound(_) | Error::Closed);
            assert!(is_right || matches!(error, Error::WrongState { .. }), "{error}");
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bind_mount_of_nothing_is_refused_before_anything_is_made() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for (source, said) in [
        (scratch.path().join("nothing"), "No such file"),
        ("data".into(), "is an absolute path, not data"),
    ] {
        let options = scratch.options(["true"]).bind(source, "/data");
        let error = supervisor.run(options).await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    assert!(supervisor.list().is_empty());
    scratch.close(supervisor).await;
}
