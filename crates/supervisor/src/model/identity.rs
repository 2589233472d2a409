//! Proof that a pid still belongs to the process that is meant. The number alone proves nothing
//! (DESIGN, rule 1).

use std::io;
use std::sync::Arc;

use holdfast_state::ProcessRecord;
use holdfast_sys::ending::is_reaped;
use holdfast_sys::proc::Stat;
use holdfast_sys::{PidFd, pidfs};

/// A process that we hold. Signals go through the pidfd; the pid is only for display.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) pid: i32,
    pub(crate) pidfd: Arc<PidFd>,
    /// The start time, field 22 of `/proc/PID/stat`; `None` if the process was gone before it could
    /// be read.
    pub(crate) start_time: Option<String>,
}

impl Handle {
    /// Opens the process that has this pid now. Returns `None` if there is none.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        let pidfd = match PidFd::open(pid) {
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(None),
            other => other?,
        };
        Ok(Some(Self::held(pid, pidfd)))
    }

    fn held(pid: i32, pidfd: PidFd) -> Self {
        let start_time = Stat::read(pid).ok().map(|stat| stat.start_time);
        // The start time was read after the pidfd was opened and before this check. A pid is not
        // given to another process before its process is reaped; so the entry was that of the
        // process we hold.
        let start_time = start_time.filter(|_| !is_reaped(&pidfd));
        Self { pid, pidfd: Arc::new(pidfd), start_time }
    }

    /// Finds the process of a record. Returns `None` if it is gone, whichever process has its pid
    /// now.
    ///
    /// The candidates are the process of the record's pidfs handle, if there is one, and those of
    /// the `told` pids. The start time decides which of them is right. But it is counted in
    /// hundredths of a second, so a damaged number can name another process that began within the
    /// same one: two candidates that agree outweigh a third. A record without a start time matches
    /// every process, as in containerd's 2016 shim.
    pub(crate) fn of_record(
        record: &ProcessRecord,
        told: impl IntoIterator<Item = i32> + Clone,
        kept: Option<PidFd>,
    ) -> io::Result<Option<Self>> {
        if let Some(found) = kept.and_then(|kept| Self::of_kept(kept, record, told.clone())) {
            return Ok(Some(found));
        }
        let policies = record.holdfast.as_ref();
        let shim = policies.and_then(|policies| Some(policies.shim.as_ref()?.pid));
        let is_it = |found: &Self| found.is_process_of(record) && Some(found.pid) != shim;
        let written = policies.and_then(|policies| policies.pidfs.as_ref());
        let by_handle = written.and_then(|text| text.parse::<pidfs::Handle>().ok()).map(|handle| {
            let pidfd = handle.open()?;
            Ok::<_, io::Error>((pidfd.pid()?, pidfd))
        });
        let by_handle = match by_handle {
            // A pid that agrees with the handle is enough; the candidates need not be compared.
            Some(Ok((pid, pidfd)))
                if Some(pid) != shim && told.clone().into_iter().any(|number| number == pid) =>
            {
                let start_time = Some(record.start_time.clone()).filter(|time| !time.is_empty());
                return Ok(Some(Self { pid, pidfd: Arc::new(pidfd), start_time }));
            }
            Some(Ok((pid, pidfd))) => Some(Self::held(pid, pidfd)).filter(is_it),
            Some(Err(error)) => {
                // The process was reaped; or the handle is damaged; or this kernel has no handles
                // and is older than the one on which the record was written.
                tracing::debug!(%error, "pidfs handle not opened");
                None
            }
            None => None,
        };
        let mut by_number = Vec::new();
        for pid in told {
            by_number.extend(Self::open(pid)?.filter(is_it));
        }
        let outvoted = by_number.len() > 1
            && by_number.iter().all(|found| found.pid == by_number[0].pid)
            && by_handle.as_ref().is_some_and(|found| found.pid != by_number[0].pid);
        Ok(by_handle.filter(|_| !outvoted).or_else(|| by_number.into_iter().next()))
    }

    /// Returns the process behind a pidfd from the keeper if it is the process of the record: if
    /// its pidfs handle matches, whether it is dead or alive; or if it is alive and its start time
    /// matches.
    fn of_kept(
        kept: PidFd,
        record: &ProcessRecord,
        told: impl IntoIterator<Item = i32>,
    ) -> Option<Self> {
        let written = record.holdfast.as_ref().and_then(|policies| policies.pidfs.as_ref());
        let same = || Some(pidfs::Handle::of(&kept).ok()?.to_string() == *written?);
        let is_same = same().unwrap_or_default();
        // A reaped process has no pid any more.
        let number = kept.pid().ok().or_else(|| told.into_iter().next())?;
        let found = Self::held(number, kept);
        (is_same || (found.start_time.is_some() && found.is_process_of(record))).then_some(found)
    }

    /// Stores the identity of this process in its record: the start time and the pidfs handle.
    pub(crate) fn write_identity(&self, record: &mut ProcessRecord) {
        if let Some(start_time) = &self.start_time {
            record.start_time.clone_from(start_time);
        }
        if let Some(policies) = &mut record.holdfast {
            policies.pidfs = pidfs::Handle::of(&self.pidfd).ok().map(|handle| handle.to_string());
        }
    }

    /// Returns whether this is the process of the record. A record without a start time matches
    /// every process, as in containerd's 2016 shim.
    pub(crate) fn is_process_of(&self, record: &ProcessRecord) -> bool {
        record.start_time.is_empty() || self.start_time.as_deref() == Some(&record.start_time)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn start() -> (Child, Handle) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let handle = Handle::open(child.id().cast_signed()).unwrap().unwrap();
        (child, handle)
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts two processes that differ only in their pids.
    fn twins() -> [(Child, Handle); 2] {
        loop {
            let (one, other) = (start(), start());
            if one.1.start_time == other.1.start_time {
                return [one, other];
            }
            end(one.0);
            end(other.0);
        }
    }

    #[test]
    fn a_damaged_number_does_not_make_a_neighbour_the_process() {
        let [(this, right), (that, wrong)] = twins();
        let text = r#"{"schema":1,"bootId":"","created":"2026-01-02T03:04:05Z","launch":"run",
            "runtime":"","bundle":"","log":"cri","onOrphan":"adopt","autoRemove":false,
            "startTimeoutMs":0}"#;
        let mut policies: holdfast_state::Policies = serde_json::from_str(text).unwrap();
        let handle = |of: &Handle| pidfs::Handle::of(&of.pidfd).ok().map(|it| it.to_string());
        let mut found = |of: &Handle, shim: Option<i32>, told: &[i32]| {
            policies.pidfs = handle(of);
            policies.shim = shim.map(|pid| {
                let text = format!(r#"{{"pid":{pid},"startTime":"","stdout":1,"stderr":2}}"#);
                serde_json::from_str(&text).unwrap()
            });
            let record = ProcessRecord {
                start_time: of.start_time.clone().unwrap(),
                holdfast: Some(policies.clone()),
                ..ProcessRecord::default()
            };
            let found = Handle::of_record(&record, told.iter().copied(), None).unwrap();
            found.map(|handle| handle.pid)
        };
        let (right_pid, wrong_pid) = (right.pid, wrong.pid);
        // Case: the handle of the record is damaged.
        assert_eq!(found(&wrong, None, &[right_pid, right_pid]), Some(right_pid));
        // Case: one of the pids is damaged. Below Linux 6.14 there is no handle to decide between
        // the two.
        if pidfs::has_handles() {
            assert_eq!(found(&right, None, &[wrong_pid, right_pid]), Some(right_pid));
            assert_eq!(found(&right, None, &[right_pid, wrong_pid]), Some(right_pid));
            assert_eq!(found(&right, None, &[wrong_pid]), Some(right_pid));
        }
        // Case: the pid of the record's own shim is never that of its process.
        assert_eq!(found(&wrong, Some(wrong_pid), &[wrong_pid, right_pid]), Some(right_pid));
        assert_eq!(found(&wrong, Some(wrong_pid), &[]), None);
        end(this);
        end(that);
    }
}
