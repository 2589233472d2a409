//! The cgroups of a container, read without the runtime: cgroup v1 and v2 (cgroups(7)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use holdfast_sys::PidFd;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

use super::network;

pub(crate) const MOUNT: &str = "/sys/fs/cgroup";

/// The file that lists the controllers of a cgroup of version 2.
pub(crate) const CONTROLLERS: &str = "cgroup.controllers";

/// The resource usage of a container at one moment. A value that the kernel or the cgroup does not
/// report is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Stats {
    /// CPU time used since the start, in nanoseconds.
    pub cpu_nanos: Option<u64>,
    /// The part of it in user mode, in nanoseconds.
    pub cpu_user_nanos: Option<u64>,
    /// The part of it in kernel mode, in nanoseconds.
    pub cpu_system_nanos: Option<u64>,
    /// The number of periods in which the CPU time was limited.
    pub cpu_periods: Option<u64>,
    /// The number of these periods in which the limit was reached.
    pub cpu_throttled_periods: Option<u64>,
    /// How long processes had to wait because of the limit, in nanoseconds.
    pub cpu_throttled_nanos: Option<u64>,
    /// Memory in use, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory in use without the page cache that was not used lately, in bytes: what Kubernetes
    /// calls the working set.
    pub memory_working_set_bytes: Option<u64>,
    /// The largest value that `memory_bytes` has had, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// The memory limit, in bytes; `None` if there is none.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Read operations on block devices.
    pub io_reads: Option<u64>,
    /// Write operations on block devices.
    pub io_writes: Option<u64>,
    /// The number of processes and threads.
    pub pids: Option<u64>,
    /// The limit of that number; `None` if there is none.
    pub pids_limit: Option<u64>,
    /// How often the OOM killer has killed a process of the container.
    pub oom_kills: Option<u64>,
    /// Bytes received by the interfaces of the container's network namespace, without loopback. `None`
    /// if it has the network of this process.
    pub network_received_bytes: Option<u64>,
    /// Bytes sent by them.
    pub network_sent_bytes: Option<u64>,
}

impl Stats {
    /// Reads those of the container of a process.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let cgroups = Cgroups::of(pid)?.stats();
        let (received, sent) = network::traffic(pid).unzip();
        Ok(Self { network_received_bytes: received, network_sent_bytes: sent, ..cgroups })
    }
}

/// The cgroup directories of a process, by controller; `""` stands for the unified hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cgroups(BTreeMap<String, PathBuf>);

/// A file: the controller of its hierarchy, and its name in the cgroup directory.
type File = (&'static str, &'static str);

/// The files of cgroup v1 that count what block devices transfer. The first of each two includes
/// the cgroups below; older kernels do not have it.
const BYTES: [File; 2] = [
    ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    ("blkio", "blkio.throttle.io_service_bytes"),
];
const OPERATIONS: [File; 2] =
    [("blkio", "blkio.throttle.io_serviced_recursive"), ("blkio", "blkio.throttle.io_serviced")];

impl Cgroups {
    /// Returns the cgroups of a process that belong to its container alone. A cgroup that it shares
    /// with this process gives no information about the container. Without root's rights, a container without a
    /// cgroup of its own may be in that of an earlier supervisor, with whatever else its user does.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let (own, theirs) = (own_lines(), lines(&pid.to_string())?);
        // A shortcut for a process without any cgroup of its own.
        if theirs == own {
            return Ok(Self(BTreeMap::new()));
        }
        let mut found = parse(&theirs, Path::new(MOUNT));
        let own = parse(own, Path::new(MOUNT));
        let is_root = geteuid().is_root();
        found.0.retain(|controller, path| {
            own.0.get(controller) != Some(path) && (is_root || is_scope(path))
        });
        Ok(found)
    }

    /// Returns whether the container has no cgroup of its own.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the cgroups of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Ok(parse(&lines("self")?, Path::new(MOUNT)))
    }

    /// Returns the cgroup of this process, if the machine has version 2 alone.
    pub(crate) fn own_unified() -> Option<PathBuf> {
        let unified = Path::new(MOUNT).join(CONTROLLERS).exists();
        unified.then(|| Self::own().ok()?.0.remove("")).flatten()
    }

    /// Removes the child cgroups of this name, if they have no processes.
    pub(crate) fn remove_empty_below(&self, name: &str) {
        for dir in self.0.values() {
            // rmdir(2) fails for a cgroup that has processes or children.
            let _ = fs::remove_dir(dir.join(name));
        }
    }

    /// Keeps only the cgroups that account memory. One such value is stored per container, so this
    /// saves memory.
    pub(crate) fn of_memory(mut self) -> Self {
        self.0.retain(|controller, _| ["memory", ""].contains(&controller.as_str()));
        self
    }

    /// Returns the lowest process limit of these cgroups and of their ancestors.
    pub(crate) fn pids_max(&self) -> Option<u64> {
        let dirs = ["pids", ""].into_iter().filter_map(|name| self.0.get(name));
        let limits = dirs.flat_map(|dir| dir.ancestors().take_while(|it| it.starts_with(MOUNT)));
        // `max` does not parse as a number: there is no limit.
        let read = |dir: &Path| fs::read_to_string(dir.join("pids.max")).ok()?.trim().parse().ok();
        limits.filter_map(read).min()
    }

    fn path(&self, (controller, file): File) -> Option<PathBuf> {
        self.0.get(controller).map(|dir| dir.join(file))
    }

    /// Returns the content of the first of these files that can be read.
    fn read(&self, files: &[File]) -> Option<String> {
        files.iter().find_map(|file| fs::read_to_string(self.path(*file)?).ok())
    }

    fn number(&self, files: &[File]) -> Option<u64> {
        self.read(files)?.trim().parse().ok()
    }

    /// Returns a value from a file whose lines have a name and a number each.
    fn entry(&self, files: &[File], name: &str) -> Option<u64> {
        let text = self.read(files)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        value.trim().parse().ok()
    }

    /// Returns how often the OOM killer has killed a process of these cgroups.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        self.entry(&[("", "memory.events"), ("memory", "memory.oom_control")], "oom_kill")
    }

    /// Returns the file that changes together with [`oom_kills`](Self::oom_kills), on cgroup v2.
    pub(crate) fn memory_events(&self) -> Option<PathBuf> {
        self.path(("", "memory.events")).filter(|path| path.exists())
    }

    /// Returns the files of cgroup v1 for the same purpose: the one with the count, and the one in
    /// which to register an eventfd for notifications.
    pub(crate) fn oom_control(&self) -> Option<(PathBuf, PathBuf)> {
        let control = self.path(("memory", "memory.oom_control"))?;
        Some((control, self.path(("memory", "cgroup.event_control"))?))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        // The freezer that the runtime uses. If there is a v1 freezer, the unified hierarchy beside
        // it is under the control of the container.
        match self.read(&[("freezer", "freezer.state")]) {
            Some(state) => state.trim() != "THAWED",
            None => self.entry(&[("", "cgroup.events")], "frozen") == Some(1),
        }
    }

    /// Returns the pids of all processes in these cgroups and their descendants, in the host's pid
    /// namespace.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        // In a hybrid layout, the unified hierarchy is empty; the processes are in those of the
        // controllers.
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

    /// Sends a signal to all processes in these cgroups.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        for pid in self.processes()? {
            let Ok(process) = PidFd::open(pid) else { continue };
            // Read after the process was opened: it is this process that is in there.
            if Self::of(pid).is_ok_and(|theirs| theirs.is_within(self)) {
                // It may end at any moment.
                let _ = process.send_signal(signal);
            }
        }
        Ok(())
    }

    /// Returns whether all that these name is at or below what others name.
    fn is_within(&self, others: &Self) -> bool {
        let is_below = |(name, dir): (&String, &PathBuf)| {
            self.0.get(name).is_some_and(|own| own.starts_with(dir))
        };
        let mut shared =
            others.0.iter().filter(|(name, _)| !name.is_empty() || others.0.len() == 1);
        shared.all(is_below)
    }

    fn stats(&self) -> Stats {
        // cgroup v1 reports "no limit" as a number larger than any real memory.
        let limit = self
            .number(&[("", "memory.max"), ("memory", "memory.limit_in_bytes")])
            .filter(|bytes| *bytes < 1 << 60);
        let cpu = |unified: &str, old: &'static str| {
            let micros = self.entry(&[("", "cpu.stat")], unified);
            let nanos = micros.map(|micros| micros.saturating_mul(1000));
            nanos.or_else(|| self.number(&[("cpuacct", old)]))
        };
        let throttled = self.entry(&[("", "cpu.stat")], "throttled_usec");
        let throttled = throttled.map(|micros| micros.saturating_mul(1000));
        let of_cpu = |name| self.entry(&[("", "cpu.stat"), ("cpu", "cpu.stat")], name);
        let memory = self.number(&[("", "memory.current"), ("memory", "memory.usage_in_bytes")]);
        let inactive = self
            .entry(&[("", "memory.stat")], "inactive_file")
            .or_else(|| self.entry(&[("memory", "memory.stat")], "total_inactive_file"));
        Stats {
            cpu_nanos: cpu("usage_usec", "cpuacct.usage"),
            cpu_user_nanos: cpu("user_usec", "cpuacct.usage_user"),
            cpu_system_nanos: cpu("system_usec", "cpuacct.usage_sys"),
            cpu_periods: of_cpu("nr_periods"),
            cpu_throttled_periods: of_cpu("nr_throttled"),
            cpu_throttled_nanos: throttled
                .or_else(|| self.entry(&[("cpu", "cpu.stat")], "throttled_time")),
            memory_bytes: memory,
            memory_working_set_bytes: memory
                .zip(inactive)
                .map(|(all, inactive)| all.saturating_sub(inactive)),
            memory_peak_bytes: self
                .number(&[("", "memory.peak"), ("memory", "memory.max_usage_in_bytes")]),
            memory_limit_bytes: limit,
            io_read_bytes: self.io("rbytes=", "Read", &BYTES),
            io_write_bytes: self.io("wbytes=", "Write", &BYTES),
            io_reads: self.io("rios=", "Read", &OPERATIONS),
            io_writes: self.io("wios=", "Write", &OPERATIONS),
            pids: self.number(&[("", "pids.current"), ("pids", "pids.current")]),
            pids_limit: self.number(&[("", "pids.max"), ("pids", "pids.max")]),
            oom_kills: self.oom_kills(),
            ..Stats::default()
        }
    }

    /// Returns a sum over all block devices. On cgroup v2 a line of `io.stat` has the form
    /// `8:0 rbytes=1 wbytes=2 …`, on v1 a line of these files `8:0 Read 1`.
    fn io(&self, unified: &str, old: &str, files: &[File]) -> Option<u64> {
        if let Some(text) = self.read(&[("", "io.stat")]) {
            let values = text.split_ascii_whitespace().filter_map(|it| it.strip_prefix(unified));
            return Some(values.filter_map(|value| value.parse::<u64>().ok()).sum());
        }
        let text = self.read(files)?;
        let values = text.lines().filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            (words.next()? == old).then(|| words.next()?.parse::<u64>().ok())?
        });
        Some(values.sum())
    }
}

/// Prepares the kernel for moving processes into cgroups.
///
/// The first move after a pause waits for an RCU grace period: 8 to 16 ms on a small machine, a
/// third of the start time of a container. Moves that follow soon do not wait. So this process is
/// "moved" into its own cgroup as soon as a container is requested; the grace period then passes
/// while the directory of the container is created and the runtime starts.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    begun: AtomicBool,
}

impl Moves {
    /// Waits on a separate thread; at most one such wait is in progress.
    pub(crate) fn prepare(self: &Arc<Self>) {
        if !self.begun.swap(true, Ordering::Relaxed) {
            let moves = self.clone();
            tokio::task::spawn_blocking(move || {
                // The cgroup is read each time, because this process may have been moved. Without
                // the permission for the write, starts are slower, and nothing else is affected.
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

/// Returns the `cgroupsPath` by which a user's systemd makes a container's cgroup: its slice, and the two parts of its
/// name. `unique` is different for each container.
pub(crate) fn scope(unique: &str) -> String {
    format!("user.slice:holdfast:{unique}")
}

/// Returns whether a cgroup is one that [`scope`] names, or below it, as `holdfast-oci` has it.
fn is_scope(cgroup: &Path) -> bool {
    let is_ours = |name: &str| name.starts_with("holdfast-") && name.ends_with(".scope");
    cgroup.ancestors().any(|it| it.file_name().and_then(|name| name.to_str()).is_some_and(is_ours))
}

fn collect(dir: &Path, found: &mut Vec<i32>) -> io::Result<()> {
    match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // The cgroup is gone, with all that was in it; or it is a threaded cgroup, which has no
        // list of processes.
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

/// Returns the cgroups of this process at the time of the first call. If this process is moved
/// later, the cgroups of its containers stay where they are.
fn own_lines() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| lines("self").unwrap_or_default())
}

/// Parses `/proc/PID/cgroup`: lines of the form `NUMBER:CONTROLLERS:PATH`.
fn parse(text: &str, mount: &Path) -> Cgroups {
    let unified = mount.join(CONTROLLERS).exists();
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
        let expected = Stats {
            cpu_nanos: Some(12_000),
            cpu_user_nanos: Some(1000),
            oom_kills: Some(2),
            ..Stats::default()
        };
        assert_eq!(found.stats(), expected);
        assert!(found.is_frozen());
    }

    /// Returns the stats of a cgroup whose hierarchies have these files.
    fn stats_of(lines: &str, files: &[(&str, &str)]) -> Stats {
        let temp = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = temp.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        parse(lines, temp.path()).stats()
    }

    #[test]
    fn each_version_reports_the_same_numbers() {
        let unified = stats_of(
            "0::/c",
            &[
                ("cgroup.controllers", ""),
                (
                    "c/cpu.stat",
                    "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 8\nnr_throttled 3\nthrottled_usec 2\n",
                ),
                ("c/memory.current", "1000\n"),
                ("c/memory.peak", "2000\n"),
                ("c/memory.max", "4000\n"),
                ("c/memory.stat", "anon 1\ninactive_file 300\n"),
                ("c/memory.events", "oom_kill 1\n"),
                (
                    "c/io.stat",
                    "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=7\n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n",
                ),
                ("c/pids.current", "6\n"),
                ("c/pids.max", "60\n"),
            ],
        );
        let old = stats_of(
            "5:cpu,cpuacct:/c\n4:memory:/c\n3:blkio:/c\n2:pids:/c\n0::/\n",
            &[
                ("cpu,cpuacct/c/cpuacct.usage", "9000\n"),
                ("cpu,cpuacct/c/cpuacct.usage_user", "5000\n"),
                ("cpu,cpuacct/c/cpuacct.usage_sys", "4000\n"),
                ("cpu,cpuacct/c/cpu.stat", "nr_periods 8\nnr_throttled 3\nthrottled_time 2000\n"),
                ("memory/c/memory.usage_in_bytes", "1000\n"),
                ("memory/c/memory.max_usage_in_bytes", "2000\n"),
                ("memory/c/memory.limit_in_bytes", "4000\n"),
                ("memory/c/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n"),
                ("memory/c/memory.oom_control", "oom_kill_disable 0\noom_kill 1\n"),
                (
                    "blkio/c/blkio.throttle.io_service_bytes_recursive",
                    "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n8:16 Read 1\n8:16 Write 2\nTotal 33\n",
                ),
                (
                    "blkio/c/blkio.throttle.io_serviced_recursive",
                    "8:0 Read 1\n8:0 Write 2\n8:16 Read 3\n8:16 Write 4\nTotal 10\n",
                ),
                ("pids/c/pids.current", "6\n"),
                ("pids/c/pids.max", "60\n"),
            ],
        );
        let expected = Stats {
            cpu_nanos: Some(9000),
            cpu_user_nanos: Some(5000),
            cpu_system_nanos: Some(4000),
            cpu_periods: Some(8),
            cpu_throttled_periods: Some(3),
            cpu_throttled_nanos: Some(2000),
            memory_bytes: Some(1000),
            memory_working_set_bytes: Some(700),
            memory_peak_bytes: Some(2000),
            memory_limit_bytes: Some(4000),
            io_read_bytes: Some(11),
            io_write_bytes: Some(22),
            io_reads: Some(4),
            io_writes: Some(6),
            pids: Some(6),
            pids_limit: Some(60),
            oom_kills: Some(1),
            ..Stats::default()
        };
        assert_eq!((unified, old), (expected, expected));
    }

    #[test]
    fn the_cgroup_of_a_container_is_known_by_its_name() {
        let path =
            Path::new("user.slice/user-7.slice/user@7.service/user.slice/holdfast-a.0f.scope");
        assert!(is_scope(path) && is_scope(&path.join("container")));
        assert_eq!(scope("a.0f"), "user.slice:holdfast:a.0f");
        assert!(!is_scope(Path::new("user.slice/user-7.slice/session-3.scope")));
    }

    #[test]
    fn a_cgroup_that_is_shared_with_us_tells_nothing() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Cgroups::of(own).unwrap().processes().unwrap(), [0; 0]);
    }
}
