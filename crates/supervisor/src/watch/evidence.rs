//! Finds out how a process ended if its shim can't report that.

use std::time::Duration;

use holdfast_state::{Evidence, ExitRecord, ExitStatus, ProcessDir, UnknownReason};
use holdfast_sys::ending::{Ending, ending};
use holdfast_sys::reactor;
use tokio::time::{Instant, timeout_at};

use crate::model::identity::Handle;

/// How long the parent of a zombie whose status we may not see may take to reap it.
const REAP_LIMIT: Duration = Duration::from_secs(30);

/// Returns the exit record that is on disk, if any.
pub(crate) fn on_disk(dir: &ProcessDir) -> Option<ExitRecord> {
    dir.exit().ok().flatten()
}

/// Returns what the kernel reports of a process that has ended.
pub(crate) async fn from_kernel(handle: Option<&Handle>) -> ExitRecord {
    let unknown = |reason| ExitRecord::now(ExitStatus::Unknown(reason), Evidence::None);
    let Some(handle) = handle else { return unknown(UnknownReason::ExitedUnwatched) };
    let deadline = Instant::now() + REAP_LIMIT;
    let mut reaped = None;
    loop {
        match ending(handle.pid, &handle.pidfd) {
            Ending::Exact(end, source) => return ExitRecord::now(end.into(), source.into()),
            Ending::Doubtful => return unknown(UnknownReason::MainThreadOnly),
            Ending::Lost => return unknown(UnknownReason::ReapedByAnother),
            Ending::Alive | Ending::Hidden => {}
        }
        // A pidfd becomes readable when its process becomes a zombie, and again when that is
        // reaped.
        if reaped.is_none() {
            reaped = reactor::pidfd(handle.pidfd.clone()).ok();
        }
        let Some(pidfd) = &reaped else { return unknown(UnknownReason::ReapedByAnother) };
        match timeout_at(deadline, pidfd.readable()).await {
            Ok(Ok(mut ready)) => ready.clear_ready(),
            Ok(Err(_)) | Err(_) => return unknown(UnknownReason::ReapedByAnother),
        }
    }
}
