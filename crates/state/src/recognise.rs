//! Whether a directory is a state root. Opening one removes and moves what a crash has left in it, so
//! nothing that is not Holdfast's may ever be taken for one.
//!
//! A root holds a marker. Earlier builds and containerd's 2016 shim wrote none: their roots are known
//! by what is in them, and are marked when they are opened.

use std::io;

use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::broken::BROKEN;
use crate::process_dir::PROCESS_JSON;
use crate::root::{BOOT_ID, GROUPS, LOCK, RUNTIME, is_leftover};
use crate::{ContainerId, Directory};

/// The file that says that a directory is a state root.
pub(crate) const MARKER: &str = ".holdfast";
/// What it says, with the version of the root's layout behind it.
const SENTENCE: &str = "state root of Holdfast, layout ";
const LAYOUT: u32 = 1;
const MARKER_LIMIT: u64 = 256;

/// What mke2fs(8) makes in every file system.
pub(crate) const LOST_AND_FOUND: &str = "lost+found";

/// Where a service manager may listen for the daemon before there was one.
const SOCKET: &str = "holdfast.sock";

/// What a directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A root that says so.
    Marked,
    /// A root without a marker, or an empty directory.
    Unmarked,
    /// Something else.
    Foreign {
        /// Something in it that is not Holdfast's.
        found: String,
    },
    /// The root of a newer Holdfast.
    Newer {
        /// What its marker says.
        marker: String,
    },
}

/// Looks at a directory and changes nothing.
pub(crate) fn look_at(directory: &Directory) -> io::Result<Verdict> {
    match directory.read(MARKER, MARKER_LIMIT) {
        Ok(content) => return Ok(read(&content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if crate::directory::is_damage(&error) => {
            return Ok(Verdict::Foreign { found: MARKER.to_owned() });
        }
        Err(error) => return Err(error),
    }
    // Each earlier build made both before anything else.
    let has_lock = is_file(directory, LOCK);
    if has_lock && directory.open_dir(RUNTIME).is_ok_and(|dir| is_file(&dir, BOOT_ID)) {
        return Ok(Verdict::Unmarked);
    }
    for name in directory.raw_names()? {
        let ours = match name.to_str() {
            Some(LOST_AND_FOUND) => true,
            Some(SOCKET) => is_socket(directory, SOCKET),
            Some(LOCK | RUNTIME | GROUPS | BROKEN) => has_lock,
            Some(name) if name.starts_with('.') => has_lock && is_leftover(name),
            Some(name) => is_container(directory, name),
            None => false,
        };
        if !ours {
            return Ok(Verdict::Foreign { found: name.to_string_lossy().into_owned() });
        }
    }
    Ok(Verdict::Unmarked)
}

/// Marks a directory as a root.
pub(crate) fn mark(directory: &Directory) -> io::Result<()> {
    directory.write_atomic(MARKER, format!("{}\n", line()).as_bytes())
}

/// The marker's content.
pub(crate) fn line() -> String {
    format!("{SENTENCE}{LAYOUT}")
}

fn read(content: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(content);
    let text = text.trim();
    match text.strip_prefix(SENTENCE).and_then(|layout| layout.parse::<u32>().ok()) {
        Some(layout) if layout <= LAYOUT => Verdict::Marked,
        Some(_) => Verdict::Newer { marker: text.to_owned() },
        None => Verdict::Foreign { found: MARKER.to_owned() },
    }
}

/// Whether an entry is the directory of a container. A `state.json` alone says nothing: runc's own
/// root has one for each container too.
fn is_container(root: &Directory, name: &str) -> bool {
    let has_process = |directory: &Directory| {
        directory.names_but_of_files().is_ok_and(|names| {
            names.iter().any(|name| {
                directory.open_dir(name).is_ok_and(|process| is_file(&process, PROCESS_JSON))
            })
        })
    };
    name.parse::<ContainerId>().is_ok() && root.open_dir(name).is_ok_and(|dir| has_process(&dir))
}

fn is_socket(directory: &Directory, name: &str) -> bool {
    let metadata = directory.open_at(name, OFlag::O_PATH).and_then(|fd| Ok(fstat(fd)?));
    metadata
        .is_ok_and(|it| SFlag::from_bits_truncate(it.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK)
}

/// What can't be looked at is no proof of anything.
fn is_file(directory: &Directory, name: &str) -> bool {
    directory.open_file(name, OFlag::O_RDONLY).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    fn of(make: impl FnOnce(&Path)) -> Verdict {
        let temp = tempfile::tempdir().unwrap();
        make(temp.path());
        look_at(&Directory::open(temp.path()).unwrap()).unwrap()
    }

    fn file(path: impl AsRef<Path>, content: &str) {
        std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    #[test]
    fn roots_of_earlier_builds_are_known() {
        assert_eq!(of(|_| ()), Verdict::Unmarked);
        assert_eq!(of(|root| file(root.join(".lock"), "")), Verdict::Unmarked);
        let of_a_service_manager = |root: &Path| {
            std::os::unix::net::UnixListener::bind(root.join("holdfast.sock")).unwrap();
        };
        assert_eq!(of(of_a_service_manager), Verdict::Unmarked);
        // One that was killed before the marker had its name.
        let half_marked = |root: &Path| {
            file(root.join(".lock"), "4711");
            file(root.join("..holdfast.4711"), "state");
        };
        assert_eq!(of(half_marked), Verdict::Unmarked);
        let whatever_is_there = |root: &Path| {
            file(root.join(".lock"), "4711");
            file(root.join(".runtime/.boot-id"), "x");
            file(root.join("no container/x"), "");
        };
        assert_eq!(of(whatever_is_there), Verdict::Unmarked);
        let of_the_2016_shim = |root: &Path| {
            file(root.join("web/state.json"), "{}");
            file(root.join("web/init/process.json"), "{}");
            file(root.join("lost+found/x"), "");
        };
        assert_eq!(of(of_the_2016_shim), Verdict::Unmarked);
    }

    #[test]
    fn what_is_not_a_root_is_known_too() {
        let found = |make: &dyn Fn(&Path)| match of(make) {
            Verdict::Foreign { found } => found,
            other => panic!("{other:?}"),
        };
        // A home directory, runc's own root, and one that happens to have a file of our lock's name.
        assert_eq!(found(&|root| file(root.join(".bashrc"), "")), ".bashrc");
        assert_eq!(found(&|root| file(root.join("web/state.json"), "{}")), "web");
        assert_eq!(found(&|root| file(root.join(".new-1-2/x"), "")), ".new-1-2");
        assert_eq!(found(&|root| file(root.join(".lock/x"), "")), ".lock");
        assert_eq!(found(&|root| file(root.join("holdfast.sock"), "")), "holdfast.sock");
        let other = |root: &Path| {
            std::os::unix::net::UnixListener::bind(root.join("other.sock")).unwrap();
        };
        assert_eq!(found(&other), "other.sock");
        let mixed = |root: &Path| {
            file(root.join("a/init/process.json"), "{}");
            file(root.join("b/notes"), "");
        };
        assert_eq!(found(&mixed), "b");
        let locked = |root: &Path| {
            file(root.join(".lock"), "");
            file(root.join("notes"), "");
        };
        assert_eq!(found(&locked), "notes");
        let name = std::ffi::OsStr::from_bytes(b"\xff");
        assert_eq!(found(&|root| file(root.join(name), "")), "\u{fffd}");
        assert_eq!(found(&|root| file(root.join(MARKER), "mine")), MARKER);
        assert_eq!(found(&|root| file(root.join(MARKER).join("x"), "")), MARKER);
    }

    #[test]
    fn a_marked_root_is_one_whatever_is_in_it() {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        mark(&directory).unwrap();
        file(temp.path().join("notes/x"), "");
        assert_eq!(look_at(&directory).unwrap(), Verdict::Marked);
        let newer = format!("{SENTENCE}{}", LAYOUT + 1);
        file(temp.path().join(MARKER), &newer);
        assert_eq!(look_at(&directory).unwrap(), Verdict::Newer { marker: newer });
    }

    #[test]
    fn what_holdfast_makes_is_its_own_only_beside_its_lock() {
        let found = |make: &dyn Fn(&Path)| match of(make) {
            Verdict::Foreign { found } => found,
            other => panic!("{other:?}"),
        };
        let ours = [".runtime", ".groups", ".broken", ".gone-1-2"];
        for name in ours {
            assert_eq!(found(&|root| file(root.join(name).join("x"), "")), name);
        }
        let all = |root: &Path| {
            file(root.join(".lock"), "");
            ours.iter().for_each(|name| file(root.join(name).join("x"), ""));
        };
        assert_eq!(of(all), Verdict::Unmarked);
        let and_more = |root: &Path| {
            all(root);
            file(root.join(".bashrc"), "");
        };
        assert_eq!(found(&and_more), ".bashrc");
        assert_eq!(found(&|root| file(root.join(".runtime/.boot-id"), "x")), ".runtime");
        // What was a root has a marker that says something else now.
        let damaged = |root: &Path| {
            all(root);
            file(root.join(".runtime/.boot-id"), "x");
            file(root.join(MARKER).join("x"), "");
        };
        assert_eq!(found(&damaged), MARKER);
    }

    #[test]
    fn the_marker_is_one_line() {
        let temp = tempfile::tempdir().unwrap();
        mark(&Directory::open(temp.path()).unwrap()).unwrap();
        let content = std::fs::read_to_string(temp.path().join(MARKER)).unwrap();
        assert_eq!(content, "state root of Holdfast, layout 1\n");
        // Somebody has written it by hand.
        for hand in ["state root of Holdfast, layout 1", " state root of Holdfast, layout 0\n\n"] {
            assert_eq!(read(hand.as_bytes()), Verdict::Marked);
        }
        for other in ["", "state root of Holdfast", "state root of Holdfast, layout one"] {
            assert_eq!(read(other.as_bytes()), Verdict::Foreign { found: MARKER.to_owned() });
        }
    }
}
