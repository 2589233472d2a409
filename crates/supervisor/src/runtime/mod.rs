//! The OCI runtime: where its executable is found, and its command line.

pub(crate) mod checkpoint;
pub(crate) mod command;
pub(crate) mod programs;
