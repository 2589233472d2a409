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
        Ok(Some(Self::held(pid, pidfd)))
    }

    fn held(pid: i32, pidfd: PidFd) -> Self {
        let start_time = Stat::read(pid).ok().map(|stat| stat.start_time);
        // Read between the opening and this check, so the entry was that of the process we hold:
        // a pid is not given away before its process has been reaped.
        let start_time = start_time.filter(|_| !is_reaped(&pidfd));
        Self { pid, pidfd: Arc::new(pidfd), start_time }
    }

    /// Takes hold of the process of a record. `None` if that is gone, whoever has its number now.
    ///
    /// By its handle where there is one; else by whichever of the numbers that are told of it is
    /// right, which its start time says. A record without start time says nothing, and counts as
    /// the same: the seed's rule.
    pub(crate) fn of_record(
        record: &ProcessRecord,
        told: impl IntoIterator<Item = i32>,
    ) -> io::Result<Option<Self>> {
        let written = record.holdfast.as_ref().and_then(|policies| policies.pidfs.as_ref());
        let by_handle = written.and_then(|text| text.parse::<pidfs::Handle>().ok()).map(|handle| {
            let pidfd = handle.open()?;
            Ok::<_, io::Error>(Self::held(pidfd.pid()?, pidfd))
        });
        match by_handle {
            // A damaged record may have another's.
            Some(Ok(handle)) if handle.is_process_of(record) => return Ok(Some(handle)),
            // Reaped; or damaged; or a kernel that has none, older than the one that wrote it.
            Some(Err(error)) => tracing::debug!(%error, "handle not opened"),
            Some(Ok(_)) | None => {}
        }
        for pid in told {
            if let Some(handle) = Self::open(pid)?.filter(|handle| handle.is_process_of(record)) {
                return Ok(Some(handle));
            }
        }
        Ok(None)
    }

    /// Whether it is the process of the record. A record without start time says nothing, and
    /// counts as the same: the seed's rule.
    pub(crate) fn is_process_of(&self, record: &ProcessRecord) -> bool {
        record.start_time.is_empty() || self.start_time.as_deref() == Some(&record.start_time)
    }
}
