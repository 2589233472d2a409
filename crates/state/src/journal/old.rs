//! The files that earlier builds wrote in place of a journal: `<container>/events.jsonl`, in which
//! the numbers began at 1 for each container, and `<root>/.exits.jsonl`, with the exits of
//! containers that had been removed. They are read once, and removed when the journal has their
//! content.

use std::collections::HashSet;
use std::io;

use serde::Deserialize;

use crate::{
    ContainerDir, ContainerId, Event, EventKind, Incarnation, ProcessId, StateRoot, Timestamp,
};

/// The events of a container, in its directory.
const EVENTS: &str = "events.jsonl";
/// The exits of removed containers, in the state root.
pub(crate) const EXITS: &str = ".exits.jsonl";
/// A size limit in bytes; those builds kept both files smaller.
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

/// Returns the events in `content`. Torn and foreign lines are skipped.
pub fn events(
    content: &[u8],
    container: &ContainerId,
    incarnation: Incarnation,
) -> impl Iterator<Item = Event> {
    content.split(|&b| b == b'\n').filter_map(move |line| {
        Some(serde_json::from_slice::<OldEvent>(line).ok()?.of(container, incarnation))
    })
}

/// Returns the events of a container of an earlier build, without numbers.
///
/// # Errors
///
/// If the file cannot be read, or is not a regular file.
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

/// Removes the file that [`import_container`] reads, once its events are in the journal.
///
/// # Errors
///
/// If the file cannot be removed.
pub fn forget_imported(directory: &ContainerDir) -> io::Result<()> {
    directory.directory().unlink(EVENTS)
}

/// Returns the exits that an earlier build stored, each followed by the deletion of the container,
/// without numbers.
///
/// # Errors
///
/// If the file cannot be read, or is not a regular file.
pub fn import_exits(root: &StateRoot) -> io::Result<Vec<Event>> {
    let content = match root.directory.read(EXITS, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        content => content?,
    };
    let mut imported: Vec<Event> = Vec::new();
    // A supervisor that died during a removal wrote the same line again.
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

/// Removes the file that [`import_exits`] reads, once its events are in the journal.
///
/// # Errors
///
/// If the file cannot be removed.
pub fn forget_imported_exits(root: &StateRoot) -> io::Result<()> {
    root.directory.unlink(EXITS)
}
