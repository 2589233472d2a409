//! Finds the files of a log, whose names may change during the search.
//!
//! A file is identified by its device and inode. Names change upwards only, from each number to the
//! next, and the order of the files stays the same. So a search from low to high numbers finds
//! every file that is not removed, and the file directly below one that has not moved during the
//! search is its successor.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use holdfast_state::{Directory, logging};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;

use crate::log::entries::Format;

/// More numbers without a file in a row than this end the search. A crash leaves one such hole.
const MAX_HOLES: u32 = 100;

/// The device and inode of a file. No other file can get them while the file is held open.
pub(crate) type Identity = (u64, u64);

/// The location and the kind of a log.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: Directory,
    pub(crate) name: String,
    pub(crate) format: Format,
    /// How many rotated files there can be: `NAME.1`, `NAME.2`, …
    pub(crate) set_aside: u32,
    /// Whether the shim rotates the log. If not, somebody else may.
    pub(crate) rotates: bool,
}

/// The files of a log that a search found.
#[derive(Debug)]
pub(crate) struct Found {
    /// The files, the oldest first.
    pub(crate) files: VecDeque<(File, Identity)>,
    /// Whether we found the file that these are newer than.
    pub(crate) joined: bool,
}

/// A file and the number under which it was found. It is held open, so that no other file can get
/// its identity.
#[derive(Debug)]
struct Numbered {
    file: File,
    id: Identity,
    number: u32,
}

/// The successor of a file.
#[derive(Debug)]
enum Next {
    File(Numbered),
    /// There is none: the file is the newest one.
    Nothing,
    /// The file has no name any more, so its successor can't be determined.
    Unknown,
}

/// The end of the log from which files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Oldest,
    Newest,
}

impl Place {
    fn name(&self, number: u32) -> String {
        if number == 0 { self.name.clone() } else { logging::set_aside(&self.name, number) }
    }

    /// Returns the identity of the file with this number; 0 is the file that is being written.
    pub(crate) fn identity(&self, number: u32) -> io::Result<Option<Identity>> {
        match fstatat(&self.directory, self.name(number).as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some((found.st_dev, found.st_ino))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the files that are newer than `than`, which is given with the time of its last write,
    /// or all files. Returns at most `most` of them, counted from the end `from`. The oldest comes
    /// first.
    pub(crate) fn newer(
        &self,
        than: Option<(Identity, SystemTime)>,
        most: usize,
        from: From,
    ) -> io::Result<Found> {
        let mut files = VecDeque::new();
        let mut next = match than {
            Some((id, _)) => self.next(id, 0)?,
            None => Next::Unknown,
        };
        let joined = !matches!(next, Next::Unknown);
        if !joined {
            next = self.oldest()?.map_or(Next::Nothing, Next::File);
        }
        // There are at most this many files at a time. The bound ends the loop if the writer
        // rotates faster than this follows.
        for _ in 0..=self.set_aside.saturating_add(1) {
            if from == From::Oldest && files.len() == most {
                break;
            }
            let Next::File(Numbered { file, id, number }) = next else { break };
            next = self.next(id, number)?;
            // If `than` was not found, some of these files may be older than it was. The file that
            // is being written (number 0) is never older, whatever its modification time says.
            let is_older = match than {
                Some((_, written)) if !joined && number > 0 => {
                    file.metadata()?.modified()? < written
                }
                _ => false,
            };
            if !is_older {
                files.push_back((file, id));
            }
            if files.len() > most {
                files.pop_front();
            }
        }
        Ok(Found { files, joined })
    }

    /// Finds the successor of the file `than`, which has this number or a higher one. The caller
    /// holds that file open.
    fn next(&self, than: Identity, mut number: u32) -> io::Result<Next> {
        // Each further iteration means that files were renamed. Some of these renames give `than` a
        // higher number, and in the end it has no name, so the loop ends.
        loop {
            let mut found = None;
            self.walk(number, |number, id| {
                found = Some(number).filter(|_| id == than);
                found.is_some()
            })?;
            let Some(found) = found else { return Ok(Next::Unknown) };
            number = found;
            let mut below = None;
            for lower in (0..number).rev() {
                below = self.open(lower)?;
                if below.is_some() {
                    break;
                }
            }
            // A file between the two may have passed this search, which goes downwards while names
            // change upwards. It has then a number below that of `than`, which it can't pass.
            let between = below.as_ref().map_or(0, |below| below.number + 1)..number;
            if self.are_missing(between)? && self.identity(number)? == Some(than) {
                return Ok(below.map_or(Next::Nothing, Next::File));
            }
        }
    }

    /// Opens the file with the highest number.
    fn oldest(&self) -> io::Result<Option<Numbered>> {
        loop {
            let mut highest = None;
            self.walk(0, |number, _| {
                highest = Some(number);
                false
            })?;
            let Some(highest) = highest else { return Ok(None) };
            let opened = self.open(highest)?;
            // If the file was renamed meanwhile, it has the next number, or it was removed.
            let higher = highest.saturating_add(1);
            if opened.is_some() && (highest >= self.set_aside || self.identity(higher)?.is_none()) {
                return Ok(opened);
            }
        }
    }

    /// Calls `see` with each file, from this number upwards, until it returns true.
    fn walk(&self, from: u32, mut see: impl FnMut(u32, Identity) -> bool) -> io::Result<()> {
        let mut holes = 0;
        for number in from..=self.set_aside {
            match self.identity(number)? {
                Some(id) if see(number, id) => break,
                Some(_) => holes = 0,
                None => holes += 1,
            }
            if holes > MAX_HOLES {
                break;
            }
        }
        Ok(())
    }

    fn are_missing(&self, mut numbers: std::ops::Range<u32>) -> io::Result<bool> {
        numbers.try_fold(true, |all, number| Ok(all && self.identity(number)?.is_none()))
    }

    fn open(&self, number: u32) -> io::Result<Option<Numbered>> {
        match self.directory.open_file(&self.name(number), OFlag::O_RDONLY) {
            Ok(file) => {
                let metadata = file.metadata()?;
                Ok(Some(Numbered { id: (metadata.dev(), metadata.ino()), file, number }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
