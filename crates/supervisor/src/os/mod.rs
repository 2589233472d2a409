//! Wrappers of kernel interfaces: threads and tasks, child processes, cgroups, file watches.

pub(crate) mod cgroup;
pub(crate) mod children;
pub(crate) mod closer;
pub(crate) mod descendants;
pub(crate) mod file_watch;
pub(crate) mod limits;
pub(crate) mod network;
pub(crate) mod oom;
pub(crate) mod pid_namespace;
pub(crate) mod rootless;
pub(crate) mod tasks;
