//! How long a line is on its way, from the container's write to whoever follows its log.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;

use super::peers::{self, Daemon, Gate};
use super::{Samples, Scratch, build, save};
use crate::setup::{self, BUSYBOX, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many lines each writes in one turn, one every 5 ms
    #[arg(long, value_name = "N", default_value_t = 400)]
    lines: usize,
    /// How often each takes its turn
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

/// Who logs, and who follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The container writes a file, and tail follows that.
    Tail,
    Holdfast(&'static str),
    Podman,
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Tail => "holdfast file, tail -f".to_owned(),
            Self::Holdfast(driver) => format!("holdfast {driver}, holdfast logs -f"),
            Self::Podman => "podman k8s-file, podman logs -f".to_owned(),
        }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX])?;
    let programs = build()?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    // Its libraries are those of this machine.
    let library = Path::new("/lib64/ld-linux-x86-64.so.2");
    fs::copy(library.canonicalize()?, data.join("ld.so"))?;
    for name in ["libc.so.6", "libgcc_s.so.1"] {
        let path = Path::new("/lib/x86_64-linux-gnu").join(name);
        fs::copy(path.canonicalize()?, data.join(name))?;
    }
    fs::copy(programs.dir.join("stamper"), data.join("stamper"))?;
    let script = format!(
        "read -r _ </data/gate; exec /data/ld.so --library-path /data /data/stamper {} 5",
        options.lines
    );
    let bundle = peers::bundle(&scratch.0, &data, &["sh", "-c", &script])?;
    let daemon = Daemon::start(&programs, &scratch.0.join("root"))?;
    let mut gate = Gate::new(&data.join("gate"))?;
    let mut ways = vec![Way::Tail, Way::Holdfast("cri"), Way::Holdfast("json-file")];
    if super::start::podman(&scratch.0, &bundle.join("rootfs"), &data, &["true"])
        .is_some_and(|mut probe| probe.output().is_ok_and(|output| output.status.success()))
    {
        ways.push(Way::Podman);
    } else {
        println!("not measured: podman (not installed, or does not run here)");
    }
    let mut found: Vec<Samples> = ways.iter().map(|_| Samples::default()).collect();
    for round in 0..options.rounds {
        for (way, found) in ways.iter().zip(&mut found) {
            let id = format!("latency{round}");
            let followed = match way {
                Way::Tail | Way::Holdfast(_) => {
                    let driver = if let Way::Holdfast(driver) = way { driver } else { "file" };
                    let bundle = bundle.display().to_string();
                    daemon.ok(&[
                        "run",
                        "-d",
                        "--name",
                        &id,
                        "--log",
                        driver,
                        "--runtime",
                        "runc",
                        "--bundle",
                        &bundle,
                    ])?;
                    let follower = if *way == Way::Tail {
                        let mut command = Command::new("tail");
                        let log = daemon.root.join(&id).join("init/output.raw");
                        command.args(["-f", "-n", "+1"]).arg(log);
                        command
                    } else {
                        daemon.command(&["logs", "-f", &id])
                    };
                    let followed = follow(follower, &mut gate, options.lines);
                    daemon.ok(&["delete", "-f", &id])?;
                    followed
                }
                Way::Podman => {
                    let args = ["sh", "-c", &script];
                    let rootfs = bundle.join("rootfs");
                    let podman = |args: &[&str]| super::start::podman_command(&scratch.0, args);
                    let mut run = super::start::podman(&scratch.0, &rootfs, &data, &args)
                        .context("podman")?;
                    let id = setup::output(&mut run)?.trim().to_owned();
                    let followed = follow(podman(&["logs", "-f", &id]), &mut gate, options.lines);
                    setup::output(&mut podman(&["rm", "-f", &id]))?;
                    followed
                }
            };
            found.0.extend(followed?);
        }
    }
    println!("{:<36} {:>9} {:>9} {:>9}", "µs from write(2) to the reader", "median", "p99", "max");
    let mut all = Vec::new();
    for (way, found) in ways.iter().zip(&found) {
        let (median, p99, max) = (found.median(), found.quantile(0.99), found.quantile(1.0));
        println!("{:<36} {median:>9.0} {p99:>9.0} {max:>9.0}", way.name());
        all.push(json!({ "way": way.name(), "medianUs": median, "p99Us": p99, "maxUs": max, "lines": found.0.len() }));
    }
    let command =
        format!("cargo xtask bench latency --lines {} --rounds {}", options.lines, options.rounds);
    save("latency.json", &command, &json!(all))
}

/// How long each line was on its way, in microseconds.
fn follow(mut follower: Command, gate: &mut Gate, lines: usize) -> anyhow::Result<Vec<f64>> {
    let mut child = follower.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let reader = BufReader::new(child.stdout.take().context("no pipe")?);
    // By then it follows.
    std::thread::sleep(std::time::Duration::from_millis(500));
    gate.open()?;
    let mut all = Vec::new();
    for line in reader.lines().take(lines) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let written: u128 = line?.trim().parse()?;
        #[allow(clippy::cast_precision_loss)]
        all.push(now.saturating_sub(written) as f64 / 1000.0);
    }
    let _ = child.kill();
    child.wait()?;
    ensure!(all.len() == lines, "{} of {lines} lines came", all.len());
    Ok(all)
}
