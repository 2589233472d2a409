//! The entries of a log file: how a line is decoded, and how the last lines of a file are found.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use holdfast_state::cri::{self, Mark, Stream};
use holdfast_state::{LogDriver, json_file};

use crate::log::holes;

/// A piece of output, byte for byte as the container wrote it, or a notice by Holdfast.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogChunk {
    /// The stream to which it was written.
    pub stream: Stream,
    /// The time at which the shim read it (RFC 3339). `None` for a log of the driver `file`, which
    /// stores the bytes alone.
    pub time: Option<String>,
    /// Whether the container wrote it, and whether it may be a repetition.
    pub mark: Mark,
    /// The bytes, including the line feed if one ended them.
    pub bytes: Bytes,
}

/// How many bytes of a log are read at once.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// A length in bytes above that of any entry that a shim writes. A longer line is not an entry, and
/// is not kept in memory.
pub(crate) const MAX_ENTRY: usize = 2 * 1024 * 1024;

/// The format of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Cri,
    JsonFile,
    /// Only the bytes that were written to this stream, without entries.
    Raw(Stream),
}

impl Format {
    /// Returns the format of the file that this driver writes.
    pub(crate) fn of(driver: LogDriver) -> Self {
        match driver {
            LogDriver::JsonFile => Self::JsonFile,
            LogDriver::File => Self::Raw(Stream::Stdout),
            _ => Self::Cri,
        }
    }

    /// Decodes one line, given without its line feed. Returns `None` if it is not an entry.
    pub(crate) fn decode(self, line: &[u8]) -> Option<LogChunk> {
        match self {
            Self::Cri => {
                let entry = cri::decode(line)?;
                let time = Some(entry.time.to_owned());
                let bytes = entry.written().into();
                Some(LogChunk { stream: entry.stream, time, mark: entry.mark, bytes })
            }
            Self::JsonFile => {
                let json_file::Entry { time, stream, content, mark } = json_file::decode(line)?;
                Some(LogChunk { stream, time: Some(time), mark, bytes: content.into() })
            }
            Self::Raw(stream) => Some(raw(stream, Bytes::copy_from_slice(line))),
        }
    }
}

/// Returns a chunk of raw bytes, which have no time and no mark.
pub(crate) fn raw(stream: Stream, bytes: Bytes) -> LogChunk {
    LogChunk { stream, time: None, mark: Mark::Plain, bytes }
}

/// The number of lanes. The lines of a lane are independent of those of the others; see
/// [`LogChunk::lane`].
pub(crate) const LANES: usize = 3;

impl LogChunk {
    /// Returns whether this chunk ends a line.
    #[must_use]
    pub fn ends_line(&self) -> bool {
        self.bytes.ends_with(b"\n")
    }

    /// Returns the lane of this chunk. All pieces of a line are in the same lane. Notices have a
    /// lane of their own: a notice can stand between two pieces of a line of the container, and is
    /// not part of that line.
    pub(crate) fn lane(&self) -> usize {
        match (self.mark, self.stream) {
            (Mark::Notice, _) => 2,
            (_, Stream::Stdout) => 0,
            (_, Stream::Stderr) => 1,
        }
    }
}

/// Reads with one system call (repeated only after EINTR), so a short read means the end of the
/// file. A second call could continue inside another line, if the line at the end was cut off in
/// between.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Returns the block of a file that ends at `end`, and the offset at which the block begins. The
/// block is shorter at the beginning of the file, and also if the file has become shorter
/// meanwhile.
fn block_before(file: &File, end: u64) -> io::Result<(u64, Vec<u8>)> {
    let from = end.saturating_sub(READ_SIZE as u64);
    let mut block = vec![0; usize::try_from(end - from).unwrap_or(READ_SIZE)];
    let length = read_at(file, &mut block, from)?;
    block.truncate(length);
    Ok((from, block))
}

/// Returns the offset at which the last complete line before `end` ends; 0 if there is none.
pub(crate) fn end_of_lines(file: &File, mut end: u64) -> io::Result<u64> {
    while end > 0 {
        let (from, block) = block_before(file, end)?;
        if let Some(place) = memchr::memrchr(b'\n', &block) {
            return Ok(from + place as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}

/// Returns the offset at which the last `lines` lines before `end` begin, and how many lines were
/// found. The bytes after the last line feed count as a line.
pub(crate) fn last_lines(file: &File, mut end: u64, lines: u64) -> io::Result<(u64, u64)> {
    if lines == 0 || end == 0 {
        return Ok((end, 0));
    }
    // A line feed at the very end does not begin another line.
    let mut line_feeds = 0;
    let mut last = true;
    while end > 0 {
        let (from, block) = block_before(file, end)?;
        if block.iter().all(|byte| *byte == 0)
            && let Some(begin) = holes::begin_of_hole(file, from, end)?
        {
            (end, last) = (begin, false);
            continue;
        }
        for place in memchr::memrchr_iter(b'\n', &block) {
            if !std::mem::take(&mut last) || place + 1 < block.len() {
                line_feeds += 1;
            }
            if line_feeds == lines {
                return Ok((from + place as u64 + 1, lines));
            }
        }
        last = false;
        end = from;
    }
    Ok((0, line_feeds + 1))
}

/// Calls `see` with each line that ends at or before `end`, which itself must be the end of a line.
/// The last line comes first. Each line comes with the offset at which it begins. Lines that are
/// too long for an entry are skipped.
pub(crate) fn backwards(
    file: &File,
    end: u64,
    mut see: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    // `rest` holds the bytes from `from` on that were not passed to `see` yet: a line whose
    // beginning is still to be read. Nothing is kept of a line that is too long.
    let (mut from, mut rest, mut too_long) = (end, Vec::new(), false);
    while from > 0 {
        let (begin, mut block) = block_before(file, from)?;
        from = begin;
        if too_long {
            let Some(place) = memchr::memrchr(b'\n', &block) else { continue };
            block.truncate(place + 1);
            too_long = false;
        }
        block.append(&mut rest);
        rest = block;
        while let Some(line) = rest.strip_suffix(b"\n")
            && let Some(place) = memchr::memrchr(b'\n', line)
        {
            let seen = see(from + place as u64 + 1, &line[place + 1..]);
            rest.truncate(place + 1);
            if seen.is_break() {
                return Ok(seen);
            }
        }
        if rest.len() > MAX_ENTRY {
            rest.clear();
            too_long = true;
        }
    }
    Ok(match rest.strip_suffix(b"\n") {
        Some(line) => see(0, line),
        None => ControlFlow::Continue(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn shown(file: &File, end: u64) -> Vec<(u64, Vec<u8>)> {
        let mut lines = Vec::new();
        let seen = backwards(file, end, |at, line| {
            lines.push((at, line.to_vec()));
            ControlFlow::Continue(())
        });
        assert!(seen.unwrap().is_continue());
        lines.reverse();
        lines
    }

    #[test]
    fn backwards_shows_the_same_lines_as_forwards_however_long_they_are() {
        for lengths in [vec![], vec![0], vec![5, 0, 7], vec![65_535, 65_536, 1, 200_000, 3]] {
            let mut content = Vec::new();
            let mut expected = Vec::new();
            for (letter, length) in (b'a'..).zip(&lengths) {
                let line = vec![letter; *length];
                expected.push((content.len() as u64, line.clone()));
                content.extend(line);
                content.push(b'\n');
            }
            let end = content.len() as u64;
            content.extend(b"torn");
            let file = file(&content);
            assert_eq!(end_of_lines(&file, content.len() as u64).unwrap(), end);
            assert_eq!(shown(&file, end), expected);
        }
    }

    #[test]
    fn backwards_passes_over_what_is_too_long_for_an_entry() {
        let long = vec![b'x'; MAX_ENTRY + 100_000];
        let content = [b"a\n", long.as_slice(), b"\nb\n", long.as_slice(), b"\n"].concat();
        let lines = shown(&file(&content), content.len() as u64);
        let contents: Vec<&[u8]> = lines.iter().map(|(_, line)| line.as_slice()).collect();
        assert_eq!(contents, [b"a", b"b"]);
    }

    #[test]
    fn the_last_lines_of_raw_bytes_begin_where_they_should() {
        let long = vec![b'x'; 200_000];
        for (content, lines, begins) in [
            (&b""[..], 3, 0),
            (b"a\nb\nc\n", 0, 6),
            (b"a\nb\nc\n", 1, 4),
            (b"a\nb\nc\n", 2, 2),
            (b"a\nb\nc\n", 9, 0),
            (b"a\nb\nc", 1, 4),
            (b"a\nb\n\n", 1, 4),
            (&[b"a\n", long.as_slice()].concat(), 1, 2),
            (&[b"a\n", long.as_slice(), b"\n"].concat(), 1, 2),
            (&[b"a\n", long.as_slice(), b"\n"].concat(), 2, 0),
        ] {
            let end = content.len() as u64;
            assert_eq!(last_lines(&file(content), end, lines).unwrap().0, begins);
        }
    }

    #[test]
    fn the_last_lines_before_a_hole_of_terabytes_are_found_at_once() {
        let file = file(b"a\nb\nc\n");
        let length = 8 << 40;
        file.set_len(length).unwrap();
        file.write_all_at(b"d\n", length).unwrap();
        for (lines, begins) in [(1, 6), (2, 4), (4, 0)] {
            assert_eq!(last_lines(&file, length + 2, lines).unwrap(), (begins, lines));
        }
        file.set_len(length).unwrap();
        for (lines, begins) in [(1, 6), (2, 4), (4, 0)] {
            assert_eq!(last_lines(&file, length, lines).unwrap().0, begins);
        }
    }
}
