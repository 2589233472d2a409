//! The logs, as `--log-path` and the options that belong to it name them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use holdfast_shim::engine::{Journald, K8sFile, LogFile};

use crate::args::Args;
use crate::report;

/// The length of a short id in the journal, in bytes.
const SHORT_ID: usize = 12;

/// The open logs of a container.
#[derive(Default)]
pub(crate) struct Logs {
    pub(crate) files: Vec<LogFile>,
    pub(crate) journals: Vec<Journald>,
    /// Whether the container gets the monitor's own standard descriptors.
    pub(crate) is_passthrough: bool,
}

/// One value of `--log-path`.
#[derive(Debug, PartialEq, Eq)]
enum Driver<'a> {
    None,
    Passthrough,
    /// With the path of its socket, if it is not the usual one.
    Journald(Option<&'a str>),
    K8sFile(&'a str),
}

impl<'a> Driver<'a> {
    /// Parses `DRIVER:PATH`, `DRIVER`, `:PATH` or `PATH`.
    fn parse(text: &'a str) -> Result<Self, String> {
        let (name, path) = match text.split_once(':') {
            _ if text.is_empty() || text == ":" => {
                return Err("log-path must not be empty".to_owned());
            }
            None => (text, None),
            Some(("", path)) => return Ok(Self::K8sFile(path)),
            Some((name, path)) => (name, Some(path).filter(|path| !path.is_empty())),
        };
        match (name, path) {
            ("off" | "null" | "none", _) => Ok(Self::None),
            ("passthrough", _) => Ok(Self::Passthrough),
            ("journald", path) => Ok(Self::Journald(path.filter(|path| path.starts_with('/')))),
            ("k8s-file", Some(path)) => Ok(Self::K8sFile(path)),
            ("k8s-file", None) => Err("k8s-file requires a filename".to_owned()),
            (path, None) if !text.contains(':') => Ok(Self::K8sFile(path)),
            (name, _) => Err(format!("No such log driver {name}")),
        }
    }
}

/// Opens all logs.
///
/// # Errors
/// A message that says why a log cannot be opened.
pub(crate) fn open(args: &Args<'_>) -> Result<Logs, String> {
    if args.log_paths.is_empty() {
        return Err("Log driver not provided. Use --log-path".to_owned());
    }
    let mut logs = Logs { files: Vec::new(), journals: Vec::new(), is_passthrough: false };
    let mut has_file = false;
    for text in &args.log_paths {
        match Driver::parse(utf8(text)?)? {
            Driver::None => {}
            // CRI-O removes the log of an exec when it gives up the exec, and reads no later file of that name.
            Driver::K8sFile(path) if args.adopt && args.exec && !Path::new(path).exists() => {}
            Driver::Passthrough => logs.is_passthrough = true,
            Driver::Journald(path) => logs.journals = vec![journal(args, path)?],
            Driver::K8sFile(path) => {
                has_file = true;
                // There is one, mostly, where room for four would be made.
                logs.files.reserve_exact(1);
                logs.files.push(file(args, path)?);
            }
        }
    }
    if has_file && logs.journals.is_empty() {
        if args.log_tag.is_some() {
            return Err("k8s-file doesn't support --log-tag".to_owned());
        }
        if !args.log_labels.is_empty() {
            return Err("k8s-file doesn't support --log-label".to_owned());
        }
    }
    if args.no_container_partial_message && logs.journals.is_empty() {
        let text = "--no-container-partial-message has no effect without journald log driver";
        report::warn(text);
    }
    Ok(logs)
}

fn utf8(text: &OsStr) -> Result<&str, String> {
    text.to_str().ok_or_else(|| format!("{} is not UTF-8", text.display()))
}

fn file(args: &Args<'_>, path: &str) -> Result<LogFile, String> {
    let failed = |error: io::Error| format!("Failed to open log file {path}: {error}");
    let absolute = std::path::absolute(path).map_err(failed)?;
    let size = |value: i64| u64::try_from(value).ok().filter(|size| *size > 0);
    let rules = K8sFile {
        max_size: size(args.log_size_max),
        max_total: size(args.log_global_size_max),
        backups: args.log_rotate.then(|| u32::try_from(args.log_max_files).unwrap_or(1)),
        // An adopter that failed for it would be followed by one that fails as well.
        may_be_missing: args.adopt,
    };
    if rules.backups.is_some() && !is_allowed(&absolute, &args.log_allowlist_dirs) {
        return Err(format!("{path} cannot be rotated: it is below no --log-allowlist-dir"));
    }
    LogFile::of_monitor(&absolute, rules).map_err(failed)
}

/// Returns whether a log is below one of the directories in which logs may be rotated.
fn is_allowed(path: &Path, dirs: &[&OsStr]) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    let parent = path.parent().and_then(real);
    let is_below = |dir: PathBuf| parent.as_ref().is_some_and(|parent| parent.starts_with(dir));
    dirs.is_empty() || dirs.iter().filter_map(|dir| real(Path::new(dir))).any(is_below)
}

fn journal(args: &Args<'_>, path: Option<&str>) -> Result<Journald, String> {
    let id = args.id();
    let short = id.get(..SHORT_ID).filter(|short| short.len() < id.len());
    let short = short.ok_or("Container ID must be longer than 12 characters")?;
    let mut fields = vec![("CONTAINER_ID_FULL", id), ("CONTAINER_ID", short)];
    let name = args.name.map(utf8).transpose()?;
    let tag = args.log_tag.map(utf8).transpose()?;
    fields.extend(name.map(|name| ("CONTAINER_NAME", name)));
    fields.extend(tag.map(|tag| ("CONTAINER_TAG", tag)));
    fields.push(("SYSLOG_IDENTIFIER", tag.or(name).unwrap_or(short)));
    for label in &args.log_labels {
        fields.push(label_of(utf8(label)?)?);
    }
    let names_partial = !args.no_container_partial_message;
    Ok(Journald::of_monitor(path.map(Path::new), &fields, names_partial))
}

fn label_of(text: &str) -> Result<(&str, &str), String> {
    let wrong = |what: &str| {
        format!("Container labels must be in format LABEL=VALUE ({what} present in '{text}')")
    };
    let (name, value) = match text.split_once('=') {
        Some(("", _)) => return Err(wrong("no LABEL")),
        Some((name, value)) if !value.contains('=') => (name, value),
        _ => return Err(wrong("none or more than one '='")),
    };
    let is_valid = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    if name.bytes().all(is_valid) {
        Ok((name, value))
    } else {
        Err(format!(
            "Container label names must contain only uppercase letters, numbers and underscore (in '{text}')"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_names_a_driver_or_is_a_path() {
        for (text, driver) in [
            ("/a", Driver::K8sFile("/a")),
            (":/a", Driver::K8sFile("/a")),
            (":journald", Driver::K8sFile("journald")),
            ("k8s-file:/a:b", Driver::K8sFile("/a:b")),
            ("none", Driver::None),
            ("off:", Driver::None),
            ("null:/a", Driver::None),
            ("passthrough", Driver::Passthrough),
            ("journald:", Driver::Journald(None)),
            ("journald:x", Driver::Journald(None)),
            ("journald:/run/s", Driver::Journald(Some("/run/s"))),
        ] {
            assert_eq!(Driver::parse(text), Ok(driver), "{text}");
        }
        for (text, reason) in [
            ("", "log-path must not be empty"),
            (":", "log-path must not be empty"),
            ("k8s-file", "k8s-file requires a filename"),
            ("k8s-file:", "k8s-file requires a filename"),
            ("invalid:/a", "No such log driver invalid"),
            ("invalid:", "No such log driver invalid"),
            ("/a:b", "No such log driver /a"),
        ] {
            assert_eq!(Driver::parse(text), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_label_is_an_upper_case_name_and_a_value() {
        assert_eq!(label_of("A_1=b"), Ok(("A_1", "b")));
        assert_eq!(label_of("A="), Ok(("A", "")));
        for (text, reason) in [
            ("A", "LABEL=VALUE"),
            ("A=b=c", "LABEL=VALUE"),
            ("=b", "no LABEL"),
            ("A%=b", "only uppercase"),
        ] {
            assert!(label_of(text).unwrap_err().contains(reason), "{text}");
        }
    }

    #[test]
    fn only_a_log_below_an_allowed_directory_is_rotated() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, other) = (temp.path().join("a"), temp.path().join("ab"));
        fs::create_dir(&dir).unwrap();
        fs::create_dir(&other).unwrap();
        assert!(is_allowed(&dir.join("log"), &[]));
        assert!(is_allowed(&dir.join("log"), &[other.as_os_str(), dir.as_os_str()]));
        assert!(!is_allowed(&other.join("log"), &[dir.as_os_str()]));
        assert!(!is_allowed(&dir.join("log"), &[OsStr::new("/not/there")]));
    }
}
