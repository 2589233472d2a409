//! Samples, clocks, and what `/proc` tells.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::Outcome;

/// Samples of one quantity.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

impl Samples {
    /// The value below which this share of them lies.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "median": self.quantile(0.5),
            "p99": self.quantile(0.99),
            "min": self.quantile(0.0),
            "max": self.quantile(1.0),
            "samples": self.0,
        })
    }
}

/// The clock that `idler` reads, in nanoseconds.
pub(crate) fn monotonic() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

/// What `idler` has written, the earliest first.
pub(crate) fn stamps(path: &Path) -> Outcome<Vec<i64>> {
    let content = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (chunks, _) = content.as_chunks::<8>();
    let mut stamps: Vec<i64> = chunks.iter().map(|bytes| i64::from_ne_bytes(*bytes)).collect();
    stamps.sort_unstable();
    Ok(stamps)
}

/// Nanoseconds between two readings, in microseconds.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn micros(from: i64, to: i64) -> f64 {
    (to - from) as f64 / 1000.0
}

/// The memory of a process in KiB, how many files it has open, and its threads.
pub(crate) fn memory(pid: i32) -> Outcome<Value> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let of = |name: &str| number(&rollup, name).unwrap_or(0);
    Ok(json!({
        "pssKiB": of("Pss:"),
        "ussKiB": of("Private_Clean:") + of("Private_Dirty:"),
        "rssKiB": of("Rss:"),
        "files": fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        "threads": threads(pid).len(),
    }))
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// What the whole machine has left, in KiB.
pub(crate) fn available() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    Ok(number(&text, "MemAvailable:").ok_or("no MemAvailable")?)
}

/// The highest process number that the kernel gives.
pub(crate) fn pid_max() -> Outcome<usize> {
    Ok(fs::read_to_string("/proc/sys/kernel/pid_max")?.trim().parse()?)
}

/// How many threads the whole machine has.
pub(crate) fn threads_of_the_machine() -> Outcome<usize> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let of = text.split_ascii_whitespace().nth(3).and_then(|part| part.split_once('/'));
    Ok(of.ok_or("no count in loadavg")?.1.parse()?)
}

pub(crate) fn threads(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// How often each thread of these processes has been put aside for another: of itself, because it
/// waits, or by the kernel. A thread that nothing wakes is not put aside either.
pub(crate) fn switches(pids: &[i32]) -> HashMap<(i32, i32), u64> {
    let of = |pid: i32, thread: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
        let names = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
        names.into_iter().map(|name| number(&text, name)).sum::<Option<u64>>()
    };
    let all = pids.iter().flat_map(|pid| threads(*pid).into_iter().map(|thread| (*pid, thread)));
    all.filter_map(|(pid, thread)| Some(((pid, thread), of(pid, thread)?))).collect()
}

/// How often they were between two looks.
pub(crate) fn switched(before: &HashMap<(i32, i32), u64>, after: &HashMap<(i32, i32), u64>) -> u64 {
    after.iter().map(|(thread, count)| count - before.get(thread).unwrap_or(&0).min(count)).sum()
}
