//! A command under a real terminal, as a person has one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;

use holdfast_supervisor::TerminalSize;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::soon;

/// A command whose standard input, output and error are a terminal, which is its controlling one.
/// Dropped, it is killed.
#[derive(Debug)]
pub struct Pty {
    master: File,
    /// Held so that what was written last can be read after the command's end.
    slave: Option<OwnedFd>,
    before: Termios,
    output: mpsc::UnboundedReceiver<Vec<u8>>,
    unread: String,
    child: Child,
}

/// Both sides of a new terminal. What is started meanwhile, by another test too, inherits neither:
/// it would keep the terminal open.
fn open() -> nix::Result<(File, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = nix::fcntl::open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
    Ok((File::from(OwnedFd::from(master)), slave))
}

impl Pty {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If there is no terminal to be had.
    #[must_use]
    pub fn start(command: &Command, size: TerminalSize) -> Self {
        let (master, slave) = open().expect("open a terminal");
        holdfast_sys::terminal::resize(&master, size.width, size.height).expect("size a terminal");
        let before = tcgetattr(&slave).expect("ask a terminal for its mode");
        let end = || Stdio::from(slave.try_clone().expect("another descriptor"));
        // `setsid --ctty` becomes what it starts, under the same number.
        let mut by = Command::new("setsid");
        by.arg("--ctty").arg(command.as_std().get_program()).args(command.as_std().get_args());
        by.env_remove("HOLDFAST_LOG").kill_on_drop(true);
        for (name, value) in command.as_std().get_envs() {
            match value {
                Some(value) => by.env(name, value),
                None => by.env_remove(name),
            };
        }
        let child = by.stdin(end()).stdout(end()).stderr(end()).spawn().expect("start a command");
        drop(by);
        let (sender, output) = mpsc::unbounded_channel();
        let mut from = master.try_clone().expect("another descriptor");
        std::thread::spawn(move || {
            let mut chunk = vec![0; 65536];
            loop {
                match from.read(&mut chunk) {
                    Ok(length @ 1..) if sender.send(chunk[..length].to_vec()).is_ok() => {}
                    Err(error) if error.raw_os_error() == Some(Errno::EINTR as i32) => {}
                    // So reads a terminal whose other side nobody has open any more.
                    _ => return,
                }
            }
        });
        Self { master, slave: Some(slave), before, output, unread: String::new(), child }
    }

    /// Types.
    pub fn types(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("write to a terminal");
    }

    /// Changes its size, as a person does by the window's edge.
    pub fn resize(&self, size: TerminalSize) {
        holdfast_sys::terminal::resize(&self.master, size.width, size.height).expect("resize");
    }

    /// Whether the command has taken the keys for itself: no echo, no lines, no signals.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        use nix::sys::termios::LocalFlags;
        let now = tcgetattr(self.master.as_fd()).expect("ask a terminal for its mode");
        !now.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
    }

    /// Waits until this was shown and returns what came before it.
    ///
    /// # Panics
    ///
    /// If it does not come.
    pub async fn shows(&mut self, text: &str) -> String {
        loop {
            if let Some((before, after)) = self.unread.split_once(text) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.unread = after;
                return before;
            }
            let what = format!("{text:?} after {:?}", self.unread);
            match soon(&what, self.output.recv()).await {
                Some(chunk) => self.unread += &String::from_utf8_lossy(&chunk),
                None => panic!("the terminal closed before it showed {what}"),
            }
        }
    }

    /// Sends the command itself a signal.
    ///
    /// # Panics
    ///
    /// If it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("the command runs");
        kill(Pid::from_raw(pid.cast_signed()), signal).expect("send a signal");
    }

    /// Waits for its end; returns its exit code and what is left of the output. The terminal must
    /// be as it was before.
    ///
    /// # Panics
    ///
    /// If it is not.
    pub async fn end(mut self) -> (Option<i32>, String) {
        let status = soon("the end of a command", self.child.wait()).await.expect("wait");
        let now = tcgetattr(self.master.as_fd()).expect("ask a terminal for its mode");
        assert!(now == self.before, "left as {now:?}, found as {:?}", self.before);
        self.slave = None;
        while let Some(chunk) = soon("the end of the output", self.output.recv()).await {
            self.unread += &String::from_utf8_lossy(&chunk);
        }
        (status.code(), self.unread)
    }
}
