//! Holes of a file: ranges that were never written. They read as zeros and take no space on the
//! disk. A container that writes its own log can create a hole of many tebibytes with one
//! ftruncate(2).

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Whether a file has data or a hole at some offset, and where that ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stretch {
    Data { end: u64 },
    Hole { end: u64 },
}

/// Returns whether a file of this length has data or a hole at `offset`, which must be below the
/// length. On a file system that does not support SEEK_DATA, everything counts as data.
pub(crate) fn stretch(file: &File, offset: u64, length: u64) -> io::Result<Stretch> {
    Ok(match seek(file, offset, Whence::SeekData)? {
        Found::At(data) if data > offset => Stretch::Hole { end: data.min(length) },
        Found::Nothing => Stretch::Hole { end: length },
        Found::Unknown => Stretch::Data { end: length },
        Found::At(_) => match seek(file, offset, Whence::SeekHole)? {
            Found::At(hole) if hole > offset => Stretch::Data { end: hole },
            _ => Stretch::Data { end: length },
        },
    })
}

/// Returns the offset at which the hole begins that covers `from` to `end`, or `None` if there is
/// data between the two.
pub(crate) fn begin_of_hole(file: &File, from: u64, end: u64) -> io::Result<Option<u64>> {
    let is_hole = |from| {
        Ok::<_, io::Error>(match seek(file, from, Whence::SeekData)? {
            Found::At(data) => data >= end,
            Found::Nothing => true,
            Found::Unknown => false,
        })
    };
    if !is_hole(from)? {
        return Ok(None);
    }
    // No system call searches backwards, so this is a binary search. It works because every offset
    // between one in the hole and `end` is in the hole as well.
    let (mut low, mut high) = (0, from);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_hole(middle)? {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    Ok(Some(high))
}

enum Found {
    At(u64),
    Nothing,
    Unknown,
}

fn seek(file: &File, offset: u64, whence: Whence) -> io::Result<Found> {
    let Ok(offset) = i64::try_from(offset) else { return Ok(Found::Unknown) };
    match lseek(file, offset, whence) {
        Ok(place) => Ok(u64::try_from(place).map_or(Found::Unknown, Found::At)),
        Err(Errno::ENXIO) => Ok(Found::Nothing),
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(Found::Unknown),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_taken_apart_into_data_and_holes() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[b'a'; 4096], 0).unwrap();
        file.write_all_at(&[b'b'; 8192], 5 * MIB).unwrap();
        let length = 8 << 40;
        file.set_len(length).unwrap();
        let (first, second) = (4096, 5 * MIB + 8192);
        let at = |offset| stretch(&file, offset, length).unwrap();
        assert_eq!(at(0), Stretch::Data { end: first });
        assert_eq!(at(4000), Stretch::Data { end: first });
        assert_eq!(at(first), Stretch::Hole { end: 5 * MIB });
        assert_eq!(at(MIB + 1), Stretch::Hole { end: 5 * MIB });
        assert_eq!(at(5 * MIB), Stretch::Data { end: second });
        assert_eq!(at(second), Stretch::Hole { end: length });
        assert_eq!(at(length - 1), Stretch::Hole { end: length });

        let begin = |from, end| begin_of_hole(&file, from, end).unwrap();
        assert_eq!(begin(length - MIB, length), Some(second));
        assert_eq!(begin(second, length), Some(second));
        assert_eq!(begin(second - 1, length), None);
        assert_eq!(begin(2 * MIB, 3 * MIB), Some(first));
        assert_eq!(begin(0, 5 * MIB), None);
    }
}
