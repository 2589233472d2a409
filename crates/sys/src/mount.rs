//! Mounts by descriptor: cloned, changed, attached, and file systems that are only asked about.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Follows no symbolic link on this mount.
pub const NO_SYMLINKS: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
/// Read-only.
pub const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Whether a call concerns one mount, or all below it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// One mount.
    One,
    /// It and all mounts below it.
    All,
}

impl Reach {
    const fn flag(self) -> libc::c_uint {
        match self {
            Self::One => 0,
            Self::All => libc::AT_RECURSIVE.cast_unsigned(),
        }
    }
}

/// What [`change`] changes; the rest stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change<'a> {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE` or `MS_UNBINDABLE`; 0 keeps it.
    pub propagation: u64,
    /// The user namespace by whose mapping the owners of files are shown.
    pub id_map: Option<BorrowedFd<'a>>,
}

/// Clones the mount of an open file into one that is nowhere attached and read-only, and returns the
/// file there, opened for its path alone (`open_tree(2)`, `mount_setattr(2)`; Linux 5.12+, and it
/// takes `CAP_SYS_ADMIN`).
///
/// Through it nobody can write to the file: who reopens the descriptor gets `EROFS`, and a mount that
/// is in no mount namespace can't be remounted.
pub fn read_only_clone(file: &impl AsFd) -> io::Result<OwnedFd> {
    let tree = clone(file, Reach::One)?;
    change(&tree, Reach::One, Change { set: READ_ONLY, ..Change::default() })?;
    Ok(tree)
}

/// Clones the mount of an open file, from that file on, into one that is nowhere attached
/// (`open_tree(2)`). With [`Reach::One`] mounts below it are left out, so that what they cover is seen.
pub fn clone(file: &impl AsFd, reach: Reach) -> io::Result<OwnedFd> {
    let fd = file.as_fd().as_raw_fd();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | EMPTY_PATH | reach.flag();
    // SAFETY: the path is a string that ends with a null byte, and the descriptor is open.
    descriptor(unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) })
}

/// Changes a mount (`mount_setattr(2)`). The descriptor is of the mount's root.
pub fn change(mount: &impl AsFd, reach: Reach, change: Change<'_>) -> io::Result<()> {
    let id_map = change.id_map.map(|namespace| namespace.as_raw_fd());
    let attributes = libc::mount_attr {
        attr_set: change.set | if id_map.is_some() { libc::MOUNT_ATTR_IDMAP } else { 0 },
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: id_map.map_or(Ok(0), u64::try_from).map_err(io::Error::other)?,
    };
    // SAFETY: the path is a string that ends with a null byte, the descriptors are open, and the
    // structure is of the size that is given.
    done(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            EMPTY_PATH | reach.flag(),
            &raw const attributes,
            size_of_val(&attributes),
        )
    })
}

/// Attaches a clone at a file or directory (`move_mount(2)`).
pub fn attach(tree: &impl AsFd, at: &impl AsFd) -> io::Result<()> {
    move_mount(tree, at, 0)
}

/// Makes a mount a peer of another one of the same file system, and a slave of what that is a slave of
/// (`MOVE_MOUNT_SET_GROUP`; Linux 5.15+). The mount must be private before.
pub fn join_group(of: &impl AsFd, mount: &impl AsFd) -> io::Result<()> {
    move_mount(of, mount, MOVE_MOUNT_SET_GROUP)
}

fn move_mount(from: &impl AsFd, to: &impl AsFd, flags: libc::c_uint) -> io::Result<()> {
    let flags = flags | MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let empty = c"".as_ptr();
    // SAFETY: the paths are strings that end with a null byte, and the descriptors are open.
    done(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) })
}

/// A file system that is being configured and is mounted nowhere (`fsopen(2)`).
#[derive(Debug)]
pub struct Draft(File);

impl Draft {
    /// Begins one of a type.
    pub fn new(kind: &str) -> io::Result<Self> {
        let kind = CString::new(kind)?;
        // SAFETY: the type is a string that ends with a null byte.
        let fd = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
        descriptor(fd).map(|fd| Self(fd.into()))
    }

    /// Sets an option as mount(8) has it, `name` or `name=value`. An error has the kernel's own words
    /// where it gives any.
    pub fn option(&mut self, option: &str) -> io::Result<()> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(CString::new(value)?)),
            None => (option, None),
        };
        let name = CString::new(name)?;
        let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
        let value = value.as_ref().map_or(std::ptr::null(), |value| value.as_ptr());
        let fd = self.0.as_raw_fd();
        // SAFETY: both are strings that end with a null byte, or the value is null for a flag.
        done(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, name.as_ptr(), value, 0) })
            .map_err(|error| self.explained(error))
    }

    /// The kernel queues a line such as `e tmpfs: Unknown parameter 'x'`.
    fn explained(&mut self, error: io::Error) -> io::Error {
        let mut line = [0; 512];
        match self.0.read(&mut line) {
            Ok(length) if length > 2 => {
                let text = String::from_utf8_lossy(&line[2..length]);
                io::Error::new(error.kind(), format!("{error}: {}", text.trim()))
            }
            _ => error,
        }
    }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

// See linux/mount.h.
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const MOVE_MOUNT_SET_GROUP: libc::c_uint = 0x100;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH.cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_the_clone_nobody_writes() {
        let own = std::env::temp_dir().join(format!("holdfast-mount-{}", std::process::id()));
        let file = File::create(&own).expect("make a file");
        std::fs::remove_file(&own).expect("nothing is left of it");
        let clone = match read_only_clone(&file) {
            Ok(clone) => clone,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                return eprintln!("NOT RUN: it takes CAP_SYS_ADMIN");
            }
        };
        let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
        let error = File::options().append(true).open(&path).expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
        File::open(&path).expect("it can be read");
    }

    #[test]
    fn an_option_that_a_file_system_does_not_know_is_refused_in_the_kernels_words() {
        let mut draft = match Draft::new("tmpfs") {
            Ok(draft) => draft,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                return eprintln!("NOT RUN: it takes CAP_SYS_ADMIN");
            }
        };
        draft.option("size=64k").expect("tmpfs has it");
        let error = draft.option("nonsense").expect_err("tmpfs has none").to_string();
        assert!(error.contains("nonsense"), "{error}");
    }
}
