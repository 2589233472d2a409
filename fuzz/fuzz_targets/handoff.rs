//! The message by which descriptors change hands: as it comes, and as it is after one of ours was damaged.
#![no_main]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;

use holdfast_state::handoff::{Content, FdName, Handoff, MAX_LEN, Message};
use holdfast_sys::fd_passing;

thread_local! {
    static SOCKETS: (UnixDatagram, UnixDatagram) = {
        let (ours, theirs) = UnixDatagram::pair().expect("sockets");
        theirs.set_nonblocking(true).expect("a socket that does not wait");
        (ours, theirs)
    };
    static FDS: [OwnedFd; 3] = {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        [reader.into(), writer.into(), File::open("/dev/null").expect("/dev/null").into()]
    };
}

/// Sends bytes with some descriptors, and returns the words and the number of descriptors that came.
fn through(bytes: &[u8], count: usize) -> Option<(Vec<Vec<u8>>, usize)> {
    SOCKETS.with(|(ours, theirs)| {
        FDS.with(|fds| {
            let fds: Vec<_> = fds.iter().cycle().take(count).map(AsFd::as_fd).collect();
            fd_passing::send(ours, bytes, &fds).ok()?;
            let mut room = vec![0; MAX_LEN];
            let mut handoff = Handoff::receive(theirs, &mut room).ok()??;
            let words = handoff.words().map(|word| word.as_bytes().to_vec()).collect();
            let names = [
                FdName::Process,
                FdName::Stdout,
                FdName::Stderr,
                FdName::Terminal,
                FdName::Stdin,
                FdName::Exit,
                FdName::Control,
                FdName::Log,
            ];
            Some((words, names.into_iter().filter_map(|name| handoff.take(name)).count()))
        })
    })
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    if let Some(content) = Content::parse(input) {
        assert!(content.fds.len() <= fd_passing::MAX);
    }
    let Some((&choice, bytes)) = input.split_first() else { return };
    let count = usize::from(choice & 7);
    if let Some((_, came)) = through(bytes, count) {
        assert_eq!(came, count, "all or none");
    }
    // One of ours comes as it was sent; with one byte of it changed it may come, and never in part.
    let words: Vec<_> = bytes.split(|byte| *byte == 0).map(std::ffi::OsStr::from_bytes).collect();
    FDS.with(|fds| {
        let named = [(FdName::Exit, fds[1].as_fd()), (FdName::Log, fds[2].as_fd())];
        let Ok(message) = Message::new(named, words.iter().copied()) else { return };
        let mut sent = message.bytes().to_vec();
        SOCKETS.with(|(ours, theirs)| {
            message.send(ours).expect("room for a message");
            let mut room = vec![0; MAX_LEN];
            let handoff = Handoff::receive(theirs, &mut room).expect("one").expect("a message");
            assert!(handoff.words().eq(words.iter().copied()));
            assert!(handoff.has(FdName::Exit) && handoff.has(FdName::Log));
        });
        let at = usize::from(choice) % sent.len();
        sent[at] ^= bytes.first().copied().unwrap_or(1) | 1;
        FDS.with(|fds| {
            SOCKETS.with(|(ours, theirs)| {
                fd_passing::send(ours, &sent, &[fds[1].as_fd(), fds[2].as_fd()]).expect("room");
                let mut room = vec![0; MAX_LEN];
                let _ = Handoff::receive(theirs, &mut room);
            });
        });
    });
});
