//! Where the files of a log are.
//!
//! A file is known by its device and inode: names change under a reader's eyes. All names are
//! looked at upwards, the way the files are renamed, so that none slips past.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use holdfast_state::{Directory, logging};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::fstatat;

use crate::log_entries::Format;

/// A crash leaves one hole in the numbers. After so many in a row nothing more is looked for.
const MAX_HOLES: u32 = 100;
/// How often the names are looked at anew because they changed meanwhile.
const SCANS: u32 = 100;

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
    /// Whether the one was found than which they are newer.
    pub(crate) joined: bool,
}

/// The newest file at the beginning of a scan. It is held, or its inode could be that of a later one
/// at the scan's end.
#[derive(Debug)]
struct First {
    number: u32,
    id: Identity,
    _held: File,
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

    /// Opens the files that are newer than this one, or all, up to so many from that side on. They
    /// come the oldest first.
    pub(crate) fn newer(
        &self,
        than: Option<Identity>,
        most: usize,
        from: From,
    ) -> io::Result<Found> {
        let mut scans = 0;
        loop {
            let (found, first) = self.scan(than, most, from)?;
            scans += 1;
            // Where the newest has moved, others may stand in a wrong order.
            let is_sound = match &first {
                Some(first) => {
                    self.identity(first.number)? == Some(first.id)
                        && (first.number == 0 || self.identity(0)?.is_none())
                }
                None => true,
            };
            if is_sound || scans == SCANS {
                return Ok(found);
            }
        }
    }

    fn scan(
        &self,
        than: Option<Identity>,
        most: usize,
        from: From,
    ) -> io::Result<(Found, Option<First>)> {
        let mut files: VecDeque<(File, Identity)> = VecDeque::new();
        let (mut first, mut joined, mut holes) = (None, false, 0);
        for number in 0..=self.set_aside {
            let file = match self.directory.open_file(&self.name(number), OFlag::O_RDONLY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    holes += 1;
                    if holes > MAX_HOLES {
                        break;
                    }
                    continue;
                }
                other => other?,
            };
            holes = 0;
            let metadata = file.metadata()?;
            let id = (metadata.dev(), metadata.ino());
            if first.is_none() {
                first = Some(First { number, id, _held: file.try_clone()? });
            }
            if Some(id) == than {
                joined = true;
                break;
            }
            // One that was renamed between two looks is seen twice.
            if files.front().is_some_and(|(_, last)| *last == id) {
                continue;
            }
            if files.len() == most && from == From::Newest {
                break;
            }
            files.push_front((file, id));
            files.truncate(most);
        }
        Ok((Found { files, joined }, first))
    }
}
