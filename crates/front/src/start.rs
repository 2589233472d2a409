//! `start`: has a front for a container, a running one or a new one, and prints its address.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_sys::spawn;
use holdfast_ttrpc::front::{JOIN, Join, Joined};
use holdfast_ttrpc::{Message, place};

use crate::args::Args;
use crate::dialect::Call;
use crate::{group, launch, limits, wire};

/// The version of the Task service that a front passes on.
pub(crate) const VERSION: i32 = 3;
/// How `start` names the group to the front that it starts: the command line is that of containerd's shims.
pub(crate) const GROUP: &str = "SHIM_GROUP";
/// How long a running front may take to answer.
const LIMIT: Duration = Duration::from_secs(5);
/// The pause before another attempt, after a front ended under our hands.
const PAUSE: Duration = Duration::from_millis(5);
/// The most that is read from the standard input, in bytes.
const INPUT: u64 = 16 * 1024 * 1024;

/// Reads the standard input.
pub(crate) fn input() -> Result<Vec<u8>, String> {
    let mut input = Vec::new();
    let read = io::stdin().take(INPUT).read_to_end(&mut input);
    read.map(|_| input).map_err(|error| format!("read the standard input: {error}"))
}

/// The action. Returns what containerd reads.
pub(crate) fn start(args: &Args<'_>, input: &[u8]) -> Result<Vec<u8>, String> {
    if args.namespace.is_empty() || args.id.is_empty() {
        return Err("start needs -namespace and -id".to_owned());
    }
    let call = Call::parse(input, args.namespace, args.id);
    let group = group::of(Path::new(""), args.id)?;
    let sockets = call.socket_dir().unwrap_or_else(|| PathBuf::from(place::SOCKETS));
    let socket = place::front_socket(&sockets, args.address, args.namespace, &group);
    let explain = |error| format!("start the front of {group} at {}: {error}", socket.display());
    let version = match find(&socket, args.id).map_err(explain)? {
        Front::Running(version) => version,
        Front::Missing(listener) => {
            begin(args, &call, &group, (listener, &socket)).map_err(explain)?;
            VERSION
        }
    };
    let address = format!("unix://{}", socket.display());
    publish(&address).map_err(|error| format!("write the address to the bundle: {error}"))?;
    Ok(call.answer(&address, version))
}

enum Front {
    /// One runs, waits for the container, and passes on this version of the Task service.
    Running(i32),
    /// None runs, and here is the socket for one.
    Missing(UnixListener),
}

/// Finds the front of a group, or makes its socket.
///
/// Two that do this at once agree: the directory is locked while a socket is looked at, removed and made. Who comes
/// second finds that of the first, and waits for the front behind it. If that ends, or has never begun, the
/// connection is closed, and all begins anew.
fn find(socket: &Path, id: &str) -> io::Result<Front> {
    let deadline = Instant::now() + LIMIT;
    let dir = socket.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let dir = File::open(dir)?;
    loop {
        dir.lock()?;
        let found = wire::dial(socket);
        let missing = matches!(&found, Err(error) if wire::is_nobody(error));
        let made = missing.then(|| listen(socket)).transpose();
        dir.unlock()?;
        if let Some(listener) = made? {
            return Ok(Front::Missing(listener));
        }
        let joined = found.and_then(|stream| join(stream, id, deadline));
        match joined {
            Ok(version) => return Ok(Front::Running(version)),
            Err(error) if is_passing(&error) && Instant::now() + PAUSE < deadline => {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether the front has ended, or has many who connect.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof, WouldBlock};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof | WouldBlock)
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn join(stream: UnixStream, id: &str, deadline: Instant) -> io::Result<i32> {
    let join = wire::own_call(JOIN, &Join { id: id.to_owned() });
    let response = wire::call(stream, &[join], deadline)?;
    if let Some(failure) = response.status.filter(|status| status.code != 0) {
        return Err(io::Error::other(failure.message));
    }
    let joined = Joined::decode(response.payload.as_slice()).map_err(io::Error::other)?;
    Ok(joined.version)
}

/// Starts a front, which serves this socket.
fn begin(
    args: &Args<'_>,
    call: &Call,
    group: &str,
    (listener, socket): (UnixListener, &Path),
) -> io::Result<()> {
    // By its path: if it was replaced meanwhile, `/proc/self/exe` names a file that is deleted.
    let mut command = Command::new(launch::program()?);
    command.args(["-namespace", args.namespace, "-id", args.id, "-address", args.address]);
    if args.debug || call.debug() {
        command.arg("-debug");
    }
    command.env(GROUP, OsStr::new(group));
    if let Some(address) = call.ttrpc_address() {
        command.env("TTRPC_ADDRESS", address);
    }
    command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::null());
    // Before the last listener is gone: from then on the socket may be that of another `start`. Who has connected
    // meanwhile finds its connection closed, and begins anew.
    let remove = || drop(fs::remove_file(socket));
    let mut front = spawn::like_a_runtime(&mut command).spawn().inspect_err(|_| remove())?;
    limit(&front, call).inspect_err(|_| {
        remove();
        let _ = front.kill();
    })
}

/// Removes the socket of a front that was killed, unless a `start` is at work.
pub(crate) fn remove_stale(socket: &Path) {
    let Some(Ok(dir)) = socket.parent().map(File::open) else { return };
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if dir.try_lock().is_ok() && wire::dial(socket).is_err_and(refused) {
        let _ = fs::remove_file(socket);
    }
}

fn limit(front: &Child, call: &Call) -> io::Result<()> {
    let named = |what: String| move |error| io::Error::other(format!("{what}: {error}"));
    let cgroup = call.runc_options().map(|options| options.shim_cgroup).unwrap_or_default();
    if !cgroup.is_empty() {
        limits::enter(Path::new(limits::CGROUPS), &cgroup, front.id())
            .map_err(named(format!("enter the cgroup {cgroup}")))?;
    }
    limits::adjust_oom_score(front.id()).map_err(named("adjust its OOM score".to_owned()))
}

/// Writes the file `address` of the bundle. containerd 1.6 and 1.7 find a front again by it. It need not survive
/// the machine, which no front does.
fn publish(address: &str) -> io::Result<()> {
    let temporary = format!(".address.{}", std::process::id());
    fs::write(&temporary, address)?;
    fs::rename(temporary, "address")
}
