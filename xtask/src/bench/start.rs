//! From the command to the exit code of a container that runs `true`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::peers::{self, Conmon, Containerd, Daemon};
use super::{Column, Programs, Samples, Scratch, build, plots, runtimes, save};
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
    /// Through a running daemon, which is this one of the bench's, by this runtime.
    Holdfast(usize, &'static str),
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let columns = measure(options, &[build()?])?;
    let runc = columns[0].samples.median();
    println!("{:<28} {:>9} {:>9} {:>9} {:>9}", "ms", "median", "p99", "min", "× runc");
    let mut all = Vec::new();
    for Column { way, samples } in &columns {
        let median = samples.median();
        println!(
            "{way:<28} {median:>9.1} {:>9.1} {:>9.1} {:>9.2}",
            samples.quantile(0.99),
            samples.quantile(0.0),
            median / runc
        );
        all.push(json!({ "way": way, "ms": samples.to_json(), "timesRunc": median / runc }));
    }
    let command = format!("cargo xtask bench start --rounds {}", options.rounds);
    save("start.json", &command, &json!(all))?;
    plots::start()
}

/// How long each took, in milliseconds. The peers take part where there is one set of programs; of
/// two, those of each runtime are side by side.
pub(super) fn measure(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Column>> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let mut bench = Bench {
        bundle: peers::bundle(&scratch.0, &data, &["true"])?,
        daemons: Daemon::start_all(programs, &scratch.0)?,
        containerd: None,
        scratch: &scratch.0,
    };
    let mut ways = Vec::new();
    for runtime in runtimes(programs) {
        ways.extend((0..programs.len()).map(|daemon| Way::Holdfast(daemon, runtime)));
    }
    if programs.len() == 1 {
        ways.insert(0, Way::Runc);
        ways.push(Way::Conmon);
        if Containerd::is_installed() {
            bench.containerd = Some(Containerd::start(&scratch.0)?);
            ways.push(Way::Ctr);
        } else {
            println!("not measured: ctr (containerd is not installed)");
        }
        if bench.podman_runs_here() {
            ways.push(Way::Podman);
        } else {
            println!("not measured: podman (not installed, or does not run here)");
        }
    }
    let mut columns: Vec<Column> = ways
        .iter()
        .map(|way| Column { way: bench.name(*way), samples: Samples::default() })
        .collect();
    for round in 0..=options.rounds {
        for (way, column) in ways.iter().zip(&mut columns) {
            let seconds = bench.turn(*way, round)?;
            // The first round warms up.
            if round > 0 {
                column.samples.0.push(seconds * 1000.0);
            }
        }
    }
    Ok(columns)
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

struct Bench<'a> {
    daemons: Vec<Daemon>,
    containerd: Option<Containerd>,
    scratch: &'a Path,
    bundle: PathBuf,
}

impl Bench<'_> {
    fn name(&self, way: Way) -> String {
        match way {
            Way::Runc => "runc run".to_owned(),
            Way::Conmon => "conmon and runc".to_owned(),
            Way::Ctr => "ctr run".to_owned(),
            Way::Podman => "podman run".to_owned(),
            Way::Holdfast(daemon, runtime) => {
                format!("{} run, {runtime}", self.daemons[daemon].programs.name)
            }
        }
    }

    fn podman(&self) -> Command {
        let mut command = podman_command(self.scratch, &["run", "--rm"]);
        command.args(PODMAN_RUN).arg("--rootfs").arg(self.bundle.join("rootfs")).arg("true");
        command
    }

    fn podman_runs_here(&self) -> bool {
        setup::is_installed("podman")
            && self.podman().output().is_ok_and(|output| output.status.success())
    }

    /// One container; how long it took, in seconds.
    fn turn(&self, way: Way, round: usize) -> anyhow::Result<f64> {
        let id = format!("start{round}");
        let began = Instant::now();
        match way {
            Way::Runc => {
                let mut command = Command::new("runc");
                command.arg("--root").arg(self.scratch.join("runc"));
                command.args(["run", "--bundle"]).arg(&self.bundle).arg(&id);
                succeeds(command)?;
            }
            Way::Holdfast(daemon, runtime) => {
                let daemon = &self.daemons[daemon];
                let runtime = daemon.programs.runtime(runtime);
                let bundle = self.bundle.display().to_string();
                let args = ["run", "--rm", "--runtime", &runtime, "--bundle", &bundle];
                succeeds(daemon.command(&args))?;
            }
            Way::Conmon => {
                let log = format!("k8s-file:{}", self.scratch.join("log").display());
                let conmon = Conmon::start(self.scratch, &self.bundle, &id, &log)?;
                let exit = conmon.exit_file();
                peers::until("an exit file", || exit.exists())?;
                let seconds = began.elapsed().as_secs_f64();
                conmon.end()?;
                return Ok(seconds);
            }
            Way::Ctr => {
                let containerd = self.containerd.as_ref().context("no containerd")?;
                let mut command = containerd.run(&self.bundle, &["--rm"]);
                command.arg(&id);
                succeeds(command)?;
            }
            Way::Podman => succeeds(self.podman())?,
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

fn succeeds(mut command: Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
