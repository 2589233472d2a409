//! A pid that comes round again is somebody else's, and nothing of ours touches it.
//!
//! The test runs in a pid namespace of its own with a small `pid_max`: there a number comes round
//! after a hundred processes. It starts itself anew in there, and does its work the second time.
//!
//! What if the new owner's start time is the same, in ticks of 10 ms? Then the first process must
//! have started and ended, and every number between have been given away, within one tick. With
//! the kernel's usual `pid_max` of 32,768 and more that takes seconds of forking; with a tiny one
//! it is possible, and start time and boot id could not tell the two apart. What can is the inode
//! of the pidfd, or its handle (Linux 6.9+): those are never given twice within a boot.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use holdfast_tests::processes::shim_of;
use holdfast_tests::{Holdfast, Proc, binary, eventually, ran, soon};
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

const PID_MAX: &str = "420";
/// The numbers up to here do not come round: the kernel keeps them for its first processes.
const KEPT: i32 = 300;
const INSIDE: &str = "HOLDFAST_TEST_IN_PID_NAMESPACE";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pids_that_come_round_while_the_daemon_is_down_are_spared() {
    if std::env::var_os(INSIDE).is_some() {
        return in_a_pid_namespace().await;
    }
    if kernel() < (6, 14) {
        // There pid_max is the whole machine's.
        println!("NOT RUN: a pid namespace has a pid_max of its own since Linux 6.14");
        return;
    }
    let pid_max = || fs::read_to_string("/proc/sys/kernel/pid_max").expect("pid_max");
    let before = pid_max();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command.arg(std::env::current_exe().expect("the path of this test"));
    command.args(["--exact", "pids_that_come_round_while_the_daemon_is_down_are_spared"]);
    command.arg("--nocapture");
    command.env(INSIDE, "1").kill_on_drop(true);
    let inside = soon("the test in a pid namespace", ran(command)).await;
    println!("{}{}", inside.stdout, inside.stderr);
    assert_eq!(inside.code, Some(0));
    assert!(inside.stdout.contains("bystanders spared: 2"), "no test was run in there");
    assert_eq!(pid_max(), before);
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    (numbers.next().expect("a number"), numbers.next().expect("a number"))
}

/// The number that was given last.
fn last_pid() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/ns_last_pid").expect("the last pid");
    text.trim().parse().expect("a number")
}

async fn use_a_pid() {
    let status = Command::new("/bin/true").status().await;
    assert!(status.expect("start a process").success());
}

/// A process that notes every signal that it can.
struct Bystander {
    child: Child,
    notes: std::path::PathBuf,
}

impl Bystander {
    /// Starts processes until one has this number, and makes that one the bystander.
    async fn with_pid(wanted: i32, dir: &Path) -> Self {
        // One process from beginning to end: the number must be that of the one that notes. It
        // says that it is ready once it would note.
        let script = format!(
            "for s in 1 2 3 10 12 14 15 18; do trap \"echo $s >> {0}-$$\" $s; done; \
             echo ready > {0}-$$; while :; do read -r x; done",
            dir.join("signals").display()
        );
        for _ in 0..2_000 {
            if last_pid() + 1 != wanted {
                use_a_pid().await;
                continue;
            }
            let mut child = Command::new("/bin/sh")
                .args(["-c", &script])
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("start a bystander");
            // A thread may have taken it meanwhile: then on to the next round.
            if child.id() == Some(wanted.cast_unsigned()) {
                let notes = dir.join(format!("signals-{wanted}"));
                eventually("the bystander", || notes.exists()).await;
                return Self { child, notes };
            }
            child.kill().await.expect("end a process");
        }
        panic!("pid {wanted} did not come round");
    }

    fn assert_spared(&mut self) {
        assert!(self.child.try_wait().expect("look").is_none(), "a bystander was killed");
        assert_eq!(fs::read_to_string(&self.notes).expect("its notes"), "ready\n");
    }
}

async fn in_a_pid_namespace() {
    assert_eq!(std::process::id(), 1, "this is not the first process of a namespace");
    fs::write("/proc/sys/kernel/pid_max", PID_MAX).expect("a small pid_max");
    while last_pid() < KEPT {
        use_a_pid().await;
    }

    let mut holdfast = Holdfast::start().await;
    let runtime = binary("fake-runtime");
    let runtime = runtime.to_str().expect("a path in UTF-8");
    let mut containers = Vec::new();
    for policy in ["adopt", "kill"] {
        let options = ["--runtime", runtime, "--on-orphan", policy];
        let id = holdfast.run_detached(&options, &["sleep", "100000"]).await;
        let inspected = holdfast.inspect(&id).await;
        let pid = i32::try_from(inspected["pid"].as_i64().expect("a pid")).expect("a small pid");
        let process = Proc::of(pid).expect("the process lives");
        let shim = shim_of(&holdfast.root(), &id, "init");
        containers.push((id, process, shim));
    }
    holdfast.kill_daemon().await;
    for (_, process, shim) in &containers {
        shim.signal(Signal::SIGKILL);
        shim.ended().await;
        process.signal(Signal::SIGKILL);
        // Whoever was left an orphan is reaped by the first process of the namespace: this one.
        reap(process);
    }
    let mut bystanders = Vec::new();
    for (_, process, _) in &containers {
        assert!(!process.exists(), "{process} is not gone");
        bystanders.push(Bystander::with_pid(process.pid, holdfast.scratch.path()).await);
        let now = Proc::of(process.pid).expect("the bystander");
        assert_ne!(now.identity(), process.identity());
    }

    holdfast.start_daemon().await;
    for (id, process, _) in &containers {
        let inspected = holdfast.inspect(id).await;
        assert_eq!(inspected["status"], "stopped", "{inspected}");
        assert_eq!(inspected["exitStatus"], 255, "{inspected}");
        let told = inspected.to_string();
        assert!(told.contains("exited-unwatched"), "{told}");
        assert_eq!(inspected["pid"], serde_json::Value::Null, "{process}: {inspected}");
        let refused = holdfast.fails(1, &["kill", id]).await;
        assert!(refused.contains("stopped"), "{refused}");
        holdfast.ok(&["delete", id]).await;
    }
    for bystander in &mut bystanders {
        bystander.assert_spared();
    }
    println!("bystanders spared: {}", bystanders.len());
    for mut bystander in bystanders {
        bystander.child.kill().await.expect("end a bystander");
    }
    holdfast.close().await;
}

/// Takes an orphan out of the process table.
fn reap(process: &Proc) {
    let pid = nix::unistd::Pid::from_raw(process.pid);
    let _ = nix::sys::wait::waitpid(pid, None);
}
