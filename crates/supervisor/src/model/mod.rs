//! What containers and processes are: their state, what has happened to them, and what is held of them.

pub(crate) mod container;
pub(crate) mod copies;
pub(crate) mod events;
pub(crate) mod identity;
pub(crate) mod info;
pub(crate) mod keeper;
pub(crate) mod lifecycle;
pub(crate) mod options;
pub(crate) mod process;
