//! The supervisor of all containers that one containerd has given to Holdfast.
//!
//! It is started by the first front that needs it, and again by any front that finds it dead
//! (crates/front). It only translates: containerd's calls into those of the library, and the library's
//! events into containerd's.

mod binary_log;
mod call;
mod cgroup;
mod events;
mod exec;
mod failure;
mod namespace;
mod options;
mod rootfs;
mod server;
mod stdio;
mod task;

use std::fs::{self, DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_sys::resource;
use holdfast_ttrpc::place;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::server::Server;

/// What it is started with.
#[derive(Debug)]
struct Arguments {
    /// The directory of everything, [`place::directory`].
    directory: PathBuf,
    /// The address of containerd's API.
    address: String,
}

const USAGE: &str = "usage: holdfast-containerd --directory DIR --address ADDRESS\n\
    It is started by containerd-shim-holdfast-v2, not by hand.";

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (mut directory, mut address) = (None, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--directory" => directory = words.next().map(PathBuf::from),
                "--address" => address = words.next(),
                "--version" => {
                    println!("holdfast-containerd {}", env!("CARGO_PKG_VERSION"));
                    std::process::exit(0);
                }
                _ => bail!("{USAGE}"),
            }
        }
        match (directory, address) {
            (Some(directory), Some(address)) => Ok(Self { directory, address }),
            _ => bail!("{USAGE}"),
        }
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&arguments.directory)
        .with_context(|| format!("create {}", arguments.directory.display()))?;
    let Some(_lock) = lock(&arguments.directory)? else {
        // Another one serves already; whoever has started this one will find it.
        return Ok(());
    };
    // Before there are threads: each would have to be moved.
    cgroup::enter();
    // Containers get the limits that containerd gave us.
    let nofile = resource::raise_open_files().inspect_err(|error| {
        tracing::warn!(%error, "limit of open files not raised");
    });
    let _ = resource::make_room_for_files(resource::FILES_OF_A_DAEMON);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start Tokio")?;
    let served = runtime.block_on(serve(&arguments, nofile.ok()));
    runtime.shutdown_background();
    served
}

/// There is one supervisor at a time.
fn lock(directory: &Path) -> anyhow::Result<Option<Flock<File>>> {
    let path = directory.join("lock");
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) if is_at(&lock, &path) => Ok(Some(lock)),
        // The one before us has removed it meanwhile. We are started again.
        Ok(_) => Ok(None),
        Err((_, nix::errno::Errno::EAGAIN)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let inode = |metadata: std::io::Result<fs::Metadata>| metadata.map(|one| one.ino()).ok();
    inode(file.metadata()) == inode(fs::metadata(path))
}

async fn serve(arguments: &Arguments, nofile: Option<u64>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let server = Arc::new(Server::open(&arguments.directory, &arguments.address, nofile).await);
    let path = place::supervisor_socket(&arguments.directory);
    // We have the lock, so nobody listens there.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
    fs::set_permissions(&path, Permissions::from_mode(0o600)).context("protect the socket")?;
    let all_done = tokio::select! {
        () = server.clone().accept(listener) => false,
        done = server.idle() => done,
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
    };
    // Before the lock is given back: the next one has a socket of its own.
    let _ = fs::remove_file(&path);
    server.close().await;
    if all_done {
        cgroup::leave();
        leave(&arguments.directory);
    }
    Ok(())
}

/// Leaves nothing behind, unless a front is about to start another supervisor. Who waits for one of these
/// locks finds that its file is no longer there, and begins anew.
fn leave(directory: &Path) {
    let starting = File::open(directory.join("starting"));
    let Ok(_starting) = starting
        .map_err(drop)
        .and_then(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(drop))
    else {
        return;
    };
    for name in ["namespaces", "execs", "cursors", "logs", "cleanup"] {
        let _ = fs::remove_dir_all(directory.join(name));
    }
    for name in ["supervisor.log", "starting", "lock"] {
        let _ = fs::remove_file(directory.join(name));
    }
    let _ = fs::remove_dir(directory);
}
