//! The API of Holdfast: HTTP with JSON on a Unix socket, over the supervisor library.
//!
//! No container logic is here. [`api`] has what goes over the wire, for clients too; [`frame`] the
//! format of streamed output; `routes`, `output` and `operate` one handler a request; `socket` who may
//! connect; `signals` what ends it and what does not; [`serve`] the daemon from start to end.

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
mod body;
mod error;
pub mod frame;
mod operate;
mod output;
mod routes;
mod serve;
mod signals;
mod socket;
mod systemd;

pub use holdfast_supervisor::SPARE_SHIMS;
pub use serve::{Config, ServeError, serve};
