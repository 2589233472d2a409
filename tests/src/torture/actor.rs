//! One container of the plan as it is carried out: what we hold of it and what we know of its end.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use holdfast_state::cri::{self, Mark};
use holdfast_sys::PidFd;
use nix::sys::stat::Mode;

use super::plan::{End, Life, Program, Role, Runtime};
use super::programs::{Cli, Paths};

/// The daemon's `RECORD_GRACE`, less what a clock here and one there may differ by.
const GRACE: Duration = Duration::from_secs(9);

/// Who was dead when a container exited: a row of the promise table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cell {
    Nobody,
    Daemon,
    Shim,
    Both,
}

impl Cell {
    pub(crate) const ALL: [Self; 4] = [Self::Nobody, Self::Daemon, Self::Shim, Self::Both];

    pub(crate) fn of(daemon_lives: bool, shim_lives: bool) -> Self {
        match (daemon_lives, shim_lives) {
            (true, true) => Self::Nobody,
            (false, true) => Self::Daemon,
            (true, false) => Self::Shim,
            (false, false) => Self::Both,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Daemon => "daemon",
            Self::Shim => "shim",
            Self::Both => "daemon and shim",
        }
    }
}

/// How far it has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Not started yet, or to be started again.
    Planned,
    /// Someone is at it.
    Starting {
        cli: Cli,
        /// The daemon was killed meanwhile.
        interrupted: bool,
    },
    /// Who was at it was killed; whether it is there is to be asked.
    Limbo,
    /// It runs, and this is its process.
    Up(PidFd),
    /// It has exited.
    Ended,
    /// It is of no use any more, and that has been told.
    Failed,
}

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) role: Role,
    pub(crate) id: String,
    /// The group that it is in, if its shim is not its own.
    pub(crate) group: Option<&'static str>,
    name: String,
    attempt: u32,
    pub(crate) phase: Phase,
    gate: Option<File>,
    pub(crate) shim: Option<i32>,
    /// Who was dead when it exited; worse once those die who had yet to write it down.
    pub(crate) cell: Option<Cell>,
    /// Its exit was on disk before the last who had a hand in it was killed.
    pub(crate) recorded: bool,
    /// Since when its shim is stopped, or its process has ended, whichever came later.
    pub(crate) stopped_since: Option<Instant>,
    /// Its shim was an adopter, and stopped for longer after the exit than the daemon gives it.
    pub(crate) overdue: bool,
    /// The daemon that lives was there when it exited. One that came later knows of it only what it
    /// finds: of a process that was reaped meanwhile, what a shim tells or has written.
    pub(crate) witnessed: bool,
    /// There was a time when it had neither daemon nor shim.
    pub(crate) forsaken: bool,
    /// A shim of it was killed at some time.
    pub(crate) lost_shim: bool,
    /// How many of its shims were killed, at the most: some may have had nothing to do with it yet.
    pub(crate) killed_shims: usize,
    /// The shim of its group was killed while it was being started, so that may come to nothing.
    pub(crate) disturbed: bool,
    /// An exec that is at work, and its code.
    pub(crate) exec: Option<(Cli, u8, bool)>,
    /// The codes of all its execs.
    pub(crate) execs: Vec<u8>,
    /// It was made to exit while an exec was at work.
    pub(crate) exec_cut_off: bool,
}

impl Actor {
    pub(crate) fn new(number: usize, name: String, role: Role) -> Self {
        // Every third that waits to be let go; one that does not may lose its shim unseen.
        let group = (number.is_multiple_of(3) && role.life != Life::AtOnce).then_some("shared");
        Self {
            role,
            id: name.clone(),
            group,
            name,
            attempt: 0,
            phase: Phase::Planned,
            gate: None,
            shim: None,
            cell: None,
            recorded: false,
            stopped_since: None,
            overdue: false,
            witnessed: false,
            forsaken: false,
            lost_shim: false,
            killed_shims: 0,
            disturbed: false,
            exec: None,
            execs: Vec::new(),
            exec_cut_off: false,
        }
    }

    /// The next try, under another id: of the one before nothing may be left, and that is looked at.
    pub(crate) fn again(&mut self) {
        self.attempt += 1;
        (self.disturbed, self.lost_shim, self.forsaken) = (false, false, false);
        self.killed_shims = 0;
        self.id = format!("{}.{}", self.name, self.attempt);
        self.phase = Phase::Planned;
    }

    /// Makes the gate and returns the script.
    pub(crate) fn script(&mut self, paths: &Paths) -> std::io::Result<String> {
        let inside = format!("/gates/{}", self.id);
        let outside = self.gate_path(paths);
        let path = match self.role.runtime {
            Runtime::Fake => outside.display().to_string(),
            Runtime::Runc => inside,
        };
        // That it ran, for whoever finds nothing of it. The root of a real container is read-only.
        let begins = match self.role.runtime {
            Runtime::Fake => format!(": > {}; echo begins", self.trace(paths).display()),
            Runtime::Runc => "echo begins".to_owned(),
        };
        let hostile = match self.role.runtime {
            Runtime::Fake => paths.program("hostile").display().to_string(),
            Runtime::Runc => "hostile".to_owned(),
        };
        if let (Life::AtOnce, End::Code(code)) = (self.role.life, self.role.end) {
            return Ok(match self.role.program {
                Program::Shell => format!("{begins}; echo ends; exit {code}"),
                Program::Hostile { seed, millis } => {
                    format!("{begins}; exec {hostile} mischief {seed} {millis} {code}")
                }
            });
        }
        nix::unistd::mkfifo(&outside, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Opened for both: neither side waits for the other, and what is written stays.
        self.gate = Some(File::options().read(true).write(true).open(&outside)?);
        Ok(match self.role.program {
            Program::Shell => format!("{begins}; read -r code < {path}; echo ends; exit $code"),
            // The same process, so that it dies of what its signal does.
            Program::Hostile { seed, .. } => {
                format!("{begins}; exec {hostile} mischief-until {seed} {path}")
            }
        })
    }

    /// Whether it attacks its own output, of which nothing is promised then.
    pub(crate) fn is_hostile(&self) -> bool {
        matches!(self.role.program, Program::Hostile { .. })
    }

    /// A SIGKILL for its shim.
    pub(crate) fn shim_is_killed(&mut self) {
        self.lost_shim = true;
        self.killed_shims += 1;
    }

    fn trace(&self, paths: &Paths) -> PathBuf {
        self.gate_path(paths).with_added_extension("ran")
    }

    /// Whether its program has run, as far as it can tell.
    pub(crate) fn has_run(&self, paths: &Paths) -> bool {
        self.trace(paths).exists()
    }

    fn gate_path(&self, paths: &Paths) -> PathBuf {
        paths.bundle().join("rootfs/gates").join(&self.id)
    }

    /// Lets it go the way of its role.
    pub(crate) fn let_go(&mut self, process: &PidFd) -> std::io::Result<()> {
        match self.role.end {
            End::Signal(signal) => process.send_signal(signal),
            End::Code(code) => match &mut self.gate {
                Some(gate) => gate.write_all(format!("{code}\n").as_bytes()),
                None => Ok(()),
            },
        }
    }

    pub(crate) fn close_gate(&mut self, paths: &Paths) {
        if self.gate.take().is_some() {
            let _ = fs::remove_file(self.gate_path(paths));
        }
    }

    /// Its shim goes on, or is dead: was it stopped so long that the daemon could give up on it?
    /// A parent's zombie waits for it whatever happens; an adopter's may be gone with the daemon.
    pub(crate) fn shim_goes_on(&mut self) {
        if let Some(since) = self.stopped_since.take()
            && self.lost_shim
            && matches!(self.phase, Phase::Ended)
            && since.elapsed() > GRACE
        {
            self.overdue = true;
        }
    }

    /// Notes whether its end is on disk by now, whatever it says.
    pub(crate) fn look_for_record(&mut self, paths: &Paths) {
        let is_open = matches!(self.phase, Phase::Ended) && !self.recorded;
        self.recorded |= is_open && paths.init(&self.id).join("exit.json").exists();
    }

    /// Whether how it ended is on disk, and not only that nobody knows.
    pub(crate) fn has_status(&self, paths: &Paths) -> bool {
        fs::read_to_string(paths.init(&self.id).join("exit.json"))
            .is_ok_and(|record| !record.contains("unknown"))
    }

    pub(crate) fn pid(&self, paths: &Paths) -> Option<i32> {
        fs::read_to_string(paths.init(&self.id).join("pid")).ok()?.trim().parse().ok()
    }

    /// The lines in its log, joined by `|`, and how many repeat an earlier one and are marked as such. Those
    /// are left out.
    pub(crate) fn output(&self, paths: &Paths) -> (String, usize) {
        let log = fs::read(paths.init(&self.id).join("output.log")).unwrap_or_default();
        let mut lines: Vec<String> = Vec::new();
        let mut repeated = 0;
        for line in log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            let Some(entry) = cri::decode(line) else {
                lines.push(format!("no entry: {:?}", String::from_utf8_lossy(line)));
                continue;
            };
            let content = String::from_utf8_lossy(entry.content).into_owned();
            if entry.mark == Mark::Again && lines.contains(&content) {
                repeated += 1;
            } else {
                lines.push(content);
            }
        }
        (lines.join("|"), repeated)
    }
}
