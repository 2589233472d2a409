//! What containerd 2.3 and later give to `start`, and get from it.

use std::collections::BTreeMap;

use prost::Message;

use crate::types::Any;

/// `containerd.runtime.bootstrap.v1.Extension`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Extension {
    /// The options of the runtime, among others.
    #[prost(message, optional, tag = "1")]
    pub value: Option<Any>,
}

/// `containerd.runtime.bootstrap.v1.BootstrapParams`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BootstrapParams {
    /// The container.
    #[prost(string, tag = "1")]
    pub instance_id: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// 0 for INFO, less for more.
    #[prost(int32, tag = "3")]
    pub log_level: i32,
    /// The release of containerd.
    #[prost(string, tag = "4")]
    pub containerd_version: String,
    /// Where containerd takes events.
    #[prost(string, tag = "5")]
    pub containerd_ttrpc_address: String,
    /// Where containerd's API is.
    #[prost(string, tag = "6")]
    pub containerd_grpc_address: String,
    /// containerd's program.
    #[prost(string, tag = "7")]
    pub containerd_binary: String,
    /// Further messages.
    #[prost(message, repeated, tag = "8")]
    pub extensions: Vec<Extension>,
    /// Where sockets are to be.
    #[prost(string, optional, tag = "9")]
    pub socket_dir: Option<String>,
}

/// `containerd.runtime.bootstrap.v1.BootstrapResult`
#[derive(Clone, PartialEq, Eq, Message)]
pub struct BootstrapResult {
    /// The version of the Task service.
    #[prost(int32, tag = "1")]
    pub version: i32,
    /// The address.
    #[prost(string, tag = "2")]
    pub address: String,
    /// `ttrpc`
    #[prost(string, tag = "3")]
    pub protocol: String,
    /// Nothing is defined.
    #[prost(int32, repeated, tag = "4")]
    pub capabilities: Vec<i32>,
    /// Anything else.
    #[prost(btree_map = "string, string", tag = "5")]
    pub metadata: BTreeMap<String, String>,
}
