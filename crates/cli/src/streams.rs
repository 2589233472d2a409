//! Our own standard output and standard error. A write that fails is a value here, never a panic:
//! the print macros are forbidden in this crate.
//!
//! This module writes to both without a buffer, so that every error shows where it happens and nothing
//! is left to be flushed at the exit.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{SFlag, fstat};

/// How long what we wait for may take to end after the reader of our output has gone, until we go as
/// well. When a reader has all that it wanted, as `head -1` of one line, the end mostly follows by
/// itself, and then its status is worth more than ours.
const READER_GONE_LIMIT: Duration = Duration::from_millis(500);

/// Our standard output takes nothing any more.
#[derive(Debug)]
pub(crate) struct OutputError {
    cause: Errno,
    /// What is there all the same, as in `container X runs on`.
    remains: Option<String>,
}

impl OutputError {
    /// What `reader_gone` notices.
    pub(crate) fn reader_gone() -> Self {
        Self { cause: Errno::EPIPE, remains: None }
    }

    /// Names what runs on all the same, for the message.
    pub(crate) fn runs_on(self, what: impl Display) -> Self {
        Self { remains: Some(format!("{what} runs on")), ..self }
    }

    /// Names what was made all the same, for the message.
    pub(crate) fn made(self, what: impl Display) -> Self {
        Self { remains: Some(format!("{what} was made")), ..self }
    }

    /// Whether nobody reads it any more, which is the reader's right and no failure.
    pub(crate) fn is_reader_gone(&self) -> bool {
        matches!(self.cause, Errno::EPIPE | Errno::ECONNRESET)
    }

    /// Whether there is something to say: that a pipe was closed is nothing, unless work goes on.
    pub(crate) fn is_worth_telling(&self) -> bool {
        !self.is_reader_gone() || self.remains.is_some()
    }
}

impl Display for OutputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_reader_gone() {
            f.write_str("nobody reads our standard output any more")?;
        } else {
            write!(f, "standard output: {}", io::Error::from(self.cause))?;
        }
        match &self.remains {
            Some(what) => write!(f, "; {what}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for OutputError {}

/// Writes a line to our standard output.
pub(crate) fn print(line: impl Display) -> Result<(), OutputError> {
    write(format!("{line}\n").as_bytes())
}

/// Writes bytes to our standard output.
pub(crate) fn write(bytes: &[u8]) -> Result<(), OutputError> {
    write_all(io::stdout().as_fd(), bytes).map_err(|cause| OutputError { cause, remains: None })
}

/// Writes bytes to our standard error. If it is closed or full, only they are lost: nobody is left to
/// be told.
pub(crate) fn write_errors(bytes: &[u8]) {
    let _ = write_all(io::stderr().as_fd(), bytes);
}

/// Says on our standard error what is wrong, in one line.
pub(crate) fn complain(message: impl Display) {
    write_errors(format!("holdfast: {}\n", harmless(&message.to_string())).as_bytes());
}

/// Escapes what a terminal would act on: control characters, line feeds too, and those that change the
/// direction of text. A container chooses its command lines, and parts of error messages; printed as they
/// are, they could move the cursor, forge a row of a table, or hide text.
pub(crate) fn harmless(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut harmless, c| {
        if acts(c) {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
        harmless
    })
}

/// Our standard error as the sink of the daemon's log. It never fails: tracing would report the
/// failure by a print macro, which panics when standard error is closed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_errors(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of it, also to a descriptor that another process has made non-blocking.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(to, PollFlags::POLLOUT)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Reads as `read(2)` does, waiting also where the descriptor is non-blocking. 0 is the end.
pub(crate) fn read(from: BorrowedFd<'_>, into: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match nix::unistd::read(from, into) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => wait_for(from, PollFlags::POLLIN)?,
            read => return read,
        }
    }
}

fn wait_for(fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), Errno> {
    match poll(&mut [PollFd::new(fd, events)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Does something that prints, unless the reader of our standard output goes away first. Only for
/// what can be given up at any moment: requests that change nothing.
pub(crate) async fn while_read<T>(
    act: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        done = act => done,
        () = reader_gone() => Err(OutputError::reader_gone().into()),
    }
}

/// Waits until nobody has read our standard output for half a second, without writing to it. Never
/// comes if that is neither a pipe nor a socket.
pub(crate) async fn reader_gone() {
    if let Some(stdout) = pipe_or_socket()
        && let Ok(watched) = holdfast_sys::reactor::hang_up(stdout)
    {
        while let Ok(mut guard) =
            watched.ready(tokio::io::Interest::READABLE | tokio::io::Interest::ERROR).await
        {
            if has_hung_up(watched.get_ref().as_fd()) {
                return tokio::time::sleep(READER_GONE_LIMIT).await;
            }
            // A socket whose other side only sends nothing more still reads. This stays set, and
            // waiting for it again would not wait.
            if guard.ready().is_read_closed() {
                break;
            }
            guard.clear_ready();
        }
    }
    std::future::pending().await
}

fn pipe_or_socket() -> Option<OwnedFd> {
    let stdout = io::stdout();
    let kind = SFlag::from_bits_truncate(fstat(&stdout).ok()?.st_mode) & SFlag::S_IFMT;
    matches!(kind, SFlag::S_IFIFO | SFlag::S_IFSOCK)
        .then(|| stdout.as_fd().try_clone_to_owned().ok())
        .flatten()
}

fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0]
            .revents()
            .is_some_and(|revents| revents.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_escaped_and_the_rest_is_not() {
        for (text, shown) in [
            ("sh -c 'echo é 日本'", "sh -c 'echo é 日本'"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("one\n9999  forged\r\t", "one\\n9999  forged\\r\\t"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            (
                "\u{202e}txt.exe\u{2066}\u{200f}\u{2028}",
                "\\u{202e}txt.exe\\u{2066}\\u{200f}\\u{2028}",
            ),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }

    #[test]
    fn a_write_to_a_full_non_blocking_pipe_waits_and_loses_nothing() {
        let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let bytes = vec![b'x'; 1_000_000];
        let reader = std::thread::spawn(move || {
            let (mut got, mut chunk) = (0, vec![0; 4096]);
            loop {
                match read(from.as_fd(), &mut chunk).unwrap() {
                    0 => return got,
                    length => got += length,
                }
            }
        });
        write_all(to.as_fd(), &bytes).unwrap();
        drop(to);
        assert_eq!(reader.join().unwrap(), bytes.len());
    }

    #[test]
    fn the_causes_of_a_failed_write_have_their_own_words() {
        let error = |cause| OutputError { cause, remains: None };
        let full = error(Errno::ENOSPC);
        assert_eq!(full.to_string(), "standard output: No space left on device (os error 28)");
        assert!(full.is_worth_telling() && !full.is_reader_gone());
        assert!(!error(Errno::EPIPE).is_worth_telling());
        let gone = error(Errno::EPIPE).runs_on("container x");
        assert!(gone.is_worth_telling() && gone.is_reader_gone());
        assert_eq!(
            gone.to_string(),
            "nobody reads our standard output any more; container x runs on"
        );
    }
}
