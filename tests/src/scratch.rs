//! A directory a test: its state root, its bundle, and what must not be left of either.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use holdfast_supervisor::{Builder, ContainerId, ContainerOptions, Supervisor};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    binary, busybox_bundle, eventually, processes, runtime, runtime_name, shim_group, soon,
};

/// Where gates stand in a container's root file system.
const GATES: &str = "gates";

/// A test's own directory below `/tmp`. Dropped, it is removed; processes that are still at work in
/// it then are named, killed, and fail the test.
#[derive(Debug)]
pub struct Scratch {
    directory: TempDir,
    gates: AtomicU32,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// An empty state root and a bundle of busybox.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-test-").tempdir_in("/tmp");
        let scratch =
            Self { directory: directory.expect("make a directory"), gates: AtomicU32::new(0) };
        let bundle = busybox_bundle(&scratch.bundle());
        fs::create_dir(bundle.join("rootfs").join(GATES)).expect("make a directory for gates");
        scratch
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The state root.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path().join("root")
    }

    /// Where the runtime under test keeps its containers.
    #[must_use]
    pub fn runtime_state(&self) -> PathBuf {
        let name = runtime().file_name().expect("an executable has a name");
        self.root().join(".runtime").join(name)
    }

    /// A bundle of busybox.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.path().join("bundle")
    }

    /// The bundle with other arguments, and an id by which it is known for a test's.
    pub fn options(&self, args: impl IntoIterator<Item = impl Into<String>>) -> ContainerOptions {
        ContainerOptions::bundle(self.bundle()).args(args).id(unique_id("test"))
    }

    /// The bundle with a shell script.
    #[must_use]
    pub fn script(&self, script: &str) -> ContainerOptions {
        self.options(["sh", "-c", script])
    }

    /// A supervisor of the state root, still to be opened.
    #[must_use]
    pub fn builder(&self) -> Builder {
        Supervisor::builder(self.root())
            .shim(binary("holdfast-shim"))
            .runtime(runtime_name())
            .shim_group(shim_group())
    }

    /// Opens the state root.
    pub async fn open(&self) -> Supervisor {
        soon("the supervisor", self.builder().open()).await.expect("open the state root")
    }

    /// A gate that stands in the bundle's root file system.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let number = self.gates.fetch_add(1, Ordering::Relaxed);
        let path = self.bundle().join("rootfs").join(GATES).join(number.to_string());
        Gate::at(path, format!("/{GATES}/{number}"))
    }

    /// Everything that must not be there when no container is: processes, directories of
    /// containers, state of runtimes.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            processes::mentioning(self.path()).iter().map(ToString::to_string).collect();
        let keeps = |name: &str| {
            [".journal", ".holdfast", ".lock", ".runtime", ".groups", ".definitions"]
                .contains(&name)
        };
        left.extend(names(&self.root()).into_iter().filter(|name| !keeps(name)));
        for runtime in names(&self.root().join(".runtime")) {
            let state = names(&self.root().join(".runtime").join(&runtime));
            left.extend(state.into_iter().map(|id| format!(".runtime/{runtime}/{id}")));
        }
        left
    }

    /// Ends a test: deletes all containers, shuts down, and finds nothing left.
    pub async fn close(self, supervisor: Supervisor) {
        for container in supervisor.list() {
            soon("a forced delete", container.delete_forced()).await.expect("delete by force");
        }
        soon("the shutdown", supervisor.shutdown()).await;
        self.group_ended().await;
        assert_eq!(self.leftovers(), [""; 0], "left over after all containers were deleted");
    }

    /// Where the tests are in a group: its shim ends by itself after its last container, and nobody
    /// waits for it.
    pub async fn group_ended(&self) {
        if shim_group().is_some() {
            let none = || processes::shims(&self.root()).is_empty();
            eventually("the shim of the group to end", none).await;
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What a test that failed has left of containers, their cgroups above all.
        let state = self.runtime_state();
        for id in names(&state) {
            eprintln!("left over, deleted: container {id}");
            let mut command = Command::new(runtime());
            let _ = command.arg("--root").arg(&state).args(["delete", "--force", &id]).status();
        }
        // A shim's end leaves its container an orphan, so one round is not enough.
        let mut left = Vec::new();
        for _ in 0..5 {
            for process in processes::mentioning(self.path()) {
                eprintln!("left over, killed: {process}");
                process.signal(Signal::SIGKILL);
                left.push(process);
            }
        }
        assert!(
            left.is_empty() || std::thread::panicking(),
            "processes left over at the end of the test: {left:?}"
        );
    }
}

/// A FIFO that holds a container's script until the test opens it, however soon or late either is.
#[derive(Debug)]
pub struct Gate {
    inside: String,
    path: PathBuf,
    fifo: File,
}

impl Gate {
    /// A gate at a path, which a container sees as another one.
    pub(crate) fn at(path: PathBuf, inside: String) -> Self {
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("make a FIFO");
        // Opened for both: neither side waits for the other, and what is written stays.
        let fifo = File::options().read(true).write(true).open(&path).expect("open a FIFO");
        Self { inside, path, fifo }
    }

    /// A script that does `first`, waits at the gate, says `after`, and exits with what it was let
    /// through with.
    #[must_use]
    pub fn script(&self, first: &str) -> String {
        waits_at(&self.inside, first)
    }

    /// The same for what runs on the host, as the fake runtime's containers do.
    #[must_use]
    pub fn script_on_host(&self, first: &str) -> String {
        waits_at(&self.path.display().to_string(), first)
    }

    /// A script that does `first`, waits at the gate, and goes on.
    #[must_use]
    pub fn wait(&self, first: &str) -> String {
        format!("{first}; read -r _ < {}", self.inside)
    }

    /// Lets the script through.
    pub fn open(&self, code: u8) {
        (&self.fifo).write_all(format!("{code}\n").as_bytes()).expect("write to a FIFO");
    }
}

fn waits_at(path: &str, first: &str) -> String {
    format!("{first}; read -r code < {path}; echo after; exit $code")
}

/// Changes a JSON file: a bundle's configuration, a record.
pub fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let content = fs::read(path).expect("read a JSON file");
    let mut value = serde_json::from_slice(&content).expect("parse a JSON file");
    change(&mut value);
    fs::write(path, value.to_string()).expect("write a JSON file");
}

/// An id that no other test has: cgroups are the whole machine's.
///
/// # Panics
///
/// If `name` can't begin an id.
#[must_use]
pub fn unique_id(name: &str) -> ContainerId {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{number}", std::process::id()).parse().expect("a valid id")
}

/// The cgroups of a container, in every hierarchy: those that bear its id, alone or with a suffix.
#[must_use]
pub fn cgroups_of(id: &ContainerId) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut ahead = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = ahead.pop() {
        // One that vanishes under our eyes is another test's.
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let suffix = name.to_str().and_then(|name| name.strip_prefix(id.as_str()));
            if suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('.')) {
                found.push(entry.path());
            }
            ahead.push(entry.path());
        }
    }
    found
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
