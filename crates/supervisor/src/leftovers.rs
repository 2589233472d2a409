//! What a start leaves behind whose shim was killed in the middle of it. A shim that gives a start up
//! has ended all of it before it goes.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use holdfast_state::ProcessDir;
use holdfast_state::process_dir::{PID, PROCESS_JSON};
use holdfast_sys::PidFd;
use holdfast_sys::proc::{self, Stat};
use nix::libc::SIGKILL;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::identity::Handle;

/// How long the killed may take to vanish. Only who hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// How far two clocks may read the same moment apart: a tick of the start time, and some drift.
const SLACK: Duration = Duration::from_millis(100);

/// Kills the session of a dead shim: its runtime, and what that had started and not yet let go.
///
/// The shim is a zombie that only we reap, so nobody else's session has its number.
pub(crate) fn end_session(shim: i32) -> io::Result<()> {
    let give_up_at = Instant::now() + KILL_GRACE;
    let belongs = |pid: i32| {
        Stat::read(pid).is_ok_and(|stat| stat.session == shim && !matches!(stat.state, b'Z' | b'X'))
    };
    loop {
        let mut ended = true;
        for pid in proc::all()?.into_iter().filter(|pid| *pid != shim && belongs(*pid)) {
            let Ok(process) = PidFd::open(pid) else { continue };
            // Asked again of the process that we hold now.
            if belongs(pid) {
                tracing::info!(pid, shim, "killed: its shim died during the start");
                ended = false;
                kill(&process, give_up_at)?;
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
    tracing::info!(pid, "killed: its shim died before it had taken it over");
    kill(&handle.pidfd, Instant::now() + KILL_GRACE)
}

fn kill(process: &PidFd, give_up_at: Instant) -> io::Result<()> {
    process.send_signal(SIGKILL)?;
    loop {
        let left = give_up_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::other("it survives SIGKILL: it hangs in the kernel"));
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(1..) => return Ok(()),
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
