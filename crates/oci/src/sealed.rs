//! Runs this program from where nobody can write to it.
//!
//! A container's process is this program until it becomes the container's. An image whose program
//! is `/proc/self/exe` could thus get hold of the host's file and overwrite it (CVE-2019-5736). So
//! the program starts over from a read-only mount of itself that is nowhere attached; where that
//! can't be had, from a sealed copy in memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::{FsFlags, fstatvfs};

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// Starts over from such a place, unless this already is one.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let program = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let flags = fstatvfs(&program).context("look at the mount of /proc/self/exe")?.flags();
    let seals = fcntl(&program, FcntlArg::F_GET_SEALS).unwrap_or(0);
    if flags.contains(FsFlags::ST_RDONLY) || SealFlag::from_bits_truncate(seals).contains(SEALS) {
        return Ok(());
    }
    start_over(program, &[])
}

/// Starts over from such a place, with these arguments before all others.
pub(crate) fn start_over(mut program: File, first: &[String]) -> anyhow::Result<()> {
    let safe = match holdfast_sys::mount::read_only_clone(&program) {
        Ok(clone) => clone,
        Err(_) => sealed_copy(&mut program)?,
    };
    let mut args = std::env::args_os();
    let mut command = Command::new(format!("/proc/self/fd/{}", safe.as_raw_fd()));
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    Err(command.args(first).args(args).exec()).context("execute this program anew")
}

fn sealed_copy(program: &mut File) -> anyhow::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut copy = File::from(memfd_create("holdfast-oci", flags).context("memfd_create")?);
    io::copy(program, &mut copy).context("copy this program to memory")?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS)).context("seal the copy of this program")?;
    Ok(copy.into())
}
