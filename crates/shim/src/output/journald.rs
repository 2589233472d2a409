//! The journal of systemd, by its native protocol: a datagram an entry
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_state::cri::{Mark, Stream};
use nix::poll::{PollFd, PollFlags, poll};

use super::rate::Rate;
use super::{Chunk, Stamp};
use crate::home::Home;
use crate::seat::round_up;

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long output may wait for a journal that is busy. One that takes nothing for so long is stuck,
/// and is not waited for again before it takes something.
const PATIENCE: Duration = Duration::from_secs(1);

pub(super) struct Journald {
    path: PathBuf,
    /// Connected from the first entry on until there is none for a while.
    socket: Option<UnixDatagram>,
    /// The fields that all entries have.
    fields: Vec<u8>,
    rate: Rate,
    message: Vec<u8>,
    dropped: u64,
    stuck: bool,
}

impl Journald {
    pub(super) fn open(path: Option<&Path>, rate: Option<u32>, home: &Home) -> Self {
        let name = |path: Option<&Path>| {
            path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned())
        };
        let process = name(Some(home.path())).unwrap_or_default();
        let container = name(home.path().parent()).unwrap_or_default();
        let mut fields = Vec::new();
        field(&mut fields, "CONTAINER_ID", container.as_bytes());
        field(&mut fields, "CONTAINER_NAME", container.as_bytes());
        field(&mut fields, "SYSLOG_IDENTIFIER", container.as_bytes());
        field(&mut fields, "HOLDFAST_PROCESS", process.as_bytes());
        Self {
            path: path.unwrap_or(Path::new(SOCKET)).to_owned(),
            socket: None,
            fields,
            rate: Rate::new(rate),
            message: Vec::new(),
            dropped: 0,
            stuck: false,
        }
    }

    pub(super) fn rest(&mut self) {
        self.message = Vec::new();
        self.socket = None;
    }

    /// Whether there is nothing to say of what is missing.
    pub(super) fn is_clean(&self) -> bool {
        self.dropped == 0 && self.rate.is_clean()
    }

    pub(super) fn take(&mut self, chunk: Chunk<'_>) {
        let give_up_at = self.patience();
        self.tell_of_dropped(chunk.stamp, give_up_at);
        let mut rate = std::mem::take(&mut self.rate);
        rate.each_line(chunk, |line| self.enter(line, give_up_at));
        self.rate = rate;
    }

    pub(super) fn finish(&mut self, stamp: &Stamp) {
        // Nothing comes after this, so also a journal that was stuck is waited for.
        let give_up_at = Instant::now() + PATIENCE;
        self.tell_of_dropped(stamp, give_up_at);
        let mut rate = std::mem::take(&mut self.rate);
        rate.tell(stamp, |notice| self.enter(notice, give_up_at));
        self.rate = rate;
        if self.dropped > 0 {
            let text = format!("{} entries could not be sent", self.dropped);
            crate::log::log("warning", &format!("{}: {text}", self.path.display()));
        }
    }

    /// Sends an entry, or counts it as dropped.
    fn enter(&mut self, entry: Chunk<'_>, give_up_at: Instant) {
        let sent = self.send(entry, give_up_at);
        self.dropped += u64::from(!sent);
    }

    /// Until when the journal may keep us waiting.
    fn patience(&self) -> Instant {
        Instant::now() + if self.stuck { Duration::ZERO } else { PATIENCE }
    }

    fn tell_of_dropped(&mut self, stamp: &Stamp, give_up_at: Instant) {
        if self.dropped > 0 {
            let text = format!("[holdfast: {} entries could not be sent]\n", self.dropped);
            if self.send(Chunk::notice(stamp, &text), give_up_at) {
                self.dropped = 0;
            }
        }
    }

    /// Whether the journal has got it.
    fn send(&mut self, entry: Chunk<'_>, give_up_at: Instant) -> bool {
        let (partial, content) = match entry.bytes {
            [content @ .., b'\n'] => (false, content),
            content => (true, content),
        };
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        message.extend_from_slice(&self.fields);
        let priority = if entry.stream == Stream::Stdout { "6" } else { "3" };
        field(&mut message, "PRIORITY", priority.as_bytes());
        field(&mut message, "HOLDFAST_STREAM", entry.stream.name());
        if partial {
            field(&mut message, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        if entry.mark != Mark::Plain {
            field(&mut message, "HOLDFAST_MARK", entry.mark.name().as_bytes());
        }
        field(&mut message, "MESSAGE", content);
        let sent = self.send_until(&message, give_up_at);
        self.message = message;
        match sent {
            Ok(()) => {
                self.stuck = false;
                true
            }
            Err(error) => {
                self.stuck = error.kind() == io::ErrorKind::WouldBlock;
                self.socket = None;
                if self.dropped == 0 {
                    let path = self.path.display();
                    let text = "entries are dropped until they can be sent";
                    crate::log::log("warning", &format!("{path}: {error}; {text}"));
                }
                false
            }
        }
    }

    fn send_until(&mut self, message: &[u8], give_up_at: Instant) -> io::Result<()> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?;
                socket.connect(&self.path)?;
                socket
            }
        };
        let socket = self.socket.insert(socket);
        loop {
            match socket.send(message) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= give_up_at {
                        return Err(error);
                    }
                    let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                    match poll(&mut set, round_up(give_up_at)) {
                        Ok(_) | Err(nix::Error::EINTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A field in the form that takes any bytes.
fn field(message: &mut Vec<u8>, name: &str, value: &[u8]) {
    message.extend_from_slice(name.as_bytes());
    message.push(b'\n');
    message.extend_from_slice(&(value.len() as u64).to_le_bytes());
    message.extend_from_slice(value);
    message.push(b'\n');
}
