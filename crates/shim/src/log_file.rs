//! A log on disk: entries in whole lines, files of bounded size, and a disk that may be full.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use holdfast_state::cri::{self, Mark, Stream};
use holdfast_state::time::TEXT_LEN;
use holdfast_state::{Directory, LogDriver, LogSpec, json_file, logging};
use nix::fcntl::OFlag;

use crate::home::{Home, Parent};
use crate::rate::Rate;
use crate::stdio::{Missing, Owner, give};

/// How much is written at once, about.
const WRITE_SIZE: usize = 128 * 1024;
/// The largest piece of a line in a json-file, in bytes, as Docker has it.
const JSON_PIECE: usize = 16 * 1024;
/// By how many bytes a file that could not be set aside grows before that is tried again.
const PATIENCE: u64 = 64 * 1024;
/// How much of the end of a log is looked at for what a dead shim wrote last: more than it reads at
/// once makes, in any format.
const TAIL: u64 = 1024 * 1024;

pub(crate) struct LogFile {
    parent: Parent,
    name: String,
    owner: Owner,
    driver: LogDriver,
    /// Open from the first output on until there is none for a while.
    file: Option<File>,
    /// How large it is, as far as we wrote it.
    size: u64,
    max_size: u64,
    files: u32,
    /// Whether all lines that were begun have ended, so that a new file may begin.
    whole: bool,
    /// Entries that are not written yet.
    out: Vec<u8>,
    rate: Option<Rate>,
    /// Bytes that could not be written and were not told of yet.
    dropped: u64,
    /// Whether its last entry may be half an entry of a dead shim's.
    torn: bool,
}

impl LogFile {
    /// Opens the file of a driver that has one.
    pub(crate) fn open(
        spec: &LogSpec,
        home: &Home,
        owner: Owner,
        missing: Missing,
    ) -> io::Result<Self> {
        let (parent, name, owner) = place(spec, home, owner)?;
        let opened = parent.open().and_then(|parent| open(&parent, &name, owner));
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = match named(spec, opened) {
            Ok((size, file)) => (size, Some(file)),
            Err(error) if missing == Missing::Fails => return Err(error),
            // It is opened with the next output, or the one after that.
            Err(_) => (0, None),
        };
        Ok(Self {
            size,
            parent,
            name,
            owner,
            driver: spec.driver,
            file,
            max_size: spec.max_size.unwrap_or(u64::MAX),
            files: spec.files(),
            whole: true,
            out: Vec::new(),
            rate: spec.rate.map(Rate::new),
            dropped: 0,
            torn: false,
        })
    }

    /// Writes what was read from a stream. Never fails: a full disk must not stop the container.
    pub(crate) fn take(
        &mut self,
        stream: Stream,
        stamp: &[u8; TEXT_LEN],
        mark: Mark,
        bytes: &[u8],
    ) {
        self.tell_of_dropped(stamp);
        if self.driver == LogDriver::File {
            return self.write(bytes);
        }
        for piece in cri::pieces(bytes) {
            if let Some(notice) = self.rate.as_mut().and_then(|rate| rate.notice(stamp)) {
                self.enter(Stream::Stderr, stamp, Mark::Notice, notice.as_bytes());
            }
            if !self.rate.as_mut().is_none_or(|rate| rate.admits(stream, piece, stamp)) {
                continue;
            }
            let most = if self.driver == LogDriver::JsonFile { JSON_PIECE } else { piece.len() };
            for piece in piece.chunks(most) {
                self.enter(stream, stamp, mark, piece);
            }
        }
        self.flush();
    }

    /// The last word: what was dropped and has not been told.
    pub(crate) fn finish(&mut self, stamp: &[u8; TEXT_LEN]) {
        self.tell_of_dropped(stamp);
        if let Some(notice) = self.rate.as_mut().and_then(Rate::last_notice) {
            self.enter(Stream::Stderr, stamp, Mark::Notice, notice.as_bytes());
        }
        self.flush();
    }

    /// Gives back what only output needs; the file too.
    pub(crate) fn rest(&mut self) {
        self.out = Vec::new();
        self.file = None;
    }

    /// Whether there is nothing to say of what is missing.
    pub(crate) fn is_clean(&self) -> bool {
        self.dropped == 0 && self.rate.as_ref().is_none_or(Rate::is_clean)
    }

    /// Opens the file anew by its name, after somebody has moved it away.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        self.opened().map(drop)
    }

    fn opened(&mut self) -> io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = open(&self.parent.open()?, &self.name, self.owner)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Adds one entry to those that are to be written; in a new file, if this one is full.
    fn enter(&mut self, stream: Stream, stamp: &[u8; TEXT_LEN], mark: Mark, piece: &[u8]) {
        if self.out.len() + piece.len() > WRITE_SIZE - WRITE_SIZE / 8 {
            self.flush();
        }
        self.out.reserve(WRITE_SIZE - self.out.len());
        let start = self.out.len();
        match self.driver {
            LogDriver::JsonFile => json_file::encode(stream, stamp, mark, piece, &mut self.out),
            LogDriver::File => self.out.extend_from_slice(piece),
            _ => cri::encode(stream, stamp, mark, piece, &mut self.out),
        }
        let (before, after) = (self.size + start as u64, self.size + self.out.len() as u64);
        // A line without end must not make a file without end.
        if after > self.max_size && before > 0 && (self.whole || before > 2 * self.max_size) {
            let entry = self.out.split_off(start);
            self.flush();
            self.rotate();
            self.out.extend_from_slice(&entry);
        }
        self.whole = piece.ends_with(b"\n");
    }

    fn flush(&mut self) {
        let out = std::mem::take(&mut self.out);
        self.write(&out);
        self.out = out;
        self.out.clear();
    }

    /// What can't be written is dropped and counted; of an entry all or nothing.
    fn write(&mut self, bytes: &[u8]) {
        if self.torn && !bytes.is_empty() {
            // It was not there then; if it still is not, what follows fails as well, and says so.
            let _ = self.mend();
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.opened().and_then(|mut file| file.write(rest)) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if self.dropped == 0 {
                        let name = &self.name;
                        let text = "output is dropped until it can be written";
                        crate::log::log("warning", &format!("{name}: {error}; {text}"));
                    }
                    break;
                }
            }
        }
        let written = bytes.len() - rest.len();
        let kept = if rest.is_empty() || self.driver == LogDriver::File {
            written
        } else {
            let kept = memchr::memrchr(b'\n', &bytes[..written]).map_or(0, |place| place + 1);
            self.cut((written - kept) as u64);
            kept
        };
        self.size += kept as u64;
        self.dropped += (bytes.len() - kept) as u64;
    }

    /// Takes the beginning of an entry away from the end of the file.
    fn cut(&mut self, length: u64) {
        let cut = |file: &File| file.set_len(file.metadata()?.len().saturating_sub(length));
        if length > 0
            && let Err(error) = self.opened().and_then(cut)
        {
            crate::log::log("warning", &format!("{}: an entry is torn: {error}", self.name));
        }
    }

    /// Says in the log itself what is missing in it, once it can be written again.
    fn tell_of_dropped(&mut self, stamp: &[u8; TEXT_LEN]) {
        if self.dropped == 0 {
            return;
        }
        let dropped = std::mem::take(&mut self.dropped);
        let text = format!("[holdfast: {dropped} bytes of the log could not be written]\n");
        self.enter(Stream::Stderr, stamp, Mark::Notice, text.as_bytes());
        self.flush();
        if self.dropped > 0 {
            // Not yet; the notice itself is none of what was lost.
            self.dropped = dropped;
        } else {
            let text = format!("{}: goes on, {dropped} bytes of it were dropped", self.name);
            crate::log::log("warning", &text);
        }
    }

    /// Sets the file aside and begins a new one. What a crash leaves of it is a hole in the
    /// numbers, which the next one fills.
    fn rotate(&mut self) {
        if let Err(error) = self.try_rotate() {
            crate::log::log("warning", &format!("{}: not set aside: {error}", self.name));
            self.size = self.size.saturating_sub(PATIENCE);
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| logging::set_aside(&self.name, number);
        let directory = self.parent.open()?;
        let mut hole = 1;
        while hole + 1 < self.files && directory.contains(&numbered(hole))? {
            hole += 1;
        }
        if self.files > 1 {
            for number in (1..hole).rev() {
                directory.rename(&numbered(number), &numbered(number + 1))?;
            }
            directory.rename(&self.name, &numbered(1))?;
        } else {
            directory.unlink(&self.name)?;
        }
        self.reopen()
    }

    /// Takes over from a dead shim: a torn entry at the end goes, as its bytes are still where they
    /// came from.
    pub(crate) fn mend(&mut self) -> io::Result<()> {
        if self.driver == LogDriver::File {
            return Ok(());
        }
        self.torn = true;
        let tail = self.tail()?;
        let torn = tail.len() - memchr::memrchr(b'\n', &tail).map_or(0, |place| place + 1);
        self.cut(torn as u64);
        self.size = self.opened()?.metadata()?.len();
        self.torn = false;
        Ok(())
    }

    /// What was entered of a stream last, at one time: perhaps more is still in the pipe than was
    /// entered, perhaps it has been taken out, or it is in there still.
    pub(crate) fn last_read(&self, stream: Stream) -> io::Result<Vec<u8>> {
        let tail = self.tail()?;
        let mut last: Vec<u8> = Vec::new();
        let mut time = String::new();
        for line in tail.split(|&b| b == b'\n') {
            let entry = match self.driver {
                LogDriver::JsonFile => json_file::decode(line),
                _ => cri::decode(line).map(|entry| json_file::Entry {
                    time: entry.time.to_owned(),
                    stream: entry.stream,
                    content: entry.written(),
                    mark: entry.mark,
                }),
            };
            let is_its =
                |entry: &json_file::Entry| entry.stream == stream && entry.mark != Mark::Notice;
            let Some(entry) = entry.filter(is_its) else { continue };
            if entry.time != time {
                last.clear();
                time = entry.time;
            }
            last.extend_from_slice(&entry.content);
        }
        Ok(last)
    }

    fn tail(&self) -> io::Result<Vec<u8>> {
        let file = self.parent.open()?.open_file(&self.name, OFlag::O_RDONLY)?;
        let length = file.metadata()?.len();
        let start = length.saturating_sub(TAIL);
        let mut tail = vec![0; usize::try_from(length - start).unwrap_or(0)];
        file.read_exact_at(&mut tail, start)?;
        Ok(tail)
    }
}

/// A file that the process writes itself.
pub(crate) fn open_direct(spec: &LogSpec, home: &Home, owner: Owner) -> io::Result<File> {
    let (parent, name, owner) = place(spec, home, owner)?;
    named(spec, parent.open().and_then(|parent| open(&parent, &name, owner)))
}

/// Where its file is, and to whom it is given: what the caller names stays the caller's.
fn place(spec: &LogSpec, home: &Home, owner: Owner) -> io::Result<(Parent, String, Owner)> {
    let path = spec.file().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| io::Error::other(format!("log {spec}: no file name")))?;
    let (parent, owner) = match path.parent() {
        Some(parent) if parent != Path::new("") => (Parent::Path(parent.into()), None),
        _ => (Parent::Home(home.clone()), owner),
    };
    Ok((parent, name.to_owned(), owner))
}

fn named<T>(spec: &LogSpec, opened: io::Result<T>) -> io::Result<T> {
    opened.map_err(|error| io::Error::new(error.kind(), format!("log {spec}: {error}")))
}

fn open(directory: &Directory, name: &str, owner: Owner) -> io::Result<File> {
    let opened = directory.append(name);
    opened
        .and_then(|file| give(&file, owner).map(|()| file))
        .map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}
