//! The seats of a shim: what the kernel and the timers know of each, and which child is whose.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use holdfast_sys::{Termination, kernel};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::exit::Exit;
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::log::{self, log};
use crate::pages;
use crate::seat::{Phase, REST, Seat, round_up};

/// How many events are taken from the kernel at once.
const EVENTS: usize = 16;
/// How many of the lowest bits of what the kernel tells say what it is of a seat that is ready.
const INDEX_BITS: u32 = 3;
/// The key of what is no seat's.
const OWN: u64 = 0;
/// The lower bits of a key are the number of the seat's place plus one; the bits above them count the seats that
/// had the place before, so an event of a seat that has gone is not taken for one of its successor.
const PLACE_BITS: u32 = 32;

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
    places: Places,
    /// The places that nobody has.
    free: Vec<usize>,
    /// The key of the seat of each process that is our child or is about to be, sorted by pid.
    children: Vec<(i32, u64)>,
    /// The seats of those that are about to be.
    arriving: Vec<u64>,
    /// Children that have lost their seat by an error and wait for another.
    seatless: BTreeMap<i32, Seatless>,
    /// When to look after whom. One that is not the timer of its seat any more means nothing.
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    /// When to give back memory.
    rest: Option<Instant>,
    /// How many descriptors all seats may come to need.
    files: u64,
    /// Whether each has a log of its own, and our standard error is nobody's.
    are_many: bool,
}

/// Places for seats, of which the first, the one of a shim of one process, is on the stack: on the heap it would
/// take another page.
#[derive(Default)]
struct Places {
    first: Option<Place>,
    others: Vec<Place>,
}

impl Places {
    fn push(&mut self, place: Place) {
        match self.first {
            None => self.first = Some(place),
            Some(_) => self.others.push(place),
        }
    }

    fn get_mut(&mut self, index: usize) -> Option<&mut Place> {
        match index.checked_sub(1) {
            None => self.first.as_mut(),
            Some(index) => self.others.get_mut(index),
        }
    }

    fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.others.len()
    }
}

/// A place for a seat.
struct Place {
    key: u64,
    seated: Option<Seated>,
}

/// A seat, and what of it the kernel and the timers know.
struct Seated {
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
    /// For one process, or for many.
    pub(crate) fn new(are_many: bool) -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            places: Places::default(),
            free: Vec::new(),
            children: Vec::new(),
            arriving: Vec::new(),
            seatless: BTreeMap::new(),
            timers: BinaryHeap::new(),
            rest: None,
            files: 0,
            are_many,
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
        self.places.len() - self.free.len()
    }

    /// Whether there is nobody to look after.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0 && self.seatless.is_empty()
    }

    /// How many descriptors all may come to need.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// The seat of a shim that has one only.
    pub(crate) fn first(&mut self) -> Option<&mut Seat> {
        Some(&mut self.places.first.as_mut()?.seated.as_mut()?.seat)
    }

    /// Sees to what has changed at that one.
    pub(crate) fn settle_first(&mut self) {
        if let Some(key) = self.places.first.as_ref().map(|place| place.key) {
            self.settle(key);
        }
    }

    /// Looks after one more.
    pub(crate) fn add(&mut self, seat: Seat) {
        let files = seat.most_files();
        self.files += files;
        let registered = [None; Wait::ALL.len()];
        let seated = Some(Seated { seat, child: None, files, registered, timer: None });
        let free = self.free.pop();
        let key = match free.and_then(|index| self.places.get_mut(index)) {
            Some(place) => {
                place.key = place.key.wrapping_add(1 << PLACE_BITS) & (u64::MAX >> INDEX_BITS);
                place.seated = seated;
                place.key
            }
            None => {
                let key = self.places.len() as u64 + 1;
                self.places.push(Place { key, seated });
                key
            }
        };
        self.settle(key);
    }

    fn index_of(key: u64) -> usize {
        usize::try_from(key & ((1 << PLACE_BITS) - 1)).map_or(usize::MAX, |place| place - 1)
    }

    fn seated(&mut self, key: u64) -> Option<&mut Seated> {
        self.places.get_mut(Self::index_of(key)).filter(|place| place.key == key)?.seated.as_mut()
    }

    /// The process is our child, or about to be.
    fn enter_child(&mut self, pid: i32, key: u64) {
        match self.children.binary_search_by_key(&pid, |(pid, _)| *pid) {
            Ok(at) => self.children[at].1 = key,
            Err(at) => self.children.insert(at, (pid, key)),
        }
    }

    /// The process is reaped, or has lost its seat.
    fn strike_child(&mut self, pid: i32) {
        if let Ok(at) = self.children.binary_search_by_key(&pid, |(pid, _)| *pid) {
            self.children.remove(at);
        }
    }

    fn seat_of_child(&self, pid: i32) -> Option<u64> {
        let at = self.children.binary_search_by_key(&pid, |(pid, _)| *pid).ok()?;
        Some(self.children[at].1)
    }

    /// Has what is logged go to the log of this process.
    fn turn_to(&self, home: Option<&Home>) {
        if self.are_many {
            log::turn_to(home);
        }
    }

    /// Waits, and looks after the seats of which something is ready, or whose time has come.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> io::Result<OwnReady> {
        let first = self.timers.peek().map(|Reverse((due, _))| *due);
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
                pages::apart(|| self.look_after(key, ready));
            }
        }
        pages::apart(|| self.heed_timers());
        Ok(own)
    }

    /// Acts on a seat, with its log for what is logged meanwhile, and sees to what has changed there.
    fn at<T>(&mut self, key: u64, act: impl FnOnce(&mut Seat) -> T) -> Option<T> {
        let home = self.seated(key)?.seat.home.clone();
        self.turn_to(Some(&home));
        let done = self.seated(key).map(|seated| act(&mut seated.seat));
        self.settle(key);
        self.turn_to(None);
        done
    }

    fn look_after(&mut self, key: u64, ready: Ready) {
        if self.at(key, |seat| seat.look_after(ready)) == Some(true) {
            self.rest_later();
        }
    }

    /// Tells the kernel and the timers what a seat waits for now; one that is done goes.
    fn settle(&mut self, key: u64) {
        let Some(seated) = self.seated(key) else { return };
        let child = seated.seat.child();
        if child != seated.child {
            let before = std::mem::replace(&mut seated.child, child);
            let is_arriving = matches!(seated.seat.phase, Phase::Arriving { .. });
            if let Some(pid) = before {
                self.strike_child(pid);
            }
            if let Some(pid) = child {
                self.seatless.remove(&pid);
                self.enter_child(pid, key);
            }
            if is_arriving {
                self.arriving.push(key);
            }
        }
        let Some(place) = self.places.get_mut(Self::index_of(key)) else { return };
        let Some(seated) = &mut place.seated else { return };
        if seated.seat.is_over() {
            self.remove(key);
            return;
        }
        if let Err(error) = seated.register(&self.epoll, key) {
            log("error", &format!("epoll: {error}"));
            return self.unseat(key);
        }
        seated.seat.stdio.close_ended();
        // A timer that goes off too early is set again.
        if let Some(due) = seated.seat.due()
            && seated.timer.is_none_or(|timer| due < timer)
        {
            seated.timer = Some(due);
            self.timers.push(Reverse((due, key)));
        }
    }

    fn remove(&mut self, key: u64) -> Option<Seated> {
        let index = Self::index_of(key);
        let mut seated = self.places.get_mut(index)?.seated.take()?;
        self.free.push(index);
        seated.unregister(&self.epoll);
        if let Some(pid) = seated.child {
            self.strike_child(pid);
        }
        self.files -= seated.files;
        self.rest_later();
        Some(seated)
    }

    /// Lets the supervisor know by a closed exit FIFO that a seat is lost, so that it has the process
    /// adopted; which may be by us again.
    fn unseat(&mut self, key: u64) {
        let Some(seated) = self.remove(key) else { return };
        if let Some(pid) = seated.child {
            let exit = match seated.seat.phase {
                Phase::Exited { exit } => Some(exit),
                _ => None,
            };
            self.seatless.insert(pid, Seatless { home: seated.seat.home, exit });
        }
    }

    /// Many are likely to come to rest soon after each other.
    fn rest_later(&mut self) {
        let pause = if self.are_many { REST } else { Duration::ZERO };
        self.rest.get_or_insert_with(|| Instant::now() + pause);
    }

    fn heed_timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((due, key))) = self.timers.peek().copied()
            && due <= now
        {
            self.timers.pop();
            if let Some(seated) = self.seated(key)
                && seated.timer == Some(due)
            {
                seated.timer = None;
                self.look_after(key, Ready::default());
            }
        }
        self.seatless.retain(|_, seatless| !seatless.is_settled());
    }

    /// Gives back memory, if it is time for that. What lies on the stack below the caller is given back too.
    #[inline(always)]
    pub(crate) fn rest(&mut self) {
        if self.rest.is_some_and(|rest| rest <= Instant::now()) {
            self.rest = None;
            pages::give_back();
        }
    }

    /// What is still on its way to readers is not waited for any more.
    pub(crate) fn cancel(&mut self) {
        for index in 0..self.places.len() {
            let Some(place) = self.places.get_mut(index) else { continue };
            let key = place.key;
            if let Some(seated) = &mut place.seated {
                seated.seat.cancel();
            }
            self.settle(key);
        }
    }

    /// Whose children some processes were has ended, so they may be ours by now.
    pub(crate) fn look_who_arrived(&mut self) {
        let mut arriving = std::mem::take(&mut self.arriving);
        arriving.retain(|key| {
            let Some(seated) = self.seated(*key) else { return false };
            seated.seat.look_whether_arrived();
            matches!(seated.seat.phase, Phase::Arriving { .. })
        });
        self.arriving = arriving;
    }

    /// Whether a child has a seat here.
    pub(crate) fn has_child(&self, pid: i32) -> bool {
        self.seat_of_child(pid).is_some()
    }

    pub(crate) fn children(&self) -> impl Iterator<Item = i32> {
        self.children.iter().map(|(pid, _)| *pid)
    }

    /// A child is a zombie. `None` if it is nobody's here, `false` if it has to stay: as long as its status is
    /// not on disk it is the record.
    pub(crate) fn child_ended(&mut self, pid: i32, end: Termination) -> Option<bool> {
        if let Some(key) = self.seat_of_child(pid)
            && let Some(is_gone) = self.at(key, |seat| seat.child_ended(pid, end))
        {
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

impl Seated {
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
