//! What a start leaves behind whose shim was killed in the middle of it. A shim that gives a start up
//! has ended all of it before it goes.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use holdfast_state::ProcessDir;
use holdfast_state::process_dir::{PID, PROCESS_JSON};
use holdfast_sys::PidFd;
use holdfast_sys::proc::{self, Stat};
use nix::libc::SIGKILL;

use crate::model::identity::Handle;

/// How long a runtime may work on after its shim was killed.
const RUNTIME_GRACE: Duration = Duration::from_secs(10);

/// How long the killed may take to vanish. Only who hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How far two clocks may read the same moment apart: a tick of the start time, and some drift.
const SLACK: Duration = Duration::from_millis(100);

/// Waits for the runtime of a shim that was killed: what it has begun it had better finish, so that
/// what there is of it can be found. One that goes on and on is killed.
pub(crate) fn end_runtime(dir: &ProcessDir) -> io::Result<()> {
    // It was told to write its pid file there, and nobody else was.
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
            // Asked again of the process that we hold now.
            if is_its(pid) {
                ended = false;
                if !process.ends_by(give_up_at)? {
                    tracing::warn!(pid, "runtime killed: its shim died, and it does not end");
                    kill(&process)?;
                }
            }
        }
        // Whoever was there may have started another; the next look finds it.
        if ended {
            return Ok(());
        }
    }
}

/// Kills the process that the pid file of an unfinished start names, if it is the one that was
/// written there: it began after the record was written, and before its number was.
pub(crate) fn end_process(dir: &ProcessDir) -> io::Result<()> {
    let Some(pid) = dir.pid()? else { return Ok(()) };
    let Some(handle) = Handle::open(pid)? else { return Ok(()) };
    let Some(start_time) = &handle.start_time else { return Ok(()) };
    let stat = Stat::read(pid)?;
    let (recorded, named) =
        (dir.directory().modified(PROCESS_JSON)?, dir.directory().modified(PID)?);
    let started = stat.started()?;
    if stat.start_time != *start_time || started + SLACK < recorded || started > named + SLACK {
        tracing::warn!(pid, "the pid of an unfinished start is another process's by now");
        return Ok(());
    }
    if let Err(error) = dir.abandon() {
        tracing::warn!(pid, %error, "should we die now, its end will be taken for a container's");
    }
    tracing::info!(pid, "killed: its shim died before it had taken it over");
    kill(&handle.pidfd)
}

fn kill(process: &PidFd) -> io::Result<()> {
    process.send_signal(SIGKILL)?;
    if process.ends_by(Instant::now() + KILL_GRACE)? {
        Ok(())
    } else {
        Err(io::Error::other("it survives SIGKILL: it hangs in the kernel"))
    }
}
