//! `delete`: what is left of a container is removed. containerd calls it after a front has gone, and 1.6 after
//! every container.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, thread};

use holdfast_state::id::INIT;
use holdfast_state::{ContainerId, Directory, ProcessDir};
use holdfast_ttrpc::front::{CLEANUP, Cleanup, FORGET, Forget, HELLO, Hello};
use holdfast_ttrpc::rpc::Response;
use holdfast_ttrpc::task::DeleteResponse;
use holdfast_ttrpc::{Message, place};

use crate::args::Args;
use crate::wire::{self, Wire};
use crate::{identity, launch, start};

/// How long the supervisor has: containerd waits for five seconds.
const LIMIT: Duration = Duration::from_millis(3500);
/// The pause between two attempts to reach the supervisor.
const PAUSE: Duration = Duration::from_millis(5);
/// The exit status of a process that was killed.
const KILLED: u32 = 128 + 9;

/// The action. Returns what containerd reads.
pub(crate) fn delete(args: &Args<'_>) -> Result<Vec<u8>, String> {
    // Both are parts of paths.
    for id in [args.namespace, args.id] {
        id.parse::<ContainerId>().map_err(|error| error.to_string())?;
    }
    let bundle = match args.bundle {
        "" => env::current_dir().map_err(|error| format!("find the bundle: {error}"))?,
        bundle => PathBuf::from(bundle),
    };
    let dir = place::directory(args.address);
    let cleanup = Cleanup {
        namespace: args.namespace.to_owned(),
        id: args.id.to_owned(),
        bundle: bundle.to_string_lossy().into_owned(),
    };
    let answer = ask(args, &dir, &cleanup).or_else(|error| {
        let marked = mark(&dir, &cleanup);
        // containerd logs that as a warning.
        crate::log::log("warning", &format!("the supervisor does not answer: {error}"));
        marked.map_err(|error| format!("leave a note for the supervisor: {error}"))?;
        Ok(recorded(&dir, &cleanup).encode_to_vec())
    });
    forget(&bundle, args.id);
    answer
}

/// Has the supervisor do it, and returns its answer.
fn ask(args: &Args<'_>, dir: &Path, cleanup: &Cleanup) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + LIMIT;
    let stream = reach(args.address, dir, deadline)?;
    let hello = Hello {
        namespace: args.namespace.to_owned(),
        group: args.id.to_owned(),
        connection: identity()?,
        ttrpc_address: env::var("TTRPC_ADDRESS").unwrap_or_default(),
    };
    let frames = [wire::own_call(HELLO, &hello), wire::own_call(CLEANUP, cleanup)];
    match wire::call(stream, &frames, deadline)? {
        response if response.is_ok() => Ok(response.payload),
        Response { status, .. } => Err(io::Error::other(status.unwrap_or_default().message)),
    }
}

/// Connects to the supervisor, and starts one if none runs.
fn reach(
    address: &str,
    dir: &Path,
    deadline: Instant,
) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = place::supervisor_socket(dir);
    let mut launcher: Option<Child> = None;
    loop {
        let error = match wire::dial(&socket) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if let Some(child) = &mut launcher
            && child.try_wait()?.is_some_and(|status| !status.success())
        {
            return Err(error);
        }
        if launcher.is_none() && wire::is_nobody(&error) {
            launcher = Some(launch::spawn(address)?);
        }
        if Instant::now() + PAUSE > deadline {
            return Err(error);
        }
        thread::sleep(PAUSE);
    }
}

/// Leaves a note for the next supervisor.
fn mark(dir: &Path, cleanup: &Cleanup) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(place::cleanups(dir))?;
    let file = place::cleanup(dir, &cleanup.namespace, &cleanup.id);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Directory::open(&place::cleanups(dir))?.write_atomic(&name, &cleanup.encode_to_vec())
}

/// How the container's process ended, as far as it was recorded. It is taken for killed otherwise: it will be.
fn recorded(dir: &Path, cleanup: &Cleanup) -> DeleteResponse {
    let process = place::root(dir, &cleanup.namespace).join(&cleanup.id).join(INIT);
    let process = ProcessDir::open(&process).ok();
    let exit = process.as_ref().and_then(|process| process.exit().ok().flatten());
    let pid = process.as_ref().and_then(|process| process.pid().ok().flatten());
    let exited_at = exit.as_ref().and_then(|exit| SystemTime::try_from(&exit.time).ok());
    DeleteResponse {
        pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        exit_status: exit.map_or(KILLED, |exit| exit.status.as_number().into()),
        exited_at: Some(exited_at.unwrap_or_else(SystemTime::now).into()),
    }
}

/// Tells the container's front, if there still is one, and does not wait for it. Of one that was killed the socket
/// is removed.
fn forget(bundle: &Path, id: &str) {
    let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
    let Some(path) = address.trim().strip_prefix("unix://") else { return };
    match wire::dial(Path::new(path)) {
        Ok(stream) => {
            let mut wire = Wire::new(stream);
            wire.push(&wire::own_call(FORGET, &Forget { id: id.to_owned() }));
            let _ = wire.flush();
        }
        Err(_) => start::remove_stale(Path::new(path)),
    }
}
