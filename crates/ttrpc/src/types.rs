//! Messages that others are made of.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Any {
    /// What the value is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

impl Any {
    /// A message as a value of this type.
    #[must_use]
    pub fn of(type_url: &str, message: &impl Message) -> Self {
        Self { type_url: type_url.to_owned(), value: message.encode_to_vec() }
    }

    /// The name of the type, without the host that some put before it.
    #[must_use]
    pub fn type_name(&self) -> &str {
        // The names of JSON types have slashes themselves.
        self.type_url.strip_prefix("type.googleapis.com/").unwrap_or(&self.type_url)
    }
}

/// `google.protobuf.Empty`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Empty {}

/// `google.protobuf.Timestamp`
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Timestamp {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Nanoseconds of the second.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
        }
    }
}

/// `containerd.types.Mount`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mount {
    /// The type of the file system, or `bind`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What is mounted.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where, below the root file system.
    #[prost(string, tag = "3")]
    pub target: String,
    /// As in fstab(5).
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `containerd.v1.types.Status`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Not known.
    Unknown = 0,
    /// Made, and not started.
    Created = 1,
    /// Running.
    Running = 2,
    /// Ended.
    Stopped = 3,
    /// Paused.
    Paused = 4,
    /// About to be paused.
    Pausing = 5,
}

/// `containerd.v1.types.ProcessInfo`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessInfo {
    /// Its process id.
    #[prost(uint32, tag = "1")]
    pub pid: u32,
    /// [`ProcessDetails`], for an exec.
    #[prost(message, optional, tag = "2")]
    pub info: Option<Any>,
}

/// `containerd.runc.v1.ProcessDetails`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ProcessDetails {
    /// The exec that the process is.
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

impl ProcessDetails {
    /// The name of the type.
    pub const TYPE: &'static str = "containerd.runc.v1.ProcessDetails";
}

/// `containerd.runc.v1.Options`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RuncOptions {
    /// No `pivot_root(2)`.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// No session keyring of its own.
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The cgroup of the shim.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    /// Who owns the container's pipes.
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    /// Their group.
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The OCI runtime, by name or path.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The state directory of the OCI runtime.
    #[prost(string, tag = "7")]
    pub root: String,
    /// Cgroups by systemd.
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    /// Where checkpoints are written.
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
    /// Where CRIU works.
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
}

impl RuncOptions {
    /// The name of the type.
    pub const TYPE: &'static str = "containerd.runc.v1.Options";
}

/// `containerd.runc.v1.CheckpointOptions`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct CheckpointOptions {
    /// The container ends.
    #[prost(bool, tag = "1")]
    pub exit: bool,
    /// With open TCP connections.
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    /// With sockets whose other end is outside.
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    /// With terminals.
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    /// With file locks.
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    /// Namespaces to be empty after a restore.
    #[prost(string, repeated, tag = "6")]
    pub empty_namespaces: Vec<String>,
    /// How cgroups are treated.
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    /// Where the checkpoint is written.
    #[prost(string, tag = "8")]
    pub image_path: String,
    /// Where CRIU works.
    #[prost(string, tag = "9")]
    pub work_path: String,
}

impl CheckpointOptions {
    /// The name of the type.
    pub const TYPE: &'static str = "containerd.runc.v1.CheckpointOptions";

    /// The name of the type that containerd's client library gives to other runtimes. It has the last two
    /// fields, `image_path` and `work_path`, the other way round.
    pub const CLIENT_TYPE: &'static str = "containerd.linux.runc.CheckpointOptions";
}

/// `containerd.linux.runc.CreateOptions`: what containerd's client library gives to a runtime whose name
/// does not begin with `io.containerd.runc`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LinuxCreateOptions {
    /// No `pivot_root(2)`.
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    /// No session keyring of its own.
    #[prost(bool, tag = "8")]
    pub no_new_keyring: bool,
    /// The cgroup of the shim.
    #[prost(string, tag = "9")]
    pub shim_cgroup: String,
    /// Who owns the container's pipes.
    #[prost(uint32, tag = "10")]
    pub io_uid: u32,
    /// Their group.
    #[prost(uint32, tag = "11")]
    pub io_gid: u32,
    /// Where CRIU works.
    #[prost(string, tag = "12")]
    pub criu_work_path: String,
    /// Where checkpoints are written.
    #[prost(string, tag = "13")]
    pub criu_image_path: String,
}

impl LinuxCreateOptions {
    /// The name of the type.
    pub const TYPE: &'static str = "containerd.linux.runc.CreateOptions";
}

impl From<LinuxCreateOptions> for RuncOptions {
    fn from(options: LinuxCreateOptions) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            ..Self::default()
        }
    }
}

/// `runtimeoptions.v1.Options`: what containerd's CRI plugin gives to a runtime whose type is not
/// `io.containerd.runc.v2`.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct GenericOptions {
    /// What the file holds.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// A file of options.
    #[prost(string, tag = "2")]
    pub config_path: String,
    /// The options as TOML, where no file is named: the table of containerd's configuration.
    #[prost(bytes = "vec", tag = "3")]
    pub config_body: Vec<u8>,
}

impl GenericOptions {
    /// The name of the type.
    pub const TYPE: &'static str = "runtimeoptions.v1.Options";
}

/// `containerd.types.RuntimeVersion`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RuntimeVersion {
    /// The release.
    #[prost(string, tag = "1")]
    pub version: String,
    /// Its commit.
    #[prost(string, tag = "2")]
    pub revision: String,
}

/// `containerd.types.RuntimeInfo`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct RuntimeInfo {
    /// The runtime, as in `io.containerd.holdfast.v2`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its release.
    #[prost(message, optional, tag = "2")]
    pub version: Option<RuntimeVersion>,
    /// The options that were given.
    #[prost(message, optional, tag = "3")]
    pub options: Option<Any>,
    /// What the OCI runtime can do (the `features` of the runtime specification, as JSON).
    #[prost(message, optional, tag = "4")]
    pub features: Option<Any>,
    /// Anything else.
    #[prost(btree_map = "string, string", tag = "5")]
    pub annotations: BTreeMap<String, String>,
}
