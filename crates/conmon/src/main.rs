//! `holdfast-conmon`: the monitor of one container or exec, in the place of conmon.
//!
//! podman and CRI-O start one for each container. It runs the OCI runtime, becomes the parent of what that
//! leaves behind, writes its output to logs and to attached clients, and says how it ended. Its command line,
//! environment, files, sockets and messages are those of conmon 2.2; how output moves and how a process is
//! reaped are the shim's. See docs/conmon.md for what differs.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `report` | its own messages: standard error, syslog |
//! | `drivers` | where the output goes, by `--log-path` |
//! | `pipes` | the pipes by which it talks to who has started it |
//! | `command` | the runtime's command line, and how it is started |
//! | `start` | from the first byte of the start pipe to a container |
//! | `bundle` | the sockets and FIFOs in the bundle |
//! | `clients` | who is attached: their sockets, and what waits for them |
//! | `input` | the standard input of the container |
//! | `ctl` | the messages of the FIFOs `ctl` and `winsz` |
//! | `notify` | the sd-notify proxy |
//! | `oom` | kills by the OOM killer |
//! | `process` | the container's process: how it is held, signalled and reaped |
//! | `terminal` | the container's terminal |
//! | `watch` | what is waited for, by epoll |
//! | `monitor` | the loop |
//! | `exit` | the end as one transaction, and the exit command |
//! | `deposit` | descriptors that outlive the monitor |
//! | `record` | what who takes over has to know |
//! | `link` | the monitor's connection to the keeper |
//! | `adopt` | what is left with the keeper, and how it is taken over |
//! | `keeper` | the keeper, which has containers of dead monitors taken over |

#![cfg_attr(not(test), no_main)]
// The tests have a `main` of their own.
#![cfg_attr(test, allow(dead_code))]
// Nobody prints the parts of a monitor.
#![allow(missing_debug_implementations)]

mod adopt;
mod args;
mod bundle;
mod clients;
mod command;
mod ctl;
mod deposit;
mod drivers;
mod exit;
mod input;
mod keeper;
mod link;
mod monitor;
mod notify;
mod oom;
mod pipes;
mod process;
mod record;
mod report;
mod start;
mod terminal;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use holdfast_shim::engine::apart;
use holdfast_sys::start::Arguments;

use start::Begun;

/// The exit code for a failure of our own.
const FAILED: u8 = 1;

#[cfg(not(test))]
holdfast_sys::main!(run, with inherited);

fn run(arguments: Arguments, inherited: io::Result<Vec<OwnedFd>>) -> u8 {
    let begun = open_standard().and(inherited).map_err(|error| error.to_string());
    let mut begun =
        begun.and_then(|inherited| apart(|| start::begin(arguments.skip(1), inherited)));
    // By reference: each place that it were moved through would be in this frame.
    match &mut begun {
        Ok(Begun::Over(code)) => *code,
        Ok(Begun::Monitor(monitor)) => monitor.run(),
        Err(text) => {
            report::error(text);
            FAILED
        }
    }
}

/// Opens standard descriptors that are closed, so that nothing else gets their numbers.
fn open_standard() -> io::Result<()> {
    loop {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        std::mem::forget(null);
    }
}
