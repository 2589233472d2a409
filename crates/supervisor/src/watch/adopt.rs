//! Adoption: a process whose shim has died gets a new one, which continues to read from the sources
//! of the old one.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_state::handoff::FdName;
use holdfast_state::{ProcessDir, ProcessRecord};
use holdfast_sys::proc::is_being_killed;

use crate::core::Core;
use crate::model::copies::Copies;
use crate::model::identity::Handle;
use crate::model::process::Process;
use crate::os::tasks::blocking;
use crate::shim::begin::ShimEnds;
use crate::shim::exit_fifo::ExitFifo;
use crate::shim::groups;

/// How many processes are adopted at the same time. Each adoption needs some descriptors for a
/// moment.
pub(crate) const AT_ONCE: usize = 16;

/// Has a shim adopt the process: that of its group, or a new one if it has no group or `alone` is
/// set.
pub(crate) async fn adopt(
    core: &Arc<Core>,
    process: &Arc<Process>,
    alone: bool,
) -> io::Result<(ExitFifo, Option<Child>)> {
    let (core, process) = (core.clone(), process.clone());
    let (reader, child) = blocking(move || {
        let handle = process.handle().ok_or_else(|| io::Error::other("the process has ended"))?;
        let dir = process.dir(&core.root)?;
        let record = dir.load().map_err(io::Error::other)?;
        let is_grouped = record.holdfast.as_ref().is_some_and(|it| it.shim_group.is_some());
        let alone = alone || (is_grouped && !has_ended(&record)?);
        if dir.control_writer().is_ok() {
            // The shim is alive although its exit FIFO hung up: the FIFO may have been removed. Two
            // shims would split the output between them.
            return Err(io::Error::other("its shim is alive, but can't be heard"));
        }
        dir.make_fifos()?;
        let own = || Copies::of_process(&handle, &record, &core.closer);
        let copies = match process.take_copies() {
            Some(copies) if copies.has_all(&record) => copies,
            // A stream that has ended is missing here, too.
            Some(copies) => copies.or(own()),
            None => own(),
        };
        let spawned = spawn_adopter(&core, &dir, &record, &handle, &copies, alone);
        // The copies are kept: if the new shim dies as well, the content of the pipes must survive
        // that too.
        process.keep_copies(copies);
        spawned
    })
    .await?;
    Ok((ExitFifo::new(reader)?, child))
}

/// How long the shim of a group may take to end. After that, each of its processes gets a shim of
/// its own.
const END_GRACE: Duration = Duration::from_secs(10);

/// Waits until the shim of a group has ended, if it is being killed. It closes its files one by
/// one, so the FIFO of the process may be closed while the inbox of the group is still open, and a
/// message to that inbox would be lost now. Returns `false` if the shim hangs in the kernel, for
/// example at a pipe that a container has locked.
fn has_ended(record: &ProcessRecord) -> io::Result<bool> {
    let shim = record.holdfast.as_ref().and_then(|policies| policies.shim.as_ref());
    let Some(shim) = shim.filter(|shim| is_being_killed(shim.pid)) else { return Ok(true) };
    let Some(held) = Handle::open(shim.pid)? else { return Ok(true) };
    let is_it = held.start_time.as_ref() == Some(&shim.start_time);
    Ok(!is_it || held.pidfd.ends_by(Instant::now() + END_GRACE)?)
}

fn spawn_adopter(
    core: &Arc<Core>,
    dir: &ProcessDir,
    record: &ProcessRecord,
    handle: &Handle,
    copies: &Copies,
    alone: bool,
) -> io::Result<(File, Option<Child>)> {
    let process = (FdName::Process, handle.pidfd.as_fd());
    let mut ends = ShimEnds::open(dir, record)?;
    if alone {
        ends.leave_group();
    }
    ends.begin(&core.shims, groups::PATIENCE, Some(copies.all().chain([process]).collect()))
}
