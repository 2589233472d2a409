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

    /// The files from the newest on, to the one before this, and whether this was found.
    pub(crate) fn scan(
        &self,
        until: Option<Identity>,
    ) -> io::Result<(Vec<(File, Identity)>, bool)> {
        let mut scans = 0;
        loop {
            let before = self.identity(0)?;
            let scanned = self.scan_once(until)?;
            scans += 1;
            // Otherwise they may have been renamed twice meanwhile, and stand in a wrong order.
            if self.identity(0)? == before || scans == SCANS {
                return Ok(scanned);
            }
        }
    }

    fn scan_once(&self, until: Option<Identity>) -> io::Result<(Vec<(File, Identity)>, bool)> {
        let mut found: Vec<(File, Identity)> = Vec::new();
        let mut holes = 0;
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
            if Some(id) == until {
                return Ok((found, true));
            }
            // One that was renamed between two looks is seen twice.
            if found.iter().all(|(_, known)| *known != id) {
                found.push((file, id));
            }
        }
        Ok((found, false))
    }
}
