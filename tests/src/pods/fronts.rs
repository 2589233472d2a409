//! The phase that kills fronts. containerd then runs `delete` for each container of the pod, which kills
//! what still runs: that is its protocol. Whoever had exited before must keep its status.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::Value;

use super::Stage;
use super::bed::LIMIT;
use super::left;
use super::life::At;
use super::plan::{Seeds, code};
use crate::Proc;

/// The pause between two looks at something that nothing tells of.
const PAUSE: Duration = Duration::from_millis(10);
/// What a container has been that `delete` has killed.
const KILLED: u64 = 137;

/// How far the first container of a pod is when the front dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Running,
    /// Its process has ended, and maybe nobody knows it yet.
    Ended,
    /// containerd has had the event.
    Told,
}

/// Kills the fronts of as many pods as the plan has, one after the other.
pub(crate) fn kill(stage: &Stage, seeds: Seeds) {
    let mut random = seeds.fronts();
    let path = stage.bed.dir.join("events");
    let mut events = match Events::begin(stage, path) {
        Ok(events) => events,
        Err(error) => return stage.violated(format!("no events: {error}")),
    };
    for number in 0..seeds.fronts {
        let when = random.one_of(&[When::Running, When::Ended, When::Told]);
        let code = code(&mut random);
        if let Err(what) = one(stage, &events, number, when, code) {
            stage.violated(format!("front {number}, killed when {when:?}: {what}"));
            break;
        }
        stage.report.count(format!("front killed, its container: {when:?}"));
    }
    events.end();
    if stage.is_fine() {
        let left = left::after_a_while(&stage.bed);
        left.into_iter().for_each(|what| stage.violated(format!("left by a front: {what}")));
    }
}

fn one(stage: &Stage, events: &Events, number: usize, when: When, code: u8) -> Result<(), String> {
    let bed = &stage.bed;
    let ids = ["a", "b"].map(|name| format!("{}-front-{number}-{name}", bed.namespace));
    let [exits, stays] = &ids;
    let gate = bed.dir.join("share").join(exits);
    let made = nix::unistd::mkfifo(&gate, Mode::S_IRUSR | Mode::S_IWUSR);
    made.map_err(|error| format!("mkfifo: {error}"))?;
    let scripts = [format!("read x </share/{exits}; exit {code}"), "exec sleep 1000000".to_owned()];
    for (id, script) in ids.iter().zip(&scripts) {
        let words = bed.create(id, exits, script).map_err(|error| error.to_string())?;
        ctr(stage, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
        ctr(stage, &["task", "start", "--detach", "--null-io", id])?;
    }
    let (pid, _) = bed.task(exits)?.ok_or("the task is not listed")?;
    let process = Proc::of(pid).ok_or("its process does not run")?;
    let fronts = bed.fronts();
    let front = fronts.iter().find(|front| front.command().contains(exits.as_str()));
    let front = front.ok_or_else(|| format!("no front of {exits} among {fronts:?}"))?;
    if when != When::Running {
        let mut open = File::options().read(true).write(true).open(&gate);
        let opened = open.as_mut().map(|gate| std::io::Write::write_all(gate, b"\n"));
        opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        until("the process to end", || !process.lives())?;
    }
    if when == When::Told && !bed.tap.wait(exits, LIMIT, |history| history.at() == At::Ended) {
        return Err("no event of its exit".to_owned());
    }
    front.signal(Signal::SIGKILL);
    for id in &ids {
        until("containerd to find the front dead", || matches!(bed.task(id), Ok(None)))?;
    }
    let due = if when == When::Running { KILLED } else { u64::from(code) };
    for (id, due) in [(exits, due), (stays, KILLED)] {
        until("an event of the exit", || !events.statuses(id).is_empty())?;
        let statuses = events.statuses(id);
        if statuses.iter().any(|status| *status != due) {
            return Err(format!("{id} ended with {due}, and containerd has {statuses:?}"));
        }
        ctr(stage, &["container", "delete", id])?;
        bed.tap.take(id);
    }
    fs::remove_file(gate).map_err(|error| error.to_string())
}

fn ctr(stage: &Stage, args: &[&str]) -> Result<(), String> {
    let said = stage.bed.ctr(args);
    if said.has_failed() { Err(format!("{}: {said:?}", args.join(" "))) } else { Ok(()) }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), String> {
    let end = Instant::now() + LIMIT;
    while !holds() {
        if Instant::now() > end {
            return Err(format!("waited for {what}"));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// What containerd itself tells its clients, who see also what it makes of a front's death.
struct Events {
    ctr: Child,
    path: PathBuf,
}

impl Events {
    fn begin(stage: &Stage, path: PathBuf) -> Result<Self, String> {
        let file = File::create(&path).map_err(|error| error.to_string())?;
        // Not by `timeout`: it stays for the whole phase.
        let mut command = stage.bed.ctr_command(&["events"]);
        let ctr = command.stdout(file).stderr(Stdio::null()).spawn();
        let events = Self { ctr: ctr.map_err(|error| error.to_string())?, path };
        let mut count = 0;
        // Nothing tells that it listens but an event that it hears.
        until("ctr to hear an event", || {
            count += 1;
            let label = format!("count={count}");
            let labelled = ctr_label(stage, &label);
            labelled && fs::metadata(&events.path).is_ok_and(|file| file.len() > 0)
        })?;
        Ok(events)
    }

    /// How a container ended, as often as that was told.
    fn statuses(&self, id: &str) -> Vec<u64> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let exits = text.lines().filter_map(|line| line.split_once(" /tasks/exit "));
        let exits = exits.filter_map(|(_, json)| serde_json::from_str::<Value>(json).ok());
        let of_it = exits.filter(|exit| exit["container_id"] == id);
        // Not shown if it is 0.
        of_it.map(|exit| exit["exit_status"].as_u64().unwrap_or(0)).collect()
    }

    fn end(&mut self) {
        let _ = (self.ctr.kill(), self.ctr.wait());
    }
}

fn ctr_label(stage: &Stage, label: &str) -> bool {
    let args = ["namespaces", "label", &stage.bed.namespace, label];
    !stage.bed.ctr(&args).has_failed()
}
