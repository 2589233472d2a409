//! What stands at the end of a log, read from there backwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How much is read at once.
const BLOCK: u64 = 128 * 1024;
/// How far from the end of a log is looked: further than what is read at once reaches in any format. That
/// is a line feed a line, each of which is an entry of some 100 bytes.
pub(super) const LIMIT: u64 = 8 * 1024 * 1024;

/// The lines of a file, the last one first.
pub(super) struct Backwards {
    file: File,
    /// What was read and not returned, and where it begins.
    held: Vec<u8>,
    at: u64,
    /// How much more may be read.
    pub(super) left: u64,
}

impl Backwards {
    /// Of at most so much of it.
    pub(super) fn of(file: File, limit: u64) -> io::Result<Self> {
        let at = file.metadata()?.len();
        Ok(Self { file, held: Vec::new(), at, left: limit })
    }

    /// The next line without its line feed. The first one is what stands behind the last line feed:
    /// nothing, or an entry that was not finished. `None` at the beginning of the file, or where no
    /// more of it is looked at.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut unseen = self.held.len();
        loop {
            if let Some(place) = memchr::memrchr(b'\n', &self.held[..unseen]) {
                let line = self.held.split_off(place + 1);
                self.held.pop();
                return Ok(Some(line));
            }
            let length = BLOCK.min(self.at).min(self.left);
            if length == 0 {
                // The first line of the file has nothing before it.
                let is_first = self.at == 0 && !self.held.is_empty();
                return Ok(is_first.then(|| std::mem::take(&mut self.held)));
            }
            self.at -= length;
            self.left -= length;
            unseen = usize::try_from(length).unwrap_or(0);
            let mut block = vec![0; unseen];
            self.file.read_exact_at(&mut block, self.at)?;
            block.extend_from_slice(&self.held);
            self.held = block;
        }
    }
}

/// What was entered of a stream last, at one time.
#[derive(Debug, Default)]
pub(super) struct Last {
    pub(super) bytes: Vec<u8>,
    /// Its beginning may not be there any more: it was rotated away.
    pub(super) is_cut: bool,
}

impl Last {
    /// From its pieces, the last one first.
    pub(super) fn of(pieces: Vec<Vec<u8>>, is_cut: bool) -> Self {
        let bytes = pieces.into_iter().rev().flatten().collect();
        Self { bytes, is_cut }
    }

    /// Where it ends in what is in the pipe now; 0 if it is not there. Perhaps more is in there than was
    /// entered, perhaps it has been taken out.
    pub(super) fn end_in(&self, pipe: &[u8]) -> usize {
        let start = match pipe.starts_with(&self.bytes) {
            false if self.is_cut => memchr::memmem::find(pipe, &self.bytes),
            starts => starts.then_some(0),
        };
        start.map_or(0, |start| start + self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_from_the_last_to_the_first_over_many_blocks() {
        let long = "x".repeat(300_000);
        let all: Vec<String> = (0..30_000).map(|number| number.to_string()).collect();
        let lines = [&all[..10], &[long], &all, &[String::new()]].concat();
        let temp = tempfile::tempdir().unwrap();
        for torn in ["", "torn"] {
            let path = temp.path().join("log");
            std::fs::write(&path, lines.join("\n") + "\n" + torn).unwrap();
            let mut backwards = Backwards::of(File::open(&path).unwrap(), LIMIT).unwrap();
            let mut found = Vec::new();
            while let Some(line) = backwards.next().unwrap() {
                found.push(String::from_utf8(line).unwrap());
            }
            assert_eq!(found.remove(0), torn);
            found.reverse();
            assert_eq!(found, lines);
        }
    }

    #[test]
    fn a_file_that_is_empty_or_has_no_line_feed_is_read_to_its_end() {
        let temp = tempfile::tempdir().unwrap();
        for (content, first) in [("", None), ("a", Some("a")), ("\n", Some(""))] {
            let path = temp.path().join("log");
            std::fs::write(&path, content).unwrap();
            let mut backwards = Backwards::of(File::open(&path).unwrap(), LIMIT).unwrap();
            let line = backwards.next().unwrap();
            assert_eq!(line.as_deref(), first.map(str::as_bytes), "{content:?}");
            assert_eq!(backwards.next().unwrap(), None);
        }
    }

    #[test]
    fn what_was_cut_at_its_beginning_is_found_within_the_pipe() {
        let last = |bytes: &str, is_cut| Last { bytes: bytes.into(), is_cut };
        assert_eq!(last("abc", false).end_in(b"abcdef"), 3);
        assert_eq!(last("bc", false).end_in(b"abcdef"), 0);
        assert_eq!(last("bc", true).end_in(b"abcdef"), 3);
        assert_eq!(last("x", true).end_in(b"abcdef"), 0);
        assert_eq!(last("", false).end_in(b"abc"), 0);
    }
}
