//! The log format of Kubernetes' container runtime interface, one line a piece of output:
//!
//! `2016-10-06T00:17:09.669794202Z stdout P content` and a line feed.
//!
//! Tag `F` ends a line of the container's, `P` says that the line goes on in the next entry of the
//! same stream. So every byte comes back: content, then a line feed exactly where the tag is `F`.

use crate::time::LOCAL_LEN;

/// One of the two output streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// Returns its name, as in logs.
    #[must_use]
    pub const fn name(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }

    /// Returns the stream with this name.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        [Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.name() == name)
    }
}

/// Where an entry of a log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mark {
    /// The container wrote it.
    #[default]
    Plain,
    /// The container wrote it, and it may be in the log twice: a shim that died had read it, and its
    /// successor cannot know whether it was written.
    Again,
    /// Holdfast wrote it: a notice that output was dropped.
    Notice,
}

impl Mark {
    /// Returns its name, which follows the colon of the tag.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Again => "again",
            Self::Notice => "notice",
        }
    }

    /// The mark of this name; an unknown one says nothing.
    #[must_use]
    pub fn named(name: &[u8]) -> Self {
        let known = [Self::Again, Self::Notice].into_iter();
        known.into_iter().find(|mark| mark.name().as_bytes() == name).unwrap_or_default()
    }
}

/// The pieces of what was read from a stream: each ends with a line feed, but for the last perhaps.
pub fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |place| place + 1);
        let (piece, rest) = bytes.split_at(end);
        bytes = rest;
        Some(piece)
    })
}

/// Appends the entry of one piece. The time is in UTC or in local time.
pub fn encode<const LEN: usize>(
    stream: Stream,
    time: &[u8; LEN],
    mark: Mark,
    piece: &[u8],
    out: &mut Vec<u8>,
) {
    const { assert!(LEN <= LOCAL_LEN) };
    let prefix_len = const { LEN + BETWEEN };
    let (tag, content) = match piece {
        [content @ .., b'\n'] => (b'F', content),
        content => (b'P', content),
    };
    // One reservation, so that the copies below are nothing but copies.
    out.reserve(prefix_len + Mark::Notice.name().len() + 1 + content.len() + 1);
    let mut prefix = [b' '; LOCAL_LEN + BETWEEN];
    let prefix = &mut prefix[..prefix_len];
    prefix[..LEN].copy_from_slice(time);
    prefix[LEN + 1..LEN + 7].copy_from_slice(stream.name());
    prefix[prefix_len - 2] = tag;
    match mark {
        Mark::Plain => out.extend_from_slice(prefix),
        marked => {
            out.extend_from_slice(&prefix[..prefix_len - 1]);
            out.push(b':');
            out.extend_from_slice(marked.name().as_bytes());
            out.push(b' ');
        }
    }
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// What stands between time and content: a blank, then stream and tag, each followed by a blank.
const BETWEEN: usize = 1 + 6 + 1 + 1 + 1;

/// One entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// When the shim read it.
    pub time: &'a str,
    /// Where the container wrote it.
    pub stream: Stream,
    /// The bytes, without the line feed that ended them.
    pub content: &'a [u8],
    /// Whether a line feed ended them.
    pub full: bool,
    /// What more is said of them.
    pub mark: Mark,
}

impl Entry<'_> {
    /// The bytes as they were written, with the line feed that ended them if one did.
    #[must_use]
    pub fn written(&self) -> Vec<u8> {
        let end: &[u8] = if self.full { b"\n" } else { b"" };
        [self.content, end].concat()
    }
}

/// Reads one line of a log, without its line feed. `None` for one that is no entry.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |&b| b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = Stream::named(fields.next()?)?;
    // Tags may be followed by further ones after a colon.
    let mut tags = fields.next()?.split(|&b| b == b':');
    let full = match tags.next()?.first()? {
        b'F' => true,
        b'P' => false,
        _ => return None,
    };
    let mark = tags.next().map(Mark::named).unwrap_or_default();
    Some(Entry { time, stream, content: fields.next()?, full, mark })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(stream: Stream, chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut log = Vec::new();
        for chunk in chunks {
            let time = crate::time::format(std::time::SystemTime::now());
            for piece in pieces(chunk) {
                encode(stream, &time, Mark::Plain, piece, &mut log);
            }
        }
        log
    }

    #[test]
    fn an_entry_looks_as_kubernetes_expects() {
        let mut log = Vec::new();
        let time = crate::time::format(std::time::UNIX_EPOCH);
        for piece in pieces(b"a b\nc") {
            encode(Stream::Stderr, &time, Mark::Plain, piece, &mut log);
        }
        encode(Stream::Stdout, &time, Mark::Again, b"d\n", &mut log);
        assert_eq!(
            String::from_utf8(log).unwrap(),
            "1970-01-01T00:00:00.000000000Z stderr F a b\n1970-01-01T00:00:00.000000000Z stderr P c\n1970-01-01T00:00:00.000000000Z stdout F:again d\n"
        );
    }

    #[test]
    fn marks_are_read_back_and_unknown_ones_passed_over() {
        let mark = |line: &str| decode(line.as_bytes()).unwrap().mark;
        assert_eq!(mark("t stdout F:again x"), Mark::Again);
        assert_eq!(mark("t stdout P:notice x"), Mark::Notice);
        assert_eq!(mark("t stdout F:odd x"), Mark::Plain);
    }

    #[test]
    fn an_entry_may_have_local_time() {
        let mut log = Vec::new();
        let time = crate::time::format_local(std::time::UNIX_EPOCH, 3600);
        encode(Stream::Stdout, &time, Mark::Plain, b"x\n", &mut log);
        assert_eq!(log, b"1970-01-01T01:00:00.000000000+01:00 stdout F x\n");
        assert_eq!(decode(log.trim_ascii_end()).unwrap().content, b"x");
    }

    proptest! {
        #[test]
        fn every_byte_comes_back(chunks in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![Just(b'\n'), Just(b' '), any::<u8>()], 0..40), 0..8))
        {
            let log = encoded(Stream::Stdout, &chunks);
            let mut out = Vec::new();
            for line in log.split_inclusive(|&b| b == b'\n') {
                let entry = decode(line.strip_suffix(b"\n").unwrap()).unwrap();
                out.extend_from_slice(&entry.written());
            }
            prop_assert_eq!(out, chunks.concat());
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&line);
        }
    }

    #[test]
    fn room_is_made_once_for_the_longest_entry() {
        let time = crate::time::format(std::time::UNIX_EPOCH);
        for content in [&b""[..], b"x", &[b'x'; 5000]] {
            let mut log = Vec::new();
            encode(Stream::Stdout, &time, Mark::Notice, &[content, b"\n"].concat(), &mut log);
            assert_eq!(log.capacity(), log.len());
        }
    }

    #[test]
    fn a_line_that_lacks_something_is_no_entry() {
        for line in
            ["", "t", "t stdout", "t stdout F", "t stdin F x", "t stdout  x", "t stdout G x"]
        {
            assert_eq!(decode(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(decode(b"\xff stdout F x"), None);
        let entry = decode(b"t stderr P ").unwrap();
        assert_eq!((entry.time, entry.stream, entry.written()), ("t", Stream::Stderr, vec![]));
    }
}
