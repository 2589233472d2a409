//! One container's whole life by the command line, and what must hold wherever it was cut short.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::tracer::{Deed, Rule, Tracer};
use crate::{
    Gate, Holdfast, binary, cgroups_of, journal, processes, runtime, runtime_name, unique_id,
};

/// What the container exits with.
const STATUS: u8 = 7;
/// What its exec exits with.
const EXEC_STATUS: u8 = 5;
/// How long what must come about may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(15);

/// The steps of a life, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The daemon starts.
    Up,
    /// `create`.
    Create,
    /// `start`.
    Start,
    /// `exec`.
    Exec,
    /// The exec exits.
    ExecExit,
    /// The container exits.
    Exit,
    /// `start` once more, and the second exit.
    Again,
    /// `delete`.
    Delete,
    /// The daemon ends in order.
    Down,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Up,
        Self::Create,
        Self::Start,
        Self::Exec,
        Self::ExecExit,
        Self::Exit,
        Self::Again,
        Self::Delete,
        Self::Down,
    ];
}

/// Which process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The daemon.
    Daemon,
    /// The shim of the container's first process.
    InitShim,
    /// The shim of the exec.
    ExecShim,
    /// The shim of the group that both are in.
    Group,
    /// The shim that takes the first process over after the one that started it was killed.
    Adopter,
}

/// Which OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// That of these tests, which isolates nothing and takes a few milliseconds.
    Fake,
    /// runc, or the one under test in its place.
    Runc,
}

/// What is done with the container after a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum After {
    /// What was begun is gone on with to its end.
    Finish,
    /// The same. If the daemon was killed, the programs may end before there is one again; if a shim
    /// was, the daemon is killed after it.
    Further,
    /// It is deleted by force at once.
    Force,
}

/// A container's life.
#[derive(Debug)]
pub struct Life {
    holdfast: Holdfast,
    /// Its id.
    pub id: String,
    runtime: Runtime,
    who: Who,
    gate: Gate,
    exec_gate: Gate,
    exec_id: Option<String>,
    exit_begun: bool,
    exec_exit_begun: bool,
    /// The step that was begun last.
    begun: Step,
    /// Whether that step was answered.
    answered: bool,
    /// Whether it is a death that is tried, not a failure.
    kills: bool,
    /// What was told of failures.
    pub errors: Vec<String>,
    /// Follows who is to be killed, or to fail.
    pub tracer: Tracer,
    /// What was not as it must be.
    pub violations: Vec<String>,
    /// What `ps` said when the daemon was back.
    pub found: String,
}

impl Life {
    /// Nothing is there yet. The rules are those of the tracer.
    pub async fn new(runtime: Runtime, who: Who, rules: &[Rule]) -> Self {
        let holdfast = Holdfast::without_daemon();
        let id = unique_id("life").to_string();
        let (gate, exec_gate) = (holdfast.scratch.gate(), holdfast.scratch.gate());
        let (program, which) = match who {
            Who::Daemon => ("holdfast", ""),
            Who::InitShim => ("holdfast-shim", "/init "),
            // Options follow the directory, in which an exec has a random name.
            Who::ExecShim => ("holdfast-shim", " exec --detach "),
            Who::Group => ("holdfast-shim", "--group "),
            Who::Adopter => ("holdfast-shim", "--adopt "),
        };
        let tracer = Tracer::new(&holdfast.scratch, &id, &binary(program), which, rules).await;
        Self {
            holdfast,
            id,
            runtime,
            who,
            gate,
            exec_gate,
            exec_id: None,
            exit_begun: false,
            exec_exit_begun: false,
            begun: Step::Up,
            answered: false,
            kills: rules.iter().all(|rule| rule.deed == Deed::Kill),
            errors: Vec::new(),
            tracer,
            violations: Vec::new(),
            found: String::new(),
        }
    }

    /// Where in its life it is.
    #[must_use]
    pub fn step(&self) -> Step {
        self.begun
    }

    fn violated(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    fn is_answered(&self, step: Step) -> bool {
        step < self.begun || (step == self.begun && self.answered)
    }

    fn is_begun(&self, step: Step) -> bool {
        step <= self.begun
    }

    /// Lives until its end, or until a step fails. That is fine only if a process was killed. Where a
    /// call was made to fail, the step may fail too, and is taken once more, which must succeed.
    pub async fn live(&mut self, after: After) {
        let daemon_dies = self.kills && self.who == Who::Daemon;
        let mut looked = false;
        for step in Step::ALL {
            (self.begun, self.answered) = (step, false);
            if let Err(error) = self.take(step).await {
                // What the tracer tells comes by another way than the step's failure.
                if until(|| self.tracer.has_done()).await.is_err() {
                    self.violated(format!("{step:?} failed, and nobody was at fault: {error}"));
                    return;
                }
                self.errors.push(error);
                if self.kills {
                    return;
                }
                if let Err(again) = self.take(step).await {
                    // What it had begun is gone for everyone, and swept by the next daemon.
                    if step != Step::Delete || !again.contains("no such container") {
                        self.violated(format!("{step:?} fails again: {again}"));
                        return;
                    }
                }
            }
            self.answered = true;
            if !daemon_dies && self.tracer.has_done() && !looked {
                looked = true;
                if after != After::Finish {
                    return;
                }
                if step != Step::Down
                    && let Err(error) = self.look().await
                {
                    self.violated(error);
                }
            }
        }
    }

    async fn take(&mut self, step: Step) -> Result<(), String> {
        let id = self.id.clone();
        match step {
            Step::Up => self.up().await,
            Step::Create => self.create().await,
            Step::Start => {
                self.said(&["start", &id], &format!("{id}\n")).await?;
                if self.who == Who::Adopter { self.lose_shim().await } else { Ok(()) }
            }
            Step::Exec => {
                let script = self.script(&self.exec_gate, "echo up");
                let args = ["exec", "--detach", &id, "--", "sh", "-c", &script];
                let id = self.command(&args).await?;
                self.exec_id = Some(id.trim().to_owned());
                Ok(())
            }
            Step::ExecExit => {
                self.open_exec_gate();
                let exec = self.exec_id.clone().unwrap_or_default();
                let dir = self.container_dir().join(&exec);
                // Where a write of the journal was made to fail, it comes there with the next event.
                let is_over = || (!self.kills || self.exit_told(&exec).is_some()) && is_over(&dir);
                // A dead daemon does not bring it to its end, however long one waits.
                let is_dead = || self.kills && self.who == Who::Daemon && self.tracer.has_done();
                let waited = until(|| is_over() || is_dead()).await;
                if waited.is_ok() && is_over() {
                    Ok(())
                } else {
                    Err(format!("the exec did not come to its end: {:?}", self.journal()))
                }
            }
            Step::Exit => {
                self.open_gate();
                self.said(&["wait", &id], &format!("{STATUS}\n")).await
            }
            Step::Again => {
                // The gate lets one script through each time. This may come before the script.
                self.gate.open(STATUS);
                self.said(&["start", &id], &format!("{id}\n")).await?;
                self.said(&["wait", &id], &format!("{STATUS}\n")).await
            }
            Step::Delete => self.said(&["delete", &id], &format!("{id}\n")).await,
            Step::Down => self.down().await,
        }
    }

    async fn up(&mut self) -> Result<(), String> {
        let program = match self.who {
            Who::Daemon => self.tracer.program().to_owned(),
            _ => binary("holdfast"),
        };
        self.start_daemon(program).await
    }

    async fn start_daemon(&mut self, program: PathBuf) -> Result<(), String> {
        let shim = match self.who {
            Who::Daemon => binary("holdfast-shim"),
            _ => self.tracer.program().to_owned(),
        };
        // Who is followed is known by the arguments with which it begins.
        let mut args = vec!["--spare-shims=0".as_ref(), "--shim".as_ref(), shim.as_os_str()];
        if self.who == Who::Group {
            args.extend(["--shim-group", "all"].map(OsStr::new));
        }
        self.holdfast.try_start_daemon(&program, &args).await
    }

    /// Kills the shim of the first process, and waits for one that takes over.
    async fn lose_shim(&mut self) -> Result<(), String> {
        let shim = processes::recorded_shim(&self.holdfast.root(), &self.id, "init");
        shim.ok_or("it has no shim")?.signal(Signal::SIGKILL);
        let is_adopted = || self.journal().iter().any(|event| event["event"] == "adopted");
        until(is_adopted).await.map_err(|()| format!("not adopted: {:?}", self.journal()))
    }

    async fn create(&mut self) -> Result<(), String> {
        let bundle = self.holdfast.scratch.bundle().display().to_string();
        let fake = binary("fake-runtime").display().to_string();
        let runtime = match self.runtime {
            Runtime::Fake => fake.as_str(),
            Runtime::Runc => runtime_name(),
        };
        let script = self.script(&self.gate, "echo up");
        let id = self.id.clone();
        let args = ["create", "--name", &id, "--runtime", runtime, "--bundle", &bundle, "--"];
        let args = [args.as_slice(), &["sh", "-c", &script]].concat();
        self.said(&args, &format!("{id}\n")).await
    }

    async fn down(&mut self) -> Result<(), String> {
        let status = self.holdfast.take_daemon().end(Signal::SIGTERM).await;
        if status.success() { Ok(()) } else { Err(format!("SIGTERM: {status}")) }
    }

    fn script(&self, gate: &Gate, first: &str) -> String {
        match self.runtime {
            Runtime::Fake => gate.script_on_host(first),
            Runtime::Runc => gate.script(first),
        }
    }

    async fn command(&self, args: &[&str]) -> Result<String, String> {
        let ran = self.holdfast.run(args).await;
        match ran.code {
            Some(0) => Ok(ran.stdout),
            code => Err(format!("holdfast {args:?}: {code:?} {}", ran.stderr.trim())),
        }
    }

    async fn said(&self, args: &[&str], expected: &str) -> Result<(), String> {
        let output = self.command(args).await?;
        if output == expected {
            Ok(())
        } else {
            Err(format!("holdfast {args:?}: {output:?} instead of {expected:?}"))
        }
    }

    fn open_gate(&mut self) {
        if !std::mem::replace(&mut self.exit_begun, true) {
            self.gate.open(STATUS);
        }
    }

    fn open_exec_gate(&mut self) {
        if !std::mem::replace(&mut self.exec_exit_begun, true) {
            self.exec_gate.open(EXEC_STATUS);
        }
    }

    fn container_dir(&self) -> PathBuf {
        self.holdfast.root().join(&self.id)
    }

    fn journal(&self) -> Vec<Value> {
        journal::events_of(&self.holdfast.root(), &self.id)
    }

    fn exit_told(&self, process: &str) -> Option<Value> {
        let is_exit = |e: &Value| e["process"] == process && e["event"] == "exited";
        self.journal().into_iter().find(is_exit)
    }

    /// What must hold after the life was lived or cut short, and after all is over.
    pub async fn reckon(&mut self, after: After) {
        if self.kills && self.who == Who::Daemon && !self.is_answered(Step::Down) {
            self.tracer.ended().await;
            if after == After::Further && self.is_begun(Step::Start) {
                self.open_exec_gate();
                self.open_gate();
            }
            if let Err(said) = self.start_daemon(binary("holdfast")).await {
                self.violated(format!("the daemon does not come up again:\n{said}"));
                return;
            }
        } else if self.is_answered(Step::Down) || after == After::Further {
            if !self.is_answered(Step::Down) {
                self.holdfast.kill_daemon().await;
            }
            if let Err(said) = self.start_daemon(binary("holdfast")).await {
                self.violated(format!("the daemon does not come up again:\n{said}"));
                return;
            }
        }
        if let Err(error) = self.look().await {
            self.violated(error);
        }
        let ended = match after {
            After::Finish | After::Further => self.finish().await,
            After::Force => self.force().await,
        };
        if let Err(error) = ended {
            self.violated(error);
            if let Err(error) = self.force().await {
                self.violated(format!("nor can it be deleted by force: {error}"));
            }
        }
        self.nothing_is_left().await;
        if let Err(error) = self.down().await {
            self.violated(error);
        }
        let left = self.holdfast.scratch.leftovers();
        if !left.is_empty() {
            self.violated(format!("left over by the daemon: {left:?}"));
        }
    }

    async fn info(&self) -> Result<Option<Value>, String> {
        let text = self.command(&["ps", "--all", "--json"]).await?;
        let all: Vec<Value> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        match all.as_slice() {
            [] => Ok(None),
            [info] if info["id"] == self.id => Ok(Some(info.clone())),
            others => Err(format!("ps lists containers that were never made: {others:?}")),
        }
    }

    /// Whether what is told of the container is a state that its life can be in.
    async fn look(&mut self) -> Result<(), String> {
        let about = self.command(&["info", "--json"]).await?;
        let about: Value = serde_json::from_str(&about).map_err(|error| error.to_string())?;
        if about["problems"] != json!([]) {
            self.violated(format!("restored with problems: {}", about["problems"]));
        }
        let Some(info) = self.info().await? else {
            "absent".clone_into(&mut self.found);
            // A shim that dies before its process is there takes the container with it.
            let must_be = self.is_answered(Step::Create) && !self.is_begun(Step::Delete);
            return if must_be {
                Err("an acknowledged container is gone".to_owned())
            } else {
                Ok(())
            };
        };
        let status = info["status"].as_str().unwrap_or_default().to_owned();
        let mut allowed: Vec<&str> = Vec::new();
        if !self.is_answered(Step::Create) {
            allowed.extend(["creating", "created"]);
        }
        if self.is_answered(Step::Create) && !self.is_answered(Step::Start) {
            allowed.push("created");
        }
        if self.is_begun(Step::Start) && !self.is_answered(Step::Exit) {
            allowed.push("running");
        }
        if self.is_begun(Step::Start) && self.exit_begun {
            allowed.push("stopped");
        }
        if self.is_begun(Step::Again) && !self.is_answered(Step::Again) {
            allowed.extend(["creating", "running"]);
        }
        if !self.is_begun(Step::Create) || self.is_answered(Step::Delete) {
            allowed.clear();
        }
        if !allowed.contains(&status.as_str()) {
            self.violated(format!("it is {status}, and can only be one of {allowed:?}: {info}"));
        }
        self.found = status;
        if info["status"] == "stopped" {
            self.is_exact(&info["exit"], STATUS);
        }
        for exec in info["execs"].as_array().into_iter().flatten() {
            let status = exec["status"].as_str().unwrap_or_default();
            self.found += &format!(", exec {status}");
            if !self.is_begun(Step::Exec) || (status == "stopped" && !self.exec_exit_begun) {
                self.violated(format!("this exec can't be: {exec}"));
            }
            if status == "stopped" {
                self.is_exact_of_exec(&exec["exit"]);
            }
        }
        Ok(())
    }

    fn is_exact(&mut self, exit: &Value, status: u8) {
        if exit["status"] != json!({ "code": status }) || exit["evidence"] == "none" {
            self.violated(format!("it exited with {status}, and this is told: {exit}"));
        }
    }

    fn is_exact_of_exec(&mut self, exit: &Value) {
        if !self.is_killed_with_init(&exit["status"]) {
            self.is_exact(exit, EXEC_STATUS);
        }
    }

    /// The kernel kills all that is left in a process namespace when its first process ends, and this
    /// is exactly what is told then.
    fn is_killed_with_init(&self, status: &Value) -> bool {
        self.runtime == Runtime::Runc && self.exit_begun && *status == json!({ "signal": 9 })
    }

    /// Goes on from wherever it is, to the end.
    async fn finish(&mut self) -> Result<(), String> {
        let id = self.id.clone();
        let deadline = Instant::now() + LIMIT;
        loop {
            let Some(info) = self.info().await? else { return Ok(()) };
            match info["status"].as_str().unwrap_or_default() {
                "creating" if Instant::now() < deadline => {
                    // Nothing tells of the end of a start that nobody asked this daemon for.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                "created" => {
                    if let Err(error) = self.said(&["start", &id], &format!("{id}\n")).await {
                        let now = self.info().await?;
                        // Its start had been begun, and meanwhile it is known to have come about.
                        let runs = now
                            .is_some_and(|i| i["status"] == "running" || i["status"] == "stopped");
                        if !runs || !self.is_begun(Step::Start) {
                            return Err(error);
                        }
                    }
                }
                "running" => break,
                "stopped" => break,
                other => return Err(format!("it stays {other}: {info}")),
            }
        }
        self.open_exec_gate();
        let mut execs: Vec<String> = Vec::new();
        if let Some(info) = self.info().await? {
            let ids = info["execs"].as_array().into_iter().flatten();
            execs.extend(ids.filter_map(|exec| exec["id"].as_str().map(str::to_owned)));
        }
        for exec in execs {
            let dir = self.container_dir().join(&exec);
            if until(|| is_over(&dir)).await.is_err() {
                let info = self.info().await?;
                self.violated(format!("exec {exec} does not come to its end: {info:?}"));
            }
        }
        self.open_gate();
        self.said(&["wait", &id], &format!("{STATUS}\n")).await?;
        let info = self.info().await?.ok_or("it vanished when it had ended")?;
        self.is_exact(&info["exit"], STATUS);
        self.judge_journal();
        if self.who == Who::Daemon {
            let log = self.command(&["logs", &id]).await?;
            let runs = log.strip_prefix("up\nafter\n").ok_or(format!("its log: {log:?}"))?;
            let again = runs.is_empty() || (self.is_begun(Step::Again) && runs == "up\nafter\n");
            if !again {
                return Err(format!("its log: {log:?}"));
            }
        }
        self.said(&["delete", &id], &format!("{id}\n")).await
    }

    async fn force(&mut self) -> Result<(), String> {
        if self.info().await?.is_none() {
            return Ok(());
        }
        match self.command(&["delete", "--force", &self.id.clone()]).await {
            Ok(_) => {}
            // What had not been acknowledged may clear itself away at any moment.
            Err(_) if !self.is_answered(Step::Create) && self.info().await?.is_none() => {}
            Err(error) => return Err(error),
        }
        match self.info().await? {
            None => Ok(()),
            Some(info) => Err(format!("it is deleted, and still there: {info}")),
        }
    }

    /// One ordered stream: nothing twice, the exit last and exact.
    fn judge_journal(&mut self) {
        let journal = self.journal();
        let numbers: Vec<_> = journal.iter().filter_map(|event| event["seq"].as_u64()).collect();
        if numbers.len() != journal.len() || !journal::rise(&numbers) {
            self.violated(format!("the numbers of the events do not rise: {journal:?}"));
        }
        // A name that was used twice, since the first start failed, has two incarnations. Each start has
        // a run of its own.
        let text = |event: &Value, name: &str| event[name].as_str().unwrap_or_default().to_owned();
        let whose = |event: &Value| {
            (text(event, "incarnation"), event["run"].as_u64(), text(event, "process"))
        };
        let processes: BTreeSet<_> = journal.iter().map(whose).collect();
        let mut wrong = Vec::new();
        for key in &processes {
            let process = &key.2;
            let of_it: Vec<&Value> = journal.iter().filter(|event| whose(event) == *key).collect();
            let of = |kind: &str| -> Vec<usize> {
                (0..of_it.len()).filter(|at| of_it[*at]["event"] == kind).collect()
            };
            if !of("start-failed").is_empty() {
                // Then that is all that there is to tell.
                if of_it.len() != 1 {
                    wrong.push(format!("the events of {process} whose start failed: {journal:?}"));
                }
                continue;
            }
            let (created, started, exited) = (of("created"), of("started"), of("exited"));
            let once = [&created, &started, &exited].iter().all(|times| times.len() <= 1);
            let in_order = [created, started, exited].concat();
            // A daemon that dies with a journal that it could not write has told more than stands there.
            let complete = once && (in_order.len() == 3 || !self.kills);
            if !complete || !in_order.is_sorted() {
                wrong.push(format!("the events of {process} are not in order: {journal:?}"));
            }
            let is_exec = process != "init";
            let status = if is_exec { EXEC_STATUS } else { STATUS };
            for event in of_it.iter().filter(|event| event["event"] == "exited") {
                if event["status"] != json!({ "code": status })
                    && !(is_exec && self.is_killed_with_init(&event["status"]))
                {
                    wrong.push(format!("told of an exit with {status}: {event}"));
                }
            }
        }
        self.violations.extend(wrong);
    }

    async fn nothing_is_left(&mut self) {
        // What a dead daemon had at work, such as a runtime, may take a moment to come to its end.
        let left = || {
            let mut left = self.holdfast.leftovers();
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let path = self.holdfast.scratch.path().display().to_string();
            left.extend(mounts.lines().filter(|line| line.contains(&path)).map(str::to_owned));
            if self.runtime == Runtime::Runc
                && let Ok(id) = self.id.parse()
            {
                left.extend(cgroups_of(&id).iter().map(|path| path.display().to_string()));
            }
            left
        };
        if until(|| left().is_empty()).await.is_err() {
            let left = left();
            self.violated(format!("left over: {left:?}"));
        }
    }

    /// Ends what a violation has left, so that the next life begins with nothing.
    pub fn scrub(&mut self) {
        let state = self.holdfast.scratch.runtime_state();
        if state.join(&self.id).exists() {
            let mut command = std::process::Command::new(runtime());
            let _ =
                command.arg("--root").arg(&state).args(["delete", "--force", &self.id]).status();
        }
        let daemon = self.holdfast.running_daemon();
        for _ in 0..5 {
            for process in processes::mentioning(self.holdfast.scratch.path()) {
                if Some(process.pid) != daemon {
                    process.signal(Signal::SIGKILL);
                }
            }
        }
    }

    /// What the daemon that is there now has said.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        self.holdfast.daemon_log()
    }
}

/// Waits until something holds of which nothing tells.
async fn until(holds: impl Fn() -> bool) -> Result<(), ()> {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        if Instant::now() >= deadline {
            return Err(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Whether an exec has ended, and its shim too.
fn is_over(dir: &Path) -> bool {
    dir.join("exit.json").exists() && processes::mentioning(dir).is_empty()
}
