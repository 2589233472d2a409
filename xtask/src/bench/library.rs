//! What the library costs a service that embeds it. The work is done by a program of `tests`, which
//! has the means; here it is built and started, and what it found is kept.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::Args;
use serde_json::Value;

use super::{Scratch, build, list, save};
use crate::setup::{self, BUSYBOX};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// With how many other containers idle, one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [0, 10_000])]
    idle: Vec<usize>,
    /// How many starts, and twice as many exits, are timed with each
    #[arg(long, value_name = "N", default_value_t = 500)]
    starts: usize,
    #[command(flatten)]
    idle_ones: Idle,
}

/// How the containers are made that do nothing.
#[derive(Debug, Args)]
pub(super) struct Idle {
    /// How many are made, or deleted, at the same time
    #[arg(long, value_name = "N", default_value_t = 12)]
    pub(super) parallel: usize,
    /// Where their output goes. With `none` or `file,direct=yes` the daemon holds two files for each, with others
    /// four: no more than `ulimit -Hn` in all
    #[arg(long, value_name = "DRIVER", default_value = "cri")]
    pub(super) log: String,
    /// The group whose one shim has all of them; else each has its own
    #[arg(long, value_name = "NAME")]
    pub(super) shim_group: Option<String>,
}

impl Idle {
    /// As the program takes it, and as this command does.
    pub(super) fn args(&self) -> Vec<String> {
        let mut args = ["--parallel", &self.parallel.to_string(), "--log", &self.log]
            .map(str::to_owned)
            .to_vec();
        args.extend(
            self.shim_group.iter().flat_map(|group| ["--shim-group".to_owned(), group.clone()]),
        );
        args
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[BUSYBOX])?;
    let (idle, starts) = (list(&options.idle), options.starts.to_string());
    let args = ["--counts", &idle, "--starts", &starts];
    let found = bench(&build()?.dir, "library", &args, &options.idle_ones)?;
    let more = options.idle_ones.args().join(" ");
    let command = format!("cargo xtask bench library --idle {idle} --starts {starts} {more}");
    save("library.json", &command, &found)
}

/// Runs the program and returns what it found.
pub(super) fn bench(
    programs: &Path,
    what: &str,
    args: &[&str],
    idle: &Idle,
) -> anyhow::Result<Value> {
    let scratch = Scratch::new()?;
    let output = scratch.0.join("found.json");
    let mut command = Command::new(programs.join("bench-library"));
    crate::run(command.arg(what).args(args).args(idle.args()).arg("--output").arg(&output))?;
    // A point at which the machine came to its end is told within.
    Ok(serde_json::from_slice(&fs::read(output)?)?)
}
