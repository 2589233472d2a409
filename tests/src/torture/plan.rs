//! What a seed stands for: which containers there are, how each ends, and what happens in which
//! order. Nothing here depends on the machine, so the same seed is always the same plan.

use std::fmt;

/// Exits between two reckonings.
pub const BATCH: usize = 500;
/// Containers that live at the same time, at the most.
const IN_FLIGHT: usize = 24;
/// How long a hostile container that ends by itself lives, at the most.
const MISCHIEF_MILLIS: usize = 50;
/// How far back an exit lies whose shim may still be worth a signal.
const JUST_NOW: usize = 3;

/// splitmix64, by Sebastiano Vigna: small, and the same on every machine.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // The remainder is below a usize, whatever its width.
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    pub(crate) fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < usize::from(percent)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn code(&mut self) -> u8 {
        // Those that are easily made out of nothing come more often than one in 256.
        if self.percent(20) {
            self.one_of(&[0, 1, 9, 127, 128, 137, 255])
        } else {
            self.next().to_le_bytes()[0]
        }
    }
}

/// How a container's process is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exits with this code.
    Code(u8),
    /// It is sent this signal and does nothing about it.
    Signal(i32),
}

/// What makes a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// tests/src/bin/fake-runtime.rs
    Fake,
    /// The real thing.
    Runc,
}

/// What runs in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// A shell that says a line when it begins and one when it ends.
    Shell,
    /// `hostile mischief`: does whatever it can to its own input and output.
    Hostile {
        /// What its acts are drawn from.
        seed: u64,
        /// How long it lives if it ends by itself.
        millis: u64,
    },
}

/// When a container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// By itself, as soon as it has begun.
    AtOnce,
    /// When the plan says so.
    Gated,
}

/// A container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Role {
    /// What makes it.
    pub runtime: Runtime,
    /// What runs in it.
    pub program: Program,
    /// How it ends.
    pub end: End,
    /// When it ends.
    pub life: Life,
}

/// What happens next. Numbers are those of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `holdfast run -d`, in the background.
    Start(usize),
    /// It is made to end.
    Exit(usize),
    /// SIGKILL for its shim.
    KillShim(usize),
    /// SIGSTOP for its shim.
    StopShim(usize),
    /// SIGCONT for its shim.
    ContinueShim(usize),
    /// `holdfast exec` of a program that exits with this code, in the background.
    Exec(usize, u8),
    /// SIGKILL for the daemon.
    KillDaemon,
    /// The next daemon.
    StartDaemon,
    /// The next daemon, killed after so many microseconds.
    KillInRestore(u64),
    /// SIGSTOP for the daemon.
    StopDaemon,
    /// SIGCONT for the daemon.
    ContinueDaemon,
    /// Orphans that have ended are reaped by who they came to.
    Reap,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// From one reckoning to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The containers.
    pub roles: Vec<Role>,
    /// What happens, in this order.
    pub ops: Vec<Op>,
}

/// What is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The seed.
    pub seed: u64,
    /// How many containers end.
    pub exits: usize,
    /// How many in a hundred are runc's.
    pub runc_share: u8,
    /// How many in a hundred attack their own output.
    pub hostile_share: u8,
}

impl Seeds {
    /// The plan, a batch at a time.
    pub fn batches(self) -> impl Iterator<Item = Batch> {
        let mut random = Random::new(self.seed);
        let mut left = self.exits;
        std::iter::from_fn(move || {
            let size = left.min(BATCH);
            left -= size;
            (size > 0).then(|| Draft::new(size, self, &mut random).complete())
        })
    }
}

/// Where the daemon stands at a point of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Daemon {
    Up,
    Stopped,
    Dead,
}

/// A batch in the making.
struct Draft<'a> {
    random: &'a mut Random,
    seeds: Seeds,
    size: usize,
    batch: Batch,
    daemon: Daemon,
    /// Those that wait for their end.
    live: Vec<usize>,
    ended: Vec<usize>,
    stopped_shims: Vec<usize>,
}

impl<'a> Draft<'a> {
    fn new(size: usize, seeds: Seeds, random: &'a mut Random) -> Self {
        let batch = Batch { roles: Vec::with_capacity(size), ops: Vec::new() };
        Self {
            random,
            seeds,
            size,
            batch,
            daemon: Daemon::Up,
            live: Vec::new(),
            ended: Vec::new(),
            stopped_shims: Vec::new(),
        }
    }

    fn complete(mut self) -> Batch {
        while self.batch.roles.len() < self.size || !self.live.is_empty() {
            // Some are left for the reckoning to let go, all at once.
            if self.batch.roles.len() == self.size && self.live.len() <= 3 {
                break;
            }
            self.step();
        }
        self.batch
    }

    fn step(&mut self) {
        let (up, dead) = (self.daemon == Daemon::Up, self.daemon == Daemon::Dead);
        let can_start = self.batch.roles.len() < self.size && self.live.len() < IN_FLIGHT && !dead;
        let some_live = !self.live.is_empty();
        let weights = [
            (u32::from(can_start) * if up { 40 } else { 5 }, Self::start as fn(&mut Self)),
            (u32::from(some_live) * 30, Self::exit),
            (u32::from(some_live) * if dead { 24 } else { 14 }, Self::kill_shim),
            (u32::from(some_live) * 4, Self::stop_shim),
            (u32::from(!self.stopped_shims.is_empty()) * 5, Self::continue_shim),
            (u32::from(some_live && up) * 6, Self::exec),
            (u32::from(!dead) * 4, |draft| draft.to(Op::KillDaemon, Daemon::Dead)),
            (u32::from(dead) * 12, |draft| draft.to(Op::StartDaemon, Daemon::Up)),
            (u32::from(dead) * 4, Self::kill_in_restore),
            (u32::from(up) * 3, |draft| draft.to(Op::StopDaemon, Daemon::Stopped)),
            (u32::from(!up && !dead) * 12, |draft| draft.to(Op::ContinueDaemon, Daemon::Up)),
            (12, |draft| draft.batch.ops.push(Op::Reap)),
        ];
        let total: u32 = weights.iter().map(|(weight, _)| weight).sum();
        let mut drawn = self.random.below(total as usize);
        for (weight, act) in weights {
            let weight = weight as usize;
            if drawn < weight {
                return act(self);
            }
            drawn -= weight;
        }
    }

    fn to(&mut self, op: Op, daemon: Daemon) {
        self.batch.ops.push(op);
        self.daemon = daemon;
    }

    fn start(&mut self) {
        let number = self.batch.roles.len();
        let runtime =
            if self.random.percent(self.seeds.runc_share) { Runtime::Runc } else { Runtime::Fake };
        let life = if self.random.percent(15) { Life::AtOnce } else { Life::Gated };
        // Without a share nothing is drawn, and so the plans are those of older versions.
        let share = self.seeds.hostile_share;
        let program = if share > 0 && self.random.percent(share) {
            let millis = self.random.below(MISCHIEF_MILLIS) as u64;
            Program::Hostile { seed: self.random.next(), millis }
        } else {
            Program::Shell
        };
        let by_signal = life == Life::Gated && self.random.percent(30);
        let end = match (by_signal, runtime, program) {
            (false, ..) => End::Code(self.random.code()),
            // The first process of a pid namespace dies of no other.
            (true, Runtime::Runc, _) => End::Signal(9),
            // A program in Rust ignores SIGPIPE, and survives a SIGSEGV that is sent to it.
            (true, Runtime::Fake, Program::Hostile { .. }) => {
                End::Signal(self.random.one_of(&[1, 2, 3, 6, 9, 10, 14, 15, 37, 64]))
            }
            (true, Runtime::Fake, Program::Shell) => {
                End::Signal(self.random.one_of(&[1, 2, 3, 6, 9, 10, 11, 13, 14, 15, 37, 64]))
            }
        };
        self.batch.roles.push(Role { runtime, program, end, life });
        self.batch.ops.push(Op::Start(number));
        if life == Life::Gated {
            self.live.push(number);
        }
    }

    fn exit(&mut self) {
        let place = self.random.below(self.live.len());
        self.exit_of(place);
    }

    fn exit_of(&mut self, place: usize) {
        let number = self.live.swap_remove(place);
        self.batch.ops.push(Op::Exit(number));
        self.ended.push(number);
        // What follows may find the shim still at its work.
        if self.random.percent(15) {
            self.batch.ops.push(Op::KillShim(number));
        }
        if self.daemon != Daemon::Dead && self.random.percent(3) {
            self.to(Op::KillDaemon, Daemon::Dead);
        }
    }

    fn kill_shim(&mut self) {
        if !self.ended.is_empty() && self.random.percent(15) {
            let back = self.random.below(self.ended.len().min(JUST_NOW));
            let number = self.ended[self.ended.len() - 1 - back];
            self.batch.ops.push(Op::KillShim(number));
            return;
        }
        let place = self.random.below(self.live.len());
        let number = self.live[place];
        self.batch.ops.push(Op::KillShim(number));
        self.stopped_shims.retain(|stopped| *stopped != number);
        match self.random.below(10) {
            // Before another shim is there, or when there will be none.
            0..4 => self.exit_of(place),
            // Its successor, in whatever it is about.
            4 => self.batch.ops.push(Op::KillShim(number)),
            5 if self.daemon != Daemon::Dead => self.to(Op::KillDaemon, Daemon::Dead),
            _ => {}
        }
    }

    fn stop_shim(&mut self) {
        let place = self.random.below(self.live.len());
        let number = self.live[place];
        self.batch.ops.push(Op::StopShim(number));
        self.stopped_shims.push(number);
        if self.random.percent(30) {
            self.exit_of(place);
        }
    }

    fn continue_shim(&mut self) {
        let place = self.random.below(self.stopped_shims.len());
        let number = self.stopped_shims.swap_remove(place);
        self.batch.ops.push(Op::ContinueShim(number));
    }

    fn exec(&mut self) {
        let number = self.random.one_of(&self.live);
        let code = if self.random.percent(30) { 0 } else { self.random.code() };
        self.batch.ops.push(Op::Exec(number, code));
    }

    fn kill_in_restore(&mut self) {
        let micros = self.random.below(30_000) as u64;
        self.batch.ops.push(Op::KillInRestore(micros));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(seed: u64) -> Vec<Batch> {
        Seeds { seed, exits: 1_200, runc_share: 5, hostile_share: 12 }.batches().collect()
    }

    #[test]
    fn a_seed_is_one_plan() {
        assert_eq!(batches(7), batches(7));
        assert_ne!(batches(7), batches(8));
    }

    #[test]
    fn every_container_is_started_once_and_ends_once() {
        let all = batches(3);
        assert_eq!(all.iter().map(|batch| batch.roles.len()).sum::<usize>(), 1_200);
        for batch in all {
            let count =
                |wanted: &dyn Fn(&Op) -> bool| batch.ops.iter().filter(|op| wanted(op)).count();
            for (number, role) in batch.roles.iter().enumerate() {
                assert_eq!(count(&|op| *op == Op::Start(number)), 1);
                let exits = count(&|op| *op == Op::Exit(number));
                assert!(exits <= usize::from(role.life == Life::Gated));
            }
        }
    }
}
