//! The log format of Kubernetes' container runtime interface, one line a piece of output:
//!
//! `2016-10-06T00:17:09.669794202Z stdout P content` and a line feed.
//!
//! Tag `F` ends a line of the container's, `P` says that the line goes on in the next entry of the
//! same stream. So every byte comes back: content, then a line feed exactly where the tag is `F`.

use crate::time::TEXT_LEN;

/// One of the two output streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    const fn name(self) -> &'static [u8; 6] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// What stands before the content: time, stream, tag, each followed by a blank.
pub const PREFIX_LEN: usize = TEXT_LEN + 1 + 6 + 1 + 1 + 1;

/// Splits `bytes` read from a stream into entries and hands each to `sink` as its prefix, its
/// content and the final line feed. Allocates nothing.
pub fn encode<E>(
    stream: Stream,
    time: [u8; TEXT_LEN],
    bytes: &[u8],
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut prefix = [b' '; PREFIX_LEN];
    prefix[..TEXT_LEN].copy_from_slice(&time);
    prefix[TEXT_LEN + 1..TEXT_LEN + 7].copy_from_slice(stream.name());
    for piece in bytes.split_inclusive(|&b| b == b'\n') {
        let (tag, content) = match piece {
            [content @ .., b'\n'] => (b'F', content),
            content => (b'P', content),
        };
        prefix[PREFIX_LEN - 2] = tag;
        sink(&prefix)?;
        sink(content)?;
        sink(b"\n")?;
    }
    Ok(())
}

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
}

/// Reads one line of a log, without its line feed. `None` for one that is no entry.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |&b| b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = match fields.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Tags may be followed by further ones after a colon.
    let full = match fields.next()?.first()? {
        b'F' => true,
        b'P' => false,
        _ => return None,
    };
    Some(Entry { time, stream, content: fields.next()?, full })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(stream: Stream, chunks: &[Vec<u8>]) -> Vec<u8> {
        let mut log = Vec::new();
        for chunk in chunks {
            let time = crate::time::format(std::time::SystemTime::now());
            encode(stream, time, chunk, |part| {
                log.extend_from_slice(part);
                Ok::<(), ()>(())
            })
            .unwrap();
        }
        log
    }

    #[test]
    fn an_entry_looks_as_kubernetes_expects() {
        let mut log = Vec::new();
        let time = crate::time::format(std::time::UNIX_EPOCH);
        encode(Stream::Stderr, time, b"a b\nc", |part| {
            log.extend_from_slice(part);
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!(
            String::from_utf8(log).unwrap(),
            "1970-01-01T00:00:00.000000000Z stderr F a b\n1970-01-01T00:00:00.000000000Z stderr P c\n"
        );
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
                out.extend_from_slice(entry.content);
                if entry.full {
                    out.push(b'\n');
                }
            }
            prop_assert_eq!(out, chunks.concat());
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&line);
        }
    }
}
