//! A program that takes the output of a process: `binary://PATH?NAME=VALUE`.
//!
//! The program reads two FIFOs that the supervisor makes. So program and container keep running while there is
//! no supervisor.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use holdfast_sys::PidFd;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

/// How long a program may take until it says that it is ready.
const READY: Duration = Duration::from_secs(10);

/// How long it may take to end once its input has, as with containerd's own shim.
const END: Duration = Duration::from_secs(12);

/// Where a process has its FIFOs.
#[derive(Debug, Clone)]
pub(crate) struct BinaryLog {
    directory: PathBuf,
}

impl BinaryLog {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The FIFOs of standard output and standard error.
    pub(crate) fn fifos(&self) -> [PathBuf; 2] {
        ["stdout", "stderr"].map(|name| self.directory.join(name))
    }

    /// Makes the FIFOs, starts the program, and waits until it is ready. Those of an earlier attempt are
    /// replaced: its program gets the end of its input. As long as what this returns is open, the input
    /// does not end: until the process has it.
    pub(crate) fn start(
        &self,
        program: &Path,
        arguments: &[String],
        (namespace, id): (&str, &str),
    ) -> io::Result<[File; 2]> {
        self.end(Duration::ZERO);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        for fifo in self.fifos() {
            nix::unistd::mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        let inputs = self.fifos().map(|path| reading_end(&path));
        let both = |path| File::options().read(true).write(true).open(path);
        let [stdout_fifo, stderr_fifo] = self.fifos();
        let held = [both(stdout_fifo)?, both(stderr_fifo)?];
        let (ready, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let [stdout, stderr] = inputs;
        let mapped = [(stdout?, 3), (stderr?, 4), (ours, 5)];
        let mapped = mapped.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        let mut command = Command::new(program);
        command.args(arguments).env_clear();
        command.env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", namespace);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.fd_mappings(mapped.into()).map_err(io::Error::other)?;
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("logger {}: {error}", program.display()))
        };
        let child = command.spawn().map_err(failed)?;
        // Our own copies: the end of the file is what says that the program is ready.
        drop(command);
        fs::write(self.directory.join("pid"), child.id().to_string())?;
        await_ready(ready).map_err(failed)?;
        Ok(held)
    }

    /// Has the program end, as its input has: what it does not do in time it is killed for.
    pub(crate) fn end(&self, patience: Duration) {
        let pid = fs::read_to_string(self.directory.join("pid")).ok();
        if let Some(pid) = pid.and_then(|pid| pid.trim().parse().ok())
            && let Ok(process) = PidFd::open(pid)
            && self.is_its(pid)
            && !process.ends_by(std::time::Instant::now() + patience).unwrap_or(true)
        {
            let _ = process.send_signal(nix::libc::SIGKILL);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Has the program end within the time that containerd's own shim gives it.
    pub(crate) fn end_in_time(&self) {
        if self.directory.exists() {
            self.end(END);
        }
    }

    /// Whether that process reads our FIFOs: its number may be somebody else's by now.
    fn is_its(&self, pid: i32) -> bool {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.into_iter().any(|link| link.starts_with(&self.directory))
    }
}

/// The end of a FIFO that waits for data, and did not wait for somebody who writes.
fn reading_end(path: &Path) -> io::Result<OwnedFd> {
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file.into())
}

/// A program that is ready closes this pipe, or writes to it (`binary-v2://`).
fn await_ready(pipe: OwnedFd) -> io::Result<()> {
    let mut wait = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(READY).unwrap_or(PollTimeout::MAX);
    if poll(&mut wait, limit)? == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "not ready within 10 s"));
    }
    let _ = File::from(pipe).read(&mut [0; 64])?;
    Ok(())
}
