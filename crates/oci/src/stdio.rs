//! The descriptors that a container gets from its caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Uid, fchown};
use oci_spec::runtime::{LinuxIdMapping, Spec};

/// Makes the container's user the owner of its standard descriptors, as runc does: without it a
/// program of another user than root can't open /dev/stdout.
pub(crate) fn give_to_user(spec: &Spec) {
    let Some(process) = spec.process() else { return };
    let mappings = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_ref());
    let uid = host_uid(process.user().uid(), mappings);
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        // Best effort: a read-only file system, or a socket that has no owner.
        _ = give(fd, uid);
    }
}

fn give(fd: BorrowedFd<'_>, uid: u32) -> nix::Result<()> {
    let stat = fstat(fd)?;
    let device = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    // /dev/null is everybody's.
    if stat.st_uid == uid || device && stat.st_rdev == nix::sys::stat::makedev(1, 3) {
        return Ok(());
    }
    fchown(fd, Some(Uid::from_raw(uid)), None)
}

/// A container's uid as the host has it.
fn host_uid(uid: u32, mappings: Option<&Vec<LinuxIdMapping>>) -> u32 {
    mappings
        .into_iter()
        .flatten()
        .find_map(|mapping| {
            let offset = uid.checked_sub(mapping.container_id())?;
            (offset < mapping.size()).then(|| mapping.host_id() + offset)
        })
        .unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    #[test]
    fn uids_are_mapped() {
        let mapping = |container: u32, host: u32, size: u32| {
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(size)
                .build()
                .unwrap()
        };
        let mappings = vec![mapping(0, 100_000, 10), mapping(10, 5, 1)];
        assert_eq!(host_uid(3, Some(&mappings)), 100_003);
        assert_eq!(host_uid(10, Some(&mappings)), 5);
        assert_eq!(host_uid(7, None), 7);
    }
}
