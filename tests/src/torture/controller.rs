//! Carries a batch of the plan out: one op after the other, with many containers under way.
//!
//! What makes a judgement possible is that nothing else ends a process here: a daemon or a shim is
//! dead if and only if this has killed it, and knows when.

use std::fmt::Display;
use std::time::{Duration, Instant};

use holdfast_sys::PidFd;
use nix::libc::{SIGCONT, SIGKILL, SIGSTOP};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{processes, runtime_name};

use super::Trouble;
use super::actor::{Actor, Cell, Phase};
use super::plan::{Batch, Life, Op, Runtime};
use super::programs::{Cli, Daemon, PATIENCE, Paths, ended, find_shim};
use super::report::Report;

/// Starts that are under way at the same time, at the most.
const STARTS: usize = 4;

/// After how much time an exit that does not come may be waiting for us.
const ZOMBIES: Duration = Duration::from_secs(1);

pub(crate) struct Controller<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) report: &'a mut Report,
    pub(crate) actors: Vec<Actor>,
    pub(crate) daemon: Option<Daemon>,
    /// With what the names of all its containers begin.
    pub(crate) name: String,
    /// Exits that had to be put off until there was a daemon to ask.
    deferred: Vec<usize>,
    began: Instant,
    history: Vec<String>,
}

impl<'a> Controller<'a> {
    pub(crate) fn new(
        paths: &'a Paths,
        report: &'a mut Report,
        daemon: Daemon,
        name: &str,
        batch: &Batch,
    ) -> Self {
        let actor =
            |(number, role): (usize, &_)| Actor::new(number, format!("{name}-{number}"), *role);
        let actors = batch.roles.iter().enumerate().map(actor).collect();
        let (deferred, history) = (Vec::new(), Vec::new());
        let began = Instant::now();
        let name = name.to_owned();
        Self { paths, report, actors, daemon: Some(daemon), name, deferred, began, history }
    }

    pub(crate) fn note(&mut self, text: impl Display) {
        self.history.push(format!("{:10.4} {text}", self.began.elapsed().as_secs_f64()));
    }

    /// What is known of a container: what was done to it and to the daemon.
    pub(crate) fn history_of(&self, number: usize) -> Vec<String> {
        let own = [format!(" {} ", self.actors[number].id), format!("({number}")];
        let concerns = |line: &&String| {
            line.contains("aemon")
                || line.contains("Restore")
                || own.iter().any(|own| {
                    line.match_indices(own.as_str()).any(|(at, _)| {
                        !line[at + own.len()..].starts_with(|next: char| next.is_ascii_digit())
                    })
                })
        };
        self.history.iter().filter(concerns).cloned().collect()
    }

    pub(crate) fn carry_out(&mut self, ops: &[Op]) -> Result<(), Trouble> {
        for op in ops {
            self.note(op);
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.has_died()
            {
                return Err(Trouble::new(format!("the daemon has ended of its own: {status}")));
            }
            self.act(*op)?;
        }
        Ok(())
    }

    fn act(&mut self, op: Op) -> Result<(), Trouble> {
        match op {
            Op::Start(number) => self.start(number),
            Op::Exit(number) => self.exit(number),
            Op::KillShim(number) => self.signal_shim(number, SIGKILL),
            Op::StopShim(number) => self.signal_shim(number, SIGSTOP),
            Op::ContinueShim(number) => self.signal_shim(number, SIGCONT),
            Op::Exec(number, code) => self.exec(number, code),
            Op::KillDaemon => self.kill_daemon(),
            Op::StartDaemon => self.start_daemon(),
            Op::KillInRestore(micros) => self.kill_in_restore(Duration::from_micros(micros)),
            Op::StopDaemon => self.signal_daemon(SIGSTOP),
            Op::ContinueDaemon => {
                self.signal_daemon(SIGCONT)?;
                self.make_up()
            }
            Op::Reap => {
                self.reap();
                Ok(())
            }
        }
    }

    /// Whether there is a daemon that would answer.
    fn serves(&self) -> bool {
        self.daemon.as_ref().is_some_and(|daemon| !daemon.stopped)
    }

    fn start(&mut self, number: usize) -> Result<(), Trouble> {
        let starting = |actor: &Actor| matches!(actor.phase, Phase::Starting { .. } | Phase::Limbo);
        while self.serves() && self.actors.iter().filter(|actor| starting(actor)).count() >= STARTS
        {
            if let Some(oldest) = self.actors.iter().position(starting) {
                self.settle(oldest)?;
            }
        }
        self.begin(number)
    }

    fn begin(&mut self, number: usize) -> Result<(), Trouble> {
        let actor = &mut self.actors[number];
        let script = actor
            .script(self.paths)
            .map_err(|error| Trouble::of(number, format!("make a gate: {error}")))?;
        let bundle = self.paths.bundle().display().to_string();
        let mut args = vec!["run", "--detach", "--name", &actor.id, "--bundle", &bundle];
        if actor.role.runtime == Runtime::Runc {
            // Or the one under test in its place.
            args.extend(["--runtime", runtime_name()]);
        }
        if actor.is_hostile() {
            let company = if actor.group.is_some() { ", in a group" } else { "" };
            self.report.count(&format!("start of a hostile program{company}"));
        }
        if let Some(group) = actor.group {
            args.extend(["--shim-group", group]);
            self.report.count("start in a group");
        }
        args.extend(["--", "sh", "-c", &script]);
        let cli = Cli::begin(self.paths, &args)?;
        actor.phase = Phase::Starting { cli, interrupted: false };
        self.report.count("start");
        Ok(())
    }

    /// Sees to it that a container is there, or has ended. `false` if there is nobody to ask.
    pub(crate) fn settle(&mut self, number: usize) -> Result<bool, Trouble> {
        loop {
            let serves = self.serves();
            let actor = &mut self.actors[number];
            match &mut actor.phase {
                Phase::Up(_) | Phase::Ended | Phase::Failed => return Ok(true),
                Phase::Planned if !serves => return Ok(false),
                Phase::Planned => self.begin(number)?,
                Phase::Starting { cli, .. } => {
                    if !serves && !cli.has_ended() {
                        return Ok(false);
                    }
                    self.end_start(number)?;
                }
                Phase::Limbo if !serves => return Ok(false),
                Phase::Limbo => self.look_up(number)?,
            }
        }
    }

    fn end_start(&mut self, number: usize) -> Result<(), Trouble> {
        let phase = std::mem::replace(&mut self.actors[number].phase, Phase::Limbo);
        let Phase::Starting { cli, interrupted } = phase else { return Ok(()) };
        let said = cli.end()?;
        if said.code == Some(0) {
            return self.take_up(number, if interrupted { Cell::Daemon } else { Cell::Nobody });
        }
        if !interrupted {
            return Err(Trouble::of(number, format!("not started: {said:?}")));
        }
        self.report.count("start whose daemon was killed");
        Ok(())
    }

    /// Asks a daemon what has become of a start that its forerunner was at.
    fn look_up(&mut self, number: usize) -> Result<(), Trouble> {
        let id = self.actors[number].id.clone();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = Cli::begin(self.paths, &["inspect", "--json", &id])?.end()?;
            if said.code != Some(0) {
                if !said.stderr.contains("no such container") && !said.stderr.contains("not found")
                {
                    return Err(Trouble::of(number, format!("not to be inspected: {said:?}")));
                }
                let actor = &self.actors[number];
                if actor.has_run(self.paths) && !actor.disturbed {
                    return Err(Trouble::of(
                        number,
                        "LOST: it ran, and nobody knows it".to_owned(),
                    ));
                }
                self.note(format!("{id} was not made; another"));
                self.report.count("start that came to nothing with its daemon");
                self.actors[number].close_gate(self.paths);
                self.actors[number].again();
                return Ok(());
            }
            let info: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
            match info["status"].as_str() {
                Some("creating") if Instant::now() < deadline => {
                    // Only an event stream would tell, and that it comes to something is all we need.
                    std::thread::sleep(Duration::from_millis(5));
                }
                Some("running" | "stopped") => {
                    self.report.count("start that outlived its daemon");
                    return self.take_up(number, Cell::Daemon);
                }
                _ => return Err(Trouble::of(number, format!("in no good state: {info}"))),
            }
        }
    }

    fn take_up(&mut self, number: usize, cell: Cell) -> Result<(), Trouble> {
        let actor = &mut self.actors[number];
        if actor.role.life == Life::AtOnce {
            // Its shim was left in peace until now, so this is the worst that there can have been.
            actor.cell = Some(cell);
            actor.witnessed = cell == Cell::Nobody;
            actor.phase = Phase::Ended;
            return Ok(());
        }
        let pid = actor.pid(self.paths);
        let held = pid.and_then(|pid| PidFd::open(pid).ok()).filter(PidFd::is_alive);
        let Some(held) = held else {
            return Err(Trouble::of(number, format!("runs, and process {pid:?} does not")));
        };
        actor.phase = Phase::Up(held);
        Ok(())
    }

    fn exit(&mut self, number: usize) -> Result<(), Trouble> {
        if !self.settle(number)? {
            self.note(format!("{} is put off", self.actors[number].id));
            self.report.count("exit put off until there was a daemon");
            self.deferred.push(number);
            return Ok(());
        }
        self.finish(number)
    }

    /// Lets a container exit, waits for that, and notes who was dead.
    fn finish(&mut self, number: usize) -> Result<(), Trouble> {
        if !matches!(self.actors[number].phase, Phase::Up(_)) {
            return Ok(());
        }
        let shim_lives = self.shim(number).is_some();
        let cell = Cell::of(self.daemon.is_some(), shim_lives);
        let actor = &mut self.actors[number];
        let Phase::Up(process) = std::mem::replace(&mut actor.phase, Phase::Failed) else {
            return Ok(());
        };
        if !shim_lives && !actor.lost_shim {
            return Err(Trouble::of(number, "its shim has ended of its own".to_owned()));
        }
        if let Some((cli, _, interrupted)) = &mut actor.exec {
            // A command ends with its daemon, and says nothing of the exec that it had begun.
            actor.exec_cut_off |= !cli.has_ended() || *interrupted;
        }
        let gone = actor.let_go(&process);
        gone.map_err(|error| Trouble::of(number, format!("not let go: {error}")))?;
        if !ended(&process, ZOMBIES) {
            // The init of a pid namespace ends after all others in it have been reaped, and an exec
            // whose shim was killed may have come to us.
            self.reap();
            if !ended(&process, PATIENCE) {
                return Err(Trouble::of(number, "does not exit".to_owned()));
            }
        }
        let actor = &mut self.actors[number];
        actor.phase = Phase::Ended;
        actor.cell = Some(cell);
        actor.witnessed = self.daemon.is_some();
        actor.stopped_since = actor.stopped_since.map(|_| Instant::now());
        actor.close_gate(self.paths);
        let id = actor.id.clone();
        self.note(format!("{id} has exited, dead: {}", cell.name()));
        Ok(())
    }

    /// What could not be done without a daemon.
    fn make_up(&mut self) -> Result<(), Trouble> {
        for number in std::mem::take(&mut self.deferred) {
            self.note(format!("{} has been put off", self.actors[number].id));
            self.exit(number)?;
        }
        Ok(())
    }

    fn shim(&mut self, number: usize) -> Option<PidFd> {
        let actor = &mut self.actors[number];
        let (pid, pidfd) = find_shim(&self.paths.init(&actor.id), actor.shim)?;
        actor.shim = Some(pid);
        Some(pidfd)
    }

    fn signal_shim(&mut self, number: usize, signal: i32) -> Result<(), Trouble> {
        let name = match signal {
            SIGKILL => "SIGKILL",
            SIGSTOP => "SIGSTOP",
            _ => "SIGCONT",
        };
        if !matches!(self.actors[number].phase, Phase::Up(_) | Phase::Ended)
            && !self.settle(number)?
        {
            self.report.count("signal for a shim that was not there yet");
            return Ok(());
        }
        let Some(shim) = self.shim(number) else {
            self.report.count("signal for a shim that was gone");
            return Ok(());
        };
        if self.actors[number].group.is_some() && signal != SIGKILL {
            // Its group would start nothing as long as it is stopped.
            self.report.count("signal that a group is spared");
            return Ok(());
        }
        let concerned = self.who_shares_shim(number);
        for number in &concerned {
            self.actors[*number].look_for_record(self.paths);
        }
        // It may end by itself at this moment.
        let _ = shim.send_signal(signal);
        self.report.count(&format!("{name} for a shim"));
        let (id, pid) = (&self.actors[number].id, self.actors[number].shim);
        let line = format!("{id} shim {pid:?} has {name}");
        self.note(line);
        let actor = &mut self.actors[number];
        if signal == SIGSTOP {
            actor.stopped_since.get_or_insert_with(Instant::now);
        } else {
            actor.shim_goes_on();
        }
        if signal == SIGKILL {
            self.interrupt_execs_of_group(number);
            if !ended(&shim, PATIENCE) {
                return Err(Trouble::of(number, "its shim survives SIGKILL".to_owned()));
            }
            for number in concerned {
                self.actors[number].shim_goes_on();
                self.actors[number].shim_is_killed();
                self.actors[number].forsaken |= self.daemon.is_none();
                self.judge_again(number);
            }
        }
        Ok(())
    }

    /// The shim of a group is killed: an exec that it is asked to start, or starts, may come to nothing. That
    /// holds for each container of the group, whatever shim has its first process.
    fn interrupt_execs_of_group(&mut self, number: usize) {
        let group = self.actors[number].group;
        for actor in self.actors.iter_mut().filter(|it| group.is_some() && it.group == group) {
            if let Some((_, _, interrupted)) = &mut actor.exec {
                *interrupted = true;
            }
        }
    }

    /// All that have the same shim, this one among them. Of those in its group that are only being
    /// started it is noted that they may lose theirs.
    fn who_shares_shim(&mut self, number: usize) -> Vec<usize> {
        let (group, shim) = (self.actors[number].group, self.actors[number].shim);
        let mut concerned = vec![number];
        if group.is_none() {
            return concerned;
        }
        for other in (0..self.actors.len()).filter(|other| *other != number) {
            let actor = &mut self.actors[other];
            match actor.phase {
                _ if actor.group != group => {}
                Phase::Starting { .. } | Phase::Limbo => {
                    if let Phase::Starting { interrupted, .. } = &mut actor.phase {
                        *interrupted = true;
                    }
                    actor.disturbed = true;
                    actor.shim_is_killed();
                    actor.forsaken |= self.daemon.is_none();
                }
                Phase::Up(_) | Phase::Ended => {
                    if self.shim(other).is_some() && self.actors[other].shim == shim {
                        concerned.push(other);
                    }
                }
                Phase::Planned | Phase::Failed => {}
            }
        }
        concerned
    }

    /// Someone has died. If that was the last who could write down how a container had ended, it
    /// is as if both had been dead at that time.
    fn judge_again(&mut self, number: usize) {
        let actor = &mut self.actors[number];
        let witness_lives = self.daemon.is_some() && actor.witnessed;
        let is_judged = !matches!(actor.phase, Phase::Ended) || actor.cell == Some(Cell::Both);
        if is_judged || actor.recorded {
            return;
        }
        // In this order: a shim that is seen dead has written all that it ever will. That nobody
        // knows is what the next daemon writes, and may have written by now.
        let shim_lives = self.shim(number).is_some();
        let actor = &mut self.actors[number];
        if actor.has_status(self.paths) || witness_lives || shim_lives {
            return;
        }
        actor.cell = Some(Cell::Both);
        let line = format!("{} is not recorded, and now both are dead", actor.id);
        self.note(line);
    }

    fn exec(&mut self, number: usize, code: u8) -> Result<(), Trouble> {
        if !self.settle(number)? || !matches!(self.actors[number].phase, Phase::Up(_)) {
            return Ok(());
        }
        self.end_exec(number)?;
        let actor = &mut self.actors[number];
        let script = if code == 0 { "true".to_owned() } else { format!("exit {code}") };
        let cli = Cli::begin(self.paths, &["exec", &actor.id, "--", "sh", "-c", &script])?;
        actor.exec = Some((cli, code, false));
        actor.execs.push(code);
        self.report.count("exec");
        Ok(())
    }

    /// Waits for an exec, if there is one.
    pub(crate) fn end_exec(&mut self, number: usize) -> Result<(), Trouble> {
        let actor = &mut self.actors[number];
        let Some((cli, code, interrupted)) = actor.exec.take() else { return Ok(()) };
        let said = cli.end()?;
        actor.exec_cut_off |= interrupted && said.code != Some(i32::from(code));
        if said.code != Some(i32::from(code)) && !interrupted && !actor.exec_cut_off {
            return Err(Trouble::of(number, format!("exec of exit {code}: {said:?}")));
        }
        Ok(())
    }

    fn kill_daemon(&mut self) -> Result<(), Trouble> {
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        self.look_for_records();
        daemon.kill()?;
        self.report.count("SIGKILL for the daemon");
        self.daemon_is_dead();
        Ok(())
    }

    /// What is on disk now, nobody's death makes undone.
    fn look_for_records(&mut self) {
        self.actors.iter_mut().for_each(|actor| actor.look_for_record(self.paths));
    }

    fn daemon_is_dead(&mut self) {
        for number in 0..self.actors.len() {
            let actor = &mut self.actors[number];
            if let Phase::Starting { interrupted, .. } = &mut actor.phase {
                *interrupted = true;
            }
            if let Some((_, _, interrupted)) = &mut actor.exec {
                *interrupted = true;
            }
            actor.witnessed = false;
            // One that is being started can have lost its group's.
            let runs = matches!(actor.phase, Phase::Up(_) | Phase::Starting { .. } | Phase::Limbo);
            if runs && actor.lost_shim && !actor.forsaken {
                self.actors[number].forsaken = self.shim(number).is_none();
            }
            self.judge_again(number);
        }
    }

    pub(crate) fn start_daemon(&mut self) -> Result<(), Trouble> {
        let daemon = Daemon::begin(self.paths)?;
        daemon.listens()?;
        self.daemon = Some(daemon);
        self.report.count("start of the daemon");
        self.make_up()
    }

    fn kill_in_restore(&mut self, after: Duration) -> Result<(), Trouble> {
        let daemon = Daemon::begin(self.paths)?;
        // Not to let something happen first: how far it comes is what the plan leaves to chance.
        std::thread::sleep(after);
        self.look_for_records();
        daemon.kill()?;
        self.report.count("SIGKILL for the daemon in its restore");
        self.daemon_is_dead();
        Ok(())
    }

    fn signal_daemon(&mut self, signal: i32) -> Result<(), Trouble> {
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        daemon.signal(signal)?;
        daemon.stopped = signal == SIGSTOP;
        let name = if daemon.stopped { "SIGSTOP" } else { "SIGCONT" };
        self.report.count(&format!("{name} for the daemon"));
        Ok(())
    }

    /// Reaps orphans, which come to us as they come to pid 1 elsewhere.
    pub(crate) fn reap(&mut self) {
        let clis = self.actors.iter().flat_map(|actor| {
            let starting = match &actor.phase {
                Phase::Starting { cli, .. } => cli.pid(),
                _ => None,
            };
            [starting, actor.exec.as_ref().and_then(|(cli, _, _)| cli.pid())]
        });
        let daemon = self.daemon.as_ref().map(Daemon::pid);
        let others: Vec<i32> = clis.flatten().chain(daemon).collect();
        for pid in processes::children(std::process::id().cast_signed()) {
            if !others.contains(&pid) {
                // An error is a signal that nix has no name for; it is reaped all the same.
                let _ = waitid(
                    Id::Pid(Pid::from_raw(pid)),
                    WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG,
                );
            }
        }
    }

    /// Everyone up and awake, everything begun brought to its end.
    pub(crate) fn quiet_down(&mut self) -> Result<(), Trouble> {
        if self.daemon.is_none() {
            self.start_daemon()?;
        }
        self.signal_daemon(SIGCONT)?;
        for shim in processes::shims(&self.paths.root) {
            shim.signal(Signal::SIGCONT);
        }
        self.actors.iter_mut().for_each(Actor::shim_goes_on);
        self.make_up()?;
        for number in 0..self.actors.len() {
            self.settle(number)?;
            self.end_exec(number)?;
            self.finish(number)?;
        }
        Ok(())
    }
}
