//! Where the files of a log are.
//!
//! A file is known by its device and inode: names change under a reader's eyes. They change upwards
//! only, from each number to the next, and the order of the files stays. So who looks at the names
//! upwards finds each file that stays, and what stands next below a file that has not moved meanwhile is
//! the one that came after it.

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

/// A crash leaves one hole in the numbers. After so many in a row nothing more is looked for.
const MAX_HOLES: u32 = 100;

/// Device and inode. A file that is held keeps its own.
pub(crate) type Identity = (u64, u64);

/// Which log, of which kind.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: Directory,
    pub(crate) name: String,
    pub(crate) format: Format,
    /// How many may have been set aside as `NAME.1`, `NAME.2`, …
    pub(crate) set_aside: u32,
    /// Whether it is the shim that sets them aside.
    pub(crate) rotates: bool,
}

/// What was found of the files of a log.
#[derive(Debug)]
pub(crate) struct Found {
    /// The oldest first.
    pub(crate) files: VecDeque<(File, Identity)>,
    /// Whether we found the file that these are newer than.
    pub(crate) joined: bool,
}

/// A file and where it was found. Held, so that its identity stays its own.
#[derive(Debug)]
struct Numbered {
    file: File,
    id: Identity,
    number: u32,
}

/// What comes after a file.
#[derive(Debug)]
enum Next {
    File(Numbered),
    /// Nothing: it is the newest.
    Nothing,
    /// It has no name any more, so nobody knows.
    Unknown,
}

/// From which side on files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Oldest,
    Newest,
}

impl Place {
    fn name(&self, number: u32) -> String {
        if number == 0 { self.name.clone() } else { logging::set_aside(&self.name, number) }
    }

    /// Which file has this number; 0 is the one that is written.
    pub(crate) fn identity(&self, number: u32) -> io::Result<Option<Identity>> {
        match fstatat(&self.directory, self.name(number).as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some((found.st_dev, found.st_ino))),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the files that are newer than this one, which was last written at that time, or all; up
    /// to so many from that side on. They come the oldest first.
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
        // So many there are at the most at a time; a writer may be quicker than this is.
        for _ in 0..=self.set_aside.saturating_add(1) {
            if from == From::Oldest && files.len() == most {
                break;
            }
            let Next::File(Numbered { file, id, number }) = next else { break };
            next = self.next(id, number)?;
            // Where the one before is gone, there may be others that are older than it was. The one that
            // is written is none of them, whatever the clock says.
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

    /// Finds what comes after a file that has this number or a higher one, and is held.
    fn next(&self, than: Identity, mut number: u32) -> io::Result<Next> {
        // Each further turn means that files were renamed: after some this one has a higher number, and
        // in the end none.
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
            // One between the two may have slipped past, upwards; it can't have gone further than this.
            let between = below.as_ref().map_or(0, |below| below.number + 1)..number;
            if self.are_missing(between)? && self.identity(number)? == Some(than) {
                return Ok(below.map_or(Next::Nothing, Next::File));
            }
        }
    }

    /// Opens the file of the highest number.
    fn oldest(&self) -> io::Result<Option<Numbered>> {
        loop {
            let mut highest = None;
            self.walk(0, |number, _| {
                highest = Some(number);
                false
            })?;
            let Some(highest) = highest else { return Ok(None) };
            let opened = self.open(highest)?;
            // Renamed meanwhile, it has the next number, or was removed.
            let higher = highest.saturating_add(1);
            if opened.is_some() && (highest >= self.set_aside || self.identity(higher)?.is_none()) {
                return Ok(opened);
            }
        }
    }

    /// Shows all files from this number on upwards, until one is the one that was wanted.
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
