//! Whatever a process may do to its standard descriptors, by any way it has to what they refer to: its own
//! numbers, copies of them, and what it opens by `/proc/self/fd`.
//!
//! What an act comes to is nobody's concern here: an attacker does not mind what fails. But it touches pipes
//! only: a standard descriptor may be the host's `/dev/null`. And it must still end as it was told: no
//! signal that it gets by its own doing ends it, and nothing that it waits for is waited for by
//! the thread that exits.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;
use std::time::Duration;

use nix::fcntl::{
    FallocateFlags, FcntlArg, Flock, FlockArg, OFlag, SpliceFFlags, fallocate, fcntl, splice, tee,
    vmsplice,
};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::unistd::{
    Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, ftruncate, pipe2, read, write,
};

/// How many acts there are between two pauses.
const ACTS: u64 = 16;
/// How many threads may wait at the same time: one that reads what another has taken already waits until
/// something is written.
const WAITERS: usize = 3;
/// How long a pipe is locked, at the most. The shim, and all containers that share it, wait for so long.
const LOCKED: u64 = 20;
/// Signals that an O_ASYNC descriptor is made to send.
const SIGNALS: [Signal; 3] = [Signal::SIGIO, Signal::SIGURG, Signal::SIGWINCH];

/// fcntl(2), where libc does not have it.
const F_SETSIG: i32 = 10;

/// Starts a thread that misbehaves as long as this process lives. It pauses after every few acts.
///
/// # Errors
///
/// If no standard descriptor is a pipe.
pub(crate) fn begin(seed: u64, pause: Duration) -> io::Result<()> {
    // Before there is another thread, all of which inherit this.
    SIGNALS.into_iter().collect::<SigSet>().thread_block()?;
    let mut attacker = Attacker::new(seed)?;
    Builder::new().spawn(move || {
        loop {
            (0..ACTS).for_each(|_| attacker.act());
            std::thread::sleep(pause);
        }
    })?;
    Ok(())
}

/// Numbers that look random and are the same for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn yes(&mut self) -> bool {
        self.below(2) == 0
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }
}

/// One standard descriptor that is a pipe.
struct Target {
    number: i32,
    /// The pipe, by what keeps it neither readable nor writable (`O_PATH`).
    handle: OwnedFd,
    /// A copy of the descriptor; `None` while it is closed.
    copy: Option<OwnedFd>,
}

impl Target {
    fn of(number: i32) -> io::Result<Option<Self>> {
        let copy = super::standard(number)?;
        if fstat(&copy)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFIFO.bits() {
            return Ok(None);
        }
        let by_name = File::options().read(true).custom_flags(libc::O_PATH).open(path_of(&copy))?;
        Ok(Some(Self { number, handle: by_name.into(), copy: Some(copy) }))
    }

    /// The same pipe once more, by another description. Never waits for the other side.
    fn open(&self, reads: bool, writes: bool, flags: OFlag) -> Option<OwnedFd> {
        let flags = (flags | OFlag::O_NONBLOCK).bits();
        let mut options = File::options();
        options.read(reads).write(writes).custom_flags(flags);
        options.open(path_of(&self.handle)).ok().map(OwnedFd::from)
    }

    /// Puts this in the descriptor's place.
    fn replace(&self, by: &impl AsFd) {
        let _ = match self.number {
            0 => dup2_stdin(by),
            1 => dup2_stdout(by),
            _ => dup2_stderr(by),
        };
    }
}

fn path_of(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

struct Attacker {
    dice: Dice,
    targets: Vec<Target>,
    /// A pipe of its own, both ends.
    own: (OwnedFd, OwnedFd),
    /// Further descriptors of the pipes, opened in every mode.
    copies: Vec<OwnedFd>,
    page: Vec<u8>,
    waiters: Arc<AtomicUsize>,
}

impl Attacker {
    fn new(seed: u64) -> io::Result<Self> {
        let mut targets = Vec::new();
        for number in 0..3 {
            targets.extend(Target::of(number)?);
        }
        if targets.is_empty() {
            return Err(io::Error::other("no standard descriptor is a pipe"));
        }
        Ok(Self {
            dice: Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            targets,
            own: pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?,
            copies: Vec::new(),
            page: vec![b'p'; 8192],
            waiters: Arc::default(),
        })
    }

    fn act(&mut self) {
        let number = self.dice.index(self.targets.len());
        // One of them most of the time, and else one that was opened in whatever mode.
        let target = match &self.targets[number].copy {
            Some(copy) if self.copies.is_empty() || self.dice.below(4) != 0 => copy.try_clone(),
            _ => match self.copies.get(self.dice.index(self.copies.len().max(1))) {
                Some(copy) => copy.try_clone(),
                None => return self.reopen(number),
            },
        };
        let Ok(fd) = target else { return };
        match self.dice.below(60) {
            0..=14 => self.write(&fd),
            15..=21 => self.take(number, &fd),
            22..=25 => self.peek(&fd),
            26..=29 => self.move_pages(&fd),
            30..=33 => self.give_a_page(&fd),
            34..=36 => self.resize(&fd),
            37..=40 => self.change_flags(&fd),
            41..=43 => self.change_inode(&fd),
            44 => self.fill(number),
            45..=50 => self.open_another(number),
            51..=53 => self.copies.truncate(self.dice.index(8)),
            54 => self.let_go_and_come_back(number),
            55..=58 => self.lock_file(fd),
            // A long time, compared to all the others.
            _ if self.dice.below(8) == 0 => self.lock_pipe(&fd),
            _ => self.ask_for_signals(&fd),
        }
    }

    fn write(&mut self, fd: &OwnedFd) {
        let line = format!("{}\n", "x".repeat(self.dice.index(3000)));
        write_now(fd, line.as_bytes());
    }

    /// Reads, as `cat <&1` does.
    fn take(&mut self, number: usize, fd: &OwnedFd) {
        let mut buffer = vec![0; self.dice.index(8192)];
        if self.dice.below(20) > 0 {
            if let Some(own) = self.targets[number].open(true, false, OFlag::empty()) {
                let _ = read(own, &mut buffer);
            }
            return;
        }
        if let Ok(fd) = fd.try_clone() {
            self.wait_elsewhere(move || _ = read(fd, &mut buffer));
        }
    }

    /// Does what may wait for ever.
    fn wait_elsewhere(&self, act: impl FnOnce() + Send + 'static) {
        let waiters = &self.waiters;
        if waiters.fetch_add(1, Ordering::Relaxed) >= WAITERS {
            waiters.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let counted = self.waiters.clone();
        let begun = Builder::new().spawn(move || {
            act();
            counted.fetch_sub(1, Ordering::Relaxed);
        });
        if begun.is_err() {
            waiters.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn peek(&mut self, fd: &OwnedFd) {
        if self.dice.yes() {
            let _ = holdfast_sys::fd::readable_bytes(fd);
        } else {
            let _ = tee(fd, &self.own.1, 65536, SpliceFFlags::SPLICE_F_NONBLOCK);
        }
    }

    /// Takes pages out of the pipe, or puts those that it has taken in again.
    fn move_pages(&mut self, fd: &OwnedFd) {
        let (reader, writer) = &self.own;
        let now = SpliceFFlags::SPLICE_F_NONBLOCK;
        let _ = if self.dice.yes() {
            splice(fd, None, writer, None, 65536, now)
        } else {
            splice(reader, None, fd, None, 65536, now)
        };
    }

    /// Gives the pipe a page, and changes that page afterwards.
    fn give_a_page(&mut self, fd: &OwnedFd) {
        let now = SpliceFFlags::SPLICE_F_NONBLOCK;
        let flags = if self.dice.yes() { now | SpliceFFlags::SPLICE_F_GIFT } else { now };
        let _ = vmsplice(fd, &[IoSlice::new(&self.page)], flags);
        self.page.fill(b"pq\n"[self.dice.index(3)]);
    }

    fn resize(&mut self, fd: &OwnedFd) {
        let _ = fcntl(fd, FcntlArg::F_SETPIPE_SZ(4096 << self.dice.below(9)));
    }

    fn change_flags(&mut self, fd: &OwnedFd) {
        let some = [OFlag::O_NONBLOCK, OFlag::O_DIRECT, OFlag::O_ASYNC, OFlag::O_APPEND];
        let flags = some.into_iter().filter(|_| self.dice.yes()).collect();
        let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
    }

    fn change_inode(&mut self, fd: &OwnedFd) {
        let some = u32::try_from(self.dice.below(0o10000)).unwrap_or_default();
        match self.dice.below(6) {
            0 => _ = fchmod(fd, Mode::from_bits_truncate(some)),
            // One who is not root can't open it again otherwise.
            1 | 4 => _ = fchmod(fd, Mode::from_bits_truncate(0o777)),
            2 => _ = fchown(fd, Some(Uid::from_raw(some)), Some(Gid::from_raw(some))),
            3 => _ = ftruncate(fd, i64::from(some) << 30),
            _ => _ = fallocate(fd, FallocateFlags::empty(), 0, 1 << 30),
        }
    }

    /// Writes until it takes no more.
    fn fill(&mut self, number: usize) {
        let Some(own) = self.targets[number].open(false, true, OFlag::empty()) else { return };
        let line = format!("{}\n", "f".repeat(4095));
        // A shim that keeps up must not keep this at it.
        for _ in 0..64 {
            if write(&own, line.as_bytes()).is_err() {
                break;
            }
        }
    }

    fn open_another(&mut self, number: usize) {
        let (reads, writes) = (self.dice.yes(), self.dice.yes());
        let flags = [OFlag::O_DIRECT, OFlag::O_TRUNC, OFlag::O_ASYNC];
        let flags = flags.into_iter().filter(|_| self.dice.below(4) == 0).collect();
        self.copies.extend(self.targets[number].open(reads, writes, flags));
    }

    /// Closes all that it has of a pipe, and opens it again after a while.
    fn let_go_and_come_back(&mut self, number: usize) {
        let target = &mut self.targets[number];
        if let Some(copy) = target.copy.take() {
            let _ = fchmod(copy, Mode::from_bits_truncate(0o777));
        }
        target.replace(&self.own.1);
        self.copies.clear();
        std::thread::sleep(Duration::from_micros(self.dice.below(3000)));
        self.reopen(number);
    }

    /// The standard descriptor again, in a mode that may not be the one that it had.
    fn reopen(&mut self, number: usize) {
        let (reads, writes) = [(true, true), (false, true), (true, false)][self.dice.index(3)];
        let target = &mut self.targets[number];
        target.copy = target.open(reads, writes, OFlag::empty());
        if let Some(copy) = &target.copy {
            target.replace(copy);
        }
    }

    /// Locks of files, which a pipe has as well, and what only other files have.
    fn lock_file(&mut self, fd: OwnedFd) {
        match self.dice.below(4) {
            0 => {
                let _ = Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock);
            }
            1 => {
                let lock = libc::flock {
                    // F_WRLCK and SEEK_SET, which are of another type.
                    l_type: 1,
                    l_whence: 0,
                    l_start: 0,
                    l_len: 0,
                    l_pid: 0,
                };
                let _ = fcntl(&fd, FcntlArg::F_OFD_SETLK(&lock));
            }
            2 => set(&fd, libc::F_SETLEASE, libc::F_WRLCK),
            _ => set(&fd, libc::F_NOTIFY, 0x8000_003f_u32.cast_signed()),
        }
    }

    /// Keeps the pipe's lock for a while: splice(2) holds it while it waits for a socket that says nothing.
    fn lock_pipe(&mut self, fd: &OwnedFd) {
        let length = Duration::from_millis(self.dice.below(LOCKED));
        let (Ok((silent, other)), Ok(fd)) = (UnixStream::pair(), fd.try_clone()) else { return };
        self.wait_elsewhere(move || {
            let _ = splice(&silent, None, &fd, None, 4096, SpliceFFlags::empty());
        });
        std::thread::sleep(length);
        drop(other);
    }

    /// Has itself sent a signal, which it has blocked, whenever something is read or written.
    fn ask_for_signals(&mut self, fd: &OwnedFd) {
        set(fd, F_SETSIG, SIGNALS[self.dice.index(SIGNALS.len())] as i32);
        set(fd, libc::F_SETOWN, std::process::id().cast_signed());
        let _ = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_ASYNC));
    }
}

/// An fcntl(2) that nix does not have.
#[expect(unsafe_code, reason = "only this program uses these calls, so crates/sys does without")]
fn set(fd: &OwnedFd, command: i32, value: i32) {
    // SAFETY: the descriptor is open, and the commands that are passed here take an integer.
    let _ = unsafe { libc::fcntl(fd.as_raw_fd(), command, value) };
}

/// Waits for nobody: its shim may have to wait for us.
fn write_now(fd: &OwnedFd, bytes: &[u8]) {
    let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut set, PollTimeout::ZERO).is_ok_and(|count| count > 0) {
        let _ = write(fd, &bytes[..bytes.len().min(4096)]);
    }
}
