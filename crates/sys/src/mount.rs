//! A file's mount, cloned and read-only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Clones the mount of an open file into one that is nowhere attached and read-only, and returns the
/// file there, opened for its path alone (`open_tree(2)`, `mount_setattr(2)`; Linux 5.12+, and it
/// takes `CAP_SYS_ADMIN`).
///
/// Through it nobody can write to the file: who reopens the descriptor gets `EROFS`, and a mount that
/// is in no mount namespace can't be remounted.
pub fn read_only_clone(file: &impl AsFd) -> io::Result<OwnedFd> {
    let fd = file.as_fd().as_raw_fd();
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | EMPTY_PATH;
    // SAFETY: the path is a string that ends with a null byte, and the descriptor is open.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, fd, c"".as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(tree).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    let tree = unsafe { OwnedFd::from_raw_fd(number) };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: as above, and the structure is of the size that is said.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            number,
            c"".as_ptr(),
            EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

const EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH.cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn through_the_clone_nobody_writes() {
        let own = std::env::temp_dir().join(format!("holdfast-mount-{}", std::process::id()));
        let file = File::create(&own).expect("make a file");
        std::fs::remove_file(&own).expect("nothing is left of it");
        let clone = match read_only_clone(&file) {
            Ok(clone) => clone,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                return eprintln!("NOT RUN: it takes CAP_SYS_ADMIN");
            }
        };
        let path = format!("/proc/self/fd/{}", clone.as_raw_fd());
        let error = File::options().append(true).open(&path).expect_err("read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
        File::open(&path).expect("it can be read");
    }
}
