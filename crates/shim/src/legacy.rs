//! What a shim leaves to the one that takes its process over, and what a group is asked to start.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_state::legacy;
use holdfast_sys::{PidFd, fd_passing};

/// The descriptors that were sent.
#[derive(Debug, Default)]
pub(crate) struct Legacy {
    pub(crate) process: Option<PidFd>,
    pub(crate) stdio: LegacyStdio,
    /// The exit FIFO, for writing.
    pub(crate) exit: Option<File>,
    pub(crate) control: Option<File>,
    /// The shim's log of one that is to be started.
    pub(crate) log: Option<OwnedFd>,
}

/// What it read from.
#[derive(Debug, Default)]
pub(crate) struct LegacyStdio {
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
    /// The stdin FIFO, for writing.
    pub(crate) stdin: Option<OwnedFd>,
}

impl Legacy {
    /// What came along with a message with words, and these.
    pub(crate) fn of_message(message: &[u8], fds: Vec<OwnedFd>) -> io::Result<(Self, &[u8])> {
        let (kinds, words) = legacy::read_message(message)
            .ok_or_else(|| io::Error::other("a message without sense"))?;
        Ok((Self::of(kinds, fds)?, words))
    }

    /// Receives the one message there is. The supervisor sends it before we are started.
    pub(crate) fn receive(socket: &impl AsFd) -> io::Result<Self> {
        let mut kinds = [0; fd_passing::MAX];
        let (length, fds) = fd_passing::receive(socket, &mut kinds)?;
        Self::of(&kinds[..length], fds)
    }

    /// What came along with a message that says of what kind each is.
    pub(crate) fn of(kinds: &[u8], fds: Vec<OwnedFd>) -> io::Result<Self> {
        if kinds.len() != fds.len() {
            let text = format!("{} descriptors came of {}", fds.len(), kinds.len());
            return Err(io::Error::other(text));
        }
        let mut legacy = Self::default();
        for (kind, fd) in kinds.iter().zip(fds) {
            match *kind {
                legacy::PROCESS => legacy.process = Some(fd.into()),
                legacy::STDOUT => legacy.stdio.stdout = Some(fd),
                legacy::STDERR => legacy.stdio.stderr = Some(fd),
                legacy::TERMINAL => legacy.stdio.terminal = Some(fd),
                legacy::STDIN => legacy.stdio.stdin = Some(fd),
                legacy::EXIT => legacy.exit = Some(fd.into()),
                legacy::CONTROL => legacy.control = Some(fd.into()),
                legacy::LOG => legacy.log = Some(fd),
                other => {
                    return Err(io::Error::other(format!("a descriptor of unknown kind {other}")));
                }
            }
        }
        Ok(legacy)
    }
}
