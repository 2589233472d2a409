//! What came of it: counts, and JSON.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::Seeds;

/// What is counted.
#[derive(Debug, Default)]
pub struct Report {
    counts: Mutex<BTreeMap<String, usize>>,
    pods: AtomicUsize,
}

impl Report {
    pub(crate) fn count(&self, what: String) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: String, count: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what).or_default() += count;
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
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(what, count)| format!("{what:<64} {count:>7}\n")).collect()
    }

    /// For a program.
    #[must_use]
    pub fn json(&self, seeds: Seeds, took: Duration, violations: &[String]) -> Value {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        json!({
            "what": "cargo xtask torture --containerd",
            "kernel": release,
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "seed": seeds.seed,
            "cyclesPlanned": seeds.cycles,
            "frontsPlanned": seeds.fronts,
            "pods": self.pods(),
            "counts": &*self.counts.lock().unwrap_or_else(PoisonError::into_inner),
            "seconds": took.as_secs(),
            "violations": violations,
        })
    }
}
