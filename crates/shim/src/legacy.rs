//! What a dead shim leaves to the one that adopts its process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_state::legacy;
use holdfast_sys::{PidFd, fd_passing};

/// The descriptors that were sent.
#[derive(Debug, Default)]
pub(crate) struct Legacy {
    pub(crate) process: Option<PidFd>,
    pub(crate) stdio: LegacyStdio,
}

/// What it read from.
#[derive(Debug, Default)]
pub(crate) struct LegacyStdio {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Legacy {
    /// Receives the one message there is. The supervisor sends it before we are started.
    pub(crate) fn receive(socket: &impl AsFd) -> io::Result<Self> {
        let mut kinds = [0; fd_passing::MAX];
        let (length, fds) = fd_passing::receive(socket, &mut kinds)?;
        let mut legacy = Self::default();
        for (kind, fd) in kinds[..length].iter().zip(fds) {
            match *kind {
                legacy::PROCESS => legacy.process = Some(fd.into()),
                legacy::STDOUT => legacy.stdio.stdout = Some(fd),
                legacy::STDERR => legacy.stdio.stderr = Some(fd),
                legacy::TERMINAL => legacy.stdio.terminal = Some(fd),
                other => {
                    return Err(io::Error::other(format!("a descriptor of unknown kind {other}")));
                }
            }
        }
        Ok(legacy)
    }
}
