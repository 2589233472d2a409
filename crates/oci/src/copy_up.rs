//! Copies a directory into a tmpfs: names, modes, owners, times, symbolic links, devices.
//!
//! All goes by descriptors of the two directories, and no link is followed. As with runc, extended
//! attributes are left out, and a file of several names becomes several files.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Copies what is in one directory into another one, and what the directory itself is like. What is
/// there already is a mount point; a directory of that kind is filled, a file stays.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> anyhow::Result<()> {
    let from = openat(from, ".", DIRECTORY, Mode::empty())?;
    let to = openat(to, ".", DIRECTORY, Mode::empty())?;
    fill(from, &to)
}

fn fill(from: OwnedFd, to: &OwnedFd) -> anyhow::Result<()> {
    let stat = fstat(&from)?;
    let mut entries = Dir::from_fd(from.try_clone()?)?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            let text = || name.to_string_lossy().into_owned();
            copy_entry(&from, to, name).with_context(text)?;
        }
    }
    // Last: a directory may be closed to its owner, and its time changes with its entries.
    fchownat(to, c".", owner(&stat), group(&stat), AtFlags::empty()).context("owner")?;
    fchmod(to, permissions(&stat)).context("mode")?;
    times(to.as_fd(), c".", &stat)
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> anyhow::Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        let inside = openat(from, name, DIRECTORY, Mode::empty())?;
        ignore_existing(mkdirat(to, name, Mode::S_IRWXU))?;
        return fill(inside, &openat(to, name, DIRECTORY, Mode::empty())?);
    }
    let made = match kind {
        SFlag::S_IFREG => copy_file(from, to, name),
        SFlag::S_IFLNK => readlinkat(from, name).and_then(|link| symlinkat(&*link, to, name)),
        // FIFOs, sockets and devices.
        _ => mknodat(to, name, kind, permissions(&stat), stat.st_rdev),
    };
    match made {
        Err(Errno::EEXIST) => return Ok(()),
        made => made?,
    }
    fchownat(to, name, owner(&stat), group(&stat), AtFlags::AT_SYMLINK_NOFOLLOW)
        .context("owner")?;
    if kind != SFlag::S_IFLNK {
        // After the owner: a change of that takes the bits of setuid away.
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(to, name, flags, Mode::empty())?;
        chmod_path(&made, permissions(&stat)).context("mode")?;
    }
    times(to.as_fd(), name, &stat)
}

fn copy_file(from: &OwnedFd, to: &OwnedFd, name: &CStr) -> nix::Result<()> {
    // Should it be a FIFO by now, nobody waits for its other side.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut source = File::from(openat(from, name, flags, Mode::empty())?);
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut copy = File::from(openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let copied = io::copy(&mut source, &mut copy);
    copied.map(drop).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// fchmod(2) takes no descriptor of a path alone.
fn chmod_path(file: &OwnedFd, mode: Mode) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        path.as_str(),
        mode,
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )
}

fn times(dir: BorrowedFd<'_>, name: &CStr, stat: &FileStat) -> anyhow::Result<()> {
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    let flag = UtimensatFlags::NoFollowSymlink;
    utimensat(dir, name, &accessed, &modified, flag).context("times")
}

fn owner(stat: &FileStat) -> Option<Uid> {
    Some(Uid::from_raw(stat.st_uid))
}

fn group(stat: &FileStat) -> Option<Gid> {
    Some(Gid::from_raw(stat.st_gid))
}

fn permissions(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode)
}

fn ignore_existing(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn a_copy_has_modes_times_and_links_and_leaves_a_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("closed/below")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join("file"), "text").unwrap();
        fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        fs::write(from.join("mount"), "covered").unwrap();
        fs::write(to.join("mount"), "").unwrap();
        copy(&open(&from), &open(&to)).unwrap();
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "text");
        let mode = |name: &str| fs::metadata(to.join(name)).unwrap().mode() & 0o7777;
        assert_eq!((mode("file"), mode("closed")), (0o4751, 0o500));
        assert!(to.join("closed/below").is_dir());
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::read_to_string(to.join("mount")).unwrap(), "");
        let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
        assert_eq!(time(&from.join("file")), time(&to.join("file")));
        assert_eq!(time(&from), time(&to));
        // For who removes the directory.
        fs::set_permissions(from.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(to.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}
