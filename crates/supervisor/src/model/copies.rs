//! Copies of the descriptors from which a shim reads, for the shim that adopts the process when
//! this one dies. They are held from the moment there is a process, and again after a restart of
//! the supervisor: a pipe keeps its content as long as anyone holds a descriptor of it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use holdfast_state::announce::{ShimFd, StdioFds};
use holdfast_state::handoff::FdName;
use holdfast_state::{ProcessRecord, ShimRecord};
use holdfast_sys::PidFd;
use holdfast_sys::fd::Identity;
use holdfast_sys::proc::{Stat, is_being_killed};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{EBADF, ESRCH};
use nix::sys::stat::{SFlag, fstat};

use crate::model::identity::Handle;
use crate::model::keeper::Kept;
use crate::os::closer::Closer;

/// Copies of the descriptors from which a shim reads. They share the shim's open file descriptions
/// and are never opened anew: opening a pipe waits for its lock, which a container may hold for
/// ever. Closing can wait for the same lock, so a [closer](crate::os::closer) closes them.
#[derive(Debug)]
pub(crate) struct Copies {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    closer: Arc<Closer>,
}

impl Copies {
    fn none(closer: &Arc<Closer>) -> Self {
        Self { stdout: None, stderr: None, terminal: None, closer: closer.clone() }
    }

    /// Copies the descriptors of a shim with pidfd_getfd(2), and returns whether these are all. The
    /// shim takes no part in this; it may even be stopped. If it is being killed, some may be
    /// missing. The others are good: they may be all that keeps the content of a pipe.
    fn of_shim(shim: &ShimRecord, closer: &Arc<Closer>) -> io::Result<(Self, bool)> {
        let StdioFds { stdout, stderr, terminal } = shim.stdio;
        let mut copies = Self::none(closer);
        if shim.stdio.all().next().is_none() {
            return Ok((copies, true));
        }
        let held = PidFd::open(shim.pid)?;
        // The start time identifies the shim. It was read after the pidfd was opened, so it is that
        // of the process behind the pidfd only if this process is still alive.
        if Stat::read(shim.pid)?.start_time != shim.start_time || !held.is_alive() {
            return Err(io::Error::other("the shim is gone"));
        }
        // The pipe of this number may have ended and been closed, and the number been used again
        // for another file.
        let copy = |fd: Option<ShimFd>, pipe: Option<OFlag>| match fd {
            Some(fd) => copy(&held, fd, pipe, closer),
            None => Ok(None),
        };
        // One that cannot be copied does not take the others along.
        let mut failed = None;
        let mut or_none = |copied: io::Result<Option<OwnedFd>>| {
            copied.unwrap_or_else(|error| {
                failed = Some(error);
                None
            })
        };
        copies.stdout = or_none(copy(stdout, Some(OFlag::O_RDONLY)));
        copies.stderr = or_none(copy(stderr, Some(OFlag::O_RDONLY)));
        copies.terminal = or_none(copy(terminal, None));
        // A pipe that has ended is closed, so it is missing here; that is no error. But a shim that
        // is being killed closes all its descriptors a moment before its pidfd reports its death.
        let all = copies.all().count() == shim.stdio.all().count();
        match failed {
            Some(error) if copies.all().next().is_none() => Err(error),
            failed => {
                let gone = || is_being_killed(shim.pid) || !held.is_alive();
                Ok((copies, failed.is_none() && (all || !gone())))
            }
        }
    }

    /// Copies the descriptors of a shim. If there is none, or it is being killed, `of_process` returns those
    /// of the process itself, which replace what is missing.
    pub(crate) fn of_shim_or(
        shim: Option<&ShimRecord>,
        closer: &Arc<Closer>,
        of_process: impl FnOnce() -> Option<Self>,
    ) -> Option<Self> {
        let of_shim = match shim.map(|shim| Self::of_shim(shim, closer)) {
            Some(Ok((copies, true))) => return Some(copies),
            Some(Ok((copies, false))) => Some(copies),
            Some(Err(error)) => {
                tracing::debug!(?shim, %error, "no copies of the shim's pipes");
                None
            }
            None => None,
        };
        match (of_shim, of_process()) {
            (Some(of_shim), Some(of_process)) => Some(of_shim.or(of_process)),
            (of_shim, of_process) => of_shim.or(of_process),
        }
    }

    /// Adds those of `others` that are missing here.
    pub(crate) fn or(mut self, mut others: Self) -> Self {
        self.stdout = self.stdout.take().or_else(|| others.stdout.take());
        self.stderr = self.stderr.take().or_else(|| others.stderr.take());
        self.terminal = self.terminal.take().or_else(|| others.terminal.take());
        self
    }

    /// Returns whether there is a copy of everything that the last shim announced.
    pub(crate) fn has_all(&self, record: &ProcessRecord) -> bool {
        self.all().count() >= told(record).all().count()
    }

    /// Returns what can still be copied when nobody holds copies and the shim died or is unknown:
    /// the container's own ends of its pipes, which are open for reading too. A terminal is lost.
    pub(crate) fn of_process(
        handle: &Handle,
        record: &ProcessRecord,
        closer: &Arc<Closer>,
    ) -> Self {
        let logged = record.holdfast.as_ref().is_some_and(|policies| !policies.log.is_direct());
        let told = told(record);
        let pipe = |number: i32, fifo: &str, told: Option<ShimFd>| {
            let identity = told.and_then(|fd| fd.identity);
            let wanted = (logged && fifo.is_empty()).then_some(ShimFd { number, identity })?;
            // A file that the container has put in place of the shim's pipe has another identity or
            // access mode.
            copy(&handle.pidfd, wanted, Some(OFlag::O_RDWR), closer).ok().flatten()
        };
        let mut copies = Self::none(closer);
        copies.stdout = pipe(1, &record.stdout, told.stdout);
        copies.stderr = pipe(2, &record.stderr, told.stderr);
        copies
    }

    /// Returns the descriptors that the keeper held for a process whose shim died; `None` if there
    /// are none.
    pub(crate) fn of_kept(
        kept: &mut Kept,
        record: &ProcessRecord,
        closer: &Arc<Closer>,
    ) -> Option<Self> {
        let told = told(record);
        let mut take = |name: FdName, told: Option<ShimFd>| {
            let fd = kept.take(name)?;
            if is_it(&fd, None, told.and_then(|fd| fd.identity)) {
                return Some(fd);
            }
            closer.close(vec![fd]);
            None
        };
        let mut copies = Self::none(closer);
        copies.stdout = take(FdName::Stdout, told.stdout);
        copies.stderr = take(FdName::Stderr, told.stderr);
        copies.terminal = take(FdName::Terminal, told.terminal);
        let some = copies.all().next().is_some();
        some.then_some(copies)
    }

    /// Returns the master of the terminal.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Returns the descriptors that exist, with their names.
    pub(crate) fn all(&self) -> impl Iterator<Item = (FdName, BorrowedFd<'_>)> {
        let all = [
            (FdName::Stdout, &self.stdout),
            (FdName::Stderr, &self.stderr),
            (FdName::Terminal, &self.terminal),
        ];
        all.into_iter().filter_map(|(name, fd)| Some((name, fd.as_ref()?.as_fd())))
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        let all = [self.stdout.take(), self.stderr.take(), self.terminal.take()];
        self.closer.close(all.into_iter().flatten().collect());
    }
}

/// Returns the descriptors from which the last shim reads, as it announced them.
fn told(record: &ProcessRecord) -> StdioFds {
    let shim = record.holdfast.as_ref().and_then(|policies| policies.shim.as_ref());
    shim.map(|shim| shim.stdio).unwrap_or_default()
}

/// Copies a descriptor of a process, which is a pipe in this access mode, if one is given. Returns `None`
/// if the descriptor is closed, the process has exited, or the number now belongs to another file.
fn copy(
    of: &PidFd,
    wanted: ShimFd,
    pipe: Option<OFlag>,
    closer: &Closer,
) -> io::Result<Option<OwnedFd>> {
    match of.copy_fd(wanted.number) {
        Ok(copy) if is_it(&copy, pipe, wanted.identity) => Ok(Some(copy)),
        Ok(other) => {
            closer.close(vec![other]);
            Ok(None)
        }
        Err(error) if matches!(error.raw_os_error(), Some(EBADF | ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether a descriptor is a pipe in this access mode, if one is given, and refers to the file with
/// this identity, if the shim has announced one. No system call here waits for the lock of a pipe.
fn is_it(fd: &OwnedFd, pipe: Option<OFlag>, identity: Option<Identity>) -> bool {
    let Ok(stat) = fstat(fd) else { return false };
    let is_pipe = |access| {
        let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
            && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == access)
    };
    pipe.is_none_or(is_pipe)
        && identity.is_none_or(|identity| Identity::of_stat(fd, &stat) == identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Regression: a shim that was being killed had closed its descriptors and still counted as
    /// alive, so good copies were replaced by nothing.
    #[test]
    fn of_a_shim_that_is_being_killed_there_are_all_copies_or_an_error() {
        let closer = Arc::new(Closer::new("/bin/true".into(), Arc::default()));
        for _ in 0..300 {
            let mut shim = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            let pid = shim.id().cast_signed();
            let start_time = Stat::read(pid).unwrap().start_time;
            let stdio = StdioFds { stdout: Some("0".parse().unwrap()), ..StdioFds::default() };
            let record = ShimRecord { pid, start_time, stdio };
            shim.kill().unwrap();
            match Copies::of_shim(&record, &closer) {
                // The test closes this one itself: nobody holds the lock of this pipe.
                Ok((mut copies, true)) => drop(copies.stdout.take().expect("a copy")),
                Ok((copies, false)) => assert_eq!(copies.all().count(), 0),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            shim.wait().unwrap();
        }
    }

    /// Regression: a shim that was being killed had closed one of its pipes, and the good copy of the
    /// other one was given up. The container wrote into that pipe before the copy was closed, and
    /// exited: its last output was lost.
    #[test]
    fn of_a_shim_that_has_closed_one_of_two_pipes_the_copy_of_the_other_is_kept() {
        let closer = Arc::new(Closer::new("/bin/true".into(), Arc::default()));
        let mut shim = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = shim.id().cast_signed();
        let start_time = Stat::read(pid).unwrap().start_time;
        // It never had this one, which looks the same.
        let stderr = Some("77".parse().unwrap());
        let stdio = StdioFds { stdout: Some("0".parse().unwrap()), stderr, terminal: None };
        let record = ShimRecord { pid, start_time, stdio };
        // A stopped process keeps its descriptors while they are copied.
        let held = PidFd::open(pid).unwrap();
        held.send_signal(nix::libc::SIGSTOP).unwrap();
        let (copies, all) = Copies::of_shim(&record, &closer).unwrap();
        assert_eq!((copies.all().count(), all), (1, true), "a pipe that has ended is no error");
        let (missing, _) = Copies::of_shim(&record, &closer).unwrap();
        let mut merged = Copies::none(&closer).or(missing).or(copies);
        assert_eq!(merged.all().map(|(name, _)| name).collect::<Vec<_>>(), [FdName::Stdout]);
        drop(merged.stdout.take());
        shim.kill().unwrap();
        shim.wait().unwrap();
    }

    /// Regression: a group shim used the number of an ended pipe for the pipe of another process,
    /// and the next supervisor copied that pipe for the wrong container.
    #[test]
    fn a_number_that_is_used_again_is_not_taken_for_what_it_was() {
        let closer = Arc::new(Closer::new("/bin/true".into(), Arc::default()));
        let (reader, writer) = std::io::pipe().unwrap();
        let mut shim = Command::new("cat").stdin(reader.try_clone().unwrap()).spawn().unwrap();
        let pid = shim.id().cast_signed();
        let start_time = Stat::read(pid).unwrap().start_time;
        let (other, _other_writer) = std::io::pipe().unwrap();
        for (identity, is_taken) in [
            (Some(Identity::of(&reader).unwrap()), true),
            (Some(Identity::of(&other).unwrap()), false),
            (None, true),
        ] {
            let stdout = Some(ShimFd { number: 0, identity });
            let stdio = StdioFds { stdout, ..StdioFds::default() };
            let record = ShimRecord { pid, start_time: start_time.clone(), stdio };
            let (mut copies, all) = Copies::of_shim(&record, &closer).unwrap();
            assert!(all, "the shim lives, so the other pipe has ended");
            assert_eq!(copies.stdout.take().is_some(), is_taken, "{identity:?}");
        }
        drop(writer);
        shim.wait().unwrap();
    }
}
