//! The capabilities of the calling thread (`capset(2)`).

use std::io;

/// `struct __user_cap_header_struct` of `linux/capability.h`.
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`, one half of the 64 bits of each set.
#[repr(C)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, which libc lacks.
const VERSION: u32 = 0x2008_0522;

/// The three sets of a thread; the bit of each capability is its number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    /// Those that the kernel looks at.
    pub effective: u64,
    /// Those that may become effective.
    pub permitted: u64,
    /// Those that a program with the file's consent keeps over execve(2).
    pub inheritable: u64,
}

impl Sets {
    /// Makes these the calling thread's.
    ///
    /// # Errors
    /// `EPERM` if one is added that the thread may not have; see capset(2).
    pub fn apply(&self) -> io::Result<()> {
        let header = Header { version: VERSION, pid: 0 };
        let half = |shift: u32| {
            #[allow(clippy::cast_possible_truncation)]
            let part = |set: u64| (set >> shift) as u32;
            Half {
                effective: part(self.effective),
                permitted: part(self.permitted),
                inheritable: part(self.inheritable),
            }
        };
        let data = [half(0), half(32)];
        // SAFETY: both are in the form of the version that the header says, which has two halves.
        let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
