//! The data model of containers and processes: their state, their events, and the descriptors that
//! are held for them.

pub(crate) mod config;
pub(crate) mod container;
pub(crate) mod copies;
mod definition;
pub(crate) mod events;
pub(crate) mod failure;
pub(crate) mod identity;
pub(crate) mod info;
pub(crate) mod keeper;
pub(crate) mod lifecycle;
pub(crate) mod options;
pub(crate) mod process;
