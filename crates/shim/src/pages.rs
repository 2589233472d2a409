//! What keeps the shim of one process at ten pages of its own (40 KiB), a thousand times.
//!
//! Each line was measured by leaving it out, all else as it is: the mean of 40 idle shims of a `sleep`, in release,
//! by `/proc/PID/smaps`; with all of them 41 KiB.
//!
//! | what | where | without it, KiB more |
//! |---|---|---|
//! | linked to a fixed address | `../static.rs` | 28 |
//! | the C library's data by who writes to it | `written-at-start`, `../static.rs` | 8 |
//! | no part of the data read-only after the start | `../static.rs` | 8 |
//! | the one seat on the stack, not on the heap | `seats`, `Places` | 6 |
//! | memory is given back | [`give_back`] | 5 |
//! | no thread-local value with a destructor is set | `seats`, `turn_to` | 4 |
//! | who begins a shim has a frame of its own | [`apart`] | 4 |
//! | room for a spare's message is mapped by itself | [`room`] | 3 |
//! | no start by the standard library, which maps a stack for signals and reads `/proc/self/maps` | `main` | not measured |
//! | what few have is boxed: queues, a terminal's input | `output::sinks`, `stdio` | 1 |

use holdfast_state::handoff::MAX_LEN;

/// Gives back to the kernel what the allocator has free, and the stack below the caller: so this is called where
/// that is shallow.
#[inline(always)]
pub fn give_back() {
    holdfast_sys::memory::trim();
}

/// Calls a function in a frame that is gone when it has returned.
#[inline(never)]
pub fn apart<T>(function: impl FnOnce() -> T) -> T {
    function()
}

/// Room for a message with words. It is so large that it is mapped by itself, and is no hole among smaller things
/// afterwards.
pub(crate) fn room() -> Vec<u8> {
    vec![0; 2 * MAX_LEN]
}
