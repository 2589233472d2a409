//! Opens handles of processes, and records their identities and their shims.

use std::io;
use std::sync::Arc;

use holdfast_state::{ProcessDir, ProcessRecord, ShimRecord};

use crate::core::Core;
use crate::model::copies::Copies;
use crate::model::identity::Handle;
use crate::model::process::Process;
use crate::os::tasks::blocking;

/// Opens a handle of a process that its shim has just announced, and records its identity.
///
/// The shim reaps a process only after the exit is on disk. So if there is no exit on disk after
/// the pid was opened, the pid was still that of the process.
pub(crate) async fn take_identity(
    core: &Arc<Core>,
    process: &Arc<Process>,
    pid: i32,
    shim: Option<ShimRecord>,
) {
    let (core, process) = (core.clone(), process.clone());
    let (container, id) = (process.container.clone(), process.id.clone());
    let taken = blocking(move || {
        let dir = process.dir(&core.root)?;
        let Some(handle) = Handle::open(pid)? else { return Ok(()) };
        if dir.exit()?.is_some() {
            return Ok(());
        }
        let handle = Arc::new(handle);
        process.set_handle(Some(handle.clone()));
        let recorded = record_shim(&process, &dir, shim.as_ref(), Some(&handle));
        take_copies(&core, &process, &dir, shim.as_ref());
        process.have_kept(&core.keeping);
        recorded
    });
    if let Err(error) = taken.await {
        // The process runs, and its shim will report its exit. Only the proof of its identity after
        // a restart is missing.
        tracing::error!(%container, process = %id, pid, %error, "identity not recorded");
    }
}

/// Opens a handle of a process whose pid could not be opened when it was announced. Returns whether
/// the process is still there.
pub(crate) async fn take_again(core: &Arc<Core>, process: &Arc<Process>) -> io::Result<bool> {
    let (core, process) = (core.clone(), process.clone());
    blocking(move || {
        let dir = process.dir(&core.root)?;
        let record = dir.load().map_err(io::Error::other)?;
        let found = Handle::of_record(&record, dir.pid()?, None)?;
        // A shim reaps a process only after it has recorded the exit. So without a record, the pid
        // was still that of the process.
        let Some(handle) = found.filter(|handle| handle.pidfd.is_alive()) else { return Ok(false) };
        if dir.exit()?.is_some() {
            return Ok(false);
        }
        process.change_record(&dir, |record| handle.write_identity(record))?;
        process.set_handle(Some(Arc::new(handle)));
        Ok(true)
    })
    .await
}

/// Records which shim has adopted a process.
pub(crate) async fn record_adopter(core: &Arc<Core>, process: &Arc<Process>, shim: ShimRecord) {
    let (core, process) = (core.clone(), process.clone());
    let (container, id) = (process.container.clone(), process.id.clone());
    let recorded = blocking(move || {
        let dir = process.dir(&core.root)?;
        record_shim(&process, &dir, Some(&shim), None)?;
        take_copies(&core, &process, &dir, Some(&shim));
        Ok(())
    });
    if let Err(error) = recorded.await {
        tracing::error!(%container, process = %id, %error, "the shim that adopted the process was not recorded");
    }
}

/// Writes down which shim has a process, and who the process is, if that is known only now.
fn record_shim(
    process: &Process,
    dir: &ProcessDir,
    shim: Option<&ShimRecord>,
    handle: Option<&Handle>,
) -> io::Result<()> {
    let change = |record: &mut ProcessRecord| {
        if let Some(handle) = handle {
            handle.write_identity(record);
        }
        if let Some(policies) = &mut record.holdfast {
            policies.shim = shim.cloned();
        }
    };
    process.note_shim(shim.map(|shim| shim.pid));
    process.change_record(dir, change).map(drop)
}

/// Keeps copies of what a shim reads from. It may have been killed since it told us of that, and be `None` by now: the
/// process has its pipes open, too, for as long as it runs.
fn take_copies(core: &Core, process: &Process, dir: &ProcessDir, shim: Option<&ShimRecord>) {
    let of_process = || {
        let (handle, record) = (process.handle()?, dir.load().ok()?);
        Some(Copies::of_process(&handle, &record, &core.closer))
    };
    // Without any, it has ended already. The record is valid all the same.
    if let Some(copies) = Copies::of_shim_or(shim, &core.closer, of_process) {
        process.keep_copies(copies);
    }
}
