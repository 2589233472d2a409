//! The messages of the FIFOs `ctl` and `winsz`: numbers, one line each.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use crate::report;

/// The longest line, in bytes.
const MAX_LINE: usize = 199;
/// The largest number of rows or columns.
const MAX_SIZE: i64 = 1000;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    Resize { rows: u16, columns: u16 },
    ReopenLogs,
}

impl Message {
    /// Parses a line of `ctl`: `1 ROWS COLUMNS` or `2 0 0`.
    pub(crate) fn of_ctl(line: &[u8]) -> Option<Self> {
        let [kind, rows, columns] = numbers(line)?;
        let resize = resize([rows, columns])?;
        match kind {
            1 => Some(resize),
            2 => Some(Self::ReopenLogs),
            _ => None,
        }
    }

    /// Parses a line of `winsz`: `ROWS COLUMNS`.
    pub(crate) fn of_winsz(line: &[u8]) -> Option<Self> {
        resize(numbers(line)?)
    }
}

fn resize(size: [i64; 2]) -> Option<Message> {
    let [rows, columns] =
        size.map(|size| u16::try_from(size).ok().filter(|size| i64::from(*size) <= MAX_SIZE));
    Some(Message::Resize { rows: rows?, columns: columns? })
}

/// Parses the first numbers of a line, as `%d` of scanf(3) does. The rest of the line is ignored.
fn numbers<const COUNT: usize>(line: &[u8]) -> Option<[i64; COUNT]> {
    let (mut rest, mut numbers) = (line, [0; COUNT]);
    for number in &mut numbers {
        rest = rest.trim_ascii_start();
        let sign = usize::from(matches!(rest.first(), Some(b'+' | b'-')));
        let digits = rest[sign..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (text, behind) = rest.split_at(sign + digits);
        *number = std::str::from_utf8(text).ok()?.parse().ok()?;
        rest = behind;
    }
    Some(numbers)
}

/// Reads lines from a FIFO, in whatever pieces they arrive.
pub(crate) struct Lines {
    fifo: File,
    line: Vec<u8>,
}

impl Lines {
    /// Takes a FIFO that is open for reading and writing, with `O_NONBLOCK`.
    pub(crate) fn new(fifo: File) -> Self {
        Self { fifo, line: Vec::new() }
    }

    /// Reads all there is and returns the messages. A line that is no message is reported.
    pub(crate) fn read(&mut self, parse: fn(&[u8]) -> Option<Message>) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut chunk = [0; 512];
        while let Ok(length @ 1..) = self.fifo.read(&mut chunk) {
            for &byte in &chunk[..length] {
                if byte != b'\n' {
                    // One byte more than a line may have marks it as too long to be one.
                    if self.line.len() <= MAX_LINE {
                        self.line.push(byte);
                    }
                    continue;
                }
                match parse(&self.line) {
                    Some(message) if self.line.len() <= MAX_LINE => messages.push(message),
                    _ => {
                        let line = String::from_utf8_lossy(&self.line);
                        report::warn(&format!("not a control message: {line:?}"));
                    }
                }
                self.line.clear();
            }
        }
        messages
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    #[test]
    fn a_message_is_read_as_conmon_reads_it() {
        let resize = |rows, columns| Some(Message::Resize { rows, columns });
        for (line, message) in [
            ("1 2 3", resize(2, 3)),
            ("1 0010 0020", resize(10, 20)),
            ("1 1000 1000", resize(1000, 1000)),
            (" 1\t2 2 3", resize(2, 2)),
            ("2 0 0", Some(Message::ReopenLogs)),
            ("2 1 1", Some(Message::ReopenLogs)),
            ("1 -1 -1", None),
            ("1 2", None),
            ("1", None),
            ("", None),
            ("foo", None),
            ("999 2 2", None),
            ("1 10.5 20.3", None),
            ("1 0x10 0x20", None),
            ("1 1001 1000", None),
            ("1 1000 1001", None),
            ("1 100000 100000", None),
            ("1 99999999999999999999 1", None),
        ] {
            assert_eq!(Message::of_ctl(line.as_bytes()), message, "{line}");
        }
        assert_eq!(Message::of_winsz(b"24 80"), resize(24, 80));
        assert_eq!(Message::of_winsz(b"24"), None);
    }

    #[test]
    fn lines_come_whole_and_one_that_is_too_long_is_none() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        holdfast_shim::engine::set_nonblocking(&reader).unwrap();
        let mut lines = Lines::new(std::os::fd::OwnedFd::from(reader).into());
        let mut read = |text: &str| {
            writer.write_all(text.as_bytes()).unwrap();
            lines.read(Message::of_ctl)
        };
        assert_eq!(read("1 2"), []);
        assert_eq!(
            read("4 80\n2 0 0\n1 "),
            [Message::Resize { rows: 24, columns: 80 }, Message::ReopenLogs]
        );
        assert_eq!(read(&format!("1 1 {}\n", "#".repeat(9000))), []);
        assert_eq!(read("2 0 0\n"), [Message::ReopenLogs]);
    }

    proptest! {
        #[test]
        fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::of_ctl(&line);
        }
    }
}
