//! What came of it: counts, and JSON.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::Seeds;
use crate::outcome::Counts;

/// What is counted.
#[derive(Debug, Default)]
pub struct Report {
    counts: Counts,
    pods: AtomicUsize,
}

impl Report {
    pub(crate) fn count(&self, what: String) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: String, count: usize) {
        self.counts.add(what, count);
    }

    pub(crate) fn pod(&self) {
        self.pods.fetch_add(1, Ordering::Relaxed);
    }

    /// How many pods have come and gone.
    #[must_use]
    pub fn pods(&self) -> usize {
        self.pods.load(Ordering::Relaxed)
    }

    /// For a person.
    #[must_use]
    pub fn table(&self) -> String {
        self.counts.table()
    }

    /// For a program.
    #[must_use]
    pub fn json(&self, seeds: Seeds, took: Duration) -> Value {
        json!({
            "what": "cargo xtask torture --containerd",
            "cyclesPlanned": seeds.cycles,
            "frontsPlanned": seeds.fronts,
            "pods": self.pods(),
            "counts": self.counts.json(),
            "seconds": took.as_secs(),
        })
    }
}
