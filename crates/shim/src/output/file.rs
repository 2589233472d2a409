//! A log on disk: entries in whole lines, files of bounded size, and a disk that may be full.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_state::cri::{self, Mark, Stream};
use holdfast_state::{LogDriver, LogSpec, json_file, logging};
use nix::fcntl::OFlag;

use super::rate::Rate;
use super::tail::{Backwards, LIMIT, Last};
use super::{Chunk, Missing, READ_SIZE, Stamp};
use crate::home::{Home, Parent};
use crate::stdio::{Owner, give};

/// How much is written at once, about.
const WRITE_SIZE: usize = 128 * 1024;
/// The largest piece of a line in a json-file, in bytes, as Docker has it.
const JSON_PIECE: usize = 16 * 1024;
/// The same in a k8s-file, as conmon has it.
const K8S_PIECE: usize = 8 * 1024;
/// The mode of a k8s-file: a group may read it.
const K8S_MODE: u32 = 0o640;
/// No entry is longer, in bytes: what is so long and has no line feed is none of ours.
const LONGEST_ENTRY: u64 = 2 * READ_SIZE as u64;
/// By how many bytes a file that could not be set aside grows before that is tried again.
const PATIENCE: u64 = 64 * 1024;

/// How output stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Cri,
    Json,
    /// The very bytes.
    Raw,
}

impl Format {
    #[inline]
    fn encode<const LEN: usize>(
        self,
        stream: Stream,
        time: &[u8; LEN],
        mark: Mark,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) {
        match self {
            Self::Json => json_file::encode(stream, time, mark, bytes, out),
            Self::Raw => out.extend_from_slice(bytes),
            Self::Cri => cri::encode(stream, time, mark, bytes, out),
        }
    }
}

/// What conmon's command line says of a k8s-file.
#[derive(Debug, Clone, Copy, Default)]
pub struct K8sFile {
    /// How large it becomes, in bytes.
    pub max_size: Option<u64>,
    /// How much is written in all, in bytes, what was there before included. The rest is dropped.
    pub max_total: Option<u64>,
    /// How many full files are kept, `PATH.1` the newest. Without, a full file is replaced by an empty one.
    pub backups: Option<u32>,
    /// One that cannot be opened is opened when there is output.
    pub may_be_missing: bool,
}

/// Whose customs a file follows.
#[derive(Debug, Clone, Copy)]
enum Customs {
    /// Nobody else reads it, no symbolic link leads to it, and it may be given to somebody.
    Holdfast(Owner),
    /// Those of conmon's k8s-file, which is whatever its path leads to.
    Conmon {
        /// How many bytes may still be written.
        left: u64,
        /// Whether full files are kept.
        keeps: bool,
    },
}

/// A log on disk.
pub struct LogFile {
    parent: Parent,
    name: String,
    customs: Customs,
    format: Format,
    /// The one stream that it takes, if not both.
    only: Option<Stream>,
    /// Open from the first output on until there is none for a while. For appending: it may be cut
    /// (`copytruncate` of logrotate) and gets no hole.
    file: Option<File>,
    /// How large it is, as far as we wrote it.
    size: u64,
    max_size: u64,
    files: u32,
    /// Whether all lines that were begun have ended, so that a new file may begin.
    is_whole: bool,
    /// Entries that are not written yet.
    out: Vec<u8>,
    rate: Rate,
    /// Bytes that could not be written and were not told of yet.
    dropped: u64,
    /// Whether its last entry may be half an entry of a dead shim's.
    is_torn: bool,
}

impl LogFile {
    /// Opens the file of a driver that has one; or two, of which each takes one stream.
    pub(super) fn open(
        spec: &LogSpec,
        home: &Home,
        owner: Owner,
        missing: Missing,
    ) -> io::Result<Vec<Self>> {
        let Some(stderr) = &spec.stderr else {
            return Ok(vec![Self::open_one(spec, home, owner, missing, None)?]);
        };
        let other = LogSpec { path: Some(stderr.clone()), ..spec.clone() };
        Ok(vec![
            Self::open_one(spec, home, owner, missing, Some(Stream::Stdout))?,
            Self::open_one(&other, home, owner, missing, Some(Stream::Stderr))?,
        ])
    }

    fn open_one(
        spec: &LogSpec,
        home: &Home,
        owner: Owner,
        missing: Missing,
        only: Option<Stream>,
    ) -> io::Result<Self> {
        let (parent, name, owner) = place(spec, home, owner)?;
        let opened = open(&parent, &name, Customs::Holdfast(owner));
        let opened = opened.and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = match named(spec, opened) {
            Ok((size, file)) => (size, Some(file)),
            Err(error) if missing == Missing::Fails => return Err(error),
            // It is opened with the next output, or the one after that.
            Err(_) => (0, None),
        };
        Ok(Self {
            parent,
            name,
            customs: Customs::Holdfast(owner),
            format: match spec.driver {
                LogDriver::File => Format::Raw,
                LogDriver::JsonFile => Format::Json,
                _ => Format::Cri,
            },
            only,
            file,
            size,
            max_size: spec.bound().unwrap_or(u64::MAX),
            files: spec.files(),
            is_whole: true,
            out: Vec::new(),
            rate: Rate::new(spec.rate),
            dropped: 0,
            is_torn: false,
        })
    }

    /// Opens a k8s-file by its absolute path.
    ///
    /// # Errors
    /// Those of open(2), and if the path names no file, or one that is not UTF-8.
    pub fn of_monitor(path: &Path, rules: K8sFile) -> io::Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).zip(path.parent());
        let (name, parent) = name.ok_or(io::ErrorKind::InvalidFilename)?;
        let parent = Parent::Path(parent.into());
        let mut customs = Customs::Conmon { left: u64::MAX, keeps: rules.backups.is_some() };
        let file = match open(&parent, name, customs) {
            Ok(file) => Some(file),
            Err(error) if !rules.may_be_missing => return Err(error),
            Err(_) => None,
        };
        let size = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|found| found.len()))?;
        if let (Customs::Conmon { left, .. }, Some(total)) = (&mut customs, rules.max_total) {
            *left = total.saturating_sub(size);
        }
        Ok(Self {
            parent,
            name: name.to_owned(),
            customs,
            format: Format::Cri,
            only: None,
            file,
            size,
            max_size: rules.max_size.unwrap_or(u64::MAX),
            files: rules.backups.unwrap_or(0).saturating_add(1),
            is_whole: true,
            out: Vec::new(),
            rate: Rate::new(None),
            dropped: 0,
            is_torn: false,
        })
    }

    /// Writes what was read from a stream. Never fails: a full disk must not stop the container.
    pub(super) fn take(&mut self, chunk: Chunk<'_>) {
        if self.only.is_some_and(|only| only != chunk.stream) {
            return;
        }
        self.tell_of_dropped(chunk.stamp);
        if self.format == Format::Raw && self.size + chunk.bytes.len() as u64 <= self.max_size {
            self.is_whole = chunk.bytes.ends_with(b"\n");
            return self.write(chunk.bytes);
        }
        let mut rate = mem::take(&mut self.rate);
        rate.each_line(chunk, |line| self.enter(line));
        self.rate = rate;
        self.flush();
    }

    /// The last word: what was dropped and has not been told.
    pub(super) fn finish(&mut self, stamp: &Stamp) {
        self.tell_of_dropped(stamp);
        let mut rate = mem::take(&mut self.rate);
        rate.tell(stamp, |notice| self.enter(notice));
        self.rate = rate;
        self.flush();
    }

    /// Gives back what only output needs; the file too.
    pub(super) fn rest(&mut self) {
        self.out = Vec::new();
        self.file = None;
    }

    /// Whether there is nothing to say of what is missing.
    pub(super) fn is_clean(&self) -> bool {
        self.dropped == 0 && self.rate.is_clean()
    }

    /// Opens the file anew by its name, after somebody has moved it away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Customs::Conmon { keeps: true, .. } = self.customs
            && self.parent.open()?.contains(&self.name)?
        {
            return self.try_rotate();
        }
        self.open_anew()?;
        if let (Customs::Conmon { .. }, Some(file)) = (self.customs, &self.file) {
            // CRI-O waits for an event of this file (inotify(7)). One that was there, perhaps because of output
            // since somebody has moved its predecessor away, gets none by being opened. A device can't do this.
            let _ = file.set_len(self.size);
        }
        Ok(())
    }

    fn open_anew(&mut self) -> io::Result<()> {
        self.file = None;
        self.opened().map(drop)
    }

    /// Has the disk take what was written.
    pub(super) fn sync(&self) -> io::Result<()> {
        if let Some(file) = &self.file {
            return file.sync_all();
        }
        match self.path().and_then(File::open) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file?.sync_all(),
        }
    }

    fn path(&self) -> io::Result<PathBuf> {
        Ok(self.parent.open()?.path().join(&self.name))
    }

    fn opened(&mut self) -> io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = open(&self.parent, &self.name, self.customs)?;
                self.size = file.metadata()?.len();
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// Adds an entry to those that are to be written, or several if it is too long for one.
    fn enter(&mut self, line: Chunk<'_>) {
        let most = match (self.format, self.customs) {
            (Format::Json, _) => JSON_PIECE,
            (_, Customs::Conmon { .. }) => K8S_PIECE,
            _ => line.bytes.len(),
        };
        for bytes in line.bytes.chunks(most) {
            self.enter_piece(Chunk { bytes, ..line });
        }
    }

    /// Adds one entry to those that are to be written; in a new file, if this one is full.
    fn enter_piece(&mut self, Chunk { stream, mark, stamp, bytes }: Chunk<'_>) {
        if self.out.len() + bytes.len() > WRITE_SIZE - WRITE_SIZE / 8 {
            self.flush();
        }
        self.out.reserve(WRITE_SIZE - self.out.len());
        let start = self.out.len();
        match stamp {
            Stamp::Utc(time) => self.format.encode(stream, time, mark, bytes, &mut self.out),
            Stamp::Local(time) => self.format.encode(stream, time, mark, bytes, &mut self.out),
        }
        let mut may_be_split = self.is_whole;
        if let Customs::Conmon { left, .. } = &mut self.customs {
            let length = (self.out.len() - start) as u64;
            if length > *left {
                if mem::take(left) > 0 {
                    let text = format!("{}: all that may be written was written", self.name);
                    crate::log::log("warning", &text);
                }
                return self.out.truncate(start);
            }
            *left -= length;
            // Others rely on the bound.
            may_be_split = true;
        }
        let (before, after) = (self.size + start as u64, self.size + self.out.len() as u64);
        // A line without end must not make a file without end.
        if after > self.max_size && before > 0 && (may_be_split || before > 2 * self.max_size) {
            let entry = self.out.split_off(start);
            self.flush();
            self.rotate();
            self.out.extend_from_slice(&entry);
        }
        self.is_whole = bytes.ends_with(b"\n");
    }

    fn flush(&mut self) {
        let out = mem::take(&mut self.out);
        self.write(&out);
        self.out = out;
        self.out.clear();
    }

    /// What can't be written is dropped and counted; of an entry all or nothing.
    fn write(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.is_torn {
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
        let kept = if rest.is_empty() || self.format == Format::Raw {
            written
        } else {
            let kept = memchr::memrchr(b'\n', &bytes[..written]).map_or(0, |place| place + 1);
            self.cut((written - kept) as u64);
            kept
        };
        self.dropped += (bytes.len() - kept) as u64;
        self.size += kept as u64;
        self.look_whether_cut();
    }

    /// Somebody may have cut the file meanwhile. What we write stands behind what is left of it.
    fn look_whether_cut(&mut self) {
        if let Some(found) = self.file.as_ref().and_then(|file| file.metadata().ok())
            && found.is_file()
            && found.len() < self.size
        {
            let length = found.len();
            let text = format!("{}: was cut by {} bytes", self.name, self.size - length);
            crate::log::log("warning", &text);
            self.size = length;
        }
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
    fn tell_of_dropped(&mut self, stamp: &Stamp) {
        if self.dropped == 0 {
            return;
        }
        let dropped = mem::take(&mut self.dropped);
        let text = format!("[holdfast: {dropped} bytes of the log could not be written]\n");
        self.enter(Chunk::notice(stamp, &text));
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
        if let Customs::Conmon { keeps: false, .. } = self.customs {
            // So there is always a file of that name, for those who follow it.
            let temporary = format!("{}.tmp", self.name);
            directory.unlink(&temporary)?;
            self.file = Some(open(&self.parent, &temporary, self.customs)?);
            directory.rename(&temporary, &self.name)?;
            self.size = 0;
            return Ok(());
        }
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
        self.open_anew()
    }

    /// Takes over from a dead shim: a torn entry at the end goes, as its bytes are still where they
    /// came from.
    pub(super) fn mend(&mut self) -> io::Result<()> {
        if self.format == Format::Raw {
            return Ok(());
        }
        self.is_torn = true;
        // A rotation that was cut short has left none.
        self.opened()?;
        let directory = self.parent.open()?;
        let file = directory.open_file(&self.name, OFlag::O_RDONLY)?;
        if let Some(torn) = Backwards::of(file, LONGEST_ENTRY)?.next()? {
            self.cut(torn.len() as u64);
        }
        self.size = self.opened()?.metadata()?.len();
        self.is_torn = false;
        Ok(())
    }

    /// What was entered of a stream last. If it was entered again, then what was entered before it too: the shim
    /// that did so may have been killed before it had entered all of it. `None` if it can't be read back, or not
    /// from here.
    pub(super) fn last_read(&self, stream: Stream) -> Option<io::Result<Vec<Last>>> {
        let takes_it = self.only.is_none_or(|only| only == stream);
        (self.format != Format::Raw && takes_it).then(|| self.try_last_read(stream))
    }

    fn try_last_read(&self, stream: Stream) -> io::Result<Vec<Last>> {
        let directory = self.parent.open()?;
        let (mut all, mut pieces) = (Vec::new(), Vec::new());
        let (mut time, mut mark, mut left) = (String::new(), Mark::Again, LIMIT);
        // A rotation that was cut short has left one out.
        let mut missing = 0;
        let aside = (1..).map(|number| logging::set_aside(&self.name, number));
        // In the middle of it a new file may have been begun.
        for name in std::iter::once(self.name.clone()).chain(aside) {
            let file = match directory.open_file(&name, OFlag::O_RDONLY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing += 1;
                    if missing > 1 { break } else { continue }
                }
                file => file?,
            };
            let mut lines = Backwards::of(file, left)?;
            while let Some(line) = lines.next()? {
                let entry = self.decode(&line);
                let is_its =
                    |entry: &json_file::Entry| entry.stream == stream && entry.mark != Mark::Notice;
                let Some(entry) = entry.filter(is_its) else { continue };
                if !time.is_empty() && entry.time != time {
                    all.push(Last::of(mem::take(&mut pieces), false));
                    if mark != Mark::Again {
                        return Ok(all);
                    }
                    lines.left = LIMIT;
                }
                (time, mark) = (entry.time, entry.mark);
                pieces.push(entry.content);
            }
            left = lines.left;
        }
        all.push(Last::of(pieces, self.max_size < u64::MAX));
        Ok(all)
    }

    fn decode(&self, line: &[u8]) -> Option<json_file::Entry> {
        match self.format {
            Format::Json => json_file::decode(line),
            Format::Raw => None,
            Format::Cri => cri::decode(line).map(|entry| json_file::Entry {
                time: entry.time.to_owned(),
                stream: entry.stream,
                content: entry.written(),
                mark: entry.mark,
            }),
        }
    }
}

/// A file that the process writes itself.
pub(crate) fn open_direct(spec: &LogSpec, home: &Home, owner: Owner) -> io::Result<File> {
    let (parent, name, owner) = place(spec, home, owner)?;
    named(spec, open(&parent, &name, Customs::Holdfast(owner)))
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

fn open(parent: &Parent, name: &str, customs: Customs) -> io::Result<File> {
    let directory = parent.open()?;
    let opened = match customs {
        Customs::Holdfast(owner) => {
            directory.append(name).and_then(|file| give(&file, owner).map(|()| file))
        }
        Customs::Conmon { .. } => {
            let mut how = File::options();
            // A FIFO that nobody reads is an error, and not waited for.
            how.append(true).create(true).mode(K8S_MODE).custom_flags(OFlag::O_NONBLOCK.bits());
            how.open(directory.path().join(name))
        }
    };
    opened.map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::home;
    use holdfast_state::time;
    use std::fs;
    use std::time::{Duration, UNIX_EPOCH};

    fn open_of(dir: &Path, spec: &str) -> LogFile {
        let spec = spec.parse().unwrap();
        LogFile::open(&spec, &home(dir), None, Missing::Fails).unwrap().remove(0)
    }

    fn take(file: &mut LogFile, stream: Stream, bytes: &[u8], second: u64) {
        let stamp = Stamp::Utc(time::format(UNIX_EPOCH + Duration::from_secs(second)));
        file.take(Chunk { stream, mark: Mark::Plain, stamp: &stamp, bytes });
    }

    fn only_last(file: &LogFile, stream: Stream) -> Last {
        let mut all = file.last_read(stream).unwrap().unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    /// Shims that are killed one after the other while they enter the same bytes, each after so many of them.
    #[test]
    fn what_was_entered_more_than_once_is_known_as_far_as_any_shim_had_come() {
        let pipe: Vec<u8> = (0..20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let pipe = &pipe[..READ_SIZE];
        let stamp = |second| Stamp::Utc(time::format(UNIX_EPOCH + Duration::from_secs(second)));
        for lengths in [[60_000, 10, 20_000], [20_000, 0, 100], [1, 1, 0], [READ_SIZE, 3, 50_000]] {
            for spec in ["cri", "json-file", "cri,max-size=100k,max-files=200"] {
                let temp = tempfile::tempdir().unwrap();
                let mut file = open_of(temp.path(), spec);
                take(&mut file, Stream::Stdout, b"before\n", 1);
                let mut known = 0;
                for (second, length) in (2..).zip(lengths) {
                    let (mark, most) = match known {
                        0 => (Mark::Plain, length),
                        known => (Mark::Again, length.min(known)),
                    };
                    let (stamp, bytes) = (&stamp(second), &pipe[..most]);
                    file.take(Chunk { stream: Stream::Stdout, mark, stamp, bytes });
                    take(&mut file, Stream::Stderr, b"another\n", second);
                    known = known.max(length);
                    let all = file.last_read(Stream::Stdout).unwrap().unwrap();
                    let found = all.iter().map(|last| last.end_in(pipe)).max();
                    assert_eq!(found, Some(known), "{spec}, {lengths:?}");
                }
            }
        }
    }

    /// Whatever it was: short lines, which make most of the log, with others' between; over the end of a
    /// file, whose beginning is there or is gone.
    #[test]
    fn what_was_entered_last_is_found_in_every_format_and_over_rotations() {
        let content = vec![b'\n'; READ_SIZE];
        for spec in [
            "cri",
            "json-file",
            "cri,max-size=100k,max-files=200",
            "json-file,max-size=1m,max-files=10",
        ] {
            let temp = tempfile::tempdir().unwrap();
            let mut file = open_of(temp.path(), spec);
            take(&mut file, Stream::Stdout, b"before\n", 1);
            take(&mut file, Stream::Stdout, &content, 2);
            take(&mut file, Stream::Stderr, b"another\n", 3);
            let last = only_last(&file, Stream::Stdout);
            assert_eq!(last.bytes.len(), content.len(), "{spec}");
            assert_eq!(last.end_in(&content), content.len(), "{spec}");
            assert_eq!(only_last(&file, Stream::Stderr).bytes, b"another\n");
            // A rotation that was cut short: before there was a new file, and before the old one went.
            for number in (0..200).rev() {
                let name = |number| match number {
                    0 => temp.path().join(&file.name),
                    number => temp.path().join(logging::set_aside(&file.name, number)),
                };
                let _ = fs::rename(name(number), name(number + 1));
                if number > 1 {
                    continue;
                }
                let last = only_last(&file, Stream::Stdout);
                assert_eq!(last.end_in(&content), content.len(), "{spec}: without {number}");
            }
        }
        let temp = tempfile::tempdir().unwrap();
        let mut file = open_of(temp.path(), "cri,max-size=4096,max-files=1");
        let lines: Vec<u8> = (0..1000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        take(&mut file, Stream::Stdout, &lines, 1);
        let last = only_last(&file, Stream::Stdout);
        assert!(last.bytes.len() < lines.len() && lines.ends_with(&last.bytes));
        assert_eq!(last.end_in(&lines), lines.len());
    }

    #[test]
    fn only_the_beginning_of_an_entry_is_taken_away_and_nothing_of_somebody_elses() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("output.log");
        let mut file = open_of(temp.path(), "cri");
        take(&mut file, Stream::Stdout, b"whole\n", 1);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"2026-11-2"].concat()).unwrap();
        file.mend().unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        // No line feed in so many bytes: a file that was there before.
        let other = vec![b'x'; 1 << 20];
        fs::write(&path, &other).unwrap();
        file.mend().unwrap();
        assert_eq!(fs::read(&path).unwrap(), other);
    }

    #[test]
    fn a_file_that_was_cut_gets_no_hole() {
        for spec in ["file", "cri"] {
            let temp = tempfile::tempdir().unwrap();
            let mut file = open_of(temp.path(), spec);
            take(&mut file, Stream::Stdout, b"one\n", 1);
            let path = temp.path().join(if spec == "file" { "output.raw" } else { "output.log" });
            File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
            take(&mut file, Stream::Stdout, b"two\n", 2);
            let content = fs::read(&path).unwrap();
            assert!(content.ends_with(b"two\n") && !content.contains(&0), "{content:?}");
            assert_eq!(file.size, content.len() as u64);
        }
    }

    #[test]
    fn a_raw_file_is_set_aside_between_lines() {
        let temp = tempfile::tempdir().unwrap();
        let mut file = open_of(temp.path(), "file,max-size=4096,max-files=100");
        let lines: Vec<u8> = (0..9000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        for chunk in lines.chunks(10_000) {
            take(&mut file, Stream::Stdout, chunk, 1);
        }
        let names = (1..).map(|number| format!("output.raw.{number}"));
        let mut files: Vec<Vec<u8>> = std::iter::once("output.raw".to_owned())
            .chain(names)
            .map_while(|name| fs::read(temp.path().join(name)).ok())
            .collect();
        files.reverse();
        assert!(files.len() > 9 && files.iter().all(|it| it.len() <= 4096 && it.ends_with(b"\n")));
        assert_eq!(files.concat(), lines);
    }

    #[test]
    fn two_files_take_a_stream_each() {
        let temp = tempfile::tempdir().unwrap();
        let spec = format!("file,stderr={}", temp.path().join("errors").display());
        let home = home(temp.path());
        let files = LogFile::open(&spec.parse().unwrap(), &home, None, Missing::Fails).unwrap();
        for mut file in files {
            take(&mut file, Stream::Stdout, b"out\n", 1);
            take(&mut file, Stream::Stderr, b"err\n", 1);
        }
        assert_eq!(fs::read(temp.path().join("output.raw")).unwrap(), b"out\n");
        assert_eq!(fs::read(temp.path().join("errors")).unwrap(), b"err\n");
    }
}
