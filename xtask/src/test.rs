//! All tests: those beside the code, and the system as a whole against real runtimes.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, bail};
use clap::Args;

use crate::setup::{self, BUSYBOX, RUNC, STRACE};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run everything this often, to find a race
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, STRACE])?;
    // The system's tests start the executables of other packages, which cargo test alone does not build.
    crate::run(crate::cargo().args(["build", "--workspace", "--bins", "--examples"]))?;
    let mut total = Count::default();
    for _ in 0..options.repeat {
        total.add(cargo_test(options.filter.as_deref())?);
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.ignored);
    if total.failed > 0 {
        bail!("{} tests failed", total.failed);
    }
    if total.passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Reads the line with which a test program ends.
    fn of(line: &str) -> Option<Self> {
        let mut count = Self::default();
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        for part in numbers.split("; ") {
            if let Some((number, what)) = part.split_once(' ') {
                match (number.parse(), what) {
                    (Ok(number), "passed") => count.passed = number,
                    (Ok(number), "failed") => count.failed = number,
                    (Ok(number), "ignored") => count.ignored = number,
                    _ => {}
                }
            }
        }
        Some(count)
    }
}

/// Runs cargo's tests, shows what they print, and counts.
fn cargo_test(filter: Option<&str>) -> anyhow::Result<Count> {
    let mut child = crate::cargo()
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test cannot be started")?;
    let mut total = Count::default();
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        if let Some(count) = Count::of(&line) {
            total.add(count);
        }
    }
    let status = child.wait()?;
    if !status.success() && total.failed == 0 {
        bail!("cargo test failed: {status}");
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_of_a_test_program_is_counted() {
        let line = "test result: FAILED. 9 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.07s";
        assert_eq!(Count::of(line), Some(Count { passed: 9, failed: 2, ignored: 1 }));
        assert_eq!(Count::of("test a ... ok"), None);
    }
}
