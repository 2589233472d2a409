//! What the kernel gives: threads and tasks, children, cgroups, files that change.

pub(crate) mod cgroup;
pub(crate) mod children;
pub(crate) mod closer;
pub(crate) mod file_watch;
pub(crate) mod limits;
pub(crate) mod oom;
pub(crate) mod tasks;
