//! The lifecycle tests, once for each OCI runtime: what came of each, in one table.

mod candidate;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use crate::setup::{self, BUSYBOX, RUNC};
use crate::suite::{self, Circumstances, Outcome};
use candidate::Candidate;

/// The programs of tests that have to do with a runtime.
const SUITES: [&str; 12] = [
    "library", "restore", "adoption", "cli", "faults", "stdio", "terminal", "operate", "seed",
    "process", "runtimes", "auto",
];

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// With youki, which is built for it, and crun, too
    #[arg(long)]
    long: bool,
    /// Only these runtimes: runc, embedded, youki, crun
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Where the results go, as JSON [default: bench/results/runtimes.json; nowhere if not all
    /// tests or runtimes were asked for]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a runtime came to, test by test, or why it was not run.
type Column = Result<BTreeMap<(String, String), Outcome>, String>;

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX])?;
    suite::build()?;
    let candidates = Candidate::all(options.long, &options.only)?;
    let mut columns = Vec::new();
    for candidate in candidates {
        let column = match &candidate.program {
            Ok(program) => {
                println!("{}: {} ({})", candidate.name, program.display(), candidate.version);
                Ok(lifecycle(program.to_str().context("a path in UTF-8")?, options)?)
            }
            Err(reason) => {
                println!("{}: not run: {reason}", candidate.name);
                Err(reason.clone())
            }
        };
        columns.push((candidate, column));
    }
    show(&columns);
    let output = match &options.output {
        Some(output) => Some(output.clone()),
        None if options.filter.is_none() && options.only.is_empty() => {
            Some(crate::workspace().join("bench/results/runtimes.json"))
        }
        None => None,
    };
    if let Some(output) = output {
        fs::create_dir_all(output.parent().context("a file has a directory")?)?;
        fs::write(&output, format!("{:#}\n", report(&columns)?))?;
        println!("written: {}", output.display());
    }
    // These two must work wherever Holdfast is to. What the others can't do is told by the table.
    for (candidate, column) in &columns {
        if ["runc", "embedded"].contains(&candidate.name) {
            ensure!(column.is_ok(), "{} was not run", candidate.name);
            let failed = count(column, Outcome::is_failed);
            ensure!(failed == 0, "{failed} tests failed with {}", candidate.name);
        }
    }
    Ok(())
}

/// Runs all suites with a runtime.
fn lifecycle(
    runtime: &str,
    options: &Options,
) -> anyhow::Result<BTreeMap<(String, String), Outcome>> {
    let circumstances = Circumstances::with_runtime(Some(runtime))?;
    let mut outcomes = BTreeMap::new();
    for name in SUITES {
        let mut what = vec!["--test", name];
        what.extend(options.filter.as_deref());
        for finished in suite::run(&what, &circumstances)? {
            outcomes.insert((name.to_owned(), finished.test), finished.outcome);
        }
    }
    Ok(outcomes)
}

fn count(column: &Column, is: impl Fn(&Outcome) -> bool) -> usize {
    column.iter().flat_map(BTreeMap::values).filter(|outcome| is(outcome)).count()
}

fn tests(columns: &[(Candidate, Column)]) -> Vec<(String, String)> {
    let mut all: Vec<_> =
        columns.iter().flat_map(|(_, column)| column.iter().flat_map(BTreeMap::keys)).collect();
    all.sort();
    all.dedup();
    all.into_iter().cloned().collect()
}

fn show(columns: &[(Candidate, Column)]) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    let names = columns.iter().map(|(candidate, _)| candidate.name);
    table.set_header(["suite", "test"].into_iter().chain(names));
    // What was skipped differs by few reasons, which stand below the table under a letter.
    let mut reasons: Vec<String> = Vec::new();
    for test in tests(columns) {
        let mut row = vec![test.0.clone(), test.1.clone()];
        for (_, column) in columns {
            row.push(match column.as_ref().map(|outcomes| outcomes.get(&test)) {
                Ok(Some(Outcome::Passed)) => "pass".to_owned(),
                Ok(Some(Outcome::Failed)) => "FAIL".to_owned(),
                Ok(Some(Outcome::Skipped(reason))) => {
                    let known = reasons.iter().position(|other| other == reason);
                    let number = known.unwrap_or_else(|| {
                        reasons.push(reason.clone());
                        reasons.len() - 1
                    });
                    format!("skip [{}]", number + 1)
                }
                Ok(None) | Err(_) => "not run".to_owned(),
            });
        }
        table.add_row(row);
    }
    println!("{table}");
    for (number, reason) in reasons.iter().enumerate() {
        println!("[{}] {reason}", number + 1);
    }
    for (candidate, column) in columns {
        match column {
            Err(reason) => println!("{}: not run: {reason}", candidate.name),
            Ok(_) => println!(
                "{} ({}): {} passed, {} failed, {} skipped",
                candidate.name,
                candidate.version,
                count(column, |outcome| *outcome == Outcome::Passed),
                count(column, Outcome::is_failed),
                count(column, |outcome| matches!(outcome, Outcome::Skipped(_))),
            ),
        }
    }
}

fn report(columns: &[(Candidate, Column)]) -> anyhow::Result<Value> {
    let runtimes: Vec<_> = columns
        .iter()
        .map(|(candidate, column)| {
            json!({
                "name": candidate.name,
                "version": candidate.version,
                "notRun": column.as_ref().err(),
            })
        })
        .collect();
    let tests: Vec<_> = tests(columns)
        .into_iter()
        .map(|test| {
            let outcomes: serde_json::Map<String, Value> = columns
                .iter()
                .filter_map(|(candidate, column)| {
                    let outcome = column.as_ref().ok()?.get(&test)?;
                    Some((candidate.name.to_owned(), in_json(outcome)))
                })
                .collect();
            json!({ "suite": test.0, "test": test.1, "outcomes": outcomes })
        })
        .collect();
    Ok(json!({
        "command": "cargo xtask runtimes --long",
        "commit": crate::commit()?,
        "kernel": setup::output(Command::new("uname").arg("-r"))?.trim(),
        "cores": std::thread::available_parallelism()?.get(),
        "cgroups": cgroups(),
        "runtimes": runtimes,
        "tests": tests,
    }))
}

fn in_json(outcome: &Outcome) -> Value {
    match outcome {
        Outcome::Passed => json!({ "outcome": "pass" }),
        Outcome::Failed => json!({ "outcome": "fail" }),
        Outcome::Skipped(reason) => json!({ "outcome": "skip", "reason": reason }),
    }
}

fn cgroups() -> &'static str {
    let exists = |path: &str| std::path::Path::new(path).exists();
    if exists("/sys/fs/cgroup/cgroup.controllers") {
        "v2"
    } else if exists("/sys/fs/cgroup/unified/cgroup.controllers") {
        "hybrid"
    } else {
        "v1"
    }
}
