//! Creates and starts containers from their options, and restores them from what is on disk.

pub(crate) mod again;
pub(crate) mod bundle;
mod default_config;
mod default_seccomp;
pub(crate) mod layout;
pub(crate) mod restore;
pub(crate) mod rootless;
mod set_aside;
pub(crate) mod start;
pub(crate) mod users;
