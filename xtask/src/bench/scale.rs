//! How the daemon bears many containers at once. The work is done by a program of `tests`, as in
//! `library`.

use std::path::Path;

use anyhow::bail;
use clap::Args;

use super::library::{Idle, bench};
use super::{build, list, save};
use crate::setup::{self, BUSYBOX, RUNC};

/// The runtime whose containers cost next to nothing.
const FAKE: &str = "fake";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many containers, one number after the other; two processes each
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1_000, 10_000, 30_000])]
    containers: Vec<usize>,
    /// Whose containers: `fake` for mere processes, `embedded`, or an OCI runtime by name or path
    #[arg(long, default_value = FAKE)]
    runtime: String,
    /// How long it is counted who wakes while nothing happens
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    #[command(flatten)]
    idle_ones: Idle,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[BUSYBOX])?;
    if options.runtime == "runc" {
        setup::ensure(&[RUNC])?;
    }
    let (counts, seconds) = (list(&options.containers), options.seconds.to_string());
    let runtime = &options.runtime;
    let args = ["--counts", &counts, "--seconds", &seconds, "--runtime", runtime];
    let found = bench(&build()?.dir, "scale", &args, &options.idle_ones)?;
    let more = options.idle_ones.args().join(" ");
    let command = format!(
        "cargo xtask bench scale --containers {counts} --runtime {runtime} --seconds {seconds} {more}"
    );
    let name = runtime.rsplit('/').next().unwrap_or(runtime);
    let group = if options.idle_ones.shim_group.is_some() { "-group" } else { "" };
    let of = if runtime == FAKE { String::new() } else { format!("-{name}") };
    let file = format!("scale{of}{group}.json");
    save(&file, &command, &found)
}

/// Of a thousand containers, in milliseconds.
pub(super) fn restore_and_adoption(programs: &Path) -> anyhow::Result<[f64; 2]> {
    let args = ["--counts", "1000", "--seconds", "1", "--runtime", FAKE, "--adopt", "true"];
    let idle = Idle { parallel: 12, log: "cri".to_owned(), shim_group: None };
    let found = bench(programs, "scale", &args, &idle)?;
    let point = &found["points"][0];
    let restore = point["restore"]["milliseconds"].as_f64();
    let adoption = point["adoptedSeconds"].as_f64();
    match (restore, adoption) {
        (Some(restore), Some(adoption)) => Ok([restore, adoption * 1000.0]),
        _ => bail!("the measurement came to its end: {found}"),
    }
}
