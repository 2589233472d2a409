//! From the command to the exit code of a container that runs `true`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use super::hosts::{Host, Stage};
use super::peers::{self, Conmon};
use super::{Column, Programs, Samples, Scratch, build, plots, save, turns};
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
    Host(Host),
    Conmon,
    Podman,
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

/// How long each took, in milliseconds.
pub(super) fn measure(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Column>> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let scratch = Scratch::new()?;
    let (stage, hosts) = Stage::new(&scratch.0, programs)?;
    let mut bench = Bench { stage, turn: 0 };
    let mut ways: Vec<Way> = hosts.into_iter().map(Way::Host).collect();
    if programs.len() == 1 {
        ways.push(Way::Conmon);
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
        for place in turns(round, ways.len()) {
            let seconds = bench.turn(ways[place])?;
            // The first round warms up.
            if round > 0 {
                columns[place].samples.0.push(seconds * 1000.0);
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
    stage: Stage<'a>,
    turn: usize,
}

impl Bench<'_> {
    fn name(&self, way: Way) -> String {
        match way {
            Way::Host(host) => self.stage.name(host),
            Way::Conmon => "conmon and runc".to_owned(),
            Way::Podman => "podman run".to_owned(),
        }
    }

    fn podman(&self) -> Command {
        let mut command = podman_command(self.stage.scratch, &["run", "--rm"]);
        command.args(PODMAN_RUN).arg("--rootfs").arg(self.stage.bundle.join("rootfs")).arg("true");
        command
    }

    fn podman_runs_here(&self) -> bool {
        setup::is_installed("podman")
            && self.podman().output().is_ok_and(|output| output.status.success())
    }

    /// One container; how long it took, in seconds.
    fn turn(&mut self, way: Way) -> anyhow::Result<f64> {
        self.turn += 1;
        // Its own each time: who takes one that is just being deleted waits for that.
        let id = format!("start{}", self.turn);
        let began = Instant::now();
        match way {
            Way::Host(host) => succeeds(self.stage.command(host)?.arg(&id))?,
            Way::Conmon => {
                let Stage { scratch, bundle, .. } = &self.stage;
                let log = format!("k8s-file:{}", scratch.join("log").display());
                let conmon = Conmon::start(scratch, bundle, &id, &log)?;
                let exit = conmon.exit_file();
                peers::until("an exit file", || exit.exists())?;
                let seconds = began.elapsed().as_secs_f64();
                conmon.end()?;
                return Ok(seconds);
            }
            Way::Podman => succeeds(&mut self.podman())?,
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

fn succeeds(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
