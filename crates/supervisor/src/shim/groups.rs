//! Shim groups: shims that look after many processes each. This module finds them, spawns them and
//! sends them requests.
//!
//! Each group has a socket in the state root. The socket's name consists of that of the group and
//! the version of the messages that it accepts. So the group of another build keeps the processes
//! that it has, but gets no new ones. When the shim of a group is gone, its socket refuses
//! connections. A new shim is then spawned together with the next request, because the shim of a
//! group without any process ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_state::handoff::Message;
use holdfast_state::shim_options::PROTOCOL;
use holdfast_state::{Directory, GroupName, shim_options};
use nix::errno::Errno;

use crate::shim::{Shims, protocol};

/// How long the shim of a group may take to make room for one more message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How many bytes of a group's log are copied to our log.
const LOG_LIMIT: u64 = 64 * 1024;

/// The state of all groups. It is only a lock, because everything else is on disk.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Held while the shim of a group is spawned, or a group is cleared away.
    changing: Mutex<()>,
}

/// Sends a message to a group. Returns `false` if the shim of the group is gone, so that the
/// message was not sent.
fn send(
    home: &Directory,
    group: &str,
    message: &Message<'_>,
    patience: Duration,
) -> io::Result<bool> {
    let socket = UnixDatagram::unbound()?;
    // A timeout of zero would stand for an infinite one.
    socket.set_write_timeout(Some(patience.clamp(Duration::from_millis(1), PATIENCE)))?;
    match socket.connect(address(home, group)).and_then(|()| message.send(&socket)) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let text = format!("the shim of group {group} does not answer");
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
        Err(error) => Err(error),
    }
}

/// Returns whether an error means that the shim of a group is gone, or is about to go.
fn is_gone(error: &io::Error) -> bool {
    let codes = [Errno::ENOENT, Errno::ECONNREFUSED, Errno::EPIPE, Errno::ECONNRESET];
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// Returns the path of a group's socket. The path leads through our descriptor of the directory,
/// because the directory's own path may be longer than the address of a socket can be.
fn address(home: &Directory, group: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{group}", home.as_fd().as_raw_fd()))
}

fn log_name(group: &str) -> String {
    format!(".{group}.log")
}

impl Shims {
    /// Asks a group to start or adopt a process. Spawns the shim of the group if there is none.
    pub(crate) fn ask_group(
        self: &Arc<Self>,
        group: &GroupName,
        message: &Message<'_>,
        patience: Duration,
    ) -> io::Result<()> {
        let home = self.root.groups()?;
        // The name of a group never contains an `@`. The shim of a group that speaks another protocol keeps what
        // it has, and is asked for nothing new.
        let name = format!("{group}@{PROTOCOL}");
        let sent = || send(&home, &name, message, patience);
        if sent()? {
            return Ok(());
        }
        let _alone = self.groups.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have spawned it meanwhile.
        if sent()? {
            return Ok(());
        }
        // The socket has another name until the first message is in it. The shim of a group ends if
        // it has no process, so the message must be there before the shim begins. And other
        // requests could fill the queue, which is short, before anybody reads it.
        let staged = format!(".{name}.new");
        home.unlink(&staged)?;
        let inbox = UnixDatagram::bind(address(&home, &staged))?;
        let begun = send(&home, &staged, message, patience)
            .and_then(|_| home.rename(&staged, &name))
            .and_then(|()| self.begin_group(&home, &name, inbox));
        if begun.is_err() {
            home.unlink(&staged)?;
            home.unlink(&name)?;
        }
        begun
    }

    fn begin_group(
        self: &Arc<Self>,
        home: &Directory,
        group: &str,
        inbox: UnixDatagram,
    ) -> io::Result<()> {
        let mut command = self.command();
        command
            .arg(shim_options::GROUP)
            .arg(home.path().join(group))
            .args(protocol())
            .stdin(OwnedFd::from(inbox))
            .stdout(Stdio::null())
            .stderr(home.append(&log_name(group))?);
        let mut shim = self.spawned.spawn(&mut command)?;
        let (this, group) = (self.clone(), group.to_owned());
        self.tasks.spawn(async move {
            let ended_well = tokio::select! {
                ended_well = this.spawned.ended(&mut shim) => ended_well,
                () = this.tasks.stop.cancelled() => return,
            };
            // If we are a subreaper, its children become ours.
            this.spawned.expect_strangers();
            tracing::debug!(group, ended_well, "the shim of a group has ended");
            _ = tokio::task::spawn_blocking(move || this.clear_group_away(&group)).await;
        });
        Ok(())
    }

    /// Removes the socket and the log of a group whose shim is gone, and copies that log to our
    /// own.
    fn clear_group_away(&self, group: &str) {
        let _alone = self.groups.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let cleared = self.root.groups().and_then(|home| {
            let probe = UnixDatagram::unbound()?;
            if probe.connect(address(&home, group)).is_ok() {
                return Ok(());
            }
            home.unlink(group)?;
            let log = log_name(group);
            let said = home.read(&log, LOG_LIMIT).unwrap_or_default();
            for line in String::from_utf8_lossy(&said).lines() {
                tracing::warn!(group, line, "from the log of a shim group");
            }
            home.unlink(&log)
        });
        if let Err(error) = cleared {
            tracing::warn!(group, %error, "the files of a group whose shim is gone were not removed");
        }
    }

    /// Removes what is left of the groups whose shims ended while no supervisor ran.
    pub(crate) fn sweep_groups(&self) -> io::Result<()> {
        if self.root.has_groups()? {
            let names = self.root.groups()?.names()?;
            // Names with a dot belong to logs, and to sockets of groups whose shim was never
            // spawned.
            for group in names.iter().filter(|name| !name.starts_with('.')) {
                self.clear_group_away(group);
            }
        }
        Ok(())
    }
}
