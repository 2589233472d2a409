//! Handles of processes that can be written down and opened again: no other process, of this boot,
//! ever has the same (pidfs, `name_to_handle_at(2)`, Linux 6.14+).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::str::FromStr;

use crate::PidFd;

/// The longest handle that is taken; those of pidfs have 8 bytes.
const MAX_LEN: usize = 32;
/// Stands for the root of pidfs where a directory's descriptor is wanted (`FD_PIDFS_ROOT`,
/// linux/fcntl.h).
const PIDFS_ROOT: libc::c_int = -10002;

/// A process's handle. As text: its type and its bytes in hexadecimal, `254:0f00000000000000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handle {
    kind: i32,
    bytes: Vec<u8>,
}

/// `struct file_handle` of name_to_handle_at(2), with room.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    content: [u8; MAX_LEN],
}

impl Handle {
    /// The handle of a process. An error on kernels that have none.
    pub fn of(pidfd: &PidFd) -> io::Result<Self> {
        let mut handle = FileHandle { bytes: MAX_LEN_U32, kind: 0, content: [0; MAX_LEN] };
        let mut mount: libc::c_int = 0;
        // SAFETY: the path is a C string, `handle` has the room that it says it has, and `mount` is
        // an int; the kernel writes to those two only.
        let done = unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                pidfd.as_raw_fd(),
                c"".as_ptr(),
                &raw mut handle,
                &raw mut mount,
                libc::AT_EMPTY_PATH,
            )
        };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let length = usize::try_from(handle.bytes).unwrap_or(MAX_LEN).min(MAX_LEN);
        Ok(Self { kind: handle.kind, bytes: handle.content[..length].to_vec() })
    }

    /// The process that has this handle. `ESTALE` once it was reaped.
    pub fn open(&self) -> io::Result<PidFd> {
        let length = u32::try_from(self.bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut handle = FileHandle { bytes: length, kind: self.kind, content: [0; MAX_LEN] };
        handle.content[..self.bytes.len()].copy_from_slice(&self.bytes);
        let flags = libc::O_CLOEXEC;
        // SAFETY: `handle` is a live handle of the length that it says, which the kernel reads only.
        let fd = unsafe {
            libc::syscall(libc::SYS_open_by_handle_at, PIDFS_ROOT, &raw mut handle, flags)
        };
        let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned `fd`, so it is open and nobody else owns it.
        Ok(PidFd::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

const MAX_LEN_U32: u32 = 32;

/// Whether this kernel has handles that can be opened again, tried on this process.
#[must_use]
pub fn has_handles() -> bool {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    PidFd::open(own).and_then(|pidfd| Handle::of(&pidfd)?.open()).is_ok()
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind)?;
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Handle {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let parse = || {
            let (kind, hex) = text.split_once(':')?;
            let hex = hex.as_bytes();
            if hex.is_empty() || hex.len() > 2 * MAX_LEN || hex.len() % 2 == 1 {
                return None;
            }
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            let bytes = hex.chunks(2).map(byte).collect::<Option<Vec<u8>>>()?;
            Some(Self { kind: kind.parse().ok()?, bytes })
        };
        parse().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_handle_opens_the_same_process_until_it_was_reaped() {
        if !has_handles() {
            // Below Linux 6.14; then an error, and nothing worse, is all there may be.
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(i32::try_from(child.id()).unwrap()).unwrap();
        let handle: Handle = Handle::of(&pidfd).unwrap().to_string().parse().unwrap();
        let again = handle.open().unwrap();
        assert!(again.is_alive());
        again.send_signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(handle.open().unwrap_err().raw_os_error(), Some(libc::ESTALE));
    }

    proptest! {
        #[test]
        fn any_text_is_a_handle_or_nothing(text in "([0-9]{1,4}:)?[0-9a-fg]{0,70}") {
            if let Ok(handle) = text.parse::<Handle>() {
                prop_assert_eq!(handle.to_string().parse::<Handle>().unwrap(), handle);
            }
        }
    }
}
