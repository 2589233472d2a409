//! After a batch: whether every status is right, every event in its place, and nothing left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::processes;

use super::Trouble;
use super::actor::Cell;
use super::consumer::{Consumer, Ledger};
use super::controller::Controller;
use super::plan::End;
use super::programs::{Cli, Daemon, PATIENCE, Paths};

/// How many containers are given to one command.
const AT_ONCE: usize = 50;

/// What the kernel is able to tell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Abilities {
    /// How a process ended after another has reaped it.
    pub(crate) tells_endings: bool,
}

impl Controller<'_> {
    /// Compares, deletes, and looks at what is left. Everything that is not as it should be.
    pub(crate) fn reckon(
        &mut self,
        kernel: Abilities,
        descriptors: &[String],
        consumer: Consumer,
        ledger: &mut Ledger,
    ) -> Vec<Trouble> {
        let mut troubles = Vec::new();
        let statuses = self.statuses(kernel, &mut troubles);
        if !troubles.is_empty() {
            // Their directories are wanted.
            return troubles;
        }
        let deleted = self.delete_all(&statuses, consumer).map(|after| *ledger = after);
        troubles.extend(deleted.err());
        if troubles.is_empty() {
            troubles.extend(self.leftovers(descriptors).err());
        }
        troubles
    }

    fn statuses(&mut self, kernel: Abilities, troubles: &mut Vec<Trouble>) -> Vec<Value> {
        let mut all = Vec::new();
        for first in (0..self.actors.len()).step_by(AT_ONCE) {
            let numbers: Vec<usize> = (first..self.actors.len().min(first + AT_ONCE)).collect();
            let lines = self.wait_for(&numbers).unwrap_or_else(|_| {
                // Which of them it is shows when they are asked one by one.
                numbers
                    .iter()
                    .map(|number| self.wait_for(&[*number]).ok()?.pop())
                    .map(|one| one.unwrap_or_default())
                    .collect()
            });
            for (number, record) in numbers.into_iter().zip(lines) {
                troubles.extend(self.judge(number, &record, kernel).err());
                all.push(record["status"].clone());
            }
        }
        all
    }

    fn wait_for(&self, numbers: &[usize]) -> Result<Vec<Value>, Trouble> {
        let ids = numbers.iter().map(|number| self.actors[*number].id.as_str());
        let args: Vec<&str> = ["wait", "--json"].into_iter().chain(ids).collect();
        let said = Cli::begin(self.paths, &args)?.end()?;
        let lines: Vec<Value> =
            said.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if said.code == Some(0) && lines.len() == numbers.len() {
            Ok(lines)
        } else {
            Err(Trouble::new(format!("wait: {said:?}")))
        }
    }

    fn judge(&mut self, number: usize, record: &Value, kernel: Abilities) -> Result<(), Trouble> {
        let actor = &self.actors[number];
        let cell = actor.cell.unwrap_or(Cell::Nobody);
        let expected = status(actor.role.end);
        let told = &record["status"];
        let evidence = record["evidence"].as_str().unwrap_or("?").to_owned();
        let may_be_unknown =
            cell == Cell::Both || actor.overdue || (cell == Cell::Shim && !kernel.tells_endings);
        let outcome = if *told == expected {
            format!("exact, by {evidence}")
        } else if record.is_null() {
            "LOST".to_owned()
        } else if let Some(reason) = told["unknown"].as_str() {
            let word = if may_be_unknown { "unknown" } else { "UNKNOWN" };
            let why = if actor.overdue { ", its adopter stopped beyond the grace" } else { "" };
            format!("{word}: {reason}{why}")
        } else {
            "WRONG".to_owned()
        };
        let is_bad = outcome.starts_with(|first: char| first.is_ascii_uppercase());
        self.report.outcome(cell, outcome.clone());
        if is_bad {
            let dead = cell.name();
            return Err(Trouble::of(
                number,
                format!("{outcome}: told {record}, expected {expected}, dead at the exit: {dead}"),
            ));
        }
        self.judge_output(number, cell, record)
    }

    fn judge_output(&mut self, number: usize, cell: Cell, record: &Value) -> Result<(), Trouble> {
        let actor = &self.actors[number];
        // What a signal lets it come to is not known, and some take from their output what they like.
        if matches!(actor.role.end, End::Signal(_)) || actor.is_hostile() {
            return Ok(());
        }
        let (output, repeated) = actor.output(self.paths);
        let complete = output == "begins|ends";
        let outcome = match (complete, actor.lost_shim) {
            (true, _) if repeated > 0 => "complete; a part of it twice, and marked".to_owned(),
            (true, _) => "complete".to_owned(),
            (false, true) if actor.forsaken => {
                format!("{output:?} only; at some time it had neither daemon nor shim")
            }
            (false, true) => format!("{output:?} only; a shim of it had been killed"),
            (false, false) => "INCOMPLETE".to_owned(),
        };
        self.report.output(cell, &outcome);
        // One that had neither daemon nor shim may lose it.
        if complete || (actor.lost_shim && (actor.forsaken || cell == Cell::Both)) {
            return Ok(());
        }
        Err(Trouble::of(number, format!("its output is {output:?}, its exit {record}")))
    }

    fn delete_all(&mut self, statuses: &[Value], consumer: Consumer) -> Result<Ledger, Trouble> {
        // Execs that their callers did not see the end of are short, but may be at it.
        self.eventually("shims at work", |controller| {
            processes::shims(&controller.paths.root).iter().map(ToString::to_string).collect()
        })?;
        let ids: BTreeSet<String> = self.actors.iter().map(|actor| actor.id.clone()).collect();
        let mut events = Events::follow(self.paths)?;
        // With this all history is in, and nothing of it goes with what is deleted.
        events.until("exited", ids.clone())?;
        for actors in self.actors.chunks(AT_ONCE) {
            let ids = actors.iter().map(|actor| actor.id.as_str());
            let args: Vec<&str> = ["delete"].into_iter().chain(ids).collect();
            let said = Cli::begin(self.paths, &args)?.end()?;
            if said.code != Some(0) {
                return Err(Trouble::new(format!("delete: {said:?}")));
            }
        }
        events.until("deleted", ids.clone())?;
        let ledger = consumer.end(ids)?;
        if ledger.gaps.keys().any(|reason| reason != "unclean") {
            return Err(Trouble::new(format!("the consumer missed events: {:?}", ledger.gaps)));
        }
        for (number, status) in statuses.iter().enumerate() {
            let stream = events.told.get(&self.actors[number].id).map_or(&[][..], Vec::as_slice);
            self.report.events(stream.len());
            let judged = self.judge_events(number, status, stream);
            let judged = judged.and_then(|()| counted_once(&ledger, stream));
            judged.map_err(|problem| {
                let lines: Vec<String> = stream.iter().map(ToString::to_string).collect();
                Trouble::of(number, format!("{problem}:\n{}", lines.join("\n")))
            })?;
        }
        self.report.consumer(&ledger);
        Ok(ledger)
    }

    fn judge_events(&mut self, number: usize, status: &Value, all: &[Value]) -> Result<(), String> {
        let numbers: Vec<u64> = all.iter().filter_map(|event| event["seq"].as_u64()).collect();
        if numbers.len() != all.len() || !crate::journal::rise(&numbers) {
            return Err(format!("the numbers of its events do not rise: {numbers:?}"));
        }
        let mut processes: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for event in all {
            let process = event["process"].as_str().unwrap_or_default();
            processes.entry(process).or_default().push(event);
        }
        let init = processes.remove("init").unwrap_or_default();
        let words: Vec<&str> = words(&init);
        let (first, rest) = words.split_at(words.len().min(2));
        let (middle, last) = rest.split_at(rest.len().saturating_sub(2));
        if first != ["created", "started"]
            || last != ["exited", "deleted"]
            || middle.iter().any(|word| !matches!(*word, "shim-lost" | "adopted"))
        {
            return Err(format!("events not in order: {words:?}"));
        }
        let lost = middle.iter().filter(|word| **word == "shim-lost").count();
        let killed = self.actors[number].killed_shims;
        if lost > killed {
            return Err(format!("{lost} of its shims died, and {killed} were killed: {words:?}"));
        }
        let exited = &init[init.len() - 2]["status"];
        if exited != status {
            return Err(format!("wait tells {status}, and the events tell {exited}"));
        }
        // The shim of a group is that of its execs as well, so they are without both as their container is.
        let actor = &self.actors[number];
        let may_be_unknown =
            actor.group.is_some() && (actor.forsaken || actor.cell == Some(Cell::Both));
        let mut codes = actor.execs.clone();
        for (id, events) in processes {
            if self::words(&events) == ["start-failed"] {
                // The container ended first.
                self.report.exec("not started".to_owned());
                continue;
            }
            let mut words = self::words(&events);
            if self.actors[number].group.is_some() {
                // With the shim that its container has as well.
                words.retain(|word| !matches!(*word, "shim-lost" | "adopted"));
            }
            let told = &events[events.len() - 1]["status"];
            let planned = codes.iter().position(|code| *told == json!({ "code": code }));
            let outcome = match planned {
                Some(place) => {
                    codes.remove(place);
                    "exact"
                }
                // The container ended first, and took it along.
                None if self.actors[number].exec_cut_off && *told == json!({ "signal": 9 }) => {
                    "killed with its container"
                }
                None if may_be_unknown && *told == json!({ "unknown": "exited-unwatched" }) => {
                    "unknown: exited-unwatched, in a group that had neither daemon nor shim"
                }
                None => return Err(format!("exec {id}: {told}; planned: {codes:?}")),
            };
            if words != ["created", "started", "exited"] {
                return Err(format!("exec {id}: events not in order: {words:?}"));
            }
            self.report.exec(outcome.to_owned());
        }
        Ok(())
    }

    fn leftovers(&mut self, descriptors: &[String]) -> Result<(), Trouble> {
        self.eventually("left over", |controller| {
            let Some(daemon) = &controller.daemon else { return vec!["no daemon".to_owned()] };
            left(controller.paths, &controller.name, daemon, descriptors)
        })
    }

    /// Gives what ends by itself, and tells nobody, the time to do so.
    fn eventually(
        &mut self,
        what: &str,
        look: impl Fn(&Self) -> Vec<String>,
    ) -> Result<(), Trouble> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            self.reap();
            let left = look(self);
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Trouble::new(format!("{what}: {left:#?}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn words<'a>(events: &[&'a Value]) -> Vec<&'a str> {
    events.iter().filter_map(|event| event["event"].as_str()).collect()
}

/// A status as the daemon tells it.
fn status(end: End) -> Value {
    match end {
        End::Code(code) => json!({ "code": code }),
        End::Signal(signal) => json!({ "signal": signal }),
    }
}

/// Whether the consumer has each exit of a container, and has it once.
fn counted_once(ledger: &Ledger, events: &[Value]) -> Result<(), String> {
    for event in events.iter().filter(|event| event["event"] == "exited") {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let times = ledger.exits(text("container"), text("process"));
        if times != 1 {
            return Err(format!("the consumer counts {times} exits of {}", text("process")));
        }
    }
    Ok(())
}

/// Everything that must not be there when no container is.
fn left(paths: &Paths, prefix: &str, daemon: &Daemon, descriptors: &[String]) -> Vec<String> {
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let mut left: Vec<String> = processes::mentioning(&paths.root)
        .iter()
        .filter(|process| process.pid != daemon.pid())
        .map(ToString::to_string)
        .collect();
    let ours = [".journal", ".groups", ".holdfast", ".lock", ".runtime", "holdfast.sock"];
    left.extend(names(&paths.root).into_iter().filter(|name| !ours.contains(&name.as_str())));
    for runtime in names(&paths.root.join(".runtime")) {
        let state = names(&paths.root.join(".runtime").join(&runtime));
        left.extend(state.into_iter().map(|id| format!(".runtime/{runtime}/{id}")));
    }
    let scratch = paths.scratch.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(mounts.lines().filter(|line| line.contains(&*scratch)).map(str::to_owned));
    let spares = processes::companions(daemon.pid());
    let strangers = processes::children(daemon.pid()).into_iter();
    let strangers = strangers.filter(|pid| spares.iter().all(|spare| spare.pid != *pid));
    left.extend(strangers.map(|pid| format!("child {pid} of the daemon")));
    left.extend(cgroups(prefix));
    let now = daemon.descriptors();
    // One that was counted at first may have been about to go.
    let mut rest = descriptors.to_vec();
    // A shim that waits is told by a socket.
    rest.extend(spares.iter().map(|_| "socket".to_owned()));
    for descriptor in now {
        match rest.iter().position(|known| *known == descriptor) {
            Some(place) => _ = rest.swap_remove(place),
            None => left.push(format!("the daemon has one more {descriptor} open")),
        }
    }
    left
}

/// The cgroups that bear a name of this run, in every hierarchy.
fn cgroups(prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().starts_with(prefix) {
                    found.push(entry.path().display().to_string());
                }
                ahead.push(entry.path());
            }
        }
    }
    found
}

/// `holdfast events --replay --json`, read as it comes so that it never lags.
struct Events {
    lines: Receiver<Value>,
    child: std::process::Child,
    /// What was told, by container.
    told: BTreeMap<String, Vec<Value>>,
}

impl Events {
    fn follow(paths: &Paths) -> Result<Self, Trouble> {
        let mut command = paths.holdfast(&["events", "--replay", "--json"]);
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = spawned.map_err(|error| Trouble::new(format!("events: {error}")))?;
        let (tell, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if tell.send(serde_json::from_str(&line).unwrap_or_default()).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { lines, child, told: BTreeMap::new() })
    }

    /// Reads until this was told of the first process of each of these.
    fn until(&mut self, word: &str, mut ids: BTreeSet<String>) -> Result<(), Trouble> {
        while !ids.is_empty() {
            let event = self.lines.recv_timeout(PATIENCE).map_err(|error| {
                Trouble::new(format!("events ({error}): {word} is not told of {ids:?}"))
            })?;
            let id = event["container"].as_str().unwrap_or_default().to_owned();
            if event["event"] == word && event["process"] == "init" {
                ids.remove(&id);
            }
            self.told.entry(id).or_default().push(event);
        }
        Ok(())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
