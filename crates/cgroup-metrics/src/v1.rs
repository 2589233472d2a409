//! The message of version 1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_ttrpc::metrics::Pids;
use holdfast_ttrpc::metrics::v1::{
    BlockIo, BlockIoEntry, Cpu, CpuUsage, Hugetlb, Memory, MemoryEntry, Metrics, OomControl,
    Throttle,
};
use nix::unistd::{SysconfVar, sysconf};

use crate::files::{self, Table, number, page_sizes, text};

/// What `max` counts as in this version.
const UNLIMITED: u64 = 0;

/// Measures the cgroups of a process.
pub(crate) fn metrics(cgroups: &BTreeMap<String, PathBuf>, partitions: &Path) -> Metrics {
    let dir = |controller: &str| cgroups.get(controller).map(PathBuf::as_path);
    Metrics {
        hugetlb: dir("hugetlb").map(hugetlb).unwrap_or_default(),
        pids: dir("pids").and_then(pids),
        // Containerd's readers expect all of this message.
        cpu: Some(Cpu {
            usage: Some(dir("cpuacct").map(cpu_usage).unwrap_or_default()),
            throttling: Some(dir("cpu").and_then(throttle).unwrap_or_default()),
        }),
        memory: dir("memory").and_then(memory),
        blkio: dir("blkio").map(|dir| block_io(dir, partitions)),
        rdma: dir("rdma").and_then(files::rdma),
        network: Vec::new(),
        cgroup_stats: None,
        memory_oom_control: dir("memory").and_then(oom_control),
    }
}

fn count(dir: &Path, name: &str) -> u64 {
    number(dir, name, UNLIMITED).unwrap_or(0)
}

fn hugetlb(dir: &Path) -> Vec<Hugetlb> {
    let sizes = page_sizes(dir, "usage_in_bytes").into_iter();
    sizes
        .map(|pagesize| {
            let count = |name| count(dir, &format!("hugetlb.{pagesize}.{name}"));
            let (usage, max) = (count("usage_in_bytes"), count("max_usage_in_bytes"));
            Hugetlb { usage, max, failcnt: count("failcnt"), pagesize }
        })
        .collect()
}

fn pids(dir: &Path) -> Option<Pids> {
    let current = number(dir, "pids.current", UNLIMITED)?;
    Some(Pids { current, limit: count(dir, "pids.max") })
}

fn cpu_usage(dir: &Path) -> CpuUsage {
    let per_cpu = text(dir, "cpuacct.usage_percpu").unwrap_or_default();
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let ticks = ticks.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    let stat = Table::read(dir, "cpuacct.stat");
    let nanoseconds = |name| {
        let count = stat.as_ref().map_or(0, |stat| stat.get(name));
        count.saturating_mul(1_000_000_000 / ticks)
    };
    CpuUsage {
        total: count(dir, "cpuacct.usage"),
        kernel: nanoseconds("system"),
        user: nanoseconds("user"),
        per_cpu: per_cpu.split_whitespace().filter_map(|count| count.parse().ok()).collect(),
    }
}

fn throttle(dir: &Path) -> Option<Throttle> {
    let stat = Table::read(dir, "cpu.stat")?;
    Some(Throttle {
        periods: stat.get("nr_periods"),
        throttled_periods: stat.get("nr_throttled"),
        throttled_time: stat.get("throttled_time"),
    })
}

fn memory(dir: &Path) -> Option<Memory> {
    let stat = Table::read(dir, "memory.stat")?;
    let get = |name| stat.get(name);
    // Each is there even if it is empty: containerd's readers expect it.
    let entry = |part: &str| {
        let count = |name| count(dir, &format!("memory.{part}{name}"));
        Some(MemoryEntry {
            limit: count("limit_in_bytes"),
            usage: count("usage_in_bytes"),
            max: count("max_usage_in_bytes"),
            failcnt: count("failcnt"),
        })
    };
    Some(Memory {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
    })
}

fn oom_control(dir: &Path) -> Option<OomControl> {
    let stat = Table::read(dir, "memory.oom_control")?;
    Some(OomControl {
        oom_kill_disable: stat.get("oom_kill_disable"),
        under_oom: stat.get("under_oom"),
        oom_kill: stat.get("oom_kill"),
    })
}

/// Before Linux 5.0 the scheduler CFQ counts more than the throttle does. The throttle counts where CFQ
/// is not there, or not used.
fn block_io(dir: &Path, partitions: &Path) -> BlockIo {
    let devices = std::fs::read_to_string(partitions).unwrap_or_default();
    let entries = |name: &str| {
        let text = text(dir, &format!("blkio.{name}")).unwrap_or_default();
        text.lines().filter_map(|line| block_io_entry(line, &devices)).collect::<Vec<_>>()
    };
    let or_throttle = |name: &str| {
        let names = [
            name,
            &format!("throttle.{name}"),
            &format!("throttle.{name}").replace("_recursive", ""),
        ];
        names.into_iter().map(entries).find(|found| !found.is_empty()).unwrap_or_default()
    };
    BlockIo {
        io_service_bytes_recursive: or_throttle("io_service_bytes_recursive"),
        io_serviced_recursive: or_throttle("io_serviced_recursive"),
        io_queued_recursive: entries("io_queued_recursive"),
        io_service_time_recursive: entries("io_service_time_recursive"),
        io_wait_time_recursive: entries("io_wait_time_recursive"),
        io_merged_recursive: entries("io_merged_recursive"),
        io_time_recursive: entries("time_recursive"),
        sectors_recursive: entries("sectors_recursive"),
    }
}

/// Parses a line like `8:0 Read 4096` or `8:0 4096`. The last line has the total, and no device.
fn block_io_entry(line: &str, partitions: &str) -> Option<BlockIoEntry> {
    let (numbers, rest) = line.split_once(' ')?;
    let (major, minor) = numbers.split_once(':')?;
    let (op, value) = rest.rsplit_once(' ').unwrap_or(("", rest));
    let name = partitions.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(..2)? == [major, minor]).then(|| fields.get(3).copied())?
    });
    Some(BlockIoEntry {
        op: op.to_owned(),
        device: name.map(|name| format!("/dev/{name}")).unwrap_or_default(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        value: value.parse().ok()?,
    })
}
