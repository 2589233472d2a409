//! Exits by the thousand while the daemon and the shims are killed: `tests/src/torture.rs`, in
//! release, its result where results are kept. Of pods under containerd: `tests/src/pods.rs`. Of containers of podman:
//! `tests/src/monitors.rs`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use clap::Args;

use crate::bench;
use crate::setup::{self, BUSYBOX, CONTAINERD, PODMAN, RUNC, SETPRIV, UIDMAP};

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
    /// Run it as this user, who is not root
    #[arg(long, value_name = "NAME", conflicts_with_all = ["containerd", "podman", "policies"])]
    user: Option<String>,
    /// Where the result goes, as JSON [default: bench/results/torture.json, torture-containerd.json and so on]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// So many containers of podman, while their monitors are killed
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["containerd", "exits", "runc_share", "hostile_share"])]
    podman: Option<usize>,
    /// Pods under a containerd, which is killed as well
    #[arg(long, conflicts_with_all = ["exits", "runc_share", "hostile_share"])]
    containerd: bool,
    /// How many pods come and go
    #[arg(long, value_name = "N", default_value_t = 1_000, requires = "containerd")]
    cycles: usize,
    /// How many fronts of other pods are killed after that
    #[arg(long, value_name = "N", default_value_t = 100, requires = "containerd")]
    fronts: usize,
    /// Install the programs of this revision in place of this tree's, and the reverse, time and again
    #[arg(long, value_name = "REV", requires = "containerd")]
    replace: Option<String>,
    /// Restart policies and health checks
    #[arg(long, conflicts_with_all = ["containerd", "exits", "runc_share", "hostile_share"])]
    policies: bool,
    /// How many rounds of 24 containers there are
    #[arg(long, value_name = "N", default_value_t = 20, requires = "policies")]
    rounds: usize,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut needed = vec![RUNC, BUSYBOX];
    needed.extend(options.containerd.then_some(CONTAINERD));
    needed.extend(options.podman.map(|_| PODMAN));
    if options.user.is_some() {
        needed.extend([SETPRIV, UIDMAP]);
    }
    setup::ensure(&needed)?;
    crate::build_release(&[])?;
    let (program, result) = match options {
        Options { replace: Some(_), .. } => ("torture-containerd", "torture-replace.json"),
        Options { containerd: true, .. } => ("torture-containerd", "torture-containerd.json"),
        Options { podman: Some(_), .. } => ("torture-podman", "torture-podman.json"),
        Options { policies: true, .. } => ("torture-policies", "torture-policies.json"),
        Options { user: Some(_), .. } => ("torture", "torture-rootless.json"),
        _ => ("torture", "torture.json"),
    };
    let program = crate::executables("release").join(program);
    let mut command = match &options.user {
        None => Command::new(program),
        Some(user) => as_user(user, &program),
    };
    command.arg("--seed").arg(options.seed.to_string());
    if let Some(count) = options.podman {
        command.arg("--containers").arg(count.to_string());
    } else if options.containerd {
        command.arg("--cycles").arg(options.cycles.to_string());
        command.arg("--fronts").arg(options.fronts.to_string());
        if let Some(revision) = &options.replace {
            command.arg("--other").arg(bench::build_of(revision)?);
        }
    } else if options.policies {
        command.arg("--rounds").arg(options.rounds.to_string());
    } else {
        command.arg("--exits").arg(options.exits.to_string());
        command.arg("--runc-share").arg(options.runc_share.to_string());
        command.arg("--hostile-share").arg(options.hostile_share.to_string());
    }
    let results = crate::workspace().join("bench/results");
    let output = options.output.clone().unwrap_or_else(|| results.join(result));
    if options.user.is_none() {
        return crate::run(command.arg("--output").arg(output));
    }
    // The user may not write to our directories.
    let theirs = tempfile::Builder::new().prefix("holdfast-torture-result-").tempdir()?;
    fs::set_permissions(theirs.path(), fs::Permissions::from_mode(0o777))?;
    let result = theirs.path().join(result);
    let done = crate::run(command.arg("--output").arg(&result));
    if result.exists() {
        fs::copy(&result, &output).with_context(|| format!("write {}", output.display()))?;
    }
    done
}

/// Returns a command of another user. The executable has to be where that user may reach it.
fn as_user(user: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--init-groups", "--"]).arg(program);
    command
}
