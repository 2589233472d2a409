//! A cgroup of our own, beside containerd's: who stops or limits the service that containerd is does not
//! mean the supervisor and the shims, which are its children.

use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "holdfast-containerd";

/// The hierarchies that matter for that: the service manager's, and those that limit.
fn roots() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let unified = if base.join("cgroup.procs").exists() { vec![base.to_owned()] } else { vec![] };
    let others = ["unified", "systemd", "memory", "pids"].map(|name| base.join(name));
    let others = others.into_iter().filter(|root| root.join("cgroup.procs").exists());
    unified.into_iter().chain(others).collect()
}

/// Goes there. Without the right to it, we stay where we are.
pub(crate) fn enter() {
    for root in roots() {
        let own = root.join(NAME);
        let _ = fs::create_dir(&own);
        if let Err(error) = fs::write(own.join("cgroup.procs"), "0") {
            tracing::debug!(cgroup = %own.display(), %error, "not entered");
        }
    }
}

/// Leaves nothing behind, if nobody else is there.
pub(crate) fn leave() {
    for root in roots() {
        let _ = fs::write(root.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(root.join(NAME));
    }
}
