//! The shim's own log, `shim-log.json` of the process that is being looked after.

use std::cell::RefCell;
use std::io::{self, Write};

use holdfast_state::process_dir::SHIM_LOG;

use crate::home::Home;

thread_local! {
    /// Whose turn it is in a group. A shim of one process has that log as its standard error.
    static TURN: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// Has what follows go to the log of this process, until another's turn comes.
pub(crate) fn turn_to(home: Option<&Home>) {
    TURN.set(home.cloned());
}

/// Writes a line.
pub(crate) fn log(level: &str, message: &str) {
    let line = holdfast_state::log::line(level, message);
    let own = TURN.with_borrow(|home| {
        let dir = home.as_ref()?.open().ok()?;
        dir.directory().append(SHIM_LOG).ok()
    });
    // A full disk must not end us, as it would with `eprint`.
    let _ = match own {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
}
