//! Kills the daemon, and then the shims, at each of their system calls that changes the world. The
//! work is done by a program of `tests`, which has the means; here it is built and started.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::setup::{self, BUSYBOX, RUNC};

/// Where and how often.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kill only these
    #[arg(long)]
    only: Option<Victim>,
    /// Every N-th point only
    #[arg(long, value_name = "N", default_value_t = 1)]
    every: u32,
    /// With runc, every N-th of those points; all of them are tried with the fake runtime
    #[arg(long, value_name = "N", default_value_t = 8)]
    runc_every: u32,
    /// With which point to begin, where not all are tried
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the result goes
    #[arg(long, value_name = "FILE", default_value = "bench/results/crash-points.json")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Victim {
    Daemon,
    Shim,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX])?;
    crate::run(crate::build().args(["--workspace", "--bins"]))?;
    let out = crate::workspace().join(&options.out);
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut command = std::process::Command::new(crate::executables("debug").join("crash-points"));
    match options.only {
        Some(Victim::Daemon) => _ = command.args(["--only", "daemon"]),
        Some(Victim::Shim) => _ = command.args(["--only", "shim"]),
        None => {}
    }
    command
        .args(["--every", &options.every.to_string()])
        .args(["--runc-every", &options.runc_every.to_string()])
        .args(["--seed", &options.seed.to_string()])
        .arg("--out")
        .arg(out);
    crate::run(&mut command)
}
