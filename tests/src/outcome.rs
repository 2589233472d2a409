//! What a torture has shown, and how its program says so.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

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
    /// Prints the table, writes the JSON, and prints what was done and each violation. Fails if there is one.
    #[must_use]
    pub fn tell(
        &self,
        trial: Trial<'_>,
        took: Duration,
        done: &str,
        table: &str,
        json: &Value,
    ) -> ExitCode {
        let Trial { program, again, seed, output } = trial;
        println!("{table}");
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
