//! The daemon, the command line to it, and signals that are known to have arrived.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use holdfast_sys::PidFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Trouble;

/// After this whatever is waited for is lost.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Where everything stands.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    /// This run's own directory.
    pub(crate) scratch: PathBuf,
    /// The state root.
    pub(crate) root: PathBuf,
    /// The directory of our executables.
    pub(crate) programs: PathBuf,
}

impl Paths {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.scratch.join("bundle")
    }

    /// The directory of a container's first process.
    pub(crate) fn init(&self, id: &str) -> PathBuf {
        self.root.join(id).join("init")
    }

    pub(crate) fn holdfast(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.program("holdfast"));
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command.env_remove("HOLDFAST_LOG");
        command
    }
}

/// Waits until a process has ended, be it as a zombie. `false` if that takes too long.
pub(crate) fn ended(pidfd: &PidFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        let mut set = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut set, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(nix::Error::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// A command in the background. Its output is small enough for a pipe.
#[derive(Debug)]
pub(crate) struct Cli {
    child: Option<Child>,
    what: String,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cli {
    pub(crate) fn begin(paths: &Paths, args: &[&str]) -> Result<Self, Trouble> {
        let mut command = paths.holdfast(args);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(Self {
            child: Some(child.map_err(|error| Trouble::new(format!("holdfast: {error}")))?),
            what: args.join(" "),
        })
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id().cast_signed())
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Result<Said, Trouble> {
        let trouble = |error: io::Error| Trouble::new(format!("a command: {error}"));
        let Some(mut child) = self.child.take() else {
            return Err(Trouble::new(format!("{} was waited for twice", self.what)));
        };
        if !matches!(child.try_wait(), Ok(Some(_))) {
            // Our child keeps its number until we wait for it.
            let pidfd = PidFd::open(child.id().cast_signed()).map_err(trouble)?;
            if !ended(&pidfd, PATIENCE) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Trouble::new(format!("no end of: holdfast {}", self.what)));
            }
        }
        let output = child.wait_with_output().map_err(trouble)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        })
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A daemon that lives, as far as we are concerned.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) stopped: bool,
    listening: Receiver<()>,
}

impl Daemon {
    /// Starts it and waits for nothing.
    pub(crate) fn begin(paths: &Paths) -> Result<Self, Trouble> {
        let trouble = |error: io::Error| Trouble::new(format!("the daemon: {error}"));
        let mut command = paths.holdfast(&["daemon", "--runtime"]);
        command.arg(paths.program("fake-runtime"));
        command.arg("--shim").arg(paths.program("holdfast-shim"));
        let mut child =
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(trouble)?;
        let log = File::options().create(true).append(true).open(paths.scratch.join("daemon.log"));
        let mut log = log.map_err(trouble)?;
        let (tell, listening) = mpsc::channel();
        if let Some(stderr) = child.stderr.take() {
            // Ends with the daemon; nothing else holds the other end.
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let _ = writeln!(log, "{line}");
                    if line.contains("listening") {
                        let _ = tell.send(());
                    }
                }
            });
        }
        Ok(Self { child, stopped: false, listening })
    }

    /// Waits until it listens, which it does once every container is restored.
    pub(crate) fn listens(&self) -> Result<(), Trouble> {
        let heard = self.listening.recv_timeout(PATIENCE);
        heard.map_err(|error| Trouble::new(format!("the daemon does not come to listen: {error}")))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// That it has ended of its own.
    pub(crate) fn has_died(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(mut self) -> Result<(), Trouble> {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed.map(drop).map_err(|error| Trouble::new(format!("kill the daemon: {error}")))
    }

    /// SIGTERM, and its end, which must be one in order.
    pub(crate) fn close(mut self) -> Result<(), Trouble> {
        let trouble = |error: io::Error| Trouble::new(format!("end the daemon: {error}"));
        let pidfd = PidFd::open(self.pid()).map_err(trouble)?;
        pidfd.send_signal(nix::libc::SIGTERM).map_err(trouble)?;
        if !ended(&pidfd, PATIENCE) {
            return Err(Trouble::new("the daemon does not end after SIGTERM".to_owned()));
        }
        let status = self.child.wait().map_err(trouble)?;
        if status.success() {
            Ok(())
        } else {
            Err(Trouble::new(format!("the daemon after SIGTERM: {status}")))
        }
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<(), Trouble> {
        PidFd::open(self.pid())
            .and_then(|pidfd| pidfd.send_signal(signal))
            .map_err(|error| Trouble::new(format!("signal {signal} for the daemon: {error}")))
    }

    /// What it has open, without the numbers.
    pub(crate) fn descriptors(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten();
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let kind = |link: PathBuf| {
            let text = link.to_string_lossy().into_owned();
            // The journal's segments follow each other.
            let of_journal = text.split_once("/.journal/").map(|(_, _)| "the journal".to_owned());
            of_journal.or(text.split_once(":[").map(|(kind, _)| kind.to_owned())).unwrap_or(text)
        };
        let mut all: Vec<String> = links.map(kind).collect();
        all.sort();
        all
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The living shim of a process, held by a descriptor: found by its arguments or, that of a group, by
/// the exit FIFO that it has open. A stopped one lives.
pub(crate) fn find_shim(dir: &Path, known: Option<i32>) -> Option<(i32, PidFd)> {
    let exit = dir.join("exit");
    let has_open = |pid: i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|path| path == exit))
    };
    let is_it = |pid: i32| {
        // Its arguments are read after it was opened and while it lives, so they are its own.
        let pidfd = PidFd::open(pid).ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<&[u8]> = command.split(|&byte| byte == 0).collect();
        let is_shim = words[0].ends_with(b"holdfast-shim");
        let is_its = match words.iter().position(|word| *word == b"--dir") {
            Some(place) => words.get(place + 1) == Some(&dir.as_os_str().as_encoded_bytes()),
            None => is_shim && words.contains(&b"--group".as_slice()) && has_open(pid),
        };
        (is_shim && is_its && pidfd.is_alive()).then_some((pid, pidfd))
    };
    known.and_then(is_it).or_else(|| {
        let all = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find_map(is_it)
    })
}
