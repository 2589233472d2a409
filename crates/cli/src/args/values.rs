//! Values as people type them: times, sizes, users, mounts.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use holdfast_daemon::api::{LogSpec, Network, OrphanPolicy, User};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// A user, and maybe a group.
#[derive(Debug, Clone)]
pub(crate) enum UserName {
    Ids(User),
    /// To be looked up in the container.
    Names(String),
}

impl FromStr for UserName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, "0"));
        if user.is_empty() || group.is_empty() {
            return Err("it is USER or USER:GROUP".to_owned());
        }
        Ok(match (user.parse(), group.parse()) {
            (Ok(uid), Ok(gid)) => Self::Ids(User { uid, gid, ..User::default() }),
            _ => Self::Names(text.to_owned()),
        })
    }
}

/// A security option, as docker has them.
#[derive(Debug, Clone)]
pub(crate) enum Security {
    NoNewPrivileges(bool),
    Unconfined,
    Seccomp(PathBuf),
}

pub(crate) fn parse_security(text: &str) -> Result<Security, String> {
    // docker takes a colon too.
    match text.split_once(['=', ':']).unwrap_or((text, "")) {
        ("no-new-privileges", "" | "true") => Ok(Security::NoNewPrivileges(true)),
        ("no-new-privileges", "false") => Ok(Security::NoNewPrivileges(false)),
        ("seccomp", "unconfined") => Ok(Security::Unconfined),
        ("seccomp", path) if !path.is_empty() => Ok(Security::Seccomp(path.into())),
        _ => {
            Err("it is seccomp=FILE, seccomp=unconfined or no-new-privileges[=true|false]"
                .to_owned())
        }
    }
}

pub(crate) fn parse_network(text: &str) -> Result<Network, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("none", "") => Ok(Network::None),
        ("host", "") => Ok(Network::Host),
        ("ns", path) if path.starts_with('/') => Ok(Network::Namespace(path.into())),
        ("bridge" | "slirp4netns" | "pasta" | "container", _) => Err(
            "Holdfast sets up no networks: make a namespace and give it as ns:PATH, or host or none"
                .to_owned(),
        ),
        _ => Err("it is none, host or ns:PATH (an absolute path)".to_owned()),
    }
}

/// A mount, as an OCI configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `none` for a bind mount, or `tmpfs`.
    pub(crate) kind: &'static str,
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) options: Vec<String>,
}

const PROPAGATIONS: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];

impl Mounted {
    fn bind(source: &str, destination: &str, read_only: bool, propagation: Option<&str>) -> Self {
        let access = if read_only { "ro" } else { "rw" };
        let options = ["rbind", access, "nosuid", "nodev"].into_iter().chain(propagation);
        Self {
            kind: "none",
            source: source.into(),
            destination: destination.into(),
            options: options.map(str::to_owned).collect(),
        }
    }

    /// A tmpfs with these options of tmpfs(5) and mount(8).
    fn tmpfs(destination: &str, given: &[&str]) -> Result<Self, String> {
        let mut bytes = 64 << 20;
        let mut options: Vec<String> = ["nosuid", "nodev"].map(str::to_owned).into();
        for option in given {
            match option.split_once('=').unwrap_or((option, "")) {
                ("size", size) => bytes = LogSpec::parse_size(size)?,
                ("mode", mode) if u32::from_str_radix(mode, 8).is_ok() => {
                    options.push((*option).to_owned());
                }
                ("nosuid" | "nodev" | "rw", "") => {}
                ("ro" | "noexec" | "exec" | "suid" | "dev" | "noatime", "") => {
                    options.push((*option).to_owned());
                }
                _ => {
                    return Err(format!(
                        "{option:?} is no option of a tmpfs: size=, mode=, ro, noexec"
                    ));
                }
            }
        }
        if !options.iter().any(|option| option.starts_with("mode=")) {
            options.push("mode=1777".to_owned());
        }
        options.push(format!("size={bytes}"));
        // Empty files take none of its size, but memory of the host.
        options.push(format!("nr_inodes={}", (bytes / 4096).max(1024)));
        Ok(Self { kind: "tmpfs", source: "tmpfs".into(), destination: destination.into(), options })
    }
}

/// `SRC:DEST[:OPTIONS]`, as `-v` has it.
pub(crate) fn parse_volume(text: &str) -> Result<Mounted, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        _ => return Err("it is SRC:DEST, SRC:DEST:ro or SRC:DEST:rw".to_owned()),
    };
    if !source.contains('/') && !Path::new(source).exists() {
        return Err(format!("{source} is not here, and Holdfast has no volumes: name a directory"));
    }
    let (mut read_only, mut propagation) = (false, None);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            "rw" => read_only = false,
            _ if PROPAGATIONS.contains(&option) => propagation = Some(option),
            _ => return Err(format!("{option:?} is no option of a mount: ro, rw, rslave")),
        }
    }
    Ok(Mounted::bind(source, destination, read_only, propagation))
}

/// `DEST[:OPTIONS]`, as `--tmpfs` has it; a size may stand alone.
pub(crate) fn parse_tmpfs(text: &str) -> Result<Mounted, String> {
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    if LogSpec::parse_size(options).is_ok() {
        return Mounted::tmpfs(destination, &[&format!("size={options}")]);
    }
    let options: Vec<_> = options.split(',').filter(|option| !option.is_empty()).collect();
    Mounted::tmpfs(destination, &options)
}

/// `KEY=VALUE,…`, as `--mount` has it.
impl FromStr for Mounted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut kind, mut source, mut destination) = (None, None, None);
        let (mut read_only, mut propagation, mut tmpfs) = (false, None, Vec::new());
        for field in text.split(',') {
            let (key, value) = field.split_once('=').unwrap_or((field, ""));
            match key {
                "type" => kind = Some(value),
                "source" | "src" => source = Some(value),
                "destination" | "dst" | "target" => destination = Some(value),
                "readonly" | "ro" => read_only = matches!(value, "" | "true" | "1"),
                "bind-propagation" if PROPAGATIONS.contains(&value) => propagation = Some(value),
                "tmpfs-size" => tmpfs.push(format!("size={value}")),
                "tmpfs-mode" => tmpfs.push(format!("mode={value}")),
                _ => return Err(format!("{field:?} is not known here")),
            }
        }
        let destination = destination.ok_or("there is no dst=PATH")?;
        match (kind, source) {
            (Some("bind"), Some(source)) => {
                Ok(Self::bind(source, destination, read_only, propagation))
            }
            (Some("bind"), None) => Err("there is no src=PATH".to_owned()),
            (Some("tmpfs"), None) => {
                if read_only {
                    tmpfs.push("ro".to_owned());
                }
                let options: Vec<_> = tmpfs.iter().map(String::as_str).collect();
                Self::tmpfs(destination, &options)
            }
            (Some("tmpfs"), Some(_)) => Err("a tmpfs has no source".to_owned()),
            (Some("volume") | None, _) => {
                Err("give type=bind or type=tmpfs; Holdfast has no volumes".to_owned())
            }
            (Some(kind), _) => Err(format!("type={kind} is not known; there are bind and tmpfs")),
        }
    }
}

/// A device of the host, and what the container may do with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) source: PathBuf,
    pub(crate) destination: PathBuf,
    pub(crate) access: String,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, access) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, access] if !access.starts_with('/') => (source, source, access),
            [source, destination] => (source, destination, "rwm"),
            [source, destination, access] => (source, destination, access),
            _ => return Err("it is SRC, SRC:DEST or SRC:DEST:rwm".to_owned()),
        };
        if access.is_empty() || access.chars().any(|c| !"rwm".contains(c)) {
            return Err(format!("{access:?} is no access: letters of rwm"));
        }
        Ok(Self {
            source: source.into(),
            destination: destination.into(),
            access: access.to_owned(),
        })
    }
}

pub(crate) fn parse_cpus(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no number of processors: 1.5, say");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.len() <= 9;
    if whole.is_empty() && part.is_empty() || !is_number(whole) || !is_number(part) {
        return Err(wrong());
    }
    let thousandths: String = part.chars().chain("000".chars()).take(3).collect();
    format!("0{whole}{thousandths}").parse().map_err(|_| wrong())
}

pub(crate) fn parse_ulimit(text: &str) -> Result<(String, u64, u64), String> {
    let wrong = || format!("{text:?} is no limit: nofile=1024:2048, say");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        text => text.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let upper = name.to_ascii_uppercase();
    let name = if upper.starts_with("RLIMIT_") { upper } else { format!("RLIMIT_{upper}") };
    Ok((name, number(soft)?, number(hard)?))
}

/// A path that the daemon, which stands elsewhere, understands.
pub(crate) fn absolute(path: PathBuf) -> anyhow::Result<PathBuf> {
    Ok(crate::current_dir()?.join(path))
}

/// Returns the path of a socket that is given as a path or as a `unix://` URL.
pub(crate) fn socket_path(address: &str) -> PathBuf {
    address.strip_prefix("unix://").unwrap_or(address).into()
}

/// A runtime given by path, as the daemon understands it.
pub(crate) fn absolute_if_path(runtime: String) -> anyhow::Result<String> {
    if !runtime.contains('/') {
        return Ok(runtime);
    }
    Ok(absolute(runtime.into())?.to_string_lossy().into_owned())
}

pub(crate) fn parse_orphan(text: &str) -> Result<OrphanPolicy, String> {
    match text {
        "adopt" => Ok(OrphanPolicy::Adopt),
        "kill" => Ok(OrphanPolicy::Kill),
        _ => Err("there are adopt and kill".to_owned()),
    }
}

/// A time in one of docker's forms, or how long ago.
pub(crate) fn parse_time(text: &str) -> Result<SystemTime, String> {
    let wrong = || {
        "give a time as in 2026-01-31T12:00:00Z or 2026-01-31, or how long ago as in 10m".to_owned()
    };
    if let Ok(ago) = humantime::parse_duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(wrong);
    }
    let utc = seconds(text)
        .or_else(|| text.parse::<Timestamp>().ok().map(SystemTime::from))
        .or_else(|| local(text))
        .or_else(|| day_with_offset(text));
    utc.filter(|utc| *utc >= SystemTime::UNIX_EPOCH).ok_or_else(wrong)
}

/// Seconds since 1970, maybe with a fraction.
fn seconds(text: &str) -> Option<SystemTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").parse().ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(whole.parse().ok()?, nanos))
}

/// A day, or a day and a time, where we are.
fn local(text: &str) -> Option<SystemTime> {
    let time: DateTime = text.parse().ok()?;
    Some(time.to_zoned(TimeZone::system()).ok()?.timestamp().into())
}

/// A day and the offset of its zone, `2026-01-31Z` or `2026-01-31+02:00`.
fn day_with_offset(text: &str) -> Option<SystemTime> {
    let (day, offset) = text.split_at_checked(10).filter(|(_, offset)| !offset.is_empty())?;
    format!("{day}T00:00:00{offset}").parse::<Timestamp>().ok().map(SystemTime::from)
}

pub(crate) fn parse_bound(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; give 0, or a number with a unit, as in 30s"))
}

pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.as_millis() > 0 => Ok(duration),
        Ok(_) => Err("must be at least 1ms".to_owned()),
        Err(error) => Err(format!("{error}; give a number with a unit, as in 2s or 500ms")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood_in_all_of_dockers_forms() {
        let at =
            |text| parse_time(text).map(|time| humantime::format_rfc3339_seconds(time).to_string());
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.5Z",
            "2026-01-31T14:30:00+02:30",
            "2026-01-31T07:00:00.1-05:00",
            "1769860800",
            "1769860800.25",
        ] {
            assert_eq!(at(text).as_deref(), Ok("2026-01-31T12:00:00Z"), "{text}");
        }
        assert_eq!(at("2026-01-31Z").as_deref(), Ok("2026-01-31T00:00:00Z"));
        assert_eq!(at("2026-01-31+02:00").as_deref(), Ok("2026-01-30T22:00:00Z"));
        for text in ["2026-01-31T12:00:00.5", "2026-01-31T12:00", "2026-01-31"] {
            let day = Duration::from_secs(86_400);
            let time = parse_time(text).unwrap();
            let noon = parse_time("2026-01-31T12:00:00Z").unwrap();
            assert!(time > noon - 2 * day && time < noon + day, "{text}");
        }
        let ago = parse_time("10m").unwrap().elapsed().unwrap().as_secs();
        assert!((600..660).contains(&ago), "{ago}");
        for text in ["", "yesterday", "1.", "-1", "2026-01-31T12:00:00+2", "é".repeat(20).as_str()]
        {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
