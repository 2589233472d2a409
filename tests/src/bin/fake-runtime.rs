//! An OCI runtime that does on demand what a real one can't be made to do, and otherwise really
//! starts processes: on the host, with no isolation whatever.
//!
//! What it does is said by the `"fake"` annotation of a bundle's `config.json`, else by
//! `FAKE_RUNTIME` in its environment:
//!
//! | mode | what happens |
//! |---|---|
//! | `hang-in-create` | `create` and `run` never end, nor does a process in a session of its own |
//! | `complain-and-hang` | the same, after a line on the standard error |
//! | `hang-after-pid` | `create` and `run` never end, once the process is there and its pid written |
//! | `hang-in-start` | `start` never ends |
//! | `fail` | an error in the `--log` file, exit code 1 |
//! | `fail-stderr` | an error on the standard error only, exit code 1 |
//! | `no-pid` | exit code 0, and no pid file |
//! | `foreign-pid` | exit code 0, and the pid file names a process that is no descendant |
//! | `hang-in-pause` | `pause` never ends, and nothing is paused |
//! | `hang-after-VERB` | this command does its work, and then never ends: `start`, `pause`, … |
//! | `fail-after-VERB` | this command does its work, and then fails |
//! | `fail-in-start` | `start` fails, and nothing is started |
//! | `fail-in-checkpoint` | `checkpoint` fails |
//!
//! With the annotation `"fake-record"` every call is added to that file: its arguments, as a line of
//! JSON.
//!
//! With the annotation `"fake-trace"` it writes the numbers of the processes that hang into that
//! file, so that a test can know that they were there.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use holdfast_tests::Proc;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::{Value, json};

/// The verb by which this program starts itself as the process that hangs.
const HANG: &str = "hang";

/// Options that take no value.
const FLAGS: [&str; 10] = [
    "detach",
    "force",
    "no-pivot",
    "systemd-cgroup",
    "debug",
    "shell-job",
    "tcp-established",
    "ext-unix-sk",
    "leave-running",
    "no-new-keyring",
];

type Outcome<T> = Result<T, Box<dyn Error>>;

/// As much of runc's command line as is needed.
#[derive(Debug, Default)]
struct Call {
    root: PathBuf,
    log: Option<PathBuf>,
    verb: String,
    bundle: PathBuf,
    pid_file: Option<PathBuf>,
    process: PathBuf,
    id: String,
    /// What follows the id: the signal of `kill`.
    rest: Vec<String>,
}

impl Call {
    fn parse(args: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut call = Self::default();
        let mut args = args;
        let mut plain = Vec::new();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else {
                plain.push(arg);
                continue;
            };
            if FLAGS.contains(&flag) {
                continue;
            }
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (flag, args.next().ok_or_else(|| format!("--{flag} takes a value"))?),
            };
            match name {
                "root" => call.root = value.into(),
                "log" => call.log = Some(value.into()),
                "log-format" | "image-path" | "work-path" | "empty-ns" | "resources" => {}
                "bundle" => call.bundle = value.into(),
                "pid-file" => call.pid_file = Some(value.into()),
                "process" => call.process = value.into(),
                _ => return Err(format!("unknown option --{name}").into()),
            }
        }
        let mut plain = plain.into_iter();
        call.verb = plain.next().ok_or("a command is missing")?;
        call.id = plain.next().ok_or("an id is missing")?;
        call.rest = plain.collect();
        Ok(call)
    }

    fn dir(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    fn config(&self) -> Outcome<Value> {
        read_json(&self.bundle.join("config.json"))
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().is_some_and(|verb| verb == HANG) {
        hang();
    }
    let call = match Call::parse(args) {
        Ok(call) => call,
        Err(error) => {
            eprintln!("fake-runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match act(&call) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&call, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn act(call: &Call) -> Outcome<()> {
    record(call)?;
    // Before a `delete` takes it away.
    let mode = container(call).map(|container| container["mode"].clone()).unwrap_or_default();
    perform(call)?;
    let mode = mode.as_str().unwrap_or_default();
    if mode == format!("hang-after-{}", call.verb) {
        hang();
    }
    if mode == format!("fail-after-{}", call.verb) {
        return Err(format!("made to fail after {}", call.verb).into());
    }
    Ok(())
}

fn perform(call: &Call) -> Outcome<()> {
    match call.verb.as_str() {
        "create" | "run" | "restore" => create(call),
        "start" => start(call),
        "exec" => exec(call),
        "state" => state(call),
        "kill" => signal(call),
        "delete" => delete(call),
        "pause" => pause(call),
        "resume" => Ok(fs::remove_file(call.dir().join("paused"))?),
        "update" => container(call).map(drop),
        "checkpoint" => checkpoint(call),
        other => Err(format!("unknown command {other}").into()),
    }
}

fn create(call: &Call) -> Outcome<()> {
    let config = call.config()?;
    fs::create_dir_all(&call.root)?;
    fs::create_dir(call.dir()).map_err(|error| format!("container {}: {error}", call.id))?;
    let mode = mode(&config);
    match mode.as_str() {
        "hang-in-create" => hang_with_company(call, &config)?,
        "complain-and-hang" => {
            eprintln!("made to hang");
            hang_with_company(call, &config)?;
        }
        "fail" => return Err("made to fail".into()),
        "fail-stderr" => {
            eprintln!("made to fail on the standard error");
            std::process::exit(1);
        }
        "no-pid" => return Ok(()),
        "foreign-pid" => return write_pid(call, 1),
        "" | "hang-in-start" | "fail-in-start" | "hang-in-pause" | "fail-in-checkpoint" => {}
        // `hang-after-pid` among them.
        mode if mode.starts_with("hang-after-") || mode.starts_with("fail-after-") => {}
        other => return Err(format!("unknown mode {other:?}").into()),
    }
    let pid = if call.verb == "create" {
        spawn_waiting(call, &config["process"])?
    } else {
        File::create(call.dir().join("started"))?;
        let (program, args) = program(&config["process"])?;
        spawn(call, Command::new(program).args(args).stdin(Stdio::null()), &config["process"])?
    };
    let process = Proc::of(pid).ok_or("the process has no entry in /proc")?;
    let record = json!({
        "pid": pid,
        "process": process.identity(),
        "mode": mode,
        "record": config["annotations"]["fake-record"],
    });
    fs::write(call.dir().join("state.json"), record.to_string())?;
    write_pid(call, pid)?;
    if mode == "hang-after-pid" {
        hang();
    }
    Ok(())
}

/// A shell that waits for a line and then becomes the container's program. It holds the FIFO for
/// both reading and writing, so `start` finds a reader as long as it lives.
fn spawn_waiting(call: &Call, process: &Value) -> Outcome<i32> {
    let path = call.dir().join("start");
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let fifo = File::options().read(true).write(true).open(&path)?;
    let (program, args) = program(process)?;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "read -r go; exec \"$@\" < /dev/null", "sh"]).arg(program).args(args);
    spawn(call, shell.stdin(fifo), process)
}

fn start(call: &Call) -> Outcome<()> {
    let mode = container(call)?["mode"].clone();
    if mode == "hang-in-start" {
        hang();
    }
    if mode == "fail-in-start" {
        return Err("made to fail in start".into());
    }
    // Without waiting for a reader: that there is none means that the process has ended.
    let mut fifo = nix::fcntl::open(
        &call.dir().join("start"),
        nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK,
        Mode::empty(),
    )
    .map(File::from)
    .map_err(|error| format!("container {} has ended: {error}", call.id))?;
    fifo.write_all(b"go\n")?;
    File::create(call.dir().join("started"))?;
    Ok(())
}

fn exec(call: &Call) -> Outcome<()> {
    container(call)?;
    let process = read_json(&call.process)?;
    let (program, args) = program(&process)?;
    let pid = spawn(call, Command::new(program).args(args).stdin(Stdio::null()), &process)?;
    write_pid(call, pid)
}

fn state(call: &Call) -> Outcome<()> {
    let container = container(call)?;
    let started = call.dir().join("started").exists();
    let status = match living(&container) {
        None => "stopped",
        Some(_) if call.dir().join("paused").exists() => "paused",
        Some(_) if started => "running",
        Some(_) => "created",
    };
    println!("{}", json!({ "id": call.id, "pid": container["pid"], "status": status }));
    Ok(())
}

fn signal(call: &Call) -> Outcome<()> {
    let text = call.rest.first().map_or("SIGTERM", String::as_str);
    let signal = match text.parse::<i32>() {
        Ok(number) => Signal::try_from(number)?,
        Err(_) => text.parse()?,
    };
    let process = living(&container(call)?).ok_or("the container has ended")?;
    Ok(kill(Pid::from_raw(process.pid), signal)?)
}

fn delete(call: &Call) -> Outcome<()> {
    if let Ok(container) = container(call)
        && let Some(process) = living(&container)
    {
        end(&container, &process);
    }
    Ok(fs::remove_dir_all(call.dir())?)
}

fn pause(call: &Call) -> Outcome<()> {
    if container(call)?["mode"] == "hang-in-pause" {
        hang();
    }
    File::create(call.dir().join("paused"))?;
    Ok(())
}

/// The state is written out to nowhere, and the container ends by it unless it is left running.
fn checkpoint(call: &Call) -> Outcome<()> {
    let container = container(call)?;
    if container["mode"] == "fail-in-checkpoint" {
        return Err("made to fail in checkpoint".into());
    }
    let process = living(&container).ok_or("the container has ended")?;
    if !std::env::args().any(|arg| arg == "--leave-running") {
        end(&container, &process);
        // As CRIU has still to do when the process has ended.
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Adds the arguments of this call to the file that the container's configuration names.
fn record(call: &Call) -> Outcome<()> {
    let known = match call.config() {
        Ok(config) => config["annotations"]["fake-record"].clone(),
        Err(_) => container(call).map(|container| container["record"].clone()).unwrap_or_default(),
    };
    if let Some(path) = known.as_str() {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let line = json!(args).to_string() + "\n";
        File::options().create(true).append(true).open(path)?.write_all(line.as_bytes())?;
    }
    Ok(())
}

/// Starts a process and leaves it an orphan when this one ends.
fn spawn(call: &Call, command: &mut Command, process: &Value) -> Outcome<i32> {
    command.env_clear();
    for variable in process["env"].as_array().into_iter().flatten() {
        if let Some((name, value)) = variable.as_str().and_then(|text| text.split_once('=')) {
            command.env(name, value);
        }
    }
    // By this a test finds it again, whose arguments name nothing of the test's.
    command.env("FAKE_RUNTIME_DIR", call.dir());
    let child = command.spawn().map_err(|error| format!("exec {:?}: {error}", process["args"]))?;
    Ok(i32::try_from(child.id())?)
}

fn program(process: &Value) -> Outcome<(String, Vec<String>)> {
    let args: Vec<String> = serde_json::from_value(process["args"].clone())?;
    let mut args = args.into_iter();
    let program = args.next().ok_or("process.args is empty")?;
    Ok((program, args.collect()))
}

/// Hangs, and leaves a process that hangs too and that no process group or session holds.
fn hang_with_company(call: &Call, config: &Value) -> Outcome<()> {
    // `setsid` becomes what it starts, under the same number.
    let child = Command::new("setsid")
        .arg(std::env::current_exe()?)
        .arg(HANG)
        .arg(call.dir())
        .stdin(Stdio::null())
        .spawn()?;
    if let Some(trace) = config["annotations"]["fake-trace"].as_str() {
        // In one step: whoever finds the file finds both numbers in it.
        let whole = PathBuf::from(format!("{trace}.new"));
        fs::write(&whole, format!("{} {}", std::process::id(), child.id()))?;
        fs::rename(whole, trace)?;
    }
    hang()
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn mode(config: &Value) -> String {
    match config["annotations"]["fake"].as_str() {
        Some(mode) => mode.to_owned(),
        None => std::env::var("FAKE_RUNTIME").unwrap_or_default(),
    }
}

fn container(call: &Call) -> Outcome<Value> {
    read_json(&call.dir().join("state.json"))
        .map_err(|error| format!("container {}: {error}", call.id).into())
}

/// Kills the container's process and, as runc does, waits for its end.
fn end(container: &Value, process: &Proc) {
    process.signal(Signal::SIGKILL);
    while living(container).is_some() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The container's process, if it still is the one that was started.
fn living(container: &Value) -> Option<Proc> {
    let pid = i32::try_from(container["pid"].as_i64()?).ok()?;
    let process = Proc::of(pid)?;
    (container["process"] == process.identity() && process.lives()).then_some(process)
}

fn write_pid(call: &Call, pid: i32) -> Outcome<()> {
    match &call.pid_file {
        Some(path) => Ok(fs::write(path, pid.to_string())?),
        None => Ok(()),
    }
}

fn read_json(path: &Path) -> Outcome<Value> {
    let content = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&content)?)
}

/// Says what went wrong where runc would: in the log, or on the standard error if there is none.
fn fail(call: &Call, text: &str) {
    let line = json!({ "level": "error", "msg": text });
    let log = call.log.as_ref().map(|log| File::options().append(true).create(true).open(log));
    match log {
        Some(Ok(mut log)) => _ = writeln!(log, "{line}"),
        _ => eprintln!("{line}"),
    }
}
