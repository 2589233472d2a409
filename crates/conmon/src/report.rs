//! The monitor's own messages. They go to standard error until the monitor has detached, and with `--syslog` also
//! to syslog.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

/// The socket of syslog(3).
const SYSLOG: &str = "/dev/log";
/// The length of a container's id in syslog, in bytes.
const ID_LEN: usize = 20;
/// The facility `user` of syslog(3).
const FACILITY: u8 = 1 << 3;

/// The severity of a message, and the values of `--log-level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Error,
    Warning,
    Info,
    Debug,
    Trace,
}

impl Level {
    /// Returns the level of this name. `fatal` and `panic` are errors.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "error" | "fatal" | "panic" => Self::Error,
            "warn" | "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }

    /// Returns its letter on standard error, its word in syslog, and its number there.
    fn marks(self) -> (char, &'static str, u8) {
        match self {
            Self::Error => ('e', "error", 3),
            Self::Warning => ('w', "nwarn", 4),
            Self::Info => ('i', "ninfo", 6),
            Self::Debug => ('d', "ndebug", 7),
            Self::Trace => ('d', "ntrace", 7),
        }
    }
}

struct Reports {
    level: Level,
    /// With `--syslog`: what stands in front of the level.
    syslog: Option<String>,
}

static REPORTS: OnceLock<Reports> = OnceLock::new();

/// Sets what is reported, and where.
pub(crate) fn set_up(level: Level, id: &str, syslog: bool) {
    let id = id.get(..ID_LEN).unwrap_or(id);
    let syslog = syslog.then(|| format!("conmon: conmon {id}"));
    let _ = REPORTS.set(Reports { level, syslog });
    holdfast_shim::engine::log_by(|level, text| {
        report(Level::named(level).unwrap_or(Level::Warning), text);
    });
}

pub(crate) fn error(text: &str) {
    report(Level::Error, text);
}

pub(crate) fn warn(text: &str) {
    report(Level::Warning, text);
}

/// Reports an error that ends nothing.
pub(crate) fn warn_of<T>(what: &str, done: io::Result<T>) -> Option<T> {
    done.inspect_err(|error| warn(&format!("{what}: {error}"))).ok()
}

pub(crate) fn report(level: Level, text: &str) {
    let reports = REPORTS.get();
    if level > reports.map_or(Level::Warning, |reports| reports.level) {
        return;
    }
    let (letter, word, number) = level.marks();
    // One write, and one whose failure is nothing.
    let _ = io::stderr().write_all(format!("[conmon:{letter}]: {text}\n").as_bytes());
    if let Some(syslog) = reports.and_then(|reports| reports.syslog.as_ref()) {
        let line = format!("<{}>{syslog} <{word}>: {text}", FACILITY | number);
        let _ = UnixDatagram::unbound().and_then(|socket| {
            // A log that is busy is not waited for.
            socket.set_nonblocking(true)?;
            socket.send_to(line.as_bytes(), SYSLOG)
        });
    }
}
