//! Short containers without end: what the daemon and the machine hold after each part of them. Nothing may
//! grow with their number, but for what has a bound of its own.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::memory::Memory;
use super::peers::{self, Daemon};
use super::{Scratch, build, save};
use crate::setup::{self, BUSYBOX, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many containers come and go
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    containers: usize,
    /// After how many of them it is looked what is held
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    every: usize,
    /// How many are under way at a time
    #[arg(long, value_name = "N", default_value_t = 4)]
    workers: usize,
    /// The OCI runtime
    #[arg(long, value_name = "NAME", default_value = "holdfast-oci")]
    runtime: String,
}

/// What is held while there is no container.
#[derive(Debug, Clone, Copy)]
struct Held {
    pss_kib: f64,
    files: usize,
    threads: usize,
    /// Processes that name the state root in their command line, the daemon among them.
    processes: usize,
    /// Of all hierarchies.
    cgroups: usize,
    mounts: usize,
    /// Below the state root.
    inodes: usize,
    disk_kib: u64,
}

impl Held {
    fn by(daemon: &Daemon) -> anyhow::Result<Self> {
        let proc = Path::new("/proc").join(daemon.pid().to_string());
        let (mut inodes, mut blocks) = (0, 0);
        let mut below = vec![daemon.root.clone()];
        while let Some(dir) = below.pop() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                inodes += 1;
                blocks += metadata.blocks();
                if metadata.is_dir() {
                    below.push(entry.path());
                }
            }
        }
        Ok(Self {
            pss_kib: Memory::of(daemon.pid())?.pss,
            files: fs::read_dir(proc.join("fd"))?.count(),
            threads: fs::read_dir(proc.join("task"))?.count(),
            processes: peers::processes(&daemon.root).len(),
            cgroups: peers::cgroups(|_| true).len(),
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            inodes,
            disk_kib: blocks / 2,
        })
    }

    fn json(self, containers: usize) -> Value {
        json!({
            "containers": containers,
            "pssKiB": self.pss_kib,
            "files": self.files,
            "threads": self.threads,
            "processes": self.processes,
            "cgroups": self.cgroups,
            "mounts": self.mounts,
            "inodes": self.inodes,
            "diskKiB": self.disk_kib,
        })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { containers, every, workers, runtime } = options;
    ensure!(*every > 0, "--every takes at least 1");
    setup::ensure(&[RUNC, BUSYBOX])?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let bundle = peers::bundle(&scratch.0, &data, &["true"])?;
    let daemon = Daemon::start(&build()?, &scratch.0.join("root"))?;
    // What the daemon needs for any container is there afterwards.
    some(&daemon, &bundle, runtime, *workers, 0..200)?;
    let mut held = vec![(0, Held::by(&daemon)?)];
    let began = Instant::now();
    println!(
        "{:>10} {:>9} {:>6} {:>8} {:>9} {:>8} {:>7} {:>9}",
        "containers", "PSS KiB", "files", "threads", "processes", "cgroups", "inodes", "disk KiB"
    );
    for first in (0..*containers).step_by(*every) {
        let next = (first + every).min(*containers);
        some(&daemon, &bundle, runtime, *workers, first + 200..next + 200)?;
        let now = Held::by(&daemon)?;
        println!(
            "{next:>10} {:>9.0} {:>6} {:>8} {:>9} {:>8} {:>7} {:>9}",
            now.pss_kib,
            now.files,
            now.threads,
            now.processes,
            now.cgroups,
            now.inodes,
            now.disk_kib
        );
        held.push((next, now));
    }
    let found = json!({
        "seconds": began.elapsed().as_secs_f64(),
        "held": held.iter().map(|(containers, held)| held.json(*containers)).collect::<Vec<_>>(),
    });
    let command = format!(
        "cargo xtask bench soak --containers {containers} --every {every} --workers {workers} --runtime {runtime}"
    );
    save("soak.json", &command, &found)
}

/// Runs containers of these numbers, and waits until nothing of them is left.
fn some(
    daemon: &Daemon,
    bundle: &Path,
    runtime: &str,
    workers: usize,
    numbers: std::ops::Range<usize>,
) -> anyhow::Result<()> {
    let list = daemon.root.with_extension("ids");
    let ids: Vec<String> = numbers.map(|number| format!("soak-{number}")).collect();
    fs::write(&list, ids.join("\n"))?;
    let bundle = bundle.display().to_string();
    let runtime = daemon.programs.runtime(runtime);
    let one =
        daemon.command(&["run", "--rm", "--runtime", &runtime, "--bundle", &bundle, "--name"]);
    let mut command = Command::new("xargs");
    command.args(["-n", "1", "-P", &workers.to_string()]);
    command.arg(one.get_program()).args(one.get_args());
    command.stdin(File::open(&list)?).stdout(Stdio::null());
    let status = command.status().context("xargs cannot be started")?;
    ensure!(status.success(), "xargs ended with {status}");
    // What was answered may still be about to be deleted.
    peers::until("all to be gone", || daemon.states().iter().all(|dir| peers::is_empty(dir)))?;
    let left = daemon.ok(&["ps", "--all", "--json"])?;
    ensure!(left.trim() == "[]", "there are still containers: {left}");
    Ok(())
}
