//! How many lines a second go into a log; the rest is dropped and counted.

use holdfast_state::cri::{self, Stream};

use super::{Chunk, Stamp};

/// The first so many letters of a time are its second.
const SECOND: usize = "2016-10-06T00:17:09".len();

#[derive(Default)]
pub(super) struct Rate {
    /// Without a limit each line is let through.
    lines: Option<u32>,
    /// The second that is being counted.
    second: [u8; SECOND],
    admitted: u32,
    dropped: u64,
    /// Of each stream: whether the line that goes on is let through, or dropped; `None` between lines.
    line: [Option<bool>; 2],
}

impl Rate {
    pub(super) fn new(lines: Option<u32>) -> Self {
        Self { lines, ..Self::default() }
    }

    /// Cuts a chunk into lines, hands on those that are let through, and says between them what was
    /// dropped.
    pub(super) fn each_line(&mut self, chunk: Chunk<'_>, mut enter: impl FnMut(Chunk<'_>)) {
        for bytes in cri::pieces(chunk.bytes) {
            if self.lines.is_some() {
                if self.second != chunk.stamp[..SECOND] {
                    self.tell(chunk.stamp, &mut enter);
                    self.second.copy_from_slice(&chunk.stamp[..SECOND]);
                    self.admitted = 0;
                }
                if !self.admits(chunk.stream, bytes) {
                    continue;
                }
            }
            enter(Chunk { bytes, ..chunk });
        }
    }

    /// Whether a piece goes into the log: what holds for the beginning of a line holds for all of it.
    fn admits(&mut self, stream: Stream, piece: &[u8]) -> bool {
        let admitted = self.line[stream as usize].unwrap_or_else(|| {
            let admitted = self.lines.is_none_or(|lines| self.admitted < lines);
            self.admitted += u32::from(admitted);
            self.dropped += u64::from(!admitted);
            admitted
        });
        self.line[stream as usize] = (!piece.ends_with(b"\n")).then_some(admitted);
        admitted
    }

    /// Whether nothing was dropped that has not been told.
    pub(super) fn is_clean(&self) -> bool {
        self.dropped == 0
    }

    /// Says what was dropped and has not been told.
    pub(super) fn tell(&mut self, stamp: &Stamp, mut enter: impl FnMut(Chunk<'_>)) {
        if let (dropped @ 1.., Some(lines)) = (std::mem::take(&mut self.dropped), self.lines) {
            let text =
                format!("[holdfast: {dropped} lines dropped, of more than {lines} a second]\n");
            enter(Chunk::notice(stamp, &text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_state::cri::Mark;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn lines_beyond_the_rate_are_dropped_whole_and_counted() {
        let at = |second| {
            Stamp::Utc(holdfast_state::time::format(UNIX_EPOCH + Duration::from_secs(second)))
        };
        let mut rate = Rate::new(Some(2));
        let mut through = |stream, text: &str, second| {
            let (mut entered, stamp) = (Vec::new(), at(second));
            let chunk = Chunk { stream, mark: Mark::Plain, stamp: &stamp, bytes: text.as_bytes() };
            rate.each_line(chunk, |chunk| {
                entered.push(String::from_utf8(chunk.bytes.to_vec()).unwrap());
            });
            entered
        };
        assert_eq!(through(Stream::Stdout, "a", 1), ["a"]);
        assert_eq!(through(Stream::Stderr, "b\nc", 1), ["b\n"]);
        // The rest of a line goes the way of its beginning, in the next second too.
        assert_eq!(through(Stream::Stdout, "a\n", 1), ["a\n"]);
        let notice = "[holdfast: 1 lines dropped, of more than 2 a second]\n";
        assert_eq!(through(Stream::Stderr, "c\nd\n", 2), [notice, "d\n"]);
        assert!(rate.is_clean());
    }
}
