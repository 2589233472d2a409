//! Nothing happens while nothing happens: no system call of the daemon or of a shim.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use futures::future::join_all;
use holdfast_tests::{Holdfast, Proc, eventually, processes, soon};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// How long nobody may do anything. It is what is promised, not a wait for something.
const IDLE: Duration = Duration::from_secs(10);

/// The daemon's threads: the main one, and those that it is told to work with.
const WORKERS: usize = 2;

async fn start_daemon(holdfast: &mut Holdfast) {
    holdfast
        .start_daemon_by(|command| _ = command.env("TOKIO_WORKER_THREADS", WORKERS.to_string()))
        .await;
}

async fn with_fifty_containers() -> Holdfast {
    let mut holdfast = Holdfast::without_daemon();
    start_daemon(&mut holdfast).await;
    let script = ["sh", "-c", "echo ready; exec sleep 100000"];
    let ids = join_all((0..50).map(|_| holdfast.run_detached(&[], &script))).await;
    // Someone has listened and gone: what was watched for them must not go on.
    holdfast.said(&ids[0], "ready").await;
    holdfast.begin(&["events", "--replay"]).line().await;
    holdfast
}

#[tokio::test]
async fn a_daemon_and_fifty_idle_containers_make_no_system_call_in_ten_seconds() {
    let holdfast = with_fifty_containers().await;
    nobody_does_anything(&holdfast).await;
    holdfast.close().await;
}

#[tokio::test]
async fn fifty_restored_containers_make_no_system_call_in_ten_seconds_either() {
    let mut holdfast = with_fifty_containers().await;
    holdfast.kill_daemon().await;
    start_daemon(&mut holdfast).await;
    nobody_does_anything(&holdfast).await;
    holdfast.close().await;
}

async fn nobody_does_anything(holdfast: &Holdfast) {
    let daemon = holdfast.daemon().process();
    let shims = processes::shims(&holdfast.root());
    assert_eq!(shims.len(), 50);
    // Threads for file work go ten seconds after their last, and until then it is not idle.
    eventually("the daemon to have its own threads only", || threads(&daemon).len() == 1 + WORKERS)
        .await;

    let trace = holdfast.scratch.path().join("trace");
    let watched: Vec<Proc> = std::iter::once(daemon).chain(shims).collect();
    strace(&watched, &trace).await;

    let text = std::fs::read_to_string(&trace).expect("read what strace saw");
    let mut calls: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').expect(line);
        calls.entry(thread).or_default().push(call.trim());
    }
    let expected: Vec<String> = watched.iter().flat_map(threads).collect();
    assert_eq!(expected.len(), 1 + WORKERS + 50);
    for thread in &expected {
        // strace stops each thread to get hold of it, and shows the call that this interrupts as it
        // is taken up again, by its own name or as restart_syscall: that one was made long before.
        // It must be the thread's only line and must never come back. A thread that has no line is
        // in no system call: it is at work.
        let seen = calls.remove(thread.as_str()).unwrap_or_default();
        let sleeps =
            |call: &str| call.ends_with("<unfinished ...>") || call.ends_with("<detached ...>");
        assert!(seen.len() == 1 && sleeps(seen[0]), "thread {thread} was not idle: {seen:#?}");
    }
    assert!(calls.is_empty(), "threads that were not there before: {calls:#?}");
}

/// Writes down every system call of these processes while [`IDLE`] passes.
async fn strace(processes: &[Proc], trace: &Path) {
    let mut command = Command::new("strace");
    command.arg("-f").arg("-o").arg(trace);
    for process in processes {
        command.arg("-p").arg(process.pid.to_string());
    }
    let mut strace = command
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("strace is installed (Debian's package strace)");
    let mut lines = BufReader::new(strace.stderr.take().expect("its standard error")).lines();
    let mut said = String::new();
    let mut attached = 0;
    while attached < processes.len() {
        let line = soon("strace to attach", lines.next_line()).await.expect("read from strace");
        let line = line.unwrap_or_else(|| panic!("strace has ended before its time:\n{said}"));
        said += &format!("{line}\n");
        assert!(
            !line.contains("attach: ptrace("),
            "this test needs ptrace, which is not permitted here (CAP_SYS_PTRACE, seccomp, \
             kernel.yama.ptrace_scope): {line}"
        );
        attached += usize::from(line.contains(" attached"));
    }
    tokio::time::sleep(IDLE).await;
    let pid = strace.id().expect("strace is at work");
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT).expect("end strace");
    // Read to its end, so that strace never waits for us.
    let rest = async { while let Ok(Some(_)) = lines.next_line().await {} };
    soon("the end of strace", rest).await;
    soon("the end of strace", strace.wait()).await.expect("wait for strace");
}

/// The numbers of a process's threads.
fn threads(process: &Proc) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.pid));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks.map(|task| task.file_name().to_string_lossy().into_owned()).collect()
}
