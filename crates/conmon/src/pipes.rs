//! The pipes between the monitor and its caller. Their numbers are in the environment.

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};

use crate::args::Args;
use crate::report;

/// The longest message, in bytes. podman reads a message with a buffer of 4096 bytes, and the rest of a longer
/// packet is lost.
const MAX_RECORD: usize = 4095;

#[derive(Default)]
pub(crate) struct Pipes {
    /// Takes the pid, and for an exec the status.
    pub(crate) sync: Sync,
    /// Gives a byte when the monitor is to start, and with `--exec-attach` another when the exec is to.
    pub(crate) start: Option<OwnedFd>,
    /// Takes a message when clients can attach.
    pub(crate) attach: Sync,
}

impl Pipes {
    /// Takes the pipes out of the inherited descriptors, and sets them close-on-exec.
    pub(crate) fn take(args: &Args<'_>, inherited: &mut Vec<OwnedFd>) -> Result<Self, String> {
        let start = take("_OCI_STARTPIPE", inherited)?;
        let sync = Sync::new(args, take("_OCI_SYNCPIPE", inherited)?);
        let attach = match args.exec_attach {
            true => take("_OCI_ATTACHPIPE", inherited)?,
            false => None,
        };
        if args.exec_attach && attach.is_none() {
            return Err("--attach specified but _OCI_ATTACHPIPE was not".to_owned());
        }
        Ok(Self { sync, start, attach: Sync::new(args, attach) })
    }
}

/// Takes the descriptor whose number is in this variable.
fn take(variable: &str, inherited: &mut Vec<OwnedFd>) -> Result<Option<OwnedFd>, String> {
    let Some(text) = std::env::var_os(variable) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse::<RawFd>().ok());
    let number = number.ok_or_else(|| format!("unable to parse {variable}"))?;
    let at = inherited.iter().position(|fd| fd.as_raw_fd() == number);
    let pipe = at.map(|at| inherited.swap_remove(at));
    let pipe = pipe.ok_or_else(|| format!("{variable}: descriptor {number} is not open"))?;
    fcntl(&pipe, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| format!("unable to make {variable} CLOEXEC: {error}"))?;
    Ok(Some(pipe))
}

/// A pipe for messages. It is closed when nobody reads it.
#[derive(Default)]
pub(crate) struct Sync {
    key: &'static str,
    pipe: Option<OwnedFd>,
}

impl Sync {
    pub(crate) fn new(args: &Args<'_>, pipe: Option<OwnedFd>) -> Self {
        let key = if args.api_version {
            "data"
        } else if args.exec {
            "exit_code"
        } else {
            "pid"
        };
        Self { key, pipe }
    }

    /// Returns the descriptor, if it is a socket. Of a pipe another copy would keep the caller from its end.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        let is_socket = |pipe: &&OwnedFd| getsockopt(*pipe, sockopt::SockType).is_ok();
        self.pipe.as_ref().filter(is_socket).map(AsFd::as_fd)
    }

    /// Sends a number and, if it is not empty, a message.
    pub(crate) fn send(&mut self, number: i32, message: &[u8]) {
        let Some(pipe) = &self.pipe else { return };
        let record = record(self.key, number, message);
        let mut rest = record.as_bytes();
        while !rest.is_empty() {
            match nix::unistd::write(pipe, rest) {
                Ok(length) => rest = &rest[length..],
                Err(Errno::EINTR) => {}
                Err(error) => {
                    if error != Errno::EPIPE {
                        report::warn(&format!("a message to the caller is lost: {error}"));
                    }
                    self.pipe = None;
                    return;
                }
            }
        }
    }

    /// Closes it, and every copy if it is a socket.
    pub(crate) fn close(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            let _ = shutdown(pipe.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// Formats a message. One that is too long is cut.
fn record(key: &str, number: i32, message: &[u8]) -> String {
    let mut record = format!("{{\"{key}\": {number}");
    if !message.is_empty() {
        const END: &str = "\"}\n";
        record.push_str(", \"message\": \"");
        for letter in String::from_utf8_lossy(message).chars() {
            let before = record.len();
            let _ = match letter {
                '"' | '\\' | '/' => write!(record, "\\{letter}"),
                '\n' => write!(record, "\\n"),
                '\r' => write!(record, "\\r"),
                '\t' => write!(record, "\\t"),
                '\u{8}' => write!(record, "\\b"),
                '\u{c}' => write!(record, "\\f"),
                letter if letter.is_ascii_control() => {
                    write!(record, "\\u{:04x}", u32::from(letter))
                }
                letter => write!(record, "{letter}"),
            };
            if record.len() + END.len() > MAX_RECORD {
                record.truncate(before);
                break;
            }
        }
        record.push('"');
    }
    record.push_str("}\n");
    record
}

/// Waits for a byte of the start pipe, or for its end. Until then the caller can move this process to a cgroup.
pub(crate) fn wait_for_byte(start: &OwnedFd) -> io::Result<()> {
    let mut room = [0; 512];
    loop {
        match nix::unistd::read(start, &mut room) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_looks_as_conmons() {
        assert_eq!(record("data", 7, b""), "{\"data\": 7}\n");
        let text = record("exit_code", -1, b"a/\"b\"\\\n\x01\xff\x7f\xc3\xa9");
        let expected = "{\"exit_code\": -1, \"message\": \"a\\/\\\"b\\\"\\\\\\n\\u0001\u{fffd}\\u007f\u{e9}\"}\n";
        assert_eq!(text, expected);
    }

    proptest! {
        // Each is long.
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn a_message_is_json_and_fits_whatever_the_runtime_said(
            message in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n')], 0..9000))
        {
            let text = record("data", i32::MIN, &message);
            let fits = text.len() <= MAX_RECORD && text.ends_with("}\n");
            prop_assert!(fits);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let said = json["message"].as_str().unwrap_or_default();
            let all = String::from_utf8_lossy(&message).into_owned();
            prop_assert!(all.starts_with(said) && (text.len() > MAX_RECORD - 8 || said == all));
        }
    }
}
