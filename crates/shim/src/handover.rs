//! How a shim that has started a process hands it over to a group.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_state::legacy::{self, MOVED_OPTION, SEAT_OPTION};
use holdfast_sys::start::Arguments;
use holdfast_sys::{PidFd, fd_passing};

use crate::seat::Seat;

/// A command line without the program's name.
pub(crate) type Words = std::iter::Skip<Arguments>;

/// The way to the group.
pub(crate) struct Handover {
    socket: OwnedFd,
    /// Our own command line.
    words: Words,
}

impl Handover {
    /// The way is our standard input, as long as that is not replaced.
    pub(crate) fn new(words: Words) -> io::Result<Self> {
        Ok(Self { socket: holdfast_sys::fd::standard()[0].try_clone_to_owned()?, words })
    }

    /// Sends a process and all that we hold of it. If this succeeds, the group has it.
    pub(crate) fn send(&self, seat: &Seat, process: &PidFd) -> io::Result<()> {
        let own = [
            (legacy::EXIT, seat.exit.as_fd()),
            (legacy::CONTROL, seat.control.as_fd()),
            (legacy::PROCESS, process.as_fd()),
        ];
        let (kinds, fds): (Vec<u8>, Vec<_>) =
            own.into_iter().chain(seat.stdio.for_another()).unzip();
        let own_pid = std::process::id().to_string();
        let options = self.words.clone().take_while(|word| *word != "--");
        let words = options.flat_map(|word| match word == SEAT_OPTION {
            true => [Some(OsStr::new(MOVED_OPTION)), Some(OsStr::new(&own_pid))],
            false => [Some(word), None],
        });
        let words = words.flatten();
        fd_passing::send(&self.socket, &legacy::message(&kinds, words), &fds)
    }
}
