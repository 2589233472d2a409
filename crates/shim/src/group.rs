//! The shim of many processes: a seat for each.
//!
//! It starts none of them itself. For each start it has a shim of that process's own, its child,
//! which hands the process over and ends; so a start that fails takes nothing along but what it has
//! begun, and the process becomes ours, as we are the nearest subreaper above it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use holdfast_state::legacy::{self, MESSAGE_LIMIT};
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{Termination, fd_passing, kernel};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{Shutdown, shutdown};

use crate::args::{self, Args};
use crate::exit::{Exit, reap};
use crate::home::Home;
use crate::interest::{Ready, Wait};
use crate::legacy::Legacy;
use crate::log::{self, log};
use crate::output::Scratch;
use crate::seat::{Phase, REST, Seat, round_up};
use crate::setup;

/// How many descriptors a process may need that is yet to be seated.
const FILES_OF_A_SEAT: u64 = 16;
/// Descriptors of our own.
const OWN_FILES: u64 = 32;
/// How many events are taken from the kernel at once.
const EVENTS: usize = 64;
/// How many of the lowest bits of what the kernel tells say what it is of a seat that is ready.
const INDEX_BITS: u32 = 3;
/// What is told of the group itself; the keys of seats are above it.
const OWN: u64 = 0;

const _: () = assert!(Wait::ALL.len() <= 1 << INDEX_BITS);

pub(crate) struct Group {
    /// Where supervisors ask.
    inbox: OwnedFd,
    /// They are told to look for another group.
    closed: bool,
    /// Where those who have started a process hand it over, and the end that they get.
    arrivals: UnixDatagram,
    departures: UnixDatagram,
    signals: SignalFd,
    epoll: Epoll,
    scratch: Rc<Scratch>,
    places: BTreeMap<u64, Place>,
    last_key: u64,
    /// Who has which seat, of the processes that are our children or are about to be.
    children: HashMap<i32, u64>,
    /// The seats of those that are about to be.
    arriving: Vec<u64>,
    /// The shims that are starting a process, and have not handed it over.
    starters: HashSet<i32>,
    /// Children that have lost their seat by an error and wait for another.
    seatless: HashMap<i32, Seatless>,
    timers: BTreeSet<(Instant, u64)>,
    /// When to give back memory.
    rest: Option<Instant>,
    /// How many descriptors all seats may come to need, and how many there can be.
    files: u64,
    most_files: u64,
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

impl Group {
    /// Detaches. The socket where supervisors ask is our standard input, and has the first request
    /// in it already: without any process a group ends.
    pub(crate) fn begin() -> io::Result<Self> {
        let inbox = holdfast_sys::fd::standard()[0].try_clone_to_owned()?;
        setup::set_nonblocking(&inbox)?;
        let signals = setup::detach()?;
        setup::without_standard_io()?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let (arrivals, departures) = UnixDatagram::pair()?;
        arrivals.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let own = EpollEvent::new(EpollFlags::EPOLLIN, OWN);
        epoll.add(&inbox, own)?;
        epoll.add(&arrivals, own)?;
        epoll.add(&signals, own)?;
        Ok(Self {
            inbox,
            closed: false,
            arrivals,
            departures,
            signals,
            epoll,
            scratch: Rc::new(Scratch::new()?),
            places: BTreeMap::new(),
            last_key: OWN,
            children: HashMap::new(),
            arriving: Vec::new(),
            starters: HashSet::new(),
            seatless: HashMap::new(),
            timers: BTreeSet::new(),
            rest: None,
            files: OWN_FILES,
            most_files: hard,
        })
    }

    pub(crate) fn run(mut self) -> io::Result<u8> {
        self.take_messages()?;
        while !self.is_empty() || !self.is_closed()? {
            for (key, ready) in self.wait()? {
                self.look_after(key, ready);
            }
            self.heed_timers();
            self.heed_signals()?;
            self.take_messages()?;
            self.look_at_children()?;
        }
        Ok(0)
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty() && self.starters.is_empty() && self.seatless.is_empty()
    }

    /// Takes no more requests, so that a supervisor begins another group. `false` if one had come
    /// before that: then it goes on with what it has.
    fn is_closed(&mut self) -> io::Result<bool> {
        if !self.closed {
            self.closed = true;
            shutdown(self.inbox.as_raw_fd(), Shutdown::Read)?;
            // There is always something to be read from a socket that is shut.
            self.epoll.delete(&self.inbox)?;
            self.take_messages()?;
        }
        Ok(self.is_empty())
    }

    /// Waits, and returns what is ready of which seats.
    fn wait(&self) -> io::Result<Vec<(u64, Ready)>> {
        let first = self.timers.first().map(|(due, _)| *due);
        let seatless = self.seatless.values().filter_map(|seatless| seatless.exit.as_ref()?.due());
        let due = first.into_iter().chain(self.rest).chain(seatless).min();
        let timeout = due.map_or(EpollTimeout::NONE, round_up);
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut ready: Vec<(u64, Ready)> = Vec::new();
        for event in &events[..count] {
            let key = event.data() >> INDEX_BITS;
            let index = usize::try_from(event.data() & ((1 << INDEX_BITS) - 1)).unwrap_or_default();
            if key == OWN {
                continue;
            }
            // At once, so that one seat's events keep their order.
            let place = ready.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
                ready.push((key, Ready::default()));
                ready.len() - 1
            });
            ready[place].1.set(index);
        }
        Ok(ready)
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
        // Once it is reaped, its number may be another's.
        if matches!(&place.seat.phase, Phase::Exited { exit } if exit.is_settled())
            && let Some(pid) = place.child.take()
        {
            self.children.remove(&pid);
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

    fn remove(&mut self, key: u64) -> Option<Place> {
        let mut place = self.places.remove(&key)?;
        place.unregister(&self.epoll);
        if let Some(timer) = place.timer {
            self.timers.remove(&(timer, key));
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
            self.children.remove(&pid);
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

    fn heed_signals(&mut self) -> io::Result<()> {
        if setup::was_asked_to_end(&self.signals)? {
            for key in self.places.keys().copied().collect::<Vec<_>>() {
                if let Some(place) = self.places.get_mut(&key) {
                    place.seat.cancel();
                }
                self.settle(key);
            }
        }
        Ok(())
    }

    /// What supervisors ask, and what those hand over who have started a process.
    fn take_messages(&mut self) -> io::Result<()> {
        loop {
            let next = match receive(&self.inbox)? {
                None => receive(&self.arrivals)?,
                request => request,
            };
            let Some((message, fds)) = next else { return Ok(()) };
            self.take(&message, fds);
        }
    }

    /// Starts a process, or takes one over.
    fn take(&mut self, message: &[u8], fds: Vec<OwnedFd>) {
        let taken = Legacy::of_message(message, fds).and_then(|(legacy, words)| {
            let words = legacy::words(words);
            let args = args::parse(words.clone()).map_err(io::Error::other)?;
            match legacy.process {
                Some(_) => self.seat(&args, legacy),
                None => self.start(words, legacy),
            }
        });
        // Who has asked sees the exit FIFO close.
        if let Err(error) = taken {
            log("error", &error.to_string());
        }
    }

    /// Has a shim start a process.
    fn start<'a>(
        &mut self,
        words: impl Iterator<Item = &'a OsStr>,
        legacy: Legacy,
    ) -> io::Result<()> {
        let (Some(exit), Some(log)) = (legacy.exit, legacy.log) else {
            return Err(io::Error::other("a start without exit FIFO or log"));
        };
        let mut log = File::from(log);
        match self.spawn(words, &exit, &log) {
            Ok(pid) => _ = self.starters.insert(pid),
            // It reads there why its start came to nothing.
            Err(error) => {
                log.write_all(holdfast_state::log::line("error", &error.to_string()).as_bytes())?;
            }
        }
        Ok(())
    }

    /// Refuses one more, if all that we have may need nearly all the files that there can be.
    fn make_room(&self) -> io::Result<()> {
        let files = self.files + (self.starters.len() as u64 + 1) * FILES_OF_A_SEAT;
        if files <= self.most_files {
            return Ok(());
        }
        let (count, most) = (self.places.len(), self.most_files);
        Err(io::Error::other(format!(
            "the group is full: {count} processes may need nearly all of the {most} files \
             that it may have open; use another group, or raise LimitNOFILE= or ulimit -Hn"
        )))
    }

    fn spawn<'a>(
        &self,
        words: impl Iterator<Item = &'a OsStr>,
        exit: &File,
        log: &File,
    ) -> io::Result<i32> {
        self.make_room()?;
        // The very program that we are, whatever has its name by now.
        let child = Command::new("/proc/self/exe")
            .arg0("holdfast-shim")
            .arg(legacy::SEAT_OPTION)
            .args(args::identifies().then_some(legacy::IDENTIFY_OPTION))
            .args(words)
            .stdin(OwnedFd::from(self.departures.try_clone()?))
            .stdout(exit.try_clone()?)
            .stderr(log.try_clone()?)
            .spawn()?;
        Ok(child.id().cast_signed())
    }

    /// Takes a process over.
    fn seat(&mut self, args: &Args<'_>, mut legacy: Legacy) -> io::Result<()> {
        match args.moved {
            // Room was made for it when its start was asked for.
            Some(starter) => _ = self.starters.remove(&starter),
            None => self.make_room()?,
        }
        let exit = legacy.exit.take().ok_or_else(|| io::Error::other("no exit FIFO was sent"))?;
        let seat = Seat::adopt(args, exit, legacy, Some(self.scratch.clone()))?;
        self.last_key += 1;
        let key = self.last_key;
        let child = match seat.phase {
            Phase::Running { pid } | Phase::Arriving { pid } => Some(pid),
            _ => None,
        };
        if let Some(pid) = child {
            self.seatless.remove(&pid);
            self.children.insert(pid, key);
        }
        if matches!(seat.phase, Phase::Arriving { .. }) {
            self.arriving.push(key);
        }
        let files = seat.most_files();
        self.files += files;
        let registered = [None; Wait::ALL.len()];
        self.places.insert(key, Place { seat, child, files, registered, timer: None });
        self.settle(key);
        Ok(())
    }

    /// Asks what has become of our children.
    fn look_at_children(&mut self) -> io::Result<()> {
        self.look_who_arrived();
        while let Some((pid, end)) = wait::peek_any()? {
            if !self.child_ended(pid, end)? {
                // The status of that one is not on disk, and others may stand behind it.
                return self.look_at_each_child();
            }
        }
        Ok(())
    }

    fn look_at_each_child(&mut self) -> io::Result<()> {
        let starters = self.starters.iter();
        for pid in self.children.keys().chain(starters).copied().collect::<Vec<_>>() {
            if let Ok(Some((pid, end))) = wait::peek(Child::Pid(pid)) {
                self.child_ended(pid, end)?;
            }
        }
        Ok(())
    }

    fn look_who_arrived(&mut self) {
        let places = &mut self.places;
        self.arriving.retain(|key| {
            let Some(place) = places.get_mut(key) else { return false };
            place.seat.look_whether_arrived();
            matches!(place.seat.phase, Phase::Arriving { .. })
        });
    }

    /// `false` if the zombie has to stay: as long as its status is not on disk it is the record.
    fn child_ended(&mut self, pid: i32, end: Termination) -> io::Result<bool> {
        if !self.children.contains_key(&pid) {
            // Who handed it over had done so before it could become ours.
            self.take_messages()?;
            self.look_who_arrived();
        }
        if let Some(key) = self.children.get(&pid).copied()
            && let Some(place) = self.places.get_mut(&key)
        {
            log::turn_to(Some(&place.seat.home));
            let is_gone = place.seat.child_ended(pid, end);
            self.settle(key);
            log::turn_to(None);
            return Ok(is_gone);
        }
        if let Some(seatless) = self.seatless.get_mut(&pid) {
            let exit = || Exit::of_child(pid, end, kernel::tells_before_reap());
            seatless.exit.get_or_insert_with(exit);
            let is_settled = seatless.is_settled();
            if is_settled {
                self.seatless.remove(&pid);
            }
            return Ok(is_settled);
        }
        self.starters.remove(&pid);
        reap(pid);
        Ok(true)
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

/// A message and what came along with it, if there is one.
fn receive(socket: &impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let length = match fd_passing::next_length(socket) {
        Ok(length) => length.min(MESSAGE_LIMIT),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; length];
    match fd_passing::receive(socket, &mut message) {
        // Nothing, and nothing will ever come.
        Ok((0, fds)) if fds.is_empty() => Ok(None),
        Ok((length, fds)) => {
            message.truncate(length);
            Ok(Some((message, fds)))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        // The exit FIFO was in the lost message, so it closes, and the supervisor sees that.
        Err(error) if error.raw_os_error() == Some(Errno::EMFILE as i32) => {
            log("error", &format!("a message is lost: {error}"));
            Ok(Some((Vec::new(), Vec::new())))
        }
        Err(error) => Err(error),
    }
}
