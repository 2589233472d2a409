//! A container's cgroups, in every hierarchy of the machine.
//!
//! libcgroups makes most of them (see [`hierarchy`](crate::hierarchy)) and applies limits. It finds no
//! processes in nested cgroups when it removes, and waits for nothing; so killing and removing are done
//! here.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_sys::PidFd;
use holdfast_sys::mountinfo::{self, Mount};
use libcgroups::common::{
    AnyCgroupManager, CgroupConfig, CgroupManager, CgroupSetup, ControllerOpt, DEFAULT_CGROUP_ROOT,
    create_cgroup_manager, get_cgroup_setup,
};
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::hierarchy::{Hierarchy, Visit};

/// How long killed processes may take to vanish. Only one that hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long a cgroup without processes may stay busy. Version 1 announces nothing to wait for.
const BUSY_GRACE: Duration = Duration::from_secs(2);
const SIGKILL: i32 = nix::sys::signal::Signal::SIGKILL as i32;

/// A container's cgroups.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cgroup {
    /// As the configuration has it.
    pub(crate) path: PathBuf,
    /// Whether systemd made it.
    pub(crate) systemd: bool,
    /// Its directory in each hierarchy.
    pub(crate) dirs: Vec<PathBuf>,
    /// Those of them into which libcgroups puts nobody. A container that an earlier build made has
    /// none: it is in its caller's cgroup there.
    #[serde(default)]
    pub(crate) joined: Vec<PathBuf>,
}

impl Cgroup {
    /// The cgroups that a path stands for. Where systemd chooses, only a process in them tells.
    pub(crate) fn new(
        path: &Path,
        systemd: bool,
        member: Option<i32>,
        hierarchies: &[Hierarchy],
    ) -> anyhow::Result<Self> {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let (known, others): (Vec<_>, Vec<_>) = hierarchies.iter().partition(|it| it.known);
        let joined: Vec<PathBuf> = others.iter().map(|it| it.mount.join(relative)).collect();
        let mut dirs: Vec<PathBuf> = match (is_unified()?, member) {
            (true, Some(pid)) => vec![unified_dir(pid)?],
            (true, None) if systemd && path.is_relative() => Vec::new(),
            _ => known.iter().map(|it| it.mount.join(relative)).collect(),
        };
        dirs.extend(joined.iter().cloned());
        Ok(Self { path: path.to_owned(), systemd, dirs, joined })
    }

    /// Brings this process into those cgroups into which libcgroups puts nobody.
    pub(crate) fn visit(&self, hierarchies: &[Hierarchy]) -> anyhow::Result<Visit> {
        Visit::begin(hierarchies.iter().filter(|it| !it.known).zip(&self.joined))
    }

    /// libcgroups' handle.
    pub(crate) fn manager(&self, id: &str) -> anyhow::Result<AnyCgroupManager> {
        Ok(create_cgroup_manager(CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: self.systemd,
            container_name: id.to_owned(),
        })?)
    }

    /// Has libcgroups set limits.
    pub(crate) fn apply(&self, id: &str, resources: &LinuxResources) -> anyhow::Result<()> {
        let options = ControllerOpt {
            resources,
            freezer_state: None,
            oom_score_adj: None,
            disable_oom_killer: false,
        };
        Ok(self.manager(id)?.apply(&options)?)
    }

    /// All processes, those of nested cgroups too.
    pub(crate) fn pids(&self) -> io::Result<Vec<i32>> {
        let mut all = HashSet::new();
        for dir in &self.dirs {
            let visit = |dir: BorrowedFd<'_>| {
                let text = match read_at(dir, "cgroup.procs") {
                    // Of threads, as a container may make some below its own; the processes that
                    // they belong to are listed above.
                    Err(error) if is_errno(&error, Errno::EOPNOTSUPP) => return Ok(()),
                    text => ignore_missing(text)?,
                };
                all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
                Ok(())
            };
            walk(dir, visit, |_, _| Ok(()))?;
        }
        // A process of a pid namespace that is not ours has the number 0.
        all.remove(&0);
        let mut all: Vec<i32> = all.into_iter().collect();
        all.sort_unstable();
        Ok(all)
    }

    /// Whether the processes are suspended. Where there is a freezer of version 1, that one tells: a
    /// container can write to its cgroup of the unified hierarchy, and `pause` does not.
    pub(crate) fn is_frozen(&self) -> bool {
        let read = |name: &str| {
            let text = self.dirs.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
            text.map(|text| text.trim().to_owned())
        };
        match read("freezer.state") {
            Some(state) => state == "FROZEN" || state == "FREEZING",
            None => read("cgroup.freeze").is_some_and(|state| state == "1"),
        }
    }

    /// Sends every process a signal. Suspended meanwhile, none starts another that gets none.
    pub(crate) fn signal(&self, signal: i32) -> anyhow::Result<()> {
        let was_frozen = self.is_frozen();
        self.set_frozen(true);
        let pids = self.pids();
        for process in pids.iter().flatten().filter_map(|pid| PidFd::open(*pid).ok()) {
            _ = process.send_signal(signal);
        }
        // A suspended process dies of nothing in version 1.
        if !was_frozen || signal == SIGKILL {
            self.set_frozen(false);
        }
        pids.map(drop).context("list the processes of the cgroup")
    }

    /// Kills every process and waits until none is left.
    fn kill(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + KILL_GRACE;
        loop {
            let pids = self.pids().context("list the processes of the cgroup")?;
            let own = i32::try_from(std::process::id())?;
            if pids.contains(&own) {
                bail!("the cgroup {} holds this runtime itself", self.path.display());
            }
            // Opened before they are killed: what is waited for is what was killed.
            let processes: Vec<PidFd> =
                pids.iter().filter_map(|pid| PidFd::open(*pid).ok()).collect();
            if processes.iter().all(|process| !process.is_alive()) {
                return Ok(());
            }
            self.signal(SIGKILL)?;
            for process in &processes {
                wait_for(process, deadline)?;
            }
            if Instant::now() >= deadline {
                bail!("processes of the cgroup {} survive SIGKILL", self.path.display());
            }
        }
    }

    /// Kills every process and removes the directories, nested ones first.
    pub(crate) fn destroy(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + BUSY_GRACE;
        loop {
            self.kill()?;
            match self
                .dirs
                .iter()
                .try_for_each(|dir| remove_tree(dir).map_err(|error| (error.kind(), error, dir)))
            {
                Ok(()) => return Ok(()),
                // Busy with the dead, whom version 1 lets go a little later; or a process of a
                // `create` that was killed itself has joined only now.
                Err((ErrorKind::ResourceBusy, ..)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err((_, error, dir)) => {
                    return Err(error).with_context(|| format!("remove {}", dir.display()));
                }
            }
        }
    }

    /// Best effort: where there is no freezer, nothing is lost but a race. Where there are two, only that
    /// of version 1 suspends: `resume` knows no other.
    fn set_frozen(&self, frozen: bool) {
        let (v1, v2) = if frozen { ("FROZEN", "1") } else { ("THAWED", "0") };
        let write = |name: &str, value: &str| {
            let files = self.dirs.iter().map(|dir| dir.join(name)).filter(|file| file.exists());
            files.map(|file| _ = fs::write(file, value)).count()
        };
        if write("freezer.state", v1) == 0 || !frozen {
            write("cgroup.freeze", v2);
        }
    }
}

/// Whether this machine has version 2 alone.
pub(crate) fn is_unified() -> anyhow::Result<bool> {
    Ok(matches!(get_cgroup_setup()?, CgroupSetup::Unified))
}

/// The mounts of version 1's hierarchies that libcontainer shows a container; none on a machine
/// without.
pub(crate) fn v1_mounts() -> io::Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse_v1_mounts(&text))
}

fn parse_v1_mounts(mounts: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = Vec::new();
    for Mount { kind, point, .. } in mountinfo::parse(mounts) {
        if kind == "cgroup" && point.starts_with("/sys/fs/cgroup") && !all.contains(&point) {
            all.push(point);
        }
    }
    all
}

/// Waits for the end of a process, whoever reaps it.
pub(crate) fn wait_for(process: &PidFd, deadline: Instant) -> io::Result<()> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], left) {
            Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The one of a container's directories that counts memory. Where systemd chose it, only the process in it
/// tells which it is.
pub(crate) fn of_memory(dirs: &[PathBuf], pid: i32) -> Option<PathBuf> {
    let with = |name: &str| dirs.iter().find(|dir| dir.join(name).exists()).cloned();
    let found = with("memory.limit_in_bytes").or_else(|| with("memory.current"));
    found.or_else(|| is_unified().ok()?.then(|| unified_dir(pid).ok())?)
}

/// The cgroup of a process in the unified hierarchy, whatever cgroup namespace it is in.
pub(crate) fn unified_dir(pid: i32) -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.filter(|path| !path.is_empty() && !path.contains(".."));
    Ok(Path::new(DEFAULT_CGROUP_ROOT).join(path.context("the process is in no cgroup of its own")?))
}

/// Goes through a cgroup and all below it: `visit` gets each, and once all below one are through, `leave`
/// gets its name and the one above; the first one has none. Paths and descriptors may not be long or many
/// enough for how deep a container has nested its cgroups, so that this goes from one to the next.
fn walk(
    dir: &Path,
    mut visit: impl FnMut(BorrowedFd<'_>) -> io::Result<()>,
    mut leave: impl FnMut(BorrowedFd<'_>, &CStr) -> io::Result<()>,
) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = match nix::fcntl::open(dir, flags, Mode::empty()).map_err(io::Error::from) {
        Err(error) if is_missing(&error) => return Ok(()),
        opened => opened?,
    };
    visit(at.as_fd())?;
    let mut above: Vec<CString> = Vec::new();
    let mut ahead = vec![below(&at)?];
    while let Some(names) = ahead.last_mut() {
        if let Some(name) = names.pop() {
            match openat(&at, name.as_c_str(), flags, Mode::empty()).map_err(io::Error::from) {
                Err(error) if is_missing(&error) => continue,
                opened => at = opened?,
            }
            visit(at.as_fd())?;
            ahead.push(below(&at)?);
            above.push(name);
        } else {
            ahead.pop();
            let Some(name) = above.pop() else { break };
            at = openat(&at, "..", flags, Mode::empty())?;
            leave(at.as_fd(), &name)?;
        }
    }
    Ok(())
}

/// The names of the cgroups right below one.
fn below(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = match Dir::openat(dir, ".", flags, Mode::empty()).map_err(io::Error::from) {
        Err(error) if is_missing(&error) => return Ok(Vec::new()),
        opened => opened?,
    };
    let mut names = Vec::new();
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn read_at(dir: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let remove = |above: BorrowedFd<'_>, name: &CStr| {
        let removed = unlinkat(above, name, UnlinkatFlags::RemoveDir);
        ignore_missing(removed.map_err(io::Error::from))
    };
    walk(dir, |_| Ok(()), remove)?;
    ignore_missing(fs::remove_dir(dir))
}

/// What vanishes under our eyes is gone, which is fine.
fn ignore_missing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if is_missing(&error) => Ok(T::default()),
        other => other,
    }
}

fn is_missing(error: &io::Error) -> bool {
    // ENODEV: reading a file of a cgroup that has been removed since.
    error.kind() == ErrorKind::NotFound || is_errno(error, Errno::ENODEV)
}

fn is_errno(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_type() {
        let text = "24 19 0:22 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755\n\
             25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
             26 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
             28 24 0:26 / /elsewhere/pids rw - cgroup cgroup rw,pids\n";
        let mounts = parse_v1_mounts(text);
        let expected = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd"].map(PathBuf::from);
        assert_eq!(mounts, expected);
    }
}
