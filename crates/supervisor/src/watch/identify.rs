//! A process is taken hold of, and who has it is written down.

use std::io;
use std::sync::Arc;

use holdfast_state::{ProcessDir, ProcessRecord, ShimRecord};

use crate::core::Core;
use crate::model::copies::Copies;
use crate::model::identity::Handle;
use crate::model::process::Process;
use crate::os::tasks::blocking;

/// Takes hold of a process that its shim has just announced, and writes down its start time.
///
/// The shim reaps a process only after the status is on disk. So if there is no status after the
/// pid was opened, the pid was still that of the process.
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
        let mut record = dir.load().map_err(io::Error::other)?;
        handle.write_identity(&mut record);
        process.set_handle(Some(Arc::new(handle)));
        let written = write_shim(&core, &process, &dir, record, shim);
        process.have_kept(&core.keeping);
        written
    });
    if let Err(error) = taken.await {
        // It runs, and its shim will tell of its exit; what is missing is the proof of identity
        // after a restart.
        tracing::error!(%container, process = %id, pid, %error, "identity not recorded");
    }
}

/// Takes hold of a process once more whose number could not be opened when it was announced. Whether it is
/// still there.
pub(crate) async fn take_again(core: &Arc<Core>, process: &Arc<Process>) -> io::Result<bool> {
    let (core, process) = (core.clone(), process.clone());
    blocking(move || {
        let dir = process.dir(&core.root)?;
        let mut record = dir.load().map_err(io::Error::other)?;
        let found = Handle::of_record(&record, dir.pid()?, None)?;
        // A shim reaps only after it has recorded: without a record the number was still that of the process.
        let Some(handle) = found.filter(|handle| handle.pidfd.is_alive()) else { return Ok(false) };
        if dir.exit()?.is_some() {
            return Ok(false);
        }
        handle.write_identity(&mut record);
        process.set_handle(Some(Arc::new(handle)));
        dir.save(&record)?;
        Ok(true)
    })
    .await
}

/// Writes down which shim has taken a process over.
pub(crate) async fn record_adopter(core: &Arc<Core>, process: &Arc<Process>, shim: ShimRecord) {
    let (core, process) = (core.clone(), process.clone());
    let (container, id) = (process.container.clone(), process.id.clone());
    let recorded = blocking(move || {
        let dir = process.dir(&core.root)?;
        let record = dir.load().map_err(io::Error::other)?;
        write_shim(&core, &process, &dir, record, Some(shim))
    });
    if let Err(error) = recorded.await {
        tracing::error!(%container, process = %id, %error, "adopter not recorded");
    }
}

/// Saves a record with its shim, and keeps copies of what that reads from.
fn write_shim(
    core: &Core,
    process: &Process,
    dir: &ProcessDir,
    mut record: ProcessRecord,
    shim: Option<ShimRecord>,
) -> io::Result<()> {
    if let Some(policies) = &mut record.holdfast {
        policies.shim.clone_from(&shim);
    }
    dir.save(&record)?;
    if let Some(shim) = shim {
        match Copies::of_shim(&shim, &core.closer) {
            Ok(copies) => process.keep_copies(copies),
            // Its process has ended already, or it was killed: the record stands all the same.
            Err(error) => {
                tracing::debug!(container = %process.container, process = %process.id, %error, "no copies of the shim's pipes");
            }
        }
    }
    Ok(())
}
