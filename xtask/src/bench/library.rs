//! What the library costs a service that embeds it. The work is done by a program of `tests`, which
//! has the means; here it is built and started, and what it found is kept.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Args;
use serde_json::Value;

use super::{Scratch, build, save};
use crate::setup::{self, BUSYBOX};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// With how many other containers idle, one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 10_000])]
    idle: Vec<usize>,
    /// How many starts, and twice as many exits, are timed with each
    #[arg(long, value_name = "N", default_value_t = 500)]
    starts: usize,
    /// How many of the idle ones are made at the same time
    #[arg(long, value_name = "N", default_value_t = 12)]
    parallel: usize,
    /// Where their output goes. With `file` or `none` the daemon holds two files for each, with others
    /// four: no more than `ulimit -Hn` in all
    #[arg(long, value_name = "DRIVER", default_value = "cri")]
    log: String,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[BUSYBOX])?;
    let (idle, starts) = (list(&options.idle), options.starts.to_string());
    let parallel = options.parallel.to_string();
    let args =
        ["--counts", &idle, "--starts", &starts, "--parallel", &parallel, "--log", &options.log];
    let found = bench(&build()?.dir, "library", &args)?;
    let command = format!(
        "cargo xtask bench library --idle {idle} --starts {starts} --parallel {parallel} --log {}",
        options.log
    );
    save("library.json", &command, &found)
}

/// Numbers as they stand on a command line.
pub(super) fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Runs the program and returns what it found.
pub(super) fn bench(programs: &Path, what: &str, args: &[&str]) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let output = scratch.0.join("found.json");
    let mut command = Command::new(programs.join("bench-library"));
    crate::run(command.arg(what).args(args).arg("--output").arg(&output))?;
    // A point at which the machine came to its end is told within.
    Ok(serde_json::from_slice(&fs::read(output)?)?)
}
