//! The sd-notify proxy (sd_notify(3)): it passes messages of the container on to the host's socket, reduced to
//! what a container may say.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use holdfast_state::Directory;
use nix::poll::PollFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

use crate::bundle::{bind_in, named};
use crate::report;

/// The directory of the socket in the bundle. The caller creates it.
const DIR: &str = "notify";
const SOCKET: &str = "notify.sock";
/// The longest message, in bytes.
const ROOM: usize = 32 * 1024;

/// The lines that are passed on.
const LINES: [&[u8]; 5] =
    [b"READY=1", b"RELOADING=1", b"STOPPING=1", b"WATCHDOG=1", b"WATCHDOG=trigger"];
const BEGINNINGS: [&[u8]; 4] = [b"STATUS=", b"ERRNO=", b"BUSERROR=", b"MONOTONIC_USEC="];

pub(crate) struct Notify {
    socket: UnixDatagram,
    host: UnixDatagram,
    address: SocketAddr,
    /// A message for which the host's socket has no room yet.
    waiting: Option<Vec<u8>>,
}

impl Notify {
    /// Creates the container's socket.
    pub(crate) fn open(bundle: &Path, host: &OsStr) -> io::Result<Self> {
        let address = match host.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(host),
        };
        let address = named(Path::new(host), address)?;
        let path = bundle.join(DIR);
        let dir = named(&path, Directory::open(&path))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        let all = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO;
        named(&path, bind_in(&dir, SOCKET, &socket, all))?;
        let host = UnixDatagram::unbound()?;
        host.set_nonblocking(true)?;
        Ok(Self { socket: socket.into(), host, address, waiting: None })
    }

    /// Returns what to wait for: messages, or room in the host's socket.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        match self.waiting {
            None => (self.socket.as_fd(), PollFlags::POLLIN),
            Some(_) => (self.host.as_fd(), PollFlags::POLLOUT),
        }
    }

    /// Passes on all messages there are.
    pub(crate) fn pass(&mut self) {
        loop {
            let message = match self.waiting.take().map_or_else(|| self.receive(), Ok) {
                Ok(message) => message,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return report::warn(&format!("notify socket: {error}")),
            };
            if message.is_empty() {
                continue;
            }
            match self.host.send_to_addr(&message, &self.address) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waiting = Some(message);
                    return;
                }
                Err(error) => report::warn(&format!("a notification is lost: {error}")),
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut room = vec![0; ROOM];
        let length = self.socket.recv(&mut room)?;
        Ok(filter(&room[..length]))
    }
}

/// Returns the lines of a message that are passed on.
fn filter(message: &[u8]) -> Vec<u8> {
    let passes = |line: &&[u8]| {
        LINES.contains(line) || BEGINNINGS.iter().any(|beginning| line.starts_with(beginning))
    };
    let lines: Vec<_> =
        message.split(|byte| matches!(byte, b'\n' | b'\r')).filter(passes).collect();
    lines.join(&b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_the_containers_to_say_is_passed_on() {
        for (message, passed) in [
            ("READY=1", "READY=1"),
            ("READY=1\nMAINPID=1\nSTATUS=all is well\n", "READY=1\nSTATUS=all is well"),
            ("MAINPID=7\nFDSTORE=1\nREADY=12\nNOTIFYACCESS=all", ""),
            ("WATCHDOG=1\r\nERRNO=2", "WATCHDOG=1\nERRNO=2"),
        ] {
            assert_eq!(filter(message.as_bytes()), passed.as_bytes(), "{message:?}");
        }
    }

    #[test]
    fn a_message_reaches_a_socket_by_its_path_and_one_without_a_path() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join(DIR)).unwrap();
        let path = temp.path().join("host");
        let name = format!("holdfast-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        for (host, receiver) in [
            (path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap()),
            (format!("@{name}").into(), UnixDatagram::bind_addr(&address).unwrap()),
        ] {
            let mut notify = Notify::open(temp.path(), &host).unwrap();
            let sender = UnixDatagram::unbound().unwrap();
            sender.send_to(b"MAINPID=1\nREADY=1", temp.path().join(DIR).join(SOCKET)).unwrap();
            notify.pass();
            let mut room = [0; 64];
            let length = receiver.recv(&mut room).unwrap();
            assert_eq!(&room[..length], b"READY=1");
        }
    }
}
