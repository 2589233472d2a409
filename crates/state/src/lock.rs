//! The lock of a state root: held by one living process at a time, whose pid it holds.
//!
//! The kernel gives a lock free when the last descriptor of its open file is closed. A process that
//! is killed while it starts another one leaves descriptors to that for a moment: between fork and
//! exec a child has all of its parent's. So a lock that a dead process holds is waited for.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::mpsc;
use std::time::Duration;

use holdfast_sys::proc::Stat;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long a child of the dead may take to exec. It needs one slice of the processor for it.
const INHERITED: Duration = Duration::from_secs(10);

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

/// Takes the lock and writes our pid into it.
pub(crate) fn take(file: File) -> Result<Flock<File>, Refusal> {
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let holder = text.trim().to_owned();
            if holder.parse().is_ok_and(lives) {
                return Err(Refusal::Held(holder));
            }
            wait_for(file).ok_or(Refusal::Held(holder))?
        }
        Err((_, errno)) => return Err(Refusal::Io(errno.into())),
    };
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// Waits on a thread of its own, since flock(2) knows no deadline. Should the lock come after that,
/// nobody takes it from the channel, and it is given free.
fn wait_for(file: File) -> Option<Flock<File>> {
    let (give, take) = mpsc::channel();
    std::thread::spawn(move || {
        if let Ok(lock) = Flock::lock(file, FlockArg::LockExclusive) {
            let _ = give.send(lock);
        }
    });
    take.recv_timeout(INHERITED).ok()
}

/// A zombie does not: it holds nothing any more.
fn lives(pid: i32) -> bool {
    Stat::read(pid).is_ok_and(|stat| !matches!(stat.state, b'Z' | b'X'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    #[test]
    fn a_lock_that_a_dead_process_left_to_a_child_is_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let mut left =
            Flock::lock(open(&path), FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).unwrap();
        write!(left, "{}", dead.id()).unwrap();

        let second = open(&path);
        let inode = format!(":{} ", second.metadata().unwrap().ino());
        let taker = std::thread::spawn(move || take(second));
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
        drop(taker.join().unwrap().unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), std::process::id().to_string());
    }

    #[test]
    fn a_lock_that_a_living_process_holds_is_refused_at_once() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("lock");
        let _held = take(open(&path)).unwrap();
        let refusal = take(open(&path)).unwrap_err();
        let own = std::process::id().to_string();
        assert!(matches!(&refusal, Refusal::Held(pid) if *pid == own), "{refusal:?}");
    }
}
