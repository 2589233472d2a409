//! Who runs a container of `true` by a single command, and what they need for it: for `start` and
//! `churn`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::peers::{self, Containerd, Daemon};
use super::{Programs, runtimes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Host {
    Runc,
    Ctr,
    /// Through a running daemon, which is this one of the stage's, by this runtime.
    Holdfast(usize, &'static str),
}

/// A bundle, and the daemons that are asked to run it.
pub(super) struct Stage<'a> {
    pub(super) scratch: &'a Path,
    pub(super) bundle: PathBuf,
    daemons: Vec<Daemon>,
    containerd: Option<Containerd>,
}

impl<'a> Stage<'a> {
    /// With all that take turns. The peers do where there is one set of programs; of two, those of
    /// each runtime are side by side.
    pub(super) fn new(
        scratch: &'a Path,
        programs: &[Programs],
    ) -> anyhow::Result<(Self, Vec<Host>)> {
        let data = scratch.join("data");
        fs::create_dir(&data)?;
        let mut stage = Self {
            scratch,
            bundle: peers::bundle(scratch, &data, &["true"])?,
            daemons: Daemon::start_all(programs, scratch)?,
            containerd: None,
        };
        let mut hosts = Vec::new();
        for runtime in runtimes(programs) {
            hosts.extend((0..programs.len()).map(|daemon| Host::Holdfast(daemon, runtime)));
        }
        if programs.len() == 1 {
            stage.same_bundle_for_all()?;
            hosts.insert(0, Host::Runc);
            if Containerd::is_installed() {
                stage.containerd = Some(Containerd::start(scratch)?);
                hosts.push(Host::Ctr);
            } else {
                println!("not measured: ctr (containerd is not installed)");
            }
        }
        Ok((stage, hosts))
    }

    /// Checks that Holdfast gives its runtime the bundle that the others are given, and no changed
    /// copy of it: all of them run the same `config.json`.
    fn same_bundle_for_all(&self) -> anyhow::Result<()> {
        let bundle = self.bundle.canonicalize()?;
        for daemon in &self.daemons {
            daemon.ok(&[
                "create",
                "--bundle",
                &bundle.display().to_string(),
                "--name",
                "bundle",
            ])?;
            let info: Value = serde_json::from_str(&daemon.ok(&["inspect", "--json", "bundle"])?)?;
            daemon.ok(&["delete", "--force", "bundle"])?;
            ensure!(info["bundle"] == json!(bundle), "the runtime is given {}", info["bundle"]);
        }
        Ok(())
    }

    pub(super) fn name(&self, host: Host) -> String {
        match host {
            Host::Runc => "runc run".to_owned(),
            Host::Ctr => "ctr run".to_owned(),
            Host::Holdfast(daemon, runtime) => {
                format!("{} run, {runtime}", self.daemons[daemon].programs.name)
            }
        }
    }

    /// What runs one container to its end, but for its id, which comes last.
    pub(super) fn command(&self, host: Host) -> anyhow::Result<Command> {
        Ok(match host {
            Host::Runc => {
                let mut command = Command::new("runc");
                command.arg("--root").arg(self.scratch.join("runc"));
                command.args(["run", "--bundle"]).arg(&self.bundle);
                command
            }
            Host::Ctr => {
                self.containerd.as_ref().context("no containerd")?.run(&self.bundle, &["--rm"])
            }
            Host::Holdfast(daemon, runtime) => {
                let daemon = &self.daemons[daemon];
                let runtime = daemon.programs.runtime(runtime);
                let bundle = self.bundle.display().to_string();
                let args = ["run", "--rm", "--runtime", &runtime, "--bundle", &bundle, "--name"];
                daemon.command(&args)
            }
        })
    }

    pub(super) fn daemon(&self, number: usize) -> &Daemon {
        &self.daemons[number]
    }

    /// Where a host has directories of containers.
    pub(super) fn states(&self, host: Host) -> Vec<PathBuf> {
        match host {
            Host::Runc => vec![self.scratch.join("runc")],
            Host::Ctr => self.containerd.as_ref().map(Containerd::states).unwrap_or_default(),
            Host::Holdfast(daemon, _) => self.daemons[daemon].states(),
        }
    }

    /// Returns whether no process is left but those that stay without any container.
    pub(super) fn has_no_process(&self) -> bool {
        let stay = self.pids();
        peers::processes(self.scratch).iter().all(|pid| stay.contains(pid))
    }

    /// The processes that stay when no container is left.
    fn pids(&self) -> Vec<u32> {
        let containerd = self.containerd.as_ref().map(Containerd::pid);
        self.daemons.iter().map(Daemon::pid).chain(containerd).collect()
    }
}
