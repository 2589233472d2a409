//! From the command to the exit code of a container that runs `true`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// The pause between a turn and the next, after nothing of the turn can be seen any more. Some work
/// goes on unseen: the kernel tears down the namespaces and frees the cgroups in the background, and
/// the daemon starts the shim for its next container. Much of that waits for grace periods of the
/// kernel, of 8 to 16 ms each (docs/performance.md); this is time for several in a row.
///
/// The pause has a price, which is the same for all: the move of a process into a cgroup also waits
/// for a grace period, which comes sooner when containers are started without a pause. So each start
/// takes some milliseconds more than in a tight loop.
const PAUSE: Duration = Duration::from_millis(100);

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
    let mut bench = Bench { stage, turn: 0, cgroups: peers::cgroups(is_podmans) };
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
    /// Cgroups of podman's that have nothing to do with the measurement.
    cgroups: BTreeSet<PathBuf>,
}

/// Returns whether this is the name of a cgroup that podman makes. It has an id that podman chooses.
fn is_podmans(name: &str) -> bool {
    name.starts_with("libpod-")
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

    /// Runs one container, and returns how long it took, in seconds. Returns after the container is
    /// gone and after [`PAUSE`], so that its deletion is in nobody's turn.
    fn turn(&mut self, way: Way) -> anyhow::Result<f64> {
        self.turn += 1;
        // Unique on this machine, because it is also the name of a cgroup.
        let id = format!("start{}-{}", std::process::id(), self.turn);
        let seconds = self.run(way, &id)?;
        peers::until("the container to be gone", || self.is_gone(way, &id))?;
        std::thread::sleep(PAUSE);
        Ok(seconds)
    }

    fn run(&self, way: Way, id: &str) -> anyhow::Result<f64> {
        let began = Instant::now();
        match way {
            Way::Host(host) => succeeds(self.stage.command(host)?.arg(id))?,
            Way::Conmon => {
                let Stage { scratch, bundle, .. } = &self.stage;
                let log = format!("k8s-file:{}", scratch.join("log").display());
                let conmon = Conmon::start(scratch, bundle, id, &log)?;
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

    /// Returns whether nothing is left of a container: no process, no state, no cgroup.
    fn is_gone(&self, way: Way, id: &str) -> bool {
        let states = match way {
            Way::Host(host) => self.stage.states(host),
            // These two have removed their state when they return.
            Way::Conmon | Way::Podman => Vec::new(),
        };
        states.iter().all(|dir| peers::is_empty(dir))
            && self.stage.has_no_process()
            && peers::cgroups(|name| name == id || is_podmans(name)).is_subset(&self.cgroups)
    }
}

fn succeeds(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
