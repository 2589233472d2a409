//! `launch`: starts the supervisor, if none runs.
//!
//! It is a process of its own, so that nobody who needs a supervisor has to wait, and so that the
//! supervisor is nobody's child: its parent ends.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use holdfast_sys::spawn;
use holdfast_ttrpc::place;

use crate::args::Args;
use crate::wire;

/// How long a supervisor may take to listen.
const LIMIT: Duration = Duration::from_secs(10);
/// The pause between two looks whether it does.
const PAUSE: Duration = Duration::from_millis(2);
/// The pause after a supervisor that did not come to listen.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// The supervisor's log is begun anew when it is longer, in bytes.
const LOG_LIMIT: u64 = 1024 * 1024;

/// This program's path. If it was replaced meanwhile, the new one has it: it knows the new supervisor.
pub(crate) fn program() -> io::Result<PathBuf> {
    let name = env::args_os().next().unwrap_or_default();
    if Path::new(&name).is_absolute() { Ok(name.into()) } else { env::current_exe() }
}

/// Starts a process that starts the supervisor of this containerd.
pub(crate) fn spawn(address: &str) -> io::Result<Child> {
    let mut command = Command::new(program()?);
    // Its standard error is ours: our log, or that of `delete`, which containerd reads.
    command.args(["-address", address, "launch"]).stdin(Stdio::null()).stdout(Stdio::null());
    spawn::like_a_runtime(&mut command).spawn()
}

/// The action.
pub(crate) fn launch(args: &Args<'_>) -> Result<(), String> {
    let dir = place::directory(args.address);
    let explain = |what: &'static str| {
        let place = dir.display().to_string();
        move |error: io::Error| format!("start the supervisor in {place}: {what}: {error}")
    };
    let _lock = lock(&dir).map_err(explain("lock"))?;
    let socket = place::supervisor_socket(&dir);
    let listens = || !matches!(wire::dial(&socket), Err(error) if wire::is_nobody(&error));
    if listens() {
        return Ok(());
    }
    let launched = supervisor(&dir, args.address).map_err(explain("run it")).and_then(|child| {
        wait(child, listens).map_err(|error| {
            let log = dir.join("supervisor.log");
            format!("the supervisor does not serve ({error}): see {}", log.display())
        })
    });
    if launched.is_err() {
        // However many fronts want one: a supervisor that can't run is tried once a second.
        thread::sleep(FAILURE_PAUSE);
    }
    launched
}

/// Many fronts may find at once that the supervisor is gone. One starts a new one, and the others wait until that
/// listens.
fn lock(dir: &Path) -> io::Result<File> {
    let path = dir.join("starting");
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let file = match File::options().create(true).append(true).mode(0o600).open(&path) {
            // A supervisor that has nothing left to do removes its directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        file.lock()?;
        let inode = file.metadata()?.ino();
        if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == inode) {
            return Ok(file);
        }
    }
}

/// Waits until a supervisor listens.
fn wait(mut supervisor: Child, listens: impl Fn() -> bool) -> io::Result<()> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end && !listens() {
        if let Some(status) = supervisor.try_wait()? {
            return Err(io::Error::other(status.to_string()));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn supervisor(dir: &Path, address: &str) -> io::Result<Child> {
    // A session of its own, so that nothing that happens to containerd's reaches it.
    nix::unistd::setsid()?;
    let log = dir.join("supervisor.log");
    let log = File::options().create(true).append(true).mode(0o600).open(log)?;
    if log.metadata()?.len() > LOG_LIMIT {
        log.set_len(0)?;
    }
    let named = env::var_os(place::SUPERVISOR_VARIABLE).map(PathBuf::from);
    let beside = || program().map(|own| own.with_file_name(place::SUPERVISOR));
    let program = match named {
        Some(named) => named,
        // Else in `PATH`.
        None => beside()?.canonicalize().unwrap_or_else(|_| place::SUPERVISOR.into()),
    };
    let mut command = Command::new(program);
    command.arg("--directory").arg(dir).args(["--address", address]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/").env_clear();
    command.envs(env::vars_os().filter(|(name, _)| is_for_supervisor(name)));
    spawn::like_a_runtime(&mut command).process_group(0).spawn()
}

fn is_for_supervisor(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "PATH" || name == "TTRPC_ADDRESS" || name.starts_with("HOLDFAST_")
}
