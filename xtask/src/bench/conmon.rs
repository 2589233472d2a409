//! `holdfast-conmon` beside conmon, each driven by hand as podman and CRI-O do it, taking turns.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::churn::CONMON_SCRIPT;
use super::memory::Memory;
use super::peers::{self, Conmon};
use super::{Samples, Scratch, build, save, turns};
use crate::setup::{self, BUSYBOX, CONMON, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each takes its turn; with 0 only idle ones are looked at
    #[arg(long, value_name = "N", default_value_t = 30)]
    rounds: usize,
    /// How many megabytes a container writes, in lines of 80 bytes
    #[arg(long, value_name = "MB", default_value_t = 300)]
    megabytes: usize,
    /// How many idle containers each has
    #[arg(long, value_name = "N", default_value_t = 50)]
    containers: usize,
    /// For how long the idle ones are looked at; the long form is 3600
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// The conmon to compare with [default: that in PATH]
    #[arg(long, value_name = "FILE")]
    conmon: Option<PathBuf>,
}

/// A monitor.
struct Way {
    name: &'static str,
    program: PathBuf,
}

/// One line of the result: what each took, and of ours the ratio to conmon's.
struct Row {
    what: String,
    unit: &'static str,
    found: [Samples; 2],
}

impl Row {
    fn new(what: impl Into<String>, unit: &'static str) -> Self {
        Self { what: what.into(), unit, found: Default::default() }
    }

    fn ratio(&self) -> f64 {
        self.found[1].median() / self.found[0].median()
    }

    fn json(&self, ways: &[Way; 2]) -> Value {
        json!({
            "what": self.what,
            "unit": self.unit,
            ways[0].name: self.found[0].to_json(),
            ways[1].name: self.found[1].to_json(),
            "ratio": self.ratio(),
        })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let ours = build()?.dir.join("holdfast-conmon");
    let theirs = match &options.conmon {
        Some(program) => program.clone(),
        None => peers::which("conmon")?,
    };
    let version = setup::output(Command::new(&theirs).arg("--version"))?;
    let version = version.split_whitespace().nth(2).context("conmon says no version")?;
    let ways =
        [Way { name: "conmon", program: theirs }, Way { name: "holdfast-conmon", program: ours }];
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let bench = Bench { dir: &scratch.0, data: &data, ways: &ways };
    let mut rows = Vec::new();
    if options.rounds > 0 {
        rows.push(bench.start(options.rounds)?);
        rows.push(bench.exec(options.rounds)?);
        rows.push(bench.logs(options.megabytes, options.rounds.div_ceil(5))?);
    }
    let idle = peers::bundle(&scratch.0.join("idle"), &data, &["sleep", "100000"])?;
    rows.extend(bench.memory(&idle, options.containers)?);
    rows.extend(bench.idle(&idle, options.containers, options.seconds)?);
    println!("{:<48} {:>12} {:>16} {:>7}", "", version, ways[1].name, "ratio");
    for row in &rows {
        let [theirs, ours] = &row.found;
        println!(
            "{:<48} {:>12.2} {:>16.2} {:>7.2}",
            format!("{}, {}", row.what, row.unit),
            theirs.median(),
            ours.median(),
            row.ratio()
        );
    }
    let other = if options.conmon.is_some() { " --conmon FILE" } else { "" };
    let command = format!(
        "cargo xtask bench conmon --rounds {} --megabytes {} --containers {} --seconds {}{other}",
        options.rounds, options.megabytes, options.containers, options.seconds
    );
    let rows: Vec<_> = rows.iter().map(|row| row.json(&ways)).collect();
    let found = json!({ "conmon": version, "rows": rows });
    let of = options.conmon.as_ref().map(|_| format!("-{version}")).unwrap_or_default();
    let idle = if options.rounds == 0 { "-idle" } else { "" };
    save(&format!("conmon{of}{idle}.json"), &command, &found)
}

struct Bench<'a> {
    dir: &'a Path,
    data: &'a Path,
    ways: &'a [Way; 2],
}

impl Bench<'_> {
    /// Each in its turn; `measure` returns what one took.
    fn row(
        &self,
        mut row: Row,
        rounds: usize,
        mut measure: impl FnMut(&Way, &str) -> anyhow::Result<f64>,
    ) -> anyhow::Result<Row> {
        for round in 0..=rounds {
            for place in turns(round, self.ways.len()) {
                let took = measure(&self.ways[place], &format!("bench{round}-{place}"))?;
                // The first round warms up.
                if round > 0 {
                    row.found[place].0.push(took);
                }
            }
        }
        Ok(row)
    }

    /// From the start of the monitor until the container is deleted, in seconds.
    fn whole(&self, way: &Way, bundle: &Path, id: &str) -> anyhow::Result<f64> {
        let dir = self.dir.join("one").join(id);
        fs::create_dir_all(dir.join("exits"))?;
        fs::copy(bundle.join("config.json"), dir.join("config.json"))?;
        setup::output(Command::new("mkfifo").arg(dir.join("sync")))?;
        let mut command = Command::new("sh");
        command.args(["-ec", CONMON_SCRIPT, "sh"]).arg(self.dir.join("one")).arg(id);
        command.env("RUNC", peers::which("runc")?).env("CONMON", &way.program);
        let began = Instant::now();
        let status = command.stdin(Stdio::null()).status()?;
        let took = began.elapsed();
        ensure!(status.success(), "{}: {status}", way.name);
        fs::remove_dir_all(dir)?;
        Ok(took.as_secs_f64())
    }

    fn start(&self, rounds: usize) -> anyhow::Result<Row> {
        let bundle = peers::bundle(&self.dir.join("true"), self.data, &["true"])?;
        let row = Row::new("a container of true, from create to delete", "ms");
        self.row(row, rounds, |way, id| Ok(self.whole(way, &bundle, id)? * 1000.0))
    }

    /// As CRI-O has it: the monitor in the foreground, and no bundle.
    fn exec(&self, rounds: usize) -> anyhow::Result<Row> {
        let bundle = peers::bundle(&self.dir.join("sleep"), self.data, &["sleep", "100000"])?;
        let container = Conmon::start(self.dir, &bundle, "exec", &self.log("exec.log"))?;
        let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
        let mut process = config["process"].clone();
        process["args"] = json!(["true"]);
        let spec = self.dir.join("process.json");
        fs::write(&spec, serde_json::to_vec(&process)?)?;
        let row = self.row(Row::new("an exec of true", "ms"), rounds, |way, _| {
            let mut command = Command::new(&way.program);
            command.args(["--sync", "-e", "-c", &container.id, "-n", &container.id, "-r"]);
            command.arg(peers::which("runc")?).arg("-p").arg(self.dir.join("exec.pid"));
            command.args(["-l", &self.log("exec-output.log"), "--socket-dir-path"]).arg(self.dir);
            command.arg("--exec-process-spec").arg(&spec);
            command.arg("--runtime-arg").arg(format!("--root={}", container.runtime().display()));
            let began = Instant::now();
            let status = command.stdin(Stdio::null()).status()?;
            let took = began.elapsed();
            ensure!(status.success(), "{}: {status}", way.name);
            Ok(took.as_secs_f64() * 1000.0)
        });
        let killed = container.kill();
        let row = row?;
        killed.map(|()| row)
    }

    fn log(&self, name: &str) -> String {
        format!("k8s-file:{}", self.dir.join(name).display())
    }

    /// A container that writes so much and ends; most of its time is the log's.
    fn logs(&self, megabytes: usize, rounds: usize) -> anyhow::Result<Row> {
        let mut lines = File::create(self.data.join("lines"))?;
        let line = [&[b'x'; 79][..], b"\n"].concat().repeat(12_500);
        for _ in 0..megabytes {
            lines.write_all(&line)?;
        }
        let args = ["dd", "if=/data/lines", "bs=64k", "status=none"];
        let bundle = peers::bundle(&self.dir.join("dd"), self.data, &args)?;
        let row = Row::new("a container that writes lines of 80 bytes", "s a GB");
        #[allow(clippy::cast_precision_loss)]
        let a_gigabyte = 1000.0 / megabytes as f64;
        let row = self.row(row, rounds, |way, id| Ok(self.whole(way, &bundle, id)? * a_gigabyte));
        fs::remove_file(self.data.join("lines"))?;
        row
    }

    /// Starts idle containers with a monitor.
    fn begin(
        &self,
        all: &mut Vec<Conmon>,
        way: &Way,
        bundle: &Path,
        ids: &[String],
    ) -> anyhow::Result<()> {
        for id in ids {
            let log = self.log(&format!("{id}.log"));
            all.push(Conmon::start_with(&way.program, self.dir, bundle, id, &log)?);
        }
        std::thread::sleep(Duration::from_secs(3));
        Ok(())
    }

    /// Memory of the monitors of idle containers. One after the other, as they would share pages.
    fn memory(&self, bundle: &Path, containers: usize) -> anyhow::Result<[Row; 2]> {
        let [mut uss, mut pss] = ["USS", "PSS"]
            .map(|name| Row::new(format!("memory of an idle monitor ({name})"), "KiB"));
        for (place, way) in self.ways.iter().enumerate() {
            let mut all = Vec::new();
            let began = self.begin(&mut all, way, bundle, &ids("memory", way, containers));
            let found: anyhow::Result<Vec<_>> = began
                .and_then(|()| all.iter().map(|one| Memory::of(u32::try_from(one.pid)?)).collect());
            let ended = end(all);
            for memory in found? {
                uss.found[place].0.push(memory.uss);
                pss.found[place].0.push(memory.pss);
            }
            ended?;
        }
        Ok([uss, pss])
    }

    /// The processor time that the monitors of idle containers take in an hour, those of both at the same time.
    fn idle(&self, bundle: &Path, containers: usize, seconds: u64) -> anyhow::Result<[Row; 2]> {
        let mut time = Row::new("processor time of an idle hour", "ms");
        let mut wakeups = Row::new("wake-ups of an idle hour", "times");
        let mut all = Vec::new();
        let mut measure = || -> anyhow::Result<()> {
            for way in self.ways {
                self.begin(&mut all, way, bundle, &ids("idle", way, containers))?;
            }
            let before: Vec<_> = all.iter().map(Activity::of).collect::<Result<_, _>>()?;
            std::thread::sleep(Duration::from_secs(seconds));
            #[allow(clippy::cast_precision_loss)]
            let an_hour = 3600.0 / seconds as f64;
            for (number, (conmon, before)) in all.iter().zip(before).enumerate() {
                let now = Activity::of(conmon)?;
                let place = number / containers;
                time.found[place].0.push((now.ran_ms - before.ran_ms) * an_hour);
                wakeups.found[place].0.push((now.switches - before.switches) * an_hour);
            }
            Ok(())
        };
        let measured = measure();
        let ended = end(all);
        measured.and(ended)?;
        Ok([time, wakeups])
    }
}

fn ids(what: &str, way: &Way, containers: usize) -> Vec<String> {
    (0..containers).map(|number| format!("{what}-{}-{number}", way.name)).collect()
}

/// Ends idle containers, as many as can be ended.
fn end(all: Vec<Conmon>) -> anyhow::Result<()> {
    all.into_iter().map(Conmon::kill).fold(Ok(()), Result::and)
}

/// What a process has done since its start.
struct Activity {
    ran_ms: f64,
    switches: f64,
}

impl Activity {
    fn of(conmon: &Conmon) -> anyhow::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{}", conmon.pid));
        let stat = fs::read_to_string(proc.join("schedstat"))?;
        let nanoseconds: f64 = stat.split(' ').next().unwrap_or_default().parse()?;
        let status = fs::read_to_string(proc.join("status"))?;
        let switches =
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(Self {
            ran_ms: nanoseconds / 1e6,
            switches: switches.unwrap_or_default().trim().parse()?,
        })
    }
}
