//! All tests: those beside the code, and the system as a whole against real runtimes.

use anyhow::bail;
use clap::Args;

use crate::setup::{
    self, BUSYBOX, CATATONIT, CONMON, CONTAINERD, PODMAN, PS, RUNC, STRACE, UIDMAP,
};
use crate::suite::{self, Circumstances, Count, EMBEDDED, Finished, Outcome};

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Run everything this often, to find a race
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// The OCI runtime of the system's tests, by name or path; `embedded` is Holdfast's own
    /// [default: runc, and some tests with the embedded one too]
    #[arg(long, value_name = "NAME|PATH")]
    runtime: Option<String>,
    /// As on a machine without runc: it is not installed, and where it is, not found
    #[arg(long)]
    without_runc: bool,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// The tests that say something else where all containers share a shim.
const IN_A_GROUP: &[&str] = &[
    "adoption",
    "attach",
    "faults",
    "hostile_output",
    "logs",
    "output",
    "process",
    "removal",
    "restore",
    "stdio",
    "terminal",
];

/// Those that say something else with the embedded runtime.
const WITH_THE_EMBEDDED: &[&str] = &["library", "removal"];

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(if options.without_runc {
        // Debian's containerd and podman need runc, or crun.
        &[BUSYBOX, STRACE, PS, UIDMAP]
    } else {
        &[RUNC, BUSYBOX, STRACE, PS, UIDMAP, CONTAINERD, PODMAN, CONMON, CATATONIT]
    })?;
    let mut circumstances = Circumstances::with_runtime(options.runtime.as_deref())?;
    if options.without_runc {
        circumstances = circumstances.hide_runc()?;
    }
    suite::build()?;
    let filter: Vec<_> = options.filter.iter().map(String::as_str).collect();
    let mut total = Count::default();
    let mut notable = Vec::new();
    let mut run = |filter: &[&str], circumstances: &Circumstances| {
        let tests = suite::run(filter, circumstances)?;
        total.add(&tests);
        notable.extend(tests.into_iter().filter(|test| test.outcome != Outcome::Passed));
        anyhow::Ok(())
    };
    for _ in 0..options.repeat {
        run(&filter, &circumstances)?;
        if options.runtime.is_none() && !options.without_runc && options.filter.is_none() {
            let embedded = Circumstances::with_runtime(Some(EMBEDDED))?;
            let grouped = Circumstances::with_runtime(None)?.in_a_group();
            for (what, circumstances, of) in [
                ("tests with the embedded runtime", embedded, WITH_THE_EMBEDDED),
                ("tests with one shim for all", grouped, IN_A_GROUP),
            ] {
                println!("{what}");
                let filter: Vec<_> = of.iter().flat_map(|test| ["--test", test]).collect();
                run(&filter, &circumstances)?;
            }
        }
    }
    show(&notable);
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 {
        // All is said, and the closing line stays the last one.
        std::process::exit(1);
    }
    if total.passed == 0 {
        bail!("no test was run");
    }
    Ok(())
}

/// What was not tested, or not found to be right, above the closing line.
fn show(notable: &[Finished]) {
    for Finished { test, outcome, said } in notable {
        match outcome {
            Outcome::Passed => {}
            Outcome::Skipped(reason) => println!("skipped: {test}: {reason}"),
            Outcome::Failed => println!("failed: {test}\n{said}"),
        }
    }
}
