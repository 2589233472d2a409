//! What can't be read is set aside, so that its name is free again and nothing of it is lost:
//!
//! ```text
//! <root>/.broken/<container>-<n>/reason          why, in a sentence
//!                               /<name>/         the directory of the container or of the process
//!                               /.runtime/<r>/   what the runtime r keeps of the container
//! ```
//!
//! It stands there, and is reported at each scan, until somebody removes it.

use std::io;
use std::path::PathBuf;

use crate::journal;
use crate::root::RUNTIME;
use crate::{ContainerDir, ContainerId, Directory, Problem, ProcessId, StateRoot};

/// The directory of all that was set aside.
pub(crate) const BROKEN: &str = ".broken";
const REASON: &str = "reason";
/// More than any reason has.
const REASON_LIMIT: u64 = 64 * 1024;

impl StateRoot {
    /// Sets a container's directory aside, and what the runtimes keep under its id: else the id
    /// would not be free. The caller has made sure that nothing of the container runs.
    pub fn set_container_aside(&self, id: &ContainerId, reason: &str) -> io::Result<PathBuf> {
        let (place, path) = self.place(id.as_str(), reason)?;
        let runtimes = self.runtimes_that_know(id);
        if !runtimes.is_empty() {
            let kept = place.create_dir(RUNTIME)?;
            for (name, state) in runtimes {
                state.move_to(id.as_str(), &kept.create_dir(&name)?)?;
            }
        }
        // Last: a crash before this leaves the record where the next scan finds it.
        self.directory.move_to(id.as_str(), &place)?;
        place.sync()?;
        self.directory.sync()?;
        Ok(path)
    }

    /// Sets the directory of one process of a container aside.
    pub fn set_process_aside(
        &self,
        container: &ContainerDir,
        id: &ContainerId,
        process: &ProcessId,
        reason: &str,
    ) -> io::Result<PathBuf> {
        let (place, path) = self.place(id.as_str(), reason)?;
        container.directory().move_to(process.as_str(), &place)?;
        place.sync()?;
        container.directory().sync()?;
        Ok(path)
    }

    /// Sets a journal aside that makes no sense, so that another one can be begun.
    pub fn set_journal_aside(&self, reason: &str) -> io::Result<PathBuf> {
        let (place, path) = self.place("journal", reason)?;
        self.directory.move_to(journal::NAME, &place)?;
        place.sync()?;
        self.directory.sync()?;
        Ok(path)
    }

    /// A new place for what has this name, with the reason in it already.
    fn place(&self, id: &str, reason: &str) -> io::Result<(Directory, PathBuf)> {
        let broken = match self.directory.create_dir(BROKEN) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.directory.open_dir(BROKEN)?
            }
            other => other?,
        };
        for number in 1u32.. {
            let name = format!("{id}-{number}");
            match broken.create_dir(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(place) => {
                    place.write_atomic(REASON, format!("{reason}\n").as_bytes())?;
                    broken.sync()?;
                    let path = place.path().to_owned();
                    return Ok((place, path));
                }
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    fn runtimes_that_know(&self, id: &ContainerId) -> Vec<(String, Directory)> {
        let Ok(runtimes) = self.directory.open_dir(RUNTIME) else { return Vec::new() };
        let names = runtimes.names().unwrap_or_default().into_iter();
        names
            .filter_map(|name| Some((runtimes.open_dir(&name).ok()?, name)))
            .filter(|(state, _)| state.contains(id.as_str()).unwrap_or(false))
            .map(|(state, name)| (name, state))
            .collect()
    }

    /// Everything that was ever set aside and is still there.
    pub(crate) fn set_aside(&self) -> Vec<Problem> {
        let path = self.path().join(BROKEN);
        let broken = match self.directory.open_dir(BROKEN) {
            Ok(broken) => broken,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => return vec![Problem { path, reason: error.to_string() }],
        };
        match broken.names() {
            Ok(names) => names.iter().filter_map(|name| look_at(&broken, name)).collect(),
            Err(error) => vec![Problem { path, reason: error.to_string() }],
        }
    }
}

/// `None` for a place into which nothing was moved: a crash came between, or the moving failed.
fn look_at(broken: &Directory, name: &str) -> Option<Problem> {
    let problem = |reason: String| Problem { path: broken.path().join(name), reason };
    let place = match broken.open_dir(name) {
        Ok(place) => place,
        Err(error) => return Some(problem(error.to_string())),
    };
    if place
        .names()
        .is_ok_and(|names| names.iter().all(|name| name.starts_with('.') || name == REASON))
        && !place.contains(RUNTIME).unwrap_or(true)
    {
        let _ = broken.remove_all(name);
        return None;
    }
    Some(problem(match place.read(REASON, REASON_LIMIT) {
        Ok(reason) => format!("set aside: {}", String::from_utf8_lossy(&reason).trim_end()),
        Err(error) => format!("set aside, and its reason can't be read: {error}"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::tests::all;

    fn tree(root: &StateRoot) -> Vec<String> {
        let mut all = Vec::new();
        let mut ahead = vec![root.path().to_owned()];
        while let Some(dir) = ahead.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    ahead.push(path);
                } else {
                    all.push(path.strip_prefix(root.path()).unwrap().display().to_string());
                }
            }
        }
        all.sort();
        all
    }

    #[test]
    fn what_is_set_aside_keeps_its_files_frees_its_id_and_is_told_at_each_scan() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let id: ContainerId = "web".parse().unwrap();
        for number in 1..=2 {
            let staged = root.stage_container().unwrap();
            staged.directory().create_dir("init").unwrap().write_atomic("pid", b"1").unwrap();
            staged.publish(&id).unwrap();
            std::fs::create_dir_all(temp.path().join(".runtime/runc/web")).unwrap();
            std::fs::write(temp.path().join(".runtime/runc/web/state.json"), "{}").unwrap();
            let path = root.set_container_aside(&id, &format!("reason {number}")).unwrap();
            assert_eq!(path, root.path().join(format!(".broken/web-{number}")));
        }
        let container = root.stage_container().unwrap();
        container.directory().create_dir("init").unwrap();
        container.directory().create_dir("more").unwrap();
        let container = container.publish(&id).unwrap();
        let exec = "more".parse().unwrap();
        root.set_process_aside(&container, &id, &exec, "reason 3").unwrap();
        std::fs::create_dir(temp.path().join(".broken/web-4")).unwrap();
        std::fs::write(temp.path().join(".broken/web-4/reason"), "nothing came").unwrap();
        for _ in 0..2 {
            let (containers, problems) = all(&root);
            let reasons: Vec<_> = problems.iter().map(|p| p.reason.as_str()).collect();
            assert_eq!(
                reasons,
                ["set aside: reason 1", "set aside: reason 2", "set aside: reason 3"]
            );
            assert_eq!(containers[0].processes.len(), 1);
        }
        assert_eq!(
            tree(&root),
            [
                ".broken/web-1/.runtime/runc/web/state.json",
                ".broken/web-1/reason",
                ".broken/web-1/web/init/pid",
                ".broken/web-2/.runtime/runc/web/state.json",
                ".broken/web-2/reason",
                ".broken/web-2/web/init/pid",
                ".broken/web-3/reason",
                ".holdfast",
                ".lock",
            ]
        );
        std::fs::remove_dir_all(temp.path().join(".broken")).unwrap();
        assert!(all(&root).1.is_empty());
        std::os::unix::fs::symlink("/etc", temp.path().join(".broken")).unwrap();
        assert_eq!(all(&root).1.len(), 1);
        assert!(root.set_container_aside(&id, "").is_err());
        assert!(root.container(&id).is_ok());
    }

    #[test]
    fn a_reason_is_told_whole_and_a_lost_one_hides_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let id: ContainerId = "web".parse().unwrap();
        root.stage_container().unwrap().publish(&id).unwrap();
        let reason = "why ".repeat(10_000);
        let place = root.set_container_aside(&id, &reason).unwrap();
        let told = || all(&root).1.into_iter().map(|p| p.reason).collect::<Vec<_>>();
        assert_eq!(told(), [format!("set aside: {}", reason.trim_end())]);
        std::fs::remove_file(place.join(REASON)).unwrap();
        assert!(told()[0].contains("its reason can't be read"), "{:?}", told());
    }

    #[test]
    fn only_a_place_without_anything_of_a_container_is_cleared_away() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let broken = root.path().join(BROKEN);
        for kept in ["runtime-1/.runtime/runc/web", "container-1/web", "name-1/.runtime"] {
            std::fs::create_dir_all(broken.join(kept)).unwrap();
        }
        std::fs::write(broken.join("a file"), "").unwrap();
        // A crash has left nothing but the reason, or what was to become that.
        std::fs::create_dir_all(broken.join("empty-1")).unwrap();
        std::fs::create_dir_all(broken.join("half-1")).unwrap();
        std::fs::write(broken.join("half-1/.reason.7"), "").unwrap();
        let (_, problems) = all(&root);
        let paths: Vec<_> =
            problems.iter().map(|p| p.path.strip_prefix(&broken).unwrap()).collect();
        let kept = ["a file", "container-1", "name-1", "runtime-1"];
        assert_eq!(paths, kept.map(std::path::Path::new));
        assert_eq!(Directory::open(&broken).unwrap().names().unwrap(), kept);
    }

    #[test]
    fn what_a_full_disk_has_no_place_for_stays_where_it_is() {
        use crate::directory::tests::{mount_tmpfs, with_mounts};
        // The root, its lock, its marker, two directories of the container and then that of all places.
        for inodes in [5, 6] {
            with_mounts(move || {
                let temp = tempfile::tempdir().unwrap();
                mount_tmpfs(temp.path(), &format!("nr_inodes={inodes}"));
                let root = StateRoot::open(temp.path()).unwrap();
                let id: ContainerId = "web".parse().unwrap();
                let staged = root.stage_container().unwrap();
                staged.directory().create_dir("init").unwrap();
                let container = staged.publish(&id).unwrap();
                let init = ProcessId::init();
                for result in [
                    root.set_container_aside(&id, "why"),
                    root.set_process_aside(&container, &id, &init, "why"),
                ] {
                    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
                }
                let (containers, problems) = all(&root);
                assert_eq!((containers[0].processes.len(), problems), (1, vec![]));
                drop((root, container, containers));
                nix::mount::umount(temp.path()).unwrap();
            });
        }
    }
}
