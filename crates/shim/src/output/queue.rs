//! A sink that may be slow: what it does not take waits here, in memory or in a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast_state::{Backpressure, LogSpec, ProcessDir};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::warn;
use crate::home::Home;
use crate::stdio::open_fifo;
use crate::terminal::END_OF_INPUT;

/// How much is handed on at once.
const PIECE: usize = 64 * 1024;
/// How much may wait once the process has ended, where it had no limit before: what a pipe holds at the
/// most, unless somebody privileged has enlarged it.
const BOUND: u64 = 1024 * 1024;

pub(crate) struct Queue {
    to: OwnedFd,
    reader: Reader,
    store: Store,
    /// How much may wait, in bytes; without a limit the process waits in its place.
    bound: Option<u64>,
    /// Bytes that were dropped and that the reader has not been told of.
    dropped: u64,
    /// Whether that has happened before.
    is_slow: bool,
    /// Whether the reader has taken something since that was asked last.
    progressed: bool,
}

/// Who reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// A client, through a FIFO.
    Fifo,
    /// The process, through its terminal. Of a line that has not ended, it gets nothing yet.
    Terminal { in_line: bool },
}

/// What waits, oldest first.
enum Store {
    Memory(VecDeque<u8>),
    Spill(Spill),
}

impl Queue {
    /// A FIFO that is a place for logs.
    pub(super) fn open(path: &Path, spec: &LogSpec, home: &Home, spill: &str) -> io::Result<Self> {
        let mut queue = Self::of_fifo(path)?;
        if spec.backpressure != Backpressure::Block {
            queue.bound = Some(spec.buffered());
        }
        if spec.backpressure == Backpressure::Spill {
            let spill = Spill::open(&home.open()?, spill, spec.buffered())?;
            queue.dropped = spill.dropped;
            queue.store = Store::Spill(spill);
        }
        Ok(queue)
    }

    /// A FIFO of the caller's, whose reader the process waits for.
    pub(super) fn of_fifo(path: &Path) -> io::Result<Self> {
        // Opened for both, so that a reader that goes is no error.
        let fifo = open_fifo(path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        Ok(Self::new(fifo.into(), Reader::Fifo))
    }

    /// The input of a terminal, by its master, which must have been opened with `O_NONBLOCK`.
    pub(crate) fn of_terminal(master: OwnedFd) -> Self {
        Self::new(master, Reader::Terminal { in_line: false })
    }

    fn new(to: OwnedFd, reader: Reader) -> Self {
        Self {
            to,
            reader,
            store: Store::Memory(VecDeque::new()),
            bound: None,
            dropped: 0,
            is_slow: false,
            progressed: false,
        }
    }

    pub(super) fn rest(&mut self) {
        if let Store::Memory(waiting) = &mut self.store {
            waiting.shrink_to_fit();
        }
    }

    /// How many descriptors it may come to need.
    pub(super) fn most_files(&self) -> u64 {
        1 + u64::from(matches!(self.store, Store::Spill(_)))
    }

    /// Whether another shim can go on with it: a FIFO keeps nothing once we close it, and of a line that
    /// was begun only we know.
    pub(super) fn can_move(&self) -> bool {
        self.reader == Reader::Terminal { in_line: false } && self.is_empty()
    }

    /// Whether the process is to wait: its reader has yet to take what was read before.
    pub(super) fn is_full(&self) -> bool {
        self.bound.is_none() && !self.is_empty()
    }

    /// Whether the reader has got everything, and was told of what it has not.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting() == 0 && self.dropped == 0
    }

    pub(super) fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_empty()).then(|| self.to.as_fd())
    }

    /// From now on the process waits no more.
    pub(super) fn bound(&mut self) {
        self.bound.get_or_insert(BOUND);
    }

    /// Whether the reader has taken something since this was asked last.
    pub(super) fn progressed(&mut self) -> bool {
        std::mem::take(&mut self.progressed)
    }

    /// Hands on what the reader takes, and keeps the rest for it. What can't be kept (a full disk) is
    /// dropped and counted like what there is no room for.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if let (Reader::Terminal { in_line }, Some(last)) = (&mut self.reader, bytes.last()) {
            *in_line = !matches!(*last, b'\n' | b'\r' | END_OF_INPUT);
        }
        if let Err(error) = self.try_take(bytes) {
            self.lose(&error);
        }
    }

    /// No more comes. A terminal has no other end of input than this control character (`VEOF`,
    /// termios(3)); in the middle of a line the first one only hands that on.
    pub(super) fn end(&mut self) {
        match self.reader {
            Reader::Fifo => {}
            Reader::Terminal { in_line: false } => self.take(&[END_OF_INPUT]),
            Reader::Terminal { in_line: true } => self.take(&[END_OF_INPUT; 2]),
        }
    }

    /// Gives up what waits for a reader that takes nothing.
    pub(super) fn give_up(&mut self) {
        let count = self.waiting() + self.dropped;
        if count > 0 {
            let text = format!("{count} bytes are dropped: their reader took nothing for too long");
            crate::log::log("warning", &text);
        }
        self.clear();
        self.set_dropped(0);
    }

    /// Gives up what waits, which can't be had any more, or which the reader will never take.
    fn lose(&mut self, error: &io::Error) {
        let waited = self.waiting();
        self.clear();
        // Who types into a terminal whose process has ended loses nothing.
        if self.reader == Reader::Fifo {
            let text = format!("fifo: what waits for its reader is lost: {error}");
            crate::log::log("warning", &text);
            self.set_dropped(self.dropped + waited);
        }
    }

    fn clear(&mut self) {
        match &mut self.store {
            Store::Memory(queue) => *queue = VecDeque::new(),
            Store::Spill(spill) => spill.clear(),
        }
    }

    fn set_dropped(&mut self, dropped: u64) {
        // Said once: its own notices tell the reader each time.
        if !self.is_slow && dropped > 0 {
            self.is_slow = true;
            let text = "fifo: its reader is slow; the oldest is dropped and counted";
            crate::log::log("warning", text);
        }
        self.dropped = dropped;
        if let Store::Spill(spill) = &mut self.store {
            spill.set_dropped(dropped);
        }
    }

    fn try_take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        if self.waiting() == 0 && self.tell_of_dropped()? {
            rest = &rest[self.write(rest)?..];
        }
        if rest.is_empty() {
            return Ok(());
        }
        rest = self.make_room(rest)?;
        if let Err(error) = self.push(rest) {
            crate::log::log("warning", &format!("fifo: what waits for its reader: {error}"));
            self.set_dropped(self.dropped + rest.len() as u64);
        }
        Ok(())
    }

    /// Drops so much of the oldest that these find room, and returns what of them does.
    fn make_room<'a>(&mut self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        let Some(bound) = self.bound else { return Ok(bytes) };
        let room =
            |waiting: u64| usize::try_from(bound.saturating_sub(waiting)).unwrap_or(usize::MAX);
        let excess = bytes.len().saturating_sub(room(self.waiting()));
        if excess == 0 {
            return Ok(bytes);
        }
        let oldest = (excess as u64).min(self.waiting());
        self.discard(oldest)?;
        let beyond = bytes.len().saturating_sub(room(self.waiting()));
        self.set_dropped(self.dropped + oldest + beyond as u64);
        Ok(&bytes[beyond..])
    }

    /// Hands on what the reader takes.
    pub(super) fn pass(&mut self) {
        if let Err(error) = self.try_pass() {
            self.lose(&error);
        }
    }

    fn try_pass(&mut self) -> io::Result<()> {
        if !self.tell_of_dropped()? {
            return Ok(());
        }
        let mut piece = vec![0; PIECE];
        loop {
            let length = self.peek(&mut piece)?;
            let written = self.write(&piece[..length])?;
            self.discard(written as u64)?;
            if written < length || length == 0 {
                return Ok(());
            }
        }
    }

    /// Tells the reader, in the place of what was dropped, how much that was. `false` if it does not
    /// take that now.
    fn tell_of_dropped(&mut self) -> io::Result<bool> {
        if self.dropped > 0 {
            let notice = format!("\n[holdfast: {} bytes dropped]\n", self.dropped);
            // All or nothing: it is shorter than PIPE_BUF.
            if self.write(notice.as_bytes())? == 0 {
                return Ok(false);
            }
            self.set_dropped(0);
        }
        Ok(true)
    }

    /// How much the reader took.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match nix::unistd::write(&self.to, &bytes[written..]) {
                Ok(length) => written += length,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.progressed |= written > 0;
        Ok(written)
    }

    fn waiting(&self) -> u64 {
        match &self.store {
            Store::Memory(queue) => queue.len() as u64,
            Store::Spill(spill) => spill.length,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.store {
            Store::Memory(queue) => queue.extend(bytes),
            Store::Spill(spill) => spill.push(bytes)?,
        }
        Ok(())
    }

    /// Copies the oldest of what waits.
    fn peek(&self, piece: &mut [u8]) -> io::Result<usize> {
        match &self.store {
            Store::Memory(queue) => {
                let (first, second) = queue.as_slices();
                let one = first.len().min(piece.len());
                piece[..one].copy_from_slice(&first[..one]);
                let two = second.len().min(piece.len() - one);
                piece[one..one + two].copy_from_slice(&second[..two]);
                Ok(one + two)
            }
            Store::Spill(spill) => spill.peek(piece),
        }
    }

    fn discard(&mut self, length: u64) -> io::Result<()> {
        match &mut self.store {
            Store::Memory(queue) => {
                queue.drain(..usize::try_from(length).unwrap_or(usize::MAX).min(queue.len()));
                if queue.is_empty() {
                    // It may have been a megabyte.
                    queue.shrink_to(0);
                }
                Ok(())
            }
            Store::Spill(spill) => spill.discard(length),
        }
    }
}

/// A ring in a file: where its oldest byte is and how many there are, then room for the bytes, then how many
/// were dropped. It outlives the shim, and goes on in the next one's hands.
struct Spill {
    file: File,
    capacity: u64,
    start: u64,
    length: u64,
    dropped: u64,
}

const HEADER: u64 = 16;
const HEADER_SIZE: usize = 16;
const COUNT_SIZE: usize = 8;

impl Spill {
    fn open(dir: &ProcessDir, name: &str, capacity: u64) -> io::Result<Self> {
        let file = dir.directory().open_file(name, OFlag::O_RDWR | OFlag::O_CREAT)?;
        let mut header = [0; HEADER_SIZE];
        let (mut start, mut length) = (0, 0);
        if file.metadata()?.len() >= HEADER {
            file.read_exact_at(&mut header, 0)?;
            let (first, second) = header.split_at(8);
            start = u64::from_le_bytes(first.try_into().unwrap_or_default());
            length = u64::from_le_bytes(second.try_into().unwrap_or_default());
        }
        if start >= capacity || length > capacity {
            (start, length) = (0, 0);
        }
        let mut dropped = [0; COUNT_SIZE];
        // It is not there before anything was dropped.
        let _ = file.read_exact_at(&mut dropped, HEADER + capacity);
        Ok(Self { file, capacity, start, length, dropped: u64::from_le_bytes(dropped) })
    }

    fn clear(&mut self) {
        (self.start, self.length) = (0, 0);
        warn("fifo: the spill file", self.save());
    }

    fn set_dropped(&mut self, dropped: u64) {
        self.dropped = dropped;
        let place = HEADER + self.capacity;
        let done = self.file.write_all_at(&dropped.to_le_bytes(), place);
        warn("fifo: what was dropped is not kept", done);
    }

    /// The parts of the ring from `offset` on, each a place in the file and a range of the bytes.
    fn parts(&self, offset: u64, length: usize) -> [(u64, std::ops::Range<usize>); 2] {
        let at = (self.start + offset) % self.capacity;
        let to_end = usize::try_from(self.capacity - at).unwrap_or(usize::MAX).min(length);
        [(HEADER + at, 0..to_end), (HEADER, to_end..length)]
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        for (place, range) in self.parts(self.length, bytes.len()) {
            self.file.write_all_at(&bytes[range], place)?;
        }
        self.length += bytes.len() as u64;
        self.save()
    }

    fn peek(&self, piece: &mut [u8]) -> io::Result<usize> {
        let length = piece.len().min(usize::try_from(self.length).unwrap_or(usize::MAX));
        for (place, range) in self.parts(0, length) {
            self.file.read_exact_at(&mut piece[range], place)?;
        }
        Ok(length)
    }

    fn discard(&mut self, length: u64) -> io::Result<()> {
        let length = length.min(self.length);
        self.start = (self.start + length) % self.capacity;
        self.length -= length;
        self.save()
    }

    fn save(&self) -> io::Result<()> {
        let mut header = [0; HEADER_SIZE];
        header[..8].copy_from_slice(&self.start.to_le_bytes());
        header[8..].copy_from_slice(&self.length.to_le_bytes());
        self.file.write_all_at(&header, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A queue, and the other end of its FIFO.
    fn queue(backpressure: Backpressure, buffer: u64) -> (tempfile::TempDir, Queue, File) {
        let temp = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&temp.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let queue = of(temp.path(), backpressure, buffer);
        let other = open_fifo(&temp.path().join("fifo"), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        (temp, queue, other.unwrap())
    }

    fn of(dir: &Path, backpressure: Backpressure, buffer: u64) -> Queue {
        let spec = LogSpec { backpressure, buffer: Some(buffer), ..LogSpec::default() };
        let home = crate::home::tests::home(dir);
        Queue::open(&dir.join("fifo"), &spec, &home, "spill").unwrap()
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    /// Reads all there is, helping it along.
    fn drained(queue: &mut Queue, other: &mut File) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut chunk = vec![0; 300_000];
            match other.read(&mut chunk) {
                Ok(length) => all.extend_from_slice(&chunk[..length]),
                Err(_) if queue.is_empty() => return all,
                Err(_) => queue.pass(),
            }
        }
    }

    #[test]
    fn what_waits_comes_whole_and_in_order() {
        for backpressure in [Backpressure::Block, Backpressure::DropOldest, Backpressure::Spill] {
            let (_temp, mut queue, mut other) = queue(backpressure, 1 << 20);
            let sent = bytes(700_000);
            for chunk in sent.chunks(60_000) {
                queue.take(chunk);
            }
            assert_eq!(queue.is_full(), backpressure == Backpressure::Block);
            assert_eq!(drained(&mut queue, &mut other), sent, "{backpressure:?}");
            assert!(!queue.is_full());
        }
    }

    #[test]
    fn the_oldest_goes_is_counted_and_the_newest_is_there() {
        for backpressure in [Backpressure::DropOldest, Backpressure::Spill] {
            let (_temp, mut queue, mut other) = queue(backpressure, 100_000);
            let sent = bytes(500_000);
            for chunk in sent.chunks(30_000) {
                queue.take(chunk);
                assert!(queue.waiting() <= 100_000);
            }
            let got = drained(&mut queue, &mut other);
            let text = String::from_utf8_lossy(&got);
            let notice = "[holdfast: ";
            let place = text.find(notice).unwrap();
            let dropped: usize =
                text[place + notice.len()..].split(' ').next().unwrap().parse().unwrap();
            let notice = format!("\n[holdfast: {dropped} bytes dropped]\n");
            assert_eq!(got.len() + dropped, sent.len() + notice.len());
            let tail = &got[got.len() - 50_000..];
            assert_eq!(tail, &sent[sent.len() - 50_000..]);
        }
    }

    #[test]
    fn a_spill_goes_on_after_its_shim() {
        let (temp, mut first, mut other) = queue(Backpressure::Spill, 1 << 20);
        let sent = bytes(400_000);
        first.take(&sent);
        drop(first);
        let mut next = of(temp.path(), Backpressure::Spill, 1 << 20);
        assert_eq!(drained(&mut next, &mut other), sent);
    }

    #[test]
    fn what_was_dropped_is_told_even_if_nothing_waits_and_after_the_shim_that_dropped_it() {
        for backpressure in [Backpressure::DropOldest, Backpressure::Spill] {
            let (temp, mut first, mut other) = queue(backpressure, 1000);
            let error = io::Error::other("a disk");
            first.take(&[b'x'; 100_000]);
            first.lose(&error);
            assert!(first.waiting() == 0 && !first.is_empty(), "its reader is yet to be told");
            let mut queue = match backpressure {
                Backpressure::Spill => of(temp.path(), backpressure, 1000),
                _ => first,
            };
            let got = drained(&mut queue, &mut other);
            let text = String::from_utf8_lossy(&got);
            let taken = text.trim_start_matches('x');
            let lost = 100_000 - (text.len() - taken.len());
            assert_eq!(taken, format!("\n[holdfast: {lost} bytes dropped]\n"), "{backpressure:?}");
        }
    }

    #[test]
    fn with_a_bound_nobody_waits_and_what_is_given_up_is_no_more_waited_for() {
        let (_temp, mut queue, mut other) = queue(Backpressure::Block, 0);
        queue.take(&bytes(200_000));
        assert!(queue.is_full());
        queue.bound();
        queue.take(&bytes(2_000_000));
        assert!(!queue.is_full() && queue.waiting() == BOUND);
        assert!(queue.progressed() && !queue.progressed());
        queue.give_up();
        assert!(queue.is_empty());
        // What the FIFO has is its reader's.
        assert!(other.read(&mut [0; 65536]).unwrap() > 0);
    }

    #[test]
    fn the_end_of_a_terminals_input_is_told_once_in_a_line_and_twice_within() {
        for (text, marks) in
            [("a\n", "\u{4}"), ("", "\u{4}"), ("a", "\u{4}\u{4}"), ("a\u{4}", "\u{4}")]
        {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let mut queue = Queue::of_terminal(writer);
            queue.take(text.as_bytes());
            queue.end();
            drop(queue);
            let mut all = String::new();
            File::from(reader).read_to_string(&mut all).unwrap();
            assert_eq!(all, format!("{text}{marks}"));
        }
    }
}
