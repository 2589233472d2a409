//! The messages by which descriptors of a process go from one to another of those who look after it:
//! from a supervisor to the shim that adopts, to the shim of a group, and to that from the one that
//! has started the process.
//!
//! A shim that adopts one process is told with one byte a descriptor, in the order in which they go
//! along with it (`SCM_RIGHTS`). The shim of a group is told the number of those bytes before them,
//! and after them the command line that a shim of the process's own would have, its words ended by
//! a zero byte each. So is a spare shim, from the program's name on.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The pidfd of the process. Without one it is yet to be started.
pub const PROCESS: u8 = b'p';
/// The reading end of its standard output.
pub const STDOUT: u8 = b'o';
/// The reading end of its standard error.
pub const STDERR: u8 = b'e';
/// The master of its terminal.
pub const TERMINAL: u8 = b't';
/// Its stdin FIFO, open for writing so that it does not end.
pub const STDIN: u8 = b'i';
/// The writing end of its exit FIFO.
pub const EXIT: u8 = b'x';
/// Its control FIFO.
pub const CONTROL: u8 = b'c';
/// Its shim's log, for one that is to be started.
pub const LOG: u8 = b'l';

/// The option by which a shim is that of a group, whose place follows. The socket where it takes
/// messages is its standard input.
pub const GROUP_OPTION: &str = "--group";
/// The option by which a shim hands the process over to a group once that is started. The socket
/// for that is its standard input.
pub const SEAT_OPTION: &str = "--seat";
/// The option by which a shim waits for a start of which it is told by its standard input.
pub const SPARE_OPTION: &str = "--spare";
/// The option of a process that only closes the descriptors that come by its standard input, and says
/// so by one byte a message.
pub const CLOSER_OPTION: &str = "--closer";
/// The option by which a shim tells with each descriptor what it is ([`ShimFd`](crate::announce::ShimFd)). A
/// supervisor that gives it understands that; to the group of a build before it is not given.
pub const IDENTIFY_OPTION: &str = "--identify";
/// As `--adopt`, for a process whose shim, the pid that follows, has handed it over and left nothing half
/// done.
pub const MOVED_OPTION: &str = "--moved";

/// The longest message with words, in bytes.
pub const MESSAGE_LIMIT: usize = 128 * 1024;

/// A message with words.
#[must_use]
pub fn message<'a>(kinds: &[u8], words: impl IntoIterator<Item = &'a OsStr>) -> Vec<u8> {
    let mut message = vec![u8::try_from(kinds.len()).unwrap_or(u8::MAX)];
    message.extend_from_slice(kinds);
    for word in words {
        message.extend_from_slice(word.as_bytes());
        message.push(0);
    }
    message
}

/// The kinds and the words of such a message. `None` if it makes no sense.
#[must_use]
pub fn read_message(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = message.split_first()?;
    let (kinds, words) = rest.split_at_checked(usize::from(*count))?;
    words.ends_with(&[0]).then_some((kinds, words))
}

/// The words that such a message has, each ended by a zero byte.
pub fn words(bytes: &[u8]) -> impl Iterator<Item = &OsStr> + Clone {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    bytes.split(|&byte| byte == 0).map(OsStr::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_makes_sense_reads_back(bytes in any::<Vec<u8>>()) {
            if let Some((kinds, text)) = read_message(&bytes) {
                prop_assert_eq!(message(kinds, words(text)), bytes);
            }
        }
    }

    #[test]
    fn words_may_be_empty_and_no_text() {
        let said = [OsStr::new("--dir"), OsStr::new(""), OsStr::from_bytes(&[0xff])];
        let message = message(&[EXIT, LOG], said);
        let (kinds, text) = read_message(&message).unwrap();
        assert_eq!((kinds, words(text).collect::<Vec<_>>()), (&[EXIT, LOG][..], said.to_vec()));
        assert_eq!(read_message(&[]), None);
        assert_eq!(read_message(&[3, EXIT]), None);
    }
}
