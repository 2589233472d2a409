//! Waiting with epoll(7). Only changes of what to wait for are passed to the kernel.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use holdfast_shim::engine::round_up;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::report;

/// How many events are taken from the kernel at once.
const EVENTS: usize = 16;

/// The object that an event belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Signals,
    Stdout,
    Stderr,
    Attach,
    Ctl,
    Winsz,
    Input,
    Notify,
    Oom,
    Process,
    Keeper,
    Client(u64),
}

impl Token {
    const OWN: [Self; 11] = [
        Self::Signals,
        Self::Stdout,
        Self::Stderr,
        Self::Attach,
        Self::Ctl,
        Self::Winsz,
        Self::Input,
        Self::Notify,
        Self::Oom,
        Self::Process,
        Self::Keeper,
    ];

    fn number(self) -> u64 {
        match self {
            Self::Client(number) => Self::OWN.len() as u64 + number,
            own => Self::OWN.iter().position(|token| *token == own).unwrap_or(0) as u64,
        }
    }

    fn of(number: u64) -> Self {
        let own = usize::try_from(number).ok().and_then(|at| Self::OWN.get(at).copied());
        own.unwrap_or_else(|| Self::Client(number - Self::OWN.len() as u64))
    }
}

/// Events that have come.
pub(crate) struct Events {
    events: [EpollEvent; EVENTS],
    count: usize,
}

impl Events {
    /// Returns each object and what it is ready for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Token, PollFlags)> {
        self.events[..self.count].iter().map(|event| {
            let bits = i16::try_from(event.events().bits()).unwrap_or(0);
            (Token::of(event.data()), PollFlags::from_bits_truncate(bits))
        })
    }

    pub(crate) fn has(&self, token: Token) -> bool {
        self.iter().any(|(ready, _)| ready == token)
    }
}

pub(crate) struct Watch {
    epoll: Epoll,
    /// What is registered: token, descriptor and events.
    known: Vec<(u64, RawFd, u32)>,
    /// What is to be registered.
    wanted: Vec<(u64, RawFd, u32)>,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, known: Vec::new(), wanted: Vec::new() })
    }

    /// Includes this in the next wait.
    pub(crate) fn want(&mut self, token: Token, fd: BorrowedFd<'_>, events: PollFlags) {
        // The bits of poll(2) are those of epoll(7).
        let events = u32::from(events.bits().cast_unsigned());
        self.wanted.push((token.number(), fd.as_raw_fd(), events));
    }

    /// Waits for events, at most until then. What was wanted is forgotten.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> io::Result<Events> {
        self.tell();
        let timeout = until.map_or(EpollTimeout::NONE, round_up);
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(Events { events, count })
    }

    fn tell(&mut self) {
        let (epoll, wanted) = (self.epoll.0.as_fd(), &self.wanted);
        // First, as a number may be another descriptor's by now.
        self.known.retain(|known| {
            let stays = wanted.contains(known);
            if !stays {
                holdfast_sys::fd::unregister(epoll, known.1);
            }
            stays
        });
        for entry in wanted {
            if !self.known.contains(entry) {
                let (token, number, events) = *entry;
                let done = holdfast_sys::fd::register(epoll, number, events, token);
                // The next time it is tried again.
                if report::warn_of("epoll", done).is_some() {
                    self.known.push(*entry);
                }
            }
        }
        self.wanted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_token_comes_back_from_its_number() {
        for token in Token::OWN.into_iter().chain([Token::Client(0), Token::Client(7)]) {
            assert_eq!(Token::of(token.number()), token);
        }
    }

    /// A descriptor that is closed, and whose number another one has by then, is registered anew.
    #[test]
    fn only_what_is_wanted_is_waited_for_whoever_has_its_number() {
        let mut watch = Watch::new().unwrap();
        let now = Some(Instant::now());
        for round in 0..4 {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(b"x").unwrap();
            let reader = OwnedFd::from(reader);
            let token = Token::Client(round);
            watch.want(token, reader.as_fd(), PollFlags::POLLIN);
            let events = watch.wait(now).unwrap();
            assert_eq!(events.iter().next(), Some((token, PollFlags::POLLIN)));
            assert!(!watch.wait(now).unwrap().has(token), "it was not wanted again");
            watch.want(token, reader.as_fd(), PollFlags::POLLIN);
            assert!(watch.wait(now).unwrap().has(token));
        }
    }
}
