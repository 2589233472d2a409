//! Containers that live for a moment, by the hundred: how many a second are made, started, seen to
//! the end and deleted again, with some at a time.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::hosts::{Host, Stage};
use super::peers;
use super::{Column, Programs, Samples, Scratch, build, list, plots, save, turns};
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
    Host(Host),
    /// conmon, and runc started and deleted by a script; see [`CONMON_SCRIPT`].
    Conmon,
}

/// What podman does with conmon, without podman: conmon says on a pipe that runc has made the
/// container, and starts a command when the container has ended and its status is written. That is not beside the sockets,
/// from where conmon 2.2 removes what has the container's name.
pub(super) const CONMON_SCRIPT: &str = r#"
    dir=$1/$2 root=$1/runc
    mkfifo "$dir/ended"
    _OCI_SYNCPIPE=3 "${CONMON:-conmon}" --api-version 1 -c "$2" -u "$2" -n "$2" -r "$RUNC" \
        --runtime-arg "--root=$root" -b "$dir" -p "$dir/pid" -l "k8s-file:$dir/log" \
        --conmon-pidfile "$dir/conmon.pid" --exit-dir "$dir/exits" --socket-dir-path "$dir" \
        --exit-command /bin/sh --exit-command-arg -c --exit-command-arg ": >'$dir/ended'" \
        3>"$dir/sync" &
    exec 3<"$dir/sync"
    read -r made <&3
    runc --root "$root" start "$2"
    read -r ended <"$dir/ended" || :
    read -r status <"$dir/exits/$2" || :
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
        let runc = rows
            .iter()
            .find(|other| other.way == Way::Host(Host::Runc) && other.workers == row.workers);
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
    let command = format!(
        "cargo xtask bench churn --containers {} --workers {} --rounds {}",
        options.containers,
        list(&options.workers),
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

fn measure(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Row>> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let scratch = Scratch::new()?;
    let (stage, hosts) = Stage::new(&scratch.0, programs)?;
    let mut bench = Bench { stage, turn: 0 };
    let mut ways: Vec<Way> = hosts.into_iter().map(Way::Host).collect();
    if programs.len() == 1 {
        ways.push(Way::Conmon);
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
        for place in turns(round, rows.len()) {
            let row = &mut rows[place];
            let seconds = bench.turn(row.way, row.workers, options.containers)?;
            #[allow(clippy::cast_precision_loss)]
            row.rate.0.push(options.containers as f64 / seconds);
        }
        println!("round {round} of {}", options.rounds);
    }
    Ok(rows)
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
        }
    }

    /// So many containers, so many at a time; how long it took until all were gone, in seconds.
    fn turn(&mut self, way: Way, workers: usize, containers: usize) -> anyhow::Result<f64> {
        self.turn += 1;
        let ids: Vec<String> = (0..containers).map(|n| format!("churn{}-{n}", self.turn)).collect();
        let list = self.stage.scratch.join("ids");
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
        if let Way::Host(Host::Holdfast(daemon, _)) = way {
            let left = self.stage.daemon(daemon).ok(&["ps", "--all", "--json"])?;
            ensure!(left.trim() == "[]", "there are still containers: {left}");
        }
        let _ = fs::remove_dir_all(self.stage.scratch.join("conmon"));
        Ok(seconds)
    }

    /// What hosts one container, but for its id, which comes last.
    fn command(&self, way: Way) -> anyhow::Result<Command> {
        match way {
            Way::Host(host) => self.stage.command(host),
            Way::Conmon => {
                let mut command = Command::new("sh");
                command.args(["-ec", CONMON_SCRIPT, "sh"]).arg(self.stage.scratch.join("conmon"));
                Ok(command)
            }
        }
    }

    /// A bundle for each, since conmon makes FIFOs in it, and another to hear from conmon.
    fn prepare_conmon(&self, ids: &[String]) -> anyhow::Result<()> {
        let mut fifos = Command::new("mkfifo");
        for id in ids {
            let dir = self.stage.scratch.join("conmon").join(id);
            fs::create_dir_all(dir.join("exits"))?;
            fs::copy(self.stage.bundle.join("config.json"), dir.join("config.json"))?;
            fifos.arg(dir.join("sync"));
        }
        setup::output(&mut fifos)?;
        Ok(())
    }

    /// Whether nothing is left of any container: no process and no state.
    fn is_gone(&self, way: Way) -> bool {
        let states = match way {
            Way::Host(host) => self.stage.states(host),
            Way::Conmon => vec![self.stage.scratch.join("conmon/runc")],
        };
        states.iter().all(|dir| peers::is_empty(dir)) && self.stage.has_no_process()
    }
}
