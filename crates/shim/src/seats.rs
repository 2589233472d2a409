//! The seats of a shim: what the kernel and the timers know of each, and which child is whose.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use holdfast_sys::{Termination, kernel};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::exit::Exit;
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::log::{self, log};
use crate::seat::{Phase, REST, Seat, round_up};

/// How many events are taken from the kernel at once.
const EVENTS: usize = 64;
/// How many of the lowest bits of what the kernel tells say what it is of a seat that is ready.
const INDEX_BITS: u32 = 3;
/// The key of what is no seat's. Those of seats are above it.
const OWN: u64 = 0;

const _: () = assert!(Wait::ALL.len() <= 1 << INDEX_BITS);

/// What there is to wait for that is no seat's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Own {
    Signals,
    Messages,
}

/// What of that is ready.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OwnReady {
    pub(crate) signals: bool,
    pub(crate) messages: bool,
}

pub(crate) struct Seats {
    epoll: Epoll,
    /// Boxed, as the map has room for eleven from the first on.
    places: BTreeMap<u64, Box<Place>>,
    last_key: u64,
    /// Who has which seat, of the processes that are our children or are about to be.
    children: BTreeMap<i32, u64>,
    /// The seats of those that are about to be.
    arriving: Vec<u64>,
    /// Children that have lost their seat by an error and wait for another.
    seatless: BTreeMap<i32, Seatless>,
    timers: BTreeSet<(Instant, u64)>,
    /// When to give back memory.
    rest: Option<Instant>,
    /// How many descriptors all seats may come to need.
    files: u64,
}

/// A seat, and what of it the kernel and the timers know.
struct Place {
    seat: Seat,
    /// The process, as long as it is our child or about to be.
    child: Option<i32>,
    /// How many descriptors it may come to need.
    files: u64,
    registered: [Option<(RawFd, PollFlags)>; Wait::ALL.len()],
    timer: Option<Instant>,
}

struct Seatless {
    home: Home,
    /// There once it has ended.
    exit: Option<Exit>,
}

impl Seatless {
    /// Whether it has ended, and nothing of that is left to do.
    fn is_settled(&mut self) -> bool {
        let Some(exit) = &mut self.exit else { return false };
        log::turn_to(Some(&self.home));
        exit.settle(&self.home, |_| {});
        log::turn_to(None);
        exit.is_settled()
    }
}

impl Seats {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            places: BTreeMap::new(),
            last_key: OWN,
            children: BTreeMap::new(),
            arriving: Vec::new(),
            seatless: BTreeMap::new(),
            timers: BTreeSet::new(),
            rest: None,
            files: 0,
        })
    }

    /// Waits for this as well.
    pub(crate) fn watch(&self, fd: impl AsFd, own: Own) -> io::Result<()> {
        let data = OWN << INDEX_BITS | own as u64;
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, data))?)
    }

    /// Waits for that no longer.
    pub(crate) fn unwatch(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is nobody to look after.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty() && self.seatless.is_empty()
    }

    /// How many descriptors all may come to need.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// The seat of a shim that has one only.
    pub(crate) fn first(&mut self) -> Option<&mut Seat> {
        Some(&mut self.places.values_mut().next()?.seat)
    }

    /// Sees to what has changed at that one.
    pub(crate) fn settle_first(&mut self) {
        if let Some(key) = self.places.keys().next().copied() {
            self.settle(key);
        }
    }

    /// Looks after one more.
    pub(crate) fn add(&mut self, seat: Seat) {
        self.last_key += 1;
        let key = self.last_key;
        let files = seat.most_files();
        self.files += files;
        let registered = [None; Wait::ALL.len()];
        let place = Place { seat, child: None, files, registered, timer: None };
        self.places.insert(key, Box::new(place));
        self.settle(key);
    }

    /// Waits, and looks after the seats of which something is ready, or whose time has come.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> io::Result<OwnReady> {
        let first = self.timers.first().map(|(due, _)| *due);
        let seatless = self.seatless.values().filter_map(|seatless| seatless.exit.as_ref()?.due());
        let due = [first, self.rest, until].into_iter().flatten().chain(seatless).min();
        let timeout = due.map_or(EpollTimeout::NONE, round_up);
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let events = &events[..count];
        let key_of = |event: &EpollEvent| event.data() >> INDEX_BITS;
        let index_of = |event: &EpollEvent| event.data() & ((1 << INDEX_BITS) - 1);
        let mut own = OwnReady::default();
        for (at, event) in events.iter().enumerate() {
            let key = key_of(event);
            if key == OWN {
                own.signals |= index_of(event) == Own::Signals as u64;
                own.messages |= index_of(event) == Own::Messages as u64;
            } else if events[..at].iter().all(|earlier| key_of(earlier) != key) {
                // At once, so that one seat's events keep their order.
                let mut ready = Ready::default();
                for event in events[at..].iter().filter(|event| key_of(event) == key) {
                    ready.set(usize::try_from(index_of(event)).unwrap_or_default());
                }
                self.look_after(key, ready);
            }
        }
        self.heed_timers();
        Ok(own)
    }

    fn look_after(&mut self, key: u64, ready: Ready) {
        let Some(place) = self.places.get_mut(&key) else { return };
        log::turn_to(Some(&place.seat.home));
        if place.seat.look_after(ready) {
            self.rest_later();
        }
        self.settle(key);
        log::turn_to(None);
    }

    /// Tells the kernel and the timers what a seat waits for now; one that is done goes.
    fn settle(&mut self, key: u64) {
        let Some(place) = self.places.get_mut(&key) else { return };
        let child = place.seat.child();
        if child != place.child {
            if let Some(pid) = std::mem::replace(&mut place.child, child) {
                self.children.remove(&pid);
            }
            if let Some(pid) = child {
                self.seatless.remove(&pid);
                self.children.insert(pid, key);
            }
            if matches!(place.seat.phase, Phase::Arriving { .. }) {
                self.arriving.push(key);
            }
        }
        if place.seat.is_over() {
            self.remove(key);
            return;
        }
        if let Err(error) = place.register(&self.epoll, key) {
            log("error", &format!("epoll: {error}"));
            return self.unseat(key);
        }
        place.seat.stdio.close_ended();
        // A timer that goes off too early is set again.
        if let Some(due) = place.seat.due()
            && place.timer.is_none_or(|timer| due < timer)
        {
            if let Some(timer) = place.timer.replace(due) {
                self.timers.remove(&(timer, key));
            }
            self.timers.insert((due, key));
        }
    }

    fn remove(&mut self, key: u64) -> Option<Box<Place>> {
        let mut place = self.places.remove(&key)?;
        place.unregister(&self.epoll);
        if let Some(timer) = place.timer {
            self.timers.remove(&(timer, key));
        }
        if let Some(pid) = place.child {
            self.children.remove(&pid);
        }
        self.files -= place.files;
        self.rest_later();
        Some(place)
    }

    /// Lets the supervisor know by a closed exit FIFO that a seat is lost, so that it has the process
    /// adopted; which may be by us again.
    fn unseat(&mut self, key: u64) {
        let Some(place) = self.remove(key) else { return };
        if let Some(pid) = place.child {
            let exit = match place.seat.phase {
                Phase::Exited { exit } => Some(exit),
                _ => None,
            };
            self.seatless.insert(pid, Seatless { home: place.seat.home, exit });
        }
    }

    fn rest_later(&mut self) {
        self.rest.get_or_insert_with(|| Instant::now() + REST);
    }

    fn heed_timers(&mut self) {
        let now = Instant::now();
        while let Some((due, key)) = self.timers.first().copied()
            && due <= now
        {
            self.timers.pop_first();
            if let Some(place) = self.places.get_mut(&key) {
                place.timer = None;
            }
            self.look_after(key, Ready::default());
        }
        self.seatless.retain(|_, seatless| !seatless.is_settled());
        if self.rest.is_some_and(|rest| rest <= now) {
            self.rest = None;
            holdfast_sys::memory::trim();
        }
    }

    /// What is still on its way to readers is not waited for any more.
    pub(crate) fn cancel(&mut self) {
        for key in self.places.keys().copied().collect::<Vec<_>>() {
            if let Some(place) = self.places.get_mut(&key) {
                place.seat.cancel();
            }
            self.settle(key);
        }
    }

    /// Whose children some processes were has ended, so they may be ours by now.
    pub(crate) fn look_who_arrived(&mut self) {
        let places = &mut self.places;
        self.arriving.retain(|key| {
            let Some(place) = places.get_mut(key) else { return false };
            place.seat.look_whether_arrived();
            matches!(place.seat.phase, Phase::Arriving { .. })
        });
    }

    /// Whether a child has a seat here.
    pub(crate) fn has_child(&self, pid: i32) -> bool {
        self.children.contains_key(&pid)
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = i32> {
        self.children.keys().copied()
    }

    /// A child is a zombie. `None` if it is nobody's here, `false` if it has to stay: as long as its status is
    /// not on disk it is the record.
    pub(crate) fn child_ended(&mut self, pid: i32, end: Termination) -> Option<bool> {
        if let Some(key) = self.children.get(&pid).copied()
            && let Some(place) = self.places.get_mut(&key)
        {
            log::turn_to(Some(&place.seat.home));
            let is_gone = place.seat.child_ended(pid, end);
            self.settle(key);
            log::turn_to(None);
            return Some(is_gone);
        }
        let seatless = self.seatless.get_mut(&pid)?;
        let exit = || Exit::of_child(pid, end, kernel::tells_before_reap());
        seatless.exit.get_or_insert_with(exit);
        let is_settled = seatless.is_settled();
        if is_settled {
            self.seatless.remove(&pid);
        }
        Some(is_settled)
    }
}

impl Place {
    fn register(&mut self, epoll: &Epoll, key: u64) -> io::Result<()> {
        for (index, (wait, registered)) in
            Wait::ALL.into_iter().zip(&mut self.registered).enumerate()
        {
            let wait = self.seat.interest(wait);
            let wanted = wait.map(|(fd, events)| (fd.as_raw_fd(), events));
            if wanted == *registered {
                continue;
            }
            if let Some((number, _)) = registered.take() {
                holdfast_sys::fd::unregister(epoll.0.as_fd(), number);
            }
            if let Some((fd, events)) = wait {
                let events = EpollFlags::from_bits_truncate(i32::from(events.bits()));
                let data = key << INDEX_BITS | index as u64;
                epoll.add(fd, EpollEvent::new(events, data))?;
                *registered = wanted;
            }
        }
        Ok(())
    }

    fn unregister(&mut self, epoll: &Epoll) {
        for (number, _) in self.registered.iter_mut().filter_map(Option::take) {
            holdfast_sys::fd::unregister(epoll.0.as_fd(), number);
        }
    }
}
