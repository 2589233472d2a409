//! Pods: three containers that share one group of shims, as Kubernetes makes them. One of them is the
//! pod's own, which only waits.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::{Bench, Pair, Row, SHIMS, Shim, TIME_GOAL};
use crate::bench::memory::{Memory, both};
use crate::bench::peers::{self, Containerd};
use crate::bench::{Samples, turns};
use crate::setup;

/// What runs in a container that does nothing.
pub(super) const SLEEP: [&str; 2] = ["sleep", "1000000"];

/// The containers of a pod, the pod's own among them.
const CONTAINERS: usize = 3;

/// The annotation that has containers share a shim.
const GROUP: &str = "io.containerd.runc.v2.group";

/// How long all is left in peace before memory is measured.
const REST: Duration = Duration::from_secs(5);

/// How many ids are deleted with one command.
const DELETED: usize = 50;

/// What was measured of so many pods.
pub(super) struct Pods {
    count: usize,
    /// The memory of a pod's share of all processes, in KiB.
    memory: Pair,
    /// The same of each kind of process of Holdfast's, as in [`KINDS`].
    parts: [Samples; KINDS.len()],
    /// From containerd's start to the whole list, in seconds.
    restart: Pair,
}

/// Holdfast's programs, and what they are here.
const KINDS: [(&str, &str); 3] = [
    ("holdfast-containerd", "supervisor"),
    ("containerd-shim-holdfast-v2", "fronts"),
    ("holdfast-shim", "containerShims"),
];

impl Pods {
    pub(super) fn new(count: usize) -> Self {
        let (memory, restart) = (Pair::default(), Pair::default());
        Self { count, memory, parts: Default::default(), restart }
    }

    /// Measures in turns, each with all pods of one shim and none of the other.
    pub(super) fn measure(
        &mut self,
        bench: &mut Bench<'_>,
        rounds: usize,
        restarts: usize,
    ) -> anyhow::Result<()> {
        for round in 0..rounds {
            for place in turns(round, SHIMS.len()) {
                println!("{} pods, round {}: {}", self.count, round + 1, SHIMS[place].runtime());
                let mut ids = Vec::new();
                let measured = self.turn(bench, place, restarts, &mut ids);
                // All, also after a failure: else they would run on.
                both(measured, delete(&bench.containerd, &ids))?;
                let id = ids.last().map(String::as_str).unwrap_or_default();
                peers::until("the pods to be gone", || bench.is_gone(id))?;
            }
        }
        Ok(())
    }

    fn turn(
        &mut self,
        bench: &mut Bench<'_>,
        place: usize,
        restarts: usize,
        ids: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let shim = SHIMS[place];
        for _ in 0..self.count {
            let pod = bench.id("pod");
            let config = bundle(bench.scratch, &pod, Some(&pod), &SLEEP)?;
            for number in 0..CONTAINERS {
                let id = if number == 0 { pod.clone() } else { format!("{pod}-{number}") };
                let mut run = bench.containerd.run_by(shim.runtime(), &config, &["--detach"]);
                ids.push(id.clone());
                setup::output(run.arg(id))?;
            }
            fs::remove_file(config)?;
        }
        std::thread::sleep(REST);
        self.weigh(&bench.containerd, place)?;
        for _ in 0..restarts {
            self.restart[place].0.push(bench.restart(ids.len())?);
        }
        Ok(())
    }

    fn weigh(&mut self, containerd: &Containerd, place: usize) -> anyhow::Result<()> {
        let mut total = 0.0;
        match SHIMS[place] {
            Shim::Runc => {
                let shims = of_program(containerd, "containerd-shim-runc-v2");
                ensure!(shims.len() == self.count, "{} shims: {}", self.count, shims.len());
                total += pss(&shims)?;
            }
            Shim::Holdfast => {
                for ((program, kind), samples) in KINDS.iter().zip(&mut self.parts) {
                    let processes = of_program(containerd, program);
                    let expected = if *kind == "supervisor" { 1 } else { self.count };
                    ensure!(processes.len() >= expected, "{kind}: {}", processes.len());
                    let kib = pss(&processes)?;
                    samples.0.push(share(kib, self.count));
                    total += kib;
                }
            }
        }
        self.memory[place].0.push(share(total, self.count));
        Ok(())
    }

    /// What Holdfast's memory consists of.
    pub(super) fn parts(&self) -> Value {
        let parts = KINDS.iter().zip(&self.parts);
        let parts = parts.map(|((_, kind), samples)| ((*kind).to_owned(), json!(samples.median())));
        let parts: serde_json::Map<_, _> = parts.collect();
        json!({ "pods": self.count, "holdfast.v2": parts })
    }

    pub(super) fn into_rows(self) -> Vec<Row> {
        let goal = if self.count >= 100 { 1.0 / 12.0 } else { 1.0 / 3.0 };
        let what = format!("memory per pod, {} pods", self.count);
        let mut rows = vec![Row { what, unit: "KiB", goal, pair: self.memory }];
        if !self.restart[0].0.is_empty() {
            let what = format!("list after a restart, {} pods", self.count);
            rows.push(Row { what, unit: "s", goal: TIME_GOAL, pair: self.restart });
        }
        rows
    }
}

/// Writes the configuration of a container, and its root file system if that is missing. Returns the
/// path of the configuration.
pub(super) fn bundle(
    scratch: &Path,
    name: &str,
    group: Option<&str>,
    args: &[&str],
) -> anyhow::Result<PathBuf> {
    let bundle = scratch.join("bundle");
    if !bundle.exists() {
        peers::bundle(scratch, scratch, &[])?;
    }
    let mut config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    config["process"]["args"] = json!(args);
    if let Some(group) = group {
        config["annotations"] = json!({ GROUP: group });
    }
    let path = scratch.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(path)
}

/// Kills containers and removes them.
pub(super) fn delete(containerd: &Containerd, ids: &[String]) -> anyhow::Result<()> {
    let mut deleted = Ok(());
    for some in ids.chunks(DELETED) {
        for command in [&["task", "delete", "--force"][..], &["container", "delete"]] {
            let output = setup::output(containerd.ctr(command).args(some));
            deleted = deleted.and(output.map(drop));
        }
    }
    deleted
}

/// The processes of a program that belong to this containerd: those that name its directory, and those
/// that a supervisor has ready, which name nothing.
fn of_program(containerd: &Containerd, program: &str) -> Vec<u32> {
    let mut found = containerd.processes();
    let ready = found.iter().flat_map(|pid| children(*pid)).collect::<Vec<_>>();
    found.extend(ready);
    found.sort_unstable();
    found.dedup();
    found.retain(|pid| peers::is_program(*pid, program));
    found
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

fn pss(pids: &[u32]) -> anyhow::Result<f64> {
    pids.iter().map(|pid| Ok(Memory::of(*pid)?.pss)).sum()
}

#[allow(clippy::cast_precision_loss)]
fn share(all: f64, count: usize) -> f64 {
    all / count as f64
}
