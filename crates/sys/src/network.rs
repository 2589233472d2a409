//! Network namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

/// Brings the loopback interface up in the network namespace of a process (netdevice(7)). Does
/// nothing if that is the namespace of this process.
///
/// # Errors
///
/// If the namespace cannot be entered, or has no loopback interface.
pub fn bring_loopback_up(pid: i32) -> io::Result<()> {
    let theirs = format!("/proc/{pid}/ns/net");
    if std::fs::read_link(&theirs)? == std::fs::read_link("/proc/self/ns/net")? {
        return Ok(());
    }
    let namespace = File::open(theirs)?;
    // A namespace is entered by a thread, which ends afterwards.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            loopback_up()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: socket(2) takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned `fd`, so it is open and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    for (place, letter) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = letter.cast_signed();
    }
    let raw = socket.as_raw_fd();
    // SAFETY: the descriptor is open, and SIOCGIFFLAGS reads and writes one ifreq, `request`.
    let got = unsafe { libc::ioctl(raw, libc::SIOCGIFFLAGS, &raw mut request) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: SIOCGIFFLAGS has set this field of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one ifreq, `request`.
    let set = unsafe { libc::ioctl(raw, libc::SIOCSIFFLAGS, &raw const request) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_this_process_is_left_alone() {
        bring_loopback_up(std::process::id().cast_signed()).unwrap();
    }
}
