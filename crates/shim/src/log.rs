//! The shim's own log, `shim-log.json` of the process that is being looked after.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::OnceLock;

use holdfast_state::process_dir::SHIM_LOG;

use crate::home::Home;

thread_local! {
    /// Whose turn it is in a group. A shim of one process has that log as its standard error.
    static TURN: RefCell<Option<Home>> = const { RefCell::new(None) };
}

/// There if the program has a log of its own.
static OWN: OnceLock<fn(&str, &str)> = OnceLock::new();

/// Has all go to a function instead: a level, `error` or `warning`, and a message.
pub fn log_by(function: fn(&str, &str)) {
    let _ = OWN.set(function);
}

/// Has what follows go to the log of this process, until another's turn comes.
pub(crate) fn turn_to(home: Option<&Home>) {
    TURN.set(home.cloned());
}

/// Writes a line.
pub fn log(level: &str, message: &str) {
    if let Some(own) = OWN.get() {
        return own(level, message);
    }
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
