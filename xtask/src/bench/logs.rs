//! How fast a container can write, by where its output goes: busybox's dd copies a file of lines to
//! its standard output in blocks of 64 KiB, and is timed from outside.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use super::peers::{self, Conmon, Daemon, Gate};
use super::{Column, Programs, Samples, Scratch, build, save, turns};
use crate::setup::{self, BUSYBOX, CONMON, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many megabytes a container writes, in lines of 80 bytes
    #[arg(long, value_name = "MB", default_value_t = 500)]
    megabytes: usize,
    /// How often each takes its turn
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
}

/// Who brings the output where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// runc, its standard output being a file.
    RuncFile,
    /// runc, its standard output being a pipe that is read into nothing.
    RuncPipe,
    /// runc, and `cat` into a file: the same bytes, copied once.
    RuncCat,
    /// runc, and a bare loop that reads 64 KiB and writes them into a file.
    RuncLoop,
    Conmon,
    /// This daemon of the bench's, with this driver.
    Holdfast(usize, &'static str),
    /// With a reader of the FIFO that reads into nothing.
    HoldfastFifo(usize),
}

/// Who takes turns. The peers take part where there is one set of programs; of two, those of each
/// driver are side by side.
fn ways(sets: usize) -> Vec<Way> {
    let mut ways = Vec::new();
    if sets == 1 {
        let peers = [Way::RuncFile, Way::RuncPipe, Way::RuncCat, Way::RuncLoop, Way::Conmon];
        ways.extend(peers);
    }
    for driver in ["cri", "json-file", "file"] {
        ways.extend((0..sets).map(|daemon| Way::Holdfast(daemon, driver)));
    }
    ways.extend((0..sets).map(Way::HoldfastFifo));
    ways
}

#[derive(Debug, Default)]
struct Found {
    megabytes_a_second: Samples,
    /// Of whoever logs, in milliseconds for a megabyte of the container's.
    user: Samples,
    system: Samples,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let all = measure(options, &[build()?])?;
    let median = |way: Way| {
        let found = all.iter().find(|(other, ..)| *other == way);
        found.map_or(f64::NAN, |(_, _, found)| found.megabytes_a_second.median())
    };
    let (conmon, file, pipe) = (median(Way::Conmon), median(Way::RuncFile), median(Way::RuncPipe));
    let bare = median(Way::RuncLoop);
    println!(
        "{:<20} {:>8} {:>9} {:>9} {:>9} {:>9}  CPU of the logger, ms a MB",
        "", "MB/s", "× conmon", "× file", "× pipe", "× loop"
    );
    let mut rows = Vec::new();
    for (_, name, found) in &all {
        let speed = found.megabytes_a_second.median();
        println!(
            "{name:<20} {speed:>8.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2}  {:.2} user, {:.2} system",
            speed / conmon,
            speed / file,
            speed / pipe,
            speed / bare,
            found.user.median(),
            found.system.median()
        );
        rows.push(json!({
            "way": name,
            "megabytesASecond": found.megabytes_a_second.to_json(),
            "timesConmon": speed / conmon,
            "timesRuncIntoAFile": speed / file,
            "timesRuncIntoAPipe": speed / pipe,
            "timesABareLoop": speed / bare,
            "userMsAMegabyte": found.user.to_json(),
            "systemMsAMegabyte": found.system.to_json(),
        }));
    }
    let command = format!(
        "cargo xtask bench logs --megabytes {} --rounds {}",
        options.megabytes, options.rounds
    );
    save("logs.json", &command, &json!(rows))
}

/// The speeds alone, in megabytes a second.
pub(super) fn speeds(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<Column>> {
    let all = measure(options, programs)?;
    let column = |(_, way, found): (_, _, Found)| Column { way, samples: found.megabytes_a_second };
    Ok(all.into_iter().map(column).collect())
}

fn measure(options: &Options, programs: &[Programs]) -> anyhow::Result<Vec<(Way, String, Found)>> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    write_lines(&data.join("lines"), options.megabytes)?;
    let script = ": >/data/ready; read -r _ </data/gate; dd if=/data/lines bs=64k 2>/data/report; read -r _ </data/gate";
    let bundle = peers::bundle(&scratch.0, &data, &["sh", "-c", script])?;
    let mut bench = Bench {
        daemons: Daemon::start_all(programs, &scratch.0)?,
        gate: Gate::new(&data.join("gate"))?,
        scratch: scratch.0.clone(),
        bundle,
        data,
        turn: 0,
    };
    let mut all: Vec<(Way, String, Found)> = ways(programs.len())
        .into_iter()
        .map(|way| (way, bench.name(way), Found::default()))
        .collect();
    for round in 0..=options.rounds {
        for place in turns(round, all.len()) {
            let (way, _, found) = &mut all[place];
            let (seconds, user, system) = bench.turn(*way)?;
            // The first round warms up.
            if round > 0 {
                #[allow(clippy::cast_precision_loss)]
                let megabytes = options.megabytes as f64;
                found.megabytes_a_second.0.push(megabytes / seconds);
                found.user.0.push(user * 1000.0 / megabytes);
                found.system.0.push(system * 1000.0 / megabytes);
            }
        }
        println!("round {round} of {}", options.rounds);
    }
    Ok(all)
}

fn write_lines(path: &Path, megabytes: usize) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for number in 0..megabytes * 12_500 {
        writeln!(file, "{number:09} {:.<69}", "")?;
    }
    Ok(file.flush()?)
}

struct Bench {
    daemons: Vec<Daemon>,
    gate: Gate,
    scratch: PathBuf,
    bundle: PathBuf,
    data: PathBuf,
    turn: usize,
}

impl Bench {
    fn name(&self, way: Way) -> String {
        let ours = |daemon: usize| self.daemons[daemon].programs.name.as_str();
        match way {
            Way::RuncFile => "runc into a file".to_owned(),
            Way::RuncPipe => "runc into a pipe".to_owned(),
            Way::RuncCat => "runc | cat >file".to_owned(),
            Way::RuncLoop => "runc | dd >file".to_owned(),
            Way::Conmon => "conmon k8s-file".to_owned(),
            Way::Holdfast(daemon, driver) => format!("{} {driver}", ours(daemon)),
            Way::HoldfastFifo(daemon) => format!("{} fifo", ours(daemon)),
        }
    }

    /// One container; how long it wrote, and the processor time of whoever logged.
    fn turn(&mut self, way: Way) -> anyhow::Result<(f64, f64, f64)> {
        self.turn += 1;
        let id = format!("bench{}", self.turn);
        let report = self.data.join("report");
        let _ = fs::remove_file(&report);
        let log = self.scratch.join("log");
        let outcome = match way {
            Way::RuncFile => {
                self.runc(&id, File::create(&log)?.into())?;
                self.finish(&id, None)
            }
            Way::RuncPipe | Way::RuncCat | Way::RuncLoop => {
                let (pipe, writer) = std::io::pipe()?;
                self.runc(&id, writer.into())?;
                let target = if way == Way::RuncPipe { "/dev/null".into() } else { log.clone() };
                // cat would splice into /dev/null; dd reads.
                let program: &[&str] =
                    if way == Way::RuncCat { &["cat"] } else { &["dd", "bs=64k", "status=none"] };
                let mut cat = Command::new(program[0])
                    .args(&program[1..])
                    .stdin(pipe)
                    .stdout(File::create(target)?)
                    .spawn()?;
                let pid = i32::try_from(cat.id())?;
                let outcome = self.finish(&id, Some(pid));
                cat.wait()?;
                outcome
            }
            Way::Conmon => {
                let target = format!("k8s-file:{}", log.display());
                let conmon = Conmon::start(&self.scratch, &self.bundle, &id, &target)?;
                let seconds = self.written()?;
                let cpu = peers::cpu(conmon.pid)?;
                self.gate.open()?;
                conmon.end()?;
                Ok((seconds, cpu.0, cpu.1))
            }
            Way::Holdfast(daemon, driver) => self.holdfast(daemon, &id, driver),
            Way::HoldfastFifo(daemon) => {
                let path = self.scratch.join("fifo");
                let _held = Gate::new(&path)?;
                let mut reader = Command::new("dd")
                    .args(["bs=64k", "status=none", "of=/dev/null"])
                    .arg(format!("if={}", path.display()))
                    .spawn()?;
                let outcome = self.holdfast(daemon, &id, &format!("fifo:{}", path.display()));
                reader.kill()?;
                reader.wait()?;
                fs::remove_file(path)?;
                outcome
            }
        };
        let _ = fs::remove_file(&log);
        outcome
    }

    /// In the background: in the foreground runc puts pipes of its own in between.
    fn runc(&self, id: &str, stdout: Stdio) -> anyhow::Result<()> {
        let mut command = self.runc_command();
        command.args(["run", "--detach", "--bundle"]).arg(&self.bundle).arg(id);
        let status = command.stdin(Stdio::null()).stdout(stdout).status()?;
        ensure!(status.success(), "runc run: {status}");
        Ok(())
    }

    fn runc_command(&self) -> Command {
        let mut command = Command::new("runc");
        command.arg("--root").arg(self.scratch.join("runc"));
        command
    }

    fn finish(&mut self, id: &str, logger: Option<i32>) -> anyhow::Result<(f64, f64, f64)> {
        let seconds = self.written()?;
        let cpu = logger.map(peers::cpu).transpose()?.unwrap_or_default();
        self.gate.open()?;
        peers::until("a container to end", || {
            let state = self.runc_command().args(["state", id]).output();
            state.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("\"stopped\""))
        })?;
        setup::output(self.runc_command().args(["delete", id]))?;
        Ok((seconds, cpu.0, cpu.1))
    }

    fn holdfast(&mut self, daemon: usize, id: &str, log: &str) -> anyhow::Result<(f64, f64, f64)> {
        let bundle = self.bundle.display().to_string();
        // Without rotation, as the peers do; said so that builds before `max-size=0` understand it. Of
        // two builds one may not know that a `file` has a bound.
        let is_bounded = match log {
            "cri" | "json-file" => true,
            "file" => self.daemons.len() == 1,
            _ => false,
        };
        let log = if is_bounded { &format!("{log},max-size=1000g") } else { log };
        let args =
            ["run", "-d", "--name", id, "--runtime", "runc", "--log", log, "--bundle", &bundle];
        self.daemons[daemon].ok(&args)?;
        let seconds = self.written()?;
        let cpu = peers::cpu(self.daemons[daemon].shim(id)?)?;
        self.gate.open()?;
        self.daemons[daemon].ok(&["wait", id])?;
        self.daemons[daemon].ok(&["delete", id])?;
        Ok((seconds, cpu.0, cpu.1))
    }

    /// Lets it write, waits until it has written all, and returns how long that took, in seconds.
    fn written(&mut self) -> anyhow::Result<f64> {
        let ready = self.data.join("ready");
        peers::until("a container to start", || ready.exists())?;
        fs::remove_file(ready)?;
        std::thread::sleep(Duration::from_millis(100));
        let report = self.data.join("report");
        let began = Instant::now();
        self.gate.open()?;
        peers::until("a container to write all", || {
            fs::read_to_string(&report).is_ok_and(|report| report.contains("records out"))
        })?;
        Ok(began.elapsed().as_secs_f64())
    }
}
