//! Whether a pid is still the process that we mean. A number alone never is (DESIGN, rule 1).

use std::io;
use std::sync::Arc;

use holdfast_state::ProcessRecord;
use holdfast_sys::ending::is_reaped;
use holdfast_sys::proc::Stat;
use holdfast_sys::{PidFd, pidfs};

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

    /// Takes hold of the process of a record. `None` if that is gone, whoever has its number now.
    ///
    /// By its handle where there is one; else by its number and start time. A record without start
    /// time says nothing, and counts as the same: the seed's rule.
    pub(crate) fn of_record(pid: i32, record: &ProcessRecord) -> io::Result<Option<Self>> {
        let written = record.holdfast.as_ref().and_then(|policies| policies.pidfs.as_ref());
        if let Some(handle) = written.and_then(|text| text.parse::<pidfs::Handle>().ok()) {
            match handle.open() {
                Ok(pidfd) => {
                    let start_time = Some(record.start_time.clone());
                    return Ok(Some(Self { pid, pidfd: Arc::new(pidfd), start_time }));
                }
                Err(error) if error.raw_os_error() == Some(nix::libc::ESTALE) => return Ok(None),
                // A kernel that has none, older than the one that wrote it.
                Err(error) => tracing::debug!(pid, %error, "handle not opened"),
            }
        }
        Ok(Self::open(pid)?.filter(|handle| handle.is_process_of(record)))
    }

    /// Whether it is the process of the record. A record without start time says nothing, and
    /// counts as the same: the seed's rule.
    fn is_process_of(&self, record: &ProcessRecord) -> bool {
        record.start_time.is_empty() || self.start_time.as_deref() == Some(&record.start_time)
    }
}
