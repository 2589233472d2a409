//! Programs by which a cgroup decides what devices its processes may open (`bpf(2)`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// An instruction of the kernel's machine, `struct bpf_insn` of `linux/bpf.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u8,
    registers: u8,
    /// How many instructions a jump passes over, or where in memory to load from, in bytes.
    pub offset: i16,
    /// The constant operand.
    pub immediate: i32,
}

impl Instruction {
    /// An instruction on one or two of the registers 0 to 10.
    #[must_use]
    pub fn new(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Self {
        // In C they are two bit fields, whose order is that of the machine's bytes.
        let registers = if cfg!(target_endian = "little") {
            source << 4 | target & 0xf
        } else {
            target << 4 | source & 0xf
        };
        Self { code, registers, offset, immediate }
    }

    /// The register that is written or compared.
    #[must_use]
    pub fn target(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// The register that is read.
    #[must_use]
    pub fn source(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest for zero.
#[repr(C)]
#[derive(Debug)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The same for `BPF_PROG_ATTACH`.
#[repr(C)]
#[derive(Debug)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

// Of `linux/bpf.h`; libc has none of them.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Loads a program that decides about devices and attaches it to a cgroup of version 2, for as long as
/// that exists. It is asked for every device that a process of the cgroup, or of one below it, opens or
/// makes; the programs of all cgroups above are asked too, and each of them can refuse.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN` in the first user namespace; `EINVAL` or `EACCES` for a program
/// that the kernel's verifier refuses; `EBADF` for a descriptor that is not of a cgroup's directory.
pub fn attach_device_program(cgroup: &impl AsFd, program: &[Instruction]) -> io::Result<()> {
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"holdfast_device\0",
    };
    // SAFETY: the structure is of the size that is passed. The instructions and the license, which
    // ends with a null byte, live until the call returns and are only read, as many as are counted.
    let loaded =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of_val(&load)) };
    if loaded < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(loaded).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    let loaded = unsafe { OwnedFd::from_raw_fd(number) };
    let attach = Attach {
        target: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        program: loaded.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure is of the size that is passed, and both descriptors are open.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of_val(&attach))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// `r0 = 0; exit`: refuses everything.
    fn refuses() -> [Instruction; 2] {
        [Instruction::new(0xb7, 0, 0, 0, 0), Instruction::new(0x95, 0, 0, 0, 0)]
    }

    #[test]
    fn registers_are_found_again() {
        let instruction = Instruction::new(0xbf, 3, 10, 0, 0);
        assert_eq!((instruction.target(), instruction.source()), (3, 10));
        assert_eq!(size_of::<Instruction>(), 8);
    }

    #[test]
    fn only_a_cgroup_can_have_a_program() {
        let dir = File::open("/proc").expect("open a directory");
        let error = attach_device_program(&dir, &refuses()).expect_err("it is no cgroup");
        // Without the rights the program is not loaded in the first place.
        assert!([libc::EBADF, libc::EPERM].contains(&error.raw_os_error().unwrap_or(0)), "{error}");
    }

    #[test]
    fn a_program_that_does_not_end_is_refused() {
        let dir = File::open("/proc").expect("open a directory");
        let error = attach_device_program(&dir, &refuses()[..1]).expect_err("it has no end");
        assert!(
            [libc::EINVAL, libc::EPERM].contains(&error.raw_os_error().unwrap_or(0)),
            "{error}"
        );
    }
}
