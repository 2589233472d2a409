//! A connection on which frames come and go.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use bytes::{Buf, BytesMut};
use holdfast_ttrpc::front::{SERVICE, STREAM};
use holdfast_ttrpc::rpc::{Request, Response};
use holdfast_ttrpc::{Frame, Frames, Item, Kind, Message};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// How much is read at once, in bytes.
const PIECE: usize = 16 * 1024;

/// Connects to a socket, and does not wait: if too many others do, the error is
/// [`WouldBlock`](io::ErrorKind::WouldBlock). The connection does not block either.
pub(crate) fn dial(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

/// Whether nobody listens at the address, as such an error of [`dial`] says.
pub(crate) fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// A call of the service between fronts, supervisors and this program's actions.
pub(crate) fn own_call(method: &str, message: &impl Message) -> Frame {
    let request = Request {
        service: SERVICE.to_owned(),
        method: method.to_owned(),
        payload: message.encode_to_vec(),
        ..Request::default()
    };
    frame(STREAM, Kind::Request, &request)
}

/// The answer to the call of a stream.
pub(crate) fn answer(stream: u32, response: &Response) -> Frame {
    frame(stream, Kind::Response, response)
}

fn frame(stream: u32, kind: Kind, message: &impl Message) -> Frame {
    Frame { stream, kind, flags: 0, message: message.encode_to_vec().into() }
}

/// A connection, with what was read and is no whole frame yet, and what could not be written yet.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: UnixStream,
    frames: Frames,
    input: BytesMut,
    output: BytesMut,
}

impl Wire {
    /// Takes over a connection that does not block, or has timeouts.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, frames: Frames::default(), input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Reads once. An end of file is an error, and so is nothing to read.
    // The piece must not be in the frame of a caller that never returns.
    #[inline(never)]
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        let mut piece = [0; PIECE];
        let length = self.stream.read(&mut piece)?;
        self.input.extend_from_slice(&piece[..length]);
        if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// The next frame of what was read.
    pub(crate) fn next(&mut self) -> Option<Item> {
        let item = self.frames.next(&mut self.input);
        if self.input.is_empty() {
            // What a large frame needed is not kept.
            self.input = BytesMut::new();
        }
        item
    }

    /// Puts a frame in the queue.
    pub(crate) fn push(&mut self, frame: &Frame) {
        frame.encode(&mut self.output);
    }

    /// How many bytes are in the queue.
    pub(crate) fn queued(&self) -> usize {
        self.output.len()
    }

    /// Writes what can be written.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(length) => self.output.advance(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.output = BytesMut::new();
        Ok(())
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Sends frames of which the last is a call on [`STREAM`], and waits for its answer.
///
/// # Errors
///
/// If the other side goes, or has not answered in time ([`TimedOut`](io::ErrorKind::TimedOut)).
pub(crate) fn call(
    stream: UnixStream,
    frames: &[Frame],
    deadline: Instant,
) -> io::Result<Response> {
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(late()) } else { Ok(left) }
    };
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(left()?))?;
    let mut wire = Wire::new(stream);
    frames.iter().for_each(|frame| wire.push(frame));
    wire.flush()?;
    loop {
        while let Some(item) = wire.next() {
            if let Item::Frame(Frame { stream: STREAM, kind: Kind::Response, message, .. }) = item {
                return Response::decode(message).map_err(io::Error::other);
            }
        }
        wire.stream.set_read_timeout(Some(left()?))?;
        match wire.fill() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => read?,
        }
    }
}
