//! `cargo xtask`: everything that a developer or CI runs.
//!
//! | module | what |
//! |---|---|
//! | `setup` | the programs that a command needs, from Debian's packages |
//! | `demo` | README's first command: the main job, before your eyes |
//! | `fuzz` | all readers of foreign bytes, fed with any bytes |
//! | `test` | README's second command: all tests |
//! | `runtimes` | the lifecycle tests once for each OCI runtime, in one table |
//! | `suite` | one run of cargo's tests |
//! | `crash_points` | the daemon and the shims, killed at each step that they take |
//! | `bench` | measurements beside the peers |
//! | `torture` | exits by the thousand while daemon and shims are killed at random |
//! | `upgrade` | containers that another revision started, under this tree's programs |
//! | `man` | manual pages and completion scripts |
//! | `web` | the web page in a browser |
//! | `vm` | Holdfast under another kernel, under systemd, and with its power cut |

mod bench;
mod crash_points;
mod demo;
mod dist;
mod fuzz;
mod man;
mod runtimes;
mod setup;
mod suite;
mod test;
mod torture;
mod upgrade;
mod vm;
mod web;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Parser;

/// What a developer or CI runs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Host containers, kill the daemon, and show that nothing was lost
    Demo,
    /// Run all tests
    Test(test::Options),
    /// Run the lifecycle tests once for each OCI runtime, and print what came of them
    Runtimes(runtimes::Options),
    /// Kill the daemon, and the shims, at each system call that changes the world
    CrashPoints(crash_points::Options),
    /// Have containers exit while the daemon and their shims are killed, stopped and continued
    Torture(torture::Options),
    /// Have containers of another revision go on under this one
    Upgrade(upgrade::Options),
    /// Run Holdfast in a virtual machine: Debian's kernel 6.1, systemd, power cuts
    VmTest(vm::Options),
    /// Test the web page in headless Chromium, and renew its picture docs/web.png
    WebTest,
    /// Measure, beside the peers and in the same run
    Bench(bench::Options),
    /// Run the fuzz targets, each for some seconds
    Fuzz(fuzz::Options),
    /// Write the manual pages and completion scripts, as they are installed
    Man(man::Options),
    /// Make what is published: tarball, Debian package, SBOM, checksums
    Dist(dist::Options),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Demo => demo::run(),
        Task::Test(options) => test::run(&options),
        Task::Runtimes(options) => runtimes::run(&options),
        Task::CrashPoints(options) => crash_points::run(&options),
        Task::Torture(options) => torture::run(&options),
        Task::Upgrade(options) => upgrade::run(&options),
        Task::VmTest(options) => vm::run(&options),
        Task::WebTest => web::run(),
        Task::Bench(options) => bench::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Man(options) => man::write(&options),
        Task::Dist(options) => dist::publish(&options),
    }
}

/// The workspace's folder.
fn workspace() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), PathBuf::from)
}

/// The cargo that runs this.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// A build. It may take minutes, so a terminal shows how far it is.
fn build() -> Command {
    let mut command = cargo();
    command.arg("build");
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    command
}

/// Builds programs as they are released; all, if none is named. It is always from the same packages: with others their
/// dependencies would have other features, and be built anew.
fn build_release(programs: &[&str]) -> anyhow::Result<()> {
    println!("building (release)");
    let mut build = build();
    build.arg("--release").args(["--package", "holdfast-tests"]);
    build.args(dist::PACKAGES.iter().flat_map(|package| ["--package", package]));
    match programs {
        [] => build.arg("--bins"),
        some => build.args(some.iter().flat_map(|program| ["--bin", program])),
    };
    run(&mut build)
}

/// git, in the workspace.
fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(workspace());
    command
}

/// The commit that is checked out, and whether there is more than that.
fn commit() -> anyhow::Result<String> {
    let commit = setup::output(git().args(["describe", "--always", "--dirty"]))?;
    Ok(commit.trim().to_owned())
}

/// Runs a command to its end, its output being ours.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{} cannot be started", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

/// Where cargo puts the executables of a profile.
fn executables(profile: &str) -> PathBuf {
    target().join(profile)
}

/// Where cargo puts all that it makes.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
