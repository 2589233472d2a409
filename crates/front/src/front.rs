//! The front of a pod: one loop, which never waits for anything but in poll(2).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_sys::{fd, memory, stray};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::args::Args;
use crate::connection::Connection;
use crate::log::{self, log};
use crate::pod::Pod;

/// A front that nobody needs and nobody is connected to ends after so long.
const ALONE_LIMIT: Duration = Duration::from_secs(5);
/// How long nothing must happen until memory is given back.
const QUIET: Duration = Duration::from_millis(100);
/// The pause after a connection could not be accepted, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Serves the socket that is our standard input, until nobody needs us.
pub(crate) fn run(args: Args<'static>) -> Result<(), String> {
    let mut front = begin(&args).map_err(|error| {
        format!("{error}: containerd starts this program, and not a user; see -v")
    })?;
    front.serve().map_err(|error| {
        log("error", &format!("the front ends: {error}"));
        error.to_string()
    })
}

#[inline(never)]
fn begin(args: &Args<'static>) -> io::Result<Front> {
    let signals = signals()?;
    let socket = Socket::take()?;
    // Nothing that happens to containerd's session reaches us. A leader of a process group has one already.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    // Without containerd's FIFO the log goes nowhere.
    let _ = log::open(Path::new(""));
    // The bundle can be unmounted while we live.
    nix::unistd::chdir("/")?;
    let now = Instant::now();
    Ok(Front {
        socket,
        signals,
        pod: Pod::new(args, now)?,
        connections: Vec::new(),
        accepted: 0,
        accept_at: None,
        alone_since: None,
        quiet: false,
    })
}

/// The socket to which containerd connects.
#[derive(Debug)]
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// The number of its file.
    inode: u64,
}

impl Socket {
    fn take() -> io::Result<Self> {
        let listener = UnixListener::from(fd::standard()[0].try_clone_to_owned()?);
        nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("no socket"))?.to_owned();
        let inode = fs::metadata(&path)?.ino();
        Ok(Self { listener, path, inode })
    }

    /// Removes it. A `start` that has just connected finds its connection closed when we end, and begins anew: it then
    /// makes a socket for another front. So nothing is removed that is not ours.
    fn remove(&self) {
        if fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// All signals that might end us come through a descriptor.
fn signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    let own = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGPIPE];
    own.into_iter().chain(stray::SIGNALS).for_each(|signal| set.add(signal));
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// The front.
#[derive(Debug)]
struct Front {
    socket: Socket,
    signals: SignalFd,
    pod: Pod,
    connections: Vec<Connection>,
    /// How many connections there have been.
    accepted: u64,
    /// When connections are accepted again.
    accept_at: Option<Instant>,
    /// Since when nobody has needed us.
    alone_since: Option<Instant>,
    /// Whether nothing has happened since memory was given back.
    quiet: bool,
}

/// What is ready, in the order of [`Front::wait`].
type Ready = Vec<bool>;

impl Front {
    fn serve(&mut self) -> io::Result<()> {
        loop {
            let deadline = self.deadline(Instant::now());
            let ready = self.wait(deadline)?;
            let now = Instant::now();
            if !ready.contains(&true) && !self.quiet {
                drop(ready);
                memory::trim();
                self.quiet = true;
                self.advance(now);
            } else {
                self.quiet = false;
                self.perform(ready, now)?;
            }
            // A container may have been announced since: then its `start` counts on us.
            let alone = self.alone_since.is_some_and(|since| since + ALONE_LIMIT <= now);
            if (self.pod.ending || alone) && !self.pod.is_needed() {
                self.socket.remove();
                return Ok(());
            }
        }
    }

    /// When there is something to do even if nothing comes.
    fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let join = self.pod.expire(now);
        let needed = self.pod.is_needed() || !self.connections.is_empty();
        self.alone_since = if needed { None } else { self.alone_since.or(Some(now)) };
        let alone = self.alone_since.map(|since| since + ALONE_LIMIT);
        let connections = self.connections.iter().filter_map(|one| one.deadline(&self.pod)).min();
        let quiet = (!self.quiet).then(|| now + QUIET);
        [join, alone, connections, quiet, self.accept_at].into_iter().flatten().min()
    }

    /// Waits until something is ready: the signals, the listener, and both sides of each connection.
    fn wait(&self, deadline: Option<Instant>) -> io::Result<Ready> {
        let events = |read: bool, write: bool| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, read);
            events.set(PollFlags::POLLOUT, write);
            events
        };
        let mut fds = Vec::with_capacity(2 + 2 * self.connections.len());
        fds.push(PollFd::new(self.signals.as_fd(), PollFlags::POLLIN));
        let accepting = self.accept_at.is_none();
        fds.push(PollFd::new(self.socket.listener.as_fd(), events(accepting, false)));
        for one in &self.connections {
            if let Some(client) = &one.client {
                let events = events(one.has_room_for_calls(), client.queued() > 0);
                fds.push(PollFd::new(client.as_fd(), events));
            }
            if let Some(supervisor) = &one.supervisor {
                let events = events(one.has_room_for_answers(), supervisor.queued() > 0);
                fds.push(PollFd::new(supervisor.as_fd(), events));
            }
        }
        let timeout = match deadline {
            None => PollTimeout::NONE,
            // Rounded up, or the last millisecond would be spent in turning round.
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = left.as_micros().div_ceil(1000);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            polled => drop(polled?),
        }
        Ok(fds.iter().map(|fd| fd.any().unwrap_or(true)).collect())
    }

    fn perform(&mut self, ready: Ready, now: Instant) -> io::Result<()> {
        let mut ready = ready.into_iter();
        let mut next = || ready.next().unwrap_or(false);
        let (signals, listener) = (next(), next());
        for one in &mut self.connections {
            let client = one.client.is_some() && next();
            let supervisor = one.supervisor.is_some() && next();
            if client {
                one.read_client(&mut self.pod, now);
            }
            if supervisor {
                one.read_supervisor(&mut self.pod, now);
            }
        }
        if signals {
            self.take_signals(now)?;
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
        }
        if listener {
            self.accept(now);
        }
        self.advance(now);
        Ok(())
    }

    fn advance(&mut self, now: Instant) {
        for one in &mut self.connections {
            one.advance(&mut self.pod, now);
        }
        self.connections.retain(|one| !one.is_done());
    }

    fn accept(&mut self, now: Instant) {
        loop {
            let accepted = self.socket.listener.accept();
            let accepted = accepted.and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            match accepted {
                Ok(stream) => {
                    self.accepted += 1;
                    self.connections.push(Connection::new(self.accepted, stream));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    log("error", &format!("accept a connection: {error}"));
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn take_signals(&mut self, now: Instant) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGCHLD)) => self.pod.reap(now),
                Ok(Ok(Signal::SIGTERM)) => self.pod.end_without_containers(),
                Ok(Ok(Signal::SIGUSR1)) => {
                    let calls: usize = self.connections.iter().map(Connection::pending).sum();
                    let connections = self.connections.len();
                    let pod = self.pod.describe();
                    log("info", &format!("{pod}, {connections} connections, {calls} calls"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
