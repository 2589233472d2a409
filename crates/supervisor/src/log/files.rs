//! The files of one log: the one that is being written, and the rotated ones `NAME.1`, `NAME.2`, …
//! They are read from the oldest to the newest.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use holdfast_state::cri::{Mark, Stream};
use holdfast_state::time;
use serde::{Deserialize, Serialize};

use crate::log::entries::LogChunk;
use crate::log::entries::{
    Format, LANES, MAX_ENTRY, READ_SIZE, backwards, end_of_lines, last_lines, raw, read_at,
};
use crate::log::holes::{self, Stretch};
use crate::log::place::{From, Identity, Place};
use crate::log::reader::LogOptions;

/// How many files of a log are held open at once. If it has more, the others are opened when their
/// turn comes, and the last lines are searched for in this many files only.
const HELD: usize = 64;
/// How far back, in bytes of output, the beginnings of the last lines are searched for.
const MAX_LINE: usize = 16 * 1024 * 1024;
/// A hole of at least this many bytes is left out, and a notice stands in its place.
const HOLE: u64 = 64 * 1024;
/// A modification time is that of the last tick of the clock, so it may lag behind the time of an
/// entry by up to this.
const TICK: std::time::Duration = std::time::Duration::from_secs(1);

/// A place in the output of a process, up to which it was read. It is valid also for another
/// supervisor, and across rotations: it names a file by its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPosition(pub(crate) Vec<FilePosition>);

/// A place in one log: that of both streams, or of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FilePosition {
    /// The number of the log among those of the process.
    pub(crate) log: usize,
    /// The file; `None` if there was none yet.
    file: Option<Lasting>,
    offset: u64,
    /// The first wanted entry of each lane, while one of them is still ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<[(Lasting, u64); LANES]>,
    /// Whether a notice is due that files are missing before this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    after_gap: bool,
}

/// Identifies a file also while nobody holds it: its device, its inode and the time of its creation
/// in nanoseconds, since the inode may belong to another file later. 0 where the file system keeps no
/// such time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Lasting(u64, u64, u64);

impl Lasting {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let created = metadata.created().ok();
        let created = created.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let created = created.and_then(|time| u64::try_from(time.as_nanos()).ok());
        Ok(Self(metadata.dev(), metadata.ino(), created.unwrap_or_default()))
    }
}

/// The files of one log, and how far they have been read.
#[derive(Debug)]
pub(crate) struct LogFiles {
    place: Place,
    /// The files that are held open, the oldest first. A held file stays readable when its name
    /// passes to another file.
    held: VecDeque<Held>,
    /// The offset in the first of them at which the next read begins: the beginning of a line. An
    /// incomplete line is not kept but read again, because it may be cut off, and another line may
    /// take its place.
    offset: u64,
    /// The beginning of the line that `offset` is in the middle of, if that line is too long to be
    /// an entry.
    too_long: Option<u64>,
    /// Raw output is known to have no hole up to this offset.
    data_end: u64,
    /// Whether the newest of them was the file with the plain name at the last check.
    is_current: bool,
    /// Whether the log had no file at the last check.
    was_first: bool,
    next_serial: u64,
    /// How many last lines are wanted, until the search for them begins.
    tail: Option<u64>,
    /// The first wanted entry of each lane: the serial number of its file, and the offset.
    from: Option<[(u64, u64); LANES]>,
    /// The earliest wanted time, as text that can be compared with the time of an entry.
    since: Option<String>,
}

#[derive(Debug)]
struct Held {
    file: File,
    id: Identity,
    /// The position of this file among all files that were ever held; the oldest file has the
    /// lowest number.
    serial: u64,
    /// The length in bytes at the moment from which the file has been held.
    length: u64,
    /// Whether files between the previous one and this one are missing, and this is still to be
    /// reported.
    after_gap: bool,
}

/// The result of one reading step.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Something was read. These are the chunks in it, if any.
    Read(Vec<LogChunk>),
    /// Everything written so far has been read.
    End,
}

impl LogFiles {
    /// Identifies the directory of the log, among the identities of files.
    pub(crate) const DIRECTORY: Identity = (0, 0);

    /// Opens all files of a log. There may be none yet.
    pub(crate) fn open(place: Place, options: &LogOptions) -> io::Result<Self> {
        let mut files = Self {
            place,
            held: VecDeque::new(),
            offset: 0,
            too_long: None,
            data_end: 0,
            is_current: false,
            was_first: false,
            next_serial: 0,
            tail: options.tail,
            from: None,
            since: options.since.map(|since| comparable(&text(since)).to_owned()),
        };
        files.look_for_more(if options.tail.is_some() { From::Newest } else { From::Oldest })?;
        if let Some(since) = options.since {
            files.pass_over_older_than(since)?;
        }
        Ok(files)
    }

    /// Opens the files of a log at a position that another reader had.
    pub(crate) fn open_after(
        place: Place,
        options: &LogOptions,
        position: &FilePosition,
    ) -> io::Result<Self> {
        let options = LogOptions { tail: None, ..*options };
        let mut files = Self::open(place, &LogOptions { since: None, ..options })?;
        files.since = options.since.map(|since| comparable(&text(since)).to_owned());
        let Some(wanted) = position.file else {
            files.was_first = files.held.is_empty();
            return Ok(files);
        };
        loop {
            for index in 0..files.held.len() {
                if Lasting::of(&files.held[index].file)? == wanted {
                    files.held.drain(..index);
                    files.go_to(position)?;
                    return Ok(files);
                }
            }
            if files.held.len() < HELD {
                break;
            }
            // There are more files than are held at once.
            files.held.drain(..HELD - 1);
            files.look_for_more(From::Oldest)?;
        }
        // It was rotated away. All that is left is newer.
        let mut files = Self { since: files.since, ..Self::open(files.place, &options)? };
        match files.held.front_mut() {
            Some(first) => first.after_gap = true,
            None => files.was_first = true,
        }
        Ok(files)
    }

    /// Moves to this offset in the first file that is held.
    fn go_to(&mut self, position: &FilePosition) -> io::Result<()> {
        self.offset = position.offset;
        if let Some(first) = self.held.front_mut() {
            first.after_gap = position.after_gap;
        }
        if let Some(from) = &position.from {
            let mut wanted = [(0, 0); LANES];
            for (wanted, (file, offset)) in wanted.iter_mut().zip(from) {
                for held in &self.held {
                    if Lasting::of(&held.file)? == *file {
                        *wanted = (held.serial, *offset);
                    }
                }
            }
            self.from = Some(wanted);
        }
        Ok(())
    }

    /// Searches for the last lines that are wanted, if that was not done yet.
    pub(crate) fn locate(&mut self) -> io::Result<()> {
        self.tail.take().map_or(Ok(()), |lines| self.begin_at_last(lines))
    }

    /// Returns how far the log was read.
    pub(crate) fn position(&self, log: usize) -> io::Result<FilePosition> {
        let Some(first) = self.held.front() else {
            return Ok(FilePosition { log, file: None, offset: 0, from: None, after_gap: false });
        };
        let offset = self.too_long.unwrap_or(self.offset);
        let is_ahead =
            |from: &[(u64, u64); LANES]| from.iter().any(|it| *it > (first.serial, offset));
        let from = self.from.filter(is_ahead).map(|from| {
            let mut lasting = [(Lasting(0, 0, 0), 0); LANES];
            for (lasting, (serial, offset)) in lasting.iter_mut().zip(from) {
                if let Some(held) = self.held.iter().find(|held| held.serial == serial) {
                    *lasting = (Lasting::of(&held.file)?, offset);
                }
            }
            io::Result::Ok(lasting)
        });
        let file = Some(Lasting::of(&first.file)?);
        Ok(FilePosition { log, file, offset, from: from.transpose()?, after_gap: first.after_gap })
    }

    /// Returns the descriptors to watch, each with its identity. A change of one of them means that
    /// there may be more to read.
    pub(crate) fn awaited(&self) -> Vec<(Identity, BorrowedFd<'_>)> {
        let mut awaited: Vec<_> =
            self.held.iter().map(|held| (held.id, held.file.as_fd())).collect();
        if !self.is_current {
            // The next file does not exist yet. Its creation changes the directory.
            awaited.push((Self::DIRECTORY, self.place.directory.as_fd()));
        }
        awaited
    }

    /// Performs one reading step.
    pub(crate) fn read(&mut self) -> io::Result<Progress> {
        self.locate()?;
        self.look_for_more(From::Oldest)?;
        // This is checked before the read: once the next file has content, nothing more is written
        // to this one.
        let is_over = self.held.len() > 2
            || match self.held.get(1) {
                Some(next) => next.file.metadata()?.len() > 0,
                None => false,
            };
        let Some(first) = self.held.front_mut() else { return Ok(Progress::End) };
        if std::mem::take(&mut first.after_gap) {
            return Ok(Progress::Read(vec![self.notice(MISSING)]));
        }
        let step = match self.place.format {
            Format::Raw(stream) => {
                read_raw(&first.file, &mut self.offset, &mut self.data_end, stream)?
            }
            _ => self.read_lines()?,
        };
        match step {
            Progress::End if is_over => {
                self.held.pop_front();
                (self.offset, self.too_long, self.data_end) = (0, None, 0);
                Ok(Progress::Read(Vec::new()))
            }
            step => Ok(step),
        }
    }

    /// Reads a block, or as much more as one line needs, and decodes the lines in it.
    fn read_lines(&mut self) -> io::Result<Progress> {
        let Some(Held { file, serial, .. }) = self.held.front() else { return Ok(Progress::End) };
        // The block begins with the line feed of the line before. If that is not there, the file
        // was truncated and has grown beyond this offset again.
        let before = usize::from(self.offset > 0 && self.too_long.is_none());
        let mut size = READ_SIZE;
        loop {
            let mut block = vec![0; before + size];
            let read = read_at(file, &mut block, self.offset - before as u64)?;
            if before > 0 && block[..read].first().is_some_and(|byte| *byte != b'\n') {
                return Ok(self.begin_anew());
            }
            let length = read.saturating_sub(before);
            if let Some(last) = memchr::memrchr(b'\n', &block[before..before + length]) {
                let block = &block[before..=before + last];
                let chunks = self.take_apart(*serial, block);
                self.offset += block.len() as u64;
                self.too_long = None;
                return Ok(Progress::Read(chunks));
            }
            if length == size && size < MAX_ENTRY {
                size *= 4;
            } else if length > 0 && (length == size || self.too_long.is_some()) {
                self.too_long.get_or_insert(self.offset);
                self.offset += length as u64;
                return Ok(Progress::Read(Vec::new()));
            } else {
                return self.was_cut_off();
            }
        }
    }

    /// Returns a notice by Holdfast for this place in the output.
    fn notice(&self, text: &str) -> LogChunk {
        let has_times = !matches!(self.place.format, Format::Raw(_));
        notice(text.to_owned(), has_times.then(|| self::text(SystemTime::now())))
    }

    /// Checks, at the end of a file, whether it has become shorter than what was read of it.
    fn was_cut_off(&mut self) -> io::Result<Progress> {
        let Some(first) = self.held.front() else { return Ok(Progress::End) };
        let length = first.file.metadata()?.len();
        if length >= self.offset {
            return Ok(Progress::End);
        }
        // A shim cuts off incomplete lines only, so this is no reason for a notice.
        if let Some(begin) = self.too_long.take().filter(|begin| *begin <= length) {
            self.offset = begin;
            return Ok(Progress::Read(Vec::new()));
        }
        Ok(self.begin_anew())
    }

    /// Starts again at the beginning of the file, because somebody has truncated it.
    fn begin_anew(&mut self) -> Progress {
        (self.offset, self.too_long, self.from) = (0, None, None);
        Progress::Read(vec![self.notice(CUT_OFF)])
    }

    fn take_apart(&self, serial: u64, block: &[u8]) -> Vec<LogChunk> {
        let mut chunks = Vec::new();
        let mut begin = 0;
        for end in memchr::memchr_iter(b'\n', block) {
            let of_long_line = begin == 0 && self.too_long.is_some();
            if !of_long_line
                && let Some(chunk) = self.place.format.decode(&block[begin..end])
                && self.is_wanted(&chunk, (serial, self.offset + begin as u64))
            {
                chunks.push(chunk);
            }
            begin = end + 1;
        }
        chunks
    }

    fn is_wanted(&self, chunk: &LogChunk, position: (u64, u64)) -> bool {
        let is_in_tail = self.from.is_none_or(|from| position >= from[chunk.lane()]);
        let is_recent = match (&self.since, &chunk.time) {
            (Some(since), Some(time)) => comparable(time) >= since.as_str(),
            _ => true,
        };
        is_in_tail && is_recent
    }

    /// Opens and holds the files that have appeared since the last check.
    fn look_for_more(&mut self, from: From) -> io::Result<()> {
        // A held file takes space on the disk even after it was rotated away. So a reader that lags
        // behind holds at most about twice the space that the log may take.
        if self.held.len() > HELD / 2 || self.held.len() > self.place.set_aside as usize + 1 {
            return Ok(());
        }
        let newest = self.held.back();
        let current = self.place.identity(0)?;
        self.is_current = newest.is_some() && newest.map(|held| held.id) == current;
        if self.is_current {
            return Ok(());
        }
        let written = |held: &Held| held.file.metadata()?.modified();
        let than = newest.map(|held| io::Result::Ok((held.id, written(held)?))).transpose()?;
        let found = self.place.newer(than, HELD - self.held.len(), from)?;
        let was_removed = match newest {
            // Rotation takes the last name from a file. If somebody else moved it to another name,
            // nothing is lost.
            Some(newest) => !found.joined && newest.file.metadata()?.nlink() == 0,
            // This reader was opened before the log had a file. Now the log has as many files as it
            // may have, so older ones may have been removed already.
            None => {
                self.was_first
                    && self.place.set_aside > 0
                    && found.files.len() > self.place.set_aside as usize
            }
        };
        let mut after_gap = self.place.rotates && was_removed;
        for (file, id) in found.files {
            let length = file.metadata()?.len();
            let serial = self.next_serial;
            self.next_serial += 1;
            self.is_current = Some(id) == current;
            let after_gap = std::mem::take(&mut after_gap);
            self.held.push_back(Held { file, id, serial, length, after_gap });
        }
        self.was_first = self.held.is_empty();
        Ok(())
    }

    /// Drops the files that were last written before `since`, because nothing in them is wanted.
    /// The newest one stays, because it may be written again.
    fn pass_over_older_than(&mut self, since: SystemTime) -> io::Result<()> {
        while self.held.len() > 1
            && let Some(first) = self.held.front()
            && first.file.metadata()?.modified()? + TICK < since
        {
            self.held.pop_front();
        }
        Ok(())
    }

    /// Moves to the beginning of the last `lines` lines. Only those count that existed when this
    /// was opened.
    fn begin_at_last(&mut self, lines: u64) -> io::Result<()> {
        let Some(newest) = self.held.back() else { return Ok(()) };
        let end = newest.length.min(newest.file.metadata()?.len());
        if matches!(self.place.format, Format::Raw(_)) {
            return self.begin_at_last_raw(end, lines);
        }
        let end = end_of_lines(&newest.file, end)?;
        let mut tail = Tail::new(lines, (newest.serial, end));
        for held in self.held.iter().rev().take_while(|_| lines > 0) {
            let end = if held.serial == newest.serial {
                end
            } else {
                end_of_lines(&held.file, held.file.metadata()?.len())?
            };
            let seen =
                backwards(&held.file, end, |offset, line| match self.place.format.decode(line) {
                    Some(chunk) => tail.see(&chunk, (held.serial, offset)),
                    None => ControlFlow::Continue(()),
                })?;
            if seen.is_break() {
                break;
            }
        }
        let begin = tail.from.iter().min().copied().unwrap_or_default();
        self.held.retain(|held| held.serial >= begin.0);
        self.offset = begin.1;
        self.from = Some(tail.from);
        Ok(())
    }

    /// Does the same for raw bytes, which have no entries, by counting line feeds.
    fn begin_at_last_raw(&mut self, mut end: u64, mut lines: u64) -> io::Result<()> {
        for index in (0..self.held.len()).rev() {
            let (begin, found) = last_lines(&self.held[index].file, end, lines)?;
            self.offset = begin;
            lines = lines.saturating_sub(found);
            if lines == 0 || index == 0 {
                self.held.drain(..index);
                break;
            }
            end = self.held[index - 1].file.metadata()?.len();
        }
        Ok(())
    }
}

/// Reads raw bytes. They are returned as they are, except for holes.
fn read_raw(
    file: &File,
    offset: &mut u64,
    data_end: &mut u64,
    stream: Stream,
) -> io::Result<Progress> {
    let length = file.metadata()?.len();
    if length < *offset {
        (*offset, *data_end) = (0, 0);
        return Ok(Progress::Read(vec![notice(CUT_OFF.to_owned(), None)]));
    }
    let mut size = READ_SIZE as u64;
    if *offset < length && *offset >= *data_end {
        // The file system is asked once for each stretch, because some look at every page up to its
        // end.
        match holes::stretch(file, *offset, length)? {
            Stretch::Data { end } => *data_end = end,
            Stretch::Hole { end } if end - *offset >= HOLE => {
                let text = hole(end - *offset);
                *offset = end;
                return Ok(Progress::Read(vec![notice(text, None)]));
            }
            Stretch::Hole { end } => size = size.min(end - *offset),
        }
    }
    if *offset < *data_end {
        size = size.min(*data_end - *offset);
    }
    let mut block = vec![0; usize::try_from(size).unwrap_or(READ_SIZE)];
    let length = read_at(file, &mut block, *offset)?;
    if length == 0 {
        return Ok(Progress::End);
    }
    block.truncate(length);
    *offset += length as u64;
    Ok(Progress::Read(vec![raw(stream, block.into())]))
}

/// The search for the last lines of a log, which reads the log backwards. A line counts at the
/// place where it ends. All its pieces belong to it, however much output of another stream stands
/// between them.
struct Tail {
    /// How many lines are still to be found.
    lines: u64,
    lanes: [Lane; LANES],
    /// The first entry of each lane that belongs to one of these lines.
    from: [(u64, u64); LANES],
    /// How many bytes of output were searched since the last of these lines was found.
    beyond: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// No entry of the lane was seen yet. The first one seen is the end of a line, complete or not.
    Unseen,
    /// The entries that follow belong to a line that counts, until one of them ends another line.
    Wanted,
    /// The entries that follow do not count any more.
    Done,
}

impl Tail {
    fn new(lines: u64, end: (u64, u64)) -> Self {
        Self { lines, lanes: [Lane::Unseen; LANES], from: [end; LANES], beyond: 0 }
    }

    fn see(&mut self, chunk: &LogChunk, position: (u64, u64)) -> ControlFlow<()> {
        let lane = chunk.lane();
        if self.lanes[lane] != Lane::Done && (chunk.ends_line() || self.lanes[lane] == Lane::Unseen)
        {
            self.lanes[lane] = if self.lines > 0 { Lane::Wanted } else { Lane::Done };
            self.lines = self.lines.saturating_sub(1);
        }
        if self.lanes[lane] == Lane::Wanted {
            self.from[lane] = position;
        }
        if self.lines > 0 {
            return ControlFlow::Continue(());
        }
        // The whole log must not be searched for an earlier line of a stream that has none.
        self.beyond += chunk.bytes.len();
        if self.lanes.contains(&Lane::Wanted) && self.beyond < MAX_LINE {
            return ControlFlow::Continue(());
        }
        ControlFlow::Break(())
    }
}

/// The notice in place of files that were removed by rotation before they were read.
const MISSING: &str = "output may be missing here: its file was rotated away before it was read";
/// The notice at the place where a file had become shorter than what was read of it.
const CUT_OFF: &str = "the log was cut off here; what follows is read from its new beginning";

/// Returns the notice in place of a hole.
fn hole(length: u64) -> String {
    format!("{length} bytes are left out here: a hole in the log, which was never written")
}

fn notice(text: String, time: Option<String>) -> LogChunk {
    let bytes = format!("[holdfast: {text}]\n").into();
    LogChunk { stream: Stream::Stderr, time, mark: Mark::Notice, bytes }
}

fn text(time: SystemTime) -> String {
    String::from_utf8_lossy(&time::format(time)).into_owned()
}

/// Returns a time (RFC 3339 in UTC, with any number of fractional digits) as text that sorts in the
/// order of time.
fn comparable(time: &str) -> &str {
    let time = time.trim_end_matches('Z');
    if time.contains('.') { time.trim_end_matches('0').trim_end_matches('.') } else { time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_state::{Directory, cri, json_file};
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, UNIX_EPOCH};

    struct Scratch(tempfile::TempDir);

    impl Scratch {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self, number: u32) -> PathBuf {
            self.0.path().join(match number {
                0 => "log".to_owned(),
                number => format!("log.{number}"),
            })
        }

        fn append(&self, number: u32, bytes: &[u8]) {
            let mut file =
                File::options().append(true).create(true).open(self.path(number)).unwrap();
            file.write_all(bytes).unwrap();
        }

        /// Rotates as the shim does: the files up to the first hole, the highest number first.
        fn rotate(&self, files: u32) {
            if files == 1 {
                return fs::remove_file(self.path(0)).unwrap();
            }
            let hole = (1..files - 1).find(|number| !self.path(*number).exists());
            for number in (0..hole.unwrap_or(files - 1)).rev() {
                fs::rename(self.path(number), self.path(number + 1)).unwrap();
            }
        }

        fn open_as(&self, format: Format, options: LogOptions) -> LogFiles {
            let directory = Directory::open(self.0.path()).unwrap();
            let rotates = !matches!(format, Format::Raw(_));
            let set_aside = if rotates { 4 } else { 0 };
            let place = Place { directory, name: "log".to_owned(), format, set_aside, rotates };
            LogFiles::open(place, &options).unwrap()
        }

        fn open(&self, options: LogOptions) -> LogFiles {
            self.open_as(Format::Cri, options)
        }

        fn all(&self, options: LogOptions) -> String {
            rest(&mut self.open(options))
        }
    }

    /// Returns an entry with the time of this second since the epoch.
    fn entry(second: u64, stream: Stream, piece: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let time = time::format(UNIX_EPOCH + Duration::from_secs(second));
        cri::encode(stream, &time, Mark::Plain, piece.as_bytes(), &mut out);
        out
    }

    fn line(text: &str) -> Vec<u8> {
        entry(0, Stream::Stdout, &format!("{text}\n"))
    }

    fn rest(files: &mut LogFiles) -> String {
        let mut all = Vec::new();
        while let Progress::Read(chunks) = files.read().unwrap() {
            for chunk in chunks {
                if chunk.mark == Mark::Notice {
                    all.extend_from_slice(b"[notice]");
                } else {
                    all.extend_from_slice(&chunk.bytes);
                }
            }
        }
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn rotated_files_are_read_the_oldest_first_over_holes() {
        let scratch = Scratch::new();
        for (number, text) in [(4, "a"), (2, "b"), (1, "c"), (0, "d"), (5, "beyond")] {
            scratch.append(number, &line(text));
        }
        assert_eq!(scratch.all(LogOptions::new()), "a\nb\nc\nd\n");
        fs::remove_file(scratch.path(0)).unwrap();
        assert_eq!(scratch.all(LogOptions::new()), "a\nb\nc\n");
    }

    #[test]
    fn both_formats_and_the_very_bytes_come_back() {
        let scratch = Scratch::new();
        let mut json = Vec::new();
        json_file::encode(
            Stream::Stderr,
            &time::format(UNIX_EPOCH),
            Mark::Again,
            b"\xff\n",
            &mut json,
        );
        scratch.append(0, &json);
        let read = |format| {
            let mut files = scratch.open_as(format, LogOptions::new());
            let Progress::Read(mut chunks) = files.read().unwrap() else { panic!("nothing") };
            assert_eq!(chunks.len(), 1);
            chunks.remove(0)
        };
        let chunk = read(Format::JsonFile);
        assert_eq!(
            (chunk.stream, chunk.mark, &chunk.bytes[..]),
            (Stream::Stderr, Mark::Again, &b"\xff\n"[..])
        );
        let chunk = read(Format::Raw(Stream::Stdout));
        assert_eq!((chunk.time, &chunk.bytes[..]), (None, &json[..]));
    }

    #[test]
    fn a_reader_goes_on_across_rotations_however_many() {
        let scratch = Scratch::new();
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), "");
        scratch.append(0, &line("a"));
        assert_eq!(rest(&mut files), "a\n");
        scratch.append(0, &line("b"));
        scratch.rotate(5);
        assert_eq!(rest(&mut files), "b\n");
        scratch.append(0, &line("c"));
        for text in ["d", "e", "f"] {
            scratch.rotate(5);
            scratch.append(0, &line(text));
        }
        assert_eq!(rest(&mut files), "c\nd\ne\nf\n");
        assert_eq!(rest(&mut files), "");
    }

    #[test]
    fn what_is_still_written_to_a_renamed_file_is_read_before_the_next() {
        let scratch = Scratch::new();
        scratch.append(0, &line("a"));
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), "a\n");
        // The file was renamed by hand, and another one created in its place, which the writer has
        // not opened yet.
        scratch.rotate(5);
        scratch.append(0, b"");
        assert_eq!(rest(&mut files), "");
        scratch.append(1, &line("b"));
        assert_eq!(rest(&mut files), "b\n");
        scratch.append(0, &line("c"));
        assert_eq!(rest(&mut files), "c\n");
    }

    #[test]
    fn who_comes_too_late_is_told_that_something_is_missing() {
        let scratch = Scratch::new();
        scratch.append(0, &line("a"));
        let mut files = scratch.open(LogOptions::new());
        for number in 0..7 {
            scratch.rotate(5);
            scratch.append(0, &line(&number.to_string()));
        }
        // The file that the reader held was still readable.
        assert_eq!(rest(&mut files), "a\n[notice]2\n3\n4\n5\n6\n");
    }

    #[test]
    fn who_moves_a_file_to_any_other_name_has_lost_nothing() {
        let scratch = Scratch::new();
        scratch.append(0, &line("a"));
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), "a\n");
        scratch.append(0, &line("b"));
        fs::rename(scratch.path(0), scratch.path(99)).unwrap();
        assert_eq!(rest(&mut files), "b\n");
        scratch.append(0, &line("c"));
        assert_eq!(rest(&mut files), "c\n");
    }

    #[test]
    fn of_a_thousand_files_few_are_held_at_once() {
        let scratch = Scratch::new();
        for number in 0..1000 {
            scratch.append(999 - number, &line(&number.to_string()));
        }
        let place = || Place {
            directory: Directory::open(scratch.0.path()).unwrap(),
            name: "log".to_owned(),
            format: Format::Cri,
            set_aside: 2000,
            rotates: true,
        };
        let mut files = LogFiles::open(place(), &LogOptions::new()).unwrap();
        assert_eq!(files.held.len(), HELD);
        let expected: String = (0..1000).map(|number| format!("{number}\n")).collect();
        assert_eq!(rest(&mut files), expected);
        let mut files = LogFiles::open(place(), &LogOptions::new().tail(20)).unwrap();
        assert_eq!(rest(&mut files), expected.split_at(expected.len() - 20 * 4).1);
    }

    #[test]
    fn a_position_is_where_another_reader_goes_on_across_rotations() {
        let scratch = Scratch::new();
        let after = |position: &FilePosition| {
            let directory = Directory::open(scratch.0.path()).unwrap();
            let place = Place {
                directory,
                name: "log".to_owned(),
                format: Format::Cri,
                set_aside: 4,
                rotates: true,
            };
            LogFiles::open_after(place, &LogOptions::new(), position).unwrap()
        };
        let nothing = scratch.open(LogOptions::new()).position(0).unwrap();
        scratch.append(0, &line("a"));
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), "a\n");
        let position = files.position(0).unwrap();
        drop(files);
        scratch.append(0, &line("b"));
        scratch.rotate(5);
        scratch.append(0, &line("c"));
        assert_eq!(rest(&mut after(&position)), "b\nc\n");
        assert_eq!(rest(&mut after(&nothing)), "a\nb\nc\n");
        for text in ["d", "e", "f", "g"] {
            scratch.rotate(5);
            scratch.append(0, &line(text));
        }
        assert_eq!(rest(&mut after(&position)), "[notice]c\nd\ne\nf\ng\n");
        // The place of the last lines, before any of them was read.
        let mut files = scratch.open(LogOptions::new().tail(2));
        files.locate().unwrap();
        assert_eq!(rest(&mut after(&files.position(0).unwrap())), "f\ng\n");
    }

    #[test]
    fn what_is_held_is_read_after_its_directory_is_gone() {
        let scratch = Scratch::new();
        for (number, text) in [(1, "a"), (0, "b")] {
            scratch.append(number, &line(text));
        }
        let mut files = scratch.open(LogOptions::new());
        drop(scratch);
        assert_eq!(rest(&mut files), "a\nb\n");
    }

    #[test]
    fn a_torn_line_that_is_cut_off_is_no_part_of_what_follows() {
        let scratch = Scratch::new();
        let torn = line("never completed");
        scratch.append(0, &line("a"));
        let whole = fs::metadata(scratch.path(0)).unwrap().len();
        let mut files = scratch.open(LogOptions::new());
        for length in [3, torn.len() - 1] {
            scratch.append(0, &torn[..length]);
            rest(&mut files);
            File::options().write(true).open(scratch.path(0)).unwrap().set_len(whole).unwrap();
        }
        scratch.append(0, &line("b"));
        assert_eq!(rest(&mut files), "b\n");
        scratch.append(0, &torn[..7]);
        assert_eq!(rest(&mut files), "");
        scratch.append(0, &torn[7..]);
        assert_eq!(rest(&mut files), "never completed\n");
    }

    #[test]
    fn a_file_that_was_emptied_is_read_from_its_new_beginning_and_that_is_said_once() {
        for format in [Format::Cri, Format::Raw(Stream::Stdout)] {
            let scratch = Scratch::new();
            let line = |text: &str| match format {
                Format::Cri => line(text),
                _ => format!("{text}\n").into_bytes(),
            };
            scratch.append(0, &line("the first"));
            let mut files = scratch.open_as(format, LogOptions::new().tail(9));
            assert_eq!(rest(&mut files), "the first\n");
            File::options().write(true).open(scratch.path(0)).unwrap().set_len(0).unwrap();
            assert_eq!(rest(&mut files), "[notice]");
            assert_eq!(rest(&mut files), "");
            scratch.append(0, &line("b"));
            assert_eq!(rest(&mut files), "b\n");
        }
    }

    #[test]
    fn of_a_log_that_has_outgrown_its_emptying_no_line_is_torn() {
        let scratch = Scratch::new();
        scratch.append(0, &line("a"));
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), "a\n");
        // Its second half looks like an entry.
        let within = format!("{} {}", "x".repeat(19), String::from_utf8(line("forged")).unwrap());
        fs::write(scratch.path(0), line(within.trim_end())).unwrap();
        assert_eq!(rest(&mut files), format!("[notice]{within}"));
    }

    #[test]
    fn of_raw_bytes_a_hole_of_terabytes_is_one_notice() {
        let scratch = Scratch::new();
        let raw = Format::Raw(Stream::Stdout);
        let size = |length| {
            let file = File::options().write(true).open(scratch.path(0)).unwrap();
            file.set_len(length).unwrap();
        };
        scratch.append(0, b"a\n");
        let mut files = scratch.open_as(raw, LogOptions::new());
        assert_eq!(rest(&mut files), "a\n");
        size(8 << 40);
        let Progress::Read(mut chunks) = files.read().unwrap() else { panic!("nothing") };
        // There may be zeros up to the end of the block of the file system.
        if chunks[0].mark == Mark::Plain {
            assert!(chunks[0].bytes.len() < 65_536 && chunks[0].bytes.iter().all(|b| *b == 0));
            let Progress::Read(more) = files.read().unwrap() else { panic!("nothing") };
            chunks = more;
        }
        let [chunk] = &chunks[..] else { panic!("{chunks:?}") };
        let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
        let length = text.strip_prefix("[holdfast: ").and_then(|text| text.split_once(' '));
        let length: u64 = length.unwrap().0.parse().unwrap();
        assert!(length > (8 << 40) - 70_000 && length < 8 << 40, "{text}");
        assert_eq!((chunk.mark, chunk.stream, &chunk.time), (Mark::Notice, Stream::Stderr, &None));
        assert_eq!(rest(&mut files), "");
        scratch.append(0, b"b\n");
        assert_eq!(rest(&mut files), "b\n");
        let all = scratch.open_as(raw, LogOptions::new());
        let shown = |mut files: LogFiles| rest(&mut files).replace('\0', "");
        assert_eq!(shown(all), "a\n[notice]b\n");
        // The zeros are part of the last line.
        assert_eq!(shown(scratch.open_as(raw, LogOptions::new().tail(1))), "[notice]b\n");
        assert_eq!(shown(scratch.open_as(raw, LogOptions::new().tail(2))), "a\n[notice]b\n");
        size(0);
        assert_eq!(rest(&mut files), "[notice]");
        scratch.append(0, b"c\n");
        assert_eq!(rest(&mut files), "c\n");
        // A program that seeks in its output may leave a small hole, which is returned as zeros.
        size(40_000);
        assert_eq!(rest(&mut files), "\0".repeat(40_000 - 2));
    }

    #[test]
    fn lines_of_a_mebibyte_come_whole_and_endless_garbage_not_at_all() {
        let scratch = Scratch::new();
        let long = "x".repeat(1024 * 1024);
        scratch.append(0, &line(&long));
        let garbage = vec![b'y'; 3 * MAX_ENTRY];
        scratch.append(0, &garbage);
        let mut files = scratch.open(LogOptions::new());
        assert_eq!(rest(&mut files), format!("{long}\n"));
        scratch.append(0, &garbage);
        scratch.append(0, b"\n");
        scratch.append(0, &line("b"));
        assert_eq!(rest(&mut files), "b\n");
        assert_eq!(scratch.all(LogOptions::new().tail(2)), format!("{long}\nb\n"));
        assert_eq!(scratch.all(LogOptions::new().tail(1)), "b\n");
    }

    #[test]
    fn the_last_lines_are_counted_across_files_and_streams() {
        let scratch = Scratch::new();
        let (out, err) = (Stream::Stdout, Stream::Stderr);
        scratch.append(2, &line("old"));
        for (number, stream, piece) in
            [(1, out, "a\n"), (1, out, "b1 "), (1, err, "e\n"), (0, out, "b2\n"), (0, err, "open")]
        {
            scratch.append(number, &entry(0, stream, piece));
        }
        scratch.append(0, b"torn");
        for (lines, expected) in [
            (0, ""),
            (1, "open"),
            (2, "b1 b2\nopen"),
            (3, "b1 e\nb2\nopen"),
            (4, "a\nb1 e\nb2\nopen"),
            (9, "old\na\nb1 e\nb2\nopen"),
        ] {
            assert_eq!(scratch.all(LogOptions::new().tail(lines)), expected, "{lines}");
        }
    }

    #[test]
    fn a_reader_from_the_end_has_all_that_comes_after_it_was_opened() {
        let scratch = Scratch::new();
        scratch.append(0, &line("a"));
        scratch.append(0, &line("b")[..9]);
        let mut files = scratch.open(LogOptions::new().tail(0));
        scratch.append(0, &line("b")[9..]);
        scratch.rotate(5);
        scratch.append(0, &line("c"));
        assert_eq!(rest(&mut files), "b\nc\n");
    }

    #[test]
    fn entries_before_a_moment_are_passed_over() {
        let scratch = Scratch::new();
        for (number, second) in [(1, 1), (1, 2), (0, 3), (0, 4)] {
            scratch.append(number, &entry(second, Stream::Stdout, &format!("{second}\n")));
        }
        let since = |millis| LogOptions::new().since(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(scratch.all(since(2000)), "2\n3\n4\n");
        assert_eq!(scratch.all(since(2001)), "3\n4\n");
        assert_eq!(scratch.all(since(2000).tail(1)), "4\n");
        assert_eq!(scratch.all(since(9000).tail(1)), "");
        // A file that was last written before that moment is not held.
        let mtime = UNIX_EPOCH + Duration::from_secs(2);
        File::options().write(true).open(scratch.path(1)).unwrap().set_modified(mtime).unwrap();
        assert_eq!(scratch.open(since(3500)).held.len(), 1);
        assert_eq!(scratch.open(since(2500)).held.len(), 2);
    }

    #[test]
    fn times_are_compared_with_however_many_digits_they_have() {
        let mut times =
            ["2024-01-01T00:00:10.1Z", "2024-01-01T00:00:10Z", "2024-01-01T00:00:10.09Z"];
        times.sort_by_key(|time| comparable(time));
        let order = ["2024-01-01T00:00:10Z", "2024-01-01T00:00:10.09Z", "2024-01-01T00:00:10.1Z"];
        assert_eq!(times, order);
        assert_eq!(comparable("2024-01-01T00:00:10.000Z"), comparable("2024-01-01T00:00:10Z"));
    }

    #[test]
    fn ten_lines_of_a_large_log_take_no_reading_of_it_all() {
        let scratch = Scratch::new();
        // A hole of one tebibyte precedes the lines. Nobody could read through it.
        File::create(scratch.path(0)).unwrap().set_len(1 << 40).unwrap();
        scratch.append(0, b"\n");
        for number in 0..20 {
            scratch.append(0, &line(&number.to_string()));
        }
        let expected: String = (10..20).map(|number| format!("{number}\n")).collect();
        assert_eq!(scratch.all(LogOptions::new().tail(10)), expected);
    }

    #[test]
    fn where_older_files_outlive_the_newest_nothing_is_repeated() {
        for is_moved in [false, true] {
            let scratch = Scratch::new();
            for (number, text) in [(2, "a"), (1, "b"), (0, "c")] {
                scratch.append(number, &line(text));
                let mtime = UNIX_EPOCH + Duration::from_secs(9 - u64::from(number));
                let file = File::options().write(true).open(scratch.path(number)).unwrap();
                file.set_modified(mtime).unwrap();
            }
            let mut files = scratch.open(LogOptions::new());
            assert_eq!(rest(&mut files), "a\nb\nc\n");
            if is_moved {
                fs::rename(scratch.path(0), scratch.path(99)).unwrap();
            } else {
                fs::remove_file(scratch.path(0)).unwrap();
            }
            assert_eq!(rest(&mut files), "");
            scratch.append(0, &line("d"));
            // The modification time must not matter.
            let file = File::options().write(true).open(scratch.path(0)).unwrap();
            file.set_modified(UNIX_EPOCH).unwrap();
            assert_eq!(rest(&mut files), if is_moved { "d\n" } else { "[notice]d\n" });
        }
    }

    #[test]
    fn who_was_there_before_the_log_is_told_that_its_beginning_may_be_missing() {
        for (files, expected) in [(5, "0\n1\n2\n3\n"), (4, "[notice]0\n1\n2\n3\n")] {
            let scratch = Scratch::new();
            let mut reader = scratch.open(LogOptions::new());
            reader.place.set_aside = files - 1;
            assert_eq!(rest(&mut reader), "");
            for number in 0..4 {
                scratch.append(3 - number, &line(&number.to_string()));
            }
            assert_eq!(rest(&mut reader), expected);
            // A reader that is opened later gets no notice of what was removed before.
            assert_eq!(scratch.all(LogOptions::new()), "0\n1\n2\n3\n");
        }
    }

    /// Reads while another thread writes and rotates all the time, and returns the number of
    /// notices.
    fn race(files: u32, lines: u64, lines_a_file: u64, pause: impl Fn(u64)) -> u32 {
        let scratch = Scratch::new();
        scratch.append(0, &line("1"));
        let mut reader = scratch.open(LogOptions::new());
        reader.place.set_aside = files - 1;
        let (writing, mut seen, mut notices) = (AtomicBool::new(true), 0, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = None;
                for number in 2..=lines {
                    let open = || File::options().append(true).create(true).open(scratch.path(0));
                    file.get_or_insert_with(|| open().unwrap())
                        .write_all(&line(&number.to_string()))
                        .unwrap();
                    if number % lines_a_file == 0 && number < lines {
                        scratch.rotate(files);
                        file = None;
                    }
                }
                writing.store(false, Ordering::SeqCst);
            });
            let mut gap = false;
            loop {
                let last_look = !writing.load(Ordering::SeqCst);
                while let Progress::Read(chunks) = reader.read().unwrap() {
                    for chunk in chunks {
                        if chunk.mark == Mark::Notice {
                            assert!(!gap, "told twice of one gap");
                            (gap, notices) = (true, notices + 1);
                            continue;
                        }
                        let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
                        let number: u64 = text.trim().parse().unwrap();
                        let follows = number == seen + 1;
                        assert!(
                            follows || gap && number > seen,
                            "{files} files: {text} after {seen}, gap {gap}"
                        );
                        (gap, seen) = (false, number);
                    }
                    pause(seen);
                }
                if last_look {
                    break;
                }
            }
        });
        assert_eq!(seen, lines);
        notices
    }

    #[test]
    fn a_race_with_a_writer_that_rotates_all_the_time_loses_and_repeats_nothing_unsaid() {
        for (files, lines, lines_a_file) in
            [(1, 30_000, 50), (2, 30_000, 50), (5, 30_000, 50), (5, 800, 1), (40, 200, 1)]
        {
            race(files, lines, lines_a_file, |_| ());
            let slow = |seen| {
                if seen % 7 == 0 {
                    std::thread::sleep(Duration::from_micros(300));
                }
            };
            race(files, lines, lines_a_file, slow);
        }
    }
}
