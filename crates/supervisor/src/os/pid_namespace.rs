//! The processes of a pid namespace (pid_namespaces(7)): those of a container that has no cgroup of its own.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use holdfast_sys::PidFd;
use holdfast_sys::proc;

/// Returns the pids of all processes in the pid namespace of a process, in order. Only the process itself, if
/// that is the namespace of this process. Processes in namespaces below it are left out.
pub(crate) fn processes(pid: i32) -> io::Result<Vec<i32>> {
    let theirs = namespace(&pid.to_string());
    if theirs.is_none() || theirs == namespace("self") {
        return Ok(vec![pid]);
    }
    let mut found = proc::all()?;
    found.retain(|pid| namespace(&pid.to_string()) == theirs);
    found.sort_unstable();
    Ok(found)
}

/// Sends a signal to all of them.
pub(crate) fn signal(pid: i32, signal: i32) -> io::Result<()> {
    let theirs = namespace(&pid.to_string());
    for member in processes(pid)? {
        let Ok(process) = PidFd::open(member) else { continue };
        // Read after the process was opened: it is this process that is in there.
        if namespace(&member.to_string()) == theirs {
            // It may end at any moment.
            let _ = process.send_signal(signal);
        }
    }
    Ok(())
}

/// Returns what identifies the pid namespace of a process; `None` if this process may not know.
fn namespace(process: &str) -> Option<(u64, u64)> {
    let metadata = fs::metadata(format!("/proc/{process}/ns/pid")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_own_namespace_there_is_the_process_alone() {
        let pid = std::process::id().cast_signed();
        assert_eq!(processes(pid).unwrap(), [pid]);
        assert_eq!(signal(pid, 0).unwrap(), ());
    }
}
