//! Paths as a container sees them, and descriptors of what they lead to.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, mkdirat};

use crate::mountinfo;

/// Makes a directory and those above it.
pub(crate) fn make_dirs(root: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    let mut above = PathBuf::from(".");
    for name in path.components() {
        let std::path::Component::Normal(name) = name else { continue };
        let parent = open_in(root, &above)?;
        match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => above.push(name),
            Err(error) => return Err(error).context(above.join(name).display().to_string()),
        }
    }
    open_in(root, path).map(drop)
}

/// Returns where a path of a root file system leads, if it is there.
pub(crate) fn resolve(rootfs: &Path, path: &Path) -> Option<PathBuf> {
    let file = open_in(&open_path(rootfs).ok()?, path).ok()?;
    let inside = path_of(&file).ok()?.strip_prefix(rootfs).ok()?.to_owned();
    Some(Path::new("/").join(inside))
}

/// Opens a mount of the container's at its root.
pub(crate) fn open_mount(root: &OwnedFd, destination: &Path) -> anyhow::Result<OwnedFd> {
    let file = open_in(root, destination)?;
    let (id, path) = (mountinfo::id_of(&file)?, path_of(&file)?);
    if !mountinfo::of("self")?.iter().any(|it| it.id == id && it.point == path) {
        bail!("a later mount covers it");
    }
    Ok(file)
}

/// Opens a path as the container sees it: neither `..` nor a symbolic link leads out.
pub(crate) fn open_in(root: &OwnedFd, path: &Path) -> anyhow::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how).with_context(|| format!("open {} in the root", path.display()))
}

/// Opens what lies in a directory under a name and is no link.
pub(crate) fn open_name(dir: &OwnedFd, name: &OsStr) -> anyhow::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(dir, name, how)?)
}

/// Opens a path without links of this process's namespace.
pub(crate) fn open_path(path: &Path) -> anyhow::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, path, how).with_context(|| format!("open {}", path.display()))
}

pub(crate) fn path_of(file: &OwnedFd) -> anyhow::Result<PathBuf> {
    Ok(fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?)
}

pub(crate) fn enter(pid: i32, name: &str, flag: CloneFlags) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/ns/{name}");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    setns(namespace, flag).with_context(|| format!("enter {path}"))
}
