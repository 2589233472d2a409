//! The runs of a container: each start of its init process is one.
//!
//! The directory of the process belongs to the current run. A new run begins in the same directory,
//! so that the log goes on. This needs several changes on disk. While they are made, the file
//! [`CHANGING`] is there; a restore that finds it goes back to the last run.
//!
//! ```text
//! the exit is in runs.json → CHANGING → pid, exitStatus, exit.json, … removed → process.json of
//! the new run → CHANGING removed → the shim begins
//! ```

use std::io;

use serde::{Deserialize, Serialize};

use crate::process_dir::{
    ABANDONED, BEGUN, CONTROL, EXIT, EXIT_JSON, EXIT_STATUS, PID, RUNTIME_LOG, SHIM_LOG, STDIN,
};
use crate::{
    Evidence, ExitRecord, ExitStatus, ProcessDir, ProcessRecord, Timestamp, UnknownReason,
};

/// The earlier runs, as a JSON array. Missing before the second start.
pub const RUNS_JSON: &str = "runs.json";
/// Empty, and there while the directory changes from one run to another.
pub const CHANGING: &str = "changing";

/// The number of earlier runs that are kept.
pub const MOST_RUNS: usize = 100;
/// A larger file is not a list of runs.
const RUNS_LIMIT: u64 = 1024 * 1024;
/// The number of bytes of an error message that are kept.
const ERROR_LIMIT: usize = 1024;

/// A run that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct PastRun {
    /// The number of the run, from 1.
    pub run: u32,
    /// When its program was started; `None` if that is not known, or did not happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// How it exited; `None` if its start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// Why its start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PastRun {
    /// Returns a run that has exited.
    #[must_use]
    pub fn exited(run: u32, started: Option<Timestamp>, exit: ExitRecord) -> Self {
        Self { run, started, exit: Some(exit), error: None }
    }

    /// Returns a run whose start has failed.
    #[must_use]
    pub fn failed(run: u32, error: &str) -> Self {
        let end = error.floor_char_boundary(ERROR_LIMIT);
        Self { run, started: None, exit: None, error: Some(error[..end].to_owned()) }
    }
}

impl ProcessDir {
    /// Returns the earlier runs, the oldest first: at most [`MOST_RUNS`].
    ///
    /// # Errors
    ///
    /// If the file cannot be read, or is damaged.
    pub fn past_runs(&self) -> io::Result<Vec<PastRun>> {
        match self.directory().read(RUNS_JSON, RUNS_LIMIT) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            content => serde_json::from_slice(&content?)
                .map_err(|error| invalid(format!("{RUNS_JSON}: {error}"))),
        }
    }

    fn add_run(&self, past: PastRun) -> io::Result<()> {
        // A damaged list is begun anew: it must not prevent a start.
        let mut runs = self.past_runs().or_else(|error| match error.kind() {
            io::ErrorKind::InvalidData => Ok(Vec::new()),
            _ => Err(error),
        })?;
        match runs.iter_mut().find(|run| run.run == past.run) {
            // Written before: by a change that was not completed, or before a run whose start failed.
            Some(known) => {
                let started = past.started.clone().or_else(|| known.started.take());
                *known = PastRun { started, ..past };
            }
            None => runs.push(past),
        }
        let too_many = runs.len().saturating_sub(MOST_RUNS);
        // The last exit stays, however many starts have failed since.
        let last = runs.iter().rposition(|run| run.exit.is_some());
        let mut index = 0;
        runs.retain(|_| {
            index += 1;
            index > too_many || last == Some(index - 1)
        });
        self.directory().write_atomic(RUNS_JSON, &serde_json::to_vec(&runs)?)
    }

    /// Makes the directory that of the next run. The exit of the last run is kept in the list of
    /// earlier runs. `stdin` is the owner of the FIFO for the standard input, if there is to be one.
    /// If this fails or is interrupted, [`revert_run`](Self::revert_run) must follow.
    ///
    /// # Errors
    ///
    /// If a file cannot be written or removed.
    pub fn begin_run(
        &self,
        past: PastRun,
        next: &ProcessRecord,
        stdin: Option<(u32, u32)>,
    ) -> io::Result<()> {
        self.add_run(past)?;
        self.mark_changing()?;
        for name in [EXIT_STATUS, EXIT_JSON, PID, ABANDONED, BEGUN, SHIM_LOG, RUNTIME_LOG] {
            self.directory().unlink(name)?;
        }
        // With other FIFOs, it is another directory for a shim of the last run that is still there.
        for name in [EXIT, CONTROL, STDIN] {
            self.directory().unlink(name)?;
        }
        self.make_fifos()?;
        if let Some((uid, gid)) = stdin {
            self.make_stdin(uid, gid)?;
        }
        self.save(next)?;
        self.mark_changed()
    }

    /// Makes the directory that of the last run that has exited, because a later one was not begun.
    /// `failed` is added to the list of runs. Returns the record, the exit and the start of that run.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub fn revert_run(
        &self,
        failed: Option<PastRun>,
    ) -> io::Result<(ProcessRecord, ExitRecord, Option<Timestamp>)> {
        if let Some(failed) = failed {
            self.add_run(failed)?;
        }
        let runs = self.past_runs().unwrap_or_default();
        let last = runs.into_iter().rev().find_map(|run| Some((run.run, run.exit?, run.started)));
        let mut record = self.load().map_err(io::Error::other)?;
        let run = record.holdfast.as_ref().map_or(1, |policies| policies.run);
        let lost = || {
            let unknown = ExitStatus::Unknown(UnknownReason::UnreadableRecord);
            (run.saturating_sub(1).max(1), ExitRecord::now(unknown, Evidence::None), None)
        };
        let (last, exit, started) = last.unwrap_or_else(lost);
        self.mark_changing()?;
        record.start_time.clear();
        if let Some(policies) = &mut record.holdfast {
            (policies.run, policies.pidfs, policies.shim) = (last, None, None);
        }
        self.save(&record)?;
        for name in [PID, ABANDONED, BEGUN] {
            self.directory().unlink(name)?;
        }
        let exit = self.record_exit(&exit)?;
        self.mark_changed()?;
        Ok((record, exit, started))
    }

    /// Returns whether a change from one run to another was interrupted.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn is_between_runs(&self) -> io::Result<bool> {
        self.directory().contains(CHANGING)
    }

    /// Durable before anything is changed.
    fn mark_changing(&self) -> io::Result<()> {
        self.directory().append(CHANGING)?;
        self.directory().sync()
    }

    /// Durable before a process of the new run can exist.
    fn mark_changed(&self) -> io::Result<()> {
        self.directory().unlink(CHANGING)?;
        self.directory().sync()
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(run: u32) -> ProcessRecord {
        let policies = serde_json::json!({
            "schema": 1, "bootId": "b", "created": Timestamp::now(), "run": run, "launch": "run",
            "runtime": "/runc", "bundle": "/b", "log": "none", "onOrphan": "adopt",
            "autoRemove": false, "startTimeoutMs": 0,
        });
        let holdfast = Some(serde_json::from_value(policies).unwrap());
        ProcessRecord { holdfast, start_time: format!("{run}"), ..ProcessRecord::default() }
    }

    fn code(code: u8) -> ExitRecord {
        ExitRecord::now(ExitStatus::Code(code), Evidence::Shim)
    }

    fn run_of(record: &ProcessRecord) -> u32 {
        record.holdfast.as_ref().unwrap().run
    }

    fn dir_after_one_run() -> (tempfile::TempDir, ProcessDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = ProcessDir::open(temp.path()).unwrap();
        dir.save(&record(1)).unwrap();
        std::fs::write(temp.path().join(PID), "7").unwrap();
        dir.record_exit(&code(3)).unwrap();
        (temp, dir)
    }

    #[test]
    fn the_next_run_finds_nothing_of_the_last_one_but_its_exit_in_the_list() {
        let (_temp, dir) = dir_after_one_run();
        dir.make_fifos().unwrap();
        let fifo = dir.directory().file_id(CONTROL).unwrap();
        let held = dir.control_reader().unwrap();
        assert_eq!(dir.past_runs().unwrap(), []);
        let first = PastRun::exited(1, Some(Timestamp::now()), code(3));
        dir.begin_run(first.clone(), &record(2), None).unwrap();
        assert_eq!((dir.exit().unwrap(), dir.pid().unwrap()), (None, None));
        assert_ne!(dir.directory().file_id(CONTROL).unwrap(), fifo);
        drop(held);
        assert_eq!(run_of(&dir.load().unwrap()), 2);
        assert_eq!(dir.past_runs().unwrap(), [first]);
        assert!(!dir.is_between_runs().unwrap());
        dir.record_exit(&code(0)).unwrap();
        assert_eq!(dir.directory().read(EXIT_STATUS, 10).unwrap(), b"0");
    }

    #[test]
    fn a_run_whose_start_fails_gives_the_directory_back_to_the_last_one() {
        let (temp, dir) = dir_after_one_run();
        let exit = dir.exit().unwrap().unwrap();
        dir.begin_run(PastRun::exited(1, None, exit.clone()), &record(2), None).unwrap();
        std::fs::write(temp.path().join(PID), "8").unwrap();
        let failed = Some(PastRun::failed(2, "no such file"));
        let (reverted, found, _) = dir.revert_run(failed).unwrap();
        assert_eq!((run_of(&reverted), reverted.start_time.as_str()), (1, ""));
        assert_eq!((found, dir.exit().unwrap()), (exit.clone(), Some(exit)));
        assert_eq!(dir.pid().unwrap(), None);
        assert_eq!(dir.past_runs().unwrap()[1].error.as_deref(), Some("no such file"));
    }

    #[test]
    fn the_list_is_in_order_and_keeps_the_start_however_often_a_start_fails() {
        let (_temp, dir) = dir_after_one_run();
        let started = Some(Timestamp::now());
        dir.begin_run(PastRun::exited(1, started.clone(), code(3)), &record(2), None).unwrap();
        for run in 2..5 {
            let failed = Some(PastRun::failed(run, "no"));
            let (reverted, exit, when) = dir.revert_run(failed).unwrap();
            assert_eq!((run_of(&reverted), exit.status), (1, ExitStatus::Code(3)));
            assert_eq!(when, started);
            // Nobody knows any more when it was started.
            let past = PastRun::exited(1, None, exit);
            dir.begin_run(past, &record(run + 1), None).unwrap();
        }
        let runs = dir.past_runs().unwrap();
        assert_eq!(runs.iter().map(|run| run.run).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(runs[0].started, started);
    }

    /// Interrupts the change at each of its steps, in the same way as a crash does.
    #[test]
    fn a_change_that_a_crash_interrupts_anywhere_is_taken_back() {
        let steps = [EXIT_STATUS, EXIT_JSON, PID];
        for done in 0..=steps.len() {
            let (_temp, dir) = dir_after_one_run();
            let exit = dir.exit().unwrap().unwrap();
            dir.add_run(PastRun::exited(1, None, exit.clone())).unwrap();
            dir.mark_changing().unwrap();
            for name in &steps[..done] {
                dir.directory().unlink(name).unwrap();
            }
            if done == steps.len() {
                dir.save(&record(2)).unwrap();
            }
            assert!(dir.is_between_runs().unwrap());
            let (reverted, found, _) = dir.revert_run(None).unwrap();
            assert_eq!((run_of(&reverted), found), (1, exit.clone()));
            assert_eq!(dir.exit().unwrap(), Some(exit));
            assert!(!dir.is_between_runs().unwrap());
        }
    }

    #[test]
    fn the_list_has_a_bound_and_keeps_the_last_exit() {
        let (_temp, dir) = dir_after_one_run();
        for run in 1..=5 {
            dir.add_run(PastRun::exited(run, None, code(0))).unwrap();
        }
        for run in 6..200 {
            dir.add_run(PastRun::failed(run, &"é".repeat(ERROR_LIMIT))).unwrap();
        }
        let runs = dir.past_runs().unwrap();
        assert_eq!((runs.len(), runs[0].run, runs[1].run), (MOST_RUNS + 1, 5, 100));
        assert!(runs[1].error.as_ref().unwrap().len() <= ERROR_LIMIT);
        dir.add_run(PastRun::failed(199, "again")).unwrap();
        assert_eq!(dir.past_runs().unwrap().len(), MOST_RUNS + 1);
    }

    #[test]
    fn a_damaged_list_prevents_no_start_and_makes_no_exit_up() {
        let (temp, dir) = dir_after_one_run();
        std::fs::write(temp.path().join(RUNS_JSON), "[{").unwrap();
        assert_eq!(dir.past_runs().unwrap_err().kind(), io::ErrorKind::InvalidData);
        dir.begin_run(PastRun::exited(1, None, code(3)), &record(2), None).unwrap();
        std::fs::write(temp.path().join(RUNS_JSON), "[{").unwrap();
        let (reverted, exit, _) = dir.revert_run(None).unwrap();
        assert_eq!(run_of(&reverted), 1);
        assert_eq!(exit.status, ExitStatus::Unknown(UnknownReason::UnreadableRecord));
    }
}
