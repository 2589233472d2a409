//! Terminals, by the master's descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Tells a terminal its size in characters (`TIOCSWINSZ`, ioctl_tty(2)); its foreground processes
/// get SIGWINCH.
pub fn resize(master: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the borrowed descriptor is open, and TIOCSWINSZ reads one winsize, from `size`.
    let done =
        unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size of a terminal in characters: columns and rows (`TIOCGWINSZ`). `ENOTTY` if it is none.
pub fn size(terminal: impl AsFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the borrowed descriptor is open, and TIOCGWINSZ writes one winsize, to `size`.
    let done =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok((size.ws_col, size.ws_row)) }
}

/// Opens the other side of a terminal by its master (`TIOCGPTPEER`, Linux 4.13+), close-on-exec and not as
/// this process's controlling terminal. No path is looked up, so it may be another mount namespace's.
pub fn open_peer(master: impl AsFd) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the borrowed descriptor is open, and TIOCGPTPEER takes flags by value.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just returned `fd`, so it is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_comes_back_and_a_file_has_none() {
        let pty = nix::pty::openpty(None, None).unwrap();
        resize(&pty.master, 132, 43).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), (132, 43));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(size(&file).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
