//! Docker's json-file format: `{"log":"text\n","stream":"stdout","time":"…"}` and a line feed.
//!
//! The text ends in a line feed exactly where the container wrote one. Bytes that are no UTF-8 can't
//! stand in JSON: then the text has U+FFFD in their places, and a fourth field, `"bytes"`, has all
//! of the piece in hexadecimal, which [`decode`] prefers.

use std::borrow::Cow;

use serde::Deserialize;

use crate::cri::{Mark, Stream};

/// Appends the entry of one piece: what was read of a line, with its line feed if that was there.
pub fn encode<const LEN: usize>(
    stream: Stream,
    time: &[u8; LEN],
    mark: Mark,
    piece: &[u8],
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(b"{\"log\":\"");
    let text = std::str::from_utf8(piece);
    match text {
        Ok(_) => escape(piece, out),
        Err(_) => escape(String::from_utf8_lossy(piece).as_bytes(), out),
    }
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.name());
    if text.is_err() {
        out.extend_from_slice(b"\",\"bytes\":\"");
        for byte in piece {
            out.extend([hex(byte >> 4), hex(byte & 15)]);
        }
    }
    if mark != Mark::Plain {
        out.extend_from_slice(b"\",\"mark\":\"");
        out.extend_from_slice(mark.name().as_bytes());
    }
    out.extend_from_slice(b"\",\"time\":\"");
    out.extend_from_slice(time);
    out.extend_from_slice(b"\"}\n");
}

fn hex(digit: u8) -> u8 {
    b"0123456789abcdef"[usize::from(digit & 15)]
}

/// The text as it stands between the quotation marks of a JSON string.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    let special = |&b: &u8| b < 0x20 || b == b'"' || b == b'\\';
    // Most lines have nothing special but their end. Looked at without a way out in the middle, many
    // bytes are looked at together.
    if let [line @ .., b'\n'] = text
        && !line.iter().fold(false, |any, byte| any | special(byte))
    {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\\n");
        return;
    }
    let mut rest = text;
    while let Some(place) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..place]);
        let escaped = match rest[place] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            byte @ (b'"' | b'\\') => byte,
            byte => {
                out.extend_from_slice(b"\\u00");
                out.extend([hex(byte >> 4), hex(byte)]);
                rest = &rest[place + 1..];
                continue;
            }
        };
        out.extend([b'\\', escaped]);
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When the shim read it.
    pub time: String,
    /// Where the container wrote it.
    pub stream: Stream,
    /// The bytes, with the line feed that ended them if one did.
    pub content: Vec<u8>,
    /// What more is said of them.
    pub mark: Mark,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow, default)]
    bytes: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    mark: Cow<'a, str>,
}

/// Reads one line of a log, without its line feed. `None` for one that is no entry.
#[must_use]
pub fn decode(line: &[u8]) -> Option<Entry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let stream = Stream::named(line.stream.as_bytes())?;
    let content = match line.bytes {
        Some(bytes) => unhex(bytes.as_bytes())?,
        None => line.log.into_owned().into_bytes(),
    };
    let mark = Mark::named(line.mark.as_bytes());
    Some(Entry { time: line.time.into_owned(), stream, content, mark })
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(piece: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(
            Stream::Stderr,
            &crate::time::format(std::time::UNIX_EPOCH),
            Mark::Plain,
            piece,
            &mut out,
        );
        out
    }

    #[test]
    fn an_entry_looks_as_docker_writes_it() {
        assert_eq!(
            String::from_utf8(encoded(b"a \"b\"\t\x01\n")).unwrap(),
            "{\"log\":\"a \\\"b\\\"\\t\\u0001\\n\",\"stream\":\"stderr\",\"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"
        );
    }

    proptest! {
        #[test]
        fn every_byte_comes_back(piece in proptest::collection::vec(
            prop_oneof![Just(b'"'), Just(b'\\'), 0u8..32, 32u8..127, any::<u8>()], 0..60))
        {
            let line = encoded(&piece);
            prop_assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok());
            let entry = decode(line.strip_suffix(b"\n").unwrap()).unwrap();
            prop_assert_eq!((entry.content, entry.stream), (piece, Stream::Stderr));
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&line);
        }
    }

    #[test]
    fn what_is_no_utf8_is_there_in_hexadecimal_too() {
        assert_eq!(
            String::from_utf8(encoded(b"a\xfe\n")).unwrap(),
            "{\"log\":\"a\u{fffd}\\n\",\"stream\":\"stderr\",\"bytes\":\"61fe0a\",\"time\":\"1970-01-01T00:00:00.000000000Z\"}\n"
        );
    }

    #[test]
    fn a_mark_is_read_back() {
        for mark in [Mark::Plain, Mark::Again, Mark::Notice] {
            let mut line = Vec::new();
            let time = crate::time::format(std::time::UNIX_EPOCH);
            encode(Stream::Stdout, &time, mark, b"x\xff\n", &mut line);
            let entry = decode(line.trim_ascii_end()).unwrap();
            assert_eq!((entry.mark, entry.content), (mark, b"x\xff\n".to_vec()));
            assert_eq!(String::from_utf8(line).unwrap().contains("mark"), mark != Mark::Plain);
        }
    }

    #[test]
    fn bytes_that_are_no_hexadecimal_are_no_entry() {
        let content = |bytes: &str| {
            let line = format!(r#"{{"log":"l","stream":"stdout","bytes":"{bytes}","time":"t"}}"#);
            decode(line.as_bytes()).map(|entry| entry.content)
        };
        assert_eq!(content("00fFA9"), Some(vec![0, 0xff, 0xa9]));
        assert_eq!(content(""), Some(vec![]));
        for bad in ["0", "000", "0g", "g0", "é"] {
            assert_eq!(content(bad), None, "{bad}");
        }
    }
}
