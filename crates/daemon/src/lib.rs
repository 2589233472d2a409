//! The API of Holdfast: HTTP with JSON on a Unix socket, over the supervisor library.
//!
//! No container logic is here. [`api`] has what goes over the wire, for clients too; [`frame`] the
//! format of streamed output; `routes` the table
//! of requests and most of their handlers, `output` and `operate` the others; `answer` what handlers return;
//! `openapi` the description of the API; `socket` who may
//! connect; `connections` how many, for how long; `metrics` what Prometheus reads; `endpoint` TCP with a
//! token, `web` the page there; `file`
//! the configuration file, and `reload` what SIGHUP does; `signals` what ends it and what does not; [`serve`] the daemon from start to end.

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod answer;
pub mod api;
mod body;
mod connections;
mod endpoint;
mod error;
mod file;
pub mod frame;
mod metrics;
mod openapi;
mod operate;
mod output;
mod reload;
mod routes;
mod serve;
mod signals;
mod socket;
mod systemd;
mod web;

pub use endpoint::{Endpoint, Token};
pub use file::{Defaults, File, Loaded, LogFormat};
pub use holdfast_supervisor::SPARE_SHIMS;
pub use reload::{Reload, SetLevel};
pub use serve::{Config, ReadOnly, ServeError, serve};
pub use web::Web;
