//! What the library costs, and how it bears many containers: `cargo xtask bench library` and `scale`
//! run this and keep what it finds.
//!
//! | module | what |
//! |---|---|
//! | `containers` | containers that cost next to nothing, of the fake runtime or a real one |
//! | `library` | a service that embeds the library: its share of a start, and from an exit to the future |
//! | `scale` | the daemon with thousands of containers: memory, wake-ups, restore, exits all at once |
//! | `daemon` | the daemon's process and its API |
//! | `starter` | programs that are started by a small process |
//! | `measure` | samples, clocks, what `/proc` tells |
//!
//! The work is done in a process of its own. This one takes every orphan and, when that process has
//! ended, whichever way, ends all that is left of it.

mod containers;
mod daemon;
mod library;
mod measure;
mod scale;
mod starter;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use holdfast_state::{GroupName, LogDriver, LogSpec};
use holdfast_sys::PidFd;
use holdfast_tests::{Proc, processes};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::Value;

/// What goes wrong here is told and ends the run.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "bench-library library|scale [--counts N,…] [--starts N] [--seconds N] \
                     [--parallel N] [--runtime fake|NAME|PATH] [--log DRIVER] [--shim-group NAME] --output FILE";

/// As many open files as the kernel lets anyone have: several are held for each container.
const FILES: u64 = 1_048_576;

/// How what was found says that it is not all: then something is left over, to be ended here.
const FAILED: &str = "failed";

#[derive(Debug, Clone)]
struct Options {
    what: String,
    /// Of how many idle containers.
    counts: Vec<usize>,
    /// How many starts and exits are timed at each count.
    starts: usize,
    /// How long nobody is to do anything.
    seconds: u64,
    /// How many containers are made, or deleted, at the same time.
    parallel: usize,
    runtime: String,
    /// Where the output of containers goes.
    log: LogSpec,
    /// The group that all containers are in; without one each has a shim of its own.
    shim_group: Option<GroupName>,
    /// Whether all shims are killed before all exit, and how long it takes until each container has one again.
    adopt: bool,
    output: PathBuf,
    /// Where to work; whoever names it clears up there.
    directory: Option<PathBuf>,
    /// The soft limit of open files as it was.
    files: u64,
}

fn parsed<T: FromStr<Err: std::fmt::Display>>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{name} {text}: {error}"))
}

fn options() -> Result<Options, String> {
    let mut args = std::env::args().skip(1);
    let mut options = Options {
        what: args.next().ok_or(USAGE)?,
        counts: vec![0, 10_000],
        starts: 500,
        seconds: 60,
        parallel: 12,
        runtime: containers::FAKE.to_owned(),
        log: LogSpec::new(LogDriver::Cri),
        shim_group: None,
        adopt: false,
        output: PathBuf::new(),
        directory: None,
        files: 0,
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} takes a value"))?;
        match name.as_str() {
            "--counts" => {
                let counts = value.split(',').map(|count| parsed(&name, count));
                options.counts = counts.collect::<Result<_, _>>()?;
            }
            "--starts" => options.starts = parsed(&name, &value)?,
            "--seconds" => options.seconds = parsed(&name, &value)?,
            "--parallel" => options.parallel = parsed(&name, &value)?,
            "--runtime" => options.runtime = value,
            "--log" => options.log = parsed(&name, &value)?,
            "--adopt" => options.adopt = parsed(&name, &value)?,
            "--shim-group" => options.shim_group = Some(parsed(&name, &value)?),
            "--output" => options.output = value.into(),
            "--in" => options.directory = Some(value.into()),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let known = ["library", "scale"].contains(&options.what.as_str());
    if known && options.output != Path::new("") { Ok(options) } else { Err(USAGE.to_owned()) }
}

fn main() -> ExitCode {
    match perform() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-library: {error}");
            ExitCode::FAILURE
        }
    }
}

fn perform() -> Outcome<()> {
    if std::env::args().nth(1).is_some_and(|what| what == starter::STARTER) {
        return starter::run();
    }
    let options = options()?;
    if options.directory.is_some() { work(options) } else { oversee(&options) }
}

fn work(mut options: Options) -> Outcome<()> {
    // Should the overseer be killed, the gates close, and by that every container ends.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if setrlimit(Resource::RLIMIT_NOFILE, soft, hard.max(FILES)).is_err() {
        println!("nobody here may have more than {hard} open files (CAP_SYS_RESOURCE, fs.nr_open)");
    }
    options.files = soft;
    let directory = options.directory.clone().ok_or(USAGE)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let found: Value = match options.what.as_str() {
        "library" => runtime.block_on(library::run(&options, &directory))?,
        _ => runtime.block_on(scale::run(&options, &directory))?,
    };
    Ok(fs::write(&options.output, found.to_string())?)
}

fn oversee(options: &Options) -> Outcome<()> {
    prctl::set_child_subreaper(true)?;
    let name = format!("holdfast-bench-{}", std::process::id());
    // In memory, so that no disk has a say.
    let directory = Path::new("/dev/shm").join(&name);
    fs::create_dir(&directory)?;
    let worked = supervised(&directory);
    let left = clear(options, &directory, &name);
    fs::remove_dir_all(&directory)?;
    worked?;
    let failed = fs::read_to_string(&options.output).is_ok_and(|text| text.contains(FAILED));
    if left.is_empty() || failed {
        Ok(())
    } else {
        Err(format!("left over, and ended: {left:?}").into())
    }
}

/// Does the work in a process of its own, and reaps whatever comes to us meanwhile.
fn supervised(directory: &Path) -> Outcome<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args_os().skip(1)).arg("--in").arg(directory);
    let worker = i32::try_from(command.spawn()?.id())?;
    let held = PidFd::open(worker)?;
    // After the worker is there: it would have them blocked as well.
    let ending = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    ending.thread_block()?;
    std::thread::spawn(move || {
        let _ = ending.wait();
        let _ = held.send_signal(Signal::SIGKILL as i32);
    });
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == worker => {
                return if code == 0 { Ok(()) } else { Err("the measurement failed".into()) };
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == worker => {
                return Err(format!("the measurement was ended by {signal}").into());
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Ends everything that has to do with the directory, and says what that was: the first few of it.
fn clear(options: &Options, directory: &Path, name: &str) -> Vec<String> {
    let is_daemon = |process: &Proc| process.command().ends_with(" daemon");
    // By its name alone, for so it stands among the mounts of a container.
    let found = || {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|end| end.pid().is_some()) {}
        processes::mentioning(Path::new(name))
    };
    let mut left: Vec<String> = Vec::new();
    for process in found().into_iter().filter(is_daemon) {
        process.signal(Signal::SIGKILL);
        left.push(process.to_string());
    }
    for (state, id) in containers::runtime_state(directory) {
        left.push(format!("container {id}"));
        if let Some(runtime) = containers::real_runtime(&options.runtime) {
            let mut command = Command::new(runtime);
            let _ = command.arg("--root").arg(&state).args(["delete", "--force", &id]).status();
        }
    }
    // The end of a shim leaves its container an orphan, so one round is not enough.
    for _ in 0..100 {
        let round = found();
        if round.is_empty() {
            break;
        }
        for process in round {
            process.signal(Signal::SIGKILL);
            if left.len() < 20 {
                left.push(process.to_string());
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    left.truncate(20);
    left
}
