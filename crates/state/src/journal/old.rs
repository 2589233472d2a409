//! What earlier builds kept instead of a journal: `<container>/events.jsonl`, whose numbers began at 1 in
//! each container, and `<root>/.exits.jsonl`, the exits of containers that had been removed. They are read
//! once, and removed when the journal has what they say.

use std::collections::HashSet;
use std::io;

use serde::Deserialize;

use crate::{
    ContainerDir, ContainerId, Event, EventKind, Incarnation, ProcessId, StateRoot, Timestamp,
};

/// A container's events, in its directory.
const EVENTS: &str = "events.jsonl";
/// The exits of what is gone, in the root.
pub(crate) const EXITS: &str = ".exits.jsonl";
/// More than those builds let either become, in bytes.
const LIMIT: u64 = 4 * 1024 * 1024;

#[derive(Deserialize)]
struct OldEvent {
    time: Timestamp,
    process: ProcessId,
    #[serde(flatten)]
    kind: EventKind,
}

#[derive(Deserialize)]
struct OldExit {
    container: ContainerId,
    #[serde(flatten)]
    exit: OldEvent,
}

impl OldEvent {
    fn of(self, container: &ContainerId, incarnation: Incarnation) -> Event {
        let Self { time, process, kind } = self;
        Event { container: container.clone(), incarnation, run: 1, seq: 0, time, process, kind }
    }
}

/// The events of a content. Lines that are torn or foreign are passed over.
pub fn events(
    content: &[u8],
    container: &ContainerId,
    incarnation: Incarnation,
) -> impl Iterator<Item = Event> {
    content.split(|&b| b == b'\n').filter_map(move |line| {
        Some(serde_json::from_slice::<OldEvent>(line).ok()?.of(container, incarnation))
    })
}

/// The events of a container that an earlier build made, still without numbers.
///
/// # Errors
///
/// If the file can't be read, or is none.
pub fn import_container(
    directory: &ContainerDir,
    container: &ContainerId,
    incarnation: Incarnation,
) -> io::Result<Vec<Event>> {
    match directory.directory().read(EVENTS, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        content => Ok(events(&content?, container, incarnation).collect()),
    }
}

/// Removes what [`import_container`] reads, once that is in the journal.
pub fn forget_imported(directory: &ContainerDir) -> io::Result<()> {
    directory.directory().unlink(EVENTS)
}

/// The exits that an earlier build kept, and the deletions after them, still without numbers.
///
/// # Errors
///
/// If the file can't be read, or is none.
pub fn import_exits(root: &StateRoot) -> io::Result<Vec<Event>> {
    let content = match root.directory.read(EXITS, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        content => content?,
    };
    let mut imported: Vec<Event> = Vec::new();
    // One that died over a removal wrote the same line again.
    let mut lines = HashSet::new();
    for line in content.split(|&b| b == b'\n').filter(|line| lines.insert(*line)) {
        let Ok(OldExit { container, exit }) = serde_json::from_slice(line) else { continue };
        let exit = exit.of(&container, Incarnation::of_earlier_build(None));
        let deleted =
            exit.process.is_init().then(|| Event { kind: EventKind::Deleted, ..exit.clone() });
        imported.push(exit);
        imported.extend(deleted);
    }
    Ok(imported)
}

/// Removes what [`import_exits`] reads, once that is in the journal.
pub fn forget_imported_exits(root: &StateRoot) -> io::Result<()> {
    root.directory.unlink(EXITS)
}
