//! Pods that come and go under a containerd, while it, the supervisor and the container shims are
//! killed, stopped and continued at random. No container may end by that, every status must be exact,
//! every event must reach containerd in order, output must be complete, and nothing may be left.
//! A phase of its own kills fronts: containerd must then still learn the true status of what had exited.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what a seed stands for: pods, and the blows that fall meanwhile |
//! | `bed` | containerd, and `ctr` to it |
//! | `tap` | the socket between the supervisor and containerd, at which each event is seen |
//! | `life` | what a container's events must be |
//! | `cycle` | one pod from its creation to its deletion |
//! | `blows` | who kills and stops |
//! | `fronts` | the phase that kills fronts |
//! | `left` | what is left when no pod is |
//! | `report` | counts, JSON |

mod bed;
mod blows;
mod cycle;
mod fronts;
mod left;
mod life;
pub mod plan;
mod report;
mod tap;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

pub use report::Report;

use crate::outcome::Outcome;
use bed::Bed;
use blows::Blows;
use cycle::Cycle;
use plan::Seeds;

/// Pods between two looks at what is left.
const BATCH: usize = 50;
/// Pods that live at the same time.
const WORKERS: usize = 6;

/// All that those who take part have in common.
struct Stage {
    bed: Bed,
    blows: Blows,
    report: Report,
    violations: Mutex<Vec<String>>,
}

impl Stage {
    fn violated(&self, violation: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
    }

    fn is_fine(&self) -> bool {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Carries out a plan with the programs of these directories, and says after each batch how far it is. With more
/// than one build, another one is installed time and again. Ends at the first batch that shows something
/// wrong.
///
/// # Panics
///
/// If the machine does not let it begin.
pub fn run(seeds: Seeds, builds: &[PathBuf], mut progress: impl FnMut(&Report)) -> Outcome<Report> {
    let scratch = tempfile::Builder::new().prefix("holdfast-pods-").tempdir_in("/tmp");
    let scratch = scratch.expect("make a directory");
    let bed = Bed::begin(scratch.path(), builds).expect("start containerd");
    let stage = Stage {
        bed,
        blows: Blows::default(),
        report: Report::default(),
        violations: Mutex::default(),
    };
    let mut begun = 0;
    while begun < seeds.cycles && stage.is_fine() {
        let end = (begun + BATCH).min(seeds.cycles);
        batch(&stage, seeds, begun, end);
        begun = end;
        progress(&stage.report);
    }
    if stage.is_fine() {
        fronts::kill(&stage, seeds);
        progress(&stage.report);
    }
    let Stage { bed, report, violations, .. } = stage;
    let violations = violations.into_inner().unwrap_or_else(PoisonError::into_inner);
    bed.end();
    let kept = (!violations.is_empty()).then(|| scratch.keep());
    Outcome { report, violations, kept }
}

fn batch(stage: &Stage, seeds: Seeds, begin: usize, end: usize) {
    let (next, over) = (AtomicUsize::new(begin), AtomicBool::new(false));
    thread::scope(|scope| {
        let blows =
            scope.spawn(|| blows::fall(stage, seeds.blows(begin, stage.bed.has_builds()), &over));
        let work = || {
            while stage.is_fine() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return;
                }
                Cycle::new(stage, number).carry_out(&seeds.pod(number));
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().expect("a worker does not panic");
        }
        over.store(true, Ordering::Relaxed);
        blows.join().expect("who strikes does not panic");
    });
    if stage.is_fine() {
        let left = left::after_a_while(&stage.bed);
        let files = left::files_of_groups(&stage.bed);
        stage.report.add("files of groups, at the ends of batches".to_owned(), files);
        left.into_iter().for_each(|what| stage.violated(format!("left over: {what}")));
    }
}
