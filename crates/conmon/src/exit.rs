//! The exit files, and the exit command.

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use holdfast_state::Directory;
use holdfast_sys::spawn;
use nix::sys::stat::Mode;

use crate::FAILED;
use crate::args::Args;
use crate::bundle::named;
use crate::command::OomScore;
use crate::report;

/// The mode of files for others to read.
pub(crate) const READABLE: Mode =
    Mode::S_IRUSR.union(Mode::S_IWUSR).union(Mode::S_IRGRP).union(Mode::S_IROTH);

/// Writes a status to the exit files. Each is there whole or not at all. Somebody waits for the last one: the names
/// are synced behind it.
pub(crate) fn record(args: &Args<'_>, status: i32) {
    let write = |path: &Path, name| {
        let dir = Directory::open(path)?;
        dir.replace(name, status.to_string().as_bytes(), READABLE)?;
        Ok(dir)
    };
    let mut written = Vec::new();
    for (path, name) in [(args.persist_dir, "exit"), (args.exit_dir, args.id())] {
        let Some(path) = path.map(Path::new) else { continue };
        match named(&path.join(name), write(path, name)) {
            Ok(dir) => written.push((path, dir)),
            Err(error) => {
                report::error(&format!("the exit status {status} is not written: {error}"));
            }
        }
    }
    for (path, dir) in written {
        if let Err(error) = named(path, dir.sync()) {
            report::error(&format!("the exit status {status} is not synced: {error}"));
        }
    }
}

/// The program that is run after the container has ended.
pub(crate) struct ExitCommand {
    state: State,
}

enum State {
    /// It is to be run then.
    Ahead(Instant),
    Running(i32),
    /// It has ended with this exit code. If there is no exit command, with 0.
    Over(u8),
}

impl ExitCommand {
    pub(crate) fn new(args: &Args<'_>) -> Self {
        let when = Instant::now() + args.exit_delay();
        Self { state: args.exit_command.map_or(State::Over(0), |_| State::Ahead(when)) }
    }

    /// When it is to be run, if it is still to be run.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Ahead(when) => Some(when),
            _ => None,
        }
    }

    /// Runs it, if it is due.
    pub(crate) fn run(&mut self, args: &Args<'_>, score: &OomScore) {
        if self.due().is_none_or(|due| due > Instant::now()) {
            return;
        }
        score.restore();
        self.state = match spawn_it(args) {
            Ok(pid) => State::Running(pid),
            Err(error) => {
                report::error(&format!("the exit command cannot be started: {error}"));
                State::Over(FAILED)
            }
        };
    }

    /// Notes that a child has ended.
    pub(crate) fn child_ended(&mut self, pid: i32, code: u8) {
        if matches!(self.state, State::Running(own) if own == pid) {
            self.state = State::Over(code);
        }
    }

    /// Returns its exit code, once it has ended.
    pub(crate) fn code(&self) -> Option<u8> {
        match self.state {
            State::Over(code) => Some(code),
            _ => None,
        }
    }
}

fn spawn_it(args: &Args<'_>) -> io::Result<i32> {
    // What it leaves behind is not ours to wait for.
    nix::sys::prctl::set_child_subreaper(false)?;
    let mut command = Command::new(args.exit_command.unwrap_or_default());
    command.args(&args.exit_command_args);
    Ok(spawn::like_a_runtime(&mut command).spawn()?.id().cast_signed())
}
