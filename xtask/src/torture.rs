//! Exits by the thousand while the daemon and the shims are killed: `tests/src/torture.rs`, in
//! release, its result where results are kept.

use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::setup::{self, BUSYBOX, RUNC};

/// What to carry out.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many containers exit; the long form is 100000
    #[arg(long, value_name = "N", default_value_t = 2_000)]
    exits: usize,
    /// What the plan is drawn from; the same seed is the same plan
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many containers in a hundred are runc's, the others being a fake runtime's
    #[arg(long, value_name = "PERCENT", default_value_t = 5)]
    runc_share: u8,
    /// How many containers in a hundred attack their own standard input, output and error
    #[arg(long, value_name = "PERCENT", default_value_t = 12)]
    hostile_share: u8,
    /// Where the result goes, as JSON [default: bench/results/torture.json]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX])?;
    println!("building (release)");
    crate::run(crate::cargo().args(["build", "--release", "--quiet", "--bins"]).args([
        "--package",
        "holdfast",
        "--package",
        "holdfast-shim",
        "--package",
        "holdfast-tests",
    ]))?;
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| crate::workspace().join("bench/results/torture.json"));
    let mut command = Command::new(crate::executables("release").join("torture"));
    command.arg("--exits").arg(options.exits.to_string());
    command.arg("--seed").arg(options.seed.to_string());
    command.arg("--runc-share").arg(options.runc_share.to_string());
    command.arg("--hostile-share").arg(options.hostile_share.to_string());
    crate::run(command.arg("--output").arg(output))
}
