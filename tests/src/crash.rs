//! Crash points: a container's life, in which the daemon or a shim is killed at one system call that
//! changes the world, for each of these calls.
//!
//! What lies behind a call is covered by the next one: a process is killed on its way in, before the
//! call is made.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

use nix::libc;
use serde_json::{Value, json};

use crate::life::{After, Life, Runtime, Who};
use crate::tracer::{Deed, Point, Rule};

/// What came of one point.
#[derive(Debug, Clone)]
pub struct Trial {
    /// Who was killed.
    pub who: Who,
    /// With which runtime.
    pub runtime: Runtime,
    /// Where.
    pub point: Point,
    /// What was done to it.
    pub deed: Deed,
    /// What was told of it.
    pub errors: Vec<String>,
    /// What was done then.
    pub after: After,
    /// Whether the point was come by at all: threads and signals don't come the same way twice.
    pub reached: bool,
    /// The step of the life that was under way, and what `ps` said.
    pub found: String,
    /// What was not as it must be.
    pub violations: Vec<String>,
}

/// The calls of an undisturbed life, in their order.
///
/// # Panics
///
/// If even that goes wrong.
pub async fn points(runtime: Runtime, who: Who) -> Vec<Point> {
    let mut life = Life::new(runtime, who, &[]).await;
    life.live(After::Finish).await;
    assert_eq!(life.violations, [""; 0], "an undisturbed life");
    life.tracer.ended().await;
    life.tracer.calls()
}

/// `HOLDFAST_SEED`, to do again what failed; else another one each time.
#[must_use]
pub fn seed() -> u64 {
    let given = std::env::var("HOLDFAST_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::from(now.unwrap_or_default().subsec_nanos()) % 1000
    })
}

/// Every so manieth point, from one that the seed says.
pub fn choose(points: &[Point], every: usize, seed: u64) -> impl Iterator<Item = Point> {
    let first = usize::try_from(seed).unwrap_or(usize::MAX) % every;
    points.iter().skip(first).step_by(every).cloned()
}

/// Lives with a death at this point.
pub async fn trial(runtime: Runtime, who: Who, point: Point, deed: Deed, after: After) -> Trial {
    let task = tokio::spawn(lived(runtime, who, point.clone(), deed, after));
    task.await.unwrap_or_else(|panic| Trial {
        who,
        runtime,
        point,
        deed,
        errors: Vec::new(),
        after,
        reached: true,
        found: String::new(),
        violations: vec![format!("{panic}")],
    })
}

async fn lived(runtime: Runtime, who: Who, point: Point, deed: Deed, after: After) -> Trial {
    let began = Instant::now();
    let mut life = Life::new(runtime, who, &[Rule::once(&point, deed)]).await;
    life.live(after).await;
    let step = life.step();
    let reached = life.tracer.has_done();
    if reached || !life.violations.is_empty() {
        life.reckon(after).await;
    }
    if !life.violations.is_empty() {
        let log = life.daemon_log();
        life.violations.push(format!("the daemon said: {log}"));
    }
    life.scrub();
    let found = format!("{step:?}: {} ({} ms)", life.found, began.elapsed().as_millis());
    let violations = std::mem::take(&mut life.violations);
    let errors = std::mem::take(&mut life.errors);
    Trial { who, runtime, point, deed, errors, after, reached, found, violations }
}

/// The ways in which a call can fail: for want of space, of memory or of descriptors, by a broken
/// disk or by a signal, and half-way.
#[must_use]
pub fn faults(point: &Point) -> Vec<Deed> {
    let is_fifo = point.key.ends_with("/exit") || point.key.ends_with("/control");
    let errors: &[i32] = match point.call() {
        // There is no disk behind it.
        "write" if is_fifo => &[libc::EINTR],
        "openat" => &[libc::ENOSPC, libc::EIO, libc::EMFILE, libc::ENOMEM, libc::EINTR],
        "write" => &[libc::ENOSPC, libc::EIO, libc::EINTR],
        "fsync" | "ftruncate" => &[libc::ENOSPC, libc::EIO, libc::EINTR],
        "rename" | "mkdir" | "mknod" | "link" => &[libc::ENOSPC, libc::EIO, libc::ENOMEM],
        "unlink" | "chmod" | "chown" | "fchown" => &[libc::EIO],
        "spawn" => &[libc::ENOMEM],
        _ => &[],
    };
    let mut deeds: Vec<Deed> = errors.iter().copied().map(Deed::Fail).collect();
    if point.call() == "write" && !is_fifo {
        deeds.push(Deed::Short(1));
    }
    deeds
}

/// Counts by system call.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    tried: u32,
    not_reached: u32,
    finished: u32,
    further: u32,
    forced: u32,
    violated: u32,
}

/// All trials of a run.
#[derive(Debug, Default)]
pub struct Summary {
    trials: Vec<Trial>,
}

impl Summary {
    /// Takes a trial in.
    pub fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
    }

    /// Those in which something was not as it must be.
    #[must_use]
    pub fn violations(&self) -> Vec<&Trial> {
        self.trials.iter().filter(|trial| !trial.violations.is_empty()).collect()
    }

    fn counts(&self) -> BTreeMap<(Who, Runtime, String), Count> {
        let mut counts: BTreeMap<_, Count> = BTreeMap::new();
        for trial in &self.trials {
            let key = (trial.who, trial.runtime, trial.point.call().to_owned());
            let count = counts.entry(key).or_default();
            count.tried += 1;
            let outcome = match trial {
                trial if !trial.violations.is_empty() => &mut count.violated,
                Trial { reached: false, .. } => &mut count.not_reached,
                Trial { after: After::Finish, .. } => &mut count.finished,
                Trial { after: After::Further, .. } => &mut count.further,
                Trial { after: After::Force, .. } => &mut count.forced,
            };
            *outcome += 1;
        }
        counts
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<10} {:<6} {:<18} {:>6} {:>9} {:>17} {:>7} {:>12} {:>9}\n",
            "killed",
            "runtime",
            "at",
            "trials",
            "finished",
            "further",
            "forced",
            "not reached",
            "VIOLATED"
        );
        for ((who, runtime, call), count) in self.counts() {
            text += &format!(
                "{:<10} {:<7} {:<18} {:>6} {:>9} {:>17} {:>7} {:>12} {:>9}\n",
                format!("{who:?}"),
                format!("{runtime:?}"),
                call,
                count.tried,
                count.finished,
                count.further,
                count.forced,
                count.not_reached,
                count.violated
            );
        }
        text
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let counts: Vec<_> = self
            .counts()
            .into_iter()
            .map(|((who, runtime, call), count)| {
                json!({
                    "killed": format!("{who:?}"), "runtime": format!("{runtime:?}"), "at": call,
                    "trials": count.tried, "finished": count.finished,
                    "further": count.further, "forced": count.forced,
                    "notReached": count.not_reached, "violated": count.violated,
                })
            })
            .collect();
        let violations: Vec<_> = self
            .violations()
            .into_iter()
            .map(|trial| {
                json!({
                    "killed": format!("{:?}", trial.who), "runtime": format!("{:?}", trial.runtime),
                    "point": trial.point.to_string(), "deed": format!("{:?}", trial.deed),
                    "errors": trial.errors, "after": format!("{:?}", trial.after),
                    "found": trial.found, "violations": trial.violations,
                })
            })
            .collect();
        json!({
            "trials": self.trials.len(),
            "notReached": self.trials.iter().filter(|trial| !trial.reached).count(),
            "violated": violations.len(),
            "counts": counts,
            "violations": violations,
        })
    }
}
