//! `containerd-shim-holdfast-v2`: what containerd calls a shim.
//!
//! containerd starts it for each container, with the action `start` or `delete`. The containers of a pod have one
//! process of it in common, the *front*, to which containerd connects. It looks after no container itself: it
//! passes calls on to the supervisor, one for all pods of a containerd. It is small, does next to nothing, and
//! outlives the supervisor, so that containerd does not notice when that is killed or replaced.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `dialect` | how the releases of containerd ask `start`, and what they are answered |
//! | `group` | which containers share a front |
//! | `start` | the action `start`: finds the front of a group, or starts it |
//! | `limits` | the cgroup and the OOM score of a new front |
//! | `delete` | the action `delete` |
//! | `info` | `-info` |
//! | `launch` | how a supervisor is started |
//! | `front` | the front: one loop |
//! | `connection` | one connection of containerd, and that to the supervisor which belongs to it |
//! | `pod` | what all connections of a front have in common |
//! | `tasks` | what a front knows of its containers |
//! | `wire` | frames on a socket |
//! | `log` | a front's own log |

#![cfg_attr(not(test), no_main)]
// The tests have a `main` of their own.
#![cfg_attr(test, allow(dead_code))]

mod args;
mod connection;
mod delete;
mod dialect;
mod front;
mod group;
mod info;
mod launch;
mod limits;
mod log;
mod pod;
mod start;
mod tasks;
mod wire;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Write as _};

use holdfast_sys::random;
use holdfast_sys::start::Arguments;

use args::{Action, Args};

#[cfg(not(test))]
holdfast_sys::main!(run);

fn run(arguments: Arguments) -> u8 {
    match act(arguments.skip(1)) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "containerd-shim-holdfast-v2: {error}");
            1
        }
    }
}

fn act(words: impl Iterator<Item = &'static OsStr>) -> Result<(), String> {
    let args = parse(words)?;
    if args.action == Action::Serve { front::run(args) } else { answer(&args) }
}

// A front never leaves its frames, and what they have room for is memory of each. So all that is not for a front, or
// only for its beginning, has frames of its own.
#[inline(never)]
fn parse(words: impl Iterator<Item = &'static OsStr>) -> Result<Args<'static>, String> {
    let words: Option<Vec<&str>> = words.map(OsStr::to_str).collect();
    args::parse(words.ok_or("an argument is not UTF-8")?.into_iter())
}

#[inline(never)]
fn answer(args: &Args<'_>) -> Result<(), String> {
    let output = match args.action {
        Action::Serve => return Ok(()),
        Action::Launch => return launch::launch(args),
        Action::Start => start::start(args, &start::input()?)?,
        Action::Delete => delete::delete(args)?,
        Action::Info => info::info(&start::input()?),
        Action::Version => version().into_bytes(),
    };
    let written = io::stdout().write_all(&output).and_then(|()| io::stdout().flush());
    written.map_err(|error| format!("write the answer: {error}"))
}

fn version() -> String {
    format!("containerd-shim-holdfast-v2 {}\n", env!("CARGO_PKG_VERSION"))
}

/// A text that nobody else has.
fn identity() -> io::Result<String> {
    let mut bytes = [0; 12];
    random::fill(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
