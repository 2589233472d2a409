//! What happens to containers: events, their numbers, and places in the stream of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ContainerId, Evidence, ExitStatus, ProcessId, Timestamp};

/// One event. The numbers of a journal only grow, over all containers and over restarts. Of each
/// process the start comes before the exit, and the exit comes exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The name of the container.
    pub container: ContainerId,
    /// Which life of that name: another container that has the name later has another one.
    pub incarnation: Incarnation,
    /// Which start within that life, from 1.
    pub run: u32,
    /// Its number in the journal, from 1.
    pub seq: u64,
    /// When it was noticed.
    pub time: Timestamp,
    /// The process it is about: `init` also for what concerns the container as a whole.
    pub process: ProcessId,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The runtime made the container; its process waits for the start.
    Created {
        /// The process, as the host counts.
        pid: i32,
    },
    /// The start came to nothing, and what was left of it is cleared away. The last event of an exec,
    /// and of a container, whose first process this was.
    StartFailed {
        /// Why.
        reason: String,
    },
    /// The runtime is about to be told to start it. Written first, so that a crash in between is seen.
    Starting,
    /// The program runs.
    Started,
    /// The runtime is about to be told to freeze it.
    Pausing,
    /// Its processes are frozen.
    Paused,
    /// The runtime is about to be told to thaw it.
    Resuming,
    /// Its processes run again.
    Resumed,
    /// The kernel killed a process of it for want of memory.
    OutOfMemory,
    /// Its state was written to a directory, from which it can be restored.
    Checkpointed,
    /// The process ended.
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// How that is known.
        evidence: Evidence,
    },
    /// Its shim died; the process runs on.
    ShimLost,
    /// A new shim has taken it over.
    Adopted,
    /// Its files were damaged, and have been moved out of the way. Nothing more is told of it.
    SetAside,
    /// The container and all that was kept of it is gone. The last event of its incarnation.
    Deleted,
}

/// A text that is no identity of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not {expected}: {text:?}")]
pub struct InvalidIdentity {
    /// What was expected.
    pub expected: &'static str,
    /// Its beginning.
    pub text: String,
}

impl InvalidIdentity {
    fn new(expected: &'static str, text: &str) -> Self {
        Self { expected, text: text.chars().take(64).collect() }
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// A new one, which no other has.
            ///
            /// # Errors
            ///
            /// If the kernel gives no random numbers.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0; 8];
                holdfast_sys::random::fill(&mut bytes)?;
                // Zero stands for none.
                Ok(Self(u64::from_ne_bytes(bytes).max(1)))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidIdentity;

            fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
                let digits = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                match u64::from_str_radix(text, 16) {
                    Ok(number) if digits && text.len() == 16 => Ok(Self(number)),
                    _ => Err(InvalidIdentity::new($expected, text)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIdentity;

            fn try_from(text: String) -> Result<Self, InvalidIdentity> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(identity: $name) -> Self {
                identity.to_string()
            }
        }
    };
}

identity! {
    /// One life of a container's name, from its creation to its deletion: 16 hexadecimal digits.
    Incarnation,
    "an incarnation (16 hexadecimal digits)"
}

identity! {
    /// Which journal: 16 hexadecimal digits. A state root that is made anew has another one.
    JournalId,
    "a journal's id (16 hexadecimal digits)"
}

impl Incarnation {
    /// That of a container which an earlier build made: they have no number of their own, but the time
    /// of their creation.
    #[must_use]
    pub fn of_earlier_build(created: Option<&Timestamp>) -> Self {
        // FNV-1a: the same after every restart, and different where the times are.
        let text = created.map(Timestamp::as_str).unwrap_or_default();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash.max(1))
    }
}

/// A place in the stream of events: all up to this number of this journal have been dealt with. Its
/// text, `JOURNAL:NUMBER`, is what to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    pub(crate) journal: JournalId,
    pub(crate) number: u64,
}

impl Cursor {
    /// Before everything that is kept, in whichever journal.
    pub const BEGINNING: Self = Self { journal: JournalId(0), number: 0 };

    /// After this event of a journal.
    #[must_use]
    pub fn new(journal: JournalId, number: u64) -> Self {
        Self { journal, number }
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> JournalId {
        self.journal
    }

    /// The number of the last event that has been dealt with; 0 for none.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.journal, self.number)
    }
}

impl FromStr for Cursor {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let parse = || {
            let (journal, number) = text.split_once(':')?;
            // Not `+7`: what is stored is compared as text.
            let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse().ok().filter(|_| digits)?;
            Some(Self { journal: journal.parse().ok()?, number })
        };
        parse().ok_or_else(|| InvalidIdentity::new("a cursor (JOURNAL:NUMBER)", text))
    }
}

impl TryFrom<String> for Cursor {
    type Error = InvalidIdentity;

    fn try_from(text: String) -> Result<Self, InvalidIdentity> {
        text.parse()
    }
}

impl From<Cursor> for String {
    fn from(cursor: Cursor) -> Self {
        cursor.to_string()
    }
}

/// Numbers of the stream of which there is no event to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[error("no events {first} to {last}: {reason}")]
pub struct Gap {
    /// The first of them; 0 if the cursor is of another journal.
    pub first: u64,
    /// The last of them, or 0.
    pub last: u64,
    /// Why.
    pub reason: GapReason,
}

/// Why there are no events with some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GapReason {
    /// They are older than what is kept.
    Dropped,
    /// The supervisor ended without closing its journal. The numbers that it had set aside are not used
    /// again; events among them were lost only if the machine went down with them, or the disk was full.
    Unclean,
    /// The journal's files can't be read; the supervisor's log says why.
    Unreadable,
    /// The cursor is of another journal than that which the state root has now: what happened between
    /// the two is not known.
    OtherJournal,
}

impl fmt::Display for GapReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dropped => "older than what is kept",
            Self::Unclean => "the supervisor ended without closing its journal",
            Self::Unreadable => "the journal can't be read",
            Self::OtherJournal => "the cursor is of another journal",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_is_what_was_stored_and_nothing_else_is_one(
            journal in any::<u64>(), number in any::<u64>(), text in "[0-9a-f:+ ]{0,40}")
        {
            let cursor = Cursor::new(JournalId(journal), number);
            prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            if let Ok(parsed) = text.parse::<Cursor>() {
                let zeros = text[17..].trim_start_matches('0');
                let number = if zeros.is_empty() { "0" } else { zeros };
                prop_assert_eq!(parsed.to_string(), format!("{}:{number}", &text[..16]));
            }
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for text in [
            "",
            "1",
            "00000000000000g0",
            "+000000000000001",
            "00000000000000001",
            "000000000000000A",
        ] {
            assert!(text.parse::<Incarnation>().is_err(), "{text}");
            assert!(format!("{text}:1").parse::<Cursor>().is_err(), "{text}");
        }
        for text in
            ["0000000000000001", "0000000000000001:", "0000000000000001:-1", "0000000000000001:+1"]
        {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
        let error = "x".parse::<Cursor>().unwrap_err();
        assert_eq!(error.to_string(), "not a cursor (JOURNAL:NUMBER): \"x\"");
    }

    #[test]
    fn the_incarnation_of_an_earlier_build_is_the_same_after_every_restart() {
        let time: Timestamp = serde_json::from_str("\"2026-11-01T00:00:00.000000000Z\"").unwrap();
        let of_it = Incarnation::of_earlier_build(Some(&time));
        // On disk, so it may never become another.
        assert_eq!(of_it.to_string(), "01b65a4680f692d0");
        assert_ne!(of_it, Incarnation::of_earlier_build(None));
    }
}
