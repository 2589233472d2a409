//! Fuzzes everything that reads what others wrote: the targets of `fuzz/`, with the corpus there.
//!
//! It takes a nightly toolchain, which this does not install: without one nothing is run, and that
//! is said. What libFuzzer finds worth keeping goes below the target directory, not into the corpus.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};

const VERSION: &str = "0.13.2";

/// How long, and what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long each target is run
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Write the counts into bench/results/fuzz.json
    #[arg(long)]
    record: bool,
    /// Only targets whose name contains this
    filter: Option<String>,
}

#[derive(Debug)]
struct Outcome {
    target: String,
    seconds: u64,
    execs: u64,
    crashes: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let wanted = |name: &String| options.filter.as_ref().is_none_or(|part| name.contains(part));
    let targets: Vec<String> = targets()?.into_iter().filter(wanted).collect();
    if targets.is_empty() {
        bail!("no fuzz target has such a name");
    }
    let Some(toolchain) = nightly() else {
        println!(
            "NOT RUN: {} fuzz targets: there is no nightly toolchain (rustup toolchain install nightly)",
            targets.len()
        );
        return Ok(());
    };
    ensure_cargo_fuzz()?;
    let mut outcomes = Vec::new();
    for target in targets {
        let outcome = fuzz(&target, options.seconds)?;
        println!(
            "{:15} {:4} s {:10} executions {} crashes",
            outcome.target, outcome.seconds, outcome.execs, outcome.crashes
        );
        outcomes.push(outcome);
    }
    if options.record {
        record(&outcomes, &toolchain)?;
    }
    let crashed: Vec<_> = outcomes.iter().filter(|o| o.crashes > 0).map(|o| &*o.target).collect();
    if !crashed.is_empty() {
        bail!("inputs that crash are below fuzz/artifacts: {}", crashed.join(" "));
    }
    println!("{} fuzz targets, no crash", outcomes.len());
    Ok(())
}

fn targets() -> anyhow::Result<Vec<String>> {
    let dir = crate::workspace().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in dir.read_dir().with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// What the nightly compiler calls itself, if there is one.
fn nightly() -> Option<String> {
    let output =
        Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| version.trim().to_owned())
}

fn ensure_cargo_fuzz() -> anyhow::Result<()> {
    let installed = Command::new("cargo").args(["fuzz", "--version"]).output();
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    println!("installing cargo-fuzz {VERSION} from crates.io");
    crate::run(Command::new("cargo").args([
        "install",
        "cargo-fuzz",
        "--version",
        VERSION,
        "--locked",
    ]))
}

fn fuzz(target: &str, seconds: u32) -> anyhow::Result<Outcome> {
    let folder = crate::workspace().join("fuzz");
    let found = crate::executables("fuzz-corpus").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("make {}", found.display()))?;
    let artifacts = folder.join("artifacts").join(target);
    let before = count(&artifacts);
    let cargo = |verb: &str| {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "cargo", "fuzz", verb, target]).current_dir(&folder);
        // The toolchain of this workspace is not that of the other.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        command
    };
    // Built first, so that the time is that of the run.
    let built = cargo("build").output().context("rustup cannot be started")?;
    if !built.status.success() {
        bail!("fuzz target {target} cannot be built:\n{}", String::from_utf8_lossy(&built.stderr));
    }
    let began = Instant::now();
    let output = cargo("run")
        .arg(&found)
        .arg(folder.join("corpus").join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .args(["-print_final_stats=1", "-timeout=10", "-rss_limit_mb=1024"])
        .stdin(Stdio::null())
        .output()
        .context("rustup cannot be started")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let crashes = count(&artifacts).saturating_sub(before);
    if !output.status.success() && crashes == 0 {
        bail!("fuzz target {target} ended with {}:\n{said}", output.status);
    }
    if crashes > 0 {
        println!("{said}");
    }
    let execs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let execs = execs.and_then(|number| number.trim().parse().ok()).unwrap_or(0);
    let seconds = began.elapsed().as_secs();
    Ok(Outcome { target: target.to_owned(), seconds, execs, crashes })
}

fn count(dir: &Path) -> usize {
    dir.read_dir().map_or(0, Iterator::count)
}

/// Writes down what came of these targets; what is there of others stays.
fn record(outcomes: &[Outcome], toolchain: &str) -> anyhow::Result<()> {
    let commit = crate::git().args(["rev-parse", "HEAD"]).output();
    let commit = commit.map(|output| output.stdout).unwrap_or_default();
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    let path = crate::workspace().join("bench/results/fuzz.json");
    let before = std::fs::read(&path).unwrap_or_default();
    let before: Value = serde_json::from_slice(&before).unwrap_or_default();
    let before = before["targets"].as_array().cloned().unwrap_or_default();
    let mut targets: BTreeMap<String, Value> = before
        .into_iter()
        .map(|entry| (entry["target"].as_str().unwrap_or_default().to_owned(), entry))
        .collect();
    for o in outcomes {
        let entry = json!({
            "target": o.target, "seconds": o.seconds, "execs": o.execs, "crashes": o.crashes,
            "commit": commit, "toolchain": toolchain,
        });
        targets.insert(o.target.clone(), entry);
    }
    let result = json!({
        "command": "cargo xtask fuzz --record --seconds N",
        "targets": targets.into_values().collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    std::fs::write(&path, format!("{result:#}\n"))
        .with_context(|| format!("write {}", path.display()))
}
