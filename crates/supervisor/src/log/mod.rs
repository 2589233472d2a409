//! Reads the output of a process back from its log.

pub(crate) mod entries;
pub(crate) mod files;
mod holes;
pub(crate) mod output;
mod place;
pub(crate) mod reader;
