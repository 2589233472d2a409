//! A gigabyte through each log driver while there is no daemon: whether anything is missing, how long
//! the container had to wait, and how the shim grows. Tests do it, with more than they usually write.

use std::fs;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use super::save;

/// A line of `tests/src/numbered.rs`, in bytes.
const LINE: u64 = 80;
const TESTS: &str =
    "test(every_file_takes_all) + test(a_fifo_gets_all) + test(the_journal_gets_all)";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many megabytes each container writes; it takes two and a half times that on disk
    #[arg(long, value_name = "MB", default_value_t = 1000)]
    megabytes: u64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    crate::run(crate::build().args(["--release", "--workspace", "--bins", "--examples"]))?;
    let found = tempfile::NamedTempFile::new()?;
    let lines = options.megabytes * 1_000_000 / LINE;
    crate::run(
        crate::cargo()
            .args([
                "nextest",
                "run",
                "--release",
                "--package",
                "holdfast-tests",
                "--test",
                "output",
                "--test-threads",
                "1",
            ])
            .args(["--filterset", TESTS])
            .env("HOLDFAST_OUTPUT_LINES", lines.to_string())
            .env("HOLDFAST_OUTPUT_RESULTS", found.path()),
    )?;
    let text = fs::read_to_string(found.path())?;
    let drivers: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("the results")?;
    println!(
        "{:<36} {:>12} {:>18} {:>16}",
        "driver", "MB, whole", "longest write, ms", "shim grown, KiB"
    );
    for driver in &drivers {
        println!(
            "{:<36} {:>12} {:>18} {:>16}",
            driver["log"].as_str().unwrap_or_default(),
            driver["bytes"].as_u64().unwrap_or_default() / 1_000_000,
            driver["longestWriteMilliseconds"],
            driver["shimGrownKiB"]
        );
    }
    let command = format!("cargo xtask bench gigabyte --megabytes {}", options.megabytes);
    save("gigabyte.json", &command, &json!(drivers))
}
