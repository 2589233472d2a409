//! The state root: who may use it, how a directory appears and disappears in one step, and the
//! scan that finds every record and every problem.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::OFlag;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use thiserror::Error;

use crate::journal;
use crate::lock::{self, Lock, Refusal};
use crate::recognise::{self, Verdict};
use crate::{ContainerId, Directory, ProcessDir, ProcessId};

pub(crate) const LOCK: &str = ".lock";
pub(crate) const RUNTIME: &str = ".runtime";
/// Within that: the boot whose containers are there.
pub(crate) const BOOT_ID: &str = ".boot-id";
pub(crate) const GROUPS: &str = ".groups";
const BUNDLE: &str = ".bundle";
const STAGED: &str = ".new-";
const REMOVED: &str = ".gone-";

/// The state root, held by one supervisor at a time.
#[derive(Debug)]
pub struct StateRoot {
    pub(crate) directory: Directory,
    /// Makes the names of directories under construction or removal unique within this process.
    counter: AtomicU64,
    /// Released by [`release`](Self::release), with the root, or by the kernel when the process dies.
    lock: Mutex<Option<Lock>>,
}

/// A state root that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another supervisor uses it.
    #[error(
        "state root {root} is in use by process {pid}: one daemon a root; stop that one, or choose another --root"
    )]
    Held {
        /// The root.
        root: PathBuf,
        /// The pid of that process.
        pid: String,
    },
    /// It belongs to another user, who could change it at any moment.
    #[error("state root {root} belongs to uid {uid}, not to this process; choose another --root")]
    Foreign {
        /// The root.
        root: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is a directory with other content.
    #[error(
        "{root} is not a state root of Holdfast: it holds {found:?}; nothing in it was touched; choose an empty directory or a new one (if it is a state root that was damaged, write the line {line:?} into {root}/{MARKER})", line = recognise::line(), MARKER = recognise::MARKER
    )]
    NotARoot {
        /// The directory.
        root: PathBuf,
        /// A name in it that is not Holdfast's.
        found: String,
    },
    /// A newer release of Holdfast created it.
    #[error(
        "state root {root} was made by a newer Holdfast ({marker:?}); nothing in it was touched"
    )]
    Newer {
        /// The root.
        root: PathBuf,
        /// The content of the marker file.
        marker: String,
    },
    /// It cannot be created or opened.
    #[error("state root {root}: {source}")]
    Io {
        /// The root.
        root: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

/// Something in the state root that could not be loaded. Everything else was.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// Its path.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

impl Problem {
    /// Returns a problem of what is at this path.
    #[must_use]
    pub fn new(path: PathBuf, reason: impl Into<String>) -> Self {
        Self { path, reason: reason.into() }
    }
}

impl StateRoot {
    /// Makes the root if need be, with mode 0700, and takes its lock. A directory that holds
    /// something else is refused and stays as it is.
    pub fn open(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { root: path.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        // Programs are given paths below it, so it must not depend on a working directory.
        let directory =
            path.canonicalize().and_then(|path| Directory::open(&path)).map_err(failed)?;
        let handle = File::from(
            directory.open_at(".", OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(failed)?,
        );
        let metadata = handle.metadata().map_err(failed)?;
        if metadata.uid() != nix::unistd::geteuid().as_raw() {
            return Err(LockError::Foreign { root: path.to_owned(), uid: metadata.uid() });
        }
        let root = || path.to_owned();
        // Before anything in it is touched.
        let verdict = recognise::look_at(&directory).map_err(failed)?;
        match &verdict {
            Verdict::Marked | Verdict::Unmarked => {}
            Verdict::Foreign { found } => {
                return Err(LockError::NotARoot { root: root(), found: found.clone() });
            }
            Verdict::Newer { marker } => {
                return Err(LockError::Newer { root: root(), marker: marker.clone() });
            }
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            handle.set_permissions(Permissions::from_mode(0o700)).map_err(failed)?;
        }
        let lock = lock::take(&directory, LOCK).map_err(|refusal| match refusal {
            Refusal::Held(pid) => LockError::Held { root: root(), pid },
            Refusal::Io(error) => failed(error),
        })?;
        if verdict == Verdict::Unmarked {
            recognise::mark(&directory).map_err(failed)?;
        }
        Ok(Self { directory, counter: AtomicU64::new(0), lock: Mutex::new(Some(lock)) })
    }

    /// Lets another supervisor have the root. Nothing may be written through this one afterwards.
    pub fn release(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether the root is in memory (tmpfs, as `/run` is), so that reading and writing wait for no disk. `false`
    /// if that cannot be found out.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        statfs(self.path()).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
    }

    /// Where a runtime of this name keeps its own state: apart from the machine's default, so that
    /// nothing of ours meets somebody else's containers.
    #[must_use]
    pub fn runtime_root(&self, name: &str) -> PathBuf {
        self.path().join(RUNTIME).join(name)
    }

    /// The directory of the groups' sockets, made if need be.
    pub fn groups(&self) -> io::Result<Directory> {
        self.directory.make_dir(GROUPS)
    }

    /// Whether there ever was a group.
    pub fn has_groups(&self) -> io::Result<bool> {
        self.directory.contains(GROUPS)
    }

    /// Clears away what runtimes keep of containers of an earlier boot. They sync nothing, so after
    /// a power loss it may be torn (runc then can't even delete), and none of it is alive.
    pub fn forget_runtimes_of_other_boots(&self, boot_id: &str) -> io::Result<()> {
        let runtime = self.directory.make_dir(RUNTIME)?;
        match runtime.read(BOOT_ID, 128) {
            Ok(known) if known == boot_id.as_bytes() => return Ok(()),
            // Nobody knows, so nothing is taken for dead.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            _ => {
                for name in runtime.names()? {
                    runtime.remove_all(&name)?;
                }
            }
        }
        runtime.write_atomic(BOOT_ID, boot_id.as_bytes())
    }

    /// Begins a container's directory under a hidden name. It does not exist for anyone until it
    /// is [published](Staged::publish), and a crash before that leaves something to sweep only.
    pub fn stage_container(&self) -> io::Result<Staged<'_>> {
        Staged::begin(&self.directory, &self.counter)
    }

    /// Begins the directory of a further process of a container.
    pub fn stage_process<'a>(&'a self, container: &'a ContainerDir) -> io::Result<Staged<'a>> {
        Staged::begin(&container.0, &self.counter)
    }

    /// Opens the directory of a container.
    pub fn container(&self, id: &ContainerId) -> io::Result<ContainerDir> {
        self.directory.open_dir(id.as_str()).map(ContainerDir)
    }

    /// Removes a container's directory: in one step it is gone for everyone, then it is cleared away.
    pub fn remove_container(&self, id: &ContainerId) -> io::Result<()> {
        remove(&self.directory, &self.counter, id.as_str())
    }

    /// Removes the directory of one process.
    pub fn remove_process(&self, container: &ContainerDir, id: &ProcessId) -> io::Result<()> {
        remove(&container.0, &self.counter, id.as_str())
    }

    /// The names of what can be containers; what crashes left behind beside them is swept, and what
    /// was set aside earlier is reported again.
    pub fn scan(&self, problems: &mut Vec<Problem>) -> io::Result<Vec<String>> {
        let mut names = self.directory.names()?;
        names.retain(|name| {
            let leftover = is_leftover(name);
            if leftover {
                self.sweep(&self.directory, name, problems);
            }
            !leftover && !name.starts_with('.') && name != recognise::LOST_AND_FOUND
        });
        problems.extend(self.set_aside());
        Ok(names)
    }

    /// Opens what can be a container, and sweeps what crashes left behind in it. What makes no sense
    /// is reported and left where it is.
    pub fn find(&self, name: &str, problems: &mut Vec<Problem>) -> Option<Found> {
        let problem = |reason: String| Problem { path: self.path().join(name), reason };
        let opened = match self.directory.open_dir(name) {
            // A socket or another file of somebody's: no container, no trouble.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return None,
            opened => {
                opened.and_then(|directory| {
                    // The journal, say, is none of the processes.
                    Ok((directory.names_but_of_files()?, ContainerDir(directory)))
                })
            }
        };
        let found = opened
            .map_err(|error| error.to_string())
            .and_then(|found| Ok((found, name.parse().map_err(|error| format!("{error}"))?)));
        let ((names, directory), id) =
            found.map_err(|reason| problems.push(problem(reason))).ok()?;
        let mut processes = Vec::new();
        for name in names {
            if is_leftover(&name) {
                self.sweep(&directory.0, &name, problems);
            } else if !name.starts_with('.') {
                let problem = |reason| Problem { path: directory.0.path().join(&name), reason };
                match (directory.0.open_dir(&name), name.parse()) {
                    (Ok(process), Ok(id)) => processes.push((id, ProcessDir::new(process))),
                    (Err(error), _) if error.kind() == io::ErrorKind::NotADirectory => {}
                    (Err(error), _) => problems.push(problem(error.to_string())),
                    (_, Err(error)) => problems.push(problem(format!("{error}"))),
                }
            }
        }
        Some(Found { id, directory, processes })
    }

    fn sweep(&self, parent: &Directory, name: &str, problems: &mut Vec<Problem>) {
        if let Err(error) = parent.remove_all(name) {
            problems.push(Problem {
                path: parent.path().join(name),
                reason: format!("cannot be cleared away: {error}"),
            });
        }
    }
}

/// The file in the state root in which the policies (crates/policies) note the boot for which they have made
/// containers again. It goes with the state root, so an empty root is as good as a boot.
pub const DEFINITIONS: &str = ".definitions";

pub(crate) fn is_leftover(name: &str) -> bool {
    // Files of the root's own that a crash has left before they had their names.
    let temporary = [recognise::MARKER, journal::EXITS, DEFINITIONS].iter().any(|of| {
        name.strip_prefix('.').and_then(|name| name.strip_prefix(of)).is_some_and(|rest| {
            rest.strip_prefix('.').is_some_and(|pid| pid.bytes().all(|b| b.is_ascii_digit()))
        })
    });
    temporary || name.starts_with(STAGED) || name.starts_with(REMOVED)
}

fn unique(prefix: &str, counter: &AtomicU64) -> String {
    format!("{prefix}{}-{}", std::process::id(), counter.fetch_add(1, Ordering::Relaxed))
}

fn remove(parent: &Directory, counter: &AtomicU64, name: &str) -> io::Result<()> {
    let hidden = loop {
        let hidden = unique(REMOVED, counter);
        match parent.rename_new(name, &hidden) {
            Ok(()) => break hidden,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Left by a process that had our pid, and cannot be cleared away: the next number, then.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    };
    // Durable before the caller is told: after a power loss it must not be back.
    parent.sync()?;
    parent.remove_all(&hidden)
}

/// A container's directory. Nothing in it has been read yet.
#[derive(Debug)]
pub struct Found {
    /// Its id.
    pub id: ContainerId,
    /// Its directory.
    pub directory: ContainerDir,
    /// Its processes.
    pub processes: Vec<(ProcessId, ProcessDir)>,
}

/// A directory under construction. Dropped unpublished, it is removed again.
#[derive(Debug)]
pub struct Staged<'a> {
    parent: &'a Directory,
    name: String,
    directory: Directory,
    published: bool,
}

impl<'a> Staged<'a> {
    fn begin(parent: &'a Directory, counter: &AtomicU64) -> io::Result<Self> {
        let name = unique(STAGED, counter);
        // The name is ours alone (we hold the lock): one that is there is a crash's, with our pid.
        parent.remove_all(&name)?;
        let directory = parent.create_dir(&name)?;
        Ok(Self { parent, name, directory, published: false })
    }

    /// The directory, still hidden.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Gives it its name, or fails with [`io::ErrorKind::AlreadyExists`] if that is taken.
    pub fn publish(self, id: &ContainerId) -> io::Result<ContainerDir> {
        self.publish_as(id.as_str()).map(ContainerDir)
    }

    /// As [`publish`](Self::publish), for a process.
    pub fn publish_process(self, id: &ProcessId) -> io::Result<ProcessDir> {
        self.publish_as(id.as_str()).map(ProcessDir::new)
    }

    fn publish_as(mut self, name: &str) -> io::Result<Directory> {
        self.parent.rename_new(&self.name, name)?;
        match self.parent.sync().and_then(|()| self.parent.open_dir(name)) {
            Ok(directory) => {
                self.published = true;
                Ok(directory)
            }
            Err(error) => {
                // Nobody is told of it, so nobody would ever delete it: it is hidden again, and goes.
                let _ = self.parent.rename_new(name, &self.name);
                Err(error)
            }
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.published {
            // What can't be removed now is swept by the next restore.
            let _ = self.parent.remove_all(&self.name);
        }
    }
}

/// An open container directory.
#[derive(Debug)]
pub struct ContainerDir(Directory);

impl ContainerDir {
    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &Directory {
        &self.0
    }

    /// Opens the directory of one of its processes.
    pub fn process(&self, id: &ProcessId) -> io::Result<ProcessDir> {
        self.0.open_dir(id.as_str()).map(ProcessDir::new)
    }

    /// Where a bundle that Holdfast made for it stands.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.0.path().join(BUNDLE)
    }
}

/// The name under which a bundle is made in a staged container.
pub const BUNDLE_NAME: &str = BUNDLE;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// All that there is, and all that makes no sense.
    pub(crate) fn all(root: &StateRoot) -> (Vec<Found>, Vec<Problem>) {
        let mut problems = Vec::new();
        let names = root.scan(&mut problems).unwrap();
        let found = names.iter().filter_map(|name| root.find(name, &mut problems)).collect();
        (found, problems)
    }

    #[test]
    fn a_root_is_private_and_has_one_holder() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let root = StateRoot::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let error = StateRoot::open(&path).unwrap_err();
        assert!(
            error.to_string().contains(&format!("in use by process {}", std::process::id())),
            "{error}"
        );
        root.release();
        StateRoot::open(&path).unwrap();
    }

    #[test]
    fn a_container_appears_and_disappears_in_one_step() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let id: ContainerId = "web".parse().unwrap();
        let staged = root.stage_container().unwrap();
        staged.directory().create_dir("init").unwrap();
        assert!(root.container(&id).is_err());
        staged.publish(&id).unwrap();
        let taken = root.stage_container().unwrap().publish(&id).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        let (containers, _) = all(&root);
        assert_eq!(containers.len(), 1);
        assert_eq!(containers[0].processes[0].0, ProcessId::init());
        root.remove_container(&id).unwrap();
        root.remove_container(&id).unwrap();
        assert_eq!(root.directory.names().unwrap(), [recognise::MARKER, LOCK]);
    }

    #[test]
    fn what_a_runtime_kept_is_forgotten_with_its_boot() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        root.forget_runtimes_of_other_boots("one").unwrap();
        let kept = root.runtime_root("runc").join("c");
        std::fs::create_dir_all(&kept).unwrap();
        root.forget_runtimes_of_other_boots("one").unwrap();
        assert!(kept.exists());
        root.forget_runtimes_of_other_boots("two").unwrap();
        assert!(!kept.exists());
    }

    #[test]
    fn the_scan_sweeps_leftovers_and_reports_what_makes_no_sense() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        for leftover in [".new-1-1", ".gone-7-0"] {
            std::fs::create_dir_all(temp.path().join(leftover).join("init")).unwrap();
        }
        std::fs::create_dir_all(temp.path().join("good/init")).unwrap();
        std::fs::create_dir_all(temp.path().join("good/.gone-1-2")).unwrap();
        std::fs::create_dir_all(temp.path().join("no id")).unwrap();
        std::fs::write(temp.path().join("holdfast.sock"), "").unwrap();
        let (containers, problems) = all(&root);
        assert_eq!(containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["good"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].reason.contains("invalid id"));
        assert_eq!(
            root.directory.names().unwrap(),
            [recognise::MARKER, LOCK, "good", "holdfast.sock", "no id"]
        );
    }

    #[test]
    fn a_root_that_others_could_enter_is_closed_to_them() {
        let temp = tempfile::tempdir().unwrap();
        for (mode, then) in [(0o755, 0o700), (0o701, 0o700), (0o700, 0o700), (0o1700, 0o1700)] {
            std::fs::set_permissions(temp.path(), Permissions::from_mode(mode)).unwrap();
            drop(StateRoot::open(temp.path()).unwrap());
            let now = temp.path().metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(now, then, "{mode:o}");
        }
    }

    #[test]
    fn what_is_somebody_elses_or_no_root_stays_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("notes"), "").unwrap();
        std::fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
        let error = StateRoot::open(temp.path()).unwrap_err();
        assert!(matches!(&error, LockError::NotARoot { found, .. } if found == "notes"), "{error}");
        let newer = tempfile::tempdir().unwrap();
        let marker = "state root of Holdfast, layout 2";
        std::fs::write(newer.path().join(recognise::MARKER), marker).unwrap();
        let error = StateRoot::open(newer.path()).unwrap_err();
        assert!(matches!(&error, LockError::Newer { marker: m, .. } if m == marker), "{error}");
        for (path, name) in [(temp.path(), "notes"), (newer.path(), recognise::MARKER)] {
            assert_eq!(Directory::open(path).unwrap().names().unwrap(), [name]);
        }
        assert_eq!(temp.path().metadata().unwrap().permissions().mode() & 0o777, 0o755);
        // One of another user: root makes it, and anybody else has that of root.
        let other = tempfile::tempdir().unwrap();
        let path = if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(other.path(), Some(12), None).unwrap();
            other.path()
        } else {
            Path::new("/")
        };
        let owner = path.metadata().unwrap().uid();
        let error = StateRoot::open(path).unwrap_err();
        assert!(matches!(error, LockError::Foreign { uid, .. } if uid == owner), "{error}");
    }

    #[test]
    fn groups_have_a_directory_once_there_is_one() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        assert!(!root.has_groups().unwrap());
        for _ in 0..2 {
            assert_eq!(root.groups().unwrap().path(), root.path().join(GROUPS));
            assert!(root.has_groups().unwrap());
        }
    }

    #[test]
    fn what_a_runtime_kept_is_dead_only_if_another_boot_is_known() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let boot_id = temp.path().join(RUNTIME).join(BOOT_ID);
        let kept = root.runtime_root("runc").join("c");
        assert!(kept.starts_with(root.path()));
        // An earlier build wrote no boot down.
        std::fs::create_dir_all(&kept).unwrap();
        root.forget_runtimes_of_other_boots("one").unwrap();
        assert!(kept.exists());
        assert_eq!(std::fs::read_to_string(&boot_id).unwrap(), "one");
        // A power loss has left something that is none.
        std::fs::write(&boot_id, [0; 1000]).unwrap();
        root.forget_runtimes_of_other_boots("one").unwrap();
        assert!(!kept.exists());
        assert_eq!(std::fs::read_to_string(&boot_id).unwrap(), "one");
    }

    #[test]
    fn several_are_made_at_once_and_what_is_given_up_goes() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        // A crash has left one that had our pid.
        let left = temp.path().join(format!("{STAGED}{}-0", std::process::id()));
        std::fs::create_dir_all(left.join("init")).unwrap();
        let (one, two) = (root.stage_container().unwrap(), root.stage_container().unwrap());
        assert!(one.directory().names().unwrap().is_empty());
        one.directory().create_dir("init").unwrap();
        let one = one.publish(&"one".parse().unwrap()).unwrap();
        drop(two);
        assert_eq!(root.directory.names().unwrap(), [recognise::MARKER, LOCK, "one"]);
        assert_eq!(one.bundle(), root.path().join("one").join(BUNDLE_NAME));
        let exec: ProcessId = "exec".parse().unwrap();
        assert!(one.process(&exec).is_err());
        drop(root.stage_process(&one).unwrap());
        let staged = root.stage_process(&one).unwrap();
        staged.directory().append("file").unwrap();
        let process = staged.publish_process(&exec).unwrap();
        assert_eq!(process.path(), one.directory().path().join("exec"));
        assert!(one.process(&exec).unwrap().directory().contains("file").unwrap());
        assert_eq!(one.directory().names().unwrap(), ["exec", "init"]);
        root.remove_process(&one, &exec).unwrap();
        root.remove_process(&one, &exec).unwrap();
        assert_eq!(one.directory().names().unwrap(), ["init"]);
    }

    #[test]
    fn a_removal_is_not_stopped_by_what_a_crash_with_our_pid_has_left() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let id: ContainerId = "web".parse().unwrap();
        root.stage_container().unwrap().publish(&id).unwrap();
        // The name that it would have meanwhile is taken.
        let next = root.counter.load(Ordering::Relaxed);
        let hidden = format!("{REMOVED}{}-{next}", std::process::id());
        root.directory.create_dir(&hidden).unwrap();
        root.remove_container(&id).unwrap();
        assert!(root.container(&id).is_err());
    }

    #[test]
    fn what_is_no_process_is_passed_over_and_what_has_a_wrong_name_is_reported() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let web = temp.path().join("web");
        for name in ["init", ".bundle", ".hidden", "no id", ".new-1-2"] {
            std::fs::create_dir_all(web.join(name)).unwrap();
        }
        std::fs::write(web.join("events.jsonl"), "").unwrap();
        std::os::unix::fs::symlink("init", web.join("link")).unwrap();
        for name in ["lost+found", ".hidden"] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
        }
        let (containers, problems) = all(&root);
        assert_eq!(containers.len(), 1);
        let ids: Vec<_> = containers[0].processes.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids, ["init"]);
        let paths: Vec<_> = problems.iter().map(|problem| &problem.path).collect();
        assert_eq!(paths, [&root.path().join("web/no id")]);
        assert!(!web.join(".new-1-2").exists() && web.join(".hidden").exists());
        assert!(temp.path().join(".hidden").exists());
        // It went between the scan and the look at it.
        let mut problems = Vec::new();
        assert!(root.find("gone", &mut problems).is_none());
        assert_eq!(problems[0].path, root.path().join("gone"));
    }

    #[test]
    fn leftovers_are_known_by_their_names() {
        for (name, leftover) in [
            (".new-1-2", true),
            (".gone-1-2", true),
            ("..holdfast.4711", true),
            ("..exits.jsonl.4711", true),
            ("..definitions.4711", true),
            ("..holdfast.x", false),
            ("..holdfast.4711.x", false),
            ("..other.4711", false),
            (".holdfast", false),
            (".exits.jsonl", false),
            (".runtime", false),
            ("new-1-2", false),
            ("web", false),
        ] {
            assert_eq!(is_leftover(name), leftover, "{name}");
        }
    }
}
