//! One pod, from its creation to its deletion, as a client sees it.
//!
//! A call that fails because containerd was down meanwhile is looked into, and made again if it has come
//! to nothing. So is a start during which a container shim was killed, which may fail with it. Everything
//! else that fails is a violation.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;

use super::Stage;
use super::bed::{LIMIT, Said};
use super::life::At;
use super::plan::{End, Member};

/// An unknown status, as containerd has it.
const UNKNOWN: u32 = 255;
/// The pause between two looks at something that nothing tells of.
const PAUSE: Duration = Duration::from_millis(20);
/// How much of a history is shown.
const SHOWN: usize = 60;

/// A pod that is carried out.
pub(crate) struct Cycle<'a> {
    stage: &'a Stage,
    number: usize,
    began: Instant,
    notes: Vec<String>,
}

/// A container of it.
struct One<'a> {
    id: String,
    member: &'a Member,
    /// How often its start was tried: each has a log of its own.
    attempt: usize,
    /// When it was made to end, or may first have ended.
    ending: Instant,
    /// Execs, the codes that they end with, and whether that is certain.
    execs: Vec<(String, u8, bool)>,
    /// The output that an attached client was told, and the status.
    attached: Option<Said>,
}

impl<'a> Cycle<'a> {
    pub(crate) fn new(stage: &'a Stage, number: usize) -> Self {
        Self { stage, number, began: Instant::now(), notes: Vec::new() }
    }

    /// Carries it out, and tells what is wrong.
    pub(crate) fn carry_out(mut self, members: &[Member]) {
        let group = format!("{}-{}", self.stage.bed.namespace, self.number);
        let mut all: Vec<One<'_>> = members
            .iter()
            .enumerate()
            .map(|(place, member)| One {
                id: format!("{group}-{place}"),
                member,
                attempt: 0,
                ending: self.began,
                execs: Vec::new(),
                attached: None,
            })
            .collect();
        let mut done = Ok(());
        for one in &mut all {
            done = done.and_then(|()| self.begin(one, &group));
        }
        for one in &mut all {
            done = done.and_then(|()| self.finish(one));
        }
        match done {
            Ok(()) => self.stage.report.pod(),
            Err(what) => self.tell(&what, &all),
        }
    }

    fn tell(&self, what: &str, all: &[One<'_>]) {
        let mut text = format!("pod {}: {what}\n", self.number);
        let show = |text: &mut String, title: &str, lines: &[String]| {
            *text += &format!("--- {title}\n");
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                *text += &format!("{line}\n");
            }
        };
        show(&mut text, "what the client did", &self.notes);
        show(&mut text, "blows", &self.stage.blows.since(self.began));
        for one in all {
            text += &format!("--- {}: {:?}\n{:#?}\n", one.id, one.member, one.execs);
            text += &format!("{:?}\n", self.stage.bed.tap.history(&one.id));
        }
        self.stage.violated(text);
    }

    fn note(&mut self, what: impl Display) {
        self.notes.push(format!("{:.3?} {what}", self.began.elapsed()));
    }

    fn ctr(&mut self, args: &[&str]) -> Said {
        self.note(args.join(" "));
        let said = self.stage.bed.ctr(args);
        let cut = if said.cut { ", containerd was down" } else { "" };
        self.note(format!("  {:?} {}{cut}", said.code, said.stderr.trim_end()));
        said
    }

    /// Makes a container, starts it and has execs in it.
    fn begin(&mut self, one: &mut One<'_>, group: &str) -> Result<(), String> {
        let words = self.prepare(one, group).map_err(|error| format!("{}: {error}", one.id))?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.until_done(&words, |said| said.stderr.contains("already exists"))?;
        self.start(one)?;
        for (number, code) in one.member.execs.iter().enumerate() {
            self.exec(one, number, *code)?;
        }
        Ok(())
    }

    fn prepare(&self, one: &One<'_>, group: &str) -> std::io::Result<Vec<String>> {
        let Member { end, lines, .. } = one.member;
        let lines = format!("i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done;");
        let script = match end {
            End::Gate(code) => {
                nix::unistd::mkfifo(&self.gate(one), Mode::S_IRUSR | Mode::S_IWUSR)?;
                format!("{lines} read x </share/{}; echo last; exit {code}", one.id)
            }
            End::Itself(code, millis) => {
                format!("{lines} usleep {millis}000; echo last; exit {code}")
            }
            End::Term(code) => {
                format!("trap 'exit {code}' TERM; {lines} echo last; sleep 1000000 & wait $!")
            }
            End::Kill => format!("{lines} echo last; exec sleep 1000000"),
        };
        self.stage.bed.create(&one.id, group, &script)
    }

    fn gate(&self, one: &One<'_>) -> PathBuf {
        self.stage.bed.dir.join("share").join(&one.id)
    }

    fn log(&self, one: &One<'_>) -> PathBuf {
        self.stage.bed.dir.join("out").join(format!("{}-{}", one.id, one.attempt))
    }

    /// Repeats a command until it has done what it is to do. `is_done` sees that an earlier one has,
    /// during which containerd was killed.
    fn until_done(&mut self, args: &[&str], is_done: impl Fn(&Said) -> bool) -> Result<(), String> {
        self.until_done_by(args, false, is_done)
    }

    /// As [`until_done`](Self::until_done); with `again`, it may be done from the beginning.
    fn until_done_by(
        &mut self,
        args: &[&str],
        mut again: bool,
        is_done: impl Fn(&Said) -> bool,
    ) -> Result<(), String> {
        loop {
            let said = self.ctr(args);
            if !said.has_failed() || (again && is_done(&said)) {
                return Ok(());
            }
            if !said.cut {
                return Err(format!("{}: {}", args.join(" "), said.stderr));
            }
            again = true;
            self.stage.bed.wait_until_up();
        }
    }

    fn start(&mut self, one: &mut One<'_>) -> Result<(), String> {
        let end = Instant::now() + LIMIT;
        let is_attached = matches!(one.member.end, End::Itself(..));
        let mut again = false;
        loop {
            one.attempt += 1;
            one.ending = Instant::now();
            let uri = format!("file://{}", self.log(one).display());
            let fifos = self.stage.bed.dir.join("fifos").display().to_string();
            let args = match is_attached {
                true => ["task", "start", "--fifo-dir", &fifos, &one.id].to_vec(),
                false => ["task", "start", "--detach", "--log-uri", &uri, &one.id].to_vec(),
            };
            let said = self.ctr(&args);
            if !said.has_failed() {
                if is_attached {
                    one.attached = Some(said);
                }
                return Ok(());
            }
            let with_shim = self.stage.blows.shim_killed_since(said.began);
            // What an earlier start has begun is still being finished, or removed.
            let is_busy = again && said.stderr.contains("already exists");
            if !(said.cut || with_shim || is_busy) || Instant::now() > end {
                return Err(format!("{} is not started: {}", one.id, said.stderr));
            }
            let whose = if said.cut { "containerd" } else { "its shim" };
            self.stage.report.count(format!("start during which {whose} was killed"));
            self.stage.bed.wait_until_up();
            again = true;
            if self.settle(one)? {
                return Ok(());
            }
        }
    }

    /// Looks what has come of a start, and returns whether the container was started.
    fn settle(&mut self, one: &One<'_>) -> Result<bool, String> {
        let task = self.stage.bed.task(&one.id)?;
        self.note(format!("task {}: {task:?}", one.id));
        match task.as_ref().map(|(_, status)| status.as_str()) {
            Some("RUNNING" | "STOPPED" | "PAUSED") => Ok(true),
            Some(_) => {
                // What a start that was cut off has begun may be removed meanwhile.
                let args = ["task", "delete", "--force", &one.id];
                self.until_done_by(&args, true, Said::found_nothing)?;
                Ok(false)
            }
            None => {
                thread::sleep(PAUSE);
                // One that runs to its end may also be deleted by then.
                Ok(self.stage.bed.tap.history(&one.id).is_complete())
            }
        }
    }

    fn exec(&mut self, one: &mut One<'_>, number: usize, code: u8) -> Result<(), String> {
        for attempt in 0.. {
            let exec = format!("exec-{number}-{attempt}");
            let fifos = self.stage.bed.dir.join("fifos").display().to_string();
            let script = format!("echo {exec}; exit {code}");
            let words = ["task", "exec", "--fifo-dir", &fifos, "--exec-id", &exec, &one.id, "sh"];
            let said = self.ctr(&[&words[..], &["-c", &script]].concat());
            let is_told = !said.has_failed();
            let with_shim = self.stage.blows.shim_killed_since(said.began);
            if is_told && said.code == Some(i32::from(code)) {
                if said.stdout != format!("{exec}\n") {
                    // Nobody may have had its pipe then: docs/reliability.md.
                    if !self.stage.blows.both_killed_since(said.began) {
                        return Err(format!("{exec} of {} wrote {:?}", one.id, said.stdout));
                    }
                    let what = "output of an exec lost with supervisor and shim";
                    self.stage.report.count(what.to_owned());
                }
                one.execs.push((exec, code, true));
                return Ok(());
            }
            let is_unknown = said.code == i32::try_from(UNKNOWN).ok();
            if is_told && !(is_unknown && self.stage.blows.both_killed_since(said.began)) {
                return Err(format!("{exec} of {} ended with {said:?}", one.id));
            }
            if !is_told && !said.cut && !with_shim {
                return Err(format!("{exec} of {} failed: {said:?}", one.id));
            }
            let whose = if is_told {
                "both"
            } else if said.cut {
                "containerd"
            } else {
                "its shim"
            };
            self.stage.report.count(format!("exec during which {whose} was killed"));
            one.execs.push((exec, code, false));
            self.stage.bed.wait_until_up();
        }
        Ok(())
    }

    /// Has a container end, looks at how it did, and deletes it.
    fn finish(&mut self, one: &mut One<'_>) -> Result<(), String> {
        if !matches!(one.member.end, End::Itself(..)) {
            self.still_runs(one)?;
            one.ending = Instant::now();
        }
        match one.member.end {
            End::Gate(_) => self.open_gate(one).map_err(|error| format!("{}: {error}", one.id))?,
            End::Itself(..) => {}
            End::Term(_) | End::Kill => {
                let signal = if one.member.end == End::Kill { "SIGKILL" } else { "SIGTERM" };
                // It ignores a signal before it has set its trap.
                self.wait_for_output(one)?;
                self.until_done(
                    &["task", "kill", "--signal", signal, &one.id],
                    Said::found_nothing,
                )?;
            }
        }
        if one.attached.is_none() {
            self.delete(one)?;
        }
        let wait = |holds: fn(&super::life::History) -> bool| {
            self.stage.bed.tap.wait(&one.id, LIMIT, holds)
        };
        if !wait(|history| history.is_complete()) {
            return Err(format!("{}: no event of its deletion", one.id));
        }
        self.judge(one)?;
        self.until_done(&["container", "delete", &one.id], Said::found_nothing)?;
        let _ = (fs::remove_file(self.gate(one)), fs::remove_file(self.log(one)));
        Ok(())
    }

    /// Nothing that we have done ends a container.
    fn still_runs(&mut self, one: &One<'_>) -> Result<(), String> {
        match self.stage.bed.task(&one.id)? {
            Some((_, status)) if status == "RUNNING" => Ok(()),
            other => Err(format!("{} was not made to end, and is {other:?}", one.id)),
        }
    }

    fn open_gate(&self, one: &One<'_>) -> std::io::Result<()> {
        // Opened for both, so that this does not wait; then the line must be read before it is closed.
        let gate = self.gate(one);
        let mut gate = File::options().read(true).write(true).open(gate)?;
        gate.write_all(b"\n")?;
        self.stage.bed.tap.wait(&one.id, LIMIT, |history| history.at() == At::Ended);
        Ok(())
    }

    fn expected(one: &One<'_>) -> String {
        let lines = (0..one.member.lines).map(|number| format!("line {number}\n"));
        lines.chain(["last\n".to_owned()]).collect()
    }

    fn wait_for_output(&mut self, one: &One<'_>) -> Result<(), String> {
        let end = Instant::now() + LIMIT;
        let expected = Self::expected(one);
        loop {
            let written = fs::read_to_string(self.log(one)).unwrap_or_default();
            if written == expected {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{} has not written all: {written:?}", one.id));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Waits for the event of the exit, and deletes the task.
    fn delete(&mut self, one: &One<'_>) -> Result<(), String> {
        // Of this life: one that came to nothing may have been before. Who is attached may have deleted it.
        let is_attached = matches!(one.member.end, End::Itself(..));
        let ended = |history: &super::life::History| {
            history.at() == At::Ended || is_attached && history.is_complete()
        };
        if !self.stage.bed.tap.wait(&one.id, LIMIT, ended) {
            return Err(format!("{}: no event of its exit", one.id));
        }
        let mut again = false;
        loop {
            let said = self.ctr(&["task", "delete", &one.id]);
            if again && said.found_nothing() {
                return Ok(());
            }
            if said.stderr.contains("non-zero exit code") || !said.has_failed() {
                let code = said.stderr.split_once("exit code ").map_or("0", |(_, rest)| rest);
                let code = code.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
                return self.is_exact(one, "task delete", code.parse().ok());
            }
            // An attached client that was cut off may just have deleted it.
            let is_gone = is_attached && said.found_nothing();
            if !(said.cut || is_gone) {
                return Err(format!("{} is not deleted: {}", one.id, said.stderr));
            }
            again = true;
            self.stage.bed.wait_until_up();
        }
    }

    fn is_exact(&self, one: &One<'_>, what: &str, status: Option<u32>) -> Result<(), String> {
        let due = u32::from(one.member.end.status());
        if status == Some(due) {
            return Ok(());
        }
        if status == Some(UNKNOWN) && self.stage.blows.both_killed_since(one.ending) {
            self.stage.report.count(format!("{what}: unknown, supervisor and shim were dead"));
            return Ok(());
        }
        Err(format!("{}: status {status:?} by {what}, not {due}", one.id))
    }

    /// Compares what was told with what was to be.
    fn judge(&mut self, one: &One<'_>) -> Result<(), String> {
        let history = self.stage.bed.tap.history(&one.id);
        self.is_exact(one, "the event", history.status())?;
        if let Some(fault) = history.fault() {
            return Err(format!("{}: events out of order: {fault}", one.id));
        }
        for (exec, code, is_certain) in &one.execs {
            let status = history.exec_status(exec);
            if status != Some(u32::from(*code)) && *is_certain {
                return Err(format!("{exec} of {}: status {status:?} by the event", one.id));
            }
        }
        let expected = Self::expected(one);
        let written = match (&one.attached, one.member.end) {
            (Some(said), _) => {
                self.is_exact(one, "the client", said.code.and_then(|code| code.try_into().ok()))?;
                Some(said.stdout.clone())
            }
            // Its reader has ended with containerd.
            (None, End::Itself(..)) => None,
            (None, _) => fs::read_to_string(self.log(one)).ok(),
        };
        if written.as_ref().is_some_and(|written| *written != expected) {
            return Err(format!("{}: wrote {written:?}", one.id));
        }
        let report = &self.stage.report;
        report.count("containers".to_owned());
        report.add("outputs, complete".to_owned(), usize::from(written.is_some()));
        report.add("execs".to_owned(), one.execs.len());
        let history = self.stage.bed.tap.take(&one.id);
        report.add("events, in order".to_owned(), history.len());
        report.add("events, twice".to_owned(), history.duplicates);
        Ok(())
    }
}
