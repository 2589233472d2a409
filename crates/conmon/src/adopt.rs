//! The adoption: what a monitor leaves with the keeper, and how another one takes it over (`--adopt`).

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use holdfast_shim::engine::{Pipeline, Scratch, Sinks, Source, set_nonblocking, take_signals};
use holdfast_state::cri::Stream;
use holdfast_state::handoff::{FdName, Handoff};
use holdfast_sys::fd_passing;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::args::Args;
use crate::bundle::Bundle;
use crate::clients::Clients;
use crate::command::OomScore;
use crate::deposit::{self, Deposit, Deposits};
use crate::drivers;
use crate::input::Input;
use crate::keeper::registered;
use crate::link::{Link, ROOM};
use crate::monitor::Monitor;
use crate::notify::Notify;
use crate::oom::Oom;
use crate::pipes::Sync;
use crate::process::Process;
use crate::record::{Content, Facts, Phase, Record, instant_of, time_of};
use crate::report;
use crate::start::{disconnect, write_pid};
use crate::terminal::Terminal;
use crate::watch::Watch;

/// Returns what who takes over has to know.
pub(crate) fn facts(
    pid: i32,
    timeout: Option<Instant>,
    oom: Option<&Oom>,
    score: &OomScore,
) -> io::Result<Facts> {
    let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(Facts {
        pid,
        due: timeout.map(time_of).transpose()?,
        oom: oom.map(Oom::facts),
        score: score.before().map(str::to_owned),
        open_files: Some(open_files),
        directory: std::env::current_dir().unwrap_or_default(),
    })
}

/// Leaves copies of what belongs to a container with the keeper.
pub(crate) fn leave(
    args: &Args<'static>,
    facts: &Facts,
    process: &Process,
    output: &Pipeline,
    input: &mut Input,
    sync: &Sync,
) -> io::Result<Link> {
    let record = Record::new(facts)?;
    let sources = [Stream::Stdout, Stream::Stderr].map(|stream| match output.source(stream)? {
        Source::Terminal(master) => Some((FdName::Terminal, master.as_fd())),
        Source::Pipe { fd, .. } if stream == Stream::Stdout => Some((FdName::Stdout, fd.as_fd())),
        Source::Pipe { fd, .. } => Some((FdName::Stderr, fd.as_fd())),
        Source::Fifo(_) => None,
    });
    let own = [(FdName::Process, process.pidfd()), (FdName::Record, record.as_fd())];
    let sync = sync.socket().filter(|_| args.exec).map(|socket| (FdName::Sync, socket));
    let all = own.into_iter().chain(sources.into_iter().flatten()).chain(sync);
    let container = Rc::new(Deposit::new(all)?);
    // The input of a terminal is its master, and does not end.
    let stdin = input.writer().filter(|_| !args.terminal);
    let stdin = stdin.map(|fd| Deposit::new([(FdName::Stdin, fd)])).transpose()?.map(Rc::new);
    if let Some(deposit) = &stdin {
        input.deposit(deposit.clone());
    }
    let socket = args.keeper.unwrap_or_default();
    Ok(Link::new(socket, Deposits { container, input: stdin }, record))
}

/// Takes over the container whose registration is in the socket that is our standard input.
///
/// # Errors
/// If it cannot be taken over. Nothing was taken out of the deposits then.
pub(crate) fn adopt(args: Args<'static>) -> io::Result<Box<Monitor>> {
    let connection = holdfast_sys::fd::standard()[0].try_clone_to_owned()?;
    let mut room = [0; ROOM];
    let (length, fds) = fd_passing::receive(&connection, &mut room)?;
    let deposits = registered(&room[..length], fds)?;
    set_nonblocking(&connection)?;
    let mut room = [0; deposit::ROOM];
    let handoff = deposits.container.look(&mut room)?;
    let mut handoff = handoff.ok_or_else(|| io::Error::other("there is nothing to take over"))?;
    let missing = |what: &str| io::Error::other(format!("the {what} is missing"));
    let record = handoff.take(FdName::Record).ok_or_else(|| missing("record"))?;
    let record = Record::of(record);
    let Content { phase, facts, .. } = record.read()?;
    let process = handoff.take(FdName::Process).ok_or_else(|| missing("process"))?;
    let process = Process::adopted(facts.pid, process.into());

    let signals = take_signals()?;
    // As the first one did.
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    if let Some(soft) = facts.open_files {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
    }
    let score = OomScore::never_after(facts.score);
    let clients = Rc::new(RefCell::new(Clients::new(args.attach_patience())));
    let mut monitor = Box::new(Monitor {
        sync: Sync::new(&args, handoff.take(FdName::Sync)),
        inherited: Vec::new(),
        signals,
        watch: Watch::new()?,
        bundle: None,
        clients,
        input: Input::default(),
        output: Pipeline::default(),
        terminal: None,
        notify: None,
        oom: None,
        process,
        score,
        rest: Some(Instant::now()),
        timeout: facts.due.map(instant_of).transpose()?.flatten(),
        phase,
        link: None,
        args,
    });
    // If the status is recorded, podman may have read it and have started the container again: its files and sockets
    // then belong to the new monitor, and are not touched.
    if !matches!(phase, Phase::Recorded(_)) {
        monitor.take_over(&deposits, &mut handoff)?;
        if let Some((counter, known)) = facts.oom {
            let watched = Oom::watch_again(&counter, known, monitor.oom_dirs());
            monitor.oom = report::warn_of("OOM kills are not noted", watched);
        }
    }
    disconnect()?;
    let socket = monitor.args.keeper.unwrap_or_default();
    let link = Link::of(socket, deposits, record, Some(connection));
    link.tell_adopted();
    monitor.link = Some(link);
    Ok(monitor)
}

impl Monitor {
    /// Connects what a monitor before read from and wrote to, and makes the sockets anew. What cannot be made is
    /// reported: the output and the status are more important.
    fn take_over(&mut self, deposits: &Deposits, handoff: &mut Handoff<'_>) -> io::Result<()> {
        let args = &self.args;
        let logs = drivers::open(args).map_err(io::Error::other);
        let logs = report::warn_of("output is lost", logs).unwrap_or_default();
        let sinks = Sinks::of_monitor(logs.files, logs.journals, self.clients.clone());
        self.output = Pipeline::new(sinks);
        report::warn_of("the end of a log is not mended", self.output.sinks.mend());
        let scratch = Rc::new(Scratch::new()?);
        for (name, stream) in [(FdName::Stdout, Stream::Stdout), (FdName::Stderr, Stream::Stderr)] {
            if let Some(pipe) = handoff.take(name) {
                self.output.set(stream, Source::pipe(pipe, &scratch));
                self.output.compare(stream);
            }
        }
        if let Some(master) = handoff.take(FdName::Terminal) {
            let terminal = Terminal::new(master, &mut self.output, &mut self.input);
            self.terminal = report::warn_of("the terminal is lost", terminal);
        }
        if let Some(deposit) = &deposits.input {
            let mut room = [0; deposit::ROOM];
            let stdin = deposit.look(&mut room)?.and_then(|mut it| it.take(FdName::Stdin));
            if let Some(stdin) = stdin {
                self.input = Input::new(stdin, !args.leave_stdin_open);
                self.input.deposit(deposit.clone());
            }
        }
        if let Some(path) = args.conmon_pidfile {
            let pid = std::process::id().cast_signed();
            report::warn_of("the pid file", write_pid(Path::new(path), pid));
        }
        if let Some(path) = args.bundle() {
            if let Some(host) = args.sdnotify_socket {
                self.notify = report::warn_of("the notify socket", Notify::open(path, host));
            }
            if !logs.is_passthrough {
                self.bundle = report::warn_of("the bundle", Bundle::open(args, path));
            }
        }
        Ok(())
    }
}
