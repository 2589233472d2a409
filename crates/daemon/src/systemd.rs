//! What systemd and its services say to each other: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use holdfast_supervisor::Keeper;
use holdfast_sys::{fd, fd_passing};
use nix::sys::socket::{getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};
use tokio::process::Command;

/// The first of the descriptors that a service is started with.
const FIRST: RawFd = 3;
/// The unit, and so the name, of the read-only socket. A socket of another name is the API's.
const READ_ONLY: &str = "holdfast-read-only.socket";
/// How long the manager may take to read an earlier message, where no other one has room.
const SEND_LIMIT: Duration = Duration::from_secs(1);
/// How long systemctl(1) may take.
const SYSTEMCTL_LIMIT: Duration = Duration::from_secs(10);

/// The service manager that started us.
#[derive(Debug)]
pub(crate) struct Manager(UnixDatagram);

impl Manager {
    /// `None` if there is none that wants to hear of us.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            name => SocketAddr::from_pathname(OsStr::from_bytes(name))?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that reads nothing costs its messages, and no more.
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        Ok(Some(Self(socket)))
    }

    /// The service is there for its clients.
    pub(crate) fn ready(&self) -> io::Result<()> {
        self.0.send(b"READY=1").map(drop)
    }

    /// It reads its configuration again. `ready` says that it has.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        self.0.send(format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros()).as_bytes()).map(drop)
    }

    /// It goes down.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        self.0.send(b"STOPPING=1").map(drop)
    }

    /// It is well. The manager restarts it if it does not hear this in time.
    pub(crate) fn alive(&self) -> io::Result<()> {
        self.0.send(b"WATCHDOG=1").map(drop)
    }
}

/// How often the manager wants to hear that we are well; `None` if it does not. Half of the time after which it
/// restarts us.
pub(crate) fn watchdog() -> Option<Duration> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let limit = number("WATCHDOG_USEC").filter(|limit| *limit > 0 && is_ours)?;
    Some(Duration::from_micros(limit) / 2)
}

impl Keeper for Manager {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Without FDPOLL=0 systemd drops what hangs up: the pidfd of a process that has ended.
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}");
        fd_passing::send(self.0.as_fd(), message.as_bytes(), &[fd])
    }

    fn release(&self, name: &str) -> io::Result<()> {
        self.0.send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes()).map(drop)
    }
}

/// What the manager has handed us.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// What it has kept for us, by name.
    pub(crate) kept: Vec<(String, OwnedFd)>,
    /// The socket of the API, if it listens for us.
    pub(crate) socket: Option<UnixListener>,
    /// The read-only socket.
    pub(crate) read_only: Option<UnixListener>,
}

/// Takes what the manager has handed us.
pub(crate) fn inherited() -> Inherited {
    let mut inherited = Inherited::default();
    for (name, fd) in descriptors() {
        // None that we have kept listens.
        if !getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
            inherited.kept.push((name, fd));
            continue;
        }
        let place = match &*name {
            READ_ONLY => &mut inherited.read_only,
            _ => &mut inherited.socket,
        };
        if place.replace(UnixListener::from(fd)).is_some() {
            tracing::warn!(name, "more than one socket for the same purpose: the last one is used");
        }
    }
    inherited
}

fn descriptors() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    // Meant for whoever has this pid, which a child of the one that was meant does not.
    if number("LISTEN_PID") != Some(std::process::id().cast_signed()) {
        return Vec::new();
    }
    let fds = number("LISTEN_FDS").and_then(|count| fd::inherited(FIRST, count));
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).zip(fds.unwrap_or_default()).collect()
}

/// Warns if a stop of our unit would kill the shims, and with them all that is known of the containers.
pub(crate) async fn check_kill_mode() {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    let own = std::fs::read_to_string("/proc/self/cgroup").ok();
    let Some((unit, manager)) = own.as_deref().and_then(unit) else { return };
    let mut command = Command::new("systemctl");
    command.arg(manager);
    command.args(["show", "--property=KillMode", "--value", "--", &unit]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let shown = tokio::time::timeout(SYSTEMCTL_LIMIT, command.output()).await;
    let Ok(Ok(output)) = shown else { return };
    let mode = String::from_utf8_lossy(&output.stdout);
    if ["control-group", "mixed"].contains(&mode.trim()) {
        tracing::warn!(
            unit,
            "KillMode={}: a stop of this unit kills the shims, and containers with them; set KillMode=process",
            mode.trim()
        );
    }
}

/// The service whose control group this is, in `/proc/PID/cgroup`, and the option for its manager. `None` in a scope,
/// which is stopped only together with everything in it.
fn unit(cgroups: &str) -> Option<(String, &'static str)> {
    let path = cgroups
        .lines()
        .find_map(|line| line.split_once(":name=systemd:").or_else(|| line.split_once("0::")))
        .map(|(_, path)| path)?;
    // The daemon may be in a control group below that of its unit.
    let is_unit = |name: &&str| name.ends_with(".service") || name.ends_with(".scope");
    let mut units = path.split('/').filter(is_unit).rev();
    let unit = units.next().filter(|unit| unit.ends_with(".service"))?;
    let of_user = units.any(|outer| outer.starts_with("user@"));
    Some((unit.to_owned(), if of_user { "--user" } else { "--system" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_innermost_service() {
        for (cgroups, expected) in [
            ("0::/system.slice/holdfast.service\n", Some(("holdfast.service", "--system"))),
            (
                "5:devices:/x\n1:name=systemd:/system.slice/a.service\n0::/\n",
                Some(("a.service", "--system")),
            ),
            ("0::/system.slice/holdfast.service/daemon\n", Some(("holdfast.service", "--system"))),
            (
                "0::/user.slice/user-7.slice/user@7.service/app.slice/x.service\n",
                Some(("x.service", "--user")),
            ),
            ("0::/user.slice/user-7.slice/user@7.service/app.slice/run-r5.scope\n", None),
            ("0::/user.slice/user-0.slice/session-1.scope\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            let expected = expected.map(|(unit, manager)| (unit.to_owned(), manager));
            assert_eq!(unit(cgroups), expected, "{cgroups}");
        }
    }
}
