//! One who follows the events and is killed like everyone else. It stores the cursor together with what it
//! has made of each line, so it must count each exit exactly once, whoever dies.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Trouble;
use super::plan::Random;
use super::programs::{PATIENCE, Paths};

/// What it has stored: one transaction a line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    cursor: Option<String>,
    /// How often it was told of an exit, by container and process.
    exits: BTreeMap<(String, String), usize>,
    deleted: BTreeSet<String>,
    /// How often numbers were missing, by the reason.
    pub(crate) gaps: BTreeMap<String, usize>,
    /// How often it was killed.
    pub(crate) kills: usize,
}

#[derive(Debug, Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    /// Told with each line.
    more: Condvar,
    stop: AtomicBool,
    child: Mutex<Option<Child>>,
}

/// The consumer at work.
#[derive(Debug)]
pub(crate) struct Consumer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Goes on where the ledger ends.
    pub(crate) fn begin(paths: &Paths, ledger: Ledger, seed: u64) -> Self {
        let shared = Arc::new(Shared { ledger: Mutex::new(ledger), ..Shared::default() });
        let (paths, of_thread) = (paths.clone(), shared.clone());
        let thread = std::thread::spawn(move || of_thread.follow(&paths, &mut Random::new(seed)));
        Self { shared, thread: Some(thread) }
    }

    /// Waits until it was told that these were deleted, and returns what it has stored.
    pub(crate) fn end(mut self, mut ids: BTreeSet<String>) -> Result<Ledger, Trouble> {
        let deadline = Instant::now() + PATIENCE;
        let mut ledger = lock(&self.shared.ledger);
        while !ids.is_subset(&ledger.deleted) {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                ids.retain(|id| !ledger.deleted.contains(id));
                let what = format!("the consumer was never told that these were deleted: {ids:?}");
                return Err(Trouble::new(what));
            };
            let waited = self.shared.more.wait_timeout(ledger, left);
            ledger = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(ledger);
        self.stop();
        Ok(lock(&self.shared.ledger).clone())
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.kill();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Ledger {
    /// How often it was told that this process ended.
    pub(crate) fn exits(&self, container: &str, process: &str) -> usize {
        self.exits.get(&(container.to_owned(), process.to_owned())).copied().unwrap_or_default()
    }

    /// All at once, or nothing: that is what a transaction is.
    fn take(&mut self, line: &Value) {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        if let Some(reason) = line["gap"]["reason"].as_str() {
            *self.gaps.entry(reason.to_owned()).or_default() += 1;
        }
        match line["event"].as_str() {
            Some("exited") => {
                *self.exits.entry((text("container"), text("process"))).or_default() += 1;
            }
            Some("deleted") => _ = self.deleted.insert(text("container")),
            _ => {}
        }
        self.cursor = Some(text("cursor"));
    }
}

impl Shared {
    fn follow(&self, paths: &Paths, random: &mut Random) {
        while !self.stop.load(Ordering::SeqCst) {
            let cursor = lock(&self.ledger).cursor.clone();
            let since: Vec<&str> = match &cursor {
                Some(cursor) => vec!["--since", cursor],
                None => vec!["--replay"],
            };
            let args = [&["events", "--json"], since.as_slice()].concat();
            let mut command = paths.holdfast(&args);
            let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
            let Some((output, child)) =
                spawned.ok().and_then(|mut child| Some((child.stdout.take()?, child)))
            else {
                continue;
            };
            *lock(&self.child) = Some(child);
            // Its life, in lines. What it has received beyond that is lost with it.
            let mut left = random.below(200);
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // A daemon that dies leaves the beginning of a line.
                let Ok(line) = serde_json::from_str(&line) else { break };
                lock(&self.ledger).take(&line);
                self.more.notify_all();
                if left == 0 || self.stop.load(Ordering::SeqCst) {
                    lock(&self.ledger).kills += 1;
                    break;
                }
                left -= 1;
            }
            self.kill();
            // The daemon may be dead, which is nothing to hurry for.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&self) {
        if let Some(mut child) = lock(&self.child).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
