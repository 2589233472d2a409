//! Copies of what a shim reads from, for the one that will adopt when it dies. They are held from the moment on
//! that there is a process (and again after a restart): a pipe keeps what is in it as long as anyone
//! holds it.

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

/// Copies of what a shim reads from. They share the shim's open files and are never opened anew: who
/// opens a pipe waits for its lock, which a container may hold for ever. For the same reason a
/// [closer](crate::os::closer) closes them.
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

    /// Takes them from a shim that lives. It is not asked, and need not even be awake.
    pub(crate) fn of_shim(shim: &ShimRecord, closer: &Arc<Closer>) -> io::Result<Self> {
        let StdioFds { stdout, stderr, terminal } = shim.stdio;
        let mut copies = Self::none(closer);
        if shim.stdio.all().next().is_none() {
            return Ok(copies);
        }
        let held = PidFd::open(shim.pid)?;
        // The number is the shim's only if its start time says so, and was that when it was opened.
        if Stat::read(shim.pid)?.start_time != shim.start_time || !held.is_alive() {
            return Err(io::Error::other("the shim is gone"));
        }
        // A number whose pipe has ended may be another's by now.
        let copy = |fd: Option<ShimFd>, is_ours: fn(&OwnedFd) -> bool| match fd {
            Some(fd) => copy(&held, fd, is_ours, closer),
            None => Ok(None),
        };
        copies.stdout = copy(stdout, |fd| is_pipe(fd, OFlag::O_RDONLY))?;
        copies.stderr = copy(stderr, |fd| is_pipe(fd, OFlag::O_RDONLY))?;
        copies.terminal = copy(terminal, |_| true)?;
        // What has ended by now is closed; the others are to be had all the same. One that is being killed
        // has closed everything a moment before its pidfd says that it is dead.
        let told = shim.stdio.all().count();
        if copies.all().count() < told && (is_being_killed(shim.pid) || !held.is_alive()) {
            return Err(io::Error::other("the shim is gone"));
        }
        Ok(copies)
    }

    /// What can still be had when nobody holds copies, and the shim died or is not known: the
    /// container's own ends of its pipes, which are open for reading too. A terminal is lost.
    pub(crate) fn of_process(
        handle: &Handle,
        record: &ProcessRecord,
        closer: &Arc<Closer>,
    ) -> Self {
        let logged = record.holdfast.as_ref().is_some_and(|policies| !policies.log.is_direct());
        let told = told(record);
        // What it has put in the place of the shim's pipe is another one, or has another access mode.
        let is_ours = |fd: &OwnedFd| is_pipe(fd, OFlag::O_RDWR);
        let pipe = |number: i32, fifo: &str, told: Option<ShimFd>| {
            let identity = told.and_then(|fd| fd.identity);
            let wanted = (logged && fifo.is_empty()).then_some(ShimFd { number, identity })?;
            copy(&handle.pidfd, wanted, is_ours, closer).ok().flatten()
        };
        let mut copies = Self::none(closer);
        copies.stdout = pipe(1, &record.stdout, told.stdout);
        copies.stderr = pipe(2, &record.stderr, told.stderr);
        copies
    }

    /// What was kept of a shim that died.
    pub(crate) fn of_kept(
        kept: &mut Kept,
        record: &ProcessRecord,
        closer: &Arc<Closer>,
    ) -> Option<Self> {
        let told = told(record);
        let mut take = |name: FdName, told: Option<ShimFd>| {
            let fd = kept.take(name)?;
            if is_it(&fd, told.and_then(|fd| fd.identity)) {
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

    /// The master of its terminal.
    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// What there is, by name.
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

/// What its last shim told that it reads from.
fn told(record: &ProcessRecord) -> StdioFds {
    let shim = record.holdfast.as_ref().and_then(|policies| policies.shim.as_ref());
    shim.map(|shim| shim.stdio).unwrap_or_default()
}

/// Whether a descriptor is open for this; of a shim that did not tell, any will do.
fn is_it(fd: &OwnedFd, identity: Option<Identity>) -> bool {
    identity.is_none_or(|identity| Identity::of(fd).is_ok_and(|it| it == identity))
}

/// A copy of a descriptor of a process. `None` if it is closed by now, or the process gone, or the
/// number something else's.
fn copy(
    of: &PidFd,
    wanted: ShimFd,
    is_ours: impl FnOnce(&OwnedFd) -> bool,
    closer: &Closer,
) -> io::Result<Option<OwnedFd>> {
    match of.copy_fd(wanted.number) {
        Ok(copy) if is_ours(&copy) && is_it(&copy, wanted.identity) => Ok(Some(copy)),
        Ok(other) => {
            closer.close(vec![other]);
            Ok(None)
        }
        Err(error) if matches!(error.raw_os_error(), Some(EBADF | ESRCH)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether it is a pipe that is open for this. Neither question waits for the pipe's lock.
fn is_pipe(fd: &OwnedFd, access: OFlag) -> bool {
    let is_fifo = fstat(fd).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
    });
    let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
    is_fifo && flags.is_ok_and(|flags| flags & OFlag::O_ACCMODE == access)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// Seen before: a shim that was being killed had closed everything and still counted as alive, so nothing
    /// took the place of the good copies.
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
                // Ours to close: nobody holds the lock of this one.
                Ok(mut copies) => drop(copies.stdout.take().expect("a copy")),
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            shim.wait().unwrap();
        }
    }

    /// Seen before: a group used the number of a pipe that had ended for a neighbour's, and the next
    /// supervisor gave that to the wrong container.
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
            let mut copies = Copies::of_shim(&record, &closer).unwrap();
            assert_eq!(copies.stdout.take().is_some(), is_taken, "{identity:?}");
        }
        drop(writer);
        shim.wait().unwrap();
    }
}
