//! The sockets and FIFOs in the bundle, by which others reach the container.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use holdfast_state::Directory;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::mkfifoat;

use crate::args::Args;
use crate::ctl::Lines;
use crate::report;

const ATTACH: &str = "attach";
/// The most connections that wait to be accepted.
const BACKLOG: i32 = 10;
/// The longest address of a socket, in bytes (unix(7)).
const MAX_ADDRESS: usize = 107;

pub(crate) struct Bundle {
    dir: Directory,
    /// The attach socket. Its type is `SOCK_SEQPACKET`, whatever the Rust type says.
    pub(crate) listener: Option<UnixListener>,
    pub(crate) ctl: Lines,
    pub(crate) winsz: Lines,
    /// The symbolic link to the bundle, if one was made.
    link: Option<PathBuf>,
}

impl Bundle {
    /// Creates the sockets and FIFOs. Existing ones are replaced.
    pub(crate) fn open(args: &Args<'_>, path: &Path) -> io::Result<Self> {
        let dir = named(path, Directory::open(path))?;
        let link = match args.full_attach {
            true => None,
            false => Some(make_link(args, path)?),
        };
        // First: who has attached may write to these, and those of a dead monitor have no reader.
        let fifo = |name: &str| named(&path.join(name), make_fifo(&dir, name)).map(Lines::new);
        let (ctl, winsz) = (fifo("ctl")?, fifo("winsz")?);
        let kind = SockType::SeqPacket;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, kind, flags, None)?;
        let bound = bind_in(&dir, ATTACH, &listener, Mode::S_IRWXU);
        let listening = bound.and_then(|()| Ok(listen(&listener, Backlog::new(BACKLOG)?)?));
        named(&path.join(ATTACH), listening)?;
        Ok(Self { dir, listener: Some(listener.into()), ctl, winsz, link })
    }

    /// Removes the attach socket and the symbolic link.
    pub(crate) fn close(&mut self) {
        if self.listener.take().is_some() {
            report::warn_of("the attach socket is not removed", self.dir.unlink(ATTACH));
        }
        if let Some(link) = self.link.take()
            && let Err(error) = std::fs::remove_file(&link)
            && error.kind() != io::ErrorKind::NotFound
        {
            report::warn(&format!("{}: {error}", link.display()));
        }
    }
}

/// Adds a path to an error.
pub(crate) fn named<T>(path: &Path, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Binds a socket to a name in a directory. The directory's own path may be too long for an address.
pub(crate) fn bind_in(dir: &Directory, name: &str, socket: &OwnedFd, mode: Mode) -> io::Result<()> {
    dir.unlink(name)?;
    // From the moment on at which it has a name, nobody else may connect.
    fchmod(socket, Mode::S_IRWXU)?;
    let path = format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd());
    bind(socket.as_raw_fd(), &UnixAddr::new(Path::new(&path))?)?;
    fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    Ok(())
}

fn make_fifo(dir: &Directory, name: &str) -> io::Result<File> {
    dir.unlink(name)?;
    mkfifoat(dir, name, Mode::from_bits_truncate(0o660))?;
    // Opened for both, so that it does not end with its last writer.
    dir.open_fifo(name, OFlag::O_RDWR)
}

/// Creates the symbolic link, by which the path of the attach socket is short enough for an address. A link
/// whose path has the longest length of an address is made one byte shorter, as conmon does.
fn make_link(args: &Args<'_>, bundle: &Path) -> io::Result<PathBuf> {
    let link = Path::new(args.socket_dir_path).join(args.cuuid.unwrap_or_default());
    let bytes = link.as_os_str().as_bytes();
    let link = match bytes.len() {
        MAX_ADDRESS => PathBuf::from(OsStr::from_bytes(&bytes[..MAX_ADDRESS - 1])),
        _ => link,
    };
    let made = match std::fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => symlink(bundle, &link),
    };
    named(&link, made).map(|()| link)
}
