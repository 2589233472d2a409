//! The message of version 2.

use std::path::Path;

use holdfast_ttrpc::metrics::v2::{Cpu, Hugetlb, Io, IoEntry, Memory, MemoryEvents, Metrics};
use holdfast_ttrpc::metrics::{Pids, Pressure, PressureData};

use crate::files::{self, Table, number, page_sizes, text};

/// What `max` counts as in this version.
const UNLIMITED: u64 = u64::MAX;

/// Measures a cgroup.
pub(crate) fn metrics(dir: &Path) -> Metrics {
    Metrics {
        pids: pids(dir),
        cpu: cpu(dir),
        memory: memory(dir),
        rdma: files::rdma(dir),
        io: io(dir),
        hugetlb: hugetlb(dir),
        memory_events: memory_events(dir),
        network: Vec::new(),
    }
}

fn count(dir: &Path, name: &str) -> u64 {
    number(dir, name, UNLIMITED).unwrap_or(0)
}

fn pids(dir: &Path) -> Option<Pids> {
    let current = number(dir, "pids.current", UNLIMITED)?;
    Some(Pids { current, limit: count(dir, "pids.max") })
}

fn cpu(dir: &Path) -> Option<Cpu> {
    let stat = Table::read(dir, "cpu.stat")?;
    Some(Cpu {
        usage_usec: stat.get("usage_usec"),
        user_usec: stat.get("user_usec"),
        system_usec: stat.get("system_usec"),
        nr_periods: stat.get("nr_periods"),
        nr_throttled: stat.get("nr_throttled"),
        throttled_usec: stat.get("throttled_usec"),
        psi: pressure(dir, "cpu.pressure"),
        nr_bursts: stat.get("nr_bursts"),
        burst_usec: stat.get("burst_usec"),
    })
}

fn memory(dir: &Path) -> Option<Memory> {
    let stat = Table::read(dir, "memory.stat")?;
    let get = |name| stat.get(name);
    Some(Memory {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        workingset_refault: get("workingset_refault"),
        workingset_activate: get("workingset_activate"),
        workingset_nodereclaim: get("workingset_nodereclaim"),
        pgrefill: get("pgrefill"),
        pgscan: get("pgscan"),
        pgsteal: get("pgsteal"),
        pgactivate: get("pgactivate"),
        pgdeactivate: get("pgdeactivate"),
        pglazyfree: get("pglazyfree"),
        pglazyfreed: get("pglazyfreed"),
        thp_fault_alloc: get("thp_fault_alloc"),
        thp_collapse_alloc: get("thp_collapse_alloc"),
        usage: count(dir, "memory.current"),
        usage_limit: count(dir, "memory.max"),
        swap_usage: count(dir, "memory.swap.current"),
        swap_limit: count(dir, "memory.swap.max"),
        max_usage: count(dir, "memory.peak"),
        swap_max_usage: count(dir, "memory.swap.peak"),
        psi: pressure(dir, "memory.pressure"),
    })
}

fn memory_events(dir: &Path) -> Option<MemoryEvents> {
    let events = Table::read(dir, "memory.events")?;
    Some(MemoryEvents {
        low: events.get("low"),
        high: events.get("high"),
        max: events.get("max"),
        oom: events.get("oom"),
        oom_kill: events.get("oom_kill"),
        oom_group_kill: events.get("oom_group_kill"),
    })
}

fn io(dir: &Path) -> Option<Io> {
    let usage = text(dir, "io.stat")?.lines().filter_map(io_entry).collect();
    Some(Io { usage, psi: pressure(dir, "io.pressure") })
}

/// Parses a line like `8:0 rbytes=4096 wbytes=0 rios=1 wios=0`.
fn io_entry(line: &str) -> Option<IoEntry> {
    let mut fields = line.split_whitespace();
    let (major, minor) = fields.next()?.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let mut entry = IoEntry { major, minor, ..IoEntry::default() };
    for (name, value) in fields.filter_map(|field| field.split_once('=')) {
        let counter = match name {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *counter = value.parse().unwrap_or(0);
    }
    Some(entry)
}

fn hugetlb(dir: &Path) -> Vec<Hugetlb> {
    let sizes = page_sizes(dir, "current").into_iter();
    sizes
        .map(|pagesize| {
            let count = |name| count(dir, &format!("hugetlb.{pagesize}.{name}"));
            let (current, max) = (count("current"), count("max"));
            let events = Table::read(dir, &format!("hugetlb.{pagesize}.events"));
            let failcnt = events.map_or(0, |events| events.get("max"));
            Hugetlb { current, max, pagesize, failcnt }
        })
        .collect()
}

/// Reads lines like `some avg10=0.12 avg60=0.00 avg300=0.00 total=1234`.
fn pressure(dir: &Path, name: &str) -> Option<Pressure> {
    let text = text(dir, name)?;
    let line = |kind: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        let value = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
        let share = |name| value(name).and_then(|share| share.parse().ok()).unwrap_or(0.0);
        Some(PressureData {
            avg10: share("avg10="),
            avg60: share("avg60="),
            avg300: share("avg300="),
            total: value("total=").and_then(|total| total.parse().ok()).unwrap_or(0),
        })
    };
    Some(Pressure { some: line("some "), full: line("full ") })
}
