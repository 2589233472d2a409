//! The main job before your eyes: many containers, a daemon that is killed, and nothing lost.
//!
//! It installs nothing. It needs a C compiler to link with, and `sh` and `sleep`, which the
//! containers see as the host's.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use comfy_table::{Table, presets};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::setup;

/// When a container of the demo ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Before the daemon is killed.
    Before,
    /// While it is dead.
    Meanwhile,
    /// When it is back.
    After,
    /// Not by itself.
    Never,
}

/// A container of the demo: it prints, and ends when it is sent a signal.
struct Plan {
    name: &'static str,
    ends: Ends,
    signal: Signal,
    /// What `wait` must print.
    status: u8,
}

const PLANS: [Plan; 11] = [
    Plan { name: "early-0", ends: Ends::Before, signal: Signal::SIGUSR1, status: 0 },
    Plan { name: "early-3", ends: Ends::Before, signal: Signal::SIGUSR1, status: 3 },
    Plan { name: "while-dead-0", ends: Ends::Meanwhile, signal: Signal::SIGUSR1, status: 0 },
    Plan { name: "while-dead-1", ends: Ends::Meanwhile, signal: Signal::SIGUSR1, status: 1 },
    Plan { name: "while-dead-255", ends: Ends::Meanwhile, signal: Signal::SIGUSR1, status: 255 },
    Plan { name: "while-dead-killed", ends: Ends::Meanwhile, signal: Signal::SIGKILL, status: 137 },
    Plan { name: "later-0", ends: Ends::After, signal: Signal::SIGUSR1, status: 0 },
    Plan { name: "later-42", ends: Ends::After, signal: Signal::SIGUSR1, status: 42 },
    Plan { name: "stays-1", ends: Ends::Never, signal: Signal::SIGKILL, status: 137 },
    Plan { name: "stays-2", ends: Ends::Never, signal: Signal::SIGKILL, status: 137 },
    Plan { name: "stays-3", ends: Ends::Never, signal: Signal::SIGKILL, status: 137 },
];

pub(crate) fn run() -> anyhow::Result<()> {
    println!("building (release)");
    crate::run(crate::build().args([
        "--release",
        "--package",
        "holdfast",
        "--package",
        "holdfast-shim",
        "--package",
        "holdfast-oci",
    ]))?;
    let mut demo = Demo::begin()?;
    let outcome = demo.play();
    let cleaned = demo.end();
    outcome.and(cleaned)
}

/// The runtime of the demo's containers: runc if it is installed, because most users know it.
/// Returns its name and why it was chosen.
fn choose_runtime() -> (&'static str, String) {
    match setup::in_path("runc") {
        Some(path) => ("runc", format!("{} is installed", path.display())),
        None => ("holdfast-oci", "runc is not in PATH; this one comes with Holdfast".to_owned()),
    }
}

struct Demo {
    holdfast: PathBuf,
    runtime: &'static str,
    scratch: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Demo {
    fn begin() -> anyhow::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("holdfast-demo-").tempdir()?;
        let (runtime, reason) = choose_runtime();
        println!("runtime: {runtime} ({reason})");
        let holdfast = crate::executables("release").join("holdfast");
        Ok(Self { holdfast, runtime, scratch, daemon: None })
    }

    fn play(&mut self) -> anyhow::Result<()> {
        println!("daemon started in {}", self.scratch.path().display());
        self.start_daemon()?;
        let pids = PLANS
            .iter()
            .map(|plan| self.start_container(plan))
            .collect::<anyhow::Result<Vec<_>>>()?;
        println!("{} containers run; each prints as it begins and as it ends", PLANS.len());
        self.end_containers(Ends::Before, &pids)?;

        let mut daemon = self.daemon.take().context("no daemon")?;
        daemon.kill()?;
        daemon.wait()?;
        println!("daemon killed with SIGKILL");
        let ended = self.end_containers(Ends::Meanwhile, &pids)?;
        println!("{ended} containers have ended meanwhile");

        let began = Instant::now();
        self.start_daemon()?;
        let until_answer = began.elapsed();
        let restored: Vec<Value> =
            serde_json::from_str(&self.holdfast(&["ps", "--all", "--json"])?)?;
        let info: Value = serde_json::from_str(&self.holdfast(&["info", "--json"])?)?;
        println!("daemon started again");

        self.end_containers(Ends::After, &pids)?;
        self.end_containers(Ends::Never, &pids)?;
        let wrong = self.report(&restored)?;
        println!(
            "{} containers restored in {:?}; {:?} from the start of the daemon to its first answer",
            info["restored"],
            Duration::from_micros(info["restoreMicros"].as_u64().unwrap_or(0)),
            until_answer
        );
        ensure!(wrong == 0, "{wrong} of {} containers are not as they should be", PLANS.len());
        println!("every status is right, and no output is missing");
        Ok(())
    }

    /// Prints the table and returns how many rows are wrong.
    fn report(&self, restored: &[Value]) -> anyhow::Result<usize> {
        let mut table = Table::new();
        table.load_preset(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "container",
            "ended",
            "at the restore",
            "status",
            "expected",
            "output",
            "",
        ]);
        let mut wrong = 0;
        for plan in &PLANS {
            let status = self.holdfast(&["wait", plan.name])?.trim().to_owned();
            let output = self.holdfast(&["logs", plan.name])?;
            let mut expected_output = format!("{} begins\n", plan.name);
            if plan.signal != Signal::SIGKILL {
                expected_output += &format!("{} ends\n", plan.name);
            }
            let at_restore = restored.iter().find(|container| container["id"] == plan.name);
            let (was, was_restored) = at_restore.map_or(("missing", false), |container| {
                (container["status"].as_str().unwrap_or("?"), container["restored"] == true)
            });
            let expected_was = if matches!(plan.ends, Ends::Before | Ends::Meanwhile) {
                "stopped"
            } else {
                "running"
            };
            let expected = plan.status.to_string();
            let right = status == expected
                && output == expected_output
                && was == expected_was
                && was_restored;
            wrong += usize::from(!right);
            table.add_row([
                plan.name,
                match plan.ends {
                    Ends::Before => "before",
                    Ends::Meanwhile => "while the daemon was dead",
                    Ends::After => "after",
                    Ends::Never => "killed at the end",
                },
                was,
                &status,
                &expected,
                if output == expected_output { "complete" } else { "WRONG" },
                if right { "ok" } else { "WRONG" },
            ]);
        }
        println!("{table}");
        Ok(wrong)
    }

    fn start_daemon(&mut self) -> anyhow::Result<()> {
        let log = self.scratch.path().join("daemon.log");
        let mut daemon = Command::new(&self.holdfast)
            .arg("--root")
            .arg(self.root())
            .arg("daemon")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", self.holdfast.display()))?;
        // The daemon says on its standard error when it listens; the rest of that goes to a file.
        let mut lines = BufReader::new(daemon.stderr.take().context("no standard error")?);
        self.daemon = Some(daemon);
        let mut said = String::new();
        while !said.contains("listening") {
            let before = said.len();
            if lines.read_line(&mut said)? == 0 {
                bail!("the daemon did not start:\n{}", &said[..before]);
            }
        }
        let mut file = File::options().create(true).append(true).open(log)?;
        std::thread::spawn(move || std::io::copy(&mut lines, &mut file));
        Ok(())
    }

    /// Starts a container, waits until it has printed, and returns its pid.
    fn start_container(&self, plan: &Plan) -> anyhow::Result<u32> {
        let script = format!(
            "trap 'echo {0} ends; exit {1}' USR1; echo {0} begins; sleep 1000 & wait",
            plan.name, plan.status
        );
        let options = ["--name", plan.name, "--runtime", self.runtime, "--rootfs", "host"];
        self.holdfast(
            &[&["run", "--detach"], &options[..], &["--", "sh", "-c", &script]].concat(),
        )?;
        let mut logs =
            self.command(&["logs", "--follow", plan.name]).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::new(logs.stdout.take().context("no output")?).read_line(&mut first)?;
        logs.kill()?;
        logs.wait()?;
        ensure!(first == format!("{} begins\n", plan.name), "{} printed {first:?}", plan.name);
        let info: Value = serde_json::from_str(&self.holdfast(&["inspect", "--json", plan.name])?)?;
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.with_context(|| format!("{} has no pid", plan.name))
    }

    /// Has containers end, going past the daemon: by a signal to their processes. Returns once
    /// their shims have put their statuses on disk and gone, which the exit FIFO tells.
    fn end_containers(&self, when: Ends, pids: &[u32]) -> anyhow::Result<usize> {
        let chosen: Vec<_> = PLANS.iter().zip(pids).filter(|(plan, _)| plan.ends == when).collect();
        for (plan, pid) in &chosen {
            let fifo = self.root().join(plan.name).join("init/exit");
            // Opened while the shim holds the other end, so this does not wait.
            let mut exit = File::open(&fifo).with_context(|| fifo.display().to_string())?;
            send(plan.signal, **pid)?;
            std::io::copy(&mut exit, &mut std::io::sink())?;
        }
        Ok(chosen.len())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.holdfast);
        command.arg("--root").arg(self.root()).args(args);
        command
    }

    /// Deletes all containers, ends the daemon, and checks that nothing is left.
    fn end(mut self) -> anyhow::Result<()> {
        for plan in &PLANS {
            // One that was never made is no failure of the cleaning up.
            let _ = self.holdfast(&["delete", "--force", plan.name]);
        }
        if let Some(mut daemon) = self.daemon.take() {
            send(Signal::SIGTERM, daemon.id())?;
            let status = daemon.wait()?;
            ensure!(status.success(), "the daemon ended with {status} after SIGTERM");
        }
        self.scratch.close()?;
        println!("cleaned up");
        Ok(())
    }

    fn holdfast(&self, args: &[&str]) -> anyhow::Result<String> {
        let output = self.command(args).output()?;
        if !output.status.success() {
            bail!(
                "holdfast {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("state")
    }
}

/// Sends a signal to a child of ours, or to a process of a container that has a shim: both keep
/// their pid until they are reaped. kill(1) is no part of a minimal Debian.
fn send(signal: Signal, pid: u32) -> anyhow::Result<()> {
    let attempt = || format!("{signal} for process {pid}");
    let pid = Pid::from_raw(i32::try_from(pid).with_context(attempt)?);
    kill(pid, signal).with_context(attempt)
}
