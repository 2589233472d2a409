//! Sets the cgroup and the OOM score of a new front: when memory runs out, the kernel kills it before containerd.

use std::path::Path;
use std::{fs, io};

/// Where cgroups are mounted.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// The most that `oom_score_adj` takes (proc(5)).
const MOST: i32 = 1000;

/// Moves a process to a cgroup that is there, as `/pods/shims`: with cgroup v1 in each hierarchy that has it.
///
/// # Errors
///
/// If no hierarchy has the cgroup, or it takes no process.
pub(crate) fn enter(mount: &Path, cgroup: &str, pid: u32) -> io::Result<()> {
    let cgroup = Path::new(cgroup.trim_start_matches('/'));
    if mount.join("cgroup.controllers").exists() {
        return fs::write(mount.join(cgroup).join("cgroup.procs"), pid.to_string());
    }
    let mut entered = false;
    for hierarchy in fs::read_dir(mount)? {
        let procs = hierarchy?.path().join(cgroup).join("cgroup.procs");
        if procs.exists() {
            fs::write(&procs, pid.to_string())?;
            entered = true;
        }
    }
    if entered { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Gives a process the score of this one, which is that of containerd, and one more: when memory runs out, it goes
/// before containerd does.
pub(crate) fn adjust_oom_score(pid: u32) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    let own: i32 = own.trim().parse().map_err(io::Error::other)?;
    fs::write(format!("/proc/{pid}/oom_score_adj"), own.saturating_add(1).min(MOST).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_enters_the_cgroup_of_each_hierarchy_that_has_it() {
        let mount = tempfile::tempdir().unwrap();
        let procs = |dir: &str| {
            let dir = mount.path().join(dir);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), "").unwrap();
            dir.join("cgroup.procs")
        };
        let (cpu, memory, other) = (procs("cpu/pod"), procs("memory/pod"), procs("pids/other"));
        enter(mount.path(), "/pod", 7).unwrap();
        let read = |path| fs::read_to_string(path).unwrap();
        assert_eq!((read(&cpu), read(&memory), read(&other)), ("7".into(), "7".into(), "".into()));
        assert_eq!(enter(mount.path(), "none", 7).unwrap_err().kind(), io::ErrorKind::NotFound);

        fs::write(mount.path().join("cgroup.controllers"), "cpu memory").unwrap();
        let unified = procs("a.slice/pod");
        enter(mount.path(), "/a.slice/pod", 8).unwrap();
        assert_eq!(read(&unified), "8");
        assert!(enter(mount.path(), "/none", 8).is_err());
    }
}
