//! All tests: those beside the code, and the system as a whole against real runtimes.

use clap::Args;

use crate::setup::{self, BUSYBOX, RUNC, STRACE};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run each of the system's tests this often, to find a race
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// Only tests whose name contains this
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, STRACE])?;
    // The system's tests start the executables of other packages, which cargo test alone does not build.
    crate::run(crate::cargo().args(["build", "--workspace", "--bins", "--examples"]))?;
    for _ in 0..options.repeat {
        let mut command = crate::cargo();
        command.args(["test", "--workspace"]).args(&options.filter);
        crate::run(&mut command)?;
    }
    Ok(())
}
