//! The measurements of a cgroup of version 2, in package `io.containerd.cgroups.v2`.

use prost::Message;

use super::{Network, Pids, Pressure, Rdma};

impl Metrics {
    /// The name of the type.
    pub const TYPE: &'static str = "io.containerd.cgroups.v2.Metrics";
}

/// `io.containerd.cgroups.v2.Metrics`: what is measured of a cgroup.
#[derive(Clone, PartialEq, Message)]
pub struct Metrics {
    /// Processes and threads.
    #[prost(message, optional, tag = "1")]
    pub pids: Option<Pids>,
    /// Processor time.
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<Memory>,
    /// RDMA resources.
    #[prost(message, optional, tag = "5")]
    pub rdma: Option<Rdma>,
    /// Block I/O.
    #[prost(message, optional, tag = "6")]
    pub io: Option<Io>,
    /// Huge pages, by their size.
    #[prost(message, repeated, tag = "7")]
    pub hugetlb: Vec<Hugetlb>,
    /// How often limits of memory were met.
    #[prost(message, optional, tag = "8")]
    pub memory_events: Option<MemoryEvents>,
    /// Network interfaces. A shim leaves them out.
    #[prost(message, repeated, tag = "9")]
    pub network: Vec<Network>,
}

/// `io.containerd.cgroups.v2.CPUStat`: processor time.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Cpu {
    /// `usage_usec` of `cpu.stat`.
    #[prost(uint64, tag = "1")]
    pub usage_usec: u64,
    /// `user_usec` of `cpu.stat`.
    #[prost(uint64, tag = "2")]
    pub user_usec: u64,
    /// `system_usec` of `cpu.stat`.
    #[prost(uint64, tag = "3")]
    pub system_usec: u64,
    /// `nr_periods` of `cpu.stat`.
    #[prost(uint64, tag = "4")]
    pub nr_periods: u64,
    /// `nr_throttled` of `cpu.stat`.
    #[prost(uint64, tag = "5")]
    pub nr_throttled: u64,
    /// `throttled_usec` of `cpu.stat`.
    #[prost(uint64, tag = "6")]
    pub throttled_usec: u64,
    /// How long tasks waited for it.
    #[prost(message, optional, tag = "7")]
    pub psi: Option<Pressure>,
    /// `nr_bursts` of `cpu.stat`.
    #[prost(uint64, tag = "8")]
    pub nr_bursts: u64,
    /// `burst_usec` of `cpu.stat`.
    #[prost(uint64, tag = "9")]
    pub burst_usec: u64,
}

/// `io.containerd.cgroups.v2.MemoryStat`: memory. A field that is described by a name
/// alone is that line of `memory.stat`.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Memory {
    /// `anon`.
    #[prost(uint64, tag = "1")]
    pub anon: u64,
    /// `file`.
    #[prost(uint64, tag = "2")]
    pub file: u64,
    /// `kernel_stack`.
    #[prost(uint64, tag = "3")]
    pub kernel_stack: u64,
    /// `slab`.
    #[prost(uint64, tag = "4")]
    pub slab: u64,
    /// `sock`.
    #[prost(uint64, tag = "5")]
    pub sock: u64,
    /// `shmem`.
    #[prost(uint64, tag = "6")]
    pub shmem: u64,
    /// `file_mapped`.
    #[prost(uint64, tag = "7")]
    pub file_mapped: u64,
    /// `file_dirty`.
    #[prost(uint64, tag = "8")]
    pub file_dirty: u64,
    /// `file_writeback`.
    #[prost(uint64, tag = "9")]
    pub file_writeback: u64,
    /// `anon_thp`.
    #[prost(uint64, tag = "10")]
    pub anon_thp: u64,
    /// `inactive_anon`.
    #[prost(uint64, tag = "11")]
    pub inactive_anon: u64,
    /// `active_anon`.
    #[prost(uint64, tag = "12")]
    pub active_anon: u64,
    /// `inactive_file`.
    #[prost(uint64, tag = "13")]
    pub inactive_file: u64,
    /// `active_file`.
    #[prost(uint64, tag = "14")]
    pub active_file: u64,
    /// `unevictable`.
    #[prost(uint64, tag = "15")]
    pub unevictable: u64,
    /// `slab_reclaimable`.
    #[prost(uint64, tag = "16")]
    pub slab_reclaimable: u64,
    /// `slab_unreclaimable`.
    #[prost(uint64, tag = "17")]
    pub slab_unreclaimable: u64,
    /// `pgfault`.
    #[prost(uint64, tag = "18")]
    pub pgfault: u64,
    /// `pgmajfault`.
    #[prost(uint64, tag = "19")]
    pub pgmajfault: u64,
    /// `workingset_refault`.
    #[prost(uint64, tag = "20")]
    pub workingset_refault: u64,
    /// `workingset_activate`.
    #[prost(uint64, tag = "21")]
    pub workingset_activate: u64,
    /// `workingset_nodereclaim`.
    #[prost(uint64, tag = "22")]
    pub workingset_nodereclaim: u64,
    /// `pgrefill`.
    #[prost(uint64, tag = "23")]
    pub pgrefill: u64,
    /// `pgscan`.
    #[prost(uint64, tag = "24")]
    pub pgscan: u64,
    /// `pgsteal`.
    #[prost(uint64, tag = "25")]
    pub pgsteal: u64,
    /// `pgactivate`.
    #[prost(uint64, tag = "26")]
    pub pgactivate: u64,
    /// `pgdeactivate`.
    #[prost(uint64, tag = "27")]
    pub pgdeactivate: u64,
    /// `pglazyfree`.
    #[prost(uint64, tag = "28")]
    pub pglazyfree: u64,
    /// `pglazyfreed`.
    #[prost(uint64, tag = "29")]
    pub pglazyfreed: u64,
    /// `thp_fault_alloc`.
    #[prost(uint64, tag = "30")]
    pub thp_fault_alloc: u64,
    /// `thp_collapse_alloc`.
    #[prost(uint64, tag = "31")]
    pub thp_collapse_alloc: u64,
    /// Bytes in use: `memory.current`.
    #[prost(uint64, tag = "32")]
    pub usage: u64,
    /// `memory.max`, in bytes.
    #[prost(uint64, tag = "33")]
    pub usage_limit: u64,
    /// `memory.swap.current`, in bytes.
    #[prost(uint64, tag = "34")]
    pub swap_usage: u64,
    /// `memory.swap.max`, in bytes.
    #[prost(uint64, tag = "35")]
    pub swap_limit: u64,
    /// `memory.peak`, in bytes.
    #[prost(uint64, tag = "36")]
    pub max_usage: u64,
    /// `memory.swap.peak`, in bytes.
    #[prost(uint64, tag = "37")]
    pub swap_max_usage: u64,
    /// How long tasks waited for it.
    #[prost(message, optional, tag = "38")]
    pub psi: Option<Pressure>,
}

/// `io.containerd.cgroups.v2.MemoryEvents`: the lines of `memory.events`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryEvents {
    /// `low`.
    #[prost(uint64, tag = "1")]
    pub low: u64,
    /// `high`.
    #[prost(uint64, tag = "2")]
    pub high: u64,
    /// `max`.
    #[prost(uint64, tag = "3")]
    pub max: u64,
    /// `oom`.
    #[prost(uint64, tag = "4")]
    pub oom: u64,
    /// `oom_kill`.
    #[prost(uint64, tag = "5")]
    pub oom_kill: u64,
    /// `oom_group_kill`.
    #[prost(uint64, tag = "6")]
    pub oom_group_kill: u64,
}

/// `io.containerd.cgroups.v2.IOStat`: block I/O.
#[derive(Clone, PartialEq, Message)]
pub struct Io {
    /// The devices.
    #[prost(message, repeated, tag = "1")]
    pub usage: Vec<IoEntry>,
    /// How long tasks waited for it.
    #[prost(message, optional, tag = "2")]
    pub psi: Option<Pressure>,
}

/// `io.containerd.cgroups.v2.IOEntry`: a line of `io.stat`: a device.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct IoEntry {
    /// The device's major number.
    #[prost(uint64, tag = "1")]
    pub major: u64,
    /// The device's minor number.
    #[prost(uint64, tag = "2")]
    pub minor: u64,
    /// Bytes read.
    #[prost(uint64, tag = "3")]
    pub rbytes: u64,
    /// Bytes written.
    #[prost(uint64, tag = "4")]
    pub wbytes: u64,
    /// Reads.
    #[prost(uint64, tag = "5")]
    pub rios: u64,
    /// Writes.
    #[prost(uint64, tag = "6")]
    pub wios: u64,
}

/// `io.containerd.cgroups.v2.HugeTlbStat`: huge pages of one size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hugetlb {
    /// Bytes in use.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// The limit, in bytes.
    #[prost(uint64, tag = "2")]
    pub max: u64,
    /// The size, as in `2MB`.
    #[prost(string, tag = "3")]
    pub pagesize: String,
    /// How often the limit was hit.
    #[prost(uint64, tag = "4")]
    pub failcnt: u64,
}
