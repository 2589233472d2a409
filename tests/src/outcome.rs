//! What a torture has shown, and how its program says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

/// Counts by their names, to which many threads add.
#[derive(Debug, Default)]
pub(crate) struct Counts(Mutex<BTreeMap<String, usize>>);

impl Counts {
    pub(crate) fn add(&self, what: impl Into<String>, count: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.into()).or_default() += count;
    }

    /// How often that was counted.
    pub(crate) fn of(&self, what: &str) -> usize {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(what).copied().unwrap_or(0)
    }

    /// For a person.
    pub(crate) fn table(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(what, count)| format!("{what:<64} {count:>7}\n")).collect()
    }

    /// For a program.
    pub(crate) fn json(&self) -> Value {
        json!(&*self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome<R> {
    /// The counts.
    pub report: R,
    /// What is not as it should be, each with all that is known of it.
    pub violations: Vec<String>,
    /// Where the state was kept, if something is not as it should be.
    pub kept: Option<PathBuf>,
}

/// A run of a program, for the person who reads what it prints.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// The name of the program.
    pub program: &'a str,
    /// The command that repeats the run.
    pub again: &'a str,
    /// The seed.
    pub seed: u64,
    /// Where the JSON is written.
    pub output: Option<&'a Path>,
}

impl<R> Outcome<R> {
    /// Prints the table, writes the JSON of the report with the machine, the seed and the violations, and prints what
    /// was done and each violation. Fails if there is one.
    #[must_use]
    pub fn tell(
        &self,
        trial: Trial<'_>,
        took: Duration,
        done: &str,
        table: &str,
        mut json: Value,
    ) -> ExitCode {
        let Trial { program, again, seed, output } = trial;
        println!("{table}");
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        json["kernel"] = release.into();
        json["cores"] = std::thread::available_parallelism().map_or(0, usize::from).into();
        json["seed"] = seed.into();
        json["violations"] = json!(self.violations);
        if let Some(path) = output
            && let Err(error) = std::fs::write(path, format!("{json:#}\n"))
        {
            eprintln!("{program}: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("seed {seed}: {done}, {} violations, {took:.1?}", self.violations.len());
        for violation in &self.violations {
            println!("\nVIOLATION: {violation}");
        }
        match &self.kept {
            None => ExitCode::SUCCESS,
            Some(kept) => {
                println!("kept: {}\nagain: {again}", kept.display());
                ExitCode::FAILURE
            }
        }
    }
}
