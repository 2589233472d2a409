//! What a shim says on the exit FIFO: one line a change, written only after the files that it
//! speaks of are complete, so a reader that was not there loses nothing by reading the files.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::str::FromStr;

use holdfast_sys::Termination;
use holdfast_sys::fd::Identity;
use serde::{Deserialize, Serialize};

use crate::time::TEXT_LEN;
use crate::{Evidence, ExitRecord, Timestamp};

/// The longest line that is an announcement, in bytes, with its line feed; a longer one is nonsense.
pub const MAX_LINE: usize = 256;

/// One line on the exit FIFO. The end of file that follows the last one says that the shim is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// The runtime has done its work and the `pid` file is there.
    Created {
        /// The container process, as the host counts.
        pid: i32,
        /// Its shim.
        shim: Announcer,
    },
    /// This shim has taken the process over from one that died.
    Adopted {
        /// The new one.
        shim: Announcer,
    },
    /// The start came to nothing, and nothing is left of it. The shim's log says why.
    GivenUp {
        /// Whether it took too long.
        timed_out: bool,
    },
    /// The process ended and its status is on disk.
    Exited {
        /// How it ended.
        end: Termination,
        /// How the shim knows.
        evidence: Evidence,
        /// What earlier builds did not announce, and supervisors of earlier builds do not understand.
        details: Option<ExitDetails>,
    },
}

/// What an exit record has besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitDetails {
    /// When the exit was recorded, as [`format`](crate::time::format) writes it.
    pub time: [u8; TEXT_LEN],
    /// Whether the OOM killer killed a process of the container.
    pub oom_killed: bool,
}

/// The last word of an exit after the OOM killer has killed.
const OOM: &str = "oom";

/// Who announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcer {
    /// Its pid.
    pub pid: i32,
    /// What it reads from.
    pub stdio: StdioFds,
}

/// A descriptor of a shim's. Its number alone says little: once it is closed, the number is used again, in a
/// group for a neighbour's pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "NumberOrText", into = "NumberOrText")]
pub struct ShimFd {
    /// Its number.
    pub number: i32,
    /// What it is open for; `None` in what builds wrote that did not tell.
    pub identity: Option<Identity>,
}

impl fmt::Display for ShimFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identity {
            Some(identity) => write!(f, "{}:{identity}", self.number),
            None => self.number.fmt(f),
        }
    }
}

/// A text that names no descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no descriptor")]
pub struct InvalidFd(String);

impl FromStr for ShimFd {
    type Err = InvalidFd;

    fn from_str(text: &str) -> Result<Self, InvalidFd> {
        let invalid = || InvalidFd(text.to_owned());
        let (number, identity) = match text.split_once(':') {
            Some((number, identity)) => (number, Some(identity.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        let number = number.parse().ok().filter(|number| *number >= 0).ok_or_else(invalid)?;
        Ok(Self { number, identity })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i32),
    Text(String),
}

impl TryFrom<NumberOrText> for ShimFd {
    type Error = InvalidFd;

    fn try_from(form: NumberOrText) -> Result<Self, InvalidFd> {
        match form {
            NumberOrText::Number(number) => number.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<ShimFd> for NumberOrText {
    fn from(fd: ShimFd) -> Self {
        match fd.identity {
            Some(_) => Self::Text(fd.to_string()),
            None => Self::Number(fd.number),
        }
    }
}

/// The descriptors by which a shim reads what its process writes. The supervisor keeps copies, so that
/// nothing is lost with the shim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StdioFds {
    /// The pipe of its standard output.
    pub stdout: Option<ShimFd>,
    /// The pipe of its standard error.
    pub stderr: Option<ShimFd>,
    /// The master of its terminal.
    pub terminal: Option<ShimFd>,
}

impl StdioFds {
    /// Those there are.
    pub fn all(&self) -> impl Iterator<Item = ShimFd> {
        [self.stdout, self.stderr, self.terminal].into_iter().flatten()
    }
}

impl fmt::Display for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StdioFds { stdout, stderr, terminal } = self.stdio;
        write!(f, "shim={}", self.pid)?;
        for (name, fd) in [("stdout", stdout), ("stderr", stderr), ("terminal", terminal)] {
            if let Some(fd) = fd {
                write!(f, " {name}={fd}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { pid, shim } => writeln!(f, "created {pid} {shim}"),
            Self::Adopted { shim } => writeln!(f, "adopted {shim}"),
            Self::GivenUp { timed_out: false } => writeln!(f, "given-up failed"),
            Self::GivenUp { timed_out: true } => writeln!(f, "given-up timed-out"),
            Self::Exited { end, evidence, details } => {
                match end {
                    Termination::Exited(code) => write!(f, "exited code {code}")?,
                    Termination::Signaled(signal) => write!(f, "exited signal {signal}")?,
                }
                match (evidence, details) {
                    (Evidence::Shim, None) => {}
                    (evidence, _) => write!(f, " {}", evidence.word())?,
                }
                if let Some(ExitDetails { time, oom_killed }) = details {
                    write!(f, " {}", std::str::from_utf8(time).map_err(|_| fmt::Error)?)?;
                    if *oom_killed {
                        write!(f, " {OOM}")?;
                    }
                }
                writeln!(f)
            }
        }
    }
}

impl Announcement {
    /// The exit that is announced, if one is. If its time is not announced, it is now.
    #[must_use]
    pub fn exit(&self) -> Option<ExitRecord> {
        match *self {
            Self::Exited { end, evidence, details } => {
                let record = ExitRecord::now(end.into(), evidence);
                let time = details.and_then(|it| std::str::from_utf8(&it.time).ok()?.parse().ok());
                Some(ExitRecord {
                    time: time.unwrap_or(record.time),
                    oom_killed: details.is_some_and(|details| details.oom_killed),
                    ..record
                })
            }
            Self::Created { .. } | Self::Adopted { .. } | Self::GivenUp { .. } => None,
        }
    }

    /// Reads one line without its line feed; `None` for one that makes no sense.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let announcement = match words.next()? {
            "created" => {
                let pid = words.next()?.parse().ok().filter(|pid| *pid > 0)?;
                Self::Created { pid, shim: announcer(&mut words)? }
            }
            "adopted" => Self::Adopted { shim: announcer(&mut words)? },
            "given-up" => match words.next()? {
                "failed" => Self::GivenUp { timed_out: false },
                "timed-out" => Self::GivenUp { timed_out: true },
                _ => return None,
            },
            "exited" => {
                let end = match words.next()? {
                    "code" => Termination::Exited(words.next()?.parse().ok()?),
                    "signal" => Termination::Signaled(words.next()?.parse().ok()?),
                    _ => return None,
                };
                let evidence = words.next().map_or(Some(Evidence::Shim), Evidence::of_word)?;
                let details = match words.next() {
                    None => None,
                    Some(time) => {
                        time.parse::<Timestamp>().ok()?;
                        let time = time.as_bytes().try_into().ok()?;
                        let oom_killed = match words.next() {
                            None => false,
                            Some(OOM) => true,
                            Some(_) => return None,
                        };
                        Some(ExitDetails { time, oom_killed })
                    }
                };
                Self::Exited { end, evidence, details }
            }
            _ => return None,
        };
        words.next().is_none().then_some(announcement)
    }
}

impl Announcer {
    /// Reads what [`Display`](fmt::Display) writes; `None` if it makes no sense.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        announcer(&mut text.split(' '))
    }
}

/// Writes a line of at most [`MAX_LINE`] bytes at once, without memory of its own.
///
/// # Errors
///
/// Those of write(2).
pub fn write_line(mut to: &File, line: impl fmt::Display) -> io::Result<()> {
    // On the stack: the smallest allocation can be the one that keeps a page.
    let mut buffer = [0; MAX_LINE];
    let mut rest = buffer.as_mut_slice();
    let _ = write!(rest, "{line}");
    let length = MAX_LINE - rest.len();
    to.write_all(&buffer[..length])
}

fn announcer<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Announcer> {
    let pid = words.next()?.strip_prefix("shim=")?.parse().ok().filter(|pid| *pid > 0)?;
    let mut stdio = StdioFds::default();
    for word in words {
        let (name, fd) = word.split_once('=')?;
        let fd = Some(fd.parse().ok()?);
        match name {
            "stdout" => stdio.stdout = fd,
            "stderr" => stdio.stderr = fd,
            "terminal" => stdio.terminal = fd,
            _ => return None,
        }
    }
    Some(Announcer { pid, stdio })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_line_is_an_announcement_or_nothing(
            line in prop_oneof![any::<String>(), "(created|exited)( (code|signal))? -?[0-9]{0,12}"])
        {
            if let Some(said) = Announcement::parse(&line) {
                prop_assert_eq!(Announcement::parse(said.to_string().trim_end()), Some(said));
            }
        }
    }

    fn fd(text: &str) -> Option<ShimFd> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn a_descriptor_in_a_record_is_a_number_or_a_number_and_what_it_is() {
        for (json, text) in [("7", "7"), ("\"7:14.99\"", "7:14.99")] {
            let read: ShimFd = serde_json::from_str(json).unwrap();
            assert_eq!(read, text.parse().unwrap());
            assert_eq!(serde_json::to_string(&read).unwrap(), json);
        }
        for json in ["-1", "\"\"", "\"7:\"", "\"x:1.2\"", "\"7:1\"", "null"] {
            assert!(serde_json::from_str::<ShimFd>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn the_longest_announcement_is_a_line() {
        let longest = format!("{}:{}.{}", i32::MAX, u64::MAX, u64::MAX);
        let stdio = StdioFds { stdout: fd(&longest), stderr: fd(&longest), terminal: fd(&longest) };
        let shim = Announcer { pid: i32::MAX, stdio };
        let said = Announcement::Created { pid: i32::MAX, shim };
        assert!(said.to_string().len() <= MAX_LINE, "{}", said.to_string().len());
    }

    fn exited(end: Termination, evidence: Evidence, oom_killed: Option<bool>) -> Announcement {
        let time = crate::time::format(std::time::SystemTime::now());
        let details = oom_killed.map(|oom_killed| ExitDetails { time, oom_killed });
        Announcement::Exited { end, evidence, details }
    }

    #[test]
    fn an_exit_is_announced_with_its_time_or_it_is_now() {
        let text = "exited signal 9 shim 2016-10-06T00:17:09.669794202Z oom";
        let exit = Announcement::parse(text).unwrap().exit().unwrap();
        assert_eq!(exit.time.as_str(), "2016-10-06T00:17:09.669794202Z");
        assert!(exit.oom_killed);
        let before = Timestamp::now();
        let exit = Announcement::parse("exited code 3").unwrap().exit().unwrap();
        assert!(exit.time >= before && !exit.oom_killed);
        assert_eq!(Announcement::parse("given-up failed").unwrap().exit(), None);
    }

    #[test]
    fn lines_read_back() {
        for said in [
            Announcement::Created {
                pid: 1,
                shim: Announcer { pid: 2, stdio: StdioFds::default() },
            },
            Announcement::Created {
                pid: 7,
                shim: Announcer {
                    pid: 8,
                    stdio: StdioFds { stdout: fd("5"), stderr: fd("6:14.77"), terminal: None },
                },
            },
            Announcement::Adopted {
                shim: Announcer {
                    pid: 9,
                    stdio: StdioFds { terminal: fd("9:26.0"), ..StdioFds::default() },
                },
            },
            Announcement::GivenUp { timed_out: false },
            Announcement::GivenUp { timed_out: true },
            exited(Termination::Exited(255), Evidence::Shim, None),
            exited(Termination::Signaled(64), Evidence::Pidfd, None),
            exited(Termination::Exited(0), Evidence::Shim, Some(false)),
            exited(Termination::Signaled(9), Evidence::Pidfd, Some(true)),
        ] {
            let line = said.to_string();
            assert_eq!(Announcement::parse(line.strip_suffix('\n').unwrap()), Some(said));
        }
        for bad in [
            "",
            "created",
            "created -1 shim=3",
            "created 0 shim=3",
            "created 1 2",
            "created 1 shim=0",
            "created 1 shim=3 stdout",
            "adopted stdout=1",
            "adopted shim=1 tty=1",
            "adopted shim=1 stdout=-1",
            "adopted shim=1 stdout=1:2",
            "exited",
            "exited code 256",
            "exited code 1 oom",
            "exited code 1 shim oom",
            "exited code 1 shim 2016-10-06T00:17:09Z",
            "exited code 1 shim 2016-10-06T00:17:09.669794202Z out",
            "exited code 1 shim 2016-10-06T00:17:09.669794202Z oom oom",
            "given-up",
            "given-up timed-out late",
            "x y",
        ] {
            assert_eq!(Announcement::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_descriptors_of_a_shim_are_those_that_it_has() {
        let stdio = StdioFds { stdout: fd("5"), stderr: None, terminal: fd("9:26.0") };
        assert_eq!(stdio.all().map(Some).collect::<Vec<_>>(), [fd("5"), fd("9:26.0")]);
        assert_eq!(StdioFds::default().all().count(), 0);
    }
}
