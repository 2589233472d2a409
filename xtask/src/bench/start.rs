//! From the command to the exit code of a container that runs `true`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::peers::{self, Conmon, Containerd, Daemon};
use super::{Samples, Scratch, build, plots, save};
use crate::setup::{self, BUSYBOX, CONMON, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each takes its turn
    #[arg(long, value_name = "N", default_value_t = 40)]
    rounds: usize,
}

/// Who starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Runc,
    Conmon,
    Ctr,
    Podman,
    /// Through a running daemon, by this runtime.
    Holdfast(&'static str),
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Runc => "runc run".to_owned(),
            Self::Conmon => "conmon and runc".to_owned(),
            Self::Ctr => "ctr run".to_owned(),
            Self::Podman => "podman run".to_owned(),
            Self::Holdfast(runtime) => format!("holdfast run, {runtime}"),
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let programs = build()?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let bundle = peers::bundle(&scratch.0, &data, &["true"])?;
    let daemon = Daemon::start(&programs, &scratch.0.join("root"))?;
    let containerd =
        Containerd::is_installed().then(|| Containerd::start(&scratch.0)).transpose()?;
    let mut ways = vec![
        Way::Runc,
        Way::Holdfast("runc"),
        Way::Holdfast("holdfast-oci"),
        Way::Holdfast("fake-runtime"),
        Way::Conmon,
    ];
    if containerd.is_some() {
        ways.push(Way::Ctr);
    } else {
        println!("not measured: ctr (containerd is not installed)");
    }
    if podman_runs_here(&scratch.0, &bundle) {
        ways.push(Way::Podman);
    } else {
        println!("not measured: podman (not installed, or does not run here)");
    }
    let mut found: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
    for round in 0..=options.rounds {
        for (way, found) in ways.iter().zip(&mut found) {
            let seconds =
                turn(*way, &daemon, containerd.as_ref(), &programs, &scratch.0, &bundle, round)?;
            if round > 0 {
                found.0.push(seconds * 1000.0);
            }
        }
    }
    let runc = found[0].median();
    println!("{:<28} {:>9} {:>9} {:>9} {:>9}", "ms", "median", "p99", "min", "× runc");
    let mut all = Vec::new();
    for (way, found) in ways.iter().zip(&found) {
        let median = found.median();
        println!(
            "{:<28} {median:>9.1} {:>9.1} {:>9.1} {:>9.2}",
            way.name(),
            found.quantile(0.99),
            found.quantile(0.0),
            median / runc
        );
        all.push(json!({ "way": way.name(), "ms": found.to_json(), "timesRunc": median / runc }));
    }
    let command = format!("cargo xtask bench start --rounds {}", options.rounds);
    save("start.json", &command, &json!(all))?;
    plots::start()
}

const PODMAN_RUN: [&str; 8] = [
    "--network",
    "host",
    "--log-driver",
    "k8s-file",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=4096:4096",
];

/// podman with state of its own.
pub(super) fn podman_command(scratch: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    command.arg("--root").arg(scratch.join("podman")).arg("--runroot");
    command.arg(scratch.join("podman-run"));
    command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc"]);
    command.args(args);
    command
}

/// A container of podman's in the background, with this directory at `/data`. `None` without podman.
pub(super) fn podman(scratch: &Path, rootfs: &Path, data: &Path, args: &[&str]) -> Option<Command> {
    peers::which("podman").ok()?;
    let mut command = podman_command(scratch, &["run", "-d"]);
    command.args(PODMAN_RUN).arg("-v").arg(format!("{}:/data", data.display()));
    command.arg("--rootfs").arg(rootfs).args(args);
    Some(command)
}

fn podman_run(scratch: &Path, bundle: &Path) -> Command {
    let mut command = podman_command(scratch, &["run", "--rm"]);
    command.args(PODMAN_RUN).arg("--rootfs").arg(bundle.join("rootfs")).arg("true");
    command
}

fn podman_runs_here(scratch: &Path, bundle: &Path) -> bool {
    setup::is_installed("podman")
        && podman_run(scratch, bundle).output().is_ok_and(|output| output.status.success())
}

/// One container; how long it took, in seconds.
fn turn(
    way: Way,
    daemon: &Daemon,
    containerd: Option<&Containerd>,
    programs: &Path,
    scratch: &Path,
    bundle: &PathBuf,
    round: usize,
) -> anyhow::Result<f64> {
    let id = format!("start{round}");
    let began = Instant::now();
    match way {
        Way::Runc => {
            let root = scratch.join("runc");
            let mut command = Command::new("runc");
            command.arg("--root").arg(root).args(["run", "--bundle"]).arg(bundle).arg(&id);
            succeeds(command)?;
        }
        Way::Holdfast(runtime) => {
            let path = programs.join(runtime);
            let runtime =
                if path.is_file() { path.display().to_string() } else { runtime.to_owned() };
            let bundle = bundle.display().to_string();
            succeeds(daemon.command(&["run", "--rm", "--runtime", &runtime, "--bundle", &bundle]))?;
        }
        Way::Conmon => {
            let log = format!("k8s-file:{}", scratch.join("log").display());
            let conmon = Conmon::start(scratch, bundle, &id, &log)?;
            let exit = conmon.exit_file();
            peers::until("an exit file", || exit.exists())?;
            let seconds = began.elapsed().as_secs_f64();
            conmon.end()?;
            return Ok(seconds);
        }
        Way::Ctr => {
            let mut command = containerd.context("no containerd")?.run(bundle, &["--rm"]);
            command.arg(&id);
            succeeds(command)?;
        }
        Way::Podman => succeeds(podman_run(scratch, bundle))?,
    }
    Ok(began.elapsed().as_secs_f64())
}

fn succeeds(mut command: Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
