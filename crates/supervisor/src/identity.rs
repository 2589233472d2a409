//! Whether a pid is still the process that we mean. A number alone never is (DESIGN, rule 1).

use std::io;
use std::sync::Arc;

use holdfast_state::ProcessRecord;
use holdfast_sys::PidFd;
use holdfast_sys::proc::Stat;

/// A process that we hold: signals go through the descriptor, the number is for showing.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) pid: i32,
    pub(crate) pidfd: Arc<PidFd>,
    /// Field 22 of its `/proc` entry; `None` if it was gone before that could be read.
    pub(crate) start_time: Option<String>,
}

impl Handle {
    /// Takes hold of whatever process has this number now. `None` if none has.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        let pidfd = match PidFd::open(pid) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            other => other?,
        };
        let start_time = Stat::read(pid).ok().map(|stat| stat.start_time);
        // Read between the opening and this check, so the entry was that of the process we hold:
        // a pid is not given away before its process has been reaped.
        let start_time = start_time.filter(|_| !is_reaped(&pidfd));
        Ok(Some(Self { pid, pidfd: Arc::new(pidfd), start_time }))
    }

    /// Whether it is the process of the record. A record without start time says nothing, and
    /// counts as the same: the seed's rule.
    pub(crate) fn is_process_of(&self, record: &ProcessRecord) -> bool {
        record.start_time.is_empty() || self.start_time.as_deref() == Some(&record.start_time)
    }
}

/// Takes hold of the process of a record, by whichever of the numbers that are told of it is right.
pub(crate) fn find(
    record: &ProcessRecord,
    told: impl IntoIterator<Item = i32>,
) -> io::Result<Option<Handle>> {
    for pid in told {
        if let Some(handle) = Handle::open(pid)?
            && handle.is_process_of(record)
        {
            return Ok(Some(handle));
        }
    }
    Ok(None)
}

/// Whether nobody can have mistaken the process's number for another's up to now: a zombie still
/// takes signals, a reaped process does not.
fn is_reaped(pidfd: &PidFd) -> bool {
    pidfd.send_signal(0).is_err_and(|error| error.raw_os_error() == Some(nix::libc::ESRCH))
}

/// The zombie's entry in `/proc`, if it still is one and we may see its status.
pub(crate) fn zombie_stat(handle: &Handle) -> Option<Stat> {
    let stat = Stat::read(handle.pid).ok()?;
    // To those without ptrace access the kernel shows 0 for the status, which would be a lie.
    let exe = std::fs::read_link(format!("/proc/{}/exe", handle.pid));
    let permitted = !exe.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    (permitted && !is_reaped(&handle.pidfd)).then_some(stat)
}
