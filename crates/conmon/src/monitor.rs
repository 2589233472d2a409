//! The loop: it serves output, input, clients and messages until the container has ended and its exit is reported.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use holdfast_shim::engine::{Pipeline, REST, Slot, apart, give_back};
use holdfast_state::cri::Stream;
use holdfast_sys::Termination;
use holdfast_sys::wait::{self, Child};
use nix::poll::PollFlags;
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use crate::FAILED;
use crate::args::Args;
use crate::bundle::Bundle;
use crate::clients::{self, Clients};
use crate::command::OomScore;
use crate::ctl::Message;
use crate::exit::{self, ExitCommand};
use crate::input::Input;
use crate::link::Link;
use crate::notify::Notify;
use crate::oom::Oom;
use crate::pipes::Sync;
use crate::process::{End, Process};
use crate::record::Phase;
use crate::report;
use crate::terminal::Terminal;
use crate::watch::{Events, Token, Watch};

/// How long a killed container may take to end. Only one that hangs in the kernel takes long.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// The message for an exec that was killed by `--timeout`.
const TIMED_OUT: &[u8] = b"command timed out";

pub(crate) struct Monitor {
    pub(crate) args: Args<'static>,
    pub(crate) sync: Sync,
    /// Descriptors that the caller left open; podman reserves the container's ports by them. They are closed before
    /// the exit is reported.
    pub(crate) inherited: Vec<OwnedFd>,
    pub(crate) signals: SignalFd,
    pub(crate) watch: Watch,
    pub(crate) bundle: Option<Bundle>,
    /// Shared with the pipeline, which gives them the output.
    pub(crate) clients: Rc<RefCell<Clients>>,
    pub(crate) input: Input,
    pub(crate) output: Pipeline,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) notify: Option<Notify>,
    pub(crate) oom: Option<Oom>,
    pub(crate) process: Process,
    pub(crate) score: OomScore,
    /// When to free the memory that the start or output needed.
    pub(crate) rest: Option<Instant>,
    /// When to kill the container.
    pub(crate) timeout: Option<Instant>,
    /// How far its end was when this monitor began.
    pub(crate) phase: Phase,
    /// There if a keeper keeps the container.
    pub(crate) link: Option<Link>,
}

impl Monitor {
    /// Runs until the container has ended and all is done. Returns the exit code of this program.
    pub(crate) fn run(&mut self) -> u8 {
        let end = match self.phase {
            Phase::Running => match self.wait() {
                Ok(end) => end,
                Err(error) => {
                    report::error(&format!("nothing can be waited for: {error}"));
                    return FAILED;
                }
            },
            Phase::Ended(status) | Phase::Recorded(status) => End::of_status(status),
        };
        apart(|| self.conclude(end));
        let code = apart(|| self.linger(end));
        if let Some(link) = &self.link {
            link.finish();
        }
        code
    }

    /// Waits until the container has ended, and says how.
    fn wait(&mut self) -> io::Result<End> {
        let mut timeout = self.timeout;
        // Then a monitor before may have killed it.
        let was_due = self.args.adopt && timeout.is_some_and(|due| due <= Instant::now());
        let (mut is_killed, mut may_have_ended) = (false, true);
        loop {
            if may_have_ended && let Some(end) = apart(|| self.process.end()) {
                let is_timeout = is_killed || was_due && end.is_kill();
                return Ok(if is_timeout { End::TimedOut } else { end });
            }
            if timeout.is_some_and(|timeout| timeout <= Instant::now()) {
                if is_killed {
                    report::error("the container survives SIGKILL: it hangs in the kernel");
                    return Ok(End::TimedOut);
                }
                self.process.kill_group();
                is_killed = true;
                timeout = Some(Instant::now() + KILL_GRACE);
            }
            may_have_ended = self.round(timeout)?;
            if may_have_ended {
                apart(|| self.heed_signals());
            }
            if self.rest.is_some_and(|rest| rest <= Instant::now()) {
                self.rest = None;
                self.output.rest();
                self.input.rest();
                give_back();
            }
        }
    }

    /// Waits for events and handles them. Returns whether signals have come, or the process may have ended.
    fn round(&mut self, until: Option<Instant>) -> io::Result<bool> {
        self.want();
        let keeper = self.link.as_ref().and_then(Link::due);
        let due = [until, self.rest, self.output.due(), self.clients.borrow().due(), keeper];
        let events = self.watch.wait(due.into_iter().flatten().min())?;
        self.accept(events.has(Token::Attach));
        // Before the input: who resizes the terminal and then types means it in this order.
        if events.has(Token::Ctl) || events.has(Token::Winsz) {
            obey(self.bundle.as_mut(), self.terminal.as_ref(), &mut self.output);
        }
        self.serve(&events);
        if events.has(Token::Input) {
            self.input.pass();
        }
        if events.has(Token::Stdout) || events.has(Token::Stderr) {
            self.output.pass(|slot| token(slot).is_some_and(|token| events.has(token)));
        }
        if let Some(notify) = self.notify.as_mut().filter(|_| events.has(Token::Notify)) {
            notify.pass();
        }
        if let Some(oom) = self.oom.as_mut().filter(|_| events.has(Token::Oom)) {
            oom.look();
        }
        if let Some(link) = &mut self.link {
            if events.has(Token::Keeper) {
                apart(|| link.look());
            }
            link.keep_trying();
        }
        self.clients.borrow_mut().keep_patience();
        self.output.close_ended();
        let worked = events.iter().any(|(token, _)| token != Token::Signals);
        if worked && (self.output.holds_memory() || self.input.holds_memory()) {
            self.rest = Some(Instant::now() + REST);
        }
        Ok(events.has(Token::Signals) || events.has(Token::Process))
    }

    /// Tells `watch` what to wait for.
    fn want(&mut self) {
        let watch = &mut self.watch;
        watch.want(Token::Signals, self.signals.as_fd(), PollFlags::POLLIN);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let slot = Slot::Source(stream);
            if let (Some(token), Some((fd, events))) = (token(slot), self.output.interest(slot)) {
                watch.want(token, fd, events);
            }
        }
        if let Some(bundle) = &self.bundle {
            if let Some(listener) = &bundle.listener {
                watch.want(Token::Attach, listener.as_fd(), PollFlags::POLLIN);
            }
            watch.want(Token::Ctl, bundle.ctl.as_fd(), PollFlags::POLLIN);
            watch.want(Token::Winsz, bundle.winsz.as_fd(), PollFlags::POLLIN);
        }
        if let Some(fd) = self.input.interest() {
            watch.want(Token::Input, fd, PollFlags::POLLOUT);
        }
        if let Some((fd, events)) = self.notify.as_ref().map(Notify::interest) {
            watch.want(Token::Notify, fd, events);
        }
        if let Some(oom) = &self.oom {
            watch.want(Token::Oom, oom.interest(), PollFlags::POLLIN);
        }
        if let Some((fd, events)) = self.process.interest() {
            watch.want(Token::Process, fd, events);
        }
        if let Some(fd) = self.link.as_ref().and_then(Link::interest) {
            watch.want(Token::Keeper, fd, PollFlags::POLLIN);
        }
        for (number, fd, events) in self.clients.borrow().interest(!self.input.is_busy()) {
            watch.want(Token::Client(number), fd, events);
        }
    }

    /// Accepts clients, before they would miss more output.
    fn accept(&mut self, is_ready: bool) {
        if let Some(listener) = self.bundle.as_ref().and_then(|bundle| bundle.listener.as_ref())
            && is_ready
        {
            self.clients.borrow_mut().accept(listener);
        }
    }

    /// Serves the clients that are ready.
    fn serve(&mut self, events: &Events) {
        for (token, flags) in events.iter() {
            let Token::Client(number) = token else { continue };
            if flags.contains(PollFlags::POLLOUT) {
                self.clients.borrow_mut().write(number);
            }
            if flags.contains(PollFlags::POLLIN) && !self.input.is_busy() {
                let mut has_ended = false;
                self.input.fill(|room| match self.clients.borrow_mut().read(number, room) {
                    clients::Input::Bytes(length) => length,
                    clients::Input::Nothing => 0,
                    clients::Input::End => {
                        has_ended = true;
                        0
                    }
                });
                if has_ended {
                    self.input.end();
                }
            }
            if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR) {
                self.clients.borrow_mut().hang_up(number);
            }
        }
    }

    /// Forwards signals to the container, and reaps other children.
    fn heed_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if let Some(signal) = forwarded(signal.ssi_signo) {
                let sent = self.process.signal(signal as i32);
                report::warn_of(&format!("{signal} is not handed on"), sent);
            }
        }
        while let Ok(Some((pid, _))) = wait::peek_any() {
            if pid == self.process.pid {
                // It is seen to when all others are, or before they are.
                break;
            }
            let _ = wait::reap(Child::Pid(pid));
        }
    }

    /// Handles the end of the container: drains the output, closes what others see, writes the exit files, reports
    /// the exit, and then reaps the process. Nobody learns of an exit before it is on disk.
    ///
    /// A monitor that takes over goes on where the one before was killed. Once the status is in the exit files, the
    /// caller may remove the container or start it again, so nothing of it is touched after that.
    fn conclude(&mut self, end: End) {
        if !matches!(self.phase, Phase::Recorded(_)) {
            self.note(Phase::Ended(end.status()));
            self.close_and_record(end);
            self.note(Phase::Recorded(end.status()));
        }
        if self.args.exec {
            let message = if end == End::TimedOut { TIMED_OUT } else { b"" };
            self.sync.send(end.status(), message);
        }
        self.sync.close();
        self.process.reap();
    }

    fn note(&self, phase: Phase) {
        if let Some(link) = &self.link {
            link.note(phase);
        }
    }

    fn close_and_record(&mut self, end: End) {
        self.accept(true);
        obey(self.bundle.as_mut(), self.terminal.as_ref(), &mut self.output);
        if let Some(mut notify) = self.notify.take() {
            notify.pass();
        }
        if let Some(mut oom) = self.oom.take() {
            oom.look();
        }
        self.output.drain();
        self.terminal = None;
        if !self.args.no_sync_log {
            report::warn_of("the log is not synced", self.output.sinks.sync());
        }
        // What is written from now on is somebody else's.
        self.output = Pipeline::default();
        self.input.close();
        self.input = Input::default();
        if let Some(mut bundle) = self.bundle.take() {
            bundle.close();
        }
        self.inherited.clear();
        exit::record(&self.args, end.status());
    }

    /// Returns the directories of the file `oom`.
    pub(crate) fn oom_dirs(&self) -> Vec<PathBuf> {
        let dirs = [self.args.persist_dir, self.args.bundle].into_iter();
        dirs.flatten().map(PathBuf::from).collect()
    }

    /// Runs the exit command, and meanwhile sends clients what is queued for them.
    fn linger(&mut self, end: End) -> u8 {
        self.clients.borrow_mut().end();
        let mut command = ExitCommand::new(&self.args);
        loop {
            command.run(&self.args, &self.score);
            if let Some(code) = command.code().filter(|_| self.clients.borrow().is_empty()) {
                return if code == 0 { end.code() } else { code };
            }
            if let Err(error) = self.round(command.due()) {
                report::error(&format!("nothing can be waited for: {error}"));
                return FAILED;
            }
            reap_children(&self.signals, &mut command);
        }
    }
}

/// Handles the messages of the FIFOs.
pub(crate) fn obey(
    bundle: Option<&mut Bundle>,
    terminal: Option<&Terminal>,
    output: &mut Pipeline,
) {
    let Some(bundle) = bundle else { return };
    let messages = bundle.ctl.read(Message::of_ctl).into_iter();
    for message in messages.chain(bundle.winsz.read(Message::of_winsz)) {
        match (message, terminal) {
            (Message::Resize { rows, columns }, Some(terminal)) => terminal.resize(rows, columns),
            (Message::Resize { .. }, None) => report::warn("there is no terminal to resize"),
            (Message::ReopenLogs, _) => {
                report::warn_of("a log is not opened anew", output.sinks.reopen());
            }
        }
    }
}

/// Returns the signal of this number, if it is one that is forwarded to the container.
pub(crate) fn forwarded(number: u32) -> Option<Signal> {
    let all = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];
    all.into_iter().find(|signal| *signal as u32 == number)
}

/// Reaps all children that have ended; one may be the exit command.
pub(crate) fn reap_children(signals: &SignalFd, command: &mut ExitCommand) {
    while let Ok(Some(_)) = signals.read_signal() {}
    while let Ok(Some((pid, _))) = wait::peek_any() {
        if let Ok(Some(end)) = wait::reap(Child::Pid(pid)) {
            let code = match end {
                Termination::Exited(code) => code,
                Termination::Signaled(_) => End::Known(end).code(),
            };
            command.child_ended(pid, code);
        }
    }
}

/// Returns the token of a source of the output.
fn token(slot: Slot) -> Option<Token> {
    match slot {
        Slot::Source(Stream::Stdout) => Some(Token::Stdout),
        Slot::Source(Stream::Stderr) => Some(Token::Stderr),
        Slot::Reader(_) => None,
    }
}
