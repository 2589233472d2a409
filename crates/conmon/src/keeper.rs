//! The keeper (`--keep SOCKET`): it holds copies of what monitors read and write, and has the container of a monitor
//! that has died taken over by an adopter: this same program.
//!
//! ```text
//! a monitor connects and registers ──▶ it hangs up ── it has cleared its deposit ──▶ forgotten
//!          ▲                                 │ it has not, and its process has ended
//!          └──────── the connection ◀──── an adopter is started
//! ```
//!
//! The keeper has three or four descriptors for each monitor. It reads a deposit only to start an adopter.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_shim::engine::{round_up, set_nonblocking, take_signals};
use holdfast_state::Directory;
use holdfast_state::handoff::FdName;
use holdfast_sys::wait::{self, Child};
use holdfast_sys::{PidFd, fd_passing, resource, spawn};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, getsockopt, listen, send, socket, sockopt,
};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use crate::FAILED;
use crate::bundle::{bind_in, named};
use crate::deposit::{self, Deposit, Deposits};
use crate::link::{ADOPTED, KEPT, REGISTER, ROOM, connect_to};
use crate::record::Record;
use crate::report;

/// The first descriptor that systemd passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;
/// The most connections that wait to be accepted: all monitors come at once when a keeper is replaced.
const BACKLOG: i32 = 4096;
/// How often the container of an adopter that dies before it has taken over is given to another. Each time the wait
/// is longer by this.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_secs(1);
/// How often it is waited for that somebody reaps a monitor, so that its pid is free, and how long at first. Each time
/// the wait is twice as long, up to the eighth: ten seconds in all, for a first process that is in no hurry. With another
/// pid, podman takes the monitor for dead, and gives up the container after 20.
const WAITS: u32 = 46;
const FREED: Duration = Duration::from_millis(1);
/// How long no connection is accepted when there are no descriptors for it.
const REST: Duration = Duration::from_secs(1);

const LISTENER: u64 = 0;
const SIGNALS: u64 = 1;

/// A monitor, or one that has died.
struct Kept {
    /// `None` if it has hung up.
    connection: Option<OwnedFd>,
    pid: i32,
    /// `None` if it had ended before this could be opened.
    process: Option<PidFd>,
    /// There once it has registered.
    deposits: Option<Deposits>,
    /// How many adopters were started in a row of which none has taken over.
    failures: u32,
    /// How often its pid was not free.
    waits: u32,
}

struct Keeper {
    epoll: Epoll,
    listener: UnixListener,
    signals: SignalFd,
    kept: HashMap<u64, Kept>,
    /// The number of the next one.
    next: u64,
    /// When to start an adopter for which one.
    later: Vec<(Instant, u64)>,
    /// Until when no connection is accepted.
    rests: Option<Instant>,
}

/// Keeps containers until a signal asks it to end.
///
/// # Errors
/// If it cannot begin, or wait.
pub(crate) fn run(path: &Path, inherited: Vec<OwnedFd>) -> io::Result<()> {
    let signals = take_signals()?;
    resource::raise_open_files()?;
    let listener = match passed_by_systemd(inherited) {
        Some(passed) => passed,
        None => named(path, bind(path))?,
    };
    set_nonblocking(&listener)?;
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, readable(LISTENER))?;
    epoll.add(&signals, readable(SIGNALS))?;
    let mut keeper = Keeper {
        epoll,
        listener: listener.into(),
        signals,
        kept: HashMap::new(),
        next: SIGNALS + 1,
        later: Vec::new(),
        rests: None,
    };
    keeper.serve()
}

fn readable(number: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, number)
}

/// Returns the socket that systemd has made, if it has started this process.
fn passed_by_systemd(inherited: Vec<OwnedFd>) -> Option<OwnedFd> {
    let is_ours =
        std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let is_it = |fd: &OwnedFd| is_ours && fd.as_raw_fd() == FIRST_PASSED;
    inherited.into_iter().find(is_it)
}

/// Makes the socket. One that is there is replaced if nobody answers.
fn bind(path: &Path) -> io::Result<OwnedFd> {
    match connect_to(path) {
        Ok(connection) if !is_of_the_dead(&connection) => {
            return Err(io::Error::other("another keeper has this socket"));
        }
        Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => {
            return Err(io::Error::other("another keeper has this socket, and is busy"));
        }
        Ok(_) | Err(_) => {}
    }
    let name = path.file_name().and_then(|name| name.to_str()).zip(path.parent());
    let (name, parent) = name.ok_or(io::ErrorKind::InvalidFilename)?;
    let dir = Directory::open(parent)?;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    // The socket gets its name last: a client that finds the name can connect.
    let new = format!("{name}.new");
    bind_in(&dir, &new, &listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    dir.rename(&new, name)?;
    Ok(listener)
}

/// Whether the process that had listened has ended. Its socket lives a little longer if an adopter that it has just
/// forked, and which is not yet another program, has a copy.
fn is_of_the_dead(connection: &OwnedFd) -> bool {
    let pid = getsockopt(connection, sockopt::PeerCredentials).map(|peer| peer.pid());
    match pid.map(PidFd::open) {
        Ok(Ok(process)) => !process.is_alive(),
        Ok(Err(error)) => error.raw_os_error() == Some(Errno::ESRCH as i32),
        Err(_) => false,
    }
}

impl Keeper {
    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let due = self.later.iter().map(|(when, _)| *when).chain(self.rests).min();
            let timeout = due.map_or(EpollTimeout::NONE, round_up);
            let count = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => 0,
                count => count?,
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept()?,
                    SIGNALS => {
                        if self.heed_signals() {
                            return Ok(());
                        }
                    }
                    number => self.look(number),
                }
            }
            self.keep_times()?;
        }
    }

    /// Reaps adopters. Returns whether this process is to end.
    fn heed_signals(&self) -> bool {
        let mut ends = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let signal = Signal::try_from(signal.ssi_signo.cast_signed());
            ends |= matches!(signal, Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT));
        }
        while let Ok(Some((pid, _))) = wait::peek_any() {
            let _ = wait::reap(Child::Pid(pid));
        }
        ends
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let connection = match self.listener.accept() {
                Ok((connection, _)) => OwnedFd::from(connection),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::Interrupted => continue,
                    _ => {
                        report::error(&format!("a monitor cannot be accepted: {error}"));
                        self.epoll.delete(&self.listener)?;
                        self.rests = Some(Instant::now() + REST);
                        return Ok(());
                    }
                },
            };
            if let Err(error) = self.add(connection) {
                report::error(&format!("a monitor is not accepted: {error}"));
            }
        }
    }

    fn add(&mut self, connection: OwnedFd) -> io::Result<()> {
        let peer = getsockopt(&connection, sockopt::PeerCredentials)?;
        if peer.uid() != geteuid().as_raw() {
            return Err(io::Error::other(format!(
                "process {} is user {}'s",
                peer.pid(),
                peer.uid()
            )));
        }
        set_nonblocking(&connection)?;
        let process = PidFd::open(peer.pid()).ok();
        // Once it has hung up, its number may be another process's.
        let process = process.filter(|_| !has_hung_up(&connection));
        self.epoll.add(&connection, readable(self.next))?;
        let (connection, pid) = (Some(connection), peer.pid());
        let kept = Kept { connection, pid, process, deposits: None, failures: 0, waits: 0 };
        self.kept.insert(self.next, kept);
        self.next += 1;
        Ok(())
    }

    /// Handles messages of a monitor, that it hangs up, or the end of its process.
    fn look(&mut self, number: u64) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        while let Some(connection) = &kept.connection {
            let mut room = [0; ROOM];
            match fd_passing::receive(connection, &mut room) {
                Ok((0, _)) => return self.hung_up(number),
                Ok((length, fds)) => {
                    if let Err(error) = kept.message(&room[..length], fds) {
                        report::error(&format!("a monitor is not kept: {error}"));
                        self.kept.remove(&number);
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It has ended without reading our answer. What it has sent comes after this.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
                Err(error) => {
                    report::error(&format!("a monitor is not kept: {error}"));
                    return self.hung_up(number);
                }
            }
        }
        if let Some(process) = &kept.process {
            let _ = self.epoll.delete(process);
        }
        // It was reaped, and its pid is free in a moment, if it is not yet.
        kept.waits = kept.waits.min(1);
        self.adopt(number);
    }

    /// Takes over at once, or when its process has ended, unless there is nothing to take over.
    fn hung_up(&mut self, number: u64) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        if let Some(connection) = kept.connection.take() {
            let _ = self.epoll.delete(&connection);
        }
        // What is cleared was brought to its end.
        if kept.deposits.as_ref().is_none_or(|deposits| deposits.container.is_empty()) {
            self.kept.remove(&number);
            return;
        }
        if let Some(process) = kept.process.as_ref().filter(|process| process.is_alive())
            && self.epoll.add(process, readable(number)).is_ok()
        {
            return;
        }
        self.adopt(number);
    }

    /// Has a container taken over, now or later.
    fn adopt(&mut self, number: u64) {
        let Some(kept) = self.kept.get(&number) else { return };
        match kept.failures {
            0 => self.start_adopter(number),
            TRIES.. => {
                report::error(&format!("a container is given up: {TRIES} adopters have failed"));
                self.kept.remove(&number);
            }
            failures => self.later.push((Instant::now() + WAIT * failures, number)),
        }
    }

    fn start_adopter(&mut self, number: u64) {
        let Some(kept) = self.kept.get_mut(&number) else { return };
        let Some(deposits) = kept.deposits.as_ref().filter(|_| kept.connection.is_none()) else {
            return;
        };
        let pid = Some(kept.pid).filter(|_| kept.waits < WAITS);
        let started = Adopter::start(deposits, pid).and_then(|adopter| {
            self.epoll.add(&adopter.connection, readable(number))?;
            Ok(adopter)
        });
        if let Err(error) = &started
            && error.raw_os_error() == Some(Errno::EEXIST as i32)
        {
            // That it was reaped shows without being asked for (Linux 6.15+).
            if let Some(process) = kept.process.as_ref().filter(|_| kept.waits == 0) {
                let _ = self.epoll.add(process, EpollEvent::new(EpollFlags::empty(), number));
            }
            let wait = FREED * (1 << kept.waits.min(8));
            kept.waits += 1;
            self.later.push((Instant::now() + wait, number));
            return;
        }
        kept.waits = 0;
        kept.failures += 1;
        match started {
            Ok(Adopter { connection, pid, process }) => {
                if let Some(before) = kept.process.take() {
                    let _ = self.epoll.delete(before);
                }
                self.later.retain(|(_, other)| *other != number);
                kept.connection = Some(connection);
                kept.pid = pid;
                kept.process = Some(process);
            }
            Err(error) => {
                report::error(&format!("an adopter cannot be started: {error}"));
                self.adopt(number);
            }
        }
    }

    /// Does what is due.
    fn keep_times(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.rests.is_some_and(|rests| rests <= now) {
            self.rests = None;
            self.epoll.add(&self.listener, readable(LISTENER))?;
        }
        let due: Vec<_> = self.later.extract_if(.., |(when, _)| *when <= now).collect();
        due.into_iter().for_each(|(_, number)| self.start_adopter(number));
        Ok(())
    }
}

impl Kept {
    fn message(&mut self, bytes: &[u8], fds: Vec<OwnedFd>) -> io::Result<()> {
        if bytes == ADOPTED {
            self.failures = 0;
            return Ok(());
        }
        self.deposits = Some(registered(bytes, fds)?);
        if let Some(connection) = &self.connection {
            let _ = answer(connection);
        }
        Ok(())
    }
}

fn has_hung_up(connection: &OwnedFd) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut set = [PollFd::new(connection.as_fd(), PollFlags::empty())];
    poll(&mut set, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Returns what a monitor has registered.
pub(crate) fn registered(bytes: &[u8], fds: Vec<OwnedFd>) -> io::Result<Deposits> {
    let mut sockets = fds.into_iter().map(|socket| Deposit::of(socket).map(Rc::new));
    match (bytes == REGISTER, sockets.next(), sockets.next()) {
        (true, Some(container), input) => {
            Ok(Deposits { container: container?, input: input.transpose()? })
        }
        _ => Err(io::Error::other("a message without sense, or of another version")),
    }
}

fn answer(connection: &OwnedFd) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    send(connection.as_raw_fd(), KEPT, flags)?;
    Ok(())
}

/// A process that is to take over.
struct Adopter {
    /// Its standard input.
    connection: OwnedFd,
    pid: i32,
    process: PidFd,
}

impl Adopter {
    /// Starts one, with the command line, the environment and the directory of the first monitor. Its standard
    /// input is its connection, in which its registration is waiting for itself.
    ///
    /// It gets this pid, if there is one and it may be chosen: podman remembers the pid of a container's monitor,
    /// and takes the container for one without a monitor if there is no such process.
    ///
    /// # Errors
    /// `EEXIST` if another process has the pid.
    fn start(deposits: &Deposits, pid: Option<i32>) -> io::Result<Self> {
        let mut room = [0; deposit::ROOM];
        let handoff = deposits.container.look(&mut room)?;
        let record = handoff.and_then(|mut handoff| handoff.take(FdName::Record));
        let record = record.ok_or_else(|| io::Error::other("there is no record"))?;
        let content = Record::of(record).read()?;
        let (connection, theirs) = fd_passing::pair()?;
        deposits.send(&connection)?;
        answer(&connection)?;
        set_nonblocking(&connection)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("holdfast-conmon").arg("--adopt").args(content.words);
        command.env_clear().envs(content.environment).stdin(theirs);
        let directory = content.facts.directory;
        command.current_dir(if directory.is_dir() { &directory } else { Path::new("/") });
        spawn::like_a_runtime(&mut command);
        let forked = match pid.map(spawn::fork_as) {
            Some(Err(error)) if error.raw_os_error() == Some(Errno::EEXIST as i32) => Err(error),
            Some(Ok(forked)) => Ok(forked),
            Some(Err(_)) | None => spawn::fork(),
        };
        let Some(pid) = forked? else {
            report::error(&format!("an adopter cannot be executed: {}", command.exec()));
            std::process::exit(i32::from(FAILED))
        };
        Ok(Self { connection, pid, process: PidFd::open(pid)? })
    }
}
