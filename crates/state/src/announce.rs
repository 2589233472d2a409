//! What a shim says on the exit FIFO: one line a change, written only after the files that it
//! speaks of are complete, so a reader that was not there loses nothing by reading the files.

use std::fmt;

use holdfast_sys::Termination;
use serde::{Deserialize, Serialize};

use crate::Evidence;

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
    },
}

/// Who announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcer {
    /// Its pid.
    pub pid: i32,
    /// What it reads from.
    pub stdio: StdioFds,
}

/// The numbers of the descriptors by which a shim reads what its process writes. The supervisor
/// keeps copies, so that nothing is lost with the shim.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StdioFds {
    /// The pipe of its standard output.
    pub stdout: Option<i32>,
    /// The pipe of its standard error.
    pub stderr: Option<i32>,
    /// The master of its terminal.
    pub terminal: Option<i32>,
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
            Self::Exited { end, evidence } => {
                match end {
                    Termination::Exited(code) => write!(f, "exited code {code}")?,
                    Termination::Signaled(signal) => write!(f, "exited signal {signal}")?,
                }
                match evidence {
                    Evidence::Shim => writeln!(f),
                    other => writeln!(f, " {}", other.word()),
                }
            }
        }
    }
}

impl Announcement {
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
                Self::Exited { end, evidence }
            }
            _ => return None,
        };
        words.next().is_none().then_some(announcement)
    }
}

fn announcer<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Announcer> {
    let pid = words.next()?.strip_prefix("shim=")?.parse().ok().filter(|pid| *pid > 0)?;
    let mut stdio = StdioFds::default();
    for word in words {
        let (name, fd) = word.split_once('=')?;
        let fd = Some(fd.parse().ok().filter(|fd| *fd >= 0)?);
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
                    stdio: StdioFds { stdout: Some(5), stderr: Some(6), terminal: None },
                },
            },
            Announcement::Adopted {
                shim: Announcer {
                    pid: 9,
                    stdio: StdioFds { terminal: Some(9), ..StdioFds::default() },
                },
            },
            Announcement::GivenUp { timed_out: false },
            Announcement::GivenUp { timed_out: true },
            Announcement::Exited { end: Termination::Exited(255), evidence: Evidence::Shim },
            Announcement::Exited { end: Termination::Signaled(64), evidence: Evidence::Pidfd },
        ] {
            let line = said.to_string();
            assert_eq!(Announcement::parse(line.strip_suffix('\n').unwrap()), Some(said));
        }
        for bad in [
            "",
            "created",
            "created -1",
            "created 0",
            "created 1 2",
            "created 1 shim=0",
            "created 1 shim=3 stdout",
            "adopted stdout=1",
            "adopted shim=1 tty=1",
            "adopted shim=1 stdout=-1",
            "exited",
            "exited code 256",
            "given-up",
            "given-up timed-out late",
            "x y",
        ] {
            assert_eq!(Announcement::parse(bad), None, "{bad:?}");
        }
    }
}
