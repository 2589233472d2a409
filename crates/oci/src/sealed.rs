//! Runs this program from a sealed copy in memory.
//!
//! A container's process is this program until it becomes the container's. An image whose program
//! is `/proc/self/exe` could thus get hold of the host's file and overwrite it (CVE-2019-5736). Of
//! the copy, nothing can be overwritten and nobody else runs it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Starts over from a sealed copy, unless this already is one.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let mut program = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let seals = fcntl(&program, FcntlArg::F_GET_SEALS).unwrap_or(0);
    if SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Ok(());
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create("holdfast-oci", flags).context("memfd_create")?);
    io::copy(&mut program, &mut copy).context("copy this program to memory")?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).context("seal the copy of this program")?;
    let mut args = std::env::args_os();
    let mut command = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(command.args(args).exec()).context("execute the sealed copy of this program")
}
