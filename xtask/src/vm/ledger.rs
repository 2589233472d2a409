//! What the guest said that it had done, and what it says later that there is. Where the two
//! disagree a promise was broken.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

/// How far something went that the guest set out to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Progress {
    #[default]
    NotBegun,
    /// Begun, and not heard of since: with the power cut both outcomes are right.
    Begun,
    Done,
}

/// A container, as the guest told of it.
#[derive(Debug, Default)]
struct Entry {
    /// What it exits with if it does.
    status: u8,
    created: Progress,
    exited: Progress,
    deleted: Progress,
    /// What was found of it after the last boot.
    found: Option<Value>,
    /// How a boot has found it ended: it must not have ended in another way later.
    ended: Option<Value>,
    /// Whether it was counted as gone.
    counted_gone: bool,
}

/// All of them, over all boots.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<String, Entry>,
    /// What was found, added up over the boots that found it.
    counts: BTreeMap<&'static str, u32>,
    /// Containers with which something went wrong in the guest.
    bad: BTreeSet<String>,
    /// What was told under each number of the journal.
    numbers: BTreeMap<u64, String>,
    /// How processes ended, by incarnation and process: the statuses that were told.
    exits: BTreeMap<(String, String), BTreeSet<String>>,
    /// The containers of which an exit was told.
    exited: BTreeSet<String>,
    /// What the daemon could not load, as it says itself.
    pub(super) problems: Vec<String>,
    /// What was left when all was deleted.
    pub(super) left: Vec<String>,
    /// Promises that were not kept.
    pub(super) violations: Vec<String>,
    /// The guest's.
    pub(super) kernel: String,
}

impl Ledger {
    /// Takes down a line of the guest's. One that was cut off with the power says nothing.
    pub(super) fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["KERNEL", version] => version.clone_into(&mut self.kernel),
            ["TRY", "create", id, status] => {
                let Ok(status) = status.parse() else { return };
                let entry = self.entry(id);
                (entry.status, entry.created) = (status, Progress::Begun);
            }
            ["TRY", what, id] => self.advance(what, id, Progress::Begun),
            ["ACK", what, id] => self.advance(what, id, Progress::Done),
            ["HAS", ..] => self.found(&line["HAS ".len()..]),
            ["LISTED"] => self.compare(),
            // Once each: what can't be deleted can't be deleted after the next boot either.
            ["BAD", id, ..] if self.bad.insert(id.to_owned()) => {
                self.violations.push(line["BAD ".len()..].to_owned());
            }
            ["EVENT", ..] => self.event(&line["EVENT ".len()..]),
            ["DONE"] => self.compare_events(),
            ["PROBLEM", ..] => self.problems.push(line["PROBLEM ".len()..].to_owned()),
            ["LEFT", ..] => self.left.push(line["LEFT ".len()..].to_owned()),
            _ => {}
        }
    }

    fn entry(&mut self, id: &str) -> &mut Entry {
        self.entries.entry(id.to_owned()).or_default()
    }

    fn advance(&mut self, what: &str, id: &str, progress: Progress) {
        let entry = self.entry(id);
        let (place, count) = match what {
            "create" => (&mut entry.created, "acknowledgedCreated"),
            "exit" => (&mut entry.exited, "acknowledgedExited"),
            "delete" => (&mut entry.deleted, "acknowledgedDeleted"),
            _ => return,
        };
        if progress > *place {
            *place = progress;
            if progress == Progress::Done {
                self.count(count);
            }
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// An event, or numbers of which there is none. One that was cut off with the power says nothing.
    fn event(&mut self, json: &str) {
        let Ok(event) = serde_json::from_str::<Value>(json) else { return };
        if let Some(reason) = event["gap"]["reason"].as_str() {
            if reason != "unclean" {
                self.violations.push(format!("events are missing: {json}"));
            }
            return;
        }
        let Some(number) = event["seq"].as_u64() else { return };
        match self.numbers.insert(number, json.to_owned()) {
            Some(before) if before != json => {
                self.violations.push(format!("a number was used twice: {before} and {json}"));
            }
            Some(_) => {}
            None => self.count("events"),
        }
        if event["event"] == "exited" {
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            let exits = self.exits.entry((text("incarnation"), text("process"))).or_default();
            exits.insert(event["status"].to_string());
            if exits.len() > 1 {
                self.violations.push(format!("an exit was told in two ways: {exits:?}: {json}"));
            }
            if event["process"] == "init" {
                self.exited.insert(text("container"));
            }
        }
    }

    /// The guest has told of all events that are kept: an exit whose container was deleted is one of them.
    fn compare_events(&mut self) {
        let known = |(id, entry): (&String, &Entry)| {
            let acknowledged = entry.exited == Progress::Done && entry.deleted == Progress::Done;
            (acknowledged && !self.exited.contains(id))
                .then(|| format!("{id}: its exit is in no event"))
        };
        let missing: Vec<_> = self.entries.iter().filter_map(known).collect();
        self.violations.extend(missing);
    }

    fn found(&mut self, json: &str) {
        match serde_json::from_str::<Value>(json) {
            Ok(container) => {
                let id = container["id"].as_str().unwrap_or_default().to_owned();
                self.entry(&id).found = Some(container);
            }
            Err(error) => self.violations.push(format!("no JSON ({error}): {json}")),
        }
    }

    /// The machine is off: what it told of the containers that it found is told anew by the next.
    pub(super) fn power_is_cut(&mut self) {
        for entry in self.entries.values_mut() {
            entry.found = None;
        }
    }

    /// The guest has told of all that it found.
    fn compare(&mut self) {
        let mut outcomes = Vec::new();
        for (id, entry) in &mut self.entries {
            match entry.judge() {
                Ok(Some(outcome)) => outcomes.push(outcome),
                Ok(None) => {}
                Err(reason) => self.violations.push(format!("{id}: {reason}")),
            }
        }
        for outcome in outcomes {
            self.count(outcome);
        }
    }

    /// What the results have.
    pub(super) fn outcomes(&self) -> Value {
        json!(self.counts)
    }

    /// The same for people.
    pub(super) fn summary(&self) -> String {
        let counts: Vec<_> =
            self.counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        format!("{} containers; {}", self.entries.len(), counts.join(", "))
    }
}

impl Entry {
    /// What became of it across the cut, by a name for the results; `None` where there is nothing
    /// to tell.
    fn judge(&mut self) -> Result<Option<&'static str>, String> {
        let Some(found) = &self.found else {
            let outcome = match (self.created, self.deleted) {
                (_, Progress::Done) => Ok("deletedIsGone"),
                (_, Progress::Begun) => Ok("deletionInFlightCameAbout"),
                (Progress::Done, Progress::NotBegun) => {
                    Err("acknowledged, not deleted, and gone".to_owned())
                }
                _ => Ok("creationInFlightCameToNothing"),
            };
            // Gone is gone from here on, and told once.
            self.deleted = Progress::Done;
            let told = std::mem::replace(&mut self.counted_gone, true);
            return outcome.map(|outcome| (!told).then_some(outcome));
        };
        // A deletion that came to nothing has to be asked for again.
        let deleted = std::mem::take(&mut self.deleted);
        self.counted_gone = false;
        self.created = Progress::Done;
        if deleted == Progress::Done {
            return Err(format!("its deletion was acknowledged, and it is back: {found}"));
        }
        let status = found["exit"]["status"].clone();
        if let Some(before) = &self.ended
            && *before != status
        {
            return Err(format!(
                "it had ended with {before} at the last boot, and now with {status}"
            ));
        }
        let outcome = if status == json!({ "code": self.status }) {
            "statusExact"
        } else if self.exited == Progress::Done {
            return Err(format!("status {} was acknowledged, and now it is {status}", self.status));
        } else if status == json!({ "unknown": "machine-rebooted" }) {
            "statusMachineRebooted"
        } else if self.exited == Progress::NotBegun && status == json!({ "signal": 9 }) {
            "killedForDeletion"
        } else {
            return Err(format!("neither its status nor the reboot is known: {found}"));
        };
        self.ended = Some(status);
        Ok(Some(outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(lines: &[&str]) -> Ledger {
        let mut ledger = Ledger::default();
        for line in lines {
            if *line == "CUT" {
                ledger.power_is_cut();
            } else {
                ledger.hear(line);
            }
        }
        ledger
    }

    const HAS_7: &str = r#"HAS {"id":"a","exit":{"status":{"code":7}}}"#;
    const HAS_0: &str = r#"HAS {"id":"a","exit":{"status":{"code":0}}}"#;
    const REBOOTED: &str = r#"HAS {"id":"a","exit":{"status":{"unknown":"machine-rebooted"}}}"#;

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let said = ["TRY create a 7", "ACK create a", "TRY exit a", "ACK exit a", "CUT"];
        let with =
            |found: &[&str]| after(&[&said[..], found, &["LISTED"]].concat()).violations.len();
        assert_eq!(with(&[HAS_7]), 0);
        assert_eq!(with(&[HAS_0]), 1);
        assert_eq!(with(&[REBOOTED]), 1);
        assert_eq!(with(&[]), 1);
        assert_eq!(with(&["TRY delete a", "CUT"]), 0);
        assert_eq!(with(&["TRY delete a", "CUT", HAS_7]), 0);
        assert_eq!(with(&["TRY delete a", "ACK delete a", "CUT"]), 0);
        assert_eq!(with(&["TRY delete a", "ACK delete a", "CUT", HAS_7]), 1);
    }

    #[test]
    fn a_number_is_used_once_and_an_exit_outlives_its_container() {
        let event = |number: u32, code: u32| {
            format!(
                r#"EVENT {{"container":"a","incarnation":"1","seq":{number},"process":"init","event":"exited","status":{{"code":{code}}}}}"#
            )
        };
        let gone = ["TRY create a 7", "ACK create a", "ACK exit a", "ACK delete a"];
        let with = |lines: &[&str]| after(&[&gone[..], lines, &["DONE"]].concat()).violations.len();
        let (seven, again, other, later) = (event(4, 7), event(4, 7), event(4, 8), event(9, 7));
        assert_eq!(with(&[]), 1);
        assert_eq!(with(&[&seven, "CUT", &again]), 0);
        assert_eq!(with(&[&seven, "CUT", &later]), 0, "told again under another number");
        assert_eq!(with(&[&seven, "CUT", &other]), 2);
        let gap = r#"EVENT {"gap":{"first":1,"last":2,"reason":"unclean"}}"#;
        assert_eq!(with(&[&seven, gap]), 0);
        assert_eq!(with(&[&seven, &gap.replace("unclean", "dropped")]), 1);
    }

    #[test]
    fn what_was_in_flight_may_be_either_and_then_stays() {
        let said = ["TRY create a 7", "CUT"];
        let with =
            |found: &[&str]| after(&[&said[..], found, &["LISTED"]].concat()).violations.len();
        assert_eq!(with(&[]), 0);
        assert_eq!(with(&[HAS_7]), 0);
        assert_eq!(with(&[REBOOTED]), 0);
        assert_eq!(with(&[HAS_0]), 1);
        assert_eq!(with(&["LISTED", "CUT", HAS_7]), 1);
        assert_eq!(with(&[REBOOTED, "LISTED", "CUT", HAS_7]), 1);
    }
}
