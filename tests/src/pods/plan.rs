//! What a seed stands for. Nothing here depends on the machine; how far a pod is when a blow falls does.

use std::time::Duration;

use crate::torture::plan::Random;

/// What a run is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The seed.
    pub seed: u64,
    /// How many pods come and go.
    pub cycles: usize,
    /// How many fronts are killed after that.
    pub fronts: usize,
}

/// How a container is made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It exits with this code when a gate is opened.
    Gate(u8),
    /// It exits with this code by itself, after so many milliseconds. Its client stays attached.
    Itself(u8, usize),
    /// SIGTERM, at which it exits with this code.
    Term(u8),
    /// SIGKILL
    Kill,
}

impl End {
    /// The status that is due.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Gate(code) | Self::Itself(code, _) | Self::Term(code) => code,
            Self::Kill => 137,
        }
    }
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) end: End,
    /// How many lines it writes.
    pub(crate) lines: usize,
    /// The exit codes of its execs.
    pub(crate) execs: Vec<u8>,
}

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Supervisor,
    /// One of the container shims, by a number to choose it by.
    Shim(usize),
    Containerd,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// SIGKILL. containerd is started again after this time, which is nothing to the others.
    Kill(Target, Duration),
    /// SIGSTOP, and SIGCONT after this time.
    Stop(Target, Duration),
    /// The programs of another build are installed, and the supervisor is killed, as an upgrade does it.
    Replace,
}

impl Seeds {
    fn random(self, what: u64, number: usize) -> Random {
        let number = u64::try_from(number).unwrap_or(0);
        Random::new(
            self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(what << 32).wrapping_add(number),
        )
    }

    /// The containers of a pod.
    pub(crate) fn pod(self, number: usize) -> Vec<Member> {
        let mut random = self.random(1, number);
        let count = 1 + random.below(3);
        (0..count).map(|_| member(&mut random)).collect()
    }

    /// The blows of a batch, each after a pause. With more than one build, some replace the programs.
    pub(crate) fn blows(
        self,
        batch: usize,
        builds: bool,
    ) -> impl Iterator<Item = (Duration, Blow)> {
        let mut random = self.random(2, batch);
        std::iter::repeat_with(move || {
            let pause = millis(&mut random, 20, 600);
            match builds && random.below(10) == 0 {
                true => (pause, Blow::Replace),
                false => (pause, blow(&mut random)),
            }
        })
    }

    /// What the phase that kills fronts draws from.
    pub(crate) fn fronts(self) -> Random {
        self.random(3, 0)
    }
}

fn member(random: &mut Random) -> Member {
    let code = code(random);
    let end = match random.below(100) {
        0..30 => End::Gate(code),
        30..60 => End::Itself(code, random.below(400)),
        60..80 => End::Term(code),
        _ => End::Kill,
    };
    // Who is attached is busy with that.
    let execs = if matches!(end, End::Itself(..)) { 0 } else { random.below(4) };
    let execs = (0..execs).map(|_| self::code(random)).collect();
    Member { end, lines: 1 + random.below(500), execs }
}

/// No code that stands for something else: 255 for an unknown status, 137 for SIGKILL, and 1 is what
/// `ctr` ends with when it fails itself.
pub(crate) fn code(random: &mut Random) -> u8 {
    match random.below(4) {
        0 => 0,
        _ => u8::try_from(2 + random.below(120)).unwrap_or(2),
    }
}

fn millis(random: &mut Random, from: usize, to: usize) -> Duration {
    let millis = from + random.below(to - from);
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn blow(random: &mut Random) -> Blow {
    let shim = Target::Shim(random.below(1000));
    match random.below(100) {
        0..25 => Blow::Kill(Target::Supervisor, Duration::ZERO),
        25..55 => Blow::Kill(shim, Duration::ZERO),
        55..65 => Blow::Kill(Target::Containerd, millis(random, 0, 1000)),
        65..75 => Blow::Stop(Target::Supervisor, millis(random, 10, 1500)),
        75..90 => Blow::Stop(shim, millis(random, 10, 1000)),
        _ => Blow::Stop(Target::Containerd, millis(random, 10, 1000)),
    }
}
