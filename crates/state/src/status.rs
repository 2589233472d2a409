//! Exit statuses, and how they are known.

use std::fmt;

use holdfast_sys::Termination;
use holdfast_sys::ending::Source;
use serde::{Deserialize, Serialize};

use crate::{EventKind, Timestamp};

/// The number for an unknown exit status, as in containerd's 2016 shim.
pub const UNKNOWN_STATUS: u8 = 255;

/// How a process ended: the status that waitid(2) returns, or why it is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
    /// It ended, and its exit status is unknown.
    Unknown(UnknownReason),
}

/// Why an exit status is unknown. This is never given as a number only: an unknown status is neither
/// a success nor a certain failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum UnknownReason {
    /// The machine was rebooted before an exit was recorded.
    MachineRebooted,
    /// It exited while there was neither its shim nor a supervisor.
    ExitedUnwatched,
    /// Its shim died, and another process reaped it. Linux reports the status of such a process from
    /// version 6.15 on.
    ReapedByAnother,
    /// Its shim died, and this kernel (before 5.17) reports only the status of the main thread, which
    /// may differ from that of the process.
    MainThreadOnly,
    /// The files that contain the exit status are damaged.
    UnreadableRecord,
    /// The only record is the number 255 in `exitStatus`, which also stands for an unknown status.
    RecordedAsUnknown,
}

impl fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MachineRebooted => "machine rebooted",
            Self::ExitedUnwatched => "exited while shim and daemon were dead",
            Self::ReapedByAnother => "reaped by another process after its shim died",
            Self::MainThreadOnly => {
                "its shim died, and this kernel shows the status of the main thread only"
            }
            Self::UnreadableRecord => "the recorded status is unreadable",
            Self::RecordedAsUnknown => "recorded as unknown",
        })
    }
}

impl ExitStatus {
    /// Returns the number that a shell would show: the code, 128 + the signal, or 255 if the status is
    /// unknown. This is the content of the file `exitStatus`.
    #[must_use]
    pub fn as_number(self) -> u8 {
        match self {
            Self::Code(code) => code,
            // A number that is no signal can only come from a damaged file.
            Self::Signal(signal @ 1..=64) => u8::try_from(128 + signal).unwrap_or(UNKNOWN_STATUS),
            Self::Signal(_) => UNKNOWN_STATUS,
            Self::Unknown(_) => UNKNOWN_STATUS,
        }
    }

    /// Returns the exit code, if it exited by itself.
    #[must_use]
    pub fn code(self) -> Option<u8> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) | Self::Unknown(_) => None,
        }
    }

    /// Returns the number of the signal that ended it, if one did.
    #[must_use]
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Signal(signal) => Some(signal),
            Self::Code(_) | Self::Unknown(_) => None,
        }
    }

    /// Returns whether it exited with code 0.
    #[must_use]
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

impl From<Termination> for ExitStatus {
    fn from(end: Termination) -> Self {
        match end {
            Termination::Exited(code) => Self::Code(code),
            Termination::Signaled(signal) => Self::Signal(signal),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Signal(signal) => write!(f, "{} (signal {signal})", self.as_number()),
            Self::Unknown(reason) => write!(f, "unknown ({reason})"),
        }
    }
}

/// How an exit status is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Evidence {
    /// From waitid(2) by the shim, the parent of the process.
    Shim,
    /// From waitid(2) by the supervisor, which the process had as its parent after its shim died.
    Parent,
    /// From the kernel, by a pidfd, after another process reaped it (Linux 6.15 or later).
    Pidfd,
    /// From `/proc`, where the kernel shows the status of a zombie.
    Zombie,
    /// From the file `exitStatus` alone: that of containerd's 2016 shim, or `exit.json` is gone.
    StatusFile,
    /// It is not known; the status gives the reason.
    None,
}

impl Evidence {
    /// Returns the word that stands for it in records.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Shim => "shim",
            Self::Parent => "parent",
            Self::Pidfd => "pidfd",
            Self::Zombie => "zombie",
            Self::StatusFile => "status-file",
            Self::None => "none",
        }
    }

    /// Returns the evidence for which a word stands.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        let all =
            [Self::Shim, Self::Parent, Self::Pidfd, Self::Zombie, Self::StatusFile, Self::None];
        all.into_iter().find(|evidence| evidence.word() == word)
    }
}

impl From<Source> for Evidence {
    fn from(source: Source) -> Self {
        match source {
            Source::Parent => Self::Parent,
            Source::Pidfd => Self::Pidfd,
            Source::Zombie => Self::Zombie,
        }
    }
}

/// How a process ended, and how that is known: the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ExitRecord {
    /// The exit status.
    pub status: ExitStatus,
    /// How that is known.
    pub evidence: Evidence,
    /// When it was recorded.
    pub time: Timestamp,
    /// Whether the OOM killer killed a process of the container during this run, as far as the
    /// kernel's counter could be read. Always `false` for an exec.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
}

impl ExitRecord {
    /// Returns a record with the current time.
    #[must_use]
    pub fn now(status: ExitStatus, evidence: Evidence) -> Self {
        Self { status, evidence, time: Timestamp::now(), oom_killed: false }
    }

    /// Returns the event of this exit.
    #[must_use]
    pub fn event(&self) -> EventKind {
        let Self { status, evidence, oom_killed, .. } = *self;
        EventKind::Exited { status, evidence, oom_killed }
    }
}

/// Parses the content of an `exitStatus` file: a decimal number, or `%!u(uint32=137)`, which
/// containerd's 2016 shim wrote because of an error in its format string. `None` if the file is
/// empty (`ErrProcessNotExited` of that shim).
///
/// A number alone does not distinguish a code from a signal, so 128+n is read as a code.
#[must_use]
pub fn parse_status_file(content: &[u8]) -> Option<ExitStatus> {
    let text = content.trim_ascii();
    if text.is_empty() {
        return None;
    }
    let number =
        text.strip_prefix(b"%!u(uint32=").and_then(|rest| rest.strip_suffix(b")")).unwrap_or(text);
    let number = std::str::from_utf8(number).ok().and_then(|s| s.parse::<u8>().ok());
    Some(match number {
        Some(UNKNOWN_STATUS) => ExitStatus::Unknown(UnknownReason::RecordedAsUnknown),
        Some(code) => ExitStatus::Code(code),
        None => ExitStatus::Unknown(UnknownReason::UnreadableRecord),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_success_comes_out_of_what_is_none(content in proptest::collection::vec(any::<u8>(), 0..16)) {
            let text = String::from_utf8_lossy(&content);
            let digits = text.trim().trim_start_matches("%!u(uint32=").trim_end_matches(')');
            let is_zero = digits.trim_start_matches('+').trim_start_matches('0').is_empty()
                && digits.contains('0');
            let success = parse_status_file(&content).is_some_and(ExitStatus::success);
            prop_assert!(!success || is_zero, "{text:?}");
        }

        #[test]
        fn any_code_and_signal_comes_back(code in any::<u8>(), signal in any::<i32>()) {
            for status in [ExitStatus::Code(code), ExitStatus::Signal(signal)] {
                let record = ExitRecord::now(status, Evidence::Shim);
                let json = serde_json::to_vec(&record).unwrap();
                prop_assert_eq!(serde_json::from_slice::<ExitRecord>(&json).unwrap(), record);
                prop_assert_eq!(status.as_number() == 0, status.success());
            }
        }
    }

    #[test]
    fn status_files_of_ours_and_of_the_seed() {
        let unknown = |reason| Some(ExitStatus::Unknown(reason));
        assert_eq!(parse_status_file(b""), None);
        assert_eq!(parse_status_file(b"0"), Some(ExitStatus::Code(0)));
        assert_eq!(parse_status_file(b"42\n"), Some(ExitStatus::Code(42)));
        assert_eq!(parse_status_file(b"%!u(uint32=137)"), Some(ExitStatus::Code(137)));
        assert_eq!(
            parse_status_file(b"%!u(uint32=255)"),
            unknown(UnknownReason::RecordedAsUnknown)
        );
        assert_eq!(parse_status_file(b"255"), unknown(UnknownReason::RecordedAsUnknown));
        for garbage in [&b"256"[..], b"-1", b"x", b"\xff\xfe", b"%!u(uint32=)"] {
            assert_eq!(parse_status_file(garbage), unknown(UnknownReason::UnreadableRecord));
        }
    }

    #[test]
    fn an_evidence_is_recorded_by_its_word() {
        for (evidence, word) in [
            (Evidence::Shim, "shim"),
            (Evidence::Parent, "parent"),
            (Evidence::Pidfd, "pidfd"),
            (Evidence::Zombie, "zombie"),
            (Evidence::StatusFile, "status-file"),
            (Evidence::None, "none"),
        ] {
            assert_eq!(serde_json::to_value(evidence).unwrap(), word);
            assert_eq!(evidence.word(), word);
            assert_eq!(Evidence::of_word(word), Some(evidence));
        }
        for word in ["", "Shim", "status_file"] {
            assert_eq!(Evidence::of_word(word), None);
        }
    }

    #[test]
    fn numbers_as_a_shell_shows_them() {
        assert_eq!(ExitStatus::Code(7).as_number(), 7);
        assert_eq!(ExitStatus::Signal(9).as_number(), 137);
        assert_eq!(ExitStatus::Signal(37).as_number(), 165);
        for no_signal in [i32::MIN, -128, 0, 65, i32::MAX] {
            assert_eq!(ExitStatus::Signal(no_signal).as_number(), 255);
        }
        assert_eq!(ExitStatus::Unknown(UnknownReason::MachineRebooted).as_number(), 255);
    }

    #[test]
    fn a_status_says_what_it_is() {
        for (status, text) in [
            (ExitStatus::Code(7), "7"),
            (ExitStatus::Signal(9), "137 (signal 9)"),
            (ExitStatus::Unknown(UnknownReason::MachineRebooted), "unknown (machine rebooted)"),
            (
                ExitStatus::Unknown(UnknownReason::UnreadableRecord),
                "unknown (the recorded status is unreadable)",
            ),
        ] {
            assert_eq!(status.to_string(), text);
        }
        assert_eq!(ExitStatus::from(Termination::Exited(7)), ExitStatus::Code(7));
        assert_eq!(ExitStatus::from(Termination::Signaled(7)), ExitStatus::Signal(7));
    }

    #[test]
    fn code_0_alone_is_a_success() {
        assert!(ExitStatus::Code(0).success());
        let reason = UnknownReason::RecordedAsUnknown;
        for status in [ExitStatus::Code(1), ExitStatus::Signal(0), ExitStatus::Unknown(reason)] {
            assert!(!status.success(), "{status}");
        }
    }
}
