//! A keeper of a test's own, and what comes of the monitors that it keeps.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;

use crate::{Proc, binary, eventually, processes};

/// A keeper. Dropped, it is killed.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    socket: PathBuf,
}

impl Keeper {
    /// Starts one, and waits for nothing.
    #[must_use]
    pub fn begin(socket: PathBuf) -> Self {
        Self::spawn(socket, |_| {})
    }

    /// Starts one, and waits until it listens.
    pub async fn start(socket: PathBuf) -> Self {
        let keeper = Self::begin(socket);
        keeper.listens().await;
        keeper
    }

    /// Starts one of another user, which has to own the directory.
    pub async fn start_as(socket: PathBuf, uid: u32) -> Self {
        let keeper = Self::spawn(socket, |command| _ = command.uid(uid));
        keeper.listens().await;
        keeper
    }

    /// Starts one with a socket that listens already, as systemd does, and waits until it serves.
    ///
    /// # Panics
    ///
    /// If it can't be started.
    pub async fn activated(socket: PathBuf, listener: &OwnedFd) -> Self {
        let text = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\" 3<&0 0</dev/null";
        let mut command = Command::new("sh");
        command.args(["-c", text]).arg(binary("holdfast-conmon"));
        command.stdin(listener.try_clone().expect("copy a descriptor"));
        let keeper = Self::of(command, socket);
        keeper.listens().await;
        keeper
    }

    fn spawn(socket: PathBuf, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(binary("holdfast-conmon"));
        change(command.stdin(Stdio::null()));
        Self::of(command, socket)
    }

    fn of(mut command: Command, socket: PathBuf) -> Self {
        let log = File::options().append(true).create(true).open(log_of(&socket));
        command.arg("--keep").arg(&socket);
        let child = command.stderr(log.expect("open a log")).spawn().expect("start a keeper");
        Self { child, socket }
    }

    async fn listens(&self) {
        eventually("the socket of the keeper", || self.socket.exists()).await;
        // Made last: from now on it has the descriptors that it has without any monitor.
        eventually("the keeper's epoll", || self.links().any(|link| link.ends_with("[eventpoll]")))
            .await;
    }

    /// What its descriptors are of.
    fn links(&self) -> impl Iterator<Item = String> {
        let dir = format!("/proc/{}/fd", self.child.id());
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string()))
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has said.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(log_of(&self.socket)).unwrap_or_default()
    }

    /// Its process.
    ///
    /// # Panics
    ///
    /// If it has ended.
    #[must_use]
    pub fn process(&self) -> Proc {
        Proc::of(self.child.id().cast_signed()).expect("the keeper runs")
    }

    /// How many descriptors it has.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// The pids of the monitors that it keeps; of one that has ended and was reaped it is -1.
    #[must_use]
    pub fn kept(&self) -> Vec<i32> {
        let dir = format!("/proc/{}/fdinfo", self.child.id());
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        // Only those of a pidfd have this line.
        let pid = |text: String| {
            text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        };
        entries.filter_map(|entry| pid(fs::read_to_string(entry.path()).ok()?)).collect()
    }

    /// Waits for its end, and returns its exit code.
    ///
    /// # Panics
    ///
    /// If that can't be waited for.
    #[must_use]
    pub fn code(&mut self) -> Option<i32> {
        self.child.wait().expect("wait for the keeper").code()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}

fn log_of(socket: &Path) -> PathBuf {
    socket.with_extension("log")
}

/// The adopter of a container that lives.
#[must_use]
pub fn adopter(id: &str) -> Option<Proc> {
    let is_it = |process: &Proc| {
        let mut words = process.command().split(' ');
        // A whole word: ids are numbered, and one may begin as another.
        process.command().starts_with("holdfast-conmon --adopt ")
            && words.any(|word| word == id)
            && process.lives()
    };
    processes::mentioning(Path::new(id)).into_iter().find(is_it)
}

/// Kills a monitor, and waits for the one that takes over.
///
/// # Panics
///
/// If that ends at once.
pub async fn killed(monitor: &Proc, id: &str) -> Proc {
    monitor.signal(Signal::SIGKILL);
    monitor.ended().await;
    // Its pid may be the same.
    let follows = || adopter(id).filter(|adopter| adopter != monitor);
    eventually("an adopter", || follows().is_some()).await;
    follows().expect("it runs on")
}
