//! The mounts that a process sees, and the one that an open file is on.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::Context;
use holdfast_sys::mountinfo;
pub(crate) use holdfast_sys::mountinfo::Mount;

/// Returns the mounts that a process sees, `self` or a number.
pub(crate) fn of(process: &str) -> anyhow::Result<Vec<Mount>> {
    mountinfo::of(process).with_context(|| format!("read /proc/{process}/mountinfo"))
}

/// Returns the number of the mount that an open file is on.
pub(crate) fn id_of(file: &impl AsFd) -> anyhow::Result<u64> {
    let path = format!("/proc/self/fdinfo/{}", file.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.with_context(|| format!("{path} has no mnt_id"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_of_an_open_file_is_known() {
        let root = std::fs::File::open("/").unwrap();
        let id = id_of(&root).unwrap();
        assert!(
            of("self").unwrap().iter().any(|mount| mount.id == id && mount.point.ends_with("/"))
        );
    }
}
