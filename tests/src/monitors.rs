//! Containers of podman that write numbered lines and end with a known code, while their monitors, those that have
//! taken over and the keeper are killed at random. Every status must be right, no line be missing, and nothing be
//! left.
//!
//! A keeper is killed only when it knows all monitors, and a monitor only when the keeper knows it: with both, nobody is
//! left who could take over.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::keeper::Keeper;
use crate::outcome::{Counts, Outcome};
use crate::podman::{HOLDFAST, Podman};
use crate::torture::plan::Random;
use crate::{Proc, Ran, processes, ran};

/// Containers that live at the same time.
const WORKERS: usize = 12;
/// How many descriptors the keeper has of itself, and of a monitor that has registered.
const OWN: usize = 6;
const EACH: usize = 3;
/// How long a keeper may take to learn of all monitors, and what is left to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a run is drawn from.
#[derive(Debug, Clone, Copy)]
pub struct Seeds {
    /// The seed.
    pub seed: u64,
    /// How many containers come and go.
    pub containers: usize,
}

/// A container.
struct Plan {
    code: u8,
    lines: usize,
    /// After how many lines it sleeps a moment.
    pace: usize,
    /// Whether it is killed once it is half through.
    is_killed: bool,
}

impl Seeds {
    fn container(self, number: usize) -> Plan {
        let mut random = Random::new(self.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        let code = u8::try_from(random.below(125)).unwrap_or(1);
        let (lines, pace) = (200 + random.below(3000), 20 + random.below(60));
        Plan { code, lines, pace, is_killed: random.below(8) == 0 }
    }
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Report {
    counts: Counts,
}

impl Report {
    fn add(&self, what: &'static str, count: usize) {
        self.counts.add(what, count);
    }

    /// How often that was counted.
    #[must_use]
    pub fn count(&self, what: &str) -> usize {
        self.counts.of(what)
    }

    /// For a person.
    #[must_use]
    pub fn table(&self) -> String {
        self.counts.table()
    }

    /// For a program.
    #[must_use]
    pub fn json(&self, seeds: Seeds, took: Duration) -> Value {
        json!({
            "what": "cargo xtask torture --podman",
            "containersPlanned": seeds.containers,
            "counts": self.counts.json(),
            "seconds": took.as_secs_f64(),
        })
    }
}

/// All that those who take part have in common.
struct Stage {
    podman: Podman,
    seeds: Seeds,
    report: Report,
    violations: Mutex<Vec<String>>,
    next: AtomicUsize,
    /// The containers that podman has reported and that were not waited for.
    running: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Stage {
    fn violated(&self, violation: String) {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(violation);
    }

    fn is_fine(&self) -> bool {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn running(&self) -> Vec<String> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The monitors of containers that podman has reported.
    fn monitors(&self) -> Vec<Proc> {
        let running = self.running();
        let all = processes::mentioning(self.podman.path()).into_iter();
        all.filter(|it| is_monitor(it) && running.iter().any(|id| it.command().contains(id)))
            .filter(Proc::lives)
            .collect()
    }

    fn socket(&self) -> PathBuf {
        self.podman.path().join("keeper.sock")
    }
}

fn is_monitor(process: &Proc) -> bool {
    let program = process.command().split(' ').next().unwrap_or_default();
    program.ends_with("holdfast-conmon") && !process.command().contains(" --keep ")
}

/// Carries out a plan, and says now and then how far it is. Ends where something is wrong. `None` where there is no
/// podman, which is said.
///
/// # Panics
///
/// If the machine does not let it begin.
pub async fn run(seeds: Seeds, progress: impl Fn(&Report)) -> Option<Outcome<Report>> {
    let podman = Podman::start(HOLDFAST).await?;
    let stage = Stage {
        podman,
        seeds,
        report: Report::default(),
        violations: Mutex::default(),
        next: AtomicUsize::new(0),
        running: Mutex::default(),
        is_over: AtomicBool::new(false),
    };
    let option = format!("HOLDFAST_CONMON_OPTIONS=--keeper {}", stage.socket().display());
    stage.podman.configure(&format!("[engine]\nconmon_env_vars = [{option:?}]\n"));
    let work = async {
        let workers = (0..WORKERS).map(|_| worker(&stage, &progress));
        futures::future::join_all(workers).await;
        stage.is_over.store(true, Ordering::Relaxed);
    };
    let (keeper, ()) = tokio::join!(blows(&stage), work);
    if stage.is_fine() {
        look_for_rest(&stage, &keeper).await;
    }
    let Stage { podman, report, violations, .. } = stage;
    let violations = violations.into_inner().unwrap_or_else(PoisonError::into_inner);
    // What is wrong says all that is known of it.
    drop(podman);
    Some(Outcome { report, violations, kept: None })
}

async fn worker(stage: &Stage, progress: &impl Fn(&Report)) {
    while stage.is_fine() {
        let number = stage.next.fetch_add(1, Ordering::Relaxed);
        if number >= stage.seeds.containers {
            return;
        }
        let plan = stage.seeds.container(number);
        if let Err(what) = life(stage, number, &plan).await {
            let said = std::fs::read_to_string(stage.socket().with_extension("log"));
            let said = said.unwrap_or_default();
            stage.violated(format!("container {number}: {what}\nthe keeper said: {said}"));
        }
        stage.report.add("containers", 1);
        if stage.report.count("containers").is_multiple_of(50) {
            progress(&stage.report);
        }
    }
}

/// A container's whole life.
async fn life(stage: &Stage, number: usize, plan: &Plan) -> Result<(), String> {
    let podman = &stage.podman;
    let name = format!("torture-{number}");
    let Plan { code, lines, pace, is_killed } = plan;
    let half = if *is_killed { lines / 2 } else { lines + 1 };
    let script = format!(
        "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; \
         [ $i = {half} ] && sleep 1000; [ $((i % {pace})) = 0 ] && sleep 0.1; done; exit {code}"
    );
    let run = podman.script(&["-d", "--name", &name, "--log-driver", "k8s-file"], &script);
    let id = succeeds(run).await?;
    stage.running.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
    let place =
        succeeds(podman.command(&["inspect", "--format", "{{.HostConfig.LogConfig.Path}}", &name]))
            .await?;
    let log = || std::fs::read_to_string(&place).unwrap_or_default();
    if *is_killed {
        let wanted = format!("line {half}\n");
        let deadline = Instant::now() + PATIENCE * 2;
        while !log().ends_with(&wanted) {
            if Instant::now() > deadline {
                return Err(format!("it never said line {half}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        succeeds(podman.command(&["kill", &name])).await?;
    }
    let (status, last) = if *is_killed { (137, half) } else { (i32::from(*code), *lines) };
    let waited = succeeds(podman.command(&["wait", &name])).await?;
    let state = ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", &name];
    let mut inspected = succeeds(podman.command(&state)).await?;
    // Until the exit command has cleared up.
    let deadline = Instant::now() + PATIENCE;
    while inspected.starts_with("stopped") && Instant::now() < deadline {
        inspected = succeeds(podman.command(&state)).await?;
    }
    stage.running.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != id);
    if (waited.as_str(), inspected.as_str()) != (&*status.to_string(), &*format!("exited {status}"))
    {
        let again = succeeds(podman.command(&["container", "cleanup", &name])).await;
        return Err(format!(
            "it ended with {status}; wait: {waited}, inspect: {inspected}; a clean-up by hand: {again:?}"
        ));
    }
    check_log(stage, &log(), last)?;
    succeeds(podman.command(&["rm", &name])).await.map(drop)
}

/// Finds every line once and in order; what is marked as perhaps there twice is there once without the mark.
fn check_log(stage: &Stage, log: &str, last: usize) -> Result<(), String> {
    let (mut text, mut again) = (String::new(), 0);
    for line in log.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let (tag, content) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        match tag {
            "F" => text += &format!("{content}\n"),
            "P" => text += content,
            tag if tag.ends_with(":again") => again += 1,
            _ => return Err(format!("not an entry: {line}")),
        }
    }
    stage.report.add("lines", last);
    stage.report.add("lines marked as perhaps there twice", again);
    let mut expected = (1..=last).map(|number| format!("line {number}"));
    let mut found = text.lines();
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return Ok(()),
            (Some(expected), Some(found)) if expected == found => {}
            (expected, found) => return Err(format!("the log has {found:?}, not {expected:?}")),
        }
    }
}

async fn succeeds(command: tokio::process::Command) -> Result<String, String> {
    let text = format!("{command:?}");
    match ran(command).await {
        Ran { code: Some(0), stdout, .. } => Ok(stdout.trim_end_matches('\n').to_owned()),
        Ran { code, stdout, stderr } => Err(format!("{text}: {code:?} {stdout}{stderr}")),
    }
}

/// Kills until all is over. Returns the last keeper.
async fn blows(stage: &Stage) -> Keeper {
    let mut random = Random::new(stage.seeds.seed);
    let mut keeper = Keeper::start(stage.socket()).await;
    while !stage.is_over.load(Ordering::Relaxed) {
        let pause = u64::try_from(random.below(100)).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if random.below(40) == 0 {
            if !knows_all(stage, &keeper).await {
                return keeper;
            }
            keeper.kill();
            stage.report.add("keepers killed", 1);
            keeper = Keeper::start(stage.socket()).await;
            if !knows_all(stage, &keeper).await {
                return keeper;
            }
            continue;
        }
        // One that has not come back to this keeper has nobody who could take over. With its connection comes its
        // registration.
        let kept = keeper.kept();
        let mut monitors = stage.monitors();
        monitors.retain(|monitor| kept.contains(&monitor.pid));
        if monitors.is_empty() {
            continue;
        }
        let victim = &monitors[random.below(monitors.len())];
        victim.signal(Signal::SIGKILL);
        let is_first = !victim.command().contains(" --adopt ");
        let what = if is_first { "first monitors killed" } else { "adopters killed" };
        stage.report.add(what, 1);
    }
    keeper
}

/// Waits until the keeper knows all monitors.
async fn knows_all(stage: &Stage, keeper: &Keeper) -> bool {
    let deadline = Instant::now() + PATIENCE;
    // A container whose monitor is dead has none until it is taken over. One that has not registered, or which nobody
    // has taken over, has fewer descriptors.
    let are_all = || {
        let (monitors, kept) = (stage.monitors(), keeper.kept());
        monitors.len() >= stage.running().len()
            && monitors.iter().all(|monitor| kept.contains(&monitor.pid))
            && keeper.descriptors() == OWN + EACH * kept.len()
    };
    while !are_all() && !stage.is_over.load(Ordering::Relaxed) && stage.is_fine() {
        if Instant::now() > deadline {
            let (monitors, running) = (stage.monitors(), stage.running());
            stage.violated(format!(
                "the keeper has {} descriptors and {:?}; {} run: {running:?}; monitors: {monitors:?}",
                keeper.descriptors(),
                keeper.kept(),
                running.len()
            ));
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

/// Finds nothing left but the keeper.
async fn look_for_rest(stage: &Stage, keeper: &Keeper) {
    let path = stage.podman.path();
    let own = keeper.process().pid;
    let left = || {
        let others = processes::mentioning(path).into_iter().filter(|it| it.pid != own);
        let mut left: Vec<_> = others.map(|process| process.to_string()).collect();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = path.display().to_string();
        // podman keeps its own storage mounted on itself.
        let ours = format!("{below}/root");
        let is_left = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|at| at.starts_with(&below) && !at.starts_with(&ours))
        };
        left.extend(mounts.lines().filter(is_left).map(str::to_owned));
        for dir in ["tmp/exits", "root/vfs-containers"] {
            let entries = std::fs::read_dir(path.join(dir)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.path().display().to_string());
            left.extend(names.filter(|name| !name.ends_with(".json") && !name.ends_with(".lock")));
        }
        if keeper.descriptors() != OWN {
            left.push(format!("the keeper has {} descriptors", keeper.descriptors()));
        }
        left
    };
    let deadline = Instant::now() + PATIENCE;
    while !left().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    left().into_iter().for_each(|what| stage.violated(format!("left over: {what}")));
    let all = succeeds(stage.podman.command(&["ps", "--all", "--quiet"])).await;
    if all != Ok(String::new()) {
        stage.violated(format!("podman ps: {all:?}"));
    }
}
