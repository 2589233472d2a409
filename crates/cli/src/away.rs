//! While there is no daemon: how long we wait for the next one, and what we say meanwhile.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use holdfast_sys::reactor;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::fd::AsFd;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use crate::streams::complain;

/// After this time we say that we wait.
const NOTE_AFTER: Duration = Duration::from_secs(1);

/// How long we wait for the next daemon, as was typed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// The bound; zero for no waiting.
    pub(crate) bound: Duration,
    /// Whether we also wait if there is no daemon from the beginning: only if that was asked for. Who
    /// types a command wants to know at once that nobody answers.
    pub(crate) from_the_beginning: bool,
}

impl Patience {
    const USUAL: Duration = Duration::from_secs(30);

    pub(crate) fn of(asked: Option<Duration>) -> Self {
        Self { bound: asked.unwrap_or(Self::USUAL), from_the_beginning: asked.is_some() }
    }
}

/// There is no daemon, or it went away before it had answered in full.
#[derive(Debug)]
pub(crate) struct Away {
    message: String,
    /// Whether it had the request, or may have had it.
    pub(crate) was_there: bool,
}

impl Away {
    pub(crate) fn never_there(message: impl fmt::Display) -> anyhow::Error {
        Self { message: format!("{message:#}"), was_there: false }.into()
    }

    pub(crate) fn went(message: impl fmt::Display) -> anyhow::Error {
        Self { message: format!("{message:#}"), was_there: true }.into()
    }
}

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Away {}

/// Whether an error means that the daemon is away.
pub(crate) fn is_away(error: &anyhow::Error) -> bool {
    error.is::<Away>()
}

/// A time without a daemon, from when it was missed until the next one has answered.
#[derive(Debug)]
pub(crate) struct Absence {
    since: Instant,
    noted: bool,
}

impl Absence {
    pub(crate) fn begin() -> Self {
        Self { since: Instant::now(), noted: false }
    }

    /// Waits until a daemon takes connections at a socket. Says once, after a second, that it does;
    /// `meanwhile` is said with that. Returns false when the bound has passed. Cancel safe.
    pub(crate) async fn over(
        &mut self,
        address: &Path,
        bound: Duration,
        meanwhile: Option<&str>,
    ) -> io::Result<bool> {
        // A bound that the clock cannot represent is none.
        let deadline = self.since.checked_add(bound);
        let reachable = reachable(address);
        tokio::pin!(reachable);
        loop {
            let note_at = self.since + NOTE_AFTER;
            tokio::select! {
                biased;
                reachable = &mut reachable => return reachable.map(|()| true),
                () = until(deadline) => return Ok(false),
                () = sleep_until(note_at), if !self.noted => {
                    self.noted = true;
                    let left = bound.saturating_sub(NOTE_AFTER).as_secs();
                    let meanwhile = meanwhile.map(|text| format!("; {text}")).unwrap_or_default();
                    complain(format_args!(
                        "the daemon is away, trying again for {left} s{meanwhile}"
                    ));
                }
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until a connection to a socket succeeds. A daemon gives its socket the name when it listens,
/// so each change of the directory is a reason to try, and nothing else is.
async fn reachable(address: &Path) -> io::Result<()> {
    loop {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        // The directory may be removed and made again; then one above it changes.
        let parents = address.ancestors().skip(1);
        let mut watched = parents.map(|directory| match directory.as_os_str().is_empty() {
            true => Path::new("."),
            false => directory,
        });
        watched
            .find_map(|directory| inotify.add_watch(directory, changes).ok())
            .ok_or_else(|| io::Error::other(format!("{} cannot be watched", address.display())))?;
        // Not before the watch: a socket that appears in between would be missed.
        if UnixStream::connect(address).await.is_ok() {
            return Ok(());
        }
        let changed = reactor::readable(inotify.as_fd().try_clone_to_owned()?)?;
        let _ = changed.readable().await?;
    }
}
