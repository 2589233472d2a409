//! Events of containers, their numbers, and positions in the stream of events.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ContainerId, Evidence, ExitStatus, ProcessId, Timestamp};

/// An event. The numbers of a journal only grow, over all containers and over restarts of the
/// supervisor. For each process, the start comes before the exit, and the exit comes exactly once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Event {
    /// The id of the container.
    pub container: ContainerId,
    /// The incarnation of the container: a later container with the same id has another one.
    pub incarnation: Incarnation,
    /// Counts the starts within the incarnation, from 1.
    pub run: u32,
    /// The number of the event in the journal, from 1.
    pub seq: u64,
    /// When the supervisor noticed it.
    pub time: Timestamp,
    /// The process that the event is about; `init` also for events of the container as a whole.
    pub process: ProcessId,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

impl Event {
    /// Returns an event without a number, which it gets when it is appended to the journal.
    #[must_use]
    pub fn new(
        container: ContainerId,
        (incarnation, run): (Incarnation, u32),
        process: ProcessId,
        time: Timestamp,
        kind: EventKind,
    ) -> Self {
        Self { container, incarnation, run, seq: 0, time, process, kind }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// The runtime created the container; its process waits for the start.
    Created {
        /// The pid in the host's pid namespace.
        pid: i32,
    },
    /// The start failed. What is left of it is removed after this event. This is the last event of
    /// an exec process, and of a container if its init process failed to start.
    StartFailed {
        /// Why it failed.
        reason: String,
    },
    /// The runtime is about to be called to start it. Written before the call, so that a crash in
    /// between is noticed.
    Starting,
    /// The program runs.
    Started,
    /// The runtime is about to be called to freeze it.
    Pausing,
    /// Its processes are frozen.
    Paused,
    /// The runtime is about to be called to thaw it.
    Resuming,
    /// Its processes run again.
    Resumed,
    /// The OOM killer killed a process of the container.
    OutOfMemory,
    /// The state of the container was written to a directory, from which it can be restored.
    Checkpointed,
    /// The process exited.
    Exited {
        /// Its exit status.
        status: ExitStatus,
        /// How the exit status is known.
        evidence: Evidence,
        /// Whether the OOM killer killed a process of the container during this run.
        #[serde(default, rename = "oomKilled", skip_serializing_if = "std::ops::Not::not")]
        oom_killed: bool,
    },
    /// The shim of the process died; the process keeps running.
    ShimLost,
    /// A new shim has adopted the process.
    Adopted,
    /// Its damaged files were moved aside. No further events of it follow.
    SetAside,
    /// The container and everything that was stored for it is gone. The last event of its
    /// incarnation.
    Deleted,
}

/// A text that is not a valid identity of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not {expected}: {text:?}")]
pub struct InvalidIdentity {
    /// What was expected.
    pub expected: &'static str,
    /// The beginning of the text: at most 64 characters.
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
        #[cfg_attr(
            feature = "schemars",
            derive(schemars::JsonSchema),
            schemars(extend("pattern" = "^[0-9a-f]{16}$"))
        )]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(u64);

        impl $name {
            /// Returns a new random identity.
            ///
            /// # Errors
            ///
            /// If the kernel provides no random numbers.
            pub fn random() -> std::io::Result<Self> {
                let mut bytes = [0; 8];
                holdfast_sys::random::fill(&mut bytes)?;
                // Zero is reserved for "none".
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
    /// Identifies one life of a container's id, from its creation to its deletion: 16 hexadecimal
    /// digits.
    Incarnation,
    "an incarnation (16 hexadecimal digits)"
}

identity! {
    /// Identifies a journal: 16 hexadecimal digits. A state root that is created anew has another
    /// one.
    JournalId,
    "a journal's id (16 hexadecimal digits)"
}

impl Incarnation {
    /// Returns the incarnation of a container of an earlier build. Such a container has no stored
    /// incarnation, so its time of creation is used.
    #[must_use]
    pub fn of_earlier_build(created: Option<&Timestamp>) -> Self {
        // FNV-1a: the same value after every restart, and practically always another value for
        // another time.
        let text = created.map(Timestamp::as_str).unwrap_or_default();
        let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self(hash.max(1))
    }
}

/// A position in the stream of events: all events of this journal up to this number have been
/// processed. Store its text form, `JOURNAL:NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "schemars",
    derive(schemars::JsonSchema),
    schemars(extend("pattern" = "^[0-9a-f]{16}:[0-9]+$"))
)]
#[serde(try_from = "String", into = "String")]
pub struct Cursor {
    pub(crate) journal: JournalId,
    pub(crate) number: u64,
}

/// The position before all events that are kept.
impl Default for Cursor {
    fn default() -> Self {
        Self::BEGINNING
    }
}

impl Cursor {
    /// The position before all events that are kept, in any journal.
    pub const BEGINNING: Self = Self { journal: JournalId(0), number: 0 };

    /// Returns the position after this event of a journal.
    #[must_use]
    pub fn new(journal: JournalId, number: u64) -> Self {
        Self { journal, number }
    }

    /// Returns the journal.
    #[must_use]
    pub fn journal(&self) -> JournalId {
        self.journal
    }

    /// Returns the number of the last event that has been processed; 0 for none.
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
            // Signs such as in `+7` are refused: a stored cursor is compared as text.
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

/// A range of numbers for which there are no events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[error("no events {first} to {last}: {reason}")]
pub struct Gap {
    /// The first number of the range; 0 if the cursor belongs to another journal.
    pub first: u64,
    /// The last number of the range, or 0.
    pub last: u64,
    /// Why there are no events.
    pub reason: GapReason,
}

/// Why there are no events with certain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum GapReason {
    /// The events were older than the journal keeps.
    Dropped,
    /// The supervisor ended without closing its journal. The numbers that it had reserved are not
    /// used again. Events with these numbers were lost only if the machine went down too, or the
    /// disk was full.
    Unclean,
    /// The files of the journal cannot be read; the log of the supervisor gives the reason.
    Unreadable,
    /// The cursor belongs to another journal than the state root has now. What happened between the
    /// two is unknown.
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
        // These values are stored on disk, so they must never change.
        assert_eq!(of_it.to_string(), "01b65a4680f692d0");
        assert_ne!(of_it, Incarnation::of_earlier_build(None));
    }
}
