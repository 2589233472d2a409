//! The cgroup of a container whose runtime is not run by root, where the user's systemd makes it.
//!
//! systemd-run(1) makes a scope of its own process before it becomes the command it was given. So this program becomes
//! systemd-run, which becomes this program again. systemd writes the limits of the scope's own cgroup, and writes them
//! again whenever it is reloaded. So the container is in a cgroup below it, which is delegated to the user.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use holdfast_sys::fd;
use libcgroups::common::DEFAULT_CGROUP_ROOT;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{close, write};
use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use crate::args::Global;
use crate::cgroup::{Cgroup, unified_dir};
use crate::check;

/// The name of the container's cgroup, in that of its scope.
const NAME: &str = "container";

/// Starts this program over, in a scope of its own.
pub(crate) fn start_over(id: &str, config: &Value) -> anyhow::Result<()> {
    let path = config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
    let (slice, unit) = unit(path, id).with_context(|| {
        format!("config.json: linux.cgroupsPath {path:?} is not slice:prefix:name")
    })?;
    // It stays open over systemd-run, which is to execute it.
    let program =
        open("/proc/self/exe", OFlag::O_PATH, Mode::empty()).context("open /proc/self/exe")?;
    let fd = program.as_raw_fd().to_string();
    let mut command = Command::new("systemd-run");
    command.args(["--user", "--scope", "--quiet", "--collect", "--no-ask-password"]);
    command.args(["--property=Delegate=yes", &format!("--description=container {id}")]);
    command.args([format!("--slice={slice}"), format!("--unit={unit}"), "--".to_owned()]);
    command.arg(format!("/proc/self/fd/{fd}")).args(["--in-scope", &fd]);
    let error = command.args(std::env::args_os().skip(1)).exec();
    Err(error).context("execute systemd-run, which makes the container's cgroup")
}

/// The slice and the name of the scope that a `cgroupsPath` asks for.
fn unit(path: &str, id: &str) -> Option<(String, String)> {
    let default = format!(":holdfast:{id}");
    let path = if path.is_empty() { &default } else { path };
    let [slice, prefix, name] = path.split(':').collect::<Vec<_>>().try_into().ok()?;
    let slice = if slice.is_empty() { "user.slice" } else { slice };
    (!prefix.is_empty() && !name.is_empty())
        .then(|| (slice.to_owned(), format!("{prefix}-{name}.scope")))
}

/// Makes the cgroup below the scope in which this process is now, limits it, and enters it.
pub(crate) fn enter(program: i32, id: &str, config: &Value) -> anyhow::Result<Scope> {
    // The container must not get hold of it.
    close(program).context("close the descriptor of this program")?;
    let scope = unified_dir(i32::try_from(std::process::id())?)?;
    let dir = scope.join(NAME);
    make(&scope, &dir).with_context(|| format!("make the cgroup {}", dir.display()))?;
    let scope = Scope { pids_max: open_pids_max(&dir)?, dir };
    scope.limit(id, &config["linux"]["resources"]).context("config.json: linux.resources")?;
    Ok(scope)
}

/// In a cgroup with controllers for those below it, there may be no processes.
fn make(scope: &Path, dir: &Path) -> io::Result<()> {
    fs::create_dir(dir)?;
    fs::write(dir.join("cgroup.procs"), "0")?;
    let controllers = fs::read_to_string(scope.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(scope.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

/// Brings this process into the cgroup of a container.
pub(crate) fn join(cgroup: &Cgroup) -> anyhow::Result<()> {
    for dir in &cgroup.dirs {
        fs::write(dir.join("cgroup.procs"), "0").with_context(|| {
            format!(
                "enter the container's cgroup {}: this process has to be one of the user's own systemd",
                dir.display()
            )
        })?;
    }
    Ok(())
}

/// A container's cgroup. For the root of the container's user namespace its path leads nowhere, and its limits are out
/// of reach: the kernel asks in which cgroup namespace a file was opened (`nsdelegate` in cgroups(7)).
#[derive(Debug)]
pub(crate) struct Scope {
    dir: PathBuf,
    /// Its limit of processes, open for writing; `None` if it has none.
    pids_max: Option<OwnedFd>,
}

impl Scope {
    /// Takes what an earlier start of this program has passed on.
    pub(crate) fn passed_on(global: &Global) -> Option<Self> {
        let dir = global.cgroup.clone()?;
        let pids_max = global.pids_max.and_then(|number| fd::inherited(number, 1)?.pop());
        Some(Self { dir, pids_max })
    }

    /// The arguments by which it is passed on.
    pub(crate) fn args(&self) -> anyhow::Result<Vec<String>> {
        let dir = self.dir.to_str().context("the path of the cgroup is no text")?;
        let mut args = vec!["--cgroup".to_owned(), dir.to_owned()];
        if let Some(file) = &self.pids_max {
            args.extend(["--pids-max".to_owned(), file.as_raw_fd().to_string()]);
        }
        Ok(args)
    }

    /// As it is recorded.
    pub(crate) fn cgroup(&self) -> Cgroup {
        let below = self.dir.strip_prefix(DEFAULT_CGROUP_ROOT).unwrap_or(&self.dir);
        Cgroup {
            path: Path::new("/").join(below),
            dirs: vec![self.dir.clone()],
            ..Cgroup::default()
        }
    }

    /// Sets the limit of processes, once this program needs no more of them.
    pub(crate) fn write_pids_max(&self, value: &str) -> anyhow::Result<()> {
        let file = self.pids_max.as_ref().context("the cgroup has no pids.max")?;
        write(file, value.as_bytes()).with_context(|| format!("write {value} to pids.max"))?;
        Ok(())
    }

    /// Sets all limits but that of processes, which this program would need to exceed.
    fn limit(&self, id: &str, resources: &Value) -> anyhow::Result<()> {
        if resources.is_null() {
            return Ok(());
        }
        check::resources(resources, true)?;
        let mut resources: LinuxResources = serde_json::from_value(resources.clone())?;
        resources.set_devices(None).set_pids(None);
        self.cgroup().apply(id, &resources)
    }
}

/// Opens the limit of processes for the program that this one becomes.
fn open_pids_max(dir: &Path) -> anyhow::Result<Option<OwnedFd>> {
    let path = dir.join("pids.max");
    match open(&path, OFlag::O_WRONLY, Mode::empty()) {
        Err(Errno::ENOENT) => Ok(None),
        opened => Ok(Some(opened.with_context(|| format!("open {}", path.display()))?)),
    }
}

/// Leaves what is still to be applied: the limit of processes.
pub(crate) fn keep_late(resources: &mut Value) {
    if let Some(resources) = resources.as_object_mut() {
        resources.retain(|name, _| name == "pids");
    }
}

/// Whether the caller has asked for a scope, by `--systemd-cgroup`.
pub(crate) fn is_asked_for(global: &Global) -> anyhow::Result<bool> {
    if global.systemd_cgroup && !crate::cgroup::is_unified()? {
        bail!("--systemd-cgroup: systemd makes no cgroup of version 1 for a user");
    }
    Ok(global.systemd_cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_slice_and_scope() {
        let named = |slice: &str, unit: &str| Some((slice.to_owned(), unit.to_owned()));
        assert_eq!(unit("a.slice:b:c.1", "x"), named("a.slice", "b-c.1.scope"));
        assert_eq!(unit("", "x"), named("user.slice", "holdfast-x.scope"));
        for path in ["/a/b", "a:b", "a.slice::c", "a.slice:b:", "a:b:c:d"] {
            assert_eq!(unit(path, "x"), None, "{path}");
        }
    }
}
