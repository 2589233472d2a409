//! Our own terminal, while it stands for a container's.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use holdfast_daemon::api::TerminalSize;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// What a terminal is taken for whose size nobody knows.
const USUAL: TerminalSize = TerminalSize { width: 80, height: 24 };

/// The size of our terminal, or the usual one.
pub(crate) fn size() -> TerminalSize {
    match holdfast_sys::terminal::size(io::stdin())
        .or_else(|_| holdfast_sys::terminal::size(io::stdout()))
    {
        Ok((width, height)) if width > 0 && height > 0 => TerminalSize { width, height },
        _ => USUAL,
    }
}

/// For whom the keys of our terminal are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keyboard {
    /// For a container: each is handed on as it is.
    Its,
    /// For us: control-C interrupts us.
    Ours,
}

/// Our terminal shows the output of another one as it is, and hands the keys on if they are meant for
/// that, until this is dropped.
pub(crate) struct RawMode(());

/// How our terminal was, while it is in raw mode: for who ends this process without dropping anything.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Makes our terminal what it was before the raw mode, if it is in that.
pub(crate) fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // If this fails, a message could only go to that terminal.
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &before);
    }
}

impl RawMode {
    /// `None` if our input is no terminal.
    pub(crate) fn begin(keyboard: Keyboard) -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        match keyboard {
            Keyboard::Its => cfmakeraw(&mut raw),
            Keyboard::Ours => raw.output_flags.remove(OutputFlags::OPOST),
        }
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}
