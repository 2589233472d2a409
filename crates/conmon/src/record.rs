//! What who takes a container over has to know: a file in memory (memfd_create(2)), which the deposit holds.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | how far the end of the container is |
//! | 4 | its status, the lowest byte first |
//! | the rest | words, each ended by a zero byte: the facts, the command line, the environment |

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_sys::proc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};

use crate::report;

/// The version of the words.
const VERSION: &str = "1";
/// The largest record, in bytes: the command line and the environment of a process are not larger by default.
const MAX_LEN: u64 = 2 * 1024 * 1024 + 4096;
const HEAD: usize = 5;

/// How far the end of a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It has not ended.
    Running,
    /// Its status is known.
    Ended(i32),
    /// Its status is in the exit files. From now on the caller may remove the container, or start it again.
    Recorded(i32),
}

impl Phase {
    fn to_bytes(self) -> [u8; HEAD] {
        let (letter, status) = match self {
            Self::Running => (b'r', 0),
            Self::Ended(status) => (b'e', status),
            Self::Recorded(status) => (b'w', status),
        };
        let mut bytes = [letter; HEAD];
        bytes[1..].copy_from_slice(&status.to_le_bytes());
        bytes
    }

    fn of_bytes([letter, status @ ..]: [u8; HEAD]) -> Option<Self> {
        let status = i32::from_le_bytes(status);
        match letter {
            b'r' => Some(Self::Running),
            b'e' => Some(Self::Ended(status)),
            b'w' => Some(Self::Recorded(status)),
            _ => None,
        }
    }
}

/// What the first monitor of a container knew.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Facts {
    pub(crate) pid: i32,
    /// When the container is to be killed, by `CLOCK_MONOTONIC`, in milliseconds.
    pub(crate) due: Option<u64>,
    /// The counter of OOM kills, and how many were noted.
    pub(crate) oom: Option<(PathBuf, u64)>,
    /// The `oom_score_adj` of the exit command.
    pub(crate) score: Option<String>,
    /// The soft limit of open files of the exit command.
    pub(crate) open_files: Option<u64>,
    pub(crate) directory: PathBuf,
}

/// All that is in a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) phase: Phase,
    pub(crate) facts: Facts,
    /// The command line without the name of the program.
    pub(crate) words: Vec<OsString>,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

pub(crate) struct Record(File);

impl Record {
    /// Writes a record of this process and these facts.
    pub(crate) fn new(facts: &Facts) -> io::Result<Self> {
        let words = proc::read("/proc/self/cmdline")?;
        let words: Vec<_> = words.split_inclusive(|byte| *byte == 0).skip(1).collect();
        let environment = proc::read("/proc/self/environ")?;
        let bytes = encode(facts, words.len(), &[words.concat(), environment].concat());
        if bytes.len() as u64 > MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = memfd_create("holdfast-conmon-record", MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(&bytes)?;
        Ok(Self(file))
    }

    /// Takes a copy of the descriptor of a record.
    pub(crate) fn of(file: OwnedFd) -> Self {
        Self(file.into())
    }

    /// Notes how far the end is.
    pub(crate) fn note(&self, phase: Phase) {
        report::warn_of("the record", self.0.write_all_at(&phase.to_bytes(), 0));
    }

    pub(crate) fn read(&self) -> io::Result<Content> {
        let length = self.0.metadata()?.len().min(MAX_LEN);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.0.read_exact_at(&mut bytes, 0)?;
        decode(&bytes)
            .ok_or_else(|| io::Error::other("a record without sense, or of another version"))
    }
}

impl AsFd for Record {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn encode(facts: &Facts, count: usize, rest: &[u8]) -> Vec<u8> {
    let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
    let (oom, kills) = facts.oom.clone().unzip();
    let texts = [
        VERSION.into(),
        facts.pid.to_string().into(),
        number(facts.due).into(),
        oom.unwrap_or_default().into_os_string(),
        number(kills).into(),
        facts.score.clone().unwrap_or_default().into(),
        number(facts.open_files).into(),
        facts.directory.clone().into_os_string(),
        count.to_string().into(),
    ];
    let mut bytes = Phase::Running.to_bytes().to_vec();
    for text in texts {
        bytes.extend(text.into_vec());
        bytes.push(0);
    }
    bytes.extend(rest);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Content> {
    let (head, rest) = bytes.split_first_chunk()?;
    let rest = rest.strip_suffix(&[0])?;
    let mut words = rest.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let mut text = || words.next()?.to_str().map(str::to_owned);
    let number = |text: String| text.parse::<u64>().ok();
    let is_known = text()? == VERSION;
    let (pid, due) = (text()?.parse().ok()?, number(text()?));
    let (oom, kills) = (text()?, number(text()?));
    let (score, open_files) = (text()?, number(text()?));
    let directory = PathBuf::from(words.next()?);
    let count = words.next()?.to_str()?.parse().ok()?;
    let facts = Facts {
        pid,
        due,
        oom: kills.map(|kills| (oom.into(), kills)),
        score: Some(score).filter(|score| !score.is_empty()),
        open_files,
        directory,
    };
    let line: Vec<_> = words.by_ref().take(count).map(OsStr::to_owned).collect();
    let pair = |word: &OsStr| {
        let bytes = word.as_bytes();
        let at = bytes.iter().position(|byte| *byte == b'=')?;
        let part = |bytes| OsStr::from_bytes(bytes).to_owned();
        Some((part(&bytes[..at]), part(&bytes[at + 1..])))
    };
    let is_whole = is_known && pid > 0 && line.len() == count;
    let environment = words.filter_map(pair).collect();
    is_whole.then_some(Content { phase: Phase::of_bytes(*head)?, facts, words: line, environment })
}

/// The time that is the same for all processes, in milliseconds.
fn now() -> io::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Returns a time as other processes understand it.
pub(crate) fn time_of(instant: Instant) -> io::Result<u64> {
    let left = instant.saturating_duration_since(Instant::now()).as_millis();
    Ok(now()?.saturating_add(u64::try_from(left).unwrap_or(u64::MAX)))
}

/// Returns what [`time_of`] was of. One that is over is now.
pub(crate) fn instant_of(time: u64) -> io::Result<Option<Instant>> {
    let left = Duration::from_millis(time.saturating_sub(now()?));
    Ok(Instant::now().checked_add(left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn facts() -> Facts {
        Facts {
            pid: 7,
            due: Some(12),
            oom: Some(("/sys/fs/cgroup/memory.events".into(), 0)),
            score: Some("-5".into()),
            open_files: Some(1024),
            directory: "/a b".into(),
        }
    }

    #[test]
    fn a_record_reads_back() {
        for facts in [facts(), Facts { pid: 1, ..Facts::default() }] {
            let bytes = encode(&facts, 3, b"-c\0\0x=y\0A=\0B=c=d\0");
            let content = decode(&bytes).unwrap();
            assert_eq!(content.phase, Phase::Running);
            assert_eq!(content.facts, facts);
            assert_eq!(content.words, ["-c", "", "x=y"]);
            let environment = [("A", ""), ("B", "c=d")].map(|(a, b)| (a.into(), b.into()));
            assert_eq!(content.environment, environment);
        }
    }

    #[test]
    fn this_process_is_recorded_and_its_end_is_noted() {
        let record = Record::new(&facts()).unwrap();
        let content = record.read().unwrap();
        assert!(content.words.iter().map(OsString::from).eq(std::env::args_os().skip(1)));
        assert_eq!(content.environment.len(), std::env::vars_os().count());
        let copy = Record::of(record.as_fd().try_clone_to_owned().unwrap());
        for phase in [Phase::Ended(-1), Phase::Recorded(137)] {
            record.note(phase);
            assert_eq!(copy.read().unwrap(), Content { phase, ..record.read().unwrap() });
        }
    }

    #[test]
    fn a_time_is_the_same_for_another_process() {
        let then = Instant::now() + Duration::from_secs(60);
        let again = instant_of(time_of(then).unwrap()).unwrap().unwrap();
        let apart = again.max(then) - again.min(then);
        assert!(apart < Duration::from_secs(5), "{apart:?}");
        assert!(instant_of(0).unwrap().unwrap() <= Instant::now());
    }

    proptest! {
        #[test]
        fn no_record_panics(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b'1')], 0..80)) {
            let _ = decode(&bytes);
        }
    }
}
