//! The journal of a state root, as its files have it.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Its segments, in order.
#[must_use]
pub fn segments(root: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.join(".journal")).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
}

/// The events that it has of a container, in order. A line whose end is not there yet is none.
#[must_use]
pub fn events_of(root: &Path, container: &str) -> Vec<Value> {
    let contents = segments(root).into_iter().map(fs::read_to_string);
    let mut events = Vec::new();
    for content in contents {
        let content = content.unwrap_or_default();
        let lines = content.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.extend(lines.filter(|line| line["container"] == container));
    }
    events
}

/// Whether it has this event of the first process of a container.
#[must_use]
pub fn has(root: &Path, container: &str, event: &str) -> bool {
    let is_it = |it: &Value| it["process"] == "init" && it["event"] == event;
    events_of(root, container).iter().any(is_it)
}

/// Changes the lines of containers, snapshots too; `None` leaves one out. Nobody may have the root.
///
/// # Panics
///
/// If the files can't be read and written.
pub fn edit(root: &Path, change: impl Fn(Value) -> Option<Value>) {
    for path in segments(root) {
        let content = fs::read_to_string(&path).expect("read a segment");
        let lines = content.lines().filter_map(|line| {
            let value: Value = serde_json::from_str(line).expect("a line of JSON");
            let of_a_container = !value["container"].is_null() || !value["known"].is_null();
            if of_a_container { change(value) } else { Some(value) }
        });
        let content: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(&path, content).expect("write a segment");
    }
}

/// Takes a container out of it, as if nothing had ever been written of it.
pub fn forget(root: &Path, container: &str) {
    let is_it =
        |line: &Value| line["container"] == container || line["known"]["container"] == container;
    edit(root, |line| (!is_it(&line)).then_some(line));
}

/// Whether numbers rise, as those of a stream do.
#[must_use]
pub fn rise(numbers: &[u64]) -> bool {
    numbers.windows(2).all(|pair| pair[0] < pair[1])
}
