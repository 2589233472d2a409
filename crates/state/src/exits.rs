//! `.exits.jsonl`: how processes ended whose container has been removed, one JSON line each.
//!
//! A container's own journal goes with it. Whoever was away while it ended and was removed finds its
//! end here: the lines are synced before the directory goes. The file has a bound; the oldest lines
//! are dropped first.

use std::collections::HashSet;
use std::io::{self, Write};
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use crate::{ContainerId, Event, StateRoot};

/// An event of some container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerEvent {
    /// The container.
    pub container: ContainerId,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

/// An exit of a container that has been removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptExit {
    /// The exit.
    #[serde(flatten)]
    pub exit: ContainerEvent,
    /// Whether somebody asked for the removal, and so may be taken to know of the exit.
    pub asked: bool,
}

pub(crate) const NAME: &str = ".exits.jsonl";

/// Past this size, in bytes, the older half is dropped: some 5,000 lines are left.
const COMPACT_ABOVE: u64 = 1024 * 1024;
/// More than can ever be there by the rule above; a larger file is not ours.
const LIMIT: u64 = 4 * COMPACT_ABOVE;

impl StateRoot {
    /// Adds exits of a container that is about to be removed. They are on disk when this returns.
    pub fn keep_exits(&self, exits: &[KeptExit]) -> io::Result<()> {
        let mut lines = Vec::new();
        for exit in exits {
            serde_json::to_writer(&mut lines, exit)?;
            lines.push(b'\n');
        }
        let file = {
            let _one_at_a_time = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
            let mut file = self.directory.append(NAME)?;
            let length = file.metadata()?.len();
            if let Err(error) = file.write_all(&lines) {
                // A full disk takes the beginning of a line, and the next would go on with it.
                let _ = file.set_len(length);
                return Err(error);
            }
            if length > COMPACT_ABOVE {
                // What was added is in it; if this fails, the next one tries it again.
                let compacted = self
                    .directory
                    .read(NAME, LIMIT)
                    .and_then(|content| self.directory.write_atomic(NAME, newer_half(&content)));
                if compacted.is_ok() {
                    return Ok(());
                }
            }
            if length == 0 {
                self.directory.sync()?;
            }
            file
        };
        file.sync_data()
    }

    /// The exits of containers that have been removed, the oldest first. Lines that are torn are
    /// passed over.
    pub fn kept_exits(&self) -> io::Result<Vec<KeptExit>> {
        let content = match self.directory.read(NAME, LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            content => content?,
        };
        // A supervisor that died between such a line and the removal wrote it again.
        let mut known = HashSet::new();
        let lines = content.split(|&b| b == b'\n').filter(|line| known.insert(*line));
        Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

fn newer_half(content: &[u8]) -> &[u8] {
    let middle = content.len() / 2;
    let begin = content[middle..].iter().position(|&b| b == b'\n');
    begin.map_or(&[], |begin| &content[middle + begin + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventKind, Evidence, ExitStatus, ProcessId, Timestamp};

    fn exit(container: &str, code: u8) -> KeptExit {
        let kind = EventKind::Exited { status: ExitStatus::Code(code), evidence: Evidence::Shim };
        let (time, process) = (Timestamp::now(), ProcessId::init());
        let event = Event { seq: 3, time, process, kind };
        let exit = ContainerEvent { container: container.parse().unwrap(), event };
        KeptExit { exit, asked: code == 2 }
    }

    #[test]
    fn exits_are_kept_once_and_a_torn_line_costs_only_itself() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        assert_eq!(root.kept_exits().unwrap(), []);
        let (one, two) = (exit("a", 1), exit("b", 2));
        root.keep_exits(std::slice::from_ref(&one)).unwrap();
        root.keep_exits(&[two.clone(), one.clone()]).unwrap();
        let mut file = std::fs::File::options().append(true).open(temp.path().join(NAME)).unwrap();
        file.write_all(b"{\"container\":\"c\"\n").unwrap();
        let three = exit("d", 3);
        root.keep_exits(std::slice::from_ref(&three)).unwrap();
        assert_eq!(root.kept_exits().unwrap(), [one, two, three]);
    }

    #[test]
    fn the_file_has_a_bound_and_keeps_the_newest() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let many: Vec<_> = (0..2000).map(|_| exit(&"x".repeat(120), 0)).collect();
        for _ in 0..10 {
            root.keep_exits(&many).unwrap();
        }
        let last = exit("last", 9);
        root.keep_exits(std::slice::from_ref(&last)).unwrap();
        let length = std::fs::metadata(temp.path().join(NAME)).unwrap().len();
        assert!(length < 2 * COMPACT_ABOVE, "{length}");
        assert_eq!(root.kept_exits().unwrap().last(), Some(&last));
    }
}
