//! What a shim says on the exit FIFO: one line a change, written only after the files that it
//! speaks of are complete, so a reader that was not there loses nothing by reading the files.

use std::fmt;

use holdfast_sys::Termination;

/// One line on the exit FIFO. The end of file that follows the last one says that the shim is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// The runtime has done its work and the `pid` file is there.
    Created {
        /// The container process, as the host counts.
        pid: i32,
    },
    /// The process ended and its status is on disk.
    Exited(Termination),
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { pid } => writeln!(f, "created {pid}"),
            Self::Exited(Termination::Exited(code)) => writeln!(f, "exited code {code}"),
            Self::Exited(Termination::Signaled(signal)) => writeln!(f, "exited signal {signal}"),
        }
    }
}

impl Announcement {
    /// Reads one line without its line feed; `None` for one that makes no sense.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let announcement = match (words.next()?, words.next()?) {
            ("created", pid) => Self::Created { pid: pid.parse().ok().filter(|pid| *pid > 0)? },
            ("exited", "code") => Self::Exited(Termination::Exited(words.next()?.parse().ok()?)),
            ("exited", "signal") => {
                Self::Exited(Termination::Signaled(words.next()?.parse().ok()?))
            }
            _ => return None,
        };
        words.next().is_none().then_some(announcement)
    }
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
            Announcement::Created { pid: 1 },
            Announcement::Exited(Termination::Exited(255)),
            Announcement::Exited(Termination::Signaled(64)),
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
            "exited",
            "exited code 256",
            "x y",
        ] {
            assert_eq!(Announcement::parse(bad), None, "{bad:?}");
        }
    }
}
