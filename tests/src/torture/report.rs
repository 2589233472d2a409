//! What came of it: counts, a table, and JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::actor::Cell;
use super::consumer::Ledger;
use super::plan::Seeds;

/// What is counted.
#[derive(Debug, Default)]
pub struct Report {
    /// Who was dead, and what came of it, in words.
    cells: BTreeMap<Cell, BTreeMap<String, usize>>,
    /// Of the output of those who wrote all that they had to: whether it is there.
    outputs: BTreeMap<Cell, BTreeMap<String, usize>>,
    /// What was done.
    chaos: BTreeMap<String, usize>,
    exits: usize,
    execs: BTreeMap<String, usize>,
    events: usize,
    /// How often the consumer of events was killed, and found numbers missing.
    consumer_killed: usize,
    consumer_gaps: usize,
}

impl Report {
    pub(crate) fn count(&mut self, what: &str) {
        *self.chaos.entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn outcome(&mut self, cell: Cell, outcome: String) {
        self.exits += 1;
        *self.cells.entry(cell).or_default().entry(outcome).or_default() += 1;
    }

    pub(crate) fn output(&mut self, cell: Cell, outcome: &str) {
        *self.outputs.entry(cell).or_default().entry(outcome.to_owned()).or_default() += 1;
    }

    pub(crate) fn exec(&mut self, outcome: String) {
        *self.execs.entry(outcome).or_default() += 1;
    }

    pub(crate) fn events(&mut self, count: usize) {
        self.events += count;
    }

    /// What has become of the consumer up to now.
    pub(crate) fn consumer(&mut self, ledger: &Ledger) {
        self.consumer_killed = ledger.kills;
        self.consumer_gaps = ledger.gaps.values().sum();
    }

    /// How many exits were reckoned up.
    #[must_use]
    pub fn exits(&self) -> usize {
        self.exits
    }

    /// For a person.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let mut rows = |title: &str, all: &BTreeMap<Cell, BTreeMap<String, usize>>| {
            for (cell, outcomes) in all {
                let total: usize = outcomes.values().sum();
                let _ = writeln!(text, "{title}{:<16} {total:>7}", cell.name());
                for (outcome, count) in outcomes {
                    let _ = writeln!(text, "    {outcome:<60} {count:>7}");
                }
            }
        };
        rows("dead at the exit: ", &self.cells);
        rows("output, dead at the exit: ", &self.outputs);
        for (outcome, count) in &self.execs {
            let _ = writeln!(text, "exec: {outcome:<58} {count:>7}");
        }
        for (what, count) in &self.chaos {
            let _ = writeln!(text, "{what:<64} {count:>7}");
        }
        let _ = writeln!(text, "{:<64} {:>7}", "events, in order", self.events);
        let kills = self.consumer_killed;
        let _ =
            writeln!(text, "{:<64} {kills:>7}", "the consumer was killed, and counted each once");
        text
    }

    /// For a program.
    #[must_use]
    pub fn json(&self, seeds: Seeds, took: Duration) -> Value {
        let by_name = |all: &BTreeMap<Cell, BTreeMap<String, usize>>| {
            let named = Cell::ALL.map(|cell| (cell.name().to_owned(), json!(all.get(&cell))));
            Value::Object(named.into_iter().collect())
        };
        json!({
            "what": "cargo xtask torture",
            "exitsPlanned": seeds.exits,
            "exits": self.exits,
            "runcShare": seeds.runc_share,
            "hostileShare": seeds.hostile_share,
            "statusByWhoWasDead": by_name(&self.cells),
            "outputByWhoWasDead": by_name(&self.outputs),
            "execs": self.execs,
            "ops": self.chaos,
            "events": self.events,
            "consumerKilled": self.consumer_killed,
            "consumerGaps": self.consumer_gaps,
            "seconds": took.as_secs(),
        })
    }
}
