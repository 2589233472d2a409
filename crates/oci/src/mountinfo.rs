//! Mounts as `/proc/PID/mountinfo` lists them; see proc_pid_mountinfo(5).

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::Context;

use crate::hierarchy::unescape;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    /// The numbers of its file system.
    pub(crate) device: String,
    /// What of the file system it shows.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    /// The group of peers that it is in.
    pub(crate) shared: Option<u64>,
    /// The group that it is a slave of.
    pub(crate) master: Option<u64>,
}

/// Returns the mounts that a process sees, `self` or a number.
pub(crate) fn of(process: &str) -> anyhow::Result<Vec<Mount>> {
    let path = format!("/proc/{process}/mountinfo");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mount> {
    let (mount, _) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let (root, point) =
        (PathBuf::from(unescape(fields.next()?)), PathBuf::from(unescape(fields.next()?)));
    let optional: Vec<&str> = fields.skip(1).collect();
    let group = |name: &str| {
        optional.iter().find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok())
    };
    Some(Mount { id, device, root, point, shared: group("shared:"), master: group("master:") })
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
    fn groups_are_found_among_optional_fields() {
        let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime shared:22 master:21 - ext3 /dev/root rw";
        let expected = Mount {
            id: 36,
            device: "98:0".to_owned(),
            root: "/mnt1".into(),
            point: "/a b".into(),
            shared: Some(22),
            master: Some(21),
        };
        assert_eq!(parse(line), Some(expected));
        let private = parse("36 35 98:0 / / rw - ext3 /dev/root rw").expect("a mount");
        assert_eq!((private.shared, private.master), (None, None));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn the_mount_of_an_open_file_is_known() {
        let root = std::fs::File::open("/").unwrap();
        let id = id_of(&root).unwrap();
        assert!(
            of("self").unwrap().iter().any(|mount| mount.id == id && mount.point.ends_with("/"))
        );
    }
}
