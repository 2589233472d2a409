//! The stdio that the container gets.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use holdfast_state::cri::Stream;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchown, pipe2};

use crate::args::{Args, Log};
use crate::relay::Relay;

/// What the runtime inherits; closed on our side once it runs.
pub(crate) struct ContainerEnds {
    pub(crate) stdin: File,
    pub(crate) stdout: File,
    pub(crate) stderr: File,
}

/// The container's ends, and ours.
pub(crate) struct Stdio {
    pub(crate) container: ContainerEnds,
    /// Keeps a stdin FIFO from ending when a client goes, until someone says that it is over.
    pub(crate) stdin_holder: Option<File>,
    pub(crate) relays: [Option<Relay>; 2],
}

impl Stdio {
    pub(crate) fn open(args: &Args) -> io::Result<Self> {
        let (stdin, stdin_holder) = match &args.stdin {
            Some(path) => open_stdin(path)?,
            None => (File::open("/dev/null")?, None),
        };
        let (stdout, out_relay) = open_output(args, args.stdout.as_deref(), Stream::Stdout)?;
        let (stderr, err_relay) = open_output(args, args.stderr.as_deref(), Stream::Stderr)?;
        let container = ContainerEnds { stdin, stdout, stderr };
        Ok(Self { container, stdin_holder, relays: [out_relay, err_relay] })
    }
}

/// A FIFO for reading, opened without waiting for its writer.
fn open_stdin(path: &Path) -> io::Result<(File, Option<File>)> {
    let reader = open_fifo(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    let holder = open_fifo(path, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    // The container expects a descriptor that waits.
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok((reader, Some(holder)))
}

fn open_output(
    args: &Args,
    path: Option<&Path>,
    stream: Stream,
) -> io::Result<(File, Option<Relay>)> {
    match (path, args.log) {
        // Opened for both, so a reader that goes away costs the container no SIGPIPE.
        (Some(path), _) => Ok((open_fifo(path, OFlag::O_RDWR)?, None)),
        (None, Log::None) => Ok((File::options().write(true).open("/dev/null")?, None)),
        (None, Log::Cri) => {
            let (ours, theirs) = output_pipe(args.owner)?;
            Ok((theirs, Some(Relay::new(ours, stream))))
        }
    }
}

fn open_fifo(path: &Path, flags: OFlag) -> io::Result<File> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let access = flags & OFlag::O_ACCMODE;
    let file = File::options()
        .read(access != OFlag::O_WRONLY)
        .write(access != OFlag::O_RDONLY)
        .custom_flags((flags & !OFlag::O_ACCMODE).bits())
        .open(path)
        .map_err(named)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(named(io::Error::other("not a FIFO")))
    }
}

/// A pipe: our end for reading without waiting, the container's end opened for both. So the
/// container holds a reader itself: it meets no SIGPIPE if we die, and what it wrote stays in the
/// pipe for whoever adopts it. The end of file still comes when the container's last process has
/// closed it.
fn output_pipe(owner: Option<(u32, u32)>) -> io::Result<(OwnedFd, File)> {
    let (ours, writer) = pipe2(OFlag::O_CLOEXEC)?;
    if let Some((uid, gid)) = owner {
        fchown(&writer, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    let itself = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let theirs =
        nix::fcntl::open(itself.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    fcntl(ours.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs.into()))
}
