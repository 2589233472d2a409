//! The real daemon with many containers at once: its memory, who wakes while nothing happens, how
//! long a restore takes, and an adoption of all, and all of them exiting at the same time.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use holdfast_tests::processes;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::containers::{Gate, Kind, numbered, runtime_state};
use crate::daemon::Daemon;
use crate::measure::{self, Samples};
use crate::{FAILED, Options, Outcome};

/// How long something may take of which nothing tells before the run fails; it times nothing.
const LIMIT: Duration = Duration::from_secs(600);

/// After how long all is told that is going to be, if no more events come.
const SILENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(options: &Options, directory: &Path) -> Outcome<Value> {
    let kind = Kind::new(&options.runtime, &options.log, directory)?;
    let mut points = Vec::new();
    for count in &options.counts {
        let (needed, most) = (2 * count + measure::threads_of_the_machine()?, measure::pid_max()?);
        if needed > most {
            let why = format!("they need {needed} processes, and kernel.pid_max is {most}");
            println!("{count} containers: left out: {why}");
            points.push(json!({ "containers": count, "leftOut": why }));
            continue;
        }
        let root = directory.join(format!("root-{count}"));
        let bench = Bench { options, kind: &kind, count: *count, root: &root, directory };
        let point = bench.point().await;
        let failed = point.is_err();
        points.push(point.unwrap_or_else(|error| {
            println!("{count} containers: {error}");
            json!({ "containers": count, FAILED: error.to_string() })
        }));
        if failed {
            // What it has left is ended with this process, and would be in the next one's way.
            break;
        }
    }
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(
        json!({ "files": files, "runtime": options.runtime, "log": options.log.to_string(), "shimGroup": options.shim_group, "seconds": options.seconds, "points": points }),
    )
}

/// Of how many shims the memory is read.
const SHIMS: usize = 200;

struct Bench<'a> {
    options: &'a Options,
    kind: &'a Kind,
    count: usize,
    root: &'a Path,
    directory: &'a Path,
}

impl Bench<'_> {
    async fn point(&self) -> Outcome<Value> {
        println!("{} containers", self.count);
        let mut daemon = Daemon::start(self.root, &self.kind.runtime).await?;
        let mut found = json!({ "containers": self.count });
        let mut complaints = 0;
        found["memory"]["empty"] = measure::memory(daemon.pid)?;
        let available = measure::available()?;
        let gate = self.kind.gate("all")?;
        let stamps = self.directory.join("stamps");

        found["created"] = self.create(&daemon, &gate, &stamps).await?;
        found["memory"]["made"] = measure::memory(daemon.pid)?;
        let taken = available.saturating_sub(measure::available()?);
        found["machineKiB"] = json!(taken);
        say("memory of the daemon", &found["memory"]["made"]);
        found["idle"] = self.idle(&daemon).await?;
        found["shims"] = self.shims()?;

        complaints += daemon.complaints();
        found["restore"] = self.restore(&mut daemon).await?;
        found["memory"]["restored"] = measure::memory(daemon.pid)?;
        say("memory after a restore", &found["memory"]["restored"]);
        found["idleRestored"] = self.idle(&daemon).await?;
        if self.options.adopt {
            found["adoptedSeconds"] = json!(self.adoption(&daemon).await?);
        }

        found["exits"] = self.exits(&daemon, &gate, &stamps).await?;
        found["memory"]["exited"] = measure::memory(daemon.pid)?;
        found["deletedSeconds"] = json!(self.delete(&daemon).await?);
        found["memory"]["deleted"] = measure::memory(daemon.pid)?;
        say("memory when all are deleted", &found["memory"]["deleted"]);

        complaints += daemon.complaints();
        found["complaints"] = json!(complaints);
        let status = daemon.end(Signal::SIGTERM).await?;
        if !status.success() {
            return Err(format!("the daemon ended: {status}").into());
        }
        let _ = std::fs::remove_file(stamps);
        self.nothing_left()?;
        Ok(found)
    }

    async fn create(&self, daemon: &Daemon, gate: &Gate, stamps: &Path) -> Outcome<Value> {
        let requests: Vec<Value> = (0..self.count)
            .map(|number| {
                let (id, code) = numbered(number)?;
                let args = self.kind.args(gate, code, stamps);
                let (bundle, log) = (&self.kind.bundle, self.kind.log.to_string());
                let stdio = json!({ "log": log });
                let group = &self.options.shim_group;
                Ok(json!({ "id": id, "bundle": bundle, "args": args, "stdio": stdio, "shimGroup": group, "start": true }))
            })
            .collect::<Outcome<_>>()?;
        let began = Instant::now();
        let mut made = stream::iter(&requests)
            .map(|request| daemon.ask("POST /v1/containers", Some(request)))
            .buffer_unordered(self.options.parallel);
        // After each tenth: whether the last ones take longer than the first.
        let mut tenths = Vec::new();
        let mut done = 0;
        while made.try_next().await?.is_some() {
            done += 1;
            if done * 10 >= (tenths.len() + 1) * self.count {
                let seconds = began.elapsed().as_secs_f64();
                println!("  {done} are made, {seconds:.1} s");
                tenths.push(json!({ "containers": done, "seconds": seconds }));
            }
        }
        Ok(json!({ "seconds": began.elapsed().as_secs_f64(), "after": tenths }))
    }

    /// Who is woken while nothing happens, the daemon and the shims.
    async fn idle(&self, daemon: &Daemon) -> Outcome<Value> {
        let shims: Vec<i32> = processes::shims(self.root).iter().map(|shim| shim.pid).collect();
        let expected = if self.options.shim_group.is_some() { 1 } else { self.count };
        if shims.len() != expected {
            return Err(format!("{} shims of {} containers", shims.len(), self.count).into());
        }
        // Threads for file work go ten seconds after their last, and until then it is not idle.
        let workers = std::thread::available_parallelism()?.get();
        let began = Instant::now();
        while measure::threads(daemon.pid).len() > 1 + workers && began.elapsed() < SILENCE {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let look = || (measure::switches(&[daemon.pid]), measure::switches(&shims));
        let before = look();
        tokio::time::sleep(Duration::from_secs(self.options.seconds)).await;
        let after = look();
        let of_daemon = measure::switched(&before.0, &after.0);
        let of_shims = measure::switched(&before.1, &after.1);
        let seconds = self.options.seconds;
        println!("  wake-ups in {seconds} s: {of_daemon} of the daemon, {of_shims} of the shims");
        Ok(json!({
            "seconds": seconds,
            "threads": measure::threads(daemon.pid).len(),
            "wakeUpsOfDaemon": of_daemon,
            "wakeUpsOfShims": of_shims,
        }))
    }

    /// What the shims take for each container, or a sample of them does.
    fn shims(&self) -> Outcome<Value> {
        let shims: Vec<Value> = processes::shims(self.root)
            .iter()
            .take(SHIMS)
            .map(|shim| measure::memory(shim.pid))
            .collect::<Outcome<_>>()?;
        let containers = if self.options.shim_group.is_some() { self.count } else { shims.len() };
        let each = |name: &str| {
            let all: u64 = shims.iter().filter_map(|shim| shim[name].as_u64()).sum();
            #[allow(clippy::cast_precision_loss)]
            let each = all as f64 / containers as f64;
            each
        };
        let (pss, uss, files) = (each("pssKiB"), each("ussKiB"), each("files"));
        println!(
            "  its shim, each container: PSS {pss:.1} KiB, USS {uss:.1} KiB, {files:.2} files"
        );
        Ok(
            json!({ "shims": shims.len(), "containers": containers, "pssKiBEach": pss, "ussKiBEach": uss, "filesEach": files }),
        )
    }

    /// The daemon is killed, and the next one is asked.
    async fn restore(&self, daemon: &mut Daemon) -> Outcome<Value> {
        daemon.end(Signal::SIGKILL).await?;
        let began = Instant::now();
        *daemon = Daemon::start(self.root, &self.kind.runtime).await?;
        let listening = began.elapsed().as_secs_f64() * 1000.0;
        let (containers, first) = daemon.ps().await?;
        // Without the time in which this program reads the answer.
        let answered = listening + first;
        let running = |container: &&Value| container["status"] == "running";
        let running = containers.iter().filter(running).count();
        if running != self.count {
            return Err(format!("{running} of {} run after a restore", self.count).into());
        }
        let mut ps = Samples::default();
        for _ in 0..5 {
            ps.0.push(daemon.ps().await?.1);
        }
        let info = daemon.ask("GET /v1/info", None).await?;
        println!(
            "  restored: `ps` has answered after {answered:.0} ms, listening after {listening:.0} ms; `ps` alone {:.0} ms",
            ps.quantile(0.5)
        );
        Ok(json!({
            "milliseconds": answered,
            "listeningMilliseconds": listening,
            "firstPsMilliseconds": first,
            "psMilliseconds": ps.to_json(),
            "reportedMicroseconds": info["restoreMicros"],
        }))
    }

    /// All shims are killed at once, and each container has one again.
    async fn adoption(&self, daemon: &Daemon) -> Outcome<f64> {
        let mut live = daemon.events(false).await?;
        let began = Instant::now();
        for shim in processes::shims(self.root) {
            // The spare ones among them end by themselves.
            shim.signal(Signal::SIGKILL);
        }
        let mut adopted = 0;
        while adopted < self.count {
            let line = timeout(SILENCE, live.next_line()).await??.ok_or("the events end")?;
            adopted += usize::from(line.contains(r#""event":"adopted""#));
        }
        let seconds = began.elapsed().as_secs_f64();
        println!("  all adopted after {seconds:.2} s");
        Ok(seconds)
    }

    /// All are let go at once; then every status and every event is looked at.
    async fn exits(&self, daemon: &Daemon, gate: &Gate, stamps: &Path) -> Outcome<Value> {
        let mut live = daemon.events(false).await?;
        let count = self.count;
        let heard = tokio::spawn(async move {
            let mut exits = 0;
            while exits < count
                && let Ok(Ok(Some(line))) = timeout(SILENCE, live.next_line()).await
            {
                exits += usize::from(line.contains(r#""event":"exited""#));
            }
            (exits, Instant::now())
        });
        let (began, clock) = (Instant::now(), measure::monotonic());
        gate.open(count)?;
        let (heard, at) = heard.await?;
        let told = at.duration_since(began).as_secs_f64();
        // A listener that is too slow is cut off; the state is there all the same.
        let all = loop {
            let all = daemon.ask("GET /v1/containers", None).await?;
            let all = all.as_array().cloned().ok_or("no array of containers")?;
            if all.iter().all(|container| container["status"] == "stopped") {
                break all;
            }
            if began.elapsed() > LIMIT {
                return Err("not all have stopped".into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let stopped = began.elapsed().as_secs_f64();
        let mut wrong = Vec::new();
        // What was adopted has more events, and other evidence.
        if !self.options.adopt {
            wrong = wrong_statuses(&all, count)?;
            wrong.extend(self.wrong_events(daemon).await?);
        }
        for what in wrong.iter().take(5) {
            println!("  WRONG: {what}");
        }
        let ended = if self.kind.stamps() {
            let stamps = measure::stamps(stamps)?;
            let last = stamps.last().copied().unwrap_or(clock);
            println!("  the last process ended after {:.2} s", measure::micros(clock, last) / 1e6);
            json!({
                "count": stamps.len(),
                "firstAfterSeconds": measure::micros(clock, stamps.first().copied().unwrap_or(clock)) / 1e6,
                "lastAfterSeconds": measure::micros(clock, last) / 1e6,
            })
        } else {
            Value::Null
        };
        println!(
            "  exits: {heard} told to a listener after {told:.2} s; all stopped after {stopped:.2} s; {} wrong",
            wrong.len()
        );
        Ok(json!({
            "ended": ended,
            "heardLive": heard,
            "lastHeardAfterSeconds": told,
            "allStoppedAfterSeconds": stopped,
            "wrong": wrong.len(),
            "wrongOnes": wrong.iter().take(20).collect::<Vec<_>>(),
        }))
    }

    /// What about the events of a container is not: created, started, exited, numbered, with its status.
    async fn wrong_events(&self, daemon: &Daemon) -> Outcome<Vec<String>> {
        let mut events = daemon.events(true).await?;
        let mut of: HashMap<String, Vec<Value>> = HashMap::new();
        let mut exits = 0;
        while exits < self.count {
            let Ok(line) = timeout(SILENCE, events.next_line()).await else { break };
            let Some(line) = line? else { break };
            let event: Value = serde_json::from_str(&line)?;
            exits += usize::from(event["event"] == "exited");
            let id = event["container"].as_str().unwrap_or_default().to_owned();
            of.entry(id).or_default().push(event);
        }
        let mut wrong = Vec::new();
        for number in 0..self.count {
            let (id, code) = numbered(number)?;
            let events = of.remove(id.as_str()).unwrap_or_default();
            let told: Vec<_> = events.iter().map(|event| event["event"].as_str()).collect();
            let in_order = events.is_sorted_by_key(|event| event["seq"].as_u64());
            let exit = &events.last().unwrap_or(&Value::Null)["status"];
            if told != [Some("created"), Some("started"), Some("exited")]
                || !in_order
                || *exit != json!({ "code": code })
            {
                wrong.push(format!("{id}: {events:?}"));
            }
        }
        Ok(wrong)
    }

    async fn delete(&self, daemon: &Daemon) -> Outcome<f64> {
        let began = Instant::now();
        let paths: Vec<String> = (0..self.count)
            .map(|number| Ok(format!("DELETE /v1/containers/{}", numbered(number)?.0)))
            .collect::<Outcome<_>>()?;
        stream::iter(&paths)
            .map(|path| daemon.ask(path, None))
            .buffer_unordered(self.options.parallel)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await?;
        let seconds = began.elapsed().as_secs_f64();
        println!("  deleted, {seconds:.1} s");
        Ok(seconds)
    }

    /// No process, no directory, nothing that the runtime knows of.
    fn nothing_left(&self) -> Outcome<()> {
        let mut left: Vec<String> =
            processes::mentioning(self.root).iter().map(ToString::to_string).collect();
        left.extend(runtime_state(self.directory).into_iter().map(|(_, id)| id));
        for entry in std::fs::read_dir(self.root)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if ![".journal", ".groups", ".holdfast", ".lock", ".runtime", "holdfast.sock"]
                .contains(&name.as_str())
            {
                left.push(name);
            }
        }
        if left.is_empty() { Ok(()) } else { Err(format!("left over: {left:?}").into()) }
    }
}

fn wrong_statuses(all: &[Value], count: usize) -> Outcome<Vec<String>> {
    let exits: BTreeMap<&str, &Value> = all
        .iter()
        .filter_map(|container| Some((container["id"].as_str()?, &container["exit"])))
        .collect();
    let mut wrong = Vec::new();
    for number in 0..count {
        let (id, code) = numbered(number)?;
        let exit = exits.get(id.as_str()).copied().unwrap_or(&Value::Null);
        if exit["status"] != json!({ "code": code }) || exit["evidence"] != "shim" {
            wrong.push(format!("{id}: {exit}, and not {code}"));
        }
    }
    Ok(wrong)
}

fn say(what: &str, memory: &Value) {
    println!(
        "  {what}: PSS {} KiB, USS {} KiB, RSS {} KiB, {} files",
        memory["pssKiB"], memory["ussKiB"], memory["rssKiB"], memory["files"]
    );
}
