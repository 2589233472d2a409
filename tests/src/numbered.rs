//! Output whose every byte says where it belongs: lines of 80 bytes, each with its number.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// The length of a line, its line feed included.
pub const LINE: usize = 80;

/// A line of the output.
#[must_use]
pub fn line(number: u64) -> Vec<u8> {
    format!("{number:09} {:.<69}\n", "").into_bytes()
}

/// So many lines.
#[must_use]
pub fn lines(count: u64) -> Vec<u8> {
    (0..count).flat_map(line).collect()
}

/// Writes so many lines, some hundreds at once, and returns the longest that a write took.
pub fn write(count: u64, to: &mut impl Write) -> io::Result<Duration> {
    let mut longest = Duration::ZERO;
    for first in (0..count).step_by(700) {
        let chunk: Vec<u8> = (first..count.min(first + 700)).flat_map(line).collect();
        let began = Instant::now();
        to.write_all(&chunk)?;
        longest = longest.max(began.elapsed());
    }
    Ok(longest)
}

/// Follows output that is read back in pieces.
#[derive(Debug, Default)]
pub struct Follower {
    at: u64,
    furthest: u64,
    /// Bytes that were there more than once.
    pub repeated: u64,
}

impl Follower {
    /// Takes the next piece. One that is marked as perhaps a repetition may begin up to so much
    /// before.
    pub fn take(&mut self, piece: &[u8], again: bool) -> Result<(), String> {
        let is_at = |place: u64| piece == expected(place, piece.len());
        if again && !is_at(self.at) {
            let earliest = self.at.saturating_sub(64 * 1024);
            let place = (earliest..self.at).rev().find(|place| is_at(*place));
            self.at = place.ok_or_else(|| format!("a repetition of nothing at {}", self.at))?;
        }
        if !is_at(self.at) {
            let text = String::from_utf8_lossy(&piece[..piece.len().min(100)]).into_owned();
            return Err(format!("at byte {}: {text:?}", self.at));
        }
        self.at += piece.len() as u64;
        self.repeated +=
            piece.len() as u64 - self.at.saturating_sub(self.furthest).min(piece.len() as u64);
        self.furthest = self.furthest.max(self.at);
        Ok(())
    }

    /// How many bytes have come.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.at
    }
}

/// So many bytes of the output from a place on.
fn expected(place: u64, length: usize) -> Vec<u8> {
    let size = LINE as u64;
    let skipped = usize::try_from(place % size).unwrap_or(0);
    let count = ((skipped + length) / LINE + 1) as u64;
    let mut bytes: Vec<u8> = (place / size..place / size + count).flat_map(line).collect();
    bytes.drain(..skipped);
    bytes.truncate(length);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_as_long_as_it_says() {
        assert_eq!(line(7).len(), LINE);
    }

    #[test]
    fn it_finds_what_is_missing_repeated_and_in_the_wrong_place() {
        let all = lines(10);
        let mut follower = Follower::default();
        follower.take(&all[..100], false).unwrap();
        assert!(follower.take(&all[101..200], false).is_err());
        assert!(follower.take(&all[50..100], false).is_err());
        follower.take(&all[50..100], true).unwrap();
        follower.take(&all[100..], false).unwrap();
        assert_eq!((follower.bytes(), follower.repeated), (800, 50));
    }
}
