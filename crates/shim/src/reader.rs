//! A FIFO whose reader may be slow or gone: what it does not take waits here, in memory or in a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast_state::{Backpressure, ProcessDir};
use nix::fcntl::OFlag;

use crate::stdio::open_fifo;

/// How much is handed on at once.
const PIECE: usize = 64 * 1024;

pub(crate) struct Reader {
    fifo: File,
    store: Store,
    /// How much may wait; without a limit the process waits in its place.
    capacity: Option<u64>,
    /// Bytes that were dropped and not told of yet.
    dropped: u64,
}

/// What waits, oldest first.
enum Store {
    Memory(VecDeque<u8>),
    Spill(Spill),
}

impl Reader {
    pub(crate) fn open(
        path: &Path,
        backpressure: Backpressure,
        buffer: u64,
        dir: &ProcessDir,
        spill: &str,
    ) -> io::Result<Self> {
        // Opened for both, so that a reader that goes is no error.
        let fifo = open_fifo(path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        let (store, capacity) = match backpressure {
            Backpressure::Block => (Store::Memory(VecDeque::new()), None),
            Backpressure::DropOldest => (Store::Memory(VecDeque::new()), Some(buffer)),
            Backpressure::Spill => (Store::Spill(Spill::open(dir, spill, buffer)?), Some(buffer)),
        };
        Ok(Self { fifo, store, capacity, dropped: 0 })
    }

    pub(crate) fn rest(&mut self) {
        if let Store::Memory(waiting) = &mut self.store {
            waiting.shrink_to_fit();
        }
    }

    /// Whether the process is to wait: its reader has yet to take what was read before.
    pub(crate) fn is_full(&self) -> bool {
        self.capacity.is_none() && !self.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        (!self.is_empty()).then(|| self.fifo.as_fd())
    }

    /// Hands on what the reader takes, and keeps the rest for it. What can't be kept (a full disk) is
    /// dropped and counted like what there is no room for.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_take(bytes) {
            self.lose(&error);
        }
    }

    /// Gives up what waits, which can't be had any more, or which the FIFO does not take.
    fn lose(&mut self, error: &io::Error) {
        crate::log::log("warning", &format!("fifo: what waits for its reader is lost: {error}"));
        self.dropped += self.len();
        match &mut self.store {
            Store::Memory(queue) => queue.clear(),
            Store::Spill(spill) => (spill.start, spill.length) = (0, 0),
        }
    }

    fn try_take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        if self.is_empty() {
            rest = &rest[self.write(rest)?..];
        }
        if rest.is_empty() {
            return Ok(());
        }
        let before = self.dropped;
        rest = self.make_room(rest)?;
        if let Err(error) = self.push(rest) {
            crate::log::log("warning", &format!("fifo: what waits for its reader: {error}"));
            self.dropped += rest.len() as u64;
        }
        if before == 0 && self.dropped > 0 {
            crate::log::log(
                "warning",
                "fifo: its reader is slow; the oldest is dropped and counted",
            );
        }
        Ok(())
    }

    /// Drops so much of the oldest that these find room, and returns what of them does.
    fn make_room<'a>(&mut self, bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        let Some(capacity) = self.capacity else { return Ok(bytes) };
        let room =
            |waiting: u64| usize::try_from(capacity.saturating_sub(waiting)).unwrap_or(usize::MAX);
        let excess = bytes.len().saturating_sub(room(self.len()));
        if excess == 0 {
            return Ok(bytes);
        }
        let oldest = (excess as u64).min(self.len());
        self.discard(oldest)?;
        let beyond = bytes.len().saturating_sub(room(self.len()));
        self.dropped += oldest + beyond as u64;
        Ok(&bytes[beyond..])
    }

    /// Hands on what the reader takes.
    pub(crate) fn pass(&mut self) {
        if let Err(error) = self.try_pass() {
            self.lose(&error);
        }
    }

    fn try_pass(&mut self) -> io::Result<()> {
        if self.dropped > 0 {
            let notice = format!("\n[holdfast: {} bytes dropped]\n", self.dropped);
            // All or nothing: it is shorter than PIPE_BUF.
            if self.write(notice.as_bytes())? == 0 {
                return Ok(());
            }
            self.dropped = 0;
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

    /// How much the FIFO took.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < bytes.len() {
            match nix::unistd::write(&self.fifo, &bytes[written..]) {
                Ok(length) => written += length,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    fn len(&self) -> u64 {
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

/// A ring in a file: where its oldest byte is and how many there are, then the bytes. It outlives
/// the shim, and goes on in the next one's hands.
struct Spill {
    file: File,
    capacity: u64,
    start: u64,
    length: u64,
}

const HEADER: u64 = 16;
const HEADER_SIZE: usize = 16;

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
        Ok(Self { file, capacity, start, length })
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

    fn reader(backpressure: Backpressure, buffer: u64) -> (tempfile::TempDir, Reader, File) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ProcessDir::open(temp.path()).unwrap();
        let path = temp.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = Reader::open(&path, backpressure, buffer, &dir, "spill").unwrap();
        let other = open_fifo(&path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).unwrap();
        (temp, reader, other)
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from(i % 251).unwrap()).collect()
    }

    /// Reads all there is, helping it along.
    fn drained(reader: &mut Reader, other: &mut File) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut chunk = vec![0; 300_000];
            match other.read(&mut chunk) {
                Ok(length) => all.extend_from_slice(&chunk[..length]),
                Err(_) if reader.is_empty() => return all,
                Err(_) => reader.pass(),
            }
        }
    }

    #[test]
    fn what_waits_comes_whole_and_in_order() {
        for backpressure in [Backpressure::Block, Backpressure::DropOldest, Backpressure::Spill] {
            let (_temp, mut reader, mut other) = reader(backpressure, 1 << 20);
            let sent = bytes(700_000);
            for chunk in sent.chunks(60_000) {
                reader.take(chunk);
            }
            assert_eq!(reader.is_full(), backpressure == Backpressure::Block);
            assert_eq!(drained(&mut reader, &mut other), sent, "{backpressure:?}");
            assert!(!reader.is_full());
        }
    }

    #[test]
    fn the_oldest_goes_is_counted_and_the_newest_is_there() {
        for backpressure in [Backpressure::DropOldest, Backpressure::Spill] {
            let (_temp, mut reader, mut other) = reader(backpressure, 100_000);
            let sent = bytes(500_000);
            for chunk in sent.chunks(30_000) {
                reader.take(chunk);
                assert!(reader.len() <= 100_000);
            }
            let got = drained(&mut reader, &mut other);
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
        let (temp, mut first, mut other) = reader(Backpressure::Spill, 1 << 20);
        let sent = bytes(400_000);
        first.take(&sent);
        drop(first);
        let dir = ProcessDir::open(temp.path()).unwrap();
        let path = temp.path().join("fifo");
        let mut next = Reader::open(&path, Backpressure::Spill, 1 << 20, &dir, "spill").unwrap();
        assert_eq!(drained(&mut next, &mut other), sent);
    }
}
