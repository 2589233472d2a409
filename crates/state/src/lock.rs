//! The lock of a state root: held by one living process at a time, whose pid it holds.
//!
//! It is a record lock (`F_SETLK`, fcntl_locking(2)): the kernel releases those first when a process
//! dies. A lock by flock(2) goes only when the open file is closed for the last time. That can be
//! long after a SIGKILL: a process that is the last to close a pipe waits for the pipe's own lock,
//! which a container may hold for ever, and a child between fork and exec has all of its parent's
//! descriptors.
//!
//! Two things follow from record locks. They keep processes apart and not the parts of one process,
//! so the roots that this process holds are listed here as well. And a process loses such a lock when
//! it closes any descriptor of the file: nobody else in it may open that.
//!
//! Earlier builds knew flock(2) alone, so that is taken too, and theirs is respected.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use holdfast_sys::proc;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;

use crate::Directory;
use crate::directory::FileId;

/// How long a process that was killed may take to release its lock. It needs one slice of the
/// processor for it.
const DYING: Duration = Duration::from_secs(10);

/// Stands behind the pid where the holder has a record lock.
const RECORD_LOCK: &str = "record-lock";

/// Why a lock could not be taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The process of this number has it, as that wrote it.
    Held(String),
    /// The file can't be locked, read or written.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The lock files that this process has open.
static OPEN: Mutex<Vec<FileId>> = Mutex::new(Vec::new());

fn open_files() -> MutexGuard<'static, Vec<FileId>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock file, locked or about to be. Dropped, it is released.
#[derive(Debug)]
pub(crate) struct Lock {
    /// The one descriptor of it in this process. `None` once that is closed.
    file: Option<File>,
    id: FileId,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closed under the lock of the list, or it could take the lock of whoever opens the file next.
        let mut open = open_files();
        self.file = None;
        open.retain(|id| *id != self.id);
    }
}

/// Takes the lock in `directory` that has this name, and writes our pid into it.
pub(crate) fn take(directory: &Directory, name: &str) -> Result<Lock, Refusal> {
    let mut lock = Lock::open(directory, name)?;
    match lock.record_lock(FcntlArg::F_SETLK) {
        Ok(()) => {}
        Err(Errno::EACCES | Errno::EAGAIN) => {
            let (holder, _) = lock.holder();
            lock = lock.wait_for_the_dying(holder, |lock| {
                lock.record_lock(FcntlArg::F_SETLKW).map_err(io::Error::from)
            })?;
        }
        Err(errno) => return Err(Refusal::Io(errno.into())),
    }
    match lock.file()?.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => match lock.holder() {
            // It had both, and has lost the one that counts.
            (_, Kind::Record) => {}
            (holder, Kind::Flock) => {
                lock = lock.wait_for_the_dying(holder, |lock| lock.file()?.lock())?;
            }
        },
        Err(TryLockError::Error(error)) => return Err(Refusal::Io(error)),
    }
    let mut file = lock.file()?;
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "{} {RECORD_LOCK}", std::process::id())?;
    Ok(lock)
}

/// By which lock a holder keeps others out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Record,
    /// An earlier build's.
    Flock,
}

impl Lock {
    fn open(directory: &Directory, name: &str) -> Result<Self, Refusal> {
        let mut open = open_files();
        // Before it is opened: closing it again would cost this process the lock.
        if directory.file_id(name)?.is_some_and(|id| open.contains(&id)) {
            return Err(Refusal::Held(std::process::id().to_string()));
        }
        let file = directory.open_file(name, OFlag::O_RDWR | OFlag::O_CREAT)?;
        let id = FileId::of(&file)?;
        open.push(id);
        Ok(Self { file: Some(file), id })
    }

    fn file(&self) -> io::Result<&File> {
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn record_lock(&self, how: fn(&'static libc::flock) -> FcntlArg<'static>) -> nix::Result<()> {
        let file = self.file.as_ref().ok_or(Errno::EBADF)?;
        fcntl(file, how(&WHOLE_FILE)).map(drop)
    }

    /// The holder's pid, as the holder wrote it, and its kind of lock.
    fn holder(&self) -> (String, Kind) {
        let mut text = String::new();
        // If it can't be read, all we know is that there is a holder.
        let _ = self.file().and_then(|mut file| {
            file.rewind()?;
            file.take(64).read_to_string(&mut text)
        });
        let mut words = text.split_ascii_whitespace();
        let pid = words.next().unwrap_or_default().to_owned();
        let kind = if words.next() == Some(RECORD_LOCK) { Kind::Record } else { Kind::Flock };
        (pid, kind)
    }

    /// Waits for a lock whose holder has been killed; that of a living one is refused.
    fn wait_for_the_dying(
        self,
        holder: String,
        wait: impl FnOnce(&Self) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, Refusal> {
        if holder.parse().is_ok_and(lives) {
            return Err(Refusal::Held(holder));
        }
        // On a thread of its own, since neither lock knows a deadline. If the lock comes after it,
        // nobody takes it from the channel, and it is released.
        let (give, take) = mpsc::channel();
        std::thread::spawn(move || {
            if wait(&self).is_ok() {
                let _ = give.send(self);
            }
        });
        take.recv_timeout(DYING).map_err(|_| Refusal::Held(holder))
    }
}

// The fields are narrower than the constants for them.
const WRITE: libc::c_short = 1;
const START: libc::c_short = 0;
const _: () = assert!(WRITE as i32 == libc::F_WRLCK && START as i32 == libc::SEEK_SET);

/// A lock for writing, from the first byte to the last.
static WHOLE_FILE: libc::flock =
    libc::flock { l_type: WRITE, l_whence: START, l_start: 0, l_len: 0, l_pid: 0 };

/// Whether a process is neither dead nor dying.
fn lives(pid: i32) -> bool {
    proc::Stat::read(pid).is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
        && !proc::is_being_killed(pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const NAME: &str = "lock";
    /// The pid of no process: Linux gives none above 4194304. A child that has ended would have one
    /// as well, but from its fork to its exec it has copies of the other tests' locks.
    const DEAD: u32 = i32::MAX.cast_unsigned();

    fn scratch() -> (tempfile::TempDir, Directory) {
        let temp = tempfile::tempdir().unwrap();
        let directory = Directory::open(temp.path()).unwrap();
        (temp, directory)
    }

    /// As an earlier build took it.
    fn flock(directory: &Directory, pid: u32) -> File {
        let file = directory.open_file(NAME, OFlag::O_RDWR | OFlag::O_CREAT).unwrap();
        file.try_lock().unwrap();
        file.set_len(0).unwrap();
        write!(&file, "{pid}").unwrap();
        file
    }

    #[test]
    fn the_flock_that_a_dead_process_left_to_a_child_is_waited_for() {
        let (temp, directory) = scratch();
        let left = flock(&directory, DEAD);
        let inode = format!(":{} ", left.metadata().unwrap().ino());
        let taker = std::thread::spawn(move || take(&directory, NAME));
        // Until the kernel shows that someone waits for it.
        let waits = || {
            let locks = std::fs::read_to_string("/proc/locks").unwrap();
            locks.lines().any(|line| line.contains("->") && line.contains(&inode))
        };
        while !waits() {
            assert!(!taker.is_finished(), "{:?}", taker.join());
            std::thread::yield_now();
        }
        drop(left);
        let _lock = taker.join().unwrap().unwrap();
        let text = std::fs::read_to_string(temp.path().join(NAME)).unwrap();
        assert_eq!(text, format!("{} {RECORD_LOCK}", std::process::id()));
    }

    #[test]
    fn the_flock_of_a_dead_process_that_had_a_record_lock_keeps_nobody_out() {
        let (_temp, directory) = scratch();
        let left = flock(&directory, DEAD);
        write!(&left, " {RECORD_LOCK}").unwrap();
        take(&directory, NAME).unwrap();
    }

    #[test]
    fn a_lock_that_a_living_process_holds_is_refused_at_once() {
        let (_temp, directory) = scratch();
        let own = std::process::id().to_string();
        let is_held = || {
            let refusal = take(&directory, NAME).unwrap_err();
            assert!(matches!(&refusal, Refusal::Held(pid) if *pid == own), "{refusal:?}");
        };
        let held = take(&directory, NAME).unwrap();
        is_held();
        // The refusal has not cost the holder its lock. Its own process sees it only in the way of
        // a lock that belongs to an open file.
        let mut seen = WHOLE_FILE;
        fcntl(held.file().unwrap(), FcntlArg::F_OFD_GETLK(&mut seen)).unwrap();
        assert_eq!((seen.l_type, seen.l_pid), (WRITE, std::process::id().cast_signed()));
        drop(held);
        let of_an_earlier_build = flock(&directory, std::process::id());
        is_held();
        drop(of_an_earlier_build);
        take(&directory, NAME).unwrap();
    }
}
