//! The directory of a process, by its path: who keeps it open for each of many has none left.

use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;

use holdfast_state::directory::FileId;
use holdfast_state::process_dir::{CONTROL, EXIT};
use holdfast_state::{Directory, ProcessDir};

/// Where a process's files are, as long as they are that process's: its container may have been
/// deleted, and another have been given its name.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    path: Rc<Path>,
    /// The FIFOs that we hold, so that nothing else can be the same file.
    fifos: [FileId; 2],
}

impl Home {
    /// `dir` is what has this path now; it must be the one from which `exit` comes.
    pub(crate) fn new(dir: &ProcessDir, exit: &File, control: &File) -> io::Result<Self> {
        let home =
            Self { path: dir.path().into(), fifos: [FileId::of(exit)?, FileId::of(control)?] };
        home.verify(dir)?;
        Ok(home)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// [`io::ErrorKind::NotFound`] if it was deleted, whatever has its name by now.
    pub(crate) fn open(&self) -> io::Result<ProcessDir> {
        let dir = ProcessDir::open(&self.path)?;
        self.verify(&dir)?;
        Ok(dir)
    }

    /// Either FIFO will do: somebody may have damaged the other.
    fn verify(&self, dir: &ProcessDir) -> io::Result<()> {
        for (name, held) in [EXIT, CONTROL].into_iter().zip(self.fifos) {
            if dir.directory().file_id(name)? == Some(held) {
                return Ok(());
            }
        }
        let text = format!("{}: another directory by now", self.path.display());
        Err(io::Error::new(io::ErrorKind::NotFound, text))
    }
}

/// The directory of a log.
#[derive(Debug)]
pub(crate) enum Parent {
    /// The process's own.
    Home(Home),
    /// One of the caller's.
    Path(Box<Path>),
}

impl Parent {
    pub(crate) fn open(&self) -> io::Result<Directory> {
        match self {
            Self::Home(home) => home.open().map(ProcessDir::into_directory),
            Self::Path(path) => Directory::open(path),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The home of a process in this directory, with new FIFOs if it has none.
    pub(crate) fn home(path: &Path) -> Home {
        std::fs::create_dir_all(path).unwrap();
        let dir = ProcessDir::open(path).unwrap();
        let fifo = |name| {
            if !dir.directory().contains(name).unwrap() {
                dir.directory().make_fifo(name).unwrap();
            }
            File::options().read(true).write(true).open(path.join(name)).unwrap()
        };
        Home::new(&dir, &fifo(EXIT), &fifo(CONTROL)).unwrap()
    }
}
