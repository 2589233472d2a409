//! What a container may try: one attack a subcommand. It is linked statically, so that it runs in any
//! root file system.
//!
//! | command | what it does |
//! |---|---|
//! | `lock FD…` | holds the lock of each of these pipes for ever |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::fcntl::{SpliceFFlags, splice};

fn main() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("lock") => {
            let numbers = args.filter_map(|number| number.parse().ok());
            lock(&numbers.map(standard).collect::<io::Result<Vec<_>>>()?)
        }
        other => Err(io::Error::other(format!("no attack: {other:?}"))),
    }
}

/// A copy of one of the standard descriptors.
fn standard(number: u8) -> io::Result<OwnedFd> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fd: BorrowedFd<'_> = match number {
        0 => stdin.as_fd(),
        1 => stdout.as_fd(),
        2 => stderr.as_fd(),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    fd.try_clone_to_owned()
}

/// splice(2) takes the pipe's lock, and then waits for a socket that says nothing.
fn lock(pipes: &[OwnedFd]) -> io::Result<()> {
    std::thread::scope(|scope| {
        for pipe in pipes {
            scope.spawn(move || {
                let (silent, _other) = UnixStream::pair().expect("a pair of sockets");
                splice(&silent, None, pipe, None, 4096, SpliceFFlags::empty())
            });
        }
    });
    Ok(())
}
