//! What is kept of a container: `<root>/<id>/`.
//!
//! | name | what |
//! |---|---|
//! | record.json | the [`Record`], written atomically; readers need no lock |
//! | started | there once `start` has been through |
//! | config.json | the configuration, see `spec.rs`: the bundle that libcontainer is told of |
//! | lock | held by `start` and `delete` |
//! | create.lock, exec.lock | held by all processes of a `create`; by `exec` |
//! | `<id>`/ | libcontainer's own state |

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_state::Timestamp;
use holdfast_sys::PidFd;
use holdfast_sys::proc::{Stat, boot_id};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup::Cgroup;

/// A container's directory.
#[derive(Debug)]
pub(crate) struct Dir {
    pub(crate) path: PathBuf,
    pub(crate) id: String,
}

/// What a container is and where its process is found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    pub(crate) created: Timestamp,
    /// 0 while it is being created.
    pub(crate) pid: i32,
    /// With the boot id, what makes the pid an identity.
    pub(crate) start_time: String,
    pub(crate) boot_id: String,
    pub(crate) user_namespace: bool,
    /// Whether its processes have the session keyring of their caller.
    #[serde(default)]
    pub(crate) no_new_keyring: bool,
    /// `process.capabilities`, which an exec that names none has too. A record of an earlier build has
    /// them in the copy of the configuration alone.
    #[serde(default)]
    pub(crate) capabilities: Value,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) cgroup: Cgroup,
}

/// The states that runc names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Dir {
    /// The directory of a container, there or not.
    pub(crate) fn of(root: &Path, id: &str) -> anyhow::Result<Self> {
        let root = std::path::absolute(root)?;
        let fine = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() || id == "." || id == ".." || id.len() > 1024 || !id.chars().all(fine) {
            bail!("invalid container ID format: {id:?}");
        }
        Ok(Self { path: root.join(id), id: id.to_owned() })
    }

    /// Makes the directory, which reserves the id.
    pub(crate) fn create(&self) -> anyhow::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        if let Some(root) = self.path.parent() {
            builder.recursive(true).create(root)?;
        }
        builder.recursive(false).create(&self.path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => {
                anyhow::anyhow!("container with id {} exists already", self.id)
            }
            _ => anyhow::anyhow!("make {}: {error}", self.path.display()),
        })
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Where libcontainer keeps its own state, below our directory.
    pub(crate) fn libcontainer(&self) -> PathBuf {
        self.path.join(&self.id)
    }

    pub(crate) fn record(&self) -> anyhow::Result<Record> {
        let path = self.path.join("record.json");
        match fs::read(&path) {
            Ok(content) => serde_json::from_slice(&content)
                .with_context(|| format!("parse {}", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("container {} does not exist", self.id)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    pub(crate) fn save(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.path.join("record.json");
        write_atomic(&path, &serde_json::to_vec(record)?)
            .with_context(|| format!("write {}", path.display()))
    }

    pub(crate) fn is_started(&self) -> bool {
        self.path.join("started").exists()
    }

    pub(crate) fn mark_started(&self) -> io::Result<()> {
        File::create(self.path.join("started")).map(drop)
    }

    /// A lock file of the directory, not locked yet.
    pub(crate) fn lock_file(&self, name: &str) -> anyhow::Result<File> {
        let path = self.path.join(name);
        let options = File::options().write(true).create(true).truncate(false).open(&path);
        options.with_context(|| format!("open {}", path.display()))
    }

    pub(crate) fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            return Status::Creating;
        }
        match record.process() {
            None => Status::Stopped,
            Some(_) if record.cgroup.is_frozen() => Status::Paused,
            Some(_) if self.is_started() => Status::Running,
            Some(_) => Status::Created,
        }
    }
}

impl Record {
    /// Takes down the identity of the process.
    pub(crate) fn set_process(&mut self, pid: i32) -> anyhow::Result<()> {
        let stat = Stat::read(pid).with_context(|| format!("read /proc/{pid}/stat"))?;
        self.pid = pid;
        self.start_time = stat.start_time;
        self.boot_id = boot_id()?;
        Ok(())
    }

    /// The container's first process, if it lives. A process that merely has got its number since
    /// is another.
    pub(crate) fn process(&self) -> Option<PidFd> {
        if self.pid == 0 || boot_id().ok()? != self.boot_id {
            return None;
        }
        let process = PidFd::open(self.pid).ok()?;
        let same = Stat::read(self.pid).ok()?.start_time == self.start_time;
        // Alive after the comparison: so the number was its own during it.
        (same && process.is_alive()).then_some(process)
    }
}

/// A reader sees nothing or the whole.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = fs::write(&temporary, content).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_names_and_never_paths() {
        for id in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(Dir::of(Path::new("/r"), id).is_err(), "{id}");
        }
        assert_eq!(Dir::of(Path::new("/r"), "a+b_c-1.2").unwrap().path, Path::new("/r/a+b_c-1.2"));
    }

    #[test]
    fn a_process_that_only_has_the_number_is_another() {
        let mut record = Record {
            bundle: "/b".into(),
            rootfs: "/b/r".into(),
            created: Timestamp::now(),
            pid: 0,
            start_time: String::new(),
            boot_id: String::new(),
            user_namespace: false,
            no_new_keyring: false,
            capabilities: Value::Null,
            annotations: BTreeMap::new(),
            cgroup: Cgroup::default(),
        };
        assert!(record.process().is_none());
        record.set_process(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(record.process().is_some());
        record.start_time.push('1');
        assert!(record.process().is_none());
    }
}
