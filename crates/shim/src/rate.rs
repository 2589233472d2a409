//! How many lines a second go into a log; the rest is dropped and counted.

use holdfast_state::cri::Stream;
use holdfast_state::time::TEXT_LEN;

/// The first so many letters of a time are its second.
const SECOND: usize = "2016-10-06T00:17:09".len();

pub(crate) struct Rate {
    lines: u32,
    /// The second that is being counted.
    second: [u8; SECOND],
    admitted: u32,
    dropped: u64,
    /// Of each stream: whether the line that goes on is let through, or dropped; `None` between lines.
    line: [Option<bool>; 2],
}

impl Rate {
    pub(crate) fn new(lines: u32) -> Self {
        Self { lines, second: [0; SECOND], admitted: 0, dropped: 0, line: [None; 2] }
    }

    /// Whether a piece goes into the log: what holds for the beginning of a line holds for all of it.
    pub(crate) fn admits(&mut self, stream: Stream, piece: &[u8], stamp: &[u8; TEXT_LEN]) -> bool {
        if self.second != stamp[..SECOND] {
            self.second.copy_from_slice(&stamp[..SECOND]);
            self.admitted = 0;
        }
        let admitted = self.line[stream as usize].unwrap_or_else(|| {
            let admitted = self.admitted < self.lines;
            self.admitted += u32::from(admitted);
            self.dropped += u64::from(!admitted);
            admitted
        });
        self.line[stream as usize] = (!piece.ends_with(b"\n")).then_some(admitted);
        admitted
    }

    /// Whether nothing was dropped that has not been told.
    pub(crate) fn is_clean(&self) -> bool {
        self.dropped == 0
    }

    /// What was dropped in a second that is over.
    pub(crate) fn notice(&mut self, stamp: &[u8; TEXT_LEN]) -> Option<String> {
        if self.second == stamp[..SECOND] { None } else { self.last_notice() }
    }

    /// What was dropped and has not been told.
    pub(crate) fn last_notice(&mut self) -> Option<String> {
        let (dropped, lines) = (std::mem::take(&mut self.dropped), self.lines);
        let text =
            || format!("[holdfast: {dropped} lines dropped, of more than {lines} a second]\n");
        (dropped > 0).then(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn lines_beyond_the_rate_are_dropped_whole_and_counted() {
        let at = |second| holdfast_state::time::format(UNIX_EPOCH + Duration::from_secs(second));
        let mut rate = Rate::new(2);
        assert!(rate.admits(Stream::Stdout, b"a", &at(1)));
        assert!(rate.admits(Stream::Stderr, b"b\n", &at(1)));
        assert!(!rate.admits(Stream::Stderr, b"c", &at(1)));
        // The rest of a line goes the way of its beginning, in the next second too.
        assert!(rate.admits(Stream::Stdout, b"a\n", &at(1)));
        assert_eq!(rate.notice(&at(1)), None);
        assert!(rate.notice(&at(2)).is_some_and(|notice| notice.contains("1 lines dropped")));
        assert!(!rate.admits(Stream::Stderr, b"c\n", &at(2)));
        assert!(rate.admits(Stream::Stderr, b"d\n", &at(2)));
        assert_eq!(rate.last_notice(), None);
    }
}
