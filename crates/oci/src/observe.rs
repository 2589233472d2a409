//! `state`, `ps`, `events` and `features`: what is printed, in runc's shape.

use std::io::{self, Write};

use anyhow::bail;
use libcgroups::common::CgroupManager;
use libcgroups::stats::{MemoryData, Stats};
use serde_json::{Value, json};

use crate::args::{Global, PsFormat};
use crate::cgroup::is_unified;
use crate::record::{Dir, Status};
use crate::seccomp;

/// Prints what is known of a container.
pub(crate) fn state(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    let record = dir.record()?;
    let status = dir.status(&record);
    let state = json!({
        "ociVersion": "1.0.2",
        "id": id,
        "pid": if status == Status::Stopped { 0 } else { record.pid },
        "status": status.name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": "",
    });
    print(&format!("{state:#}"))
}

/// Prints the host's numbers of a container's processes.
pub(crate) fn ps(global: &Global, id: &str, format: PsFormat) -> anyhow::Result<()> {
    let record = Dir::of(&global.root, id)?.record()?;
    let pids = record.cgroup.pids()?;
    match format {
        PsFormat::Json => print(&json!(pids).to_string()),
        PsFormat::Table => {
            let lines: Vec<String> = pids.iter().map(ToString::to_string).collect();
            print(&format!("PID\n{}", lines.join("\n")))
        }
    }
}

/// Prints one line of statistics.
pub(crate) fn stats(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    let record = dir.record()?;
    if matches!(dir.status(&record), Status::Stopped | Status::Creating) {
        bail!("container with id {id} is not running");
    }
    let stats = record.cgroup.manager(id)?.stats()?;
    print(&json!({ "type": "stats", "id": id, "data": data(&stats, is_unified()?) }).to_string())
}

fn data(stats: &Stats, unified: bool) -> Value {
    // Version 2 counts all in microseconds, version 1 the totals in nanoseconds and the parts in
    // ticks of a hundredth of a second; libcgroups passes them on as they are.
    let nanoseconds = |time: u64| if unified { time.saturating_mul(1000) } else { time };
    let ticks = |time: u64| time.saturating_mul(if unified { 1000 } else { 10_000_000 });
    let (usage, throttling) = (&stats.cpu.usage, &stats.cpu.throttling);
    let memory = |data: &MemoryData| {
        json!({
            "limit": data.limit,
            "usage": data.usage,
            "max": data.max_usage,
            "failcnt": data.fail_count,
        })
    };
    let blkio = |entries: &[libcgroups::stats::BlkioDeviceStat]| {
        let entry = |entry: &libcgroups::stats::BlkioDeviceStat| {
            json!({
                "major": entry.major,
                "minor": entry.minor,
                "op": entry.op_type,
                "value": entry.value,
            })
        };
        entries.iter().map(entry).collect::<Vec<_>>()
    };
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(usage.usage_total),
                "percpu": usage.per_core_usage_total,
                "user": ticks(usage.usage_user),
                "kernel": ticks(usage.usage_kernel),
            },
            "throttling": {
                "periods": throttling.periods,
                "throttledPeriods": throttling.throttled_periods,
                "throttledTime": nanoseconds(throttling.throttled_time),
            },
        },
        "memory": {
            "cache": stats.memory.cache,
            "usage": memory(&stats.memory.memory),
            "swap": memory(&stats.memory.memswap),
            "kernel": memory(&stats.memory.kernel),
            "kernelTCP": memory(&stats.memory.kernel_tcp),
            "raw": stats.memory.stats,
        },
        "pids": { "current": stats.pids.current, "limit": stats.pids.limit },
        "blkio": {
            "ioServiceBytesRecursive": blkio(&stats.blkio.service_bytes),
            "ioServicedRecursive": blkio(&stats.blkio.serviced),
        },
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// Prints what this runtime can do.
pub(crate) fn features() -> anyhow::Result<()> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.0.2",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart",
            "poststop",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true },
            "seccomp": seccomp::features(),
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
        },
        "annotations": { "org.opencontainers.runc.checkpoint.enabled": "false" },
    });
    print(&format!("{features:#}"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
