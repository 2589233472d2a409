//! `events.jsonl`: a container's events, one JSON line each, appended before they are published.
//!
//! It makes the numbers go on and an exit be told once when the daemon was killed in between, and
//! it says whether a container had been started. It is no ledger: statuses live in their own files,
//! and lines are not synced (after a power loss the boot id says all there is to say).

use std::collections::HashMap;
use std::io::{self, Write};

use crate::{ContainerDir, Event, EventKind, ProcessId};

/// The file's name.
pub const NAME: &str = "events.jsonl";

/// Past this size a journal is rewritten with its newest half, so that a container with a health
/// check every second does not fill the disk in a year.
const COMPACT_ABOVE: u64 = 256 * 1024;
/// More than can ever be there by the rule above; a larger file is not ours.
const LIMIT: u64 = 4 * COMPACT_ABOVE;

/// Appends events with one write, so that a reader sees whole lines only.
pub fn append(container: &ContainerDir, events: &[Event]) -> io::Result<()> {
    let directory = container.directory();
    let mut lines = Vec::new();
    for event in events {
        serde_json::to_writer(&mut lines, event)?;
        lines.push(b'\n');
    }
    let mut file = directory.append(NAME)?;
    let length = file.metadata()?.len();
    if let Err(error) = file.write_all(&lines) {
        // A disk that becomes full takes the beginning of a line, and the next would go on with it.
        let _ = file.set_len(length);
        return Err(error);
    }
    if length > COMPACT_ABOVE {
        // The events are written, whatever comes of this; the next one tries it again.
        let _ = directory
            .read(NAME, LIMIT)
            .and_then(|content| directory.write_atomic(NAME, &newest_half(&content)));
    }
    Ok(())
}

/// The newest half, and of the older one what still matters: all of the processes that have not
/// ended, so that after a restart nothing is told twice.
#[must_use]
pub fn newest_half(content: &[u8]) -> Vec<u8> {
    let lines: Vec<&[u8]> = content.split_inclusive(|&b| b == b'\n').collect();
    let (older, newer) = lines.split_at(lines.len() / 2);
    let event = |line: &[u8]| serde_json::from_slice::<Event>(line).ok();
    // By their places: the id of an exec that has ended may be used again.
    let mut ends: HashMap<ProcessId, usize> = HashMap::new();
    for (place, event) in lines.iter().enumerate().filter_map(|(at, it)| Some((at, event(it)?))) {
        if matches!(event.kind, EventKind::Exited { .. }) {
            ends.insert(event.process, place);
        }
    }
    let matters = |(place, line): &(usize, &&[u8])| {
        event(line).is_some_and(|event| {
            ends.get(&event.process).is_none_or(|end| end < place)
                && matches!(event.kind, EventKind::Created { .. } | EventKind::Started)
        })
    };
    let kept = older.iter().enumerate().filter(matters).map(|(_, line)| line);
    kept.chain(newer).flat_map(|line| line.iter().copied()).collect()
}

/// The events of a journal's content. Lines that are torn or foreign are passed over.
pub fn events(content: &[u8]) -> impl Iterator<Item = Event> {
    content.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
}

/// All events that are there. Lines that are torn or foreign are passed over; a container without
/// a journal (the seed wrote none) has no events.
pub fn read(container: &ContainerDir) -> io::Result<Vec<Event>> {
    match container.directory().read(NAME, LIMIT) {
        Ok(content) => Ok(events(&content).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Evidence, ExitStatus, StateRoot, Timestamp};
    use proptest::prelude::*;

    fn event(seq: u64) -> Event {
        let kind = EventKind::Exited { status: ExitStatus::Code(3), evidence: Evidence::Shim };
        Event { seq, time: Timestamp::now(), process: ProcessId::init(), kind }
    }

    proptest! {
        #[test]
        fn foreign_bytes_hide_no_event(noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut content = noise.clone();
            content.push(b'\n');
            content.extend(serde_json::to_vec(&event(7)).unwrap());
            content.push(b'\n');
            content.extend(&noise);
            let found: Vec<u64> = events(&content).map(|event| event.seq).collect();
            prop_assert_eq!(found, [7]);
            prop_assert!(newest_half(&content).len() <= content.len());
        }
    }

    #[test]
    fn it_reads_back_passes_over_garbage_and_stays_bounded() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let container = root.stage_container().unwrap().publish(&"c".parse().unwrap()).unwrap();
        append(&container, &[event(1)]).unwrap();
        container
            .directory()
            .append(NAME)
            .unwrap()
            .write_all(b"{\"seq\":2,\"ti\n\xff\xfe\n")
            .unwrap();
        append(&container, &[event(3)]).unwrap();
        let seqs: Vec<u64> = read(&container).unwrap().iter().map(|event| event.seq).collect();
        assert_eq!(seqs, [1, 3]);
        let text =
            String::from_utf8(container.directory().read(NAME, LIMIT).unwrap()[..90].to_vec());
        assert!(text.unwrap().starts_with("{\"seq\":1,\"time\":\""));

        let live = Event { process: "live".parse().unwrap(), kind: EventKind::Started, ..event(4) };
        append(&container, std::slice::from_ref(&live)).unwrap();
        for seq in 5..6_000 {
            append(&container, &[event(seq)]).unwrap();
        }
        let events = read(&container).unwrap();
        assert_eq!(events.last().unwrap().seq, 5_999);
        assert_eq!(events[0], live, "a process that has not ended keeps its start");
        assert!(events[1..].windows(2).all(|pair| pair[1].seq == pair[0].seq + 1));
        assert!(
            container.directory().read(NAME, LIMIT).unwrap().len() as u64 <= COMPACT_ABOVE + 200
        );
    }

    #[test]
    fn an_exec_whose_id_was_used_before_keeps_its_beginning() {
        let id: ProcessId = "probe".parse().unwrap();
        let of = |seq: u64, kind: EventKind| Event {
            seq,
            time: Timestamp::now(),
            process: id.clone(),
            kind,
        };
        let exited = EventKind::Exited { status: ExitStatus::Code(3), evidence: Evidence::Shim };
        let mut all = vec![
            of(1, EventKind::Created { pid: 7 }),
            of(2, exited),
            of(3, EventKind::Created { pid: 8 }),
            of(4, EventKind::Started),
        ];
        all.extend((5..=9).map(|seq| of(seq, EventKind::OutOfMemory)));
        let lines: Vec<u8> = all
            .iter()
            .flat_map(|event| [serde_json::to_vec(event).unwrap(), vec![b'\n']].concat())
            .collect();
        let kept: Vec<u64> = events(&newest_half(&lines)).map(|event| event.seq).collect();
        assert_eq!(kept, [3, 4, 5, 6, 7, 8, 9]);
    }
}
