//! The command line that others see of this process (`/proc/PID/cmdline`).

use std::fs::File;
use std::io::{self, Read};

use crate::proc;

/// `PR_SET_MM_MAP` and its operation (prctl(2), Linux 3.18+).
const PR_SET_MM: libc::c_int = 35;
const PR_SET_MM_MAP: libc::c_ulong = 14;
/// That the executable stays.
const SAME_EXECUTABLE: u32 = u32::MAX;

/// `struct prctl_mm_map`.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: *const u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Shows these words, each ended by a zero byte, in place of those that the process began with. It
/// takes no privilege, but a kernel with `CONFIG_CHECKPOINT_RESTORE`.
pub fn show(words: &'static [u8]) -> io::Result<()> {
    let mut line = [0; 1024];
    let length = File::open("/proc/self/stat")?.read(&mut line)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let fields = proc::fields(&line[..length]).ok_or_else(invalid)?;
    // As proc_pid_stat(5) counts them.
    let field = |number: usize| {
        let text = fields.clone().nth(number - 3);
        text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(invalid)
    };
    let arg_start = words.as_ptr() as u64;
    // SAFETY: sbrk(0) changes nothing.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let map = MemoryMap {
        start_code: field(26)?,
        end_code: field(27)?,
        start_data: field(45)?,
        end_data: field(46)?,
        start_brk: field(47)?,
        brk,
        start_stack: field(28)?,
        arg_start,
        arg_end: arg_start + words.len() as u64,
        env_start: field(50)?,
        env_end: field(51)?,
        auxv: std::ptr::null(),
        auxv_size: 0,
        exe_fd: SAME_EXECUTABLE,
    };
    // SAFETY: the kernel reads the map. What it keeps of that it uses for showing alone, but for the
    // break, which is as it was: this process has one thread, or else does not move it meanwhile.
    let done =
        unsafe { libc::prctl(PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
