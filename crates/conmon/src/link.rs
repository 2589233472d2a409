//! The monitor's side of the keeper: what is left with it, and the connection by which it learns that the monitor
//! has died.
//!
//! The keeper is never waited for. While there is none, the directory of its socket is watched (inotify(7)).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use holdfast_state::Directory;
use holdfast_sys::fd_passing;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket,
    sockopt,
};
use nix::unistd::geteuid;

use crate::bundle::named;
use crate::deposit::Deposits;
use crate::record::{Phase, Record};
use crate::report;

/// A monitor's first message, with the sockets of its deposits. The last byte is the version.
pub(crate) const REGISTER: &[u8] = b"HFK\x01";
/// An adopter's message that it has taken over.
pub(crate) const ADOPTED: &[u8] = b"adopted";
/// The keeper's answer to a registration.
pub(crate) const KEPT: &[u8] = b"kept";
/// The room for any of them.
pub(crate) const ROOM: usize = 16;

/// How often a keeper that is there and does not answer is tried again. Each time the wait is twice as long.
const TRIES: u32 = 7;
const FIRST_WAIT: Duration = Duration::from_secs(1);

impl Deposits {
    /// Sends the sockets as a registration.
    pub(crate) fn send(&self, connection: impl AsFd) -> io::Result<()> {
        let all = [Some(&self.container), self.input.as_ref()];
        let all: Vec<_> = all.into_iter().flatten().map(|deposit| deposit.as_fd()).collect();
        fd_passing::send(connection, REGISTER, &all)
    }
}

/// What a monitor has to do with the keeper.
pub(crate) struct Link {
    socket: &'static Path,
    deposits: Deposits,
    record: Record,
    connection: Option<OwnedFd>,
    /// Whether the keeper has answered.
    is_kept: bool,
    /// Tells of a new socket.
    events: Option<Inotify>,
    tries: u32,
    retry: Option<Instant>,
}

impl Link {
    /// Leaves a container with the keeper.
    pub(crate) fn new(socket: &'static OsStr, deposits: Deposits, record: Record) -> Self {
        let mut link = Self::of(socket, deposits, record, None);
        link.connect();
        link
    }

    /// The link of an adopter, which its keeper has connected.
    pub(crate) fn of(
        socket: &'static OsStr,
        deposits: Deposits,
        record: Record,
        connection: Option<OwnedFd>,
    ) -> Self {
        Self {
            socket: Path::new(socket),
            deposits,
            record,
            connection,
            is_kept: false,
            events: None,
            tries: 0,
            retry: None,
        }
    }

    /// Returns what to wait for.
    pub(crate) fn interest(&self) -> Option<BorrowedFd<'_>> {
        let events = || self.events.as_ref().map(AsFd::as_fd);
        self.connection.as_ref().map(AsFd::as_fd).or_else(events)
    }

    /// When the keeper is to be tried again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.retry
    }

    /// Tries the keeper again, if it is time.
    pub(crate) fn keep_trying(&mut self) {
        if self.retry.is_some_and(|retry| retry <= Instant::now()) {
            self.connect();
        }
    }

    /// Handles a message of the keeper, its end, or a new socket.
    pub(crate) fn look(&mut self) {
        if let Some(connection) = &self.connection {
            let mut room = [0; ROOM];
            return match fd_passing::receive(connection, &mut room) {
                Ok((length @ 1.., _)) => {
                    self.is_kept |= &room[..length] == KEPT;
                    self.tries = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // It has ended without reading what we have sent. Its answer comes after this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                _ => self.hang_up(),
            };
        }
        let Some(events) = &self.events else { return };
        let events = events.read_events().unwrap_or_default();
        if events.iter().any(|event| event.name.as_deref() == self.socket.file_name()) {
            self.tries = 0;
            self.connect();
        }
    }

    /// Handles the end of the connection. One that never answered is not tried at once: that could go on for ever.
    fn hang_up(&mut self) {
        // Closed last: `Watch` knows descriptors by their numbers, and is to see that this is another one.
        let before = self.connection.take();
        if std::mem::take(&mut self.is_kept) {
            self.connect();
        } else {
            self.retry_later();
        }
        drop(before);
    }

    fn connect(&mut self) {
        self.retry = None;
        let connected = self.try_connect().or_else(|error| {
            if self.events.is_none() {
                self.events = report::warn_of("the keeper is not waited for", self.watch());
                // It may have come between the two.
                return self.try_connect();
            }
            Err(error)
        });
        match connected {
            Ok(connection) => {
                self.connection = Some(connection);
                self.events = None;
            }
            Err(error) => {
                let socket = self.socket.display();
                report::warn(&format!("the keeper at {socket} does not keep this: {error}"));
                self.retry_later();
            }
        }
    }

    fn retry_later(&mut self) {
        self.retry = (self.tries < TRIES).then(|| Instant::now() + FIRST_WAIT * (1 << self.tries));
        self.tries += 1;
        if self.events.is_none() {
            self.events = report::warn_of("the keeper is not waited for", self.watch());
        }
    }

    /// Connects and registers, without waiting.
    fn try_connect(&self) -> io::Result<OwnedFd> {
        let connection = connect_to(self.socket)?;
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        if peer.uid() != geteuid().as_raw() {
            return Err(io::Error::other("it is another user's"));
        }
        self.deposits.send(&connection)?;
        Ok(connection)
    }

    fn watch(&self) -> io::Result<Inotify> {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let dir = self.socket.parent().unwrap_or(Path::new("/"));
        let kinds = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        named(dir, events.add_watch(dir, kinds).map_err(Into::into))?;
        Ok(events)
    }

    /// Says that the adopter has taken over.
    pub(crate) fn tell_adopted(&self) {
        if let Some(connection) = &self.connection {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let _ = send(connection.as_raw_fd(), ADOPTED, flags);
        }
    }

    /// Notes how far the end is, for who takes over.
    pub(crate) fn note(&self, phase: Phase) {
        self.record.note(phase);
    }

    /// Says that there is nothing left to take over.
    pub(crate) fn finish(&self) {
        if let Some(input) = &self.deposits.input {
            input.clear();
        }
        self.deposits.container.clear();
    }
}

/// Connects to a socket that keeps messages apart, without waiting. Its path may be too long for an address.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let name = path.file_name().zip(path.parent());
    let (name, parent) = name.ok_or(io::ErrorKind::InvalidFilename)?;
    let dir = Directory::open(parent)?;
    let short = format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd());
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(&Path::new(&short).join(name))?)?;
    Ok(socket)
}
