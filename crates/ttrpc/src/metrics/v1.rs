//! The measurements of cgroups of version 1, in package `io.containerd.cgroups.v1`.

use prost::Message;

use super::{Network, Pids, Rdma};

impl Metrics {
    /// The name of the type.
    pub const TYPE: &'static str = "io.containerd.cgroups.v1.Metrics";
}

/// `io.containerd.cgroups.v1.Metrics`: what is measured of a cgroup.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Metrics {
    /// Huge pages, by their size.
    #[prost(message, repeated, tag = "1")]
    pub hugetlb: Vec<Hugetlb>,
    /// Processes and threads.
    #[prost(message, optional, tag = "2")]
    pub pids: Option<Pids>,
    /// Processor time.
    #[prost(message, optional, tag = "3")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[prost(message, optional, tag = "4")]
    pub memory: Option<Memory>,
    /// Block I/O.
    #[prost(message, optional, tag = "5")]
    pub blkio: Option<BlockIo>,
    /// RDMA resources.
    #[prost(message, optional, tag = "6")]
    pub rdma: Option<Rdma>,
    /// Network interfaces. A shim leaves them out.
    #[prost(message, repeated, tag = "7")]
    pub network: Vec<Network>,
    /// Threads by what they do. A shim leaves them out.
    #[prost(message, optional, tag = "8")]
    pub cgroup_stats: Option<Tasks>,
    /// How the cgroup runs out of memory.
    #[prost(message, optional, tag = "9")]
    pub memory_oom_control: Option<OomControl>,
}

/// `io.containerd.cgroups.v1.HugetlbStat`: huge pages of one size.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hugetlb {
    /// Bytes in use.
    #[prost(uint64, tag = "1")]
    pub usage: u64,
    /// The most bytes that were in use.
    #[prost(uint64, tag = "2")]
    pub max: u64,
    /// How often the limit was hit.
    #[prost(uint64, tag = "3")]
    pub failcnt: u64,
    /// The size, as in `2MB`.
    #[prost(string, tag = "4")]
    pub pagesize: String,
}

/// `io.containerd.cgroups.v1.CPUStat`: processor time.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cpu {
    /// What was used.
    #[prost(message, optional, tag = "1")]
    pub usage: Option<CpuUsage>,
    /// What the quota held back.
    #[prost(message, optional, tag = "2")]
    pub throttling: Option<Throttle>,
}

/// `io.containerd.cgroups.v1.CPUUsage`: processor time that was used.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CpuUsage {
    /// Nanoseconds in all.
    #[prost(uint64, tag = "1")]
    pub total: u64,
    /// Nanoseconds in the kernel.
    #[prost(uint64, tag = "2")]
    pub kernel: u64,
    /// Nanoseconds in user space.
    #[prost(uint64, tag = "3")]
    pub user: u64,
    /// Nanoseconds on each processor.
    #[prost(uint64, repeated, tag = "4")]
    pub per_cpu: Vec<u64>,
}

/// `io.containerd.cgroups.v1.Throttle`: how often, and how long, the quota of processor time held the cgroup back.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Throttle {
    /// Periods that have passed.
    #[prost(uint64, tag = "1")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[prost(uint64, tag = "2")]
    pub throttled_periods: u64,
    /// Nanoseconds of waiting for the next period.
    #[prost(uint64, tag = "3")]
    pub throttled_time: u64,
}

/// `io.containerd.cgroups.v1.MemoryStat`: memory. A field that is described by a name
/// alone is that line of `memory.stat`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Memory {
    /// `cache`.
    #[prost(uint64, tag = "1")]
    pub cache: u64,
    /// `rss`.
    #[prost(uint64, tag = "2")]
    pub rss: u64,
    /// `rss_huge`.
    #[prost(uint64, tag = "3")]
    pub rss_huge: u64,
    /// `mapped_file`.
    #[prost(uint64, tag = "4")]
    pub mapped_file: u64,
    /// `dirty`.
    #[prost(uint64, tag = "5")]
    pub dirty: u64,
    /// `writeback`.
    #[prost(uint64, tag = "6")]
    pub writeback: u64,
    /// `pgpgin`.
    #[prost(uint64, tag = "7")]
    pub pg_pg_in: u64,
    /// `pgpgout`.
    #[prost(uint64, tag = "8")]
    pub pg_pg_out: u64,
    /// `pgfault`.
    #[prost(uint64, tag = "9")]
    pub pg_fault: u64,
    /// `pgmajfault`.
    #[prost(uint64, tag = "10")]
    pub pg_maj_fault: u64,
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
    /// `hierarchical_memory_limit`.
    #[prost(uint64, tag = "16")]
    pub hierarchical_memory_limit: u64,
    /// `hierarchical_memsw_limit`.
    #[prost(uint64, tag = "17")]
    pub hierarchical_swap_limit: u64,
    /// `total_cache`.
    #[prost(uint64, tag = "18")]
    pub total_cache: u64,
    /// `total_rss`.
    #[prost(uint64, tag = "19")]
    pub total_rss: u64,
    /// `total_rss_huge`.
    #[prost(uint64, tag = "20")]
    pub total_rss_huge: u64,
    /// `total_mapped_file`.
    #[prost(uint64, tag = "21")]
    pub total_mapped_file: u64,
    /// `total_dirty`.
    #[prost(uint64, tag = "22")]
    pub total_dirty: u64,
    /// `total_writeback`.
    #[prost(uint64, tag = "23")]
    pub total_writeback: u64,
    /// `total_pgpgin`.
    #[prost(uint64, tag = "24")]
    pub total_pg_pg_in: u64,
    /// `total_pgpgout`.
    #[prost(uint64, tag = "25")]
    pub total_pg_pg_out: u64,
    /// `total_pgfault`.
    #[prost(uint64, tag = "26")]
    pub total_pg_fault: u64,
    /// `total_pgmajfault`.
    #[prost(uint64, tag = "27")]
    pub total_pg_maj_fault: u64,
    /// `total_inactive_anon`.
    #[prost(uint64, tag = "28")]
    pub total_inactive_anon: u64,
    /// `total_active_anon`.
    #[prost(uint64, tag = "29")]
    pub total_active_anon: u64,
    /// `total_inactive_file`.
    #[prost(uint64, tag = "30")]
    pub total_inactive_file: u64,
    /// `total_active_file`.
    #[prost(uint64, tag = "31")]
    pub total_active_file: u64,
    /// `total_unevictable`.
    #[prost(uint64, tag = "32")]
    pub total_unevictable: u64,
    /// All memory.
    #[prost(message, optional, tag = "33")]
    pub usage: Option<MemoryEntry>,
    /// Memory and swap.
    #[prost(message, optional, tag = "34")]
    pub swap: Option<MemoryEntry>,
    /// Memory of the kernel.
    #[prost(message, optional, tag = "35")]
    pub kernel: Option<MemoryEntry>,
    /// Memory of TCP buffers.
    #[prost(message, optional, tag = "36")]
    pub kernel_tcp: Option<MemoryEntry>,
}

/// `io.containerd.cgroups.v1.MemoryEntry`: a counter of memory and its limit.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct MemoryEntry {
    /// The limit, in bytes.
    #[prost(uint64, tag = "1")]
    pub limit: u64,
    /// Bytes in use.
    #[prost(uint64, tag = "2")]
    pub usage: u64,
    /// The most bytes that were in use.
    #[prost(uint64, tag = "3")]
    pub max: u64,
    /// How often the limit was hit.
    #[prost(uint64, tag = "4")]
    pub failcnt: u64,
}

/// `io.containerd.cgroups.v1.MemoryOomControl`: the lines of `memory.oom_control`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct OomControl {
    /// `oom_kill_disable`.
    #[prost(uint64, tag = "1")]
    pub oom_kill_disable: u64,
    /// `under_oom`.
    #[prost(uint64, tag = "2")]
    pub under_oom: u64,
    /// `oom_kill`.
    #[prost(uint64, tag = "3")]
    pub oom_kill: u64,
}

/// `io.containerd.cgroups.v1.BlkIOStat`: block I/O, with that of the cgroups below.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BlockIo {
    /// Bytes transferred.
    #[prost(message, repeated, tag = "1")]
    pub io_service_bytes_recursive: Vec<BlockIoEntry>,
    /// Operations done.
    #[prost(message, repeated, tag = "2")]
    pub io_serviced_recursive: Vec<BlockIoEntry>,
    /// Operations queued.
    #[prost(message, repeated, tag = "3")]
    pub io_queued_recursive: Vec<BlockIoEntry>,
    /// Nanoseconds of service.
    #[prost(message, repeated, tag = "4")]
    pub io_service_time_recursive: Vec<BlockIoEntry>,
    /// Nanoseconds of waiting.
    #[prost(message, repeated, tag = "5")]
    pub io_wait_time_recursive: Vec<BlockIoEntry>,
    /// Operations merged into others.
    #[prost(message, repeated, tag = "6")]
    pub io_merged_recursive: Vec<BlockIoEntry>,
    /// Milliseconds of disk time.
    #[prost(message, repeated, tag = "7")]
    pub io_time_recursive: Vec<BlockIoEntry>,
    /// Sectors transferred.
    #[prost(message, repeated, tag = "8")]
    pub sectors_recursive: Vec<BlockIoEntry>,
}

/// `io.containerd.cgroups.v1.BlkIOEntry`: a counter of one device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BlockIoEntry {
    /// The kind of operation, as in `Read`; empty if there is but one.
    #[prost(string, tag = "1")]
    pub op: String,
    /// The device file, as in `/dev/sda`; empty if `/proc/partitions` does not list it.
    #[prost(string, tag = "2")]
    pub device: String,
    /// The device's major number.
    #[prost(uint64, tag = "3")]
    pub major: u64,
    /// The device's minor number.
    #[prost(uint64, tag = "4")]
    pub minor: u64,
    /// The counter.
    #[prost(uint64, tag = "5")]
    pub value: u64,
}

/// `io.containerd.cgroups.v1.CgroupStats`: threads by what they do.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Tasks {
    /// Threads that sleep.
    #[prost(uint64, tag = "1")]
    pub nr_sleeping: u64,
    /// Threads that run.
    #[prost(uint64, tag = "2")]
    pub nr_running: u64,
    /// Threads that are stopped.
    #[prost(uint64, tag = "3")]
    pub nr_stopped: u64,
    /// Threads in an uninterruptible sleep.
    #[prost(uint64, tag = "4")]
    pub nr_uninterruptible: u64,
    /// Threads that wait for I/O.
    #[prost(uint64, tag = "5")]
    pub nr_io_wait: u64,
}
