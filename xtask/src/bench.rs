//! Measurements beside the peers, in the same run and taking turns. The numbers of a run go into
//! `bench/results` as JSON; ratios are what counts, for the machines are noisy.

mod churn;
mod compare;
mod conmon;
mod containerd;
mod embedding;
mod flood;
mod gigabyte;
mod hosts;
mod latency;
mod library;
mod logs;
mod memory;
mod peers;
mod plot;
mod plots;
mod scale;
mod soak;
mod start;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::setup;

/// What to measure.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How fast output gets into a log: against conmon, and runc writing straight into a file
    Logs(logs::Options),
    /// Whether a gigabyte comes through each log driver while there is no daemon
    Gigabyte(gigabyte::Options),
    /// How long a line is on its way to whoever follows a log: against podman and tail
    Latency(latency::Options),
    /// How long a container takes from its start to its status: against runc, conmon, ctr, podman
    Start(start::Options),
    /// How many short containers come and go in a second: against runc, conmon, ctr
    Churn(churn::Options),
    /// How much memory an idle container takes: against conmon and containerd
    Memory(memory::Options),
    /// Pods under containerd, with its own shim and with Holdfast's: memory, runs, execs, a restart
    Containerd(containerd::Options),
    /// `holdfast-conmon` beside conmon: start, exec, logs, memory, an idle hour
    Conmon(conmon::Options),
    /// This tree beside another revision, in turns
    Compare(compare::Options),
    /// Draw docs/plots from bench/results; each measurement draws its own
    Plots,
    /// What the library adds to a start, and from an exit to the future; with many others idle
    Library(library::Options),
    /// The daemon under malformed, slow, idle, large and vanishing clients
    Flood(flood::Options),
    /// What the library costs a service that embeds it: crates, the time of a build, memory
    Embedding(embedding::Options),
    /// The daemon with thousands of containers: memory, wake-ups, restore, all of them exiting at once
    Scale(scale::Options),
    /// A hundred thousand short containers: whether memory, files, cgroups and disk stay where they were
    Soak(soak::Options),
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    match &options.what {
        What::Logs(options) => logs::run(options),
        What::Gigabyte(options) => gigabyte::run(options),
        What::Latency(options) => latency::run(options),
        What::Start(options) => start::run(options),
        What::Churn(options) => churn::run(options),
        What::Memory(options) => memory::run(options),
        What::Containerd(options) => containerd::run(options),
        What::Conmon(options) => conmon::run(options),
        What::Compare(options) => compare::run(options),
        What::Plots => plots::all(),
        What::Library(options) => library::run(options),
        What::Flood(options) => flood::run(options),
        What::Embedding(options) => embedding::run(options),
        What::Scale(options) => scale::run(options),
        What::Soak(options) => soak::run(options),
    }
}

/// Samples of one quantity.
#[derive(Debug, Clone, Default)]
struct Samples(Vec<f64>);

impl Samples {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The value below which this share of them lies.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn quantile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn to_json(&self) -> Value {
        json!({
            "median": self.median(),
            "p99": self.quantile(0.99),
            "min": self.quantile(0.0),
            "max": self.quantile(1.0),
            "samples": self.0,
        })
    }
}

/// The places of all who take turns, in every second round from the last to the first: who comes next
/// may feel what was before.
fn turns(round: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |place| if round.is_multiple_of(2) { place } else { count - 1 - place })
}

/// Numbers as they stand on a command line.
fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Writes what a run has found, and where it was found.
fn save(name: &str, command: &str, found: &Value) -> anyhow::Result<()> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let cores = std::thread::available_parallelism()?.get();
    let load = fs::read_to_string("/proc/loadavg")?.trim().to_owned();
    let result = json!({ "command": command, "kernel": kernel, "cores": cores, "load": load, "found": found });
    let path = crate::workspace().join("bench/results").join(name);
    fs::write(&path, serde_json::to_string_pretty(&result)? + "\n")?;
    println!("written: {}", path.strip_prefix(crate::workspace()).unwrap_or(&path).display());
    Ok(())
}

/// What takes turns with others, and what was measured each time.
#[derive(Debug)]
struct Column {
    way: String,
    samples: Samples,
}

/// A set of our programs. Where revisions are compared, two of them take turns.
#[derive(Debug, Clone)]
struct Programs {
    /// What its columns are called.
    name: String,
    dir: PathBuf,
}

/// The OCI runtimes with which Holdfast is measured: by name in `PATH`, or beside our programs.
const RUNTIMES: [&str; 3] = ["runc", "holdfast-oci", "fake-runtime"];

impl Programs {
    /// The runtime as the command line takes it: ours by path.
    fn runtime(&self, name: &str) -> String {
        let path = self.dir.join(name);
        if path.is_file() { path.display().to_string() } else { name.to_owned() }
    }

    fn has(&self, runtime: &str) -> bool {
        self.dir.join(runtime).is_file() || setup::is_installed(runtime)
    }
}

/// The runtimes that each set of programs has.
fn runtimes(programs: &[Programs]) -> Vec<&'static str> {
    let everywhere = |name: &&str| programs.iter().all(|programs| programs.has(name));
    RUNTIMES.into_iter().filter(everywhere).collect()
}

/// The directories of this tree's programs and of those of another revision, both built in release.
pub(crate) fn both_builds(revision: &str) -> anyhow::Result<[PathBuf; 2]> {
    Ok([build()?.dir, build_of(revision)?])
}

/// The directory of the programs of another revision, built in release.
pub(crate) fn build_of(revision: &str) -> anyhow::Result<PathBuf> {
    Ok(compare::build_revision(revision)?.dir)
}

/// The programs of this tree, built as they are released.
fn build() -> anyhow::Result<Programs> {
    crate::build_release(&[])?;
    Ok(Programs { name: "holdfast".to_owned(), dir: crate::executables("release") })
}

/// A directory in memory, so that no disk has a say. Removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = Path::new("/dev/shm").join(format!("holdfast-bench-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // podman mounts its own storage onto itself.
        let overlay = self.0.join("podman/overlay");
        if overlay.exists() {
            // Not always: then it says so, which is nobody's concern.
            let _ = Command::new("umount").arg("--lazy").arg(overlay).output();
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}
