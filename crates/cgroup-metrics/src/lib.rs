//! Measurements of a process's cgroups, as the message that containerd expects from a shim.
//!
//! | module | what |
//! |---|---|
//! | `cgroups` | finds a process's cgroups, of either version |
//! | `files` | reads their files |
//! | `v1`, `v2` | make the messages |
//!
//! Controllers and files differ from kernel to kernel. What one does not have is left out of a message,
//! and is no error.

mod cgroups;
mod files;
mod v1;
mod v2;

use std::io;
use std::path::Path;

use holdfast_ttrpc::metrics;
use holdfast_ttrpc::types::Any;

use cgroups::Cgroups;

/// Returns the measurements of a process's cgroups: `io.containerd.cgroups.v2.Metrics` where all
/// controllers are in the unified hierarchy, else `io.containerd.cgroups.v1.Metrics`.
///
/// The cgroups are those of the process now. If it has moved itself into a cgroup below that of its
/// container, as systemd does, the rest of the container is not measured.
///
/// # Errors
///
/// If the process has ended, or if none of its cgroups is mounted here.
pub fn of(pid: i32) -> io::Result<Any> {
    measure(Path::new("/"), pid)
}

/// The same with `/proc` and the mounts below another root directory.
fn measure(root: &Path, pid: i32) -> io::Result<Any> {
    Ok(match Cgroups::of(root, pid)? {
        Cgroups::V1(cgroups) => Any::of(
            metrics::v1::Metrics::TYPE,
            &v1::metrics(&cgroups, &root.join("proc/partitions")),
        ),
        Cgroups::V2(dir) => Any::of(metrics::v2::Metrics::TYPE, &v2::metrics(&dir)),
    })
}

#[cfg(test)]
mod tests;
