//! A container may hold the lock of its own pipes for ever: splice(2) from a silent socket into its
//! standard output is enough. Whoever then opens the pipe, reads from it or is last to close it waits
//! uninterruptibly. No daemon and no restore may come to that.
//!
//! At 91d2b83 (programs of that revision, tried by hand): the daemon that is started after the first
//! one was killed hangs in `fifo_open`, in state D, and never listens; SIGKILL does not end it, and so
//! the root stays locked until the container is killed from outside.

use std::fs;

use holdfast_tests::processes::{mentioning, shim_of, shims};
use holdfast_tests::{Holdfast, Proc, binary, eventually, executable, shim_group, skip, soon};
use nix::sys::signal::Signal;

/// A daemon and a container that holds the locks of these of its descriptors.
async fn with_locked(numbers: &[&str]) -> (Holdfast, String) {
    with_locked_and(&[], numbers).await
}

/// The same, with options for the container.
async fn with_locked_and(options: &[&str], numbers: &[&str]) -> (Holdfast, String) {
    let holdfast = Holdfast::start().await;
    let program = holdfast.scratch.bundle().join("rootfs/bin/hostile");
    executable::copied(binary("hostile"), program);
    let id = holdfast.run_detached(options, &[&["hostile", "lock"], numbers].concat()).await;
    let pid = container_pid(&holdfast, &id).await;
    eventually("the locks to be held", || splicing(pid) == numbers.len()).await;
    (holdfast, id)
}

async fn container_pid(holdfast: &Holdfast, id: &str) -> i32 {
    let pid = holdfast.inspect(id).await["pid"].as_i64().expect("it has a process");
    i32::try_from(pid).expect("the number of a process")
}

/// How many threads of a process are in splice(2).
fn splicing(pid: i32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
    let splice = format!("{} ", nix::libc::SYS_splice);
    calls.filter(|call| call.starts_with(&splice)).count()
}

fn waits_uninterruptibly(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let states = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    states.into_iter().any(|stat| stat.rsplit_once(") ").is_some_and(|(_, it)| it.starts_with('D')))
}

/// The container is there and can be dealt with like any other, and nothing is left of it.
async fn can_be_dealt_with(mut holdfast: Holdfast, id: &str) {
    assert_eq!(holdfast.inspect(id).await["status"], "running");
    let said = holdfast.ok(&["exec", id, "echo", "hi"]).await;
    assert_eq!(said, "hi\n");
    let other = holdfast.run_detached(&[], &["sh", "-c", "exit 3"]).await;
    assert_eq!(holdfast.ok(&["wait", &other]).await, "3\n");
    holdfast.ok(&["delete", "--force", id]).await;
    holdfast.ok(&["delete", &other]).await;
    let status = holdfast.take_daemon().end(Signal::SIGTERM).await;
    assert!(status.success(), "{status:?}");
    holdfast.scratch.group_ended().await;
    eventually("nothing to be left over", || {
        mentioning(holdfast.scratch.path()).is_empty() && holdfast.leftovers().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_restores_a_container_that_locks_its_output() {
    for numbers in [&["1"][..], &["1", "2"]] {
        let (mut holdfast, id) = with_locked(numbers).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
        can_be_dealt_with(holdfast, &id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_it_does_one_that_locks_its_input_and_one_in_a_group() {
    for (options, numbers) in [
        (&["-i"][..], &["0"][..]),
        (&["-i"], &["0", "1", "2"]),
        (&["--shim-group", "pod"], &["1", "2"]),
    ] {
        let (mut holdfast, id) = with_locked_and(options, numbers).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
        can_be_dealt_with(holdfast, &id).await;
    }
}

/// splice(2) holds the lock of a pipe while it waits, and a terminal is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_no_such_lock() {
    let holdfast = Holdfast::start().await;
    let program = holdfast.scratch.bundle().join("rootfs/bin/hostile");
    executable::copied(binary("hostile"), program);
    let id = holdfast.run_detached(&["-i", "-t"], &["hostile", "lock", "0", "1", "2"]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "0\n", "every splice(2) was refused");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_holds_the_last_copies_of_locked_pipes_ends_and_leaves_the_root_free() {
    if shim_group().is_some() {
        return skip("the shim of a group still waits for a lock that one of its containers holds");
    }
    let (mut holdfast, id) = with_locked(&["1", "2"]).await;
    let shim = shim_of(&holdfast.root(), &id, "init");
    // Stopped, it can't have the shim followed by another, which would hold copies as well.
    holdfast.daemon().signal(Signal::SIGSTOP);
    holdfast.daemon().process().reaches('T').await;
    shim.signal(Signal::SIGKILL);
    shim.ended().await;
    // It can't finish dying: what it closes is locked.
    let daemon = holdfast.daemon().process();
    let dying = holdfast.take_daemon();
    dying.signal(Signal::SIGKILL);
    eventually("the daemon to die", || waits_uninterruptibly(daemon.pid)).await;
    holdfast.start_daemon().await;
    // Its place was taken while it was still there, or this has tested nothing.
    assert!(waits_uninterruptibly(daemon.pid), "{daemon:?} did not hang");
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.ok(&["delete", "--force", &id]).await;
    soon("the end of the daemon that hung", dying.ended()).await;
    let other = holdfast.run_detached(&["--rm"], &["true"]).await;
    assert_eq!(holdfast.ok(&["wait", &other]).await, "0\n");
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_whose_container_outlives_its_shim_with_locked_pipes_goes_on() {
    if shim_group().is_some() {
        return skip("the shim of a group still waits for a lock that one of its containers holds");
    }
    let (holdfast, id) = with_locked(&["1", "2"]).await;
    let pid = container_pid(&holdfast, &id).await;
    let shim = shim_of(&holdfast.root(), &id, "init");
    shim.signal(Signal::SIGKILL);
    shim.ended().await;
    // That one waits, as it may: it is this container's alone.
    let another = || shims(&holdfast.root()).iter().any(|other| other.pid != shim.pid);
    eventually("another shim", another).await;
    assert!(Proc::of(pid).is_some_and(|process| process.lives()));
    can_be_dealt_with(holdfast, &id).await;
}
