//! What systemd and its services say to each other: sd_notify(3), sd_listen_fds(3).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use holdfast_supervisor::Keeper;
use holdfast_sys::{fd, fd_passing};

/// The first of the descriptors that a service is started with.
const FIRST: RawFd = 3;

/// The service manager that started us.
#[derive(Debug)]
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// `None` if there is none that wants to hear of us.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            name => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Some(Self(socket)))
    }

    /// The service is there for its clients.
    pub(crate) fn ready(&self) -> io::Result<()> {
        self.0.send(b"READY=1").map(drop)
    }
}

impl Keeper for Manager {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Without FDPOLL=0 systemd drops what hangs up: the pidfd of a process that has ended.
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        fd_passing::send(self.0.as_fd(), message.as_bytes(), &[fd])
    }

    fn release(&self, name: &str) -> io::Result<()> {
        self.0.send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes()).map(drop)
    }
}

/// The descriptors that the manager has kept for us, by their names.
pub(crate) fn kept() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // Meant for whoever has this pid, which a child of the one that was meant does not.
    if number("LISTEN_PID") != Some(std::process::id().cast_signed()) {
        return Vec::new();
    }
    let fds = number("LISTEN_FDS").and_then(|count| fd::inherited(FIRST, count));
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).zip(fds.unwrap_or_default()).collect()
}
