//! Processes, found by what they mention and held so that no number is mistaken for another.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a process may take to vanish before a test calls it left over.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process, by its number and its start time.
#[derive(Debug, Clone)]
pub struct Proc {
    /// Its number.
    pub pid: i32,
    start_time: String,
    command: String,
}

impl Proc {
    /// The process that has this number now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        let start_time = stat(pid)?.start_time;
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        Some(Self { pid, start_time, command })
    }

    /// Its arguments, joined by blanks.
    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// What tells it from every other process of this boot.
    #[must_use]
    pub fn identity(&self) -> String {
        format!("{}@{}", self.pid, self.start_time)
    }

    /// Whether it has an entry in `/proc`: a zombie has.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.now().is_some()
    }

    /// Whether it runs, which a zombie does not.
    #[must_use]
    pub fn lives(&self) -> bool {
        self.now().is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
    }

    /// The letter of its state, `Z` for a zombie and `T` for a stopped one.
    #[must_use]
    pub fn state(&self) -> Option<char> {
        self.now().map(|stat| stat.state)
    }

    /// Whether a mask of its signals has this one, `SigCgt` or another of proc(5). `None` if it is gone.
    #[must_use]
    pub fn mask_has(&self, mask: &str, signal: Signal) -> Option<bool> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(mask)?.strip_prefix(':'))?;
        let signals = u64::from_str_radix(line.trim(), 16).ok()?;
        Some(signals & (1 << (signal as i32 - 1)) != 0)
    }

    /// Its parent's number.
    #[must_use]
    pub fn parent(&self) -> Option<i32> {
        self.now().map(|stat| stat.parent)
    }

    /// Sends it a signal. That it has ended is fine.
    pub fn signal(&self, signal: Signal) {
        if self.exists() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Waits until it has vanished, reaped and all. Nothing tells of a stranger's end, so this
    /// looks again and again.
    pub async fn gone(&self) {
        self.until("has not vanished", |process| !process.exists()).await;
    }

    /// Waits until it has ended, be it as a zombie: as the child of a supervisor that was shut down
    /// it has nobody to reap it.
    pub async fn ended(&self) {
        self.until("has not ended", |process| !process.lives()).await;
    }

    /// Waits until its state has this letter.
    pub async fn reaches(&self, state: char) {
        self.until(&format!("has not come to state {state}"), |process| {
            process.state() == Some(state)
        })
        .await;
    }

    async fn until(&self, or_else: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "{self} {or_else} within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn now(&self) -> Option<Stat> {
        stat(self.pid).filter(|stat| stat.start_time == self.start_time)
    }
}

/// What it runs may change.
impl PartialEq for Proc {
    fn eq(&self, other: &Self) -> bool {
        (self.pid, &self.start_time) == (other.pid, &other.start_time)
    }
}

impl Eq for Proc {}

impl fmt::Display for Proc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// All processes but this one that have to do with a path: it stands in their arguments, in their
/// environment (as a fake container's does), or among their mounts (as a container's root does).
///
/// Mounts count only where they are not ours as well: what is mounted where this process lives is
/// among the mounts of every process of the machine, and whoever calls this may kill what it finds.
#[must_use]
pub fn mentioning(path: &Path) -> Vec<Proc> {
    let needle = path.as_os_str().as_encoded_bytes();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let ours = namespace("self");
    assert!(ours.is_some(), "the own mount namespace is not known");
    let mentions = |pid: i32| {
        let text_mentions = |file: &str| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|text| text.windows(needle.len()).any(|part| part == needle))
        };
        let theirs = namespace(&pid.to_string());
        text_mentions("cmdline")
            || text_mentions("environ")
            || (theirs.is_some() && theirs != ours && text_mentions("mountinfo"))
    };
    let own = std::process::id().cast_signed();
    fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own && mentions(*pid))
        .filter_map(Proc::of)
        .collect()
}

/// The children of a process, zombies too.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// The shims that wait for something to do, of the process of a supervisor.
#[must_use]
pub fn spares(supervisor: i32) -> Vec<Proc> {
    helpers(supervisor, &["--spare"])
}

/// Those, and what closes descriptors for it: no container's, and none of them stays without it.
#[must_use]
pub fn companions(supervisor: i32) -> Vec<Proc> {
    helpers(supervisor, &["--spare", "--closer"])
}

fn helpers(supervisor: i32, options: &[&str]) -> Vec<Proc> {
    let is_one = |process: &Proc| {
        let rest = process.command.rsplit_once("holdfast-shim ");
        rest.is_some_and(|(_, option)| options.contains(&option))
    };
    children(supervisor).into_iter().filter_map(Proc::of).filter(is_one).collect()
}

/// The shims of the containers below a state root.
#[must_use]
pub fn shims(root: &Path) -> Vec<Proc> {
    let is_shim = |process: &Proc| {
        process.command.split(' ').next().is_some_and(|program| program.ends_with("holdfast-shim"))
    };
    mentioning(root).into_iter().filter(is_shim).collect()
}

/// The shim that the record of a process names, if that lives.
#[must_use]
pub fn recorded_shim(root: &Path, container: &str, process: &str) -> Option<Proc> {
    let record = fs::read(root.join(container).join(process).join("process.json")).ok()?;
    let record: Value = serde_json::from_slice(&record).ok()?;
    let pid = record["holdfast"]["shim"]["pid"].as_i64()?;
    Proc::of(i32::try_from(pid).ok()?)
}

/// The one shim of a container's process.
///
/// # Panics
///
/// If there is none, or more than one.
#[must_use]
pub fn shim_of(root: &Path, container: &str, process: &str) -> Proc {
    let dir = format!("--dir {} ", root.join(container).join(process).display());
    let all = shims(root).into_iter().filter(|shim| shim.command.contains(&dir));
    // One that starts a process for a group hands it over, and ends a little later.
    let (starters, mut found): (Vec<_>, Vec<_>) =
        all.partition(|shim| shim.command.contains(" --seat "));
    if found.is_empty() && crate::shim_group().is_some() {
        // It is not in its command line whose it is.
        found.extend(recorded_shim(root, container, process));
    }
    if found.is_empty() {
        // It has not handed it over yet.
        found = starters;
    }
    assert_eq!(found.len(), 1, "shims of {container}/{process}: {found:?}");
    found.remove(0)
}

struct Stat {
    state: char,
    parent: i32,
    start_time: String,
}

/// Fields 3, 4 and 22 of `/proc/PID/stat`, counted from the last bracket of the name.
fn stat(pid: i32) -> Option<Stat> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        start_time: (*fields.get(19)?).to_owned(),
    })
}

/// The directory of a process's cgroup, of version 2.
///
/// # Panics
///
/// If there is no such process, or it has none.
#[must_use]
pub fn unified_cgroup_of(pid: &Value) -> PathBuf {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read the cgroup");
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).expect("version 2");
    Path::new("/sys/fs/cgroup").join(path)
}

/// How many processes have exactly this command line.
#[must_use]
pub fn with_command_line(words: &[&str]) -> usize {
    let wanted: Vec<u8> = words.iter().flat_map(|word| word.bytes().chain([0])).collect();
    let pids = fs::read_dir("/proc").expect("list processes").flatten();
    let lines = pids.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.filter(|line| *line == wanted).count()
}
