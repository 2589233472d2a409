//! Filters of system calls (`seccomp(2)`).

use std::io;

/// An instruction of the classic BPF machine, `struct sock_filter` of `linux/filter.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// How many instructions are passed over if a condition holds.
    pub jump_true: u8,
    /// How many are passed over if it does not.
    pub jump_false: u8,
    /// The constant operand.
    pub operand: u32,
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    count: u16,
    instructions: *const Instruction,
}

/// Every action but the one that allows is logged by the kernel (Linux 4.14+).
pub const LOG: u32 = 1 << 1;
/// The filtered process keeps speculative store bypass (Linux 4.17+).
pub const SPEC_ALLOW: u32 = 1 << 2;

/// Filters the system calls of the calling thread, and of all that it starts, for ever. It takes
/// `CAP_SYS_ADMIN` or `PR_SET_NO_NEW_PRIVS`.
///
/// # Errors
/// Those of seccomp(2): `EACCES` without that right, `EINVAL` for a program that the kernel refuses.
pub fn load(program: &[Instruction], flags: u32) -> io::Result<()> {
    let count = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = Program { count, instructions: program.as_ptr() };
    // SAFETY: the program is an array of that many instructions in the kernel's form, which it copies.
    let done = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
