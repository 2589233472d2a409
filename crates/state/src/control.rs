//! The control FIFO: one text line a message, three numbers, the seed's format.

use std::fmt;

/// A message to a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// `0 0 0`: close the process's standard input.
    CloseStdin,
    /// `1 W H`: the terminal has this size now.
    Resize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// `2 SIG 0`: send this signal to the process.
    Signal(i32),
    /// `3 0 0`: open the log files anew, by their names. Not the seed's.
    ReopenLogs,
    /// `4 0 0`: the process has ended, and what others still write to its output is not wanted: once readers
    /// have got what waits for them, close what goes to them. Not the seed's.
    EndOutput,
}

/// The longest line that is read as a message. Far below `PIPE_BUF`, so writers never mix.
pub const MAX_LINE: usize = 64;

impl Control {
    /// Reads one line without its line feed. `None` for one that makes no sense, which is logged
    /// and skipped: anyone may write to a FIFO by hand.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut numbers = line.split_ascii_whitespace();
        let mut next = || numbers.next()?.parse::<i32>().ok();
        let message = (next()?, next()?, next()?);
        if numbers.next().is_some() {
            return None;
        }
        match message {
            (0, ..) => Some(Self::CloseStdin),
            (1, width, height) => Some(Self::Resize {
                width: width.try_into().ok()?,
                height: height.try_into().ok()?,
            }),
            (2, signal @ 1..=64, _) => Some(Self::Signal(signal)),
            (3, ..) => Some(Self::ReopenLogs),
            (4, ..) => Some(Self::EndOutput),
            _ => None,
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CloseStdin => writeln!(f, "0 0 0"),
            Self::Resize { width, height } => writeln!(f, "1 {width} {height}"),
            Self::Signal(signal) => writeln!(f, "2 {signal} 0"),
            Self::ReopenLogs => writeln!(f, "3 0 0"),
            Self::EndOutput => writeln!(f, "4 0 0"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_seeds_three_messages_and_two_more() {
        for (text, message) in [
            ("0 0 0", Control::CloseStdin),
            ("1 80 24", Control::Resize { width: 80, height: 24 }),
            ("1 65535 0", Control::Resize { width: u16::MAX, height: 0 }),
            ("2 1 0", Control::Signal(1)),
            ("2 64 0", Control::Signal(64)),
            ("3 0 0", Control::ReopenLogs),
            ("4 0 0", Control::EndOutput),
        ] {
            assert_eq!(Control::parse(text.as_bytes()), Some(message));
            assert_eq!(message.to_string(), format!("{text}\n"));
        }
        for bad in [
            &b""[..],
            b"2",
            b"2 15",
            b"2 15 0 0",
            b"2 0 0",
            b"2 65 0",
            b"2 -9 0",
            b"1 70000 1",
            b"1 1 -1",
            b"5 0 0",
            b"x 1 2",
        ] {
            assert_eq!(Control::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_nothing(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(message) = Control::parse(&line) {
                prop_assert_eq!(Control::parse(message.to_string().as_bytes()), Some(message));
            }
        }
    }
}
