//! The control groups of a container, read past the runtime: cgroup v1 and v2 (cgroups(7)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

const MOUNT: &str = "/sys/fs/cgroup";

/// What a container uses at one moment. A figure that this kernel or cgroup does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// Processor time used since its start, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// Memory in use, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most that it may use, in bytes; `None` if that is not limited.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// How often the kernel has killed one of its processes for want of memory.
    pub oom_kills: Option<u64>,
}

/// Where the cgroups of a process are, by controller; `""` is the unified hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups(BTreeMap<String, PathBuf>);

/// The hierarchy of a file, and its name there.
type File = (&'static str, &'static str);

impl Cgroups {
    /// Those of a process, as far as they are its container's own: a cgroup that it shares with
    /// this process says nothing of it.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let (own, theirs) = (own_lines(), lines(&pid.to_string())?);
        // Which is soon said of a process without any of its own.
        if theirs == own {
            return Ok(Self(BTreeMap::new()));
        }
        let mut found = parse(&theirs, Path::new(MOUNT));
        let own = parse(own, Path::new(MOUNT));
        found.0.retain(|controller, path| own.0.get(controller) != Some(path));
        Ok(found)
    }

    /// Those of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Ok(parse(&lines("self")?, Path::new(MOUNT)))
    }

    /// Removes those of this name below them that have no process.
    pub(crate) fn remove_empty_below(&self, name: &str) {
        for dir in self.0.values() {
            // Only an empty one can be removed so.
            let _ = fs::remove_dir(dir.join(name));
        }
    }

    /// What of them tells of memory: there is one of these for each container.
    pub(crate) fn of_memory(mut self) -> Self {
        self.0.retain(|controller, _| ["memory", ""].contains(&controller.as_str()));
        self
    }

    /// The least that any of them, and of those above, lets there be of processes.
    pub(crate) fn pids_max(&self) -> Option<u64> {
        let dirs = ["pids", ""].into_iter().filter_map(|name| self.0.get(name));
        let limits = dirs.flat_map(|dir| dir.ancestors().take_while(|it| it.starts_with(MOUNT)));
        // `max` is no number.
        let read = |dir: &Path| fs::read_to_string(dir.join("pids.max")).ok()?.trim().parse().ok();
        limits.filter_map(read).min()
    }

    fn path(&self, (controller, file): File) -> Option<PathBuf> {
        self.0.get(controller).map(|dir| dir.join(file))
    }

    /// The first of these files that can be read.
    fn read(&self, files: &[File]) -> Option<String> {
        files.iter().find_map(|file| fs::read_to_string(self.path(*file)?).ok())
    }

    fn number(&self, files: &[File]) -> Option<u64> {
        self.read(files)?.trim().parse().ok()
    }

    /// A figure from a file of lines with a name and a number each.
    fn entry(&self, files: &[File], name: &str) -> Option<u64> {
        let text = self.read(files)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// How often the kernel has killed one of its processes for want of memory.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        self.entry(&[("", "memory.events"), ("memory", "memory.oom_control")], "oom_kill")
    }

    /// The file that changes with [`oom_kills`](Self::oom_kills), on cgroup v2.
    pub(crate) fn memory_events(&self) -> Option<PathBuf> {
        self.path(("", "memory.events")).filter(|path| path.exists())
    }

    /// The same on v1, and the file by which one is notified of it.
    pub(crate) fn oom_control(&self) -> Option<(PathBuf, PathBuf)> {
        let control = self.path(("memory", "memory.oom_control"))?;
        Some((control, self.path(("memory", "cgroup.event_control"))?))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        // The runtime's freezer. Beside one of version 1 the unified hierarchy's is the container's
        // own plaything.
        match self.read(&[("freezer", "freezer.state")]) {
            Some(state) => state.trim() != "THAWED",
            None => self.entry(&[("", "cgroup.events")], "frozen") == Some(1),
        }
    }

    /// All processes in it and in cgroups below it, as the host counts.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        // A hybrid layout has an empty unified hierarchy beside the controllers' own.
        let dirs =
            ["pids", "memory", "freezer", ""].into_iter().filter_map(|name| self.0.get(name));
        let mut found = Vec::new();
        for dir in dirs {
            collect(dir, &mut found)?;
            if !found.is_empty() {
                break;
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    pub(crate) fn stats(&self) -> Stats {
        // v1 writes "no limit" as a number that no machine reaches.
        let limit = self
            .number(&[("", "memory.max"), ("memory", "memory.limit_in_bytes")])
            .filter(|bytes| *bytes < 1 << 60);
        Stats {
            cpu_nanos: self
                .entry(&[("", "cpu.stat")], "usage_usec")
                .map(|micros| micros.saturating_mul(1000))
                .or_else(|| self.number(&[("cpuacct", "cpuacct.usage")])),
            memory_bytes: self
                .number(&[("", "memory.current"), ("memory", "memory.usage_in_bytes")]),
            memory_limit_bytes: limit,
            pids: self.number(&[("", "pids.current"), ("pids", "pids.current")]),
            oom_kills: self.oom_kills(),
        }
    }
}

/// Prepares the kernel for moving processes into cgroups.
///
/// The first move after a pause waits for a grace period (RCU), 8 to 16 ms on a small machine, a third
/// of a container's start; others that follow do not. So the wait is begun when a container is asked
/// for, by a move of this process to where it is, and goes by while its directory is made and the
/// runtime starts.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    begun: AtomicBool,
}

impl Moves {
    /// Waits on a thread of its own, one at a time.
    pub(crate) fn prepare(self: &Arc<Self>) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            let moves = self.clone();
            tokio::task::spawn_blocking(move || {
                // Asked each time: somebody may have moved it. Who may not do this has a slower start, and
                // nothing else.
                let _ = Cgroups::own().map(|own| {
                    let files = [("pids", "cgroup.procs"), ("", "cgroup.procs")];
                    let mut files = files.into_iter().filter_map(|file| own.path(file));
                    files.find(|path| path.exists()).map(|own| fs::write(own, "0"))
                });
                moves.begun.store(false, Ordering::Relaxed);
            });
        }
    }
}

fn collect(dir: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // Gone, with all that was in it; or, of threads only, without processes of its own.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
        Err(error) => return Err(error),
    }
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found)?;
        }
    }
    Ok(())
}

fn lines(pid: &str) -> io::Result<String> {
    let text = holdfast_sys::proc::read(&format!("/proc/{pid}/cgroup"))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Those of this process when they were first asked for: who moves it later moves its containers'
/// cgroups nowhere.
fn own_lines() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| lines("self").unwrap_or_default())
}

/// Reads `/proc/PID/cgroup`: lines `NUMBER:CONTROLLERS:PATH`.
fn parse(text: &str, mount: &Path) -> Cgroups {
    let unified = mount.join("cgroup.controllers").exists();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let path = path.trim_start_matches('/');
        if controllers.is_empty() {
            let base = if unified { mount.to_owned() } else { mount.join("unified") };
            found.insert(String::new(), base.join(path));
        }
        for controller in controllers.split(',').filter(|name| !name.is_empty()) {
            let name = controller.trim_start_matches("name=");
            found.insert(
                name.to_owned(),
                mount.join(controllers.trim_start_matches("name=")).join(path),
            );
        }
    }
    Cgroups(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_are_read() {
        let hybrid = "9:name=systemd:/\n4:memory:/holdfast/a\n2:cpu,cpuacct:/x/b:c\n0::/\n";
        let found = parse(hybrid, Path::new("/none"));
        assert_eq!(found.0["memory"], Path::new("/none/memory/holdfast/a"));
        assert_eq!(found.0["cpuacct"], Path::new("/none/cpu,cpuacct/x/b:c"));
        assert_eq!(found.0[""], Path::new("/none/unified"));
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("cgroup.controllers"), "").unwrap();
        let dir = temp.path().join("a.slice/b");
        fs::create_dir_all(dir.join("below")).unwrap();
        let found = parse("0::/a.slice/b\n", temp.path());
        assert_eq!(found.0[""], dir);
        fs::write(dir.join("cgroup.procs"), "7\n5\n").unwrap();
        fs::write(dir.join("below/cgroup.procs"), "6\n").unwrap();
        fs::write(dir.join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 1\n")
            .unwrap();
        fs::write(dir.join("memory.max"), "max\n").unwrap();
        fs::write(dir.join("cpu.stat"), "usage_usec 12\nuser_usec 1\n").unwrap();
        fs::write(dir.join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert_eq!(found.processes().unwrap(), [5, 6, 7]);
        let expected = Stats { cpu_nanos: Some(12_000), oom_kills: Some(2), ..Stats::default() };
        assert_eq!(found.stats(), expected);
        assert!(found.is_frozen());
    }

    #[test]
    fn a_cgroup_that_is_shared_with_us_tells_nothing() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Cgroups::of(own).unwrap().processes().unwrap(), [0; 0]);
    }
}
