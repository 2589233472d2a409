//! The container's terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use holdfast_shim::engine::{Pipeline, Source};
use holdfast_state::cri::Stream;
use holdfast_sys::terminal::{open_peer, resize};
use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};

use crate::input::Input;
use crate::report;

pub(crate) struct Terminal {
    master: OwnedFd,
    /// The other side, held open: otherwise the terminal would read as ended whenever no process has it open.
    _other_side: Option<OwnedFd>,
}

impl Terminal {
    /// Connects the master of a terminal with output and input.
    pub(crate) fn new(
        master: OwnedFd,
        output: &mut Pipeline,
        input: &mut Input,
    ) -> io::Result<Self> {
        let other_side =
            report::warn_of("the terminal ends when nobody has it open", open_peer(&master));
        report::warn_of("the terminal keeps its mode", end_lines(&master));
        // There is no other sign that a client's input has ended than what it types.
        *input = Input::new(master.try_clone()?, false);
        output.set(Stream::Stdout, Source::Terminal(master.try_clone()?));
        Ok(Self { master, _other_side: other_side })
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        report::warn_of("the terminal is not resized", resize(&self.master, columns, rows));
    }
}

/// Makes the terminal write a carriage return before each line feed, as Kubernetes expects.
fn end_lines(master: &impl AsFd) -> io::Result<()> {
    let mut mode = tcgetattr(master)?;
    mode.output_flags |= OutputFlags::ONLCR;
    Ok(tcsetattr(master, SetArg::TCSANOW, &mode)?)
}
