//! What containerd and a shim say to each other: the frames of ttrpc, and the messages of the
//! runtime v2 protocol. Nothing here does I/O.
//!
//! The messages are written by hand, with the field numbers of containerd's published `.proto`
//! files, so that a build needs no protobuf compiler.

pub mod bootstrap;
pub mod events;
pub mod frame;
pub mod front;
pub mod metrics;
pub mod place;
pub mod rpc;
pub mod task;
pub mod types;

pub use frame::{Frame, Frames, Item, Kind};
pub use prost::Message;
