//! Pods under containerd, by the shim that it comes with and by Holdfast's, in turns: how much memory
//! they take, and how long containerd's clients wait.

mod pods;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use self::pods::Pods;
use super::memory::both;
use super::peers::{self, Containerd};
use super::{Samples, Scratch, build, list, save, turns};
use crate::setup::{self, BUSYBOX, CONTAINERD, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many pods there are when their memory is measured, one figure after the other. With the
    /// last of them the list after a restart of containerd is timed
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [10, 100])]
    pods: Vec<usize>,
    /// How often each takes its turn with pods
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// How often containerd is restarted in each turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: usize,
    /// How often each runs a container of `true`
    #[arg(long, value_name = "N", default_value_t = 40)]
    runs: usize,
    /// How often each takes its turn with a hundred execs
    #[arg(long, value_name = "N", default_value_t = 7)]
    execs: usize,
}

/// Which shim containerd calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shim {
    Runc,
    Holdfast,
}

/// Those who take turns; the peer first.
const SHIMS: [Shim; 2] = [Shim::Runc, Shim::Holdfast];

/// How many execs are one sample.
const EXECS: usize = 100;

/// The most that Holdfast may take of what runc.v2 takes: time of any kind.
const TIME_GOAL: f64 = 0.9;

/// The pause between two turns, as in `bench start`: much of what the kernel does after a container's
/// end goes on unseen.
const PAUSE: Duration = Duration::from_millis(100);

impl Shim {
    fn runtime(self) -> &'static str {
        match self {
            Self::Runc => "io.containerd.runc.v2",
            Self::Holdfast => "io.containerd.holdfast.v2",
        }
    }
}

/// Samples of one quantity, for each of [`SHIMS`].
type Pair = [Samples; 2];

/// One quantity of which Holdfast is to take less than its peer.
struct Row {
    what: String,
    unit: &'static str,
    goal: f64,
    pair: Pair,
}

impl Row {
    /// Holdfast's median for each of runc.v2's.
    fn ratio(&self) -> f64 {
        let [runc, holdfast] = self.pair.each_ref().map(Samples::median);
        holdfast / runc
    }

    fn to_json(&self) -> Value {
        let [runc, holdfast] = self.pair.each_ref().map(Samples::to_json);
        json!({
            "what": self.what,
            "unit": self.unit,
            "runc.v2": runc,
            "holdfast.v2": holdfast,
            "ratio": self.ratio(),
            "goal": self.goal,
        })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, CONTAINERD])?;
    let programs = build()?;
    let scratch = Scratch::new()?;
    let mut bench = Bench {
        containerd: Containerd::with_programs(&scratch.0, Some(&programs.dir))?,
        scratch: &scratch.0,
        turn: 0,
    };
    let time = |what: &str, unit, pair| Row { what: what.to_owned(), unit, goal: TIME_GOAL, pair };
    let mut rows = vec![
        time("ctr run --rm true", "ms", bench.runs(options.runs)?),
        time(&format!("{EXECS} execs of true"), "s", bench.execs(options.execs)?),
    ];
    let mut parts = Vec::new();
    for count in &options.pods {
        let restarts = if Some(count) == options.pods.last() { options.restarts } else { 0 };
        let mut pods = Pods::new(*count);
        pods.measure(&mut bench, options.rounds, restarts)?;
        parts.push(pods.parts());
        rows.extend(pods.into_rows());
    }
    print(&rows, &parts);
    let command = format!(
        "cargo xtask bench containerd --pods {} --rounds {} --restarts {} --runs {} --execs {}",
        list(&options.pods),
        options.rounds,
        options.restarts,
        options.runs,
        options.execs
    );
    let rows: Vec<Value> = rows.iter().map(Row::to_json).collect();
    save("containerd.json", &command, &json!({ "compared": rows, "partsKiBPerPod": parts }))
}

fn print(rows: &[Row], parts: &[Value]) {
    println!(
        "{:<40} {:>10} {:>12} {:>7} {:>7}",
        "median", "runc.v2", "holdfast.v2", "ratio", "goal"
    );
    for row in rows {
        let [runc, holdfast] = row.pair.each_ref().map(Samples::median);
        let what = format!("{}, {}", row.what, row.unit);
        println!("{what:<40} {runc:>10.1} {holdfast:>12.1} {:>7.3} {:>7.3}", row.ratio(), row.goal);
    }
    for part in parts {
        println!("KiB per pod: {part}");
    }
}

struct Bench<'a> {
    containerd: Containerd,
    scratch: &'a Path,
    turn: usize,
}

impl Bench<'_> {
    /// An id that is unique on this machine, because it is also the name of a cgroup.
    fn id(&mut self, what: &str) -> String {
        self.turn += 1;
        format!("{what}{}-{}", std::process::id(), self.turn)
    }

    /// `ctr run --rm` of `true`, in milliseconds.
    fn runs(&mut self, rounds: usize) -> anyhow::Result<Pair> {
        println!("ctr run --rm");
        let config = pods::bundle(self.scratch, "run", None, &["true"])?;
        let mut pair = Pair::default();
        for round in 0..=rounds {
            for place in turns(round, SHIMS.len()) {
                let id = self.id("run");
                let runtime = SHIMS[place].runtime();
                let mut command = self.containerd.run_by(runtime, &config, &["--rm"]);
                let began = Instant::now();
                setup::output(command.arg(&id))?;
                let took = began.elapsed();
                peers::until("the container to be gone", || self.is_gone(&id))?;
                std::thread::sleep(PAUSE);
                // The first round warms up.
                if round > 0 {
                    pair[place].0.push(took.as_secs_f64() * 1000.0);
                }
            }
        }
        Ok(pair)
    }

    /// Returns whether nothing is left of a container: no shim, no state, no cgroup.
    fn is_gone(&self, id: &str) -> bool {
        self.containerd.states().iter().all(|dir| peers::is_empty(dir))
            && self
                .containerd
                .processes()
                .iter()
                .all(|pid| peers::is_program(*pid, "holdfast-containerd"))
            && peers::cgroups(|name| name == id).is_empty()
    }

    /// Execs of `true` in one container, one after the other, in seconds.
    fn execs(&mut self, rounds: usize) -> anyhow::Result<Pair> {
        println!("{EXECS} execs");
        let config = pods::bundle(self.scratch, "exec", None, &pods::SLEEP)?;
        let ids = SHIMS.map(|_| self.id("exec"));
        let measured = self.execs_in(&config, &ids, rounds);
        both(measured, pods::delete(&self.containerd, &ids))
    }

    fn execs_in(&mut self, config: &Path, ids: &[String], rounds: usize) -> anyhow::Result<Pair> {
        for (shim, id) in SHIMS.iter().zip(ids) {
            let mut run = self.containerd.run_by(shim.runtime(), config, &["--detach"]);
            setup::output(run.arg(id))?;
        }
        let mut pair = Pair::default();
        for round in 0..=rounds {
            for place in turns(round, SHIMS.len()) {
                let began = Instant::now();
                for number in 0..EXECS {
                    let exec = format!("exec{number}");
                    let args = ["task", "exec", "--exec-id", &exec, &ids[place], "true"];
                    setup::output(&mut self.containerd.ctr(&args))?;
                }
                let took = began.elapsed();
                std::thread::sleep(PAUSE);
                if round > 0 {
                    pair[place].0.push(took.as_secs_f64());
                }
            }
        }
        Ok(pair)
    }

    /// How long containerd takes from its start until it lists so many running tasks, in seconds.
    fn restart(&mut self, tasks: usize) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.containerd.restart()?;
        let mut listed = 0;
        while listed < tasks {
            ensure!(began.elapsed() < Duration::from_secs(120), "{listed} of {tasks} tasks listed");
            // It fails until containerd listens.
            let output = self.containerd.ctr(&["task", "list"]).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            listed = text.lines().filter(|line| line.ends_with("RUNNING")).count();
        }
        Ok(began.elapsed().as_secs_f64())
    }
}
