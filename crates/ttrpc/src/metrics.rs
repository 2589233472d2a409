//! What `Stats` answers: the measurements of a container's cgroups.

pub mod v1;
pub mod v2;

use prost::Message;

/// `PidsStat` of `io.containerd.cgroups.v1` and `.v2`: processes and threads.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Pids {
    /// How many there are.
    #[prost(uint64, tag = "1")]
    pub current: u64,
    /// How many there may be: without a limit, 0 in version 1 and the largest number in version 2.
    #[prost(uint64, tag = "2")]
    pub limit: u64,
}

/// `RdmaStat` of `io.containerd.cgroups.v1` and `.v2`: RDMA resources.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Rdma {
    /// In use.
    #[prost(message, repeated, tag = "1")]
    pub current: Vec<RdmaEntry>,
    /// The limits.
    #[prost(message, repeated, tag = "2")]
    pub limit: Vec<RdmaEntry>,
}

/// `RdmaEntry` of `io.containerd.cgroups.v1` and `.v2`: RDMA resources of one device.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RdmaEntry {
    /// The device.
    #[prost(string, tag = "1")]
    pub device: String,
    /// Handles.
    #[prost(uint32, tag = "2")]
    pub hca_handles: u32,
    /// Objects.
    #[prost(uint32, tag = "3")]
    pub hca_objects: u32,
}

/// `NetworkStat` of `io.containerd.cgroups.v1` and `.v2`: counters of a network interface.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Network {
    /// The interface.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Bytes received.
    #[prost(uint64, tag = "2")]
    pub rx_bytes: u64,
    /// Packets received.
    #[prost(uint64, tag = "3")]
    pub rx_packets: u64,
    /// Errors of what was received.
    #[prost(uint64, tag = "4")]
    pub rx_errors: u64,
    /// Packets dropped of what was received.
    #[prost(uint64, tag = "5")]
    pub rx_dropped: u64,
    /// Bytes sent.
    #[prost(uint64, tag = "6")]
    pub tx_bytes: u64,
    /// Packets sent.
    #[prost(uint64, tag = "7")]
    pub tx_packets: u64,
    /// Errors of what was sent.
    #[prost(uint64, tag = "8")]
    pub tx_errors: u64,
    /// Packets dropped of what was sent.
    #[prost(uint64, tag = "9")]
    pub tx_dropped: u64,
}

/// `io.containerd.cgroups.v2.PSIData`: shares of time, in percent, in which tasks were stalled.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct PressureData {
    /// Over 10 s.
    #[prost(double, tag = "1")]
    pub avg10: f64,
    /// Over 60 s.
    #[prost(double, tag = "2")]
    pub avg60: f64,
    /// Over 300 s.
    #[prost(double, tag = "3")]
    pub avg300: f64,
    /// Microseconds in all.
    #[prost(uint64, tag = "4")]
    pub total: u64,
}

/// `io.containerd.cgroups.v2.PSIStats`: pressure stall information; see psi.rst of the kernel.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Pressure {
    /// Some tasks were stalled.
    #[prost(message, optional, tag = "1")]
    pub some: Option<PressureData>,
    /// All tasks were stalled.
    #[prost(message, optional, tag = "2")]
    pub full: Option<PressureData>,
}
