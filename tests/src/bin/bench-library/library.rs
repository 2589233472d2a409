//! A service that embeds the library: what the library adds to a start, and how long after the end of
//! a process the future completes; with few and with many other containers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use holdfast_supervisor::{Container, ContainerOptions, ExitStatus, Supervisor};
use holdfast_tests::binary;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::containers::{self, Gate, Kind};
use crate::measure::{self, Samples, micros, monotonic};
use crate::starter::Starter;
use crate::{Options, Outcome};

/// What is timed at one count of idle containers, all in microseconds.
#[derive(Debug, Default)]
struct Point {
    /// The runtime alone, for the same container.
    runtime: Samples,
    run: Samples,
    create: Samples,
    start: Samples,
    /// From the last act of the container's process to the completed `wait`.
    exit: Samples,
    /// The same of a child of ours, by Tokio alone.
    child: Samples,
}

struct Bench {
    supervisor: Supervisor,
    kind: Kind,
    /// Where all idle ones wait.
    gate: Gate,
    directory: PathBuf,
    starter: Starter,
    made: usize,
}

pub(crate) async fn run(options: &Options, directory: &Path) -> Outcome<Value> {
    if options.runtime != containers::FAKE {
        return Err("the library is measured with the fake runtime".into());
    }
    let kind = Kind::new(&options.runtime, &options.log, directory)?;
    let starter = Starter::begin()?;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    let builder = Supervisor::builder(directory.join("root"));
    let supervisor = builder
        .shim(binary("holdfast-shim"))
        .runtime(&kind.runtime)
        .container_nofile(Some(options.files))
        .shim_group(options.shim_group.clone())
        .open()
        .await?;
    let gate = kind.gate("idle")?;
    let directory = directory.to_owned();
    let mut bench = Bench { supervisor, kind, gate, directory, starter, made: 0 };
    let mut counts = options.counts.clone();
    counts.sort_unstable();
    let mut points = Vec::new();
    for count in counts {
        bench.have_idle(count, options.parallel).await?;
        points.push(bench.point(count, options.starts).await?);
    }
    bench.end(options.parallel).await?;
    Ok(json!({ "starts": options.starts, "unit": "microseconds", "points": points }))
}

impl Bench {
    fn options(&mut self, gate: &Gate, stamps: &Path) -> Outcome<(ContainerOptions, u8)> {
        self.made += 1;
        self.kind.options(gate, self.made - 1, stamps)
    }

    /// Makes more until there are this many.
    async fn have_idle(&mut self, count: usize, parallel: usize) -> Outcome<()> {
        let missing = count.saturating_sub(self.supervisor.list().len());
        let stamps = self.directory.join("stamps-idle");
        let wanted: Vec<ContainerOptions> = (self.made..self.made + missing)
            .map(|number| Ok(self.kind.options(&self.gate, number, &stamps)?.0))
            .collect::<Outcome<_>>()?;
        self.made += missing;
        let began = Instant::now();
        let mut made = stream::iter(wanted)
            .map(|options| self.supervisor.run(options))
            .buffer_unordered(parallel);
        let mut done = 0;
        while made.try_next().await?.is_some() {
            done += 1;
            if done % 1000 == 0 {
                println!("{done} of {missing} idle containers, {:.0?}", began.elapsed());
            }
        }
        Ok(())
    }

    async fn point(&mut self, count: usize, starts: usize) -> Outcome<Value> {
        let mut point = Point::default();
        // A tenth more comes first, to warm up.
        let warm_up = starts.div_ceil(10);
        for round in 0..warm_up + starts {
            if round == warm_up {
                point = Point::default();
            }
            self.round(&mut point).await?;
        }
        println!("with {count} idle containers, median and 99 % in µs:");
        let all = [
            ("the runtime alone", "runtimeAlone", &point.runtime),
            ("run", "run", &point.run),
            ("create", "create", &point.create),
            ("start", "start", &point.start),
            ("exit to future", "exitToFuture", &point.exit),
            ("exit of a child", "childExitToFuture", &point.child),
        ];
        let mut found = json!({ "idle": count });
        for (name, key, samples) in all {
            let (median, high) = (samples.quantile(0.5), samples.quantile(0.99));
            println!("  {name:<18} {median:>9.0} {high:>9.0}");
            found[key] = samples.to_json();
        }
        // Both with the same runtime, whose own time is no part of what is the library's.
        let own = point.run.quantile(0.5) - point.runtime.quantile(0.5);
        println!("  {:<18} {own:>9.0}", "own share of run");
        found["ownShareOfRun"] = json!(own);
        found["self"] = measure::memory(std::process::id().cast_signed())?;
        Ok(found)
    }

    /// One of each.
    async fn round(&mut self, point: &mut Point) -> Outcome<()> {
        point.runtime.0.push(self.runtime_alone().await?);
        point.child.0.push(self.child().await?);

        let gate = self.kind.gate("one")?;
        let stamps = self.directory.join("stamps");
        let (options, code) = self.options(&gate, &stamps)?;
        let began = monotonic();
        let container = self.supervisor.run(options).await?;
        point.run.0.push(micros(began, monotonic()));
        point.exit.0.push(ended(&container, &gate, code, &stamps).await?);
        container.delete().await?;

        let (options, code) = self.options(&gate, &stamps)?;
        let began = monotonic();
        let container = self.supervisor.create(options).await?;
        let created = monotonic();
        container.start().await?;
        point.create.0.push(micros(began, created));
        point.start.0.push(micros(created, monotonic()));
        point.exit.0.push(ended(&container, &gate, code, &stamps).await?);
        Ok(container.delete().await?)
    }

    /// The runtime's part of a `run`, by the command that the shim gives.
    async fn runtime_alone(&mut self) -> Outcome<f64> {
        let (state, pid_file) = (self.directory.join("alone"), self.directory.join("alone.pid"));
        let gate = self.kind.gate("alone")?;
        // Its configuration stands in a bundle of its own, for here nobody else writes one.
        let bundle = self.directory.join("alone-bundle");
        std::fs::create_dir_all(&bundle)?;
        let args = self.kind.args(&gate, 0, &self.directory.join("stamps-alone"));
        std::fs::copy(self.kind.bundle.join("config.json"), bundle.join("config.json"))?;
        holdfast_tests::edit_json(&bundle.join("config.json"), |config| {
            config["process"]["args"] = json!(args);
        });
        let text = |path: &Path| path.display().to_string();
        let call = |args: &[&str]| {
            let first = [self.kind.runtime.clone(), "--root".to_owned(), text(&state)];
            first.into_iter().chain(args.iter().map(|arg| (*arg).to_owned())).collect::<Vec<_>>()
        };
        let (bundle, pid_file) = (text(&bundle), text(&pid_file));
        let run = ["run", "--detach", "--bundle", &bundle, "--pid-file", &pid_file, "alone"];
        let took = self.starter.time(&call(&run)).await?;
        // It kills what is there.
        self.starter.time(&call(&["delete", "--force", "alone"])).await?;
        Ok(took)
    }

    /// From the last act of a child to Tokio's own future.
    async fn child(&mut self) -> Outcome<f64> {
        let gate = self.kind.gate("child")?;
        let stamps = self.directory.join("stamps");
        let args = self.kind.args(&gate, 7, &stamps);
        let mut command = Command::new(&args[0]);
        let mut child = command.args(&args[1..]).kill_on_drop(true).spawn()?;
        let waited = tokio::spawn(async move { (child.wait().await, monotonic()) });
        settle().await;
        gate.open(1)?;
        let (status, now) = waited.await?;
        if status?.code() != Some(7) {
            return Err("a child exited with another code".into());
        }
        stamped(&stamps, now)
    }

    /// Lets all idle ones go, and looks at each status.
    async fn end(self, parallel: usize) -> Outcome<()> {
        let all = self.supervisor.list();
        self.gate.open(all.len())?;
        let ended = stream::iter(all)
            .map(|container| async move {
                container.wait().await?;
                container.delete().await
            })
            .buffer_unordered(parallel);
        ended.try_collect::<Vec<()>>().await?;
        self.supervisor.shutdown().await;
        Ok(())
    }
}

/// Lets a container go; how long after its last act the future completes.
async fn ended(container: &Container, gate: &Gate, code: u8, stamps: &Path) -> Outcome<f64> {
    let waiting = container.clone();
    let waited = tokio::spawn(async move { (waiting.wait().await, monotonic()) });
    settle().await;
    gate.open(1)?;
    let (status, now) = waited.await?;
    let status = status?;
    if status != ExitStatus::Code(code) {
        return Err(format!("{} exited with {status}, and not with {code}", container.id()).into());
    }
    stamped(stamps, now)
}

/// Long enough for the program to come to its gate and for everyone to sleep.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// How long after the one stamp in the file this was, in microseconds. The file is removed.
fn stamped(stamps: &Path, now: i64) -> Outcome<f64> {
    let found = measure::stamps(stamps)?;
    std::fs::remove_file(stamps)?;
    match found[..] {
        [stamp] => Ok(micros(stamp, now)),
        _ => Err(format!("{} stamps of one exit", found.len()).into()),
    }
}
