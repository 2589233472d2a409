//! Attached clients. Each has a socket; the first byte of a packet names the stream, the rest is output.
//!
//! Output that a client does not read at once is queued. While a queue is full, the container waits, as at a full
//! pipe; a client that reads nothing for a while is then dropped.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use holdfast_shim::engine::Listener;
use holdfast_state::cri::Stream;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, Shutdown, UnixAddr, recv, send, sendmsg, shutdown};

use crate::report;

/// The most output in a packet, in bytes: podman and CRI-O read no more.
const PACKET: usize = 8192;
/// The size of a full queue, in bytes.
const BOUND: usize = 1024 * 1024;
/// What a queued packet takes beside its bytes, roughly.
const OVERHEAD: usize = 64;

pub(crate) struct Clients {
    all: Vec<Client>,
    /// The number of the next one.
    next: u64,
    /// How long a client with a full queue may read nothing.
    patience: Duration,
    /// Whether the output is over. Clients whose queue is empty are then closed.
    is_over: bool,
}

struct Client {
    number: u64,
    socket: OwnedFd,
    /// Queued packets, oldest first, and their size.
    queue: VecDeque<Box<[u8]>>,
    queued: usize,
    /// When it last read something, or when the queue began.
    since: Instant,
    /// Whether its input has not ended.
    has_input: bool,
    is_gone: bool,
}

/// The result of reading a client's input.
pub(crate) enum Input {
    Bytes(usize),
    /// The input has ended.
    End,
    /// There is no input now.
    Nothing,
}

impl Clients {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { all: Vec::new(), next: 0, patience, is_over: false }
    }

    /// Accepts all waiting connections.
    pub(crate) fn accept(&mut self, listener: &UnixListener) {
        loop {
            match listener.accept() {
                Ok((socket, _)) => self.add(socket.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return report::warn(&format!("a client cannot attach: {error}")),
            }
        }
    }

    fn add(&mut self, socket: OwnedFd) {
        let number = self.next;
        self.next += 1;
        self.all.push(Client {
            number,
            socket,
            queue: VecDeque::new(),
            queued: 0,
            since: Instant::now(),
            has_input: true,
            is_gone: false,
        });
    }

    /// Returns what to wait for: the number of a client, its socket, and the events. Without `reads`, no input is
    /// waited for. A client whose input has ended is watched for its hang-up.
    pub(crate) fn interest(
        &self,
        reads: bool,
    ) -> impl Iterator<Item = (u64, BorrowedFd<'_>, PollFlags)> {
        self.all.iter().filter_map(move |client| {
            let mut events = PollFlags::empty();
            if !client.queue.is_empty() {
                events |= PollFlags::POLLOUT;
            }
            if client.has_input && reads {
                events |= PollFlags::POLLIN;
            }
            // One whose input waits may have hung up, and would say so again and again.
            let waits = client.has_input && events.is_empty();
            (!waits).then(|| (client.number, client.socket.as_fd(), events))
        })
    }

    /// Reads input of a client into `room`.
    pub(crate) fn read(&mut self, number: u64, room: &mut [u8]) -> Input {
        let Some(client) = self.client(number) else { return Input::Nothing };
        if !client.has_input {
            return Input::Nothing;
        }
        let flags = MsgFlags::MSG_DONTWAIT;
        match recv(client.socket.as_raw_fd(), room, flags) {
            Ok(length @ 1..) => return Input::Bytes(length),
            Err(Errno::EAGAIN | Errno::EINTR) => return Input::Nothing,
            Ok(0) | Err(_) => client.has_input = false,
        }
        Input::End
    }

    /// Sends as much of a queue as the client reads now.
    pub(crate) fn write(&mut self, number: u64) {
        if let Some(client) = self.client(number) {
            client.flush();
        }
        self.sweep();
    }

    /// Notes that a client has hung up. It is dropped once its input was read to the end.
    pub(crate) fn hang_up(&mut self, number: u64) {
        if let Some(client) = self.client(number) {
            client.is_gone = !client.has_input;
        }
        self.sweep();
    }

    fn client(&mut self, number: u64) -> Option<&mut Client> {
        self.all.iter_mut().find(|client| client.number == number)
    }

    /// Notes that no more output comes. Queues are still sent.
    pub(crate) fn end(&mut self) {
        self.is_over = true;
        let now = Instant::now();
        self.all.iter_mut().for_each(|client| client.since = now);
        self.sweep();
    }

    /// Returns whether there is no client.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The earliest time at which a client is to be dropped.
    pub(crate) fn due(&self) -> Option<Instant> {
        let held_up_by = |client: &&Client| client.is_full() || self.is_over;
        self.all.iter().filter(held_up_by).map(|client| client.since + self.patience).min()
    }

    /// Drops clients that have read nothing for too long.
    pub(crate) fn keep_patience(&mut self) {
        let now = Instant::now();
        let (is_over, patience) = (self.is_over, self.patience);
        for client in &mut self.all {
            if (client.is_full() || is_over) && client.since + patience <= now {
                let lost = client.queued;
                report::warn(&format!(
                    "an attached client takes nothing; {lost} bytes are dropped"
                ));
                client.is_gone = true;
            }
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        let is_over = self.is_over;
        self.all.retain(|client| !(client.is_gone || is_over && client.queue.is_empty()));
    }
}

impl Listener for Clients {
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if self.all.is_empty() {
            return;
        }
        let mark = [stream_number(stream)];
        for client in &mut self.all {
            bytes.chunks(PACKET).for_each(|piece| client.take(mark, piece));
        }
        self.sweep();
    }

    fn is_full(&self) -> bool {
        self.all.iter().any(Client::is_full)
    }
}

/// The first byte of a packet.
fn stream_number(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 2,
        Stream::Stderr => 3,
    }
}

impl Client {
    fn is_full(&self) -> bool {
        self.queued >= BOUND
    }

    fn take(&mut self, mark: [u8; 1], piece: &[u8]) {
        if self.is_gone {
            return;
        }
        if self.queue.is_empty() {
            let parts = [IoSlice::new(&mark), IoSlice::new(piece)];
            let socket = self.socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match self.sent(sendmsg::<UnixAddr>(socket, &parts, &[], flags, None)) {
                Sent::Taken | Sent::Gone => return,
                Sent::Busy => self.since = Instant::now(),
            }
        }
        self.queue.push_back([&mark, piece].concat().into());
        self.queued += piece.len() + OVERHEAD;
    }

    fn flush(&mut self) {
        while let Some(packet) = self.queue.front() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match self.sent(send(self.socket.as_raw_fd(), packet, flags)) {
                Sent::Busy => return,
                Sent::Gone => return,
                Sent::Taken => {
                    let length = self.queue.pop_front().map_or(0, |packet| packet.len());
                    self.queued = self.queued.saturating_sub(length - 1 + OVERHEAD);
                    self.since = Instant::now();
                }
            }
        }
        // It may have been a megabyte.
        self.queue = VecDeque::new();
    }

    fn sent(&mut self, done: nix::Result<usize>) -> Sent {
        match done {
            Ok(_) => Sent::Taken,
            Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => Sent::Busy,
            // It has closed its socket, or shut it for reading.
            Err(_) => {
                self.is_gone = true;
                Sent::Gone
            }
        }
    }
}

impl Drop for Client {
    /// Discards unread input. If a socket is closed with unread input, the client gets `ECONNRESET` before the
    /// output that is still queued for it, and podman stops reading at that error.
    fn drop(&mut self) {
        let socket = self.socket.as_raw_fd();
        let _ = shutdown(socket, Shutdown::Read);
        while recv(socket, &mut [0], MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
    }
}

/// The result of sending a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Taken,
    Busy,
    Gone,
}
