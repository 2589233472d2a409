//! Restart policies and health checks while daemon and shims are killed at random: each restart counted
//! once, no container started twice at a time, the delays kept, and at the end every container where its
//! policy wants it.
//!
//! The programs keep the books: each writes a line into a ledger of its container when it begins, and holds a
//! lock while it lives.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use holdfast_state::Timestamp;
use nix::libc::{SIGCONT, SIGKILL, SIGSTOP};
use serde_json::{Value, json};

use super::Trouble;
use super::plan::Random;
use super::programs::{Cli, Daemon, PATIENCE, Paths, find_shim};
use crate::outcome::Outcome;
use crate::{bundle, processes};

/// Containers of a round.
const CONTAINERS: usize = 24;
/// How long daemon and shims are killed in a round.
const CHAOS: Duration = Duration::from_secs(12);
/// The delay before the first restart, which doubles.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// A run of this length resets the delay.
const LONG: Duration = Duration::from_secs(10);

/// What a container does, and so where it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It fails each time, and may be restarted so often.
    Fails(u32),
    /// It exits so often, and then stays.
    Always(u32),
    /// It is unhealthy in so many runs, and then healthy.
    Unhealthy(u32),
    /// It exits again and again, and is stopped by a user meanwhile.
    Stopped,
}

struct Container {
    id: String,
    role: Role,
    /// The run that a user has stopped.
    stopped: Option<u64>,
}

/// What is counted.
#[derive(Debug, Default)]
pub struct Report {
    restarts: u64,
    failed_starts: u64,
    delays: u64,
    blows: BTreeMap<&'static str, u64>,
}

impl Report {
    /// How many restarts there were.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// For a person.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        let rows = [
            ("restarts, each counted once", self.restarts),
            ("starts that a death has cut off", self.failed_starts),
            ("delays that were not too short", self.delays),
        ];
        for (what, count) in rows.into_iter().chain(self.blows.iter().map(|(k, v)| (*k, *v))) {
            let _ = writeln!(text, "{what:<64} {count:>7}");
        }
        text
    }

    /// For a program.
    #[must_use]
    pub fn json(&self, rounds: usize, took: Duration) -> Value {
        json!({
            "what": "cargo xtask torture --policies",
            "rounds": rounds,
            "containers": rounds * CONTAINERS,
            "restarts": self.restarts,
            "failedStarts": self.failed_starts,
            "delays": self.delays,
            "ops": self.blows,
            "seconds": took.as_secs(),
        })
    }
}

/// Carries out so many rounds. Ends at the first that shows something wrong.
///
/// # Panics
///
/// If the machine does not let it begin.
pub fn run(
    seed: u64,
    rounds: usize,
    programs: &Path,
    mut progress: impl FnMut(&Report),
) -> Outcome<Report> {
    let (scratch, paths) = super::prepare(programs);
    bundle::busybox_bundle(&paths.bundle());
    let mut report = Report::default();
    let mut random = Random::new(seed);
    let mut violations = Vec::new();
    for number in 0..rounds {
        let mut round = Round::new(&paths, &mut report, &mut random, number);
        violations = round.run().err().into_iter().map(|trouble| trouble.what).collect();
        drop(round);
        if !violations.is_empty() {
            break;
        }
        progress(&report);
    }
    let kept = (!violations.is_empty()).then(|| {
        super::clear(&paths);
        scratch.keep()
    });
    Outcome { report, violations, kept }
}

struct Round<'a> {
    paths: &'a Paths,
    report: &'a mut Report,
    random: &'a mut Random,
    containers: Vec<Container>,
    daemon: Option<Daemon>,
    /// Whether it was waited for until it listens.
    serves: bool,
}

impl<'a> Round<'a> {
    fn new(
        paths: &'a Paths,
        report: &'a mut Report,
        random: &'a mut Random,
        number: usize,
    ) -> Self {
        let container = |index: usize| {
            let times = u32::try_from(1 + index / 4 % 6).unwrap_or(1);
            let role = match index % 4 {
                0 => Role::Fails(times),
                1 => Role::Always(times),
                2 => Role::Unhealthy(times.min(3)),
                _ => Role::Stopped,
            };
            let id = format!("policies-{}-{number}-{index}", std::process::id());
            Container { id, role, stopped: None }
        };
        let containers = (0..CONTAINERS).map(container).collect();
        Self { paths, report, random, containers, daemon: None, serves: false }
    }

    fn run(&mut self) -> Result<(), Trouble> {
        self.begin_daemon(true)?;
        for index in 0..self.containers.len() {
            self.start(index)?;
        }
        let end = Instant::now() + CHAOS;
        while Instant::now() < end {
            sleep(Duration::from_millis(10 + self.random.below(300) as u64));
            self.blow()?;
        }
        if !self.serves {
            self.begin_daemon(true)?;
        }
        let deadline = Instant::now() + PATIENCE;
        for index in 0..self.containers.len() {
            self.come_to_rest(index, deadline)?;
        }
        self.delete()
    }

    /// Kills the daemon, if there is one, and starts the next.
    fn begin_daemon(&mut self, waits: bool) -> Result<(), Trouble> {
        if let Some(daemon) = self.daemon.take() {
            daemon.kill()?;
            sleep(Duration::from_millis(self.random.below(250) as u64));
        }
        let daemon = self.daemon.insert(Daemon::begin(self.paths)?);
        if waits {
            daemon.listens()?;
        }
        self.serves = waits;
        Ok(())
    }

    fn ledger(&self, index: usize) -> std::path::PathBuf {
        self.paths.scratch.join(&self.containers[index].id)
    }

    fn start(&mut self, index: usize) -> Result<(), Trouble> {
        let ledger = self.ledger(index).display().to_string();
        let pause = self.random.below(30);
        let code = 1 + self.random.below(100);
        let begin = format!(
            "exec 9>>{ledger}.lock; flock -n 9 || echo twice >> {ledger}; echo start >> {ledger}; "
        );
        // All runs up to this one exit.
        let exits = |runs: u32| {
            format!(
                "[ $(grep -c start {ledger}) -gt {runs} ] || {{ sleep 0.{pause:02}; exit {code}; }}; "
            )
        };
        let id = self.containers[index].id.clone();
        let bundle = self.paths.bundle().display().to_string();
        let mut args = vec!["run", "--detach", "--name", &id, "--bundle", &bundle];
        let (policy, check);
        let script = match self.containers[index].role {
            Role::Fails(most) => {
                policy = format!("on-failure:{most}");
                args.extend(["--restart", &policy]);
                format!("sleep 0.{pause:02}; exit {code}")
            }
            Role::Always(times) => {
                let policy = *["always", "unless-stopped"].get(index % 2).unwrap_or(&"always");
                args.extend(["--restart", policy]);
                exits(times) + "exec sleep 100000"
            }
            Role::Unhealthy(times) => {
                check = format!("[ $(grep -c start {ledger}) -gt {times} ]");
                args.extend(["--health-cmd", &check, "--health-interval", "100ms"]);
                args.extend(["--health-retries", "2", "--restart-on-unhealthy"]);
                "exec sleep 100000".to_owned()
            }
            Role::Stopped => {
                args.extend(["--restart", "always"]);
                exits(1000)
            }
        };
        let script = begin + &script;
        args.extend(["--", "sh", "-c", &script]);
        self.command(&args).map(drop)
    }

    /// Runs a command that must succeed.
    fn command(&self, args: &[&str]) -> Result<String, Trouble> {
        let said = Cli::begin(self.paths, args)?.end()?;
        match said.code {
            Some(0) => Ok(said.stdout),
            _ => Err(Trouble::new(format!("holdfast {}: {said:?}", args.join(" ")))),
        }
    }

    /// Does one thing to the daemon, to a shim, or as a user.
    fn blow(&mut self) -> Result<(), Trouble> {
        let (what, index) = (self.random.below(100), self.random.below(self.containers.len()));
        let blow = match what {
            0..50 => {
                // The others are killed again within their restore.
                let waits = self.random.percent(70);
                self.begin_daemon(waits)?;
                "daemon killed"
            }
            50..60 => {
                let pause = self.random.below(200) as u64;
                let Some(daemon) = &self.daemon else { return Ok(()) };
                daemon.signal(SIGSTOP)?;
                sleep(Duration::from_millis(pause));
                daemon.signal(SIGCONT)?;
                "daemon stopped and continued"
            }
            60..85 => {
                let init = self.paths.init(&self.containers[index].id);
                let Some((_, shim)) = find_shim(&init, None) else { return Ok(()) };
                let _ = shim.send_signal(SIGKILL);
                "shim killed"
            }
            _ => {
                let container = &self.containers[index];
                if container.role != Role::Stopped || container.stopped.is_some() || !self.serves {
                    return Ok(());
                }
                self.stop(index)?;
                "container stopped by a user"
            }
        };
        *self.report.blows.entry(blow).or_default() += 1;
        Ok(())
    }

    /// Stops a container as a user does it.
    fn stop(&mut self, index: usize) -> Result<(), Trouble> {
        let id = self.containers[index].id.clone();
        self.command(&["stop", "--time", "0", &id])?;
        let run = self.inspect(&id)?["run"].as_u64();
        self.containers[index].stopped = run;
        Ok(())
    }

    fn inspect(&self, id: &str) -> Result<Value, Trouble> {
        let text = self.command(&["inspect", "--json", id])?;
        serde_json::from_str(&text).map_err(|error| Trouble::new(format!("{id}: {error}: {text}")))
    }

    /// Waits until a container is where its policy wants it, and judges how it came there.
    fn come_to_rest(&mut self, index: usize, deadline: Instant) -> Result<(), Trouble> {
        let (id, role) = (self.containers[index].id.clone(), self.containers[index].role);
        if role == Role::Stopped && self.containers[index].stopped.is_none() {
            self.stop(index)?;
        }
        let (info, past) = loop {
            // Read first: the run that is inspected then is the last of these, or a later one.
            let starts = self.starts(index);
            let info = self.inspect(&id)?;
            let past = self.past(&id)?;
            if is_at_rest(role, &info, &past, starts) {
                break (info, past);
            }
            if Instant::now() > deadline {
                let text = format!("{id}, {role:?} does not come to rest: {info:#}\n{past:?}");
                return Err(Trouble::new(text));
            }
            sleep(Duration::from_millis(20));
        };
        let judged = self.judge(index, &info, &past);
        judged.map_err(|what| {
            let ledger = fs::read_to_string(self.ledger(index)).unwrap_or_default();
            Trouble::new(format!("{id}, {role:?}: {what}\n{info:#}\n{past:#?}\n{ledger}"))
        })?;
        if role == Role::Stopped {
            self.command(&["start", &id])?;
            let restart = &self.inspect(&id)?["restart"];
            if restart["stopped"] != false {
                return Err(Trouble::new(format!("{id} is started and counts as stopped")));
            }
        }
        Ok(())
    }

    /// How many programs of a container have begun.
    fn starts(&self, index: usize) -> u64 {
        let ledger = fs::read_to_string(self.ledger(index)).unwrap_or_default();
        ledger.lines().filter(|line| *line == "start").count() as u64
    }

    fn past(&self, id: &str) -> Result<Vec<Value>, Trouble> {
        match fs::read(self.paths.init(id).join("runs.json")) {
            Err(_) => Ok(Vec::new()),
            Ok(text) => serde_json::from_slice(&text)
                .map_err(|error| Trouble::new(format!("{id}: runs.json: {error}"))),
        }
    }

    fn judge(&mut self, index: usize, info: &Value, past: &[Value]) -> Result<(), String> {
        let ledger = fs::read_to_string(self.ledger(index)).unwrap_or_default();
        if ledger.contains("twice") {
            return Err("was started while it ran".to_owned());
        }
        let run = info["run"].as_u64().ok_or("has no run")?;
        if info["restart"]["count"] != run - 1 {
            return Err(format!("counts {} restarts", info["restart"]["count"]));
        }
        if self.containers[index].stopped.is_some_and(|stopped| stopped != run) {
            return Err("was restarted after a user had stopped it".to_owned());
        }
        let starts = self.starts(index);
        let failed = past.iter().filter(|run| !run["error"].is_null()).count() as u64;
        let all = last_run(info, past);
        // A start that a death has cut off has a number, and its program ran or did not. One that a user
        // stops at once may end before it says that it began.
        let stopped = u64::from(self.containers[index].stopped.is_some());
        if !((all - failed).saturating_sub(stopped)..=all).contains(&starts) {
            return Err(format!("{starts} programs began in {all} runs, {failed} starts failed"));
        }
        self.report.restarts += run - 1;
        self.report.failed_starts += failed;
        self.report.delays += delays(info, past)?;
        Ok(())
    }

    fn delete(&mut self) -> Result<(), Trouble> {
        for container in &self.containers {
            self.command(&["delete", "--force", &container.id])?;
        }
        let daemon = self.daemon.take().ok_or_else(|| Trouble::new("no daemon".to_owned()))?;
        daemon.close()?;
        let left = processes::mentioning(&self.paths.scratch);
        if left.is_empty() {
            return Ok(());
        }
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        Err(Trouble::new(format!("left over: {}", left.join("\n"))))
    }
}

/// The number of the last run. One whose start failed has a number too.
fn last_run(info: &Value, past: &[Value]) -> u64 {
    let past = past.last().and_then(|run| run["run"].as_u64()).unwrap_or_default();
    info["run"].as_u64().unwrap_or_default().max(past)
}

fn is_at_rest(role: Role, info: &Value, past: &[Value], starts: u64) -> bool {
    let status = info["status"].as_str().unwrap_or_default();
    match role {
        Role::Fails(most) => status == "stopped" && last_run(info, past) == u64::from(most) + 1,
        Role::Stopped => status == "stopped",
        // A program that begins after so many others stays.
        Role::Always(times) => status == "running" && starts > u64::from(times),
        Role::Unhealthy(_) => status == "running" && info["health"]["status"] == "healthy",
    }
}

fn time(value: &Value) -> Option<SystemTime> {
    let time: Timestamp = serde_json::from_value(value.clone()).ok()?;
    SystemTime::try_from(&time).ok()
}

/// Checks that no restart came before its delay was over. Returns how many could be checked.
fn delays(info: &Value, past: &[Value]) -> Result<u64, String> {
    let mut checked = 0;
    let mut runs = past.to_vec();
    runs.push(json!({ "run": info["run"], "started": info["started"], "exit": info["exit"] }));
    for pair in runs.windows(2) {
        let (Some(number), Some(ended), Some(began)) =
            (pair[0]["run"].as_u64(), time(&pair[0]["exit"]["time"]), time(&pair[1]["started"]))
        else {
            continue;
        };
        let lasted = time(&pair[0]["started"]).and_then(|began| ended.duration_since(began).ok());
        if lasted.is_some_and(|lasted| lasted >= LONG) {
            break;
        }
        let least = FIRST_DELAY * (1 << (number - 1).min(9));
        let waited = began.duration_since(ended).unwrap_or_default();
        if waited < least {
            return Err(format!("run {number} was followed after {waited:?}, before {least:?}"));
        }
        checked += 1;
    }
    Ok(checked)
}
