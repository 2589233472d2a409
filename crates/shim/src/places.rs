//! All the places to which the output of a process goes, and what of it is on its way.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::time::SystemTime;

use holdfast_state::cri::{Mark, Stream};
use holdfast_state::{LogDriver, LogSpec, time};

use crate::home::Home;
use crate::journald::Journald;
use crate::log_file::LogFile;
use crate::reader::Reader;
use crate::stdio::{Missing, Owner};

/// How much is read at once: what a pipe holds by default.
pub(crate) const READ_SIZE: usize = 64 * 1024;

enum Place {
    File(LogFile),
    Journald(Journald),
    /// The readers of the two streams; standard error has one of its own or none.
    Fifo(Reader, Option<Reader>),
}

impl Place {
    fn open(spec: &LogSpec, home: &Home, owner: Owner, missing: Missing) -> io::Result<Self> {
        Ok(match spec.driver {
            LogDriver::Cri | LogDriver::JsonFile | LogDriver::File | LogDriver::None => {
                Self::File(LogFile::open(spec, home, owner, missing)?)
            }
            LogDriver::Journald => {
                Self::Journald(Journald::open(spec.path.as_deref(), spec.rate, home))
            }
            LogDriver::Fifo => {
                let path = spec.path.as_deref().ok_or(io::ErrorKind::InvalidInput)?;
                let dir = home.open()?;
                let reader =
                    |path, name| Reader::open(path, spec.backpressure, spec.buffered(), &dir, name);
                let stderr = spec.stderr.as_deref().map(|path| reader(path, "stderr.spill"));
                Self::Fifo(reader(path, "stdout.spill")?, stderr.transpose()?)
            }
        })
    }
}

pub(crate) struct Places {
    places: Vec<Place>,
    /// What was read last. There from the first output on until there is none for a while.
    chunk: Box<[u8]>,
}

impl Places {
    /// Opens what there is to open. `None` if output goes nowhere.
    pub(crate) fn open(
        specs: &[LogSpec],
        home: &Home,
        owner: Owner,
        missing: Missing,
    ) -> io::Result<Option<Self>> {
        let mut places = Vec::with_capacity(specs.len());
        for spec in specs.iter().filter(|spec| spec.driver != LogDriver::None) {
            match Place::open(spec, home, owner, missing) {
                Ok(place) => places.push(place),
                Err(error) if missing == Missing::Fails => return Err(error),
                // Read all the same, or the process would wait.
                Err(error) => crate::log::log("error", &format!("output is lost: {error}")),
            }
        }
        let nowhere = specs.iter().all(|spec| spec.driver == LogDriver::None);
        Ok((!nowhere).then_some(Self { places, chunk: Box::default() }))
    }

    /// How many descriptors they may come to need.
    pub(crate) fn most_files(&self) -> u64 {
        let each = |place: &Place| match place {
            Place::File(_) | Place::Journald(_) => 1,
            Place::Fifo(_, stderr) => 2 + 2 * u64::from(stderr.is_some()),
        };
        self.places.iter().map(each).sum()
    }

    /// Whether another can take over without missing anything: a FIFO keeps nothing once we close
    /// it, and of what is missing only we know.
    pub(crate) fn can_move(&self) -> bool {
        self.places.iter().all(|place| match place {
            Place::File(file) => file.is_clean(),
            Place::Journald(journal) => journal.is_clean(),
            Place::Fifo(..) => false,
        })
    }

    /// Makes good what a dead shim left half done.
    pub(crate) fn mend(&mut self) -> io::Result<()> {
        self.files().try_for_each(LogFile::mend)
    }

    /// What was logged of a stream last, where that can be read back.
    pub(crate) fn last_read(&mut self, stream: Stream) -> io::Result<Vec<u8>> {
        self.files().next().map_or(Ok(Vec::new()), |file| file.last_read(stream))
    }

    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.files().try_for_each(LogFile::reopen)
    }

    fn files(&mut self) -> impl Iterator<Item = &mut LogFile> {
        self.places.iter_mut().filter_map(|place| match place {
            Place::File(file) => Some(file),
            Place::Journald(_) | Place::Fifo(..) => None,
        })
    }

    /// Room for what is to be read, so much of it.
    pub(crate) fn room(&mut self, limit: usize) -> &mut [u8] {
        if self.chunk.is_empty() {
            self.chunk = vec![0; READ_SIZE].into_boxed_slice();
        }
        &mut self.chunk[..limit.min(READ_SIZE)]
    }

    /// Whether there is memory to give back.
    pub(crate) fn hold_memory(&self) -> bool {
        !self.chunk.is_empty()
    }

    /// Gives back the memory that only output needs.
    pub(crate) fn rest(&mut self) {
        self.chunk = Box::default();
        for place in &mut self.places {
            match place {
                Place::File(file) => file.rest(),
                Place::Journald(journal) => journal.rest(),
                Place::Fifo(stdout, stderr) => {
                    stdout.rest();
                    if let Some(stderr) = stderr {
                        stderr.rest();
                    }
                }
            }
        }
    }

    /// Reads so much into that room.
    pub(crate) fn read_exact(&mut self, mut from: &File, length: usize) -> io::Result<()> {
        from.read_exact(self.room(length))
    }

    /// Hands what was read to every place.
    pub(crate) fn take(&mut self, stream: Stream, mark: Mark, length: usize) {
        let (stamp, bytes) = (time::format(SystemTime::now()), &self.chunk[..length]);
        for place in &mut self.places {
            match place {
                Place::File(file) => file.take(stream, &stamp, mark, bytes),
                Place::Journald(journal) => journal.take(stream, &stamp, mark, bytes),
                Place::Fifo(_, Some(stderr)) if stream == Stream::Stderr => stderr.take(bytes),
                Place::Fifo(stdout, _) => stdout.take(bytes),
            }
        }
    }

    /// The process has ended: what is to be said of what is missing is said.
    pub(crate) fn finish(&mut self) {
        let stamp = time::format(SystemTime::now());
        for place in &mut self.places {
            match place {
                Place::File(file) => file.finish(&stamp),
                Place::Journald(journal) => journal.finish(),
                Place::Fifo(..) => {}
            }
        }
    }

    fn readers(&self) -> impl Iterator<Item = &Reader> {
        self.places
            .iter()
            .flat_map(|place| match place {
                Place::Fifo(stdout, stderr) => [Some(stdout), stderr.as_ref()],
                Place::File(_) | Place::Journald(_) => [None, None],
            })
            .flatten()
    }

    /// Whether nothing more can be taken at the moment.
    pub(crate) fn are_full(&self) -> bool {
        self.readers().any(Reader::is_full)
    }

    /// Whether readers have got everything.
    pub(crate) fn are_empty(&self) -> bool {
        self.readers().all(Reader::is_empty)
    }

    /// The readers that have yet to take something, to be waited for.
    pub(crate) fn waits_for(&self) -> [Option<BorrowedFd<'_>>; 2] {
        let mut waiting = self.readers().filter_map(Reader::waits_for);
        [waiting.next(), waiting.next()]
    }

    /// Hands on what readers take.
    pub(crate) fn pass(&mut self) {
        for place in &mut self.places {
            if let Place::Fifo(stdout, stderr) = place {
                stdout.pass();
                if let Some(stderr) = stderr {
                    stderr.pass();
                }
            }
        }
    }
}
