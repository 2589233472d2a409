//! Ends what is left of a start whose shim was killed in the middle of it. A shim that gives up a
//! start ends all of it before it exits.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use holdfast_state::ProcessDir;
use holdfast_state::process_dir::{PID, PROCESS_JSON};
use holdfast_sys::PidFd;
use holdfast_sys::proc::{self, Stat};
use nix::libc::SIGKILL;

use crate::model::identity::Handle;

/// How long a runtime may continue after its shim was killed.
const RUNTIME_GRACE: Duration = Duration::from_secs(10);

/// How long killed processes may take to vanish. Only a process that hangs in the kernel takes
/// long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// By how much two readings of the same moment may differ: one tick of the start time, and some
/// drift between the clocks.
const SLACK: Duration = Duration::from_millis(100);

/// Waits for the runtime of a shim that was killed: it should finish what it has begun, so that the
/// result can be found. A runtime that does not end in time is killed.
pub(crate) fn end_runtime(dir: &ProcessDir) -> io::Result<()> {
    // Only this runtime has the path of this pid file on its command line.
    let pid_file = dir.path().join(PID);
    let is_its = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).any(|arg| arg == pid_file.as_os_str().as_bytes())
    };
    let give_up_at = Instant::now() + RUNTIME_GRACE;
    loop {
        let mut ended = true;
        for pid in proc::all()?.into_iter().filter(|pid| is_its(*pid)) {
            let Ok(process) = PidFd::open(pid) else { continue };
            // This is checked again for the process that we hold now.
            if is_its(pid) {
                ended = false;
                if !process.ends_by(give_up_at)? {
                    tracing::warn!(
                        pid,
                        "runtime killed: its shim died, and the runtime does not end"
                    );
                    kill(&process)?;
                }
            }
        }
        // A process that was found may have started another one, which the next scan finds.
        if ended {
            return Ok(());
        }
    }
}

/// Kills the process that the pid file of an unfinished start names, if it is the one that was
/// written there: it must have started after the record was written, and before the pid file was.
pub(crate) fn end_process(dir: &ProcessDir) -> io::Result<()> {
    let Some(pid) = dir.pid()? else { return Ok(()) };
    let Some(handle) = Handle::open(pid)? else { return Ok(()) };
    let Some(start_time) = &handle.start_time else { return Ok(()) };
    let stat = Stat::read(pid)?;
    let (recorded, named) =
        (dir.directory().modified(PROCESS_JSON)?, dir.directory().modified(PID)?);
    let started = stat.started()?;
    if stat.start_time != *start_time || started + SLACK < recorded || started > named + SLACK {
        tracing::warn!(pid, "the pid of an unfinished start belongs to another process by now");
        return Ok(());
    }
    if let Err(error) = dir.abandon() {
        tracing::warn!(pid, %error, "if we die now, its end will be taken for the exit of a container");
    }
    tracing::info!(pid, "process killed: its shim died before it had taken it over");
    kill(&handle.pidfd)
}

fn kill(process: &PidFd) -> io::Result<()> {
    process.send_signal(SIGKILL)?;
    if process.ends_by(Instant::now() + KILL_GRACE)? {
        Ok(())
    } else {
        Err(io::Error::other("the process survives SIGKILL: it hangs in the kernel"))
    }
}
