//! Where the output of a process goes: `DRIVER[:PATH][,option=value…]`, one or several.
//!
//! In a path a comma is written `\,` and a backslash `\\`; before anything else a backslash stands
//! for itself.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::process_dir::{OUTPUT_JSON, OUTPUT_LOG, OUTPUT_RAW};

/// How output is stored, or passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LogDriver {
    /// A file in the format of Kubernetes' container runtime interface: `TIME STREAM TAG CONTENT`.
    #[default]
    Cri,
    /// A file in Docker's `json-file` format: one JSON object a line.
    JsonFile,
    /// A file with the bytes alone.
    File,
    /// FIFOs that the caller has created. With [`Backpressure::Block`] and no second destination,
    /// the process writes to them directly.
    Fifo,
    /// The journal of systemd, by its native protocol (systemd-journald(8)).
    Journald,
    /// The output is discarded.
    None,
}

/// What happens to output while its reader is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Backpressure {
    /// The process waits, as at a pipe that is full.
    #[default]
    Block,
    /// The oldest output is dropped and counted.
    DropOldest,
    /// Output waits in a file of limited size. Beyond that, the oldest is dropped and counted.
    Spill,
}

/// A destination of output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogSpec {
    /// The driver.
    pub driver: LogDriver,
    /// The path of the file, FIFO or socket. By default a file is in the directory of the process,
    /// and the journal is that of the machine.
    pub path: Option<PathBuf>,
    /// The path for the standard error, if it is not written to the same file.
    pub stderr: Option<PathBuf>,
    /// The largest size of a file, in bytes. A file that would become larger is renamed to `PATH.1`,
    /// that to `PATH.2`, and so on.
    ///
    /// In a request, `None` means the default of the supervisor, and 0 no limit. In the record of a
    /// process and on the command line of its shim, `None` means no limit; see
    /// [`Logging::resolved`].
    pub max_size: Option<u64>,
    /// The largest number of files, the newest included. The oldest is removed.
    pub max_files: Option<u32>,
    /// The largest number of lines a second. More lines are dropped and counted.
    pub rate: Option<u32>,
    /// What happens while the reader is slow.
    pub backpressure: Backpressure,
    /// How many bytes wait for a reader before output is dropped.
    pub buffer: Option<u64>,
    /// Whether the process writes to the file directly, without the shim. It can then also change
    /// and truncate the file.
    pub direct: bool,
    /// Whether the shim passes the output on to the FIFO, although the process could write to it directly.
    /// Its reader then gets the end of file when the process is deleted, also if another process still has
    /// the output open.
    pub relay: bool,
}

/// The name of the file that was set aside so many rotations ago, from 1 on.
#[must_use]
pub fn set_aside(name: &str, rotations: u32) -> String {
    format!("{name}.{rotations}")
}

/// How much waits for a reader unless it is said, in bytes.
const BUFFER: u64 = 1024 * 1024;
/// The smallest file that is rotated: the longest entry fits.
const MIN_SIZE: u64 = 4096;

/// The number of places to which a process can log.
const MOST_PLACES: usize = 16;

impl LogSpec {
    /// The default of [`max_size`](Self::max_size), in bytes.
    pub const MAX_SIZE: u64 = 10 * 1024 * 1024;
    /// The default of [`max_files`](Self::max_files).
    pub const MAX_FILES: u32 = 5;

    /// Returns a destination with this driver and its defaults.
    #[must_use]
    pub fn new(driver: LogDriver) -> Self {
        Self { driver, ..Self::default() }
    }

    /// Returns the path of the file, if the driver writes one; relative to the directory of the process
    /// if it is there.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        let own = match self.driver {
            LogDriver::Cri => OUTPUT_LOG,
            LogDriver::JsonFile => OUTPUT_JSON,
            LogDriver::File => OUTPUT_RAW,
            LogDriver::Fifo | LogDriver::Journald | LogDriver::None => return None,
        };
        Some(self.path.as_deref().unwrap_or(Path::new(own)))
    }

    /// Returns the names of all its files, rotated ones included.
    fn all_files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let stderr = self.file().and(self.stderr.as_deref());
        // As long as the bound is not known it may be any; a name with a high number is nobody's.
        let most = if self.can_rotate() { self.files().min(100) } else { 1 };
        self.file().into_iter().chain(stderr).flat_map(move |path| {
            let aside = move |number| PathBuf::from(set_aside(&path.to_string_lossy(), number));
            std::iter::once(path.to_owned()).chain((1..most).map(aside))
        })
    }

    /// Returns whether its files can be rotated.
    #[must_use]
    pub fn can_rotate(&self) -> bool {
        match self.driver {
            LogDriver::Cri | LogDriver::JsonFile => true,
            LogDriver::File => !self.direct,
            LogDriver::Fifo | LogDriver::Journald | LogDriver::None => false,
        }
    }

    /// Returns the largest size of a file, in bytes; `None` if there is no limit.
    #[must_use]
    pub fn bound(&self) -> Option<u64> {
        self.max_size.filter(|size| *size > 0)
    }

    /// Returns the largest number of files.
    #[must_use]
    pub fn files(&self) -> u32 {
        self.max_files.unwrap_or(Self::MAX_FILES)
    }

    /// Returns how many bytes wait for a reader at most.
    #[must_use]
    pub fn buffered(&self) -> u64 {
        self.buffer.unwrap_or(BUFFER)
    }

    /// Returns whether the process can write to it directly, without the shim.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        match self.driver {
            LogDriver::None => true,
            LogDriver::File => self.direct,
            LogDriver::Fifo => self.backpressure == Backpressure::Block && !self.relay,
            LogDriver::Cri | LogDriver::JsonFile | LogDriver::Journald => false,
        }
    }

    /// Parses a number of bytes: digits, then perhaps `k`, `m` or `g` for powers of 1024.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub fn parse_size(text: &str) -> Result<u64, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(format!("{text:?} is no size: 10m, say")),
        };
        let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
        number.ok_or_else(|| format!("{text:?} is no size: 10m, say"))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = |value: &str| value.parse().map_err(|_| no_number(value));
        match name {
            "stderr" => self.stderr = Some(unescaped(value).into_owned().into()),
            "max-size" => self.max_size = Some(Self::parse_size(value)?),
            "max-files" => self.max_files = Some(number(value)?),
            "rate" => self.rate = Some(number(value)?),
            "backpressure" => {
                self.backpressure = match value {
                    "block" => Backpressure::Block,
                    "drop-oldest" => Backpressure::DropOldest,
                    "spill" => Backpressure::Spill,
                    _ => return Err("backpressure is block, drop-oldest or spill".to_owned()),
                }
            }
            "direct" | "relay" => {
                let on = match value {
                    "yes" => true,
                    "no" => false,
                    _ => return Err(format!("{name} is yes or no")),
                };
                *(if name == "direct" { &mut self.direct } else { &mut self.relay }) = on;
            }
            "buffer" => self.buffer = Some(Self::parse_size(value)?),
            _ => return Err(format!("there is no option {name:?}")),
        }
        Ok(())
    }

    /// Refuses what its driver can't do, and what its text could not say.
    fn check(&self) -> Result<(), String> {
        use LogDriver::{Cri, Fifo, File, Journald, JsonFile};
        let name = self.driver.name();
        let only = |there: bool, option: &str, drivers: &[LogDriver]| {
            if there && !drivers.contains(&self.driver) {
                return Err(format!("{name} has no {option}"));
            }
            Ok(())
        };
        only(self.path.is_some(), "path", &[Cri, JsonFile, File, Fifo, Journald])?;
        only(self.stderr.is_some(), "stderr", &[File, Fifo])?;
        only(self.direct, "direct", &[File])?;
        only(self.relay, "relay", &[Fifo])?;
        only(self.max_size.is_some(), "max-size", &[Cri, JsonFile, File])?;
        only(self.max_files.is_some(), "max-files", &[Cri, JsonFile, File])?;
        only(self.rate.is_some(), "rate", &[Cri, JsonFile, Journald])?;
        let waits = self.backpressure != Backpressure::Block || self.buffer.is_some();
        only(waits, "backpressure", &[Fifo])?;
        self.path.iter().chain(&self.stderr).try_for_each(|path| check_path(path))?;
        if let Some(number) = [self.max_files, self.rate].into_iter().flatten().find(|n| *n == 0) {
            return Err(no_number(number));
        }
        match () {
            () if self.bound().is_some_and(|size| size < MIN_SIZE) => {
                Err(format!("max-size must be at least {MIN_SIZE} bytes, or 0 for no bound"))
            }
            () if self.direct && self.bound().is_some() => {
                Err("direct=yes has no max-size: nobody is there to set its file aside".to_owned())
            }
            () if self.buffer == Some(0) => Err("buffer must hold something".to_owned()),
            () if self.driver == Fifo && self.path.is_none() => Err("fifo needs a path".to_owned()),
            () if self.max_files.is_some() && self.bound().is_none() => {
                Err("max-files needs max-size, and that not 0".to_owned())
            }
            () if self.buffer.is_some() && self.backpressure == Backpressure::Block => {
                Err("buffer needs backpressure=drop-oldest or spill".to_owned())
            }
            () => Ok(()),
        }
    }
}

impl LogDriver {
    const ALL: [Self; 6] =
        [Self::Cri, Self::JsonFile, Self::File, Self::Fifo, Self::Journald, Self::None];

    /// Returns its name, as in `cri`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cri => "cri",
            Self::JsonFile => "json-file",
            Self::File => "file",
            Self::Fifo => "fifo",
            Self::Journald => "journald",
            Self::None => "none",
        }
    }
}

fn no_number(value: impl fmt::Display) -> String {
    format!("{:?} is no number", value.to_string())
}

fn check_path(path: &Path) -> Result<(), String> {
    let shown = path.display();
    match path.to_str() {
        None => Err(format!("{shown} is not UTF-8")),
        Some(path) if path.contains('\0') => Err(format!("{path:?} has a zero byte in it")),
        Some(_) if path.is_absolute() => Ok(()),
        Some(_) => Err(format!("{shown} is not absolute")),
    }
}

/// A path as it stands in a text.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('\\', r"\\").replace(',', r"\,")
}

/// What stands for such a path in a text.
fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let mut path = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_escape = c == '\\' && matches!(chars.peek(), Some(',' | '\\'));
        path.push(if is_escape { chars.next().unwrap_or(c) } else { c });
    }
    path.into()
}

/// The parts between commas that no backslash escapes.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut bytes = text.bytes().enumerate();
        while let Some((place, byte)) = bytes.next() {
            if byte == b',' {
                rest = Some(&text[place + 1..]);
                return Some(&text[..place]);
            }
            if byte == b'\\' && matches!(text.as_bytes().get(place + 1), Some(b',' | b'\\')) {
                bytes.next();
            }
        }
        rest.take()
    })
}

/// A destination for output that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "log {text:?}: {reason}; it is DRIVER[:PATH][,option=value…] with one of the drivers cri, json-file, file, fifo, journald, none"
)]
pub struct InvalidLog {
    text: String,
    reason: String,
}

impl FromStr for LogSpec {
    type Err = InvalidLog;

    fn from_str(text: &str) -> Result<Self, InvalidLog> {
        let invalid = |reason: String| InvalidLog { text: text.to_owned(), reason };
        let mut parts = parts(text);
        let place = parts.next().unwrap_or_default();
        let (name, path) = match place.split_once(':') {
            Some((name, path)) => (name, Some(path)),
            None => (place, None),
        };
        let driver = LogDriver::ALL.into_iter().find(|driver| driver.name() == name);
        let driver = driver.ok_or_else(|| invalid(format!("there is no driver {name:?}")))?;
        let mut spec = Self::new(driver);
        spec.path = path.map(|path| unescaped(path).into_owned().into());
        for option in parts {
            let (name, value) = option
                .split_once('=')
                .ok_or_else(|| invalid(format!("{option:?} is no option=value")))?;
            spec.set(name, value).map_err(invalid)?;
        }
        spec.check().map_err(invalid)?;
        Ok(spec)
    }
}

impl fmt::Display for LogSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.driver.name())?;
        if let Some(path) = &self.path {
            write!(f, ":{}", escaped(path))?;
        }
        if let Some(path) = &self.stderr {
            write!(f, ",stderr={}", escaped(path))?;
        }
        let numbers = [
            ("max-size", self.max_size),
            ("max-files", self.max_files.map(u64::from)),
            ("rate", self.rate.map(u64::from)),
        ];
        for (name, number) in numbers {
            if let Some(number) = number {
                write!(f, ",{name}={number}")?;
            }
        }
        match self.backpressure {
            Backpressure::Block => {}
            Backpressure::DropOldest => f.write_str(",backpressure=drop-oldest")?,
            Backpressure::Spill => f.write_str(",backpressure=spill")?,
        }
        if let Some(buffer) = self.buffer {
            write!(f, ",buffer={buffer}")?;
        }
        for (name, on) in [("direct", self.direct), ("relay", self.relay)] {
            if on {
                write!(f, ",{name}=yes")?;
            }
        }
        Ok(())
    }
}

/// All destinations of the output of a process. As JSON: a text if there is one destination, or a
/// list of texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(try_from = "OneOrMany", into = "OneOrMany")]
pub struct Logging(Vec<LogSpec>);

impl Logging {
    /// Returns these destinations; `cri` if there are none.
    ///
    /// # Errors
    ///
    /// [`InvalidLog`] if a driver does not support one of its options, if a path cannot be written as a
    /// text, or if two destinations exclude each other.
    pub fn new(specs: Vec<LogSpec>) -> Result<Self, InvalidLog> {
        for spec in &specs {
            spec.check().map_err(|reason| InvalidLog { text: spec.to_string(), reason })?;
        }
        let nowhere = specs.iter().find(|spec| spec.driver == LogDriver::None);
        if let (Some(spec), 2..) = (nowhere, specs.len()) {
            let reason = "it is not to be had together with others".to_owned();
            return Err(InvalidLog { text: spec.to_string(), reason });
        }
        let fifos: Vec<&LogSpec> =
            specs.iter().filter(|spec| spec.driver == LogDriver::Fifo).collect();
        if let [_, second, ..] = fifos.as_slice() {
            let reason = "there is another fifo".to_owned();
            return Err(InvalidLog { text: second.to_string(), reason });
        }
        for (index, spec) in specs.iter().enumerate() {
            let same = |other: &LogSpec| other.file().is_some() && other.file() == spec.file();
            if specs[..index].iter().any(same) {
                let reason = "another log is the same file".to_owned();
                return Err(InvalidLog { text: spec.to_string(), reason });
            }
        }
        Ok(if specs.is_empty() { Self::default() } else { Self(specs) })
    }

    /// Checks the conditions for a new process: not too many destinations, and no file that two of them
    /// would write or rename. Records of earlier builds may violate them.
    ///
    /// # Errors
    ///
    /// [`InvalidLog`], with the place and the reason.
    pub fn check(&self) -> Result<(), InvalidLog> {
        let invalid = |spec: &LogSpec, reason| InvalidLog { text: spec.to_string(), reason };
        if let Some(spec) = self.0.get(MOST_PLACES) {
            return Err(invalid(
                spec,
                format!("there are {MOST_PLACES} others, which is the most"),
            ));
        }
        let mut files = HashSet::new();
        for spec in &self.0 {
            if !spec.all_files().all(|file| files.insert(file)) {
                return Err(invalid(spec, "the same file is written by another log".to_owned()));
            }
        }
        Ok(())
    }

    /// Returns each destination.
    #[must_use]
    pub fn specs(&self) -> &[LogSpec] {
        &self.0
    }

    /// Returns the form for the record of a process: a log without a size limit of its own gets these
    /// (`None` means no limit), and a limit of 0 becomes `None`.
    #[must_use]
    pub fn resolved(&self, max_size: Option<u64>, max_files: u32) -> Self {
        let resolve = |spec: &LogSpec| {
            let mut spec = spec.clone();
            if spec.can_rotate() {
                spec.max_size = spec.max_size.or(max_size);
                spec.max_size = spec.bound();
                let files = spec.max_files.unwrap_or(max_files);
                spec.max_files = spec.max_size.map(|_| files);
            }
            spec
        };
        Self(self.0.iter().map(resolve).collect())
    }

    /// Returns the form of a request, the opposite of [`resolved`](Self::resolved): no limit is 0.
    #[must_use]
    pub fn spelled_out(&self) -> Self {
        let mut spelled = self.clone();
        for spec in spelled.0.iter_mut().filter(|spec| spec.can_rotate()) {
            spec.max_size = spec.max_size.or(Some(0));
        }
        spelled
    }

    /// Returns the destination that can be read back.
    #[must_use]
    pub fn readable(&self) -> Option<&LogSpec> {
        self.0.iter().find(|spec| spec.file().is_some())
    }

    /// Returns whether the process writes to it directly, without the shim.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.0.as_slice(), [spec] if spec.is_direct())
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self(vec![LogSpec::default()])
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl TryFrom<OneOrMany> for Logging {
    type Error = InvalidLog;

    fn try_from(texts: OneOrMany) -> Result<Self, InvalidLog> {
        let texts = match texts {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        };
        Self::new(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }
}

impl From<Logging> for OneOrMany {
    fn from(logging: Logging) -> Self {
        let mut texts: Vec<String> = logging.0.iter().map(LogSpec::to_string).collect();
        if texts.len() == 1 { Self::One(texts.remove(0)) } else { Self::Many(texts) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::option;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    /// Any fields at all, most of which go together now and then.
    fn specs() -> impl Strategy<Value = LogSpec> {
        let path = || {
            let bytes = prop_oneof![
                Just(b','),
                Just(b'\\'),
                Just(b'='),
                Just(b':'),
                Just(b'/'),
                any::<u8>()
            ];
            let odd = proptest::collection::vec(bytes, 0..12);
            let odd = odd.prop_map(|bytes| PathBuf::from(OsStr::from_bytes(&bytes)));
            let text = r"/[,\\=:/a é.]{0,12}".prop_map(PathBuf::from);
            option::of(prop_oneof![9 => text, 1 => odd])
        };
        let block = Backpressure::Block;
        let waits = vec![block, block, block, Backpressure::DropOldest, Backpressure::Spill];
        (
            proptest::sample::select(&LogDriver::ALL[..]),
            path(),
            path(),
            option::weighted(0.3, prop_oneof![Just(0), 4000_u64..5000, any::<u64>()]),
            option::weighted(0.2, 0_u32..9),
            option::weighted(0.2, 0_u32..9),
            proptest::sample::select(waits),
            option::weighted(0.2, 0_u64..9),
            proptest::bool::weighted(0.2),
        )
            .prop_map(
                |(
                    driver,
                    path,
                    stderr,
                    max_size,
                    max_files,
                    rate,
                    backpressure,
                    buffer,
                    direct,
                )| {
                    let stderr =
                        stderr.filter(|_| matches!(driver, LogDriver::File | LogDriver::Fifo));
                    LogSpec {
                        driver,
                        path,
                        stderr,
                        max_size,
                        max_files,
                        rate,
                        backpressure,
                        buffer,
                        direct: direct && driver == LogDriver::File,
                        relay: direct && driver == LogDriver::Fifo,
                    }
                },
            )
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "cri",
            "cri:/var/log/x.log,max-size=10485760,max-files=3,rate=1000",
            "json-file,max-size=4096",
            "file:/tmp/out,stderr=/tmp/err,max-size=4096",
            "file:/tmp/out,direct=yes",
            "fifo:/tmp/f,backpressure=spill,buffer=65536",
            "fifo:/tmp/f,relay=yes",
            "journald,rate=5",
            "none",
            "cri,max-size=0",
            r"cri:/a\,rate=1,rate=2",
            r"file:/a\\,stderr=/\\\,b\\c",
        ] {
            assert_eq!(text.parse::<LogSpec>().unwrap().to_string(), text);
        }
        let comma: LogSpec = r"file:/x/a\,rate=1\\,stderr=/\e\\\,".parse().unwrap();
        assert_eq!(comma.path.as_deref(), Some(Path::new(r"/x/a,rate=1\")));
        assert_eq!(comma.stderr.as_deref(), Some(Path::new(r"/\e\,")));
        assert_eq!("cri,max-size=10m".parse::<LogSpec>().unwrap().max_size, Some(10 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_says_why() {
        for (text, reason) in [
            ("", "no driver"),
            ("syslog", "no driver \"syslog\""),
            ("cri:here", "not absolute"),
            ("fifo", "needs a path"),
            ("file,max-size=1m,direct=yes", "direct=yes has no max-size"),
            ("file,direct=1", "direct is yes or no"),
            ("cri,direct=yes", "cri has no direct"),
            ("cri,max-files=3", "needs max-size"),
            ("cri,max-size=0,max-files=3", "needs max-size"),
            ("cri,max-size=12", "at least"),
            ("fifo:/x,backpressure=spill,buffer=0", "hold something"),
            ("cri,max-size=1m,max-files=0", "\"0\" is no number"),
            ("file:/x,stderr=y", "not absolute"),
            ("cri,max-size=1x", "no size"),
            ("cri,max-size", "no option=value"),
            ("cri,rate=0", "no number"),
            ("journald,max-size=1m", "journald has no max-size"),
            ("none:/x", "none has no path"),
            ("cri,backpressure=spill", "cri has no backpressure"),
            ("fifo:/x,buffer=1k", "buffer needs"),
            ("cri,max-size=99999999999g", "no size"),
        ] {
            let error = text.parse::<LogSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let several =
            |texts: &[&str]| Logging::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        assert!(several(&["cri", "none"]).is_err());
        assert!(several(&["cri", "cri"]).is_err());
        assert!(several(&["cri", "cri:/x", "json-file", "file"]).is_ok());
    }

    #[test]
    fn a_place_that_is_built_in_code_is_refused_for_the_same_reasons() {
        let cri = || LogSpec::new(LogDriver::Cri);
        let path = |path: &[u8]| Some(PathBuf::from(OsStr::from_bytes(path)));
        for (spec, reason) in [
            (LogSpec { path: path(b"here"), ..cri() }, "here is not absolute"),
            (LogSpec { path: path(b""), ..cri() }, "not absolute"),
            (LogSpec { path: path(b"/a\xff"), ..cri() }, "is not UTF-8"),
            (LogSpec { path: path(b"/a\0"), ..cri() }, "zero byte"),
            (LogSpec { stderr: path(b"/a"), ..cri() }, "cri has no stderr"),
            (LogSpec { max_size: Some(12), ..cri() }, "at least 4096"),
            (LogSpec { max_files: Some(3), ..cri() }, "needs max-size"),
            (LogSpec { rate: Some(0), ..cri() }, "\"0\" is no number"),
            (LogSpec::new(LogDriver::Fifo), "fifo needs a path"),
        ] {
            let error = Logging::new(vec![spec]).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        // Seen before: a file /x/a, and a rate.
        let logging = Logging::new(vec![LogSpec { path: path(b"/x/a,rate=1"), ..cri() }]).unwrap();
        let text = serde_json::to_string(&logging).unwrap();
        assert_eq!(serde_json::from_str::<Logging>(&text).unwrap(), logging);
    }

    #[test]
    fn a_log_has_a_bound_unless_it_says_that_it_has_none() {
        for (asked, default, resolved, spelled) in [
            ("cri", Some(8192), "cri,max-size=8192,max-files=3", "cri,max-size=8192,max-files=3"),
            ("json-file,rate=1", None, "json-file,rate=1", "json-file,max-size=0,rate=1"),
            ("cri,max-size=0", Some(8192), "cri", "cri,max-size=0"),
            (
                "cri,max-size=5k",
                Some(8192),
                "cri,max-size=5120,max-files=3",
                "cri,max-size=5120,max-files=3",
            ),
            (
                "cri,max-size=5k,max-files=9",
                None,
                "cri,max-size=5120,max-files=9",
                "cri,max-size=5120,max-files=9",
            ),
            (
                "file",
                Some(8192),
                "file,max-size=8192,max-files=3",
                "file,max-size=8192,max-files=3",
            ),
            ("file,direct=yes", Some(8192), "file,direct=yes", "file,direct=yes"),
            ("journald", Some(8192), "journald", "journald"),
            ("none", Some(8192), "none", "none"),
        ] {
            let logging = Logging::new(vec![asked.parse().unwrap()]).unwrap();
            let record = logging.resolved(default, 3);
            assert_eq!(record.specs()[0].to_string(), resolved);
            assert_eq!(record.spelled_out().specs()[0].to_string(), spelled);
            assert_eq!(record.spelled_out().resolved(default, 3), record);
        }
    }

    #[test]
    fn one_is_a_text_and_several_are_a_list() {
        let one: Logging = serde_json::from_str("\"cri\"").unwrap();
        assert_eq!(one, Logging::default());
        assert_eq!(serde_json::to_string(&one).unwrap(), "\"cri\"");
        let two: Logging = serde_json::from_str(r#"["cri","file:/x"]"#).unwrap();
        assert_eq!(serde_json::to_string(&two).unwrap(), r#"["cri","file:/x"]"#);
        assert!(serde_json::from_str::<Logging>("\"odd\"").is_err());
    }

    proptest! {
        #[test]
        fn any_place_is_refused_or_survives_as_text(spec in specs()) {
            let text = spec.to_string();
            match Logging::new(vec![spec.clone()]) {
                Ok(logging) => {
                    // As text: a path compares equal to one that has a slash more.
                    let read: LogSpec = text.parse().unwrap();
                    prop_assert_eq!(read.path.as_ref().map(|p| p.as_os_str()), spec.path.as_ref().map(|p| p.as_os_str()));
                    prop_assert_eq!(read.stderr.as_ref().map(|p| p.as_os_str()), spec.stderr.as_ref().map(|p| p.as_os_str()));
                    prop_assert_eq!(&read, &spec);
                    let json = serde_json::to_string(&logging).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Logging>(&json).unwrap(), logging);
                }
                // What is refused is no other place as text either.
                Err(_) => if let Ok(read) = text.parse::<LogSpec>() {
                    prop_assert_ne!(&read, &spec);
                    prop_assert!(spec.path.iter().chain(&spec.stderr).any(|p| p.to_str().is_none()));
                }
            }
        }

        #[test]
        fn no_text_panics(text in "(cri|fifo|file)?:?/?[a-z\\\\,]{0,4}(,[a-z-]{0,9}=[0-9a-zé]{0,9}){0,3}") {
            if let Ok(spec) = text.parse::<LogSpec>() {
                prop_assert_eq!(spec.to_string().parse::<LogSpec>().unwrap(), spec);
            }
        }
    }

    #[test]
    fn a_size_is_a_number_with_a_power_of_1024() {
        for (texts, size) in [
            (&["0", "0b", "0g"][..], 0),
            (&["12", "12b", "12B"], 12),
            (&["3k", "3K", "3kb", "3KiB"], 3 * 1024),
            (&["2m", "2M", "2mb", "2MiB"], 2 * 1024 * 1024),
            (&["5g", "5G", "5gb", "5GiB"], 5 * 1024 * 1024 * 1024),
        ] {
            for text in texts {
                assert_eq!(LogSpec::parse_size(text), Ok(size), "{text}");
            }
        }
        // The last one is 2 to the 64th.
        for text in ["", "k", "1x", "1 k", "-1", "1.5m", "1km", "18014398509481984k"] {
            let error = LogSpec::parse_size(text).unwrap_err();
            assert_eq!(error, format!("{text:?} is no size: 10m, say"));
        }
    }

    #[test]
    fn a_place_has_a_file_that_is_rotated_or_is_written_past_the_shim() {
        for (text, file, rotates, direct) in [
            ("cri", Some("output.log"), true, false),
            ("cri:/x", Some("/x"), true, false),
            ("json-file", Some("output.json"), true, false),
            ("file", Some("output.raw"), true, false),
            ("file:/x,direct=yes", Some("/x"), false, true),
            ("fifo:/x", None, false, true),
            ("fifo:/x,backpressure=spill", None, false, false),
            ("fifo:/x,backpressure=drop-oldest", None, false, false),
            ("journald", None, false, false),
            ("none", None, false, true),
        ] {
            let spec: LogSpec = text.parse().unwrap();
            assert_eq!(spec.file(), file.map(Path::new), "{text}");
            assert_eq!((spec.can_rotate(), spec.is_direct()), (rotates, direct), "{text}");
            let logging = Logging::new(vec![spec.clone()]).unwrap();
            assert_eq!(logging.is_direct(), direct, "{text}");
            assert_eq!(logging.readable(), file.map(|_| &spec), "{text}");
        }
    }

    #[test]
    fn of_several_places_the_first_file_is_read_back_and_all_go_through_the_shim() {
        let of = |texts: &[&str]| {
            Logging::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
        };
        let several = of(&["fifo:/x", "json-file", "cri"]);
        assert_eq!(several.readable().map(LogSpec::to_string).as_deref(), Some("json-file"));
        assert!(!several.is_direct());
        assert_eq!(of(&["fifo:/x", "journald"]).readable(), None);
        assert_eq!(of(&[]), Logging::default());
        assert_eq!(of(&[]).specs(), [LogSpec::new(LogDriver::Cri)]);
    }

    /// Seen before: both wrote to one file, or one was renamed over by the other.
    #[test]
    fn a_new_process_has_no_file_that_two_logs_write() {
        let of = |texts: &[&str]| {
            Logging::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap().check()
        };
        for texts in [
            ["file:/a,stderr=/b", "cri:/b"],
            ["cri:/x,max-size=1m", "file:/x.1"],
            ["file:/x.4", "cri:/x"],
        ] {
            assert!(of(&texts).unwrap_err().to_string().contains("the same file"), "{texts:?}");
        }
        assert!(of(&["file:/a,stderr=/a"]).is_err());
        assert!(of(&["file:/a,stderr=/a.2"]).is_err());
        assert_eq!(of(&["file:/a,stderr=/b", "cri", "cri:/c"]), Ok(()));
        let many: Vec<_> = (0..17).map(|number| format!("cri:/{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of(&many).unwrap_err().to_string().contains("16 others"));
        assert_eq!(of(&many[..16]), Ok(()));
    }

    #[test]
    fn two_places_that_would_meet_are_refused() {
        for (texts, reason) in [
            (["cri", "none"], "not to be had together"),
            (["none", "none"], "not to be had together"),
            (["cri:/x", "json-file:/x"], "the same file"),
            (["file", "file"], "the same file"),
            (["fifo:/x", "fifo:/y"], "another fifo"),
        ] {
            let specs = texts.iter().map(|text| text.parse().unwrap()).collect();
            let error = Logging::new(specs).unwrap_err().to_string();
            assert!(error.contains(reason), "{texts:?}: {error}");
            let json = serde_json::to_string(&texts).unwrap();
            assert!(serde_json::from_str::<Logging>(&json).is_err(), "{json}");
        }
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let bare: LogSpec = "cri".parse().unwrap();
        assert_eq!((bare.bound(), bare.files(), bare.buffered()), (None, 5, 1_048_576));
        let told: LogSpec = "cri,max-size=4096,max-files=1".parse().unwrap();
        assert_eq!((told.bound(), told.files()), (Some(4096), 1));
        let fifo: LogSpec = "fifo:/x,backpressure=spill,buffer=1".parse().unwrap();
        assert_eq!(fifo.buffered(), 1);
        assert_eq!("cri,max-size=0".parse::<LogSpec>().unwrap().bound(), None);
        assert_eq!(LogSpec::MAX_SIZE, 10_485_760);
        assert_eq!(set_aside("output.log", 2), "output.log.2");
    }

    #[test]
    fn what_is_the_default_can_be_said() {
        for (text, short) in [
            ("fifo:/x,backpressure=block", "fifo:/x"),
            ("cri,backpressure=block", "cri"),
            ("file,direct=no", "file"),
            ("cri,direct=no", "cri"),
        ] {
            assert_eq!(text.parse::<LogSpec>().unwrap(), short.parse().unwrap(), "{text}");
        }
    }

    #[test]
    fn an_option_is_taken_by_those_that_have_it() {
        for (option, takers) in [
            ("max-size=4096", &["cri", "json-file", "file"][..]),
            ("max-size=4096,max-files=2", &["cri", "json-file", "file"]),
            ("rate=1", &["cri", "json-file", "journald"]),
            ("direct=yes", &["file"]),
            ("relay=yes", &["fifo:/x"]),
            ("stderr=/y", &["file", "fifo:/x"]),
            ("backpressure=spill", &["fifo:/x"]),
            ("backpressure=drop-oldest,buffer=1", &["fifo:/x"]),
        ] {
            for place in ["cri", "json-file", "file", "fifo:/x", "journald", "none"] {
                let read = format!("{place},{option}").parse::<LogSpec>();
                assert_eq!(read.is_ok(), takers.contains(&place), "{place},{option}: {read:?}");
            }
        }
        for (text, reason) in [
            ("cri,size=1", "there is no option \"size\""),
            ("fifo:/x,backpressure=drop", "block, drop-oldest or spill"),
            ("fifo:/x,buffer=1", "buffer needs"),
            ("cri,buffer=1", "cri has no backpressure"),
            ("cri,max-size=4095", "at least 4096"),
            ("cri,rate=-1", "\"-1\" is no number"),
        ] {
            let error = text.parse::<LogSpec>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
