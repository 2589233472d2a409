//! Finds the cgroups of a process.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_sys::mountinfo::{self, Mount};

/// Controllers that are measured. If version 1 has one of them, the machine is one of version 1: the
/// unified hierarchy beside it has no controllers that matter.
const MEASURED: [&str; 7] = ["blkio", "cpu", "cpuacct", "hugetlb", "memory", "pids", "rdma"];

/// A bit in the flags of a process in `/proc/PID/stat`: it is about to end, or has ended.
const PF_EXITING: u32 = 0x4;

/// The cgroups of a process, as directories.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// By controller.
    V1(BTreeMap<String, PathBuf>),
    /// The one in the unified hierarchy.
    V2(PathBuf),
}

impl Cgroups {
    /// Finds them, with `/proc` and the mounts below a root directory.
    pub(crate) fn of(root: &Path, pid: i32) -> io::Result<Self> {
        let proc = root.join("proc");
        let text = fs::read_to_string(proc.join(format!("{pid}/cgroup")))?;
        // While a process ends it leaves its cgroups of version 1, and the file shows the root cgroup
        // instead. One that does not end after the file was read did not end before.
        if is_ending(&fs::read_to_string(proc.join(format!("{pid}/stat")))?) {
            let ended = format!("process {pid} has ended");
            return Err(io::Error::new(io::ErrorKind::NotFound, ended));
        }
        let mounts = fs::read_to_string(proc.join("self/mountinfo"))?;
        Self::parse(root, &text, &mounts).ok_or_else(|| {
            let none = format!("no cgroup of process {pid} is mounted here");
            io::Error::new(io::ErrorKind::NotFound, none)
        })
    }

    /// See cgroups(7) and proc_pid_mountinfo(5).
    fn parse(root: &Path, cgroup: &str, mounts: &str) -> Option<Self> {
        let mounts = mountinfo::parse(mounts);
        let mut by_controller = BTreeMap::new();
        let mut unified = None;
        for line in cgroup.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
            let find = |controller| mounts.iter().find_map(|it| dir(root, it, controller, path));
            if controllers.is_empty() {
                unified = find(None);
            }
            for controller in controllers.split(',').filter(|name| !name.is_empty()) {
                if let Some(dir) = find(Some(controller)) {
                    by_controller.insert(controller.to_owned(), dir);
                }
            }
        }
        if by_controller.keys().any(|name| MEASURED.contains(&name.as_str())) {
            return Some(Self::V1(by_controller));
        }
        unified.map(Self::V2)
    }
}

/// Whether a process is about to end, or has ended: field 9 of `/proc/PID/stat`, counted from the last
/// bracket of the name.
fn is_ending(stat: &str) -> bool {
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Returns the directory of a cgroup, if this is a mount of the controller's hierarchy and shows the cgroup.
/// Without a controller it is the unified hierarchy.
fn dir(root: &Path, mount: &Mount, controller: Option<&str>, cgroup: &Path) -> Option<PathBuf> {
    let fits = mount.controllers().is_some_and(|has| match controller {
        None => has.is_empty(),
        Some(wanted) => has.contains(&wanted),
    });
    // A path with `..` leads out of the mount's or this process's cgroup namespace.
    let below = cgroup.strip_prefix(&mount.root).ok().filter(|_| fits)?;
    let upwards = below.components().any(|part| part.as_os_str() == "..");
    let point = mount.point.strip_prefix("/").ok().filter(|_| !upwards)?;
    Some(root.join(point).join(below))
}
