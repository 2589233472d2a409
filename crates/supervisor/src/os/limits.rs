//! What this kernel supports, and how many containers this machine allows for one supervisor.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::os::cgroup::Cgroups;

/// How much of each resource is kept free for other purposes: clients, running runtimes, records.
const RESERVE: u64 = 128;
/// The number of processes per container: one process and its shim.
const PROCESSES: u64 = 2;

/// The kernel features that Holdfast uses; docs/reliability.md describes their effects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Abilities {
    /// The release of the kernel, for example `6.18`.
    pub kernel: String,
    /// Whether the kernel reports the exit status of a process that someone else has reaped (Linux
    /// 6.15 or later).
    pub tells_endings: bool,
    /// Whether the kernel has process handles that can be stored on disk (pidfs, Linux 6.14 or
    /// later).
    pub process_handles: bool,
    /// `v2`, `v1`, or `hybrid`: v1 with an empty v2 hierarchy beside it.
    pub cgroups: String,
}

impl Abilities {
    /// Probes the kernel.
    pub(crate) fn probe() -> Self {
        let (major, minor) = holdfast_sys::kernel::release();
        let exists = |path: &str| std::path::Path::new(path).exists();
        let cgroups = if exists("/sys/fs/cgroup/cgroup.controllers") {
            "v2"
        } else if exists("/sys/fs/cgroup/unified/cgroup.controllers") {
            "hybrid"
        } else {
            "v1"
        };
        Self {
            kernel: format!("{major}.{minor}"),
            tells_endings: holdfast_sys::kernel::tells_endings(),
            process_handles: holdfast_sys::pidfs::has_handles(),
            cgroups: cgroups.to_owned(),
        }
    }
}

/// A limited resource that containers use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Limit {
    /// The resource.
    pub of: String,
    /// The limit, in units of the resource.
    pub most: u64,
    /// For how many containers that is enough, if nothing else uses the resource.
    pub containers: u64,
    /// The setting that raises the limit.
    pub raise: String,
}

/// Returns all limits, the lowest number of containers first. Limits that cannot be read are
/// omitted.
pub(crate) fn read(abilities: &Abilities) -> Vec<Limit> {
    let limit = |of: &str, most: Option<u64>, each: u64, raise: &str| {
        let most = most?;
        let containers = most.saturating_sub(RESERVE) / each;
        Some(Limit { of: of.to_owned(), most, containers, raise: raise.to_owned() })
    };
    let v2 = abilities.cgroups == "v2";
    // Per container: the exit FIFO, the pidfd, and copies of its two pipes; on v1 also the eventfd
    // for OOM notifications.
    let files = if v2 { 4 } else { 5 };
    let own = |resource| getrlimit(resource).ok().map(|(soft, _)| soft);
    let kernel = |name: &str| number(&format!("/proc/sys/{name}"));
    let of_cgroup = Cgroups::own().ok().and_then(|own| own.pids_max());
    let limits = [
        limit(OPEN_FILES, own(Resource::RLIMIT_NOFILE), files, RAISE_FILES),
        limit("process numbers", kernel("kernel/pid_max"), PROCESSES, "sysctl kernel.pid_max"),
        limit("threads", kernel("kernel/threads-max"), PROCESSES, "sysctl kernel.threads-max"),
        limit("processes of this user", own(Resource::RLIMIT_NPROC), PROCESSES, RAISE_PROCESSES),
        limit("processes of this cgroup", of_cgroup, PROCESSES, "TasksMax= of the unit"),
        limit("open files of the machine", kernel("fs/file-max"), 25, "sysctl fs.file-max"),
        limit(
            "watched files of this user",
            kernel("fs/inotify/max_user_watches").filter(|_| v2),
            1,
            "sysctl fs.inotify.max_user_watches",
        ),
    ];
    let mut limits: Vec<_> = limits.into_iter().flatten().collect();
    limits.sort_by_key(|limit| limit.containers);
    limits
}

const OPEN_FILES: &str = "open files of this process";
const RAISE_FILES: &str = "LimitNOFILE= of the unit, or ulimit -Hn";
const RAISE_PROCESSES: &str = "LimitNPROC= of the unit, or ulimit -Hu";

/// Returns an error if this process has too few free descriptors for another container. It does so
/// while there are still enough for all other work. The kernel assigns the lowest free number, so
/// the number of a newly opened descriptor is about the number of open ones.
pub(crate) fn check_files(just_opened: &impl AsFd) -> Result<(), Error> {
    let Ok((most, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    let number = u64::try_from(just_opened.as_fd().as_raw_fd()).unwrap_or_default();
    if number + RESERVE.min(most / 4) < most {
        return Ok(());
    }
    Err(Error::Limit { of: OPEN_FILES, most, raise: RAISE_FILES })
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_tightest_comes_first_and_all_are_read_here() {
        let limits = read(&Abilities::probe());
        assert!(limits.is_sorted_by_key(|limit| limit.containers));
        let names: Vec<_> = limits.iter().map(|limit| &*limit.of).collect();
        for name in ["open files of this process", "process numbers", "threads"] {
            assert!(names.contains(&name), "{names:?}");
        }
    }

    #[test]
    fn a_file_with_a_low_number_leaves_room() {
        let file = File::open("/dev/null").expect("open");
        check_files(&file).expect("there is room");
    }
}
