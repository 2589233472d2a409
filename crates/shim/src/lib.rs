//! The program `holdfast-shim`: one container process and its stdio, synchronously.
//!
//! The supervisor starts one for each container process, or for a group of them. It runs the OCI
//! runtime, becomes the parent of what that leaves behind, relays its output to a log, and puts its
//! exit status on disk. It outlives the daemon, needs nothing from it, and makes no system call while nothing happens.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line, which is the whole interface for starting |
//! | `setup` | session, subreaper, signals, descriptors: what makes this process a shim |
//! | `runtime` | starting the OCI runtime with them |
//! | `stdio` | the pipes or FIFOs that the container gets, and our side of them |
//! | `terminal` | how a terminal comes from the runtime |
//! | `output` | how output and input move: sources, sinks, and the way from the ones to the others |
//! | `exit` | the end of a process, as one transaction |
//! | `interest` | what there is to wait for |
//! | `home` | the process's directory, by its path |
//! | `shim` | the one loop, and how it begins |
//! | `seats` | what the kernel and the timers know of each seat, and which child is whose |
//! | `seat` | what is done for one process: messages, output, its end |
//! | `start` | a start: the shim runs the runtime and takes the process over, or clears everything away again |
//! | `group` | what makes a shim that of many processes: it is asked for more of them |
//! | `closer` | a process that closes what could make others wait |
//! | `log` | its own log |
//! | `pages` | what keeps it small |
//!
//! As a library it is what the shim and `holdfast-conmon` have in common; nobody else is to depend on it.
//!
//! How it talks: announcements on its standard output (the exit FIFO), messages from the control
//! FIFO, its own log on its standard error (`shim-log.json`). See `holdfast_state` for the formats; its
//! `handoff` is the one message by which descriptors come and go.

// Nobody prints the parts of a shim.
#![allow(missing_debug_implementations)]

mod args;
mod closer;
mod exit;
mod group;
mod home;
mod interest;
mod log;
mod output;
mod pages;
mod runtime;
mod seat;
mod seats;
mod setup;
mod shim;
mod start;
mod stdio;
mod terminal;

/// What `holdfast-conmon` takes from here.
#[doc(hidden)]
pub mod engine {
    pub use crate::log::{log, log_by};
    pub use crate::output::{
        Journald, K8sFile, Listener, LogFile, Pipeline, Scratch, Sinks, Slot, Source,
    };
    pub use crate::pages::{apart, give_back};
    pub use crate::seat::{REST, round_up};
    pub use crate::setup::{set_nonblocking, take_signals};
    pub use crate::start::kill_descendants;
    pub use crate::stdio::{Null, output_pipe};
    pub use crate::terminal::ConsoleSocket;
}

use std::io::{self, Write};

use holdfast_state::shim_options;
use holdfast_sys::start::Arguments;

use shim::Shim;
use start::{Handover, Words};

/// The program, from its arguments to its exit code.
#[must_use]
pub fn run(arguments: Arguments) -> u8 {
    let mut begun = pages::apart(|| begin(arguments.skip(1)));
    // By reference: each place that it were moved through would be in this frame.
    let done = match &mut begun {
        Ok(Some(shim)) => shim.run().map_err(|error| error.to_string()),
        Ok(None) => Ok(0),
        Err(error) => Err(std::mem::take(error)),
    };
    done.unwrap_or_else(|error| {
        log::log("error", &error);
        1
    })
}

fn tell_version() -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(io::stdout(), "holdfast-shim {version} protocol {}", shim_options::PROTOCOL)
}

/// A shim of any kind. `None` if there is nothing to do.
fn begin(words: Words) -> Result<Option<Shim>, String> {
    let args = args::parse(words.clone())?;
    let begun = match &args {
        args if args.group.is_some() => Shim::group().map(Some),
        args if args.spare => Shim::wait_for_start(),
        args if args.closer => closer::run().map(|()| None),
        args if args.version => tell_version().map(|()| None),
        args if args.adopt => Shim::adopt(args).map(Some),
        args => {
            let handover = args.seat.then(|| Handover::new(words)).transpose();
            handover.and_then(|handover| Shim::start(args, handover).map(Some))
        }
    };
    begun.map_err(|error| error.to_string())
}
