//! The host's mounts whose slaves a container's mounts are, and how these become their peers.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_sys::mount::{self, Change, Reach};
use nix::mount::MsFlags;

use crate::inside::open_path;
use crate::mountinfo;

/// The container's mounts before anything is changed.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) mounts: Vec<mountinfo::Mount>,
    /// By the number of a peer group of the host that these mounts are slaves of: its members on the
    /// host, each with the path of its root in the file system.
    groups: HashMap<u64, Vec<(PathBuf, OwnedFd)>>,
}

impl Tree {
    /// Returns those below a container's root, which is a directory still. It must be called in the
    /// host's mount namespace, whose groups are looked for.
    pub(crate) fn of(pid: i32, rootfs: &Path) -> anyhow::Result<Self> {
        let mounts = mountinfo::of(&pid.to_string())?.into_iter();
        let mounts = mounts.filter(|mount| mount.point.starts_with(rootfs)).collect();
        let mut tree = Self { mounts, groups: HashMap::new() };
        tree.groups = tree.groups_of_host()?;
        Ok(tree)
    }

    /// The group of the host's mount in which the container's root lies.
    pub(crate) fn group_of_root(&self, rootfs: &Path) -> Option<u64> {
        self.mounts.iter().find(|it| it.point == rootfs)?.master
    }

    fn groups_of_host(&self) -> anyhow::Result<HashMap<u64, Vec<(PathBuf, OwnedFd)>>> {
        let mut groups: HashMap<u64, Vec<_>> = HashMap::new();
        for host in mountinfo::of("self")? {
            let Some(group) = host.shared else { continue };
            let wanted =
                |it: &mountinfo::Mount| it.master == Some(group) && it.device == host.device;
            // One that is covered by another can't be opened.
            if self.mounts.iter().any(wanted)
                && let Ok(file) = open_path(&host.point)
                && mountinfo::id_of(&file)? == host.id
            {
                groups.entry(group).or_default().push((host.root, file));
            }
        }
        Ok(groups)
    }

    /// Makes a mount and those below it peers of the host's, whose slaves they are.
    pub(crate) fn join(&self, at: &OwnedFd) -> anyhow::Result<()> {
        let top = mountinfo::id_of(at)?;
        let Some(top) = mountinfo::of("self")?.into_iter().find(|it| it.id == top) else {
            bail!("it is gone");
        };
        let below =
            mountinfo::of("self")?.into_iter().filter(|it| it.point.starts_with(&top.point));
        for known in below {
            let Some(members) = known.master.and_then(|group| self.groups.get(&group)) else {
                continue;
            };
            let Some((_, member)) = members.iter().find(|(root, _)| known.root.starts_with(root))
            else {
                continue;
            };
            let file = open_path(&known.point)?;
            if mountinfo::id_of(&file)? != known.id {
                continue;
            }
            let private = Change { propagation: MsFlags::MS_PRIVATE.bits(), ..Change::default() };
            mount::change(&file, Reach::One, private)?;
            mount::join_group(member, &file)
                .with_context(|| format!("join the group of {}", known.point.display()))?;
        }
        Ok(())
    }
}
