//! A directory held by a descriptor. Everything below it is opened relative to it and follows no
//! symbolic link, so nobody can redirect a write by swapping a path.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat, openat2, renameat, renameat2,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, mkfifoat, unlinkat};

/// Mode of a directory of ours: nobody but the owner.
const DIRECTORY_MODE: Mode = Mode::S_IRWXU;
/// Mode of a file or FIFO of ours.
pub(crate) const FILE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// An open directory, and the path by which it was reached (for messages and for programs that
/// take paths; Holdfast itself goes through the descriptor).
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

/// Which file it is, among all that exist at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = nix::sys::stat::fstat(file)?;
        Ok(Self { device: found.st_dev, inode: found.st_ino })
    }
}

/// How often a directory is looked through before whoever puts more into it is taken for one who does
/// not stop.
const REMOVAL_ROUNDS: usize = 100;

impl Directory {
    /// Opens a directory by path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let fd = nix::fcntl::open(path, flags, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a subdirectory; a symbolic link to one is refused.
    pub fn open_dir(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY;
        Ok(Self { fd: self.open_at(name, flags)?, path: self.path.join(name) })
    }

    /// Makes and opens a subdirectory, mode 0700.
    pub fn create_dir(&self, name: &str) -> io::Result<Self> {
        mkdirat(&self.fd, name, DIRECTORY_MODE)?;
        self.open_dir(name)
    }

    /// Opens a subdirectory, and makes it if need be.
    pub fn make_dir(&self, name: &str) -> io::Result<Self> {
        match self.create_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.open_dir(name),
            other => other,
        }
    }

    /// The path by which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens an entry with `O_NOFOLLOW`, `O_CLOEXEC` and mode 0600 where it is created.
    pub fn open_at(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        self.open_with(name, flags, FILE_MODE)
    }

    fn open_with(&self, name: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(uninterrupted(|| openat(&self.fd, name, flags, mode))?)
    }

    /// Opens a regular file. A FIFO, a directory or a device in its place is an error at once,
    /// where opening it plainly could wait for ever.
    pub fn open_file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        self.open_with_length(name, flags).map(|(file, _)| file)
    }

    fn open_with_length(&self, name: &str, flags: OFlag) -> io::Result<(File, u64)> {
        let file = File::from(self.open_at(name, flags | OFlag::O_NONBLOCK)?);
        let metadata = file.metadata()?;
        if metadata.is_file() {
            Ok((file, metadata.len()))
        } else {
            Err(no_such_kind(name, "regular file"))
        }
    }

    /// Reads a whole regular file. Anything else, or a file of more than `limit` bytes, in its
    /// place is an error at once: nothing here blocks or fills the memory.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let (mut file, length) = self.open_with_length(name, OFlag::O_RDONLY)?;
        let mut content = Vec::new();
        let too_large = length > limit || {
            content.resize(usize::try_from(length).unwrap_or_default() + 1, 0);
            let read = file.read(&mut content)?;
            content.truncate(read);
            // It may have grown since, so its length alone says nothing.
            if read as u64 != length {
                file.take((limit + 1).saturating_sub(read as u64)).read_to_end(&mut content)?;
            }
            content.len() as u64 > limit
        };
        if too_large {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{name} is larger than {limit} bytes"),
            ));
        }
        Ok(content)
    }

    /// Reads the first bytes of a regular file, at most so many.
    pub fn read_front(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let (file, _) = self.open_with_length(name, OFlag::O_RDONLY)?;
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Reads the last bytes of a regular file, at most so many.
    pub fn read_back(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let (mut file, length) = self.open_with_length(name, OFlag::O_RDONLY)?;
        file.seek(io::SeekFrom::Start(length.saturating_sub(most)))?;
        let mut content = Vec::new();
        file.take(most).read_to_end(&mut content)?;
        Ok(content)
    }

    /// Writes a file so that a reader sees the old content or the new, never a mixture, also after
    /// a power loss: a synced temporary file is renamed into place and the directory synced.
    pub fn write_atomic(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.write_atomic_with(name, content, FILE_MODE)
    }

    /// As [`write_atomic`](Self::write_atomic), with the mode that the caller gives; the umask applies to it.
    pub fn write_atomic_with(&self, name: &str, content: &[u8], mode: Mode) -> io::Result<()> {
        self.replace(name, content, mode)?;
        self.sync()
    }

    /// As [`write_atomic_with`](Self::write_atomic_with), but the name is durable only after a [`sync`](Self::sync).
    pub fn replace(&self, name: &str, content: &[u8], mode: Mode) -> io::Result<()> {
        self.publish(name, content, mode, Self::rename)
    }

    /// As [`write_atomic`](Self::write_atomic), but the first to write the name wins; every later
    /// write fails with [`io::ErrorKind::AlreadyExists`] and changes nothing. And the name itself is
    /// durable only after a [`sync`](Self::sync), which can be that of several.
    pub fn write_once(&self, name: &str, content: &[u8]) -> io::Result<()> {
        self.publish(name, content, FILE_MODE, Self::rename_new)
    }

    fn publish(
        &self,
        name: &str,
        content: &[u8],
        mode: Mode,
        rename: impl FnOnce(&Self, &str, &str) -> io::Result<()>,
    ) -> io::Result<()> {
        // The pid keeps two writers apart (a shim and a supervisor may record the same exit); one
        // that a crash left behind is simply overwritten, or goes with the directory.
        let temporary = format!(".{name}.{}", std::process::id());
        let written = self
            .write_synced(&temporary, content, mode)
            .and_then(|()| rename(self, &temporary, name));
        if written.is_err() {
            // Best effort: what stays is hidden, and goes with the directory.
            let _ = self.unlink(&temporary);
        }
        written
    }

    fn write_synced(&self, name: &str, content: &[u8], mode: Mode) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = File::from(self.open_with(name, flags, mode)?);
        file.write_all(content)?;
        file.sync_all()
    }

    /// Makes the entries themselves durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(uninterrupted(|| nix::unistd::fsync(&self.fd))?)
    }

    /// Opens a file for appending, creating it if need be.
    pub fn append(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND)
    }

    /// Makes a FIFO, mode 0600; one that is there already is kept (the seed made it).
    pub fn make_fifo(&self, name: &str) -> io::Result<()> {
        match mkfifoat(&self.fd, name, FILE_MODE) {
            Err(Errno::EEXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Lets everyone read and write an entry that is no symbolic link.
    pub fn open_to_all(&self, name: &str) -> io::Result<()> {
        let mode = Mode::from_bits_truncate(0o666);
        Ok(fchmodat(&self.fd, name, mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Changes the owner of an entry; a symbolic link's own.
    pub fn give(&self, name: &str, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(fchownat(&self.fd, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Opens a FIFO without ever blocking; anything else under that name is refused.
    pub fn open_fifo(&self, name: &str, access: OFlag) -> io::Result<File> {
        let file = File::from(self.open_at(name, access | OFlag::O_NONBLOCK)?);
        if file.metadata()?.file_type().is_fifo() {
            Ok(file)
        } else {
            Err(no_such_kind(name, "FIFO"))
        }
    }

    /// Removes a name that is not a directory; a missing one is fine.
    pub fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Renames an entry, over another one if need be.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Renames an entry and fails with [`io::ErrorKind::AlreadyExists`] if the new name is taken.
    pub fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat2(&self.fd, from, &self.fd, to, RenameFlags::RENAME_NOREPLACE)?)
    }

    /// Moves an entry into another directory of the same file system, and fails with
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken there.
    pub fn move_to(&self, name: &str, into: &Self) -> io::Result<()> {
        Ok(renameat2(&self.fd, name, &into.fd, name, RenameFlags::RENAME_NOREPLACE)?)
    }

    /// When an entry was last written, by the system's clock.
    pub fn modified(&self, name: &str) -> io::Result<SystemTime> {
        File::from(self.open_at(name, OFlag::O_PATH)?).metadata()?.modified()
    }

    /// Whether there is an entry of that name, whatever it is.
    pub fn contains(&self, name: &str) -> io::Result<bool> {
        Ok(self.file_id(name)?.is_some())
    }

    /// Which file an entry is, as long as somebody has that open. `None` if there is no such entry.
    pub fn file_id(&self, name: &str) -> io::Result<Option<FileId>> {
        match nix::sys::stat::fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FileId { device: found.st_dev, inode: found.st_ino })),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The names of all entries, sorted; those that are no UTF-8 are no names of ours and left out.
    pub fn names(&self) -> io::Result<Vec<String>> {
        self.names_where(|_| true)
    }

    /// As [`names`](Self::names), without those of plain files.
    pub fn names_but_of_files(&self) -> io::Result<Vec<String>> {
        self.names_where(|kind| kind != Some(Type::File))
    }

    /// The kind is unknown where the file system does not tell it along with the name.
    fn names_where(&self, wanted: impl Fn(Option<Type>) -> bool) -> io::Result<Vec<String>> {
        let names = self.raw_names_where(wanted)?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The names of all entries, sorted, whatever bytes they are.
    pub(crate) fn raw_names(&self) -> io::Result<Vec<OsString>> {
        self.raw_names_where(|_| true)
    }

    fn raw_names_where(&self, wanted: impl Fn(Option<Type>) -> bool) -> io::Result<Vec<OsString>> {
        let mut dir = Dir::openat(
            &self.fd,
            ".",
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." && wanted(entry.file_type()) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes an entry and all below it. It enters no symbolic link and no mount point: a bind
    /// mount of the host's `/usr` that a crash left in a bundle must stop it, not feed it.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = name.as_ref();
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        let how = OpenHow::new()
            .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let fd = match openat2(&self.fd, name, how) {
            Err(Errno::ENOENT) => return Ok(()),
            other => other?,
        };
        let inner = Self { fd, path: self.path.join(name) };
        // Someone else may be clearing away a part of the same tree, and rename as well as remove in it:
        // an exec that has just ended, while its container is deleted.
        for _ in 0..REMOVAL_ROUNDS {
            for entry in inner.raw_names()? {
                inner.remove_all(&entry)?;
            }
            match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
                Err(Errno::ENOTEMPTY) => {}
                Ok(()) | Err(Errno::ENOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::ENOTEMPTY.into())
    }
}

fn no_such_kind(name: &str, kind: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not a {kind}"))
}

/// Whether an error says that what is on disk is not what it should be. Any other (no descriptor
/// left, no permission, a failing disk) says nothing of it: it may be well, and be read next time.
#[must_use]
pub fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kinds = [
        Kind::NotFound,
        Kind::NotADirectory,
        Kind::IsADirectory,
        Kind::FileTooLarge,
        Kind::InvalidData,
        Kind::UnexpectedEof,
    ];
    // What open(2) says of a symbolic link and of a socket.
    let numbers = [Errno::ELOOP, Errno::ENXIO].map(|errno| Some(errno as i32));
    kinds.contains(&error.kind()) || numbers.contains(&error.raw_os_error())
}

/// A file system over the network or in user space may answer a signal with `EINTR`, which says nothing
/// of the file.
fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;

    fn scratch() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        (temp, directory)
    }

    /// Runs a test with mounts that its thread alone sees and that go with it. They take root: without,
    /// nothing is tested, and the test counts as skipped.
    pub(crate) fn with_mounts(test: impl FnOnce() + Send + 'static) {
        use nix::mount::{MsFlags, mount};
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        let body = move || {
            match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS) {
                Err(Errno::EPERM) => return skip(&name, "mounts take root"),
                other => other.unwrap(),
            }
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).unwrap();
            test();
        };
        std::thread::spawn(body).join().unwrap();
    }

    /// As `holdfast_tests::skip`, which this crate can't use: it depends on this crate.
    fn skip(test: &str, reason: &str) {
        eprintln!("skipped: {test}: {reason}");
        if let Some(path) = std::env::var_os("HOLDFAST_TEST_SKIPPED") {
            let mut list = File::options().append(true).create(true).open(path).unwrap();
            list.write_all(format!("{test}\t{reason}\n").as_bytes()).unwrap();
        }
    }

    pub(crate) fn mount_tmpfs(path: &Path, options: &str) {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(None::<&str>, path, Some("tmpfs"), flags, Some(options)).unwrap();
    }

    #[test]
    fn atomic_writes_leave_no_temporary_file() {
        let (_temp, dir) = scratch();
        dir.write_atomic("a", b"old").unwrap();
        dir.write_atomic("a", b"new").unwrap();
        dir.write_once("b", b"first").unwrap();
        let again = dir.write_once("b", b"second").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(dir.names().unwrap(), ["a", "b"]);
        assert_eq!(dir.read("a", 10).unwrap(), b"new");
        assert_eq!(dir.read("b", 10).unwrap(), b"first");
    }

    #[test]
    fn what_is_no_plain_file_is_refused_at_once() {
        let (temp, dir) = scratch();
        dir.make_fifo("fifo").unwrap();
        dir.create_dir("dir").unwrap();
        symlink("/etc/passwd", temp.path().join("link")).unwrap();
        dir.write_atomic("big", &[0; 11]).unwrap();
        let _socket = UnixListener::bind(temp.path().join("socket")).unwrap();
        for name in ["fifo", "dir", "link", "big", "socket", "gone"] {
            let error = dir.read(name, 10).unwrap_err();
            assert!(is_damage(&error), "{name}: {error}");
        }
        for name in ["fifo", "dir", "link", "socket"] {
            assert!(dir.append(name).is_err(), "{name}");
        }
        assert!(!is_damage(&Errno::EMFILE.into()));
        assert!(dir.open_fifo("big", OFlag::O_RDONLY).is_err());
    }

    #[test]
    fn removal_does_not_follow_links() {
        let (temp, dir) = scratch();
        let kept = tempfile::tempdir().unwrap();
        std::fs::write(kept.path().join("file"), "x").unwrap();
        dir.create_dir("tree").unwrap().create_dir("inner").unwrap();
        symlink(kept.path(), temp.path().join("tree/inner/link")).unwrap();
        std::fs::write(temp.path().join("tree").join(OsStr::from_bytes(b"\xff")), "").unwrap();
        dir.remove_all("tree").unwrap();
        dir.remove_all("tree").unwrap();
        assert!(dir.names().unwrap().is_empty());
        assert!(kept.path().join("file").exists());
    }

    #[test]
    fn two_may_remove_parts_of_the_same_tree_at_once() {
        for _ in 0..50 {
            let (_temp, dir) = scratch();
            let tree = dir.create_dir("tree").unwrap();
            let names: Vec<String> = (0..20).map(|number| format!("exec-{number}")).collect();
            for name in &names {
                tree.create_dir(name).unwrap().write_atomic("file", b"x").unwrap();
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for name in &names {
                        let hidden = format!(".gone-{name}");
                        match tree.rename_new(name, &hidden) {
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            other => other.and_then(|()| tree.remove_all(&hidden)).unwrap(),
                        }
                    }
                });
                dir.remove_all("tree").unwrap();
            });
            assert!(!dir.contains("tree").unwrap());
        }
    }

    #[test]
    fn a_directory_is_a_directory_and_no_link_to_one() {
        let (temp, dir) = scratch();
        let inner = dir.create_dir("inner").unwrap();
        assert_eq!(inner.path(), temp.path().join("inner"));
        dir.append("file").unwrap();
        symlink("inner", temp.path().join("link")).unwrap();
        for name in ["file", "link"] {
            let error = dir.open_dir(name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{name}");
            assert!(dir.make_dir(name).is_err(), "{name}");
        }
        assert!(Directory::open(&temp.path().join("file")).is_err());
        let taken = dir.create_dir("inner").unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        inner.append("within").unwrap();
        assert_eq!(dir.make_dir("inner").unwrap().names().unwrap(), ["within"]);
        assert!(dir.make_dir("new").unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn what_is_made_is_its_owners_alone() {
        let (temp, dir) = scratch();
        dir.create_dir("dir").unwrap();
        dir.make_fifo("fifo").unwrap();
        dir.append("appended").unwrap();
        dir.write_atomic("atomic", b"x").unwrap();
        dir.write_once("once", b"x").unwrap();
        for name in dir.names().unwrap() {
            let mode = temp.path().join(&name).metadata().unwrap().mode() & 0o777;
            assert_eq!(mode, if name == "dir" { 0o700 } else { 0o600 }, "{name}");
        }
    }

    #[test]
    fn no_descriptor_is_left_to_another_program() {
        let (_temp, dir) = scratch();
        let inner = dir.create_dir("dir").unwrap();
        dir.make_fifo("fifo").unwrap();
        let file = dir.append("file").unwrap();
        let fifo = dir.open_fifo("fifo", OFlag::O_RDWR).unwrap();
        for fd in [dir.as_fd(), inner.as_fd(), file.as_fd(), fifo.as_fd()] {
            let flags = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, nix::fcntl::FdFlag::FD_CLOEXEC.bits());
        }
    }

    #[test]
    fn a_file_is_read_up_to_the_limit_whatever_its_length_says() {
        let (_temp, dir) = scratch();
        for content in [&b""[..], b"1234567890"] {
            dir.write_atomic("file", content).unwrap();
            assert_eq!(dir.read("file", 10).unwrap(), content);
        }
        assert_eq!(dir.read("file", 9).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // fstat(2) gives files in /proc a length of 0, although they have content.
        let proc = Directory::open(Path::new("/proc/self")).unwrap();
        let whole = proc.read("cmdline", 1 << 20).unwrap();
        let length = whole.len() as u64;
        assert!(length > 0);
        assert_eq!(proc.read("cmdline", length).unwrap(), whole);
        for limit in [0, length - 1] {
            let error = proc.read("cmdline", limit).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{limit}");
        }
    }

    #[test]
    fn the_temporary_file_of_a_crash_is_overwritten() {
        let (temp, dir) = scratch();
        let left = temp.path().join(format!(".a.{}", std::process::id()));
        std::fs::write(&left, "more than is written now").unwrap();
        dir.write_atomic("a", b"new").unwrap();
        assert_eq!(dir.read("a", 100).unwrap(), b"new");
        // One that can't be renamed does not stay.
        dir.create_dir("dir").unwrap();
        assert!(dir.write_atomic("dir", b"x").is_err());
        assert!(!dir.contains(&format!(".dir.{}", std::process::id())).unwrap());
    }

    #[test]
    fn what_is_appended_comes_after_what_is_there() {
        let (_temp, dir) = scratch();
        for line in [b"one\n", b"two\n"] {
            dir.append("log").unwrap().write_all(line).unwrap();
        }
        assert_eq!(dir.read("log", 100).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn an_owner_is_given_to_an_entry_and_not_to_what_a_link_points_to() {
        let (temp, dir) = scratch();
        let owner = |name: &str| {
            let metadata = temp.path().join(name).symlink_metadata().unwrap();
            (metadata.uid(), metadata.gid())
        };
        dir.append("file").unwrap();
        symlink("file", temp.path().join("link")).unwrap();
        let ours = owner("file");
        let given = dir.give("link", 12, 34);
        if nix::unistd::geteuid().is_root() {
            given.unwrap();
            assert_eq!(owner("link"), (12, 34));
        } else {
            assert_eq!(given.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(owner("file"), ours);
    }

    #[test]
    fn names_are_taken_away_and_changed() {
        let (_temp, dir) = scratch();
        let inner = dir.create_dir("inner").unwrap();
        let write = |name: &str| dir.write_atomic(name, name.as_bytes()).unwrap();
        write("a");
        write("b");
        assert_eq!(dir.rename_new("a", "b").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        dir.rename_new("a", "c").unwrap();
        dir.rename("b", "c").unwrap();
        assert_eq!(dir.names().unwrap(), ["c", "inner"]);
        assert_eq!(dir.read("c", 10).unwrap(), b"b");
        dir.move_to("c", &inner).unwrap();
        write("c");
        assert_eq!(dir.move_to("c", &inner).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(inner.read("c", 10).unwrap(), b"b");
        dir.unlink("c").unwrap();
        dir.unlink("c").unwrap();
        assert!(dir.unlink("inner").is_err());
        assert_eq!(dir.names().unwrap(), ["inner"]);
    }

    #[test]
    fn names_come_sorted_and_without_what_is_no_text() {
        let (temp, dir) = scratch();
        dir.append("file").unwrap();
        dir.make_fifo("a fifo").unwrap();
        dir.create_dir("dir").unwrap();
        symlink("gone", temp.path().join("link")).unwrap();
        let odd = OsStr::from_bytes(b"\xff");
        std::fs::write(temp.path().join(odd), "").unwrap();
        assert_eq!(dir.names().unwrap(), ["a fifo", "dir", "file", "link"]);
        assert_eq!(dir.names_but_of_files().unwrap(), ["a fifo", "dir", "link"]);
        let names = ["a fifo", "dir", "file", "link"].map(OsString::from);
        assert_eq!(dir.raw_names().unwrap(), [&names[..], &[odd.to_owned()]].concat());
    }

    #[test]
    fn an_entry_is_itself_under_any_of_its_names() {
        let (temp, dir) = scratch();
        let file = dir.append("file").unwrap();
        std::fs::hard_link(temp.path().join("file"), temp.path().join("same")).unwrap();
        dir.append("other").unwrap();
        symlink("gone", temp.path().join("link")).unwrap();
        let id = |name: &str| dir.file_id(name).unwrap();
        assert_eq!(id("file"), Some(FileId::of(&file).unwrap()));
        assert_eq!(id("file"), id("same"));
        assert_ne!(id("file"), id("other"));
        assert_eq!(id("gone"), None);
        let there = ["file", "link", "gone"].map(|name| dir.contains(name).unwrap());
        assert_eq!(there, [true, true, false]);
        assert!(dir.contains("file/x").is_err());
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        file.set_modified(time).unwrap();
        assert_eq!(dir.modified("same").unwrap(), time);
        assert!(dir.modified("gone").is_err());
    }

    #[test]
    fn removal_stops_at_a_mount() {
        with_mounts(|| {
            let temp = tempfile::tempdir().unwrap();
            let inner = temp.path().join("tree/inner");
            std::fs::create_dir_all(&inner).unwrap();
            mount_tmpfs(&inner, "");
            std::fs::write(inner.join("kept"), "x").unwrap();
            let error = Directory::open(temp.path()).unwrap().remove_all("tree").unwrap_err();
            assert!(inner.join("kept").exists());
            assert_eq!(error.raw_os_error(), Some(Errno::EXDEV as i32), "{error}");
            nix::mount::umount(&inner).unwrap();
        });
    }

    #[test]
    fn a_full_disk_costs_nothing_that_is_there() {
        with_mounts(|| {
            let temp = tempfile::tempdir().unwrap();
            // Room for the directory, two files and some bytes.
            mount_tmpfs(temp.path(), "nr_inodes=3,size=64k");
            let dir = Directory::open(temp.path()).unwrap();
            dir.write_atomic("a", b"old").unwrap();
            let is_full = |result: io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
                assert_eq!(dir.names().unwrap(), ["a"]);
                assert_eq!(dir.read("a", 10).unwrap(), b"old");
            };
            is_full(dir.write_atomic("a", &[0; 100_000]));
            is_full(dir.write_once("b", &[0; 100_000]));
            dir.create_dir("dir").unwrap();
            for result in [dir.make_dir("new"), dir.create_dir("new")] {
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
            }
            assert!(dir.make_dir("dir").is_ok());
            drop(dir);
            nix::mount::umount(temp.path()).unwrap();
        });
    }

    #[test]
    fn a_call_that_a_signal_interrupted_is_made_again() {
        let mut results = [Err(Errno::EINTR), Err(Errno::EINTR), Ok(7)].into_iter();
        assert_eq!(uninterrupted(|| results.next().unwrap()), Ok(7));
        assert_eq!(uninterrupted(|| Err::<(), _>(Errno::EIO)), Err(Errno::EIO));
    }
}
