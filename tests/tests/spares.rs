//! Shims that are begun before there is anything to do.

use std::fs;

use holdfast_tests::processes::{shim_of, spares};
use holdfast_tests::{Holdfast, Proc, eventually, unique_id};
use nix::sys::signal::Signal;

fn name() -> String {
    unique_id("spare").to_string()
}

/// Shims of the daemon that wait.
fn waiting(holdfast: &Holdfast) -> Vec<Proc> {
    spares(holdfast.daemon().process().pid)
}

/// The one that comes to wait after a container was made.
async fn spare(holdfast: &Holdfast) -> Proc {
    // It sleeps once it has reported that it waits. Before that, a start would not take it.
    let is_there = || waiting(holdfast).iter().any(|it| it.state() == Some('S'));
    eventually("a shim to wait", is_there).await;
    let mut waiting = waiting(holdfast);
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    waiting.remove(0)
}

async fn sleeper(holdfast: &Holdfast) -> String {
    holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await
}

#[tokio::test]
async fn a_shim_waits_and_is_the_next_containers_which_is_like_any_other() {
    let mut holdfast = Holdfast::start().await;
    assert_eq!(waiting(&holdfast), [], "before there was a container");
    let first = sleeper(&holdfast).await;
    let spare_one = spare(&holdfast).await;
    let gate = holdfast.scratch.gate();
    let args = ["sh", "-c", &gate.script("echo before; echo wrong >&2")];
    let id = holdfast.run_detached(&["--name", &name()], &args).await;
    holdfast.said(&id, "before").await;
    let shim = shim_of(&holdfast.root(), &id, "init");
    assert_eq!(shim.identity(), spare_one.identity());
    let log = fs::read_to_string(holdfast.root().join(&id).join("init/shim-log.json"));
    assert_eq!(log.expect("the log of the shim"), "");
    assert_ne!(spare(&holdfast).await, spare_one);
    // An exec is a start as well.
    assert_eq!(holdfast.run(&["exec", &id, "sh", "-c", "echo in; exit 5"]).await.stdout, "in\n");
    // It outlives the daemon, and those that still wait do not.
    let left = spare(&holdfast).await;
    holdfast.kill_daemon().await;
    left.gone().await;
    gate.open(7);
    shim.gone().await;
    holdfast.start_daemon().await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "7\n");
    let logs = holdfast.run(&["logs", &id]).await;
    assert_eq!([&*logs.stdout, &*logs.stderr], ["before\nafter\n", "wrong\n"]);
    for id in [first, id] {
        holdfast.ok(&["delete", "--force", &id]).await;
    }
    holdfast.close().await;
}

#[tokio::test]
async fn a_spare_that_has_died_is_replaced_and_no_start_is_the_worse_for_it() {
    let holdfast = Holdfast::start().await;
    let mut ids = vec![sleeper(&holdfast).await];
    for _ in 0..3 {
        let spare = spare(&holdfast).await;
        spare.signal(Signal::SIGKILL);
        spare.ended().await;
        ids.push(sleeper(&holdfast).await);
        spare.gone().await;
    }
    for id in &ids {
        holdfast.ok(&["delete", "--force", id]).await;
    }
    holdfast.close().await;
}

#[tokio::test]
async fn as_many_wait_as_are_wanted_and_they_go_with_the_daemon() {
    let mut holdfast = Holdfast::without_daemon();
    let args = ["--spare-shims".as_ref(), "3".as_ref()];
    let program = holdfast_tests::binary("holdfast");
    holdfast.try_start_daemon(&program, &args).await.expect("the daemon starts");
    let id = sleeper(&holdfast).await;
    eventually("three shims to wait", || waiting(&holdfast).len() == 3).await;
    let all = waiting(&holdfast);
    assert!(holdfast.take_daemon().end(Signal::SIGTERM).await.success());
    for spare in all {
        assert!(!spare.exists(), "{spare} outlived the daemon");
    }
    holdfast.start_daemon().await;
    holdfast.ok(&["delete", "--force", &id]).await;
    holdfast.close().await;
}
