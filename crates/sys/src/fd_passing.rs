//! Descriptors in messages over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recv, recvmsg, sendmsg,
};

/// The most descriptors that a message here carries.
pub const MAX: usize = 8;

/// Sends descriptors, at most [`MAX`], with the bytes that must go along: at least one.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let fd = socket.as_fd().as_raw_fd();
    sendmsg::<UnixAddr>(fd, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// How many bytes the next message has, on a socket that keeps messages apart.
pub fn next_length(socket: impl AsFd) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    Ok(recv(socket.as_fd().as_raw_fd(), &mut [], flags)?)
}

/// Receives one message and returns its bytes' number and its descriptors, close-on-exec. Bytes
/// beyond `bytes` and descriptors beyond [`MAX`] are lost. 0 bytes are the end of the stream.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX]);
    let mut parts = [IoSliceMut::new(bytes)];
    let message = recvmsg::<UnixAddr>(
        socket.as_fd().as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            for fd in received {
                // SAFETY: the kernel has just opened this descriptor for us with the message, and
                // the number goes nowhere else.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_pipe_goes_through_a_socket() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&ours, b"x", &[writer.as_fd()]).unwrap();
        drop((ours, writer));
        let mut byte = [0];
        let (length, mut fds) = receive(&theirs, &mut byte).unwrap();
        assert_eq!((length, byte, fds.len()), (1, *b"x", 1));
        std::fs::File::from(fds.remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(&theirs, &mut byte).unwrap().0, 0);
    }
}
