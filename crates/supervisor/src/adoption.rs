//! A process whose shim has died gets a new one.
//!
//! What the first shim read from is kept here as copies from the moment on that there is a process
//! (and again after a restart): a pipe keeps what is in it as long as anyone holds it. The new shim
//! gets those and the pidfd in a message on its standard input.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::process::Child;
use std::sync::Arc;

use holdfast_state::announce::StdioFds;
use holdfast_state::{ProcessDir, ProcessRecord, ShimRecord, legacy};
use holdfast_sys::PidFd;
use holdfast_sys::proc::Stat;
use nix::libc::{EBADF, O_NONBLOCK};

use crate::exit_fifo::ExitFifo;
use crate::identity::Handle;
use crate::keeper::{Kept, Kind};
use crate::launch::ShimEnds;
use crate::process::Process;
use crate::supervisor::{Core, blocking};

/// Copies of what a shim reads from.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Copies {
    /// Takes them from a shim that lives. It is not asked, and need not even be awake.
    pub(crate) fn of_shim(shim: &ShimRecord) -> io::Result<Self> {
        let StdioFds { stdout, stderr, terminal } = shim.stdio;
        if (stdout, stderr, terminal) == (None, None, None) {
            return Ok(Self::default());
        }
        let held = PidFd::open(shim.pid)?;
        // The number is the shim's only if its start time says so, and was that when it was opened.
        if Stat::read(shim.pid)?.start_time != shim.start_time || !held.is_alive() {
            return Err(io::Error::other("the shim is gone"));
        }
        // What has ended by now is closed; the others are to be had all the same.
        let pipe = |fd: Option<i32>| fd.map_or(Ok(None), |fd| open_pipe(shim.pid, fd));
        let master = |fd| match held.copy_fd(fd) {
            Err(error) if error.raw_os_error() == Some(EBADF) => Ok(None),
            other => other.map(Some),
        };
        let copies = Self {
            stdout: pipe(stdout)?,
            stderr: pipe(stderr)?,
            terminal: terminal.map(master).transpose()?.flatten(),
        };
        let told = [stdout, stderr, terminal].iter().flatten().count();
        if copies.kinds().count() < told && !held.is_alive() {
            return Err(io::Error::other("the shim is gone"));
        }
        Ok(copies)
    }

    /// What can still be had when nobody holds copies, and the shim died or is not known: the
    /// container's own ends of its pipes, which are open for reading too. A terminal is lost.
    pub(crate) fn of_process(handle: &Handle, record: &ProcessRecord) -> Self {
        let logged = record.holdfast.as_ref().is_some_and(|policies| !policies.log.is_direct());
        let pipe = |fd: i32, fifo: &str| {
            let wanted = logged && fifo.is_empty();
            wanted.then(|| open_pipe(handle.pid, fd).ok()).flatten().flatten()
        };
        let copies = Self {
            stdout: pipe(1, &record.stdout),
            stderr: pipe(2, &record.stderr),
            terminal: None,
        };
        // Opened by its number: what we have is the process's if it was alive after that.
        if handle.pidfd.is_alive() { copies } else { Self::default() }
    }

    /// What was kept of a shim that died.
    pub(crate) fn of_kept(kept: &mut Kept) -> Option<Self> {
        let copies = Self {
            stdout: kept.take(Kind::Stdout),
            stderr: kept.take(Kind::Stderr),
            terminal: kept.take(Kind::Terminal),
        };
        let some = copies.kinds().next().is_some();
        some.then_some(copies)
    }

    /// What there is, each with what it is.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (Kind, BorrowedFd<'_>)> {
        let all = [
            (Kind::Stdout, &self.stdout),
            (Kind::Stderr, &self.stderr),
            (Kind::Terminal, &self.terminal),
        ];
        all.into_iter().filter_map(|(kind, fd)| Some((kind, fd.as_ref()?.as_fd())))
    }

    /// Each with the byte that says what it is.
    fn message(&self) -> (Vec<u8>, Vec<BorrowedFd<'_>>) {
        let byte = |kind: Kind| match kind {
            Kind::Process => legacy::PROCESS,
            Kind::Stdout => legacy::STDOUT,
            Kind::Stderr => legacy::STDERR,
            Kind::Terminal => legacy::TERMINAL,
        };
        self.kinds().map(|(kind, fd)| (byte(kind), fd)).unzip()
    }
}

/// The reading end of a pipe that a process holds, as an open file of our own. `None` if it is closed
/// by now, and the number perhaps something else's.
fn open_pipe(pid: i32, fd: i32) -> io::Result<Option<OwnedFd>> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let not_there = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match std::fs::read_link(&path) {
        Ok(link) if link.as_os_str().as_encoded_bytes().starts_with(b"pipe:") => {}
        Err(error) if !not_there(&error) => return Err(error),
        _ => return Ok(None),
    }
    match File::options().read(true).custom_flags(O_NONBLOCK).open(&path) {
        Ok(file) => Ok(file.metadata()?.file_type().is_fifo().then(|| file.into())),
        Err(error) if not_there(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Starts a shim that takes over.
pub(crate) async fn adopt(
    core: &Arc<Core>,
    process: &Arc<Process>,
) -> io::Result<(ExitFifo, Option<Child>)> {
    let (core, process) = (core.clone(), process.clone());
    let (reader, child) = blocking(move || {
        let handle = process.handle().ok_or_else(|| io::Error::other("it has ended"))?;
        let dir = core.process_dir(&process.container, &process.id)?;
        if dir.control_writer().is_ok() {
            // Its exit FIFO may have been removed; two shims would tear the output apart.
            return Err(io::Error::other("its shim lives, and is not heard"));
        }
        dir.make_fifos()?;
        let record = dir.load().map_err(io::Error::other)?;
        let copies = process.take_copies().unwrap_or_else(|| Copies::of_process(&handle, &record));
        let spawned = spawn_adopter(&core, &dir, &record, &handle, &copies);
        // Should this one die as well, what is in the pipes shall outlive it too.
        process.keep_copies(copies);
        spawned
    })
    .await?;
    Ok((ExitFifo::new(reader)?, child))
}

fn spawn_adopter(
    core: &Arc<Core>,
    dir: &ProcessDir,
    record: &ProcessRecord,
    handle: &Handle,
    copies: &Copies,
) -> io::Result<(File, Option<Child>)> {
    let (mut kinds, mut fds) = copies.message();
    kinds.push(legacy::PROCESS);
    fds.push(handle.pidfd.as_fd());
    ShimEnds::open(dir, record)?.begin(core, Some((kinds, fds)))
}
