//! Shims that look after many processes each: how they are found, begun and asked.
//!
//! Each has a socket in the state root, by its name and the version of the messages that it takes, so that
//! the group of another build, which goes on with the processes that it has, gets no new ones. A group whose
//! shim is gone refuses connections there, and is begun again with what it is asked: one without any process
//! ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_state::handoff::{Message, VERSION};
use holdfast_state::{Directory, GroupName, shim_options};
use nix::errno::Errno;

use crate::shim::Shims;

/// How long the shim of a group may take to make room for one more message.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Enough of what a group had to say.
const LOG_LIMIT: u64 = 64 * 1024;

/// What is known of them: nothing that is not on disk.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    /// Held while one is begun or cleared away.
    changing: Mutex<()>,
}

/// Whether there is a group, which has got the message then.
fn send(
    home: &Directory,
    group: &str,
    message: &Message<'_>,
    patience: Duration,
) -> io::Result<bool> {
    let socket = UnixDatagram::unbound()?;
    // None at all would stand for ever.
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

/// Whether an error says that the shim of a group is gone, or is about to go.
fn is_gone(error: &io::Error) -> bool {
    let codes = [Errno::ENOENT, Errno::ECONNREFUSED, Errno::EPIPE, Errno::ECONNRESET];
    codes.iter().any(|code| error.raw_os_error() == Some(*code as i32))
}

/// The path of its socket. It leads through our descriptor of the directory: the directory's own path
/// may be longer than the address of a socket can be.
fn address(home: &Directory, group: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{group}", home.as_fd().as_raw_fd()))
}

fn log_name(group: &str) -> String {
    format!(".{group}.log")
}

impl Shims {
    /// Asks a group to start or adopt a process; begins it, if need be.
    pub(crate) fn ask_group(
        self: &Arc<Self>,
        group: &GroupName,
        message: &Message<'_>,
        patience: Duration,
    ) -> io::Result<()> {
        let home = self.root.groups()?;
        // No group's name has this sign.
        let name = format!("{group}@{VERSION}");
        let sent = || send(&home, &name, message, patience);
        if sent()? {
            return Ok(());
        }
        let _alone = self.groups.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have begun it meanwhile.
        if sent()? {
            return Ok(());
        }
        // Under another name until the first message is in it. A group without a process ends, so it
        // must be there before the group begins; and others would fill the queue, which is short, before
        // there is anybody who reads it.
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
            .arg(shim_options::IDENTIFY)
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
            // What it started comes to us, if we are a subreaper.
            this.spawned.expect_strangers();
            tracing::debug!(group, ended_well, "the shim of a group has ended");
            _ = tokio::task::spawn_blocking(move || this.clear_group_away(&group)).await;
        });
        Ok(())
    }

    /// Removes what is left of a group whose shim is gone.
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
                tracing::warn!(group, line, "said by its shim");
            }
            home.unlink(&log)
        });
        if let Err(error) = cleared {
            tracing::warn!(group, %error, "left of a group whose shim is gone");
        }
    }

    /// Removes what is left of all groups whose shims are gone: nobody saw them go.
    pub(crate) fn sweep_groups(&self) -> io::Result<()> {
        if self.root.has_groups()? {
            let names = self.root.groups()?.names()?;
            // The others are logs, and sockets of groups that were not begun.
            for group in names.iter().filter(|name| !name.starts_with('.')) {
                self.clear_group_away(group);
            }
        }
        Ok(())
    }
}
