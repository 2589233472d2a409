//! The journal of systemd, by its native protocol: a datagram an entry
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).

use std::io;
use std::mem;
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

/// How much of a line waits for its end, in bytes: so much and one read more is a datagram that the journal
/// takes by default.
const LONGEST_LINE: usize = 128 * 1024;

/// A journal.
pub struct Journald {
    path: PathBuf,
    /// Connected from the first entry on until there is none for a while.
    socket: Option<UnixDatagram>,
    /// The fields that all entries have.
    fields: Vec<u8>,
    rate: Rate,
    message: Vec<u8>,
    dropped: u64,
    stuck: bool,
    /// There if the customs are conmon's.
    lines: Option<Box<Lines>>,
}

/// What conmon does to lines: what comes of one in pieces is one entry, and a priority in front of it (`<3>`,
/// sd-daemon(3)) is that of the entry.
#[derive(Default)]
struct Lines {
    /// Per stream: the beginning of a line whose end has not been read yet.
    begun: [Vec<u8>; 2],
    /// Per stream: the priority of a line that continues in the next entry.
    priority: [Option<u8>; 2],
    /// Whether an entry that ends no line says so.
    names_partial: bool,
}

impl Journald {
    /// The journal of conmon's place, with the fields that all entries have.
    #[must_use]
    pub fn of_monitor(path: Option<&Path>, fields: &[(&str, &str)], names_partial: bool) -> Self {
        let mut all = Vec::new();
        for (name, value) in fields {
            field(&mut all, name, value.as_bytes());
        }
        let lines = Lines { names_partial, ..Lines::default() };
        Self { lines: Some(Box::new(lines)), ..Self::new(path, None, all) }
    }

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
        Self::new(path, rate, fields)
    }

    fn new(path: Option<&Path>, rate: Option<u32>, fields: Vec<u8>) -> Self {
        Self {
            path: path.unwrap_or(Path::new(SOCKET)).to_owned(),
            socket: None,
            fields,
            rate: Rate::new(rate),
            message: Vec::new(),
            dropped: 0,
            stuck: false,
            lines: None,
        }
    }

    pub(super) fn rest(&mut self) {
        self.message = Vec::new();
        self.socket = None;
        if let Some(lines) = &mut self.lines {
            lines.begun.iter_mut().for_each(Vec::shrink_to_fit);
        }
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
        self.end_lines(stamp, give_up_at);
        self.tell_of_dropped(stamp, give_up_at);
        let mut rate = std::mem::take(&mut self.rate);
        rate.tell(stamp, |notice| self.enter(notice, give_up_at));
        self.rate = rate;
        if self.dropped > 0 {
            let text = format!("{} entries could not be sent", self.dropped);
            crate::log::log("warning", &format!("{}: {text}", self.path.display()));
        }
    }

    /// Sends an entry, or counts it as dropped; of a line that goes on it keeps what there is.
    fn enter(&mut self, entry: Chunk<'_>, give_up_at: Instant) {
        let is_whole = entry.bytes.ends_with(b"\n");
        if let Some(lines) = &mut self.lines
            && let begun = &mut lines.begun[entry.stream as usize]
            && !(is_whole && begun.is_empty())
        {
            begun.extend_from_slice(entry.bytes);
            if is_whole || begun.len() >= LONGEST_LINE {
                let mut bytes = mem::take(begun);
                self.enter_now(Chunk { bytes: &bytes, ..entry }, give_up_at);
                bytes.clear();
                if let Some(lines) = &mut self.lines {
                    lines.begun[entry.stream as usize] = bytes;
                }
            }
            return;
        }
        self.enter_now(entry, give_up_at);
    }

    fn enter_now(&mut self, entry: Chunk<'_>, give_up_at: Instant) {
        let sent = self.send(entry, give_up_at);
        self.dropped += u64::from(!sent);
    }

    /// No more comes of what has no end yet.
    fn end_lines(&mut self, stamp: &Stamp, give_up_at: Instant) {
        let Some(lines) = &mut self.lines else { return };
        let begun = mem::take(&mut lines.begun);
        for (stream, bytes) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&begun) {
            if !bytes.is_empty() {
                self.enter_now(Chunk { stream, mark: Mark::Plain, stamp, bytes }, give_up_at);
            }
        }
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
        let (mut partial, mut content) = match entry.bytes {
            [content @ .., b'\n'] => (false, content),
            content => (true, content),
        };
        let mut priority = if entry.stream == Stream::Stdout { b'6' } else { b'3' };
        let is_conmons = self.lines.is_some();
        if let Some(lines) = &mut self.lines {
            let goes_on = &mut lines.priority[entry.stream as usize];
            (priority, content) = match (*goes_on, content) {
                (Some(begun), content) => (begun, content),
                (None, [b'<', found @ b'0'..=b'7', b'>', rest @ ..]) => (*found, rest),
                (None, content) => (priority, content),
            };
            *goes_on = partial.then_some(priority);
            partial &= lines.names_partial;
        }
        let mut message = std::mem::take(&mut self.message);
        message.clear();
        message.extend_from_slice(&self.fields);
        field(&mut message, "PRIORITY", &[priority]);
        if !is_conmons {
            field(&mut message, "HOLDFAST_STREAM", entry.stream.name());
        }
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
