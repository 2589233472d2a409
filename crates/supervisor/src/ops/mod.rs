//! From options to a container at work, and from what is on disk back to that.

mod bundle;
mod default_config;
pub(crate) mod layout;
pub(crate) mod restore;
mod set_aside;
pub(crate) mod start;
