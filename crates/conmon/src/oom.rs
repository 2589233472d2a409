//! Kills by the OOM killer. Each creates the file `oom` in the bundle and in the directory of `--persist-dir`. If
//! memory runs out and no process is killed, no file is created.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use holdfast_sys::oom::OomCounter;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::bundle::named;
use crate::report;

/// The name of the file.
const OOM: &str = "oom";

pub(crate) struct Oom {
    counter: OomCounter,
    /// How many kills were noted.
    known: u64,
    events: Events,
    /// Where the file is created.
    dirs: Vec<PathBuf>,
}

/// The notifications of the kernel.
enum Events {
    /// cgroup v1: an eventfd, registered for the open file.
    V1 { events: EventFd, _file: File },
    /// cgroup v2: the file is modified.
    V2(Inotify),
}

impl Oom {
    /// Watches the cgroup of a process. For an exec, kills before it do not count.
    pub(crate) fn watch(pid: i32, is_exec: bool, dirs: Vec<PathBuf>) -> io::Result<Option<Self>> {
        let Some(counter) = OomCounter::of(pid)? else { return Ok(None) };
        let known = if is_exec { counter.kills() } else { 0 };
        let events = Events::of(counter.path())?;
        Ok(Some(Self { counter, known, events, dirs }))
    }

    /// Watches the counter that a monitor before watched. Its process may have ended.
    pub(crate) fn watch_again(counter: &Path, known: u64, dirs: Vec<PathBuf>) -> io::Result<Self> {
        let events = Events::of(counter)?;
        Ok(Self { counter: OomCounter::at(counter), known, events, dirs })
    }

    /// Returns the path of the counter, and how many kills were noted.
    pub(crate) fn facts(&self) -> (PathBuf, u64) {
        (self.counter.path().to_owned(), self.known)
    }

    pub(crate) fn interest(&self) -> BorrowedFd<'_> {
        match &self.events {
            Events::V1 { events, .. } => events.as_fd(),
            Events::V2(events) => events.as_fd(),
        }
    }

    /// Reads the counter, and creates the file if it has grown.
    pub(crate) fn look(&mut self) {
        match &self.events {
            Events::V1 { events, .. } => _ = events.read(),
            Events::V2(events) => _ = events.read_events(),
        }
        let kills = self.counter.kills();
        if kills <= self.known {
            return;
        }
        self.known = kills;
        for dir in &self.dirs {
            let path = dir.join(OOM);
            let made =
                File::options().write(true).create(true).truncate(false).mode(0o666).open(&path);
            report::warn_of("an OOM kill is not noted", named(&path, made));
        }
    }
}

impl Events {
    fn of(counter: &Path) -> io::Result<Self> {
        if counter.ends_with("memory.oom_control") {
            let file = named(counter, File::open(counter))?;
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let events = EventFd::from_flags(flags)?;
            let text = format!("{} {}", events.as_fd().as_raw_fd(), file.as_raw_fd());
            let control = counter.with_file_name("cgroup.event_control");
            let opened = File::options().write(true).open(&control);
            named(&control, opened.and_then(|mut file| file.write_all(text.as_bytes())))?;
            return Ok(Self::V1 { events, _file: file });
        }
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let watch = events.add_watch(counter, AddWatchFlags::IN_MODIFY);
        named(counter, watch.map_err(Into::into))?;
        Ok(Self::V2(events))
    }
}
