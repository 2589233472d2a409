//! Containers that live for a moment, by the hundred: how many a second are made, started, seen to
//! the end and deleted again, with some at a time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::peers::{self, Containerd, Daemon};
use super::{Column, Programs, Samples, Scratch, build, plots, runtimes, save};
use crate::setup::{self, BUSYBOX, CONMON, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many containers there are in one turn
    #[arg(long, value_name = "N", default_value_t = 200)]
    containers: usize,
    /// How many are under way at a time, one figure for each row of turns
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    workers: Vec<usize>,
    /// How often each takes its turn
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
}

/// Who hosts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Runc,
    /// conmon, and runc started and deleted by a script; see [`CONMON_SCRIPT`].
    Conmon,
    Ctr,
    /// This daemon of the bench's, by this runtime.
    Holdfast(usize, &'static str),
}

/// What podman does with conmon, without podman: conmon says on a pipe that runc has made the
/// container, and closes it when the container has ended and its status is written.
const CONMON_SCRIPT: &str = r#"
    dir=$1/$2 root=$1/runc
    _OCI_SYNCPIPE=3 conmon --api-version 1 -c "$2" -u "$2" -n "$2" -r "$RUNC" \
        --runtime-arg "--root=$root" -b "$dir" -p "$dir/pid" -l "k8s-file:$dir/log" \
        --conmon-pidfile "$dir/conmon.pid" --exit-dir "$dir" --socket-dir-path "$dir" \
        3>"$dir/sync" &
    exec 3<"$dir/sync"
    read -r made <&3
    runc --root "$root" start "$2"
    read -r ended <&3 || :
    read -r status <"$dir/$2" || :
    runc --root "$root" delete "$2"
    exit "$status"
"#;

/// What was measured: containers a second, with so many at a time.
#[derive(Debug)]
struct Row {
    way: Way,
    name: String,
    workers: usize,
    rate: Samples,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let rows = measure(options, &[build()?])?;
    println!("{:<44} {:>7} {:>9} {:>9} {:>9}", "containers/s", "median", "min", "max", "× runc");
    let mut all = Vec::new();
    for row in &rows {
        let runc = rows.iter().find(|other| other.way == Way::Runc && other.workers == row.workers);
        let median = row.rate.median();
        let times = median / runc.map_or(f64::NAN, |runc| runc.rate.median());
        println!(
            "{:<44} {median:>7.1} {:>9.1} {:>9.1} {times:>9.2}",
            format!("{}, {} at a time", row.name, row.workers),
            row.rate.quantile(0.0),
            row.rate.quantile(1.0),
        );
        all.push(json!({
            "way": row.name,
            "workers": row.workers,
            "containersASecond": row.rate.to_json(),
            "timesRunc": times,
        }));
    }
    let workers: Vec<String> = options.workers.iter().map(usize::to_string).collect();
    let command = format!(
        "cargo xtask bench churn --containers {} --workers {} --rounds {}",
        options.containers,
        workers.join(","),
        options.rounds
    );
    save("churn.json", &command, &json!(all))?;
    plots::churn()
}

/// The rates by themselves.
pub(super) fn rates(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Column>> {
    let column = |row: Row| Column {
        way: format!("{}, {} at a time", row.name, row.workers),
        samples: row.rate,
    };
    Ok(measure(options, programs)?.into_iter().map(column).collect())
}

/// The peers take part where there is one set of programs; of two, those of each runtime are side by
/// side.
fn measure(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Row>> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let mut bench = Bench {
        bundle: peers::bundle(&scratch.0, &data, &["true"])?,
        daemons: Daemon::start_all(programs, &scratch.0)?,
        containerd: None,
        scratch: &scratch.0,
        turn: 0,
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
    }
    let mut rows = Vec::new();
    for workers in &options.workers {
        let row = |way: &Way| Row {
            way: *way,
            name: bench.name(*way),
            workers: *workers,
            rate: Samples::default(),
        };
        rows.extend(ways.iter().map(row));
    }
    // Some of each, to warm up.
    for way in ways {
        bench.turn(way, 2, 4)?;
    }
    for round in 1..=options.rounds {
        for row in &mut rows {
            let seconds = bench.turn(row.way, row.workers, options.containers)?;
            #[allow(clippy::cast_precision_loss)]
            row.rate.0.push(options.containers as f64 / seconds);
        }
        println!("round {round} of {}", options.rounds);
    }
    Ok(rows)
}

struct Bench<'a> {
    daemons: Vec<Daemon>,
    containerd: Option<Containerd>,
    scratch: &'a Path,
    bundle: PathBuf,
    turn: usize,
}

impl Bench<'_> {
    fn name(&self, way: Way) -> String {
        match way {
            Way::Runc => "runc run".to_owned(),
            Way::Conmon => "conmon and runc".to_owned(),
            Way::Ctr => "ctr run".to_owned(),
            Way::Holdfast(daemon, runtime) => {
                format!("{} run, {runtime}", self.daemons[daemon].programs.name)
            }
        }
    }

    /// So many containers, so many at a time; how long it took until all were gone, in seconds.
    fn turn(&mut self, way: Way, workers: usize, containers: usize) -> anyhow::Result<f64> {
        self.turn += 1;
        let ids: Vec<String> = (0..containers).map(|n| format!("churn{}-{n}", self.turn)).collect();
        let list = self.scratch.join("ids");
        fs::write(&list, ids.join("\n"))?;
        if way == Way::Conmon {
            self.prepare_conmon(&ids)?;
        }
        let one = self.command(way)?;
        let mut command = Command::new("xargs");
        command.args(["-n", "1", "-P", &workers.to_string()]);
        command.arg(one.get_program()).args(one.get_args());
        command.env("RUNC", peers::which("runc")?);
        command.stdin(File::open(&list)?).stdout(Stdio::null());
        let began = Instant::now();
        let status = command.status().context("xargs cannot be started")?;
        ensure!(status.success(), "{}: xargs ended with {status}", self.name(way));
        // What was answered may still be about to be deleted.
        peers::until("all to be gone", || self.is_gone(way))?;
        let seconds = began.elapsed().as_secs_f64();
        if let Way::Holdfast(daemon, _) = way {
            let left = self.daemons[daemon].ok(&["ps", "--all", "--json"])?;
            ensure!(left.trim() == "[]", "there are still containers: {left}");
        }
        let _ = fs::remove_dir_all(self.scratch.join("conmon"));
        Ok(seconds)
    }

    /// What hosts one container, but for its id, which comes last.
    fn command(&self, way: Way) -> anyhow::Result<Command> {
        Ok(match way {
            Way::Runc => {
                let mut command = Command::new("runc");
                command.arg("--root").arg(self.scratch.join("runc"));
                command.args(["run", "--bundle"]).arg(&self.bundle);
                command
            }
            Way::Conmon => {
                let mut command = Command::new("sh");
                command.args(["-ec", CONMON_SCRIPT, "sh"]).arg(self.scratch.join("conmon"));
                command
            }
            Way::Ctr => {
                self.containerd.as_ref().context("no containerd")?.run(&self.bundle, &["--rm"])
            }
            Way::Holdfast(daemon, runtime) => {
                let daemon = &self.daemons[daemon];
                let runtime = daemon.programs.runtime(runtime);
                let bundle = self.bundle.display().to_string();
                let args = ["run", "--rm", "--runtime", &runtime, "--bundle", &bundle, "--name"];
                daemon.command(&args)
            }
        })
    }

    /// A bundle for each, since conmon makes FIFOs in it, and another to hear from conmon.
    fn prepare_conmon(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut fifos = Command::new("mkfifo");
        for id in ids {
            let dir = self.scratch.join("conmon").join(id);
            fs::create_dir_all(&dir)?;
            fs::copy(self.bundle.join("config.json"), dir.join("config.json"))?;
            fifos.arg(dir.join("sync"));
        }
        setup::output(&mut fifos)?;
        Ok(())
    }

    /// Whether nothing is left of any container: no process and no state.
    fn is_gone(&self, way: Way) -> bool {
        let states = match way {
            Way::Runc => vec![self.scratch.join("runc")],
            Way::Conmon => vec![self.scratch.join("conmon/runc")],
            Way::Ctr => self.containerd.as_ref().map(Containerd::states).unwrap_or_default(),
            Way::Holdfast(daemon, _) => self.daemons[daemon].states(),
        };
        let mut daemons: Vec<u32> = self.daemons.iter().map(Daemon::pid).collect();
        daemons.extend(self.containerd.as_ref().map(Containerd::pid));
        states.iter().all(|dir| peers::is_empty(dir))
            && peers::processes(self.scratch).iter().all(|pid| daemons.contains(pid))
    }
}
