//! Who kills and stops supervisor, container shims and containerd, and what is known of it afterwards.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Stage;
use super::plan::{Blow, Target};
use crate::Proc;

/// How long a death may still matter: until another supervisor has restored all, and has adopted those
/// who lost their shim.
const AFTERMATH: Duration = Duration::from_secs(5);

/// The blows that have fallen.
#[derive(Debug, Default)]
pub(crate) struct Blows(Mutex<Vec<Fallen>>);

#[derive(Debug, Clone)]
struct Fallen {
    at: Instant,
    blow: Blow,
    what: String,
}

impl Blows {
    fn all(&self) -> MutexGuard<'_, Vec<Fallen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, blow: Blow, what: String) {
        self.all().push(Fallen { at: Instant::now(), blow, what });
    }

    /// Whether a container shim was killed since then.
    pub(crate) fn shim_killed_since(&self, since: Instant) -> bool {
        self.all().iter().any(|fallen| {
            fallen.at >= since && matches!(fallen.blow, Blow::Kill(Target::Shim(_), _))
        })
    }

    /// Whether a supervisor and a shim were both killed since then, or so shortly before that neither
    /// may have been replaced: nobody may have seen what ended then.
    pub(crate) fn both_killed_since(&self, since: Instant) -> bool {
        let killed = |supervisor: bool| {
            self.all().iter().any(|fallen| {
                let target = match fallen.blow {
                    Blow::Kill(target, _) => target,
                    Blow::Replace => Target::Supervisor,
                    Blow::Stop(..) => return false,
                };
                fallen.at + AFTERMATH >= since
                    && (target == Target::Supervisor) == supervisor
                    && target != Target::Containerd
            })
        };
        killed(true) && killed(false)
    }

    /// What has happened since shortly before then, for people.
    pub(crate) fn since(&self, since: Instant) -> Vec<String> {
        let all = self.all();
        let recent = all.iter().filter(|fallen| fallen.at + AFTERMATH >= since);
        recent
            .map(|Fallen { at, blow, what }| {
                let place = match at.checked_duration_since(since) {
                    Some(after) => format!("{after:.3?}"),
                    None => format!("-{:.3?}", since.duration_since(*at)),
                };
                format!("{place} {blow:?} {what}")
            })
            .collect()
    }
}

/// Who was stopped, and is to go on.
type Stopped = Vec<(Instant, Proc)>;

/// Lets the blows of a plan fall until it is over, and puts everyone on their feet again.
pub(crate) fn fall(stage: &Stage, plan: impl Iterator<Item = (Duration, Blow)>, over: &AtomicBool) {
    let mut stopped = Stopped::new();
    // When containerd is to be started again.
    let mut down: Option<Instant> = None;
    for (pause, blow) in plan {
        let next = Instant::now() + pause;
        loop {
            let now = Instant::now();
            stopped.retain(|(until, process)| {
                let stays = *until > now;
                if !stays {
                    process.signal(Signal::SIGCONT);
                }
                stays
            });
            if down.is_some_and(|until| until <= now) {
                down = None;
                start_containerd(stage);
            }
            if now >= next || over.load(Ordering::Relaxed) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        if over.load(Ordering::Relaxed) {
            break;
        }
        strike(stage, blow, &mut stopped, &mut down);
    }
    for (_, process) in stopped {
        process.signal(Signal::SIGCONT);
    }
    if down.is_some() {
        start_containerd(stage);
    }
}

fn start_containerd(stage: &Stage) {
    if let Err(error) = stage.bed.start_containerd() {
        stage.violated(format!("containerd does not start again: {error}"));
    }
}

fn strike(stage: &Stage, blow: Blow, stopped: &mut Stopped, down: &mut Option<Instant>) {
    let target = match blow {
        Blow::Kill(target, _) | Blow::Stop(target, _) => target,
        Blow::Replace => {
            if let Err(error) = stage.bed.replace_programs() {
                stage.violated(format!("the programs can't be replaced: {error}"));
            }
            Target::Supervisor
        }
    };
    let victim = match target {
        Target::Supervisor => stage.bed.supervisors().into_iter().next(),
        Target::Containerd => stage.bed.containerd(),
        Target::Shim(number) => {
            let mut shims = stage.bed.shims();
            (!shims.is_empty()).then(|| shims.swap_remove(number % shims.len()))
        }
    };
    let Some(victim) = victim else {
        stage.report.count(format!("nobody to be hit: {}", name(blow)));
        return;
    };
    // Noted first: what comes of it comes later.
    stage.blows.note(blow, victim.to_string());
    stage.report.count(name(blow).to_owned());
    match blow {
        Blow::Kill(Target::Containerd, pause) => match stage.bed.kill_containerd() {
            Ok(()) => *down = Some(Instant::now() + pause),
            Err(error) => stage.violated(format!("containerd is not killed: {error}")),
        },
        Blow::Kill(..) | Blow::Replace => victim.signal(Signal::SIGKILL),
        Blow::Stop(_, pause) => {
            victim.signal(Signal::SIGSTOP);
            stopped.push((Instant::now() + pause, victim));
        }
    }
}

fn name(blow: Blow) -> &'static str {
    match blow {
        Blow::Kill(Target::Supervisor, _) => "SIGKILL for the supervisor",
        Blow::Kill(Target::Shim(_), _) => "SIGKILL for a container shim",
        Blow::Kill(Target::Containerd, _) => "SIGKILL for containerd",
        Blow::Stop(Target::Supervisor, _) => "SIGSTOP for the supervisor",
        Blow::Stop(Target::Shim(_), _) => "SIGSTOP for a container shim",
        Blow::Stop(Target::Containerd, _) => "SIGSTOP for containerd",
        Blow::Replace => "programs of another build, SIGKILL for the supervisor",
    }
}
