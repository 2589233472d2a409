//! Containers that another revision started, under this tree's programs: `tests/src/bin/upgrade.rs`, in release.

use std::process::Command;

use clap::Args;

use crate::bench;
use crate::setup::{self, BUSYBOX, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The revision whose programs start containers, as git names it
    #[arg(long, value_name = "REV", default_value = "91d2b83")]
    from: String,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX])?;
    let [ours, theirs] = bench::both_builds(&options.from)?;
    crate::run(Command::new(ours.join("upgrade")).arg(theirs))
}
