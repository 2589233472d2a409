//! Memory that is not needed any more.

use std::ffi::c_void;

/// How far below the stack's end pages are given back: less than the gap that the kernel keeps there.
const BELOW: usize = 128 * 1024;
/// What this module's own frames take at the most.
const FRAMES: usize = 512;

/// Gives back to the kernel what the allocator has free, and the stack below the caller.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time; what is allocated is not touched.
    unsafe {
        libc::malloc_trim(0);
    }
    let here = 0_u8;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let Some(page) = page.ok().flatten().and_then(|page| usize::try_from(page).ok()) else {
        return;
    };
    // This function's frame and that of the call below are within so much of `here`.
    let end = (std::ptr::from_ref(&here).addr() - FRAMES) & !(page - 1);
    // SAFETY: below the frames of all functions that have not returned the stack holds nothing, and
    // further down is nothing within the kernel's gap (a hole in the range is merely an error).
    unsafe {
        libc::madvise((end - BELOW) as *mut c_void, BELOW, libc::MADV_DONTNEED);
    }
}
