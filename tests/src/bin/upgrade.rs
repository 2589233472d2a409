//! `cargo xtask upgrade`, the program: containers of each kind that were started by another build go on under
//! this one, and what that build's daemon starts with this build's shims does too. Its arguments are the
//! directory of the other build's programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use holdfast_tests::{Gate, Holdfast, Proc, binary, eventually, processes, ran};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

/// A container for each way in which a shim holds things.
const KINDS: [(&str, &[&str]); 9] = [
    ("cri", &[]),
    ("json-file", &["--log", "json-file"]),
    ("two-logs", &["--log", "cri", "--log", "json-file"]),
    ("file", &["--log", "file"]),
    ("input", &["-i"]),
    ("terminal", &["-t"]),
    ("terminal-input", &["-i", "-t"]),
    ("pod-1", &["--shim-group", "pod"]),
    ("pod-2", &["--shim-group", "pod"]),
];

struct One {
    id: String,
    kind: &'static str,
    gate: Gate,
    code: u8,
}

impl One {
    fn is_grouped(&self) -> bool {
        self.kind.starts_with("pod")
    }
}

/// The programs that are to start containers.
struct Build {
    daemon: PathBuf,
}

impl Build {
    fn command(&self, holdfast: &Holdfast, args: &[&str]) -> Command {
        let mut command = Command::new(&self.daemon);
        command.arg("--root").arg(holdfast.root()).args(args).kill_on_drop(true);
        command
    }

    async fn ok(&self, holdfast: &Holdfast, args: &[&str]) -> String {
        let ran = ran(self.command(holdfast, args)).await;
        assert_eq!(ran.code, Some(0), "{} {args:?}: {ran:?}", self.daemon.display());
        ran.stdout
    }

    /// Starts one of each kind, and waits until each has said something.
    async fn start_all(&self, holdfast: &Holdfast, half: &str) -> Vec<One> {
        let bundle = holdfast.scratch.bundle();
        let bundle = bundle.to_str().expect("a path in UTF-8");
        let mut all = Vec::new();
        for (code, (kind, options)) in (10..).zip(KINDS) {
            let gate = holdfast.scratch.gate();
            let id = format!("{kind}-{half}-{}", std::process::id());
            let script = gate.script("echo ready");
            let what = ["run", "--detach", "--name", &id, "--bundle", bundle];
            let args = [&what, options, &["--", "sh", "-c", &script]].concat();
            self.ok(holdfast, &args).await;
            all.push(One { id, kind, gate, code });
        }
        for one in &all {
            while self.ok(holdfast, &["logs", &one.id]).await.trim_end() != "ready" {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
        all
    }
}

fn shim_of(holdfast: &Holdfast, one: &One) -> Proc {
    processes::recorded_shim(&holdfast.root(), &one.id, "init").expect("the shim lives")
}

/// Lets it end, and finds its status, its output, and by whom the status is known.
async fn end(holdfast: &Holdfast, one: &One, evidence: &[&str]) {
    one.gate.open(one.code);
    assert_eq!(holdfast.ok(&["wait", &one.id]).await, format!("{}\n", one.code), "{}", one.id);
    let output = holdfast.ok(&["logs", &one.id]).await.replace('\r', "");
    assert_eq!(output, "ready\nafter\n", "{}", one.id);
    let exit = fs::read(holdfast.root().join(&one.id).join("init/exit.json")).expect("its exit");
    let exit: Value = serde_json::from_slice(&exit).expect("JSON");
    let found = exit["evidence"].as_str().expect("evidence");
    assert!(evidence.contains(&found), "{}: {exit}", one.id);
}

/// What `build` has started goes on under the daemon of this build.
async fn goes_on(build: &Build) {
    let mut holdfast = Holdfast::without_daemon();
    holdfast.try_start_daemon(&build.daemon, &[]).await.expect("the daemon");
    let kept = build.start_all(&holdfast, "kept").await;
    let adopted = build.start_all(&holdfast, "adopted").await;
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;

    // The group goes on with what it has, and gets nothing new.
    let pod = shim_of(&holdfast, kept.iter().find(|one| one.is_grouped()).expect("one in a group"));
    let before = processes::children(pod.pid).len();
    let gate = holdfast.scratch.gate();
    let late = holdfast
        .run_detached(&["--shim-group", "pod"], &["sh", "-c", &gate.script("echo ready")])
        .await;
    let late = One { id: late, kind: "pod-late", gate, code: 77 };
    assert_eq!(processes::children(pod.pid).len(), before, "the old group has a new process");
    assert_ne!(shim_of(&holdfast, &late).pid, pod.pid);

    for one in &kept {
        end(&holdfast, one, &["shim"]).await;
    }
    pod.signal(Signal::SIGKILL);
    for one in adopted.iter().filter(|one| !one.is_grouped()) {
        shim_of(&holdfast, one).signal(Signal::SIGKILL);
    }
    for one in &adopted {
        eventually("a shim of this build", || {
            let shim = processes::recorded_shim(&holdfast.root(), &one.id, "init");
            shim.is_some_and(|shim| {
                let program = fs::read_link(format!("/proc/{}/exe", shim.pid));
                program.is_ok_and(|program| program == binary("holdfast-shim"))
            })
        })
        .await;
        end(&holdfast, one, &["pidfd", "zombie"]).await;
    }
    end(&holdfast, &late, &["shim"]).await;
    holdfast.close().await;
    println!("ok: {} containers of {}", kept.len() + adopted.len(), build.daemon.display());
}

fn main() -> ExitCode {
    let Some(old) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: upgrade DIRECTORY");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        goes_on(&Build { daemon: old.join("holdfast") }).await;
        // A package is replaced while the old daemon runs: that begins shims of the new build.
        let mixed = tempfile::tempdir().expect("a directory");
        link(&old.join("holdfast"), &mixed.path().join("holdfast"));
        link(&binary("holdfast-shim"), &mixed.path().join("holdfast-shim"));
        goes_on(&Build { daemon: mixed.path().join("holdfast") }).await;
    });
    ExitCode::SUCCESS
}

fn link(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}
