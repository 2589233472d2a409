//! The end of a process, as one transaction: once its output is drained, its status is written to disk, then the
//! zombie is reaped, and then the exit is announced: a client that receives the exit finds no process of that
//! pid. While the disk refuses the status, the zombie stays and holds it.
//!
//! Nothing on the way can lose the status in hand: what fails is tried again.

use std::io;
use std::time::{Duration, Instant};

use holdfast_state::announce::{Announcement, ExitDetails};
use holdfast_state::{Evidence, ExitRecord, ExitStatus, UnknownReason};
use holdfast_sys::Termination;
use holdfast_sys::ending::Ending;
use holdfast_sys::wait::{self, Child};

use crate::args;
use crate::home::Home;
use crate::log::log;

/// After how much time a status that the disk refused is written again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Exit {
    record: ExitRecord,
    /// The pid of our child, until it is reaped.
    zombie: Option<i32>,
    /// When to try again to record it, until it is.
    retry: Option<Instant>,
}

impl Exit {
    /// The exit of our child, which is a zombie. Where the kernel does not tell the status before the
    /// reap ([`kernel::tells_before_reap`](holdfast_sys::kernel::tells_before_reap)), it is reaped first: who
    /// kills us in between makes it an unknown one, and not a wrong one.
    pub(crate) fn of_child(pid: i32, peeked: Termination, tells_before_reap: bool) -> Self {
        let reaped = if tells_before_reap { None } else { reap(pid) };
        Self {
            record: ExitRecord::now(reaped.unwrap_or(peeked).into(), Evidence::Shim),
            zombie: reaped.is_none().then_some(pid),
            retry: Some(Instant::now()),
        }
    }

    /// The exit of a process that is not our child. `None` if its end is not known yet.
    pub(crate) fn of_orphan(ending: Ending) -> Option<Self> {
        let unknown = |reason| (ExitStatus::Unknown(reason), Evidence::None);
        let (status, evidence) = match ending {
            Ending::Alive | Ending::Hidden => return None,
            Ending::Exact(end, source) => (end.into(), source.into()),
            Ending::Doubtful => unknown(UnknownReason::MainThreadOnly),
            Ending::Lost => unknown(UnknownReason::ReapedByAnother),
        };
        let record = ExitRecord::now(status, evidence);
        Some(Self { record, zombie: None, retry: Some(Instant::now()) })
    }

    /// Adds whether the OOM killer killed a process of the container.
    pub(crate) fn note_oom(&mut self, oom_killed: bool) {
        self.record.oom_killed = oom_killed;
    }

    /// Records, reaps and announces. What the disk refuses is announced all the same (that is no reason to
    /// hide an exit) and is to be settled again when that is [due](Self::due).
    pub(crate) fn settle(&mut self, home: &Home, announce: impl FnOnce(Announcement)) {
        if self.retry.is_none_or(|retry| Instant::now() < retry) {
            return;
        }
        let dir = match home.open() {
            // Deleted, and nobody will ask for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            dir => Some(dir),
        };
        match dir.map(|dir| dir?.record_exit(&self.record)).transpose() {
            // Another may have recorded the exit of an orphan first, and known it better.
            Ok(Some(standing)) => self.record = standing,
            Ok(None) => {}
            Err(error) => {
                log("error", &format!("exit ({}) not recorded: {error}", self.record.status));
                self.retry = Some(Instant::now() + RETRY);
                return self.tell(announce);
            }
        }
        self.retry = None;
        self.zombie.take().map(reap);
        self.tell(announce);
    }

    fn tell(&self, announce: impl FnOnce(Announcement)) {
        let end = match self.record.status {
            ExitStatus::Code(code) => Termination::Exited(code),
            ExitStatus::Signal(signal) => Termination::Signaled(signal),
            // The file says why; its reader finds it when we are gone.
            ExitStatus::Unknown(_) => return,
        };
        let time = self.record.time.as_str().as_bytes().try_into().ok();
        let details = time
            .filter(|_| args::protocol() >= 2)
            .map(|time| ExitDetails { time, oom_killed: self.record.oom_killed });
        announce(Announcement::Exited { end, evidence: self.record.evidence, details });
    }

    /// When to settle it again.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.retry
    }

    /// The pid of our child, until it is reaped.
    pub(crate) fn zombie(&self) -> Option<i32> {
        self.zombie
    }

    /// Whether it is recorded, and the process reaped.
    pub(crate) fn is_settled(&self) -> bool {
        self.retry.is_none()
    }
}

/// Takes a zombie out of the process table.
pub(crate) fn reap(pid: i32) -> Option<Termination> {
    let reaped = wait::reap(Child::Pid(pid));
    reaped
        .inspect_err(|error| log("warning", &format!("process {pid} not reaped: {error}")))
        .ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::tests::home;
    use holdfast_state::process_dir::EXIT_STATUS;
    use holdfast_sys::ending::Source;
    use std::fs;
    use std::process::Command;

    /// A child that has exited with 5.
    #[expect(clippy::zombie_processes, reason = "it is to be one, until `Exit` reaps it")]
    fn zombie() -> i32 {
        let child = Command::new("sh").args(["-c", "exit 5"]).spawn().unwrap();
        let pid = child.id().cast_signed();
        while wait::peek(Child::Pid(pid)).unwrap().is_none() {
            std::thread::yield_now();
        }
        pid
    }

    fn is_child(pid: i32) -> bool {
        wait::peek(Child::Pid(pid)).is_ok()
    }

    #[test]
    fn where_the_kernel_shows_the_main_threads_status_the_reaps_is_recorded() {
        let temp = tempfile::tempdir().unwrap();
        let home = home(&temp.path().join("init"));
        let pid = zombie();
        // What Linux below 5.17 shows of a process whose main thread called pthread_exit(3).
        let mut exit = Exit::of_child(pid, Termination::Exited(0), false);
        let mut told = None;
        exit.settle(&home, |announcement| told = Some(announcement));
        assert!(exit.is_settled() && !is_child(pid));
        let end = Termination::Exited(5);
        assert_eq!(
            told,
            Some(Announcement::Exited { end, evidence: Evidence::Shim, details: None })
        );
        let record = home.open().unwrap().exit().unwrap().unwrap();
        assert_eq!(record.status, ExitStatus::Code(5));
        let orphan = Exit::of_orphan(Ending::Doubtful).unwrap();
        assert_eq!(orphan.record.status, ExitStatus::Unknown(UnknownReason::MainThreadOnly));
    }

    #[test]
    fn what_the_disk_refuses_is_announced_and_not_reaped_until_it_is_recorded() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("init");
        let home = home(&path);
        // A directory, so that no status can be written there, nor read.
        fs::create_dir(path.join(EXIT_STATUS)).unwrap();
        let pid = zombie();
        let mut exit = Exit::of_child(pid, Termination::Exited(5), true);
        let mut told = 0;
        let begun = Instant::now();
        exit.settle(&home, |_| told += 1);
        assert!(told == 1 && !exit.is_settled() && is_child(pid));
        let due = begun + RETRY..=Instant::now() + RETRY;
        assert!(due.contains(&exit.due().unwrap()));
        // This thread may be held up for longer than `RETRY`.
        exit.retry = Some(Instant::now() + Duration::from_secs(3600));
        exit.settle(&home, |_| told += 1);
        assert_eq!(told, 1, "it is not due yet");
        fs::remove_dir(path.join(EXIT_STATUS)).unwrap();
        exit.retry = Some(Instant::now());
        exit.settle(&home, |_| told += 1);
        assert!(told == 2 && exit.is_settled() && !is_child(pid));
    }

    #[test]
    fn an_exit_in_a_directory_that_was_deleted_is_settled() {
        let temp = tempfile::tempdir().unwrap();
        let home = home(&temp.path().join("init"));
        fs::remove_dir_all(temp.path().join("init")).unwrap();
        let end = Ending::Exact(Termination::Signaled(9), Source::Pidfd);
        let mut exit = Exit::of_orphan(end).unwrap();
        exit.settle(&home, |_| {});
        assert!(exit.is_settled());
        assert!(Exit::of_orphan(Ending::Hidden).is_none());
    }
}
