//! How a process ended that is not our child.

use std::io;

use crate::proc::Stat;
use crate::{PidFd, Termination, kernel, wait};

/// What can be known of the end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It has not ended.
    Alive,
    /// This is how it ended.
    Exact(Termination, Source),
    /// It is a zombie whose status is not shown to us. The kernel will tell once it is reaped.
    Hidden,
    /// It is a zombie of another's that shows an exit status which may be that of its main thread only
    /// (below Linux 5.17).
    Doubtful,
    /// It was reaped, and this kernel does not tell (below Linux 6.15).
    Lost,
}

/// Who told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `waitid(2)`: it is our child, by birth or by adoption, and still to be reaped, unless only the reap
    /// tells (below Linux 5.17).
    Parent,
    /// `PIDFD_GET_INFO`, after it was reaped by whomever.
    Pidfd,
    /// The zombie's entry in `/proc`.
    Zombie,
}

/// Asks all who may know. The descriptor must be that of the process that has or had this number.
#[must_use]
pub fn ending(pid: i32, pidfd: &PidFd) -> Ending {
    if pidfd.is_alive() {
        return Ending::Alive;
    }
    let is_shown = kernel::tells_before_reap();
    let parent = || {
        let child = wait::Child::Held(pidfd);
        let end = if is_shown { wait::peek(child).ok()??.1 } else { wait::reap(child).ok()?? };
        Some(Ending::Exact(end, Source::Parent))
    };
    let reaped = || Some(Ending::Exact(pidfd.termination().ok()??, Source::Pidfd));
    let zombie = || Some(of_zombie(zombie_stat(pid, pidfd)?.zombie()?, is_shown));
    // Who reaps it may do so between two looks, so the kernel is asked once more at the end.
    parent().or_else(reaped).or_else(zombie).or_else(reaped).unwrap_or_else(|| {
        if is_reaped(pidfd) || !kernel::tells_endings() { Ending::Lost } else { Ending::Hidden }
    })
}

/// What a zombie's entry in `/proc` tells. A signal ends all threads alike.
fn of_zombie(end: Termination, is_shown: bool) -> Ending {
    match end {
        Termination::Exited(_) if !is_shown => Ending::Doubtful,
        end => Ending::Exact(end, Source::Zombie),
    }
}

/// Whether nobody can have mistaken the process's number for another's up to now: a zombie still
/// takes signals, a reaped process does not.
#[must_use]
pub fn is_reaped(pidfd: &PidFd) -> bool {
    pidfd.send_signal(0).is_err_and(|error| error.raw_os_error() == Some(libc::ESRCH))
}

/// The zombie's entry in `/proc`, if it still is one and we may see its status.
fn zombie_stat(pid: i32, pidfd: &PidFd) -> Option<Stat> {
    let stat = Stat::read(pid).ok()?;
    // To those without ptrace access the kernel shows 0 for the status, which would be a lie.
    let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
    let permitted = !exe.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    (permitted && !is_reaped(pidfd)).then_some(stat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn below_linux_5_17_a_zombie_of_anothers_tells_signals_only() {
        let (code, signal) = (Termination::Exited(0), Termination::Signaled(9));
        assert_eq!(of_zombie(code, false), Ending::Doubtful);
        assert_eq!(of_zombie(signal, false), Ending::Exact(signal, Source::Zombie));
        assert_eq!(of_zombie(code, true), Ending::Exact(code, Source::Zombie));
    }

    #[test]
    fn a_child_tells_while_it_is_a_zombie_and_the_kernel_after_it_was_reaped() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exit 42"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = PidFd::open(pid).unwrap();
        assert_eq!(ending(pid, &pidfd), Ending::Alive);
        drop(child.stdin.take());
        while pidfd.is_alive() {
            std::thread::yield_now();
        }
        let exact = |source| Ending::Exact(Termination::Exited(42), source);
        assert_eq!(ending(pid, &pidfd), exact(Source::Parent));
        assert!(
            zombie_stat(pid, &pidfd)
                .is_some_and(|stat| stat.zombie() == Some(Termination::Exited(42)))
        );
        child.wait().unwrap();
        let after = if kernel::tells_endings() { exact(Source::Pidfd) } else { Ending::Lost };
        assert_eq!(ending(pid, &pidfd), after);
    }
}
