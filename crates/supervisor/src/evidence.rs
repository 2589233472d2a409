//! How a process ended, when its shim can't say.

use holdfast_state::{Evidence, ExitRecord, ExitStatus, ProcessDir, UnknownReason};

use crate::identity::{Handle, zombie_stat};

/// Looks for the ending of a process that has ended: first in what its shim put on disk.
pub(crate) fn find(dir: &ProcessDir, handle: Option<&Handle>) -> ExitRecord {
    match dir.exit() {
        Ok(Some(record)) => record,
        _ => from_kernel(handle),
    }
}

/// What the kernel tells of a reaped process, then of a zombie. Who reaps it may do so between
/// the two looks, so the kernel is asked once more at the end.
pub(crate) fn from_kernel(handle: Option<&Handle>) -> ExitRecord {
    let unknown = |reason| ExitRecord::now(ExitStatus::Unknown(reason), Evidence::None);
    let Some(handle) = handle else { return unknown(UnknownReason::ExitedUnwatched) };
    let reaped = || {
        let end = handle.pidfd.termination().ok()??;
        Some(ExitRecord::now(end.into(), Evidence::Pidfd))
    };
    let zombie = || {
        let end = zombie_stat(handle)?.zombie()?;
        Some(ExitRecord::now(end.into(), Evidence::Zombie))
    };
    reaped()
        .or_else(zombie)
        .or_else(reaped)
        .unwrap_or_else(|| unknown(UnknownReason::ReapedByAnother))
}
