//! Descriptors in messages over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recv, sendmsg,
    socketpair,
};

/// The most descriptors that a message here carries.
pub const MAX: usize = 10;

/// Two sockets that keep messages apart, and yet tell of each other's end.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SockType::SeqPacket;
    Ok(socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?)
}

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
/// beyond `bytes` are lost. 0 bytes are the end of the stream.
///
/// # Errors
/// Those of recvmsg(2), and `EMFILE` if there was no room for all the descriptors: the message has gone
/// then, and those of its descriptors that came are closed. The next message is there all the same.
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive_with(socket, bytes, 0)
}

/// The same, and the message stays where it is: its descriptors are copies.
///
/// # Errors
/// Those of [`receive`].
pub fn peek(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive_with(socket, bytes, libc::MSG_PEEK)
}

fn receive_with(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: libc::c_int,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX]);
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: msghdr is plain data for which all zero bytes are a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = space.capacity() as _;
    let number = socket.as_fd().as_raw_fd();
    // SAFETY: the header points to `bytes` and `space`, which live on and are as long as it says.
    let length = unsafe { libc::recvmsg(number, &raw mut header, libc::MSG_CMSG_CLOEXEC | flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let mut fds = Vec::new();
    // SAFETY: recvmsg has filled `space` with whole control messages and set its length, so that these walk
    // over what is there. Each number in one of SCM_RIGHTS was opened for us with the message, and goes
    // nowhere else.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(&raw const header);
        while let Some(found) = message.as_ref() {
            if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let room = found.cmsg_len - libc::CMSG_LEN(0) as usize;
                let numbers: *const RawFd = libc::CMSG_DATA(message).cast();
                for index in 0..room / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(numbers.add(index).read_unaligned()));
                }
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    // Those that came are closed here: who gets a part of them would take it for all.
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok((length, fds))
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

    #[test]
    fn what_is_peeked_at_stays_and_its_descriptors_are_copies() {
        let (ours, theirs) = pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&ours, b"x", &[writer.as_fd()]).unwrap();
        drop((ours, writer));
        for _ in 0..2 {
            let mut byte = [0];
            let (length, mut fds) = peek(&theirs, &mut byte).unwrap();
            assert_eq!((length, byte, fds.len()), (1, *b"x", 1));
            std::fs::File::from(fds.remove(0)).write_all(b"y").unwrap();
        }
        // A message that is taken without room for descriptors closes them.
        assert_eq!(recv(theirs.as_raw_fd(), &mut [], MsgFlags::empty()), Ok(0));
        assert_eq!(peek(&theirs, &mut [0]).unwrap().0, 0, "it was the only one");
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "yy");
    }

    /// Seen before: the error ended the group that received it, and what had come was never closed.
    #[test]
    fn a_message_that_there_is_no_room_for_costs_itself_alone_and_leaves_nothing_open() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        // Limits are a process's, so this has one of its own.
        if std::env::var_os("HOLDFAST_TEST_INSIDE").is_none() {
            let name = "fd_passing::tests::a_message_that_there_is_no_room_for_costs_itself_alone_and_leaves_nothing_open";
            let status = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads=1"])
                .env("HOLDFAST_TEST_INSIDE", "1")
                .status();
            assert!(status.unwrap().success());
            return;
        }
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        send(&ours, b"one", &[null.as_fd(); 4]).unwrap();
        send(&ours, b"two", &[null.as_fd()]).unwrap();
        let before = open();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let lowest = u64::try_from(null.as_raw_fd()).unwrap() + 1;
        for room in [0, 1, 3] {
            setrlimit(Resource::RLIMIT_NOFILE, lowest + room, hard).unwrap();
            let mut bytes = [0; 8];
            let error = receive(&theirs, &mut bytes).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "with room for {room}");
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
            assert_eq!(open(), before, "with room for {room}");
            let (length, fds) = receive(&theirs, &mut bytes).unwrap();
            assert_eq!((&bytes[..length], fds.len()), (&b"two"[..], 1));
            send(&ours, b"one", &[null.as_fd(); 4]).unwrap();
            send(&ours, b"two", &[null.as_fd()]).unwrap();
        }
    }
}
