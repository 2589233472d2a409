//! A process of a test's in a cgroup of its own, for containers to attack.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use crate::unique_id;

const MOUNT: &str = "/sys/fs/cgroup";

/// A process of this test's in a cgroup of its own, in every hierarchy where that can be had.
#[derive(Debug)]
pub struct Victim {
    process: Child,
    name: String,
    dirs: Vec<PathBuf>,
}

impl Default for Victim {
    fn default() -> Self {
        Self::new()
    }
}

impl Victim {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If there is no cgroup to be had.
    #[must_use]
    pub fn new() -> Self {
        let process = Command::new("sleep").arg("100000").spawn().expect("start a process");
        let name = unique_id("victim").to_string();
        let below = fs::read_dir(MOUNT).expect("list the hierarchies").flatten();
        let mounts = below.map(|entry| entry.path()).chain([PathBuf::from(MOUNT)]);
        let mut dirs = Vec::new();
        for dir in mounts.filter(|dir| dir.join("cgroup.procs").exists()) {
            // In a hierarchy of version 2 alone the directories are cgroups.
            if dir != Path::new(MOUNT) && Path::new(MOUNT).join("cgroup.procs").exists() {
                continue;
            }
            let dir = dir.join(&name);
            fs::create_dir(&dir).expect("make a cgroup");
            // One of processors takes nobody before it has some.
            let _ = fs::write(dir.join("cgroup.procs"), process.id().to_string());
            dirs.push(dir);
        }
        assert!(!dirs.is_empty(), "there is no hierarchy below {MOUNT}");
        Self { process, name, dirs }
    }

    /// The name of its cgroups.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Nobody has killed it, joined it or changed its limits.
    ///
    /// # Panics
    ///
    /// If it can't be waited for.
    pub fn is_unharmed(&mut self) -> bool {
        let lives = self.process.try_wait().expect("look at the process").is_none();
        let own = format!("{}\n", self.process.id());
        let untouched = self.dirs.iter().all(|dir| {
            let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
            let limit = read("cgroup.max.descendants");
            let members = read("cgroup.procs");
            (limit.is_empty() || limit == "max\n") && (members.is_empty() || members == own)
        });
        lives && untouched
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for dir in &self.dirs {
            if let Err(error) = fs::remove_dir(dir) {
                eprintln!("left over: {}: {error}", dir.display());
            }
        }
    }
}
