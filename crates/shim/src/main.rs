//! `holdfast-shim`: one container process and its stdio, synchronously.
//!
//! The supervisor starts one for each container process. It runs the OCI runtime, becomes the
//! parent of what that leaves behind, relays its output to a log, and puts its exit status on disk.
//! It outlives the daemon, needs nothing from it, and makes no system call while nothing happens.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line, which is the whole interface for starting |
//! | `setup` | session, subreaper, signals, descriptors: what makes this process a shim |
//! | `runtime` | starting the OCI runtime with them |
//! | `stdio` | the pipes or FIFOs that the container gets, and our side of them |
//! | `terminal` | how a terminal comes from the runtime |
//! | `relay` | from a pipe or terminal to where output goes |
//! | `places` | all of those together |
//! | `log_file`, `journald`, `reader` | each of them |
//! | `rate` | how many lines a second a log takes |
//! | `pump` | between a terminal and a FIFO |
//! | `shim` | the loop: one `poll`, and what each phase does |
//! | `starting` | the first phase: from the runtime to a process of ours, or back to nothing |
//! | `legacy` | what a dead shim leaves to the one that adopts |
//!
//! How it talks: announcements on its standard output (the exit FIFO), messages from the control
//! FIFO, its own log on its standard error (`shim-log.json`). See `holdfast_state` for the formats.

#![cfg_attr(not(test), no_main)]
// The tests have a `main` of their own.
#![cfg_attr(test, allow(dead_code))]

mod args;
mod journald;
mod legacy;
mod log_file;
mod places;
mod pump;
mod rate;
mod reader;
mod relay;
mod runtime;
mod setup;
mod shim;
mod starting;
mod stdio;
mod terminal;

use std::io::{self, Write};

use holdfast_sys::start::Arguments;

// Without the standard library's own start, which maps a stack for signals and reads
// `/proc/self/maps`: memory that each of a thousand shims would keep.
#[cfg(not(test))]
holdfast_sys::main!(run);

/// Writes a line to `shim-log.json`, which is this process's standard error.
fn log(level: &str, message: &str) {
    // A full disk must not end us, as it would with `eprint`.
    let _ = io::stderr().write_all(holdfast_state::log::line(level, message).as_bytes());
}

fn run(arguments: Arguments) -> u8 {
    let shim = args::parse(arguments.skip(1)).and_then(|args| {
        let shim = if args.adopt { shim::Shim::adopt(&args) } else { shim::Shim::start(&args) };
        shim.map_err(|error| error.to_string())
    });
    match shim.and_then(|shim| shim.run().map_err(|error| error.to_string())) {
        Ok(code) => code,
        Err(error) => {
            log("error", &error);
            1
        }
    }
}
