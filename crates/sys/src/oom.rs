//! The number of times that the OOM killer has killed in a cgroup. The path of the cgroup is looked
//! up while its process lives: afterwards, cgroup v1 no longer tells it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::proc;

const MOUNT: &str = "/sys/fs/cgroup";

/// The counter of the memory cgroup of a process.
#[derive(Debug)]
pub struct OomCounter(Box<Path>);

impl OomCounter {
    /// Finds the counter. `None` if the process shares its memory cgroup with this process.
    ///
    /// # Errors
    ///
    /// If the cgroups of a process cannot be read.
    pub fn of(pid: i32) -> io::Result<Option<Self>> {
        let theirs = proc::read(&format!("/proc/{pid}/cgroup"))?;
        let own = proc::read("/proc/self/cgroup")?;
        let counter = file(&theirs, MOUNT).filter(|path| file(&own, MOUNT).as_ref() != Some(path));
        Ok(counter.map(|path| Self(path.into())))
    }

    /// The counter with this path. Its process may have ended.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self(path.into())
    }

    /// Returns the path of the file with the count.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the count since the cgroup was created; 0 if the cgroup is gone, or the kernel has no
    /// counter for it.
    #[must_use]
    pub fn kills(&self) -> u64 {
        let mut text = [0; 512];
        let length = File::open(&self.0).and_then(|mut file| file.read(&mut text)).unwrap_or(0);
        count(&text[..length])
    }
}

fn count(text: &[u8]) -> u64 {
    let text = std::str::from_utf8(text).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Returns the file with the count, given the content of `/proc/PID/cgroup`: lines of the form
/// `NUMBER:CONTROLLERS:PATH`. A memory controller of cgroup v1 comes before the unified hierarchy.
fn file(lines: &[u8], mount: &str) -> Option<PathBuf> {
    let lines = std::str::from_utf8(lines).ok()?;
    let mut unified = None;
    for line in lines.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
        // The root is no container's; cgroup v1 shows it for a process that has exited.
        if path.is_empty() {
            continue;
        }
        if controllers.split(',').any(|name| name == "memory") {
            let dir = Path::new(mount).join(controllers).join(path);
            return Some(dir.join("memory.oom_control"));
        }
        if controllers.is_empty() {
            unified = Some(Path::new(mount).join(path).join("memory.events"));
        }
    }
    unified
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_found_in_each_layout() {
        let file = |text: &str| file(text.as_bytes(), "/m").map(|path| path.display().to_string());
        let hybrid = "9:name=systemd:/\n4:memory:/a/b:c\n0::/\n";
        assert_eq!(file(hybrid).as_deref(), Some("/m/memory/a/b:c/memory.oom_control"));
        assert_eq!(file("0::/a.slice/b\n").as_deref(), Some("/m/a.slice/b/memory.events"));
        for none in ["4:cpu:/a\n", "4:memory:/\n0::/\n"] {
            assert_eq!(file(none), None);
        }
        assert_eq!(file("garbage"), None);
    }

    #[test]
    fn the_count_is_that_of_kills_and_of_nothing_else() {
        for (text, kills) in [
            ("", 0),
            ("low 0\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),
            ("oom_kill_disable 5\n", 0),
        ] {
            assert_eq!(count(text.as_bytes()), kills, "{text}");
        }
    }

    #[test]
    fn a_cgroup_that_is_shared_with_us_tells_nothing() {
        let own = std::process::id().cast_signed();
        assert!(OomCounter::of(own).unwrap().is_none());
    }
}
