//! Where the files of a log are.
//!
//! A file is known by its device and inode: names change under a reader's eyes. All names are
//! looked at upwards, the way the files are renamed, so that none slips past.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use holdfast_state::Directory;
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

/// From which side on files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Oldest,
    Newest,
}

impl Place {
    fn name(&self, number: u32) -> String {
        if number == 0 { self.name.clone() } else { format!("{}.{number}", self.name) }
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
    /// come the oldest first. Tells, too, whether this one was found.
    pub(crate) fn newer(
        &self,
        than: Option<Identity>,
        most: usize,
        from: From,
    ) -> io::Result<(Vec<(File, Identity)>, bool)> {
        let mut scans = 0;
        loop {
            let before = self.identity(0)?;
            let (mut found, joined) = self.scan(than)?;
            let surplus = found.len().saturating_sub(most);
            match from {
                From::Oldest => found.drain(most.min(found.len())..),
                From::Newest => found.drain(..surplus),
            };
            let wanted = found.len();
            let opened = self.open_all(found)?;
            scans += 1;
            // Otherwise they were renamed meanwhile: if twice, they stand in a wrong order.
            let is_sound = opened.len() == wanted && self.identity(0)? == before;
            if is_sound || scans == SCANS {
                return Ok((opened, joined));
            }
        }
    }

    /// The numbers of the files that are newer than this one, the oldest first.
    fn scan(&self, than: Option<Identity>) -> io::Result<(Vec<(u32, Identity)>, bool)> {
        let mut found: Vec<(u32, Identity)> = Vec::new();
        let (mut holes, mut joined) = (0, false);
        for number in 0..=self.set_aside {
            let Some(id) = self.identity(number)? else {
                holes += 1;
                if holes > MAX_HOLES {
                    break;
                }
                continue;
            };
            holes = 0;
            if Some(id) == than {
                joined = true;
                break;
            }
            found.push((number, id));
        }
        found.reverse();
        // One that was renamed between two looks was seen twice.
        found.dedup_by_key(|(_, id)| *id);
        Ok((found, joined))
    }

    /// Opens them up to the first that has another number by now.
    fn open_all(&self, found: Vec<(u32, Identity)>) -> io::Result<Vec<(File, Identity)>> {
        let mut opened = Vec::new();
        for (number, expected) in found {
            let file = match self.directory.open_file(&self.name(number), OFlag::O_RDONLY) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            };
            let metadata = file.metadata()?;
            if (metadata.dev(), metadata.ino()) != expected {
                break;
            }
            opened.push((file, expected));
        }
        Ok(opened)
    }
}
