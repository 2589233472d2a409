//! `holdfast-init PROGRAM [ARG]...`: the first process of a container. It starts the program, hands signals on
//! to it, reaps every process whose parent has ended, and ends as the program does.
//!
//! All signals are blocked, so they wait in a descriptor, and none ends this process.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};

use holdfast_sys::pidfd::PidFd;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, tcsetpgrp};

const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;
const FAILED: u8 = 125;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        return fail(FAILED, "usage: holdfast-init PROGRAM [ARG]...");
    };
    match live(program, args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(FAILED, error),
    }
}

fn fail(code: u8, error: impl std::fmt::Display) -> ExitCode {
    use std::io::Write;
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr(), "holdfast-init: {error}");
    ExitCode::from(code)
}

fn live(program: OsString, args: impl Iterator<Item = OsString>) -> io::Result<u8> {
    let all = SigSet::all();
    all.thread_block()?;
    let signals = SignalFd::new(&all)?;
    let mut command = Command::new(&program);
    command.args(args);
    let has_terminal = io::stdin().is_terminal();
    if has_terminal {
        // Else a Ctrl-C would come to the program twice: from the terminal, and from us.
        command.process_group(0);
    }
    let child = match spawn(&mut command) {
        Ok(child) => Pid::from_raw(child.id().cast_signed()),
        Err(error) => {
            let code = match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                io::ErrorKind::PermissionDenied => NOT_EXECUTABLE,
                _ => FAILED,
            };
            fail(code, format_args!("{}: {error}", program.display()));
            return Ok(code);
        }
    };
    if has_terminal && tcsetpgrp(io::stdin(), child).is_ok() {
        // It may have read from the terminal before that was its own, and have been stopped for it.
        let _ = killpg(child, Signal::SIGCONT);
    }
    loop {
        // Before the first signal too: the program may have ended while the thread that started it took
        // the signal of that.
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        // A failure of this is none of a signal, and would come again.
        let Some(info) = signals.read_signal()? else { continue };
        let signal = info.ssi_signo.cast_signed();
        if signal != Signal::SIGCHLD as i32 {
            hand_on(signal, child);
        }
    }
}

/// Starts the program without blocked signals: it has the mask of the thread that starts it. A signal that
/// comes while this thread is there may be lost, as one that comes before a program handles it.
fn spawn(command: &mut Command) -> io::Result<Child> {
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            SigSet::empty().thread_set_mask()?;
            command.spawn()
        });
        started.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
    })
}

/// Sends the program a signal. Its number is nobody else's: it is reaped here, and then this process ends.
fn hand_on(signal: i32, child: Pid) {
    // It may just have ended, so a failure means nothing.
    let _ = match Signal::try_from(signal) {
        Ok(signal) => kill(child, signal).map_err(io::Error::from),
        // A real-time signal.
        Err(_) => PidFd::open(child.as_raw()).and_then(|handle| handle.send_signal(signal)),
    };
}

/// Reaps all that have ended. Returns the exit status once the program is among them.
fn reap(child: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => {
                code = Some(u8::try_from(status).unwrap_or(u8::MAX));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                code = Some(128_u8.saturating_add(u8::try_from(signal as i32).unwrap_or(u8::MAX)));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
