//! The configuration file: the flags of the daemon, and defaults for containers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use holdfast_policies::RestartPolicy;
use holdfast_supervisor::{ContainerOptions, GroupName, LogSpec, Logging};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use crate::api::POLICY;

/// The keys that a reload can change; all others need a restart of the daemon.
const RELOADED: [&str; 2] = ["containers", "log-level"];

/// A configuration file in TOML. An unknown key is an error.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct File {
    /// The state root.
    pub root: Option<PathBuf>,
    /// The path of the socket.
    pub address: Option<String>,
    /// The default OCI runtime, by name or path.
    pub runtime: Option<String>,
    /// The executable of the shim.
    pub shim: Option<PathBuf>,
    /// The shim group of containers that name none.
    pub shim_group: Option<GroupName>,
    /// How many shims are kept ready.
    pub spare_shims: Option<usize>,
    /// The size of the files of a log, as in `"10m"`.
    #[serde(deserialize_with = "size")]
    pub log_max_size: Option<u64>,
    /// How many files a log has.
    pub log_max_files: Option<NonZeroU32>,
    /// Which messages the daemon logs; see [`Self::log_format`] for their form.
    pub log_level: Option<String>,
    /// How it logs them.
    pub log_format: Option<LogFormat>,
    /// Where metrics are served on TCP.
    pub metrics: Option<SocketAddr>,
    /// The file with the token for that.
    pub metrics_token: Option<PathBuf>,
    /// Where the web page is served.
    pub web: Option<SocketAddr>,
    /// The file with the token for that.
    pub web_token: Option<PathBuf>,
    /// Names by which browsers may reach it.
    pub web_host: Vec<String>,
    /// The path of the read-only socket.
    pub read_only_address: Option<String>,
    /// The group that may connect there.
    pub read_only_group: Option<String>,
    /// The directory of the definitions of containers that outlive a reboot.
    pub definitions: Option<PathBuf>,
    /// Defaults for new containers.
    pub containers: Defaults,
}

/// The form of the daemon's own log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of new containers that do not make them themselves.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Defaults {
    /// Where output goes, as in `--log`.
    pub log: Option<Logging>,
    /// The memory limit, as in `"512m"`.
    #[serde(deserialize_with = "size")]
    pub memory: Option<u64>,
    /// The limit of processor time, as in `1.5`.
    #[serde(deserialize_with = "millicpus")]
    pub cpus: Option<u64>,
    /// The limit of the number of processes.
    pub pids_limit: Option<u64>,
    /// The restart policy. Not for containers that are deleted after their exit.
    pub restart: Option<RestartPolicy>,
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    LogSpec::parse_size(&text).map(Some).map_err(serde::de::Error::custom)
}

fn millicpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let cpus = f64::deserialize(deserializer)?;
    if !(0.001..=1_000_000.0).contains(&cpus) {
        return Err(serde::de::Error::custom("a number of processors from 0.001 on is needed"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let millis = (cpus * 1000.0).round() as u64;
    Ok(Some(millis))
}

/// A configuration file, and its keys as they were written.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its path.
    pub path: PathBuf,
    /// Its content.
    pub file: File,
    table: toml::Table,
}

impl Loaded {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is wrong. The text has the path and the line.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
        let wrong = |error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start).min(text.len());
            let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            format!("{shown}:{line}: {}", error.message())
        };
        let file = toml::from_str(&text).map_err(wrong)?;
        let table = toml::from_str(&text).map_err(wrong)?;
        Ok(Self { path: path.to_owned(), file, table })
    }

    /// Takes over what a reload changes.
    pub(crate) fn take_over(&mut self, new: Self) {
        for key in RELOADED {
            self.table.remove(key);
            if let Some(value) = new.table.get(key) {
                self.table.insert(key.to_owned(), value.clone());
            }
        }
        self.file.log_level = new.file.log_level;
        self.file.containers = new.file.containers;
    }

    /// Returns the keys whose values differ in `new`, in order: those that a reload changes, and those
    /// that need a restart.
    pub(crate) fn changes(&self, new: &Self) -> (Vec<String>, Vec<String>) {
        let keys: BTreeSet<&String> = self.table.keys().chain(new.table.keys()).collect();
        let changed = keys.into_iter().filter(|key| self.table.get(*key) != new.table.get(*key));
        changed.cloned().partition(|key| RELOADED.contains(&key.as_str()))
    }
}

impl Defaults {
    /// Fills in what the options of a container leave open.
    pub(crate) fn apply(&self, options: ContainerOptions) -> serde_json::Result<ContainerOptions> {
        if *self == Self::default() {
            return Ok(options);
        }
        let mut body = serde_json::to_value(options)?;
        for (name, default) in
            [("memoryLimit", self.memory), ("cpuLimit", self.cpus), ("pidsLimit", self.pids_limit)]
        {
            if let Some(default) = default
                && body["config"][name].is_null()
            {
                body["config"][name] = default.into();
            }
        }
        if let Some(log) = &self.log
            && body["stdio"]["log"] == json!(Logging::default())
        {
            body["stdio"]["log"] = json!(log);
        }
        if let Some(policy) = self.restart
            && policy != RestartPolicy::No
            && body["remove"] != true
            && body["labels"].get(POLICY).is_none()
        {
            body["labels"][POLICY] = Value::from(policy.to_string());
        }
        serde_json::from_value(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Loaded, String> {
        let path = std::env::temp_dir().join(format!("holdfast-config-{}", std::process::id()));
        let path = path.with_extension(format!("{:x}", text.as_ptr().addr()));
        std::fs::write(&path, text).unwrap();
        let read = Loaded::read(&path);
        std::fs::remove_file(&path).unwrap();
        read
    }

    #[test]
    fn every_key_is_read_and_an_unknown_one_is_named_with_its_line() {
        let all = "root = '/r'\naddress = 'unix:///s'\nruntime = 'runc'\nshim = '/shim'\n\
                   shim-group = 'all'\nspare-shims = 2\nlog-max-size = '1m'\nlog-max-files = 3\n\
                   log-level = 'debug'\nlog-format = 'json'\nmetrics = '127.0.0.1:1'\n\
                   metrics-token = '/t'\nweb = '[::1]:2'\nweb-token = '/w'\nweb-host = ['n']\nread-only-address = '/o'\nread-only-group = 'g'\ndefinitions = '/d'\n[containers]\nlog = 'none'\nmemory = '512m'\ncpus = 1.5\n\
                   pids-limit = 7\nrestart = 'on-failure:2'\n";
        let Loaded { file, .. } = read(all).unwrap();
        assert_eq!((file.log_max_size, file.log_format), (Some(1 << 20), Some(LogFormat::Json)));
        assert_eq!((file.containers.memory, file.containers.cpus), (Some(512 << 20), Some(1500)));
        for (text, line, reason) in [
            ("root = '/r'\n\nspare-shim = 2\n", 3, "spare-shim"),
            ("[containers]\nmemroy = '1m'\n", 2, "memroy"),
            ("log-max-size = 'big'\n", 1, "big"),
            ("[containers]\nrestart = 'sometimes'\n", 2, "sometimes"),
            ("[containers]\n\ncpus = 0.0\n", 3, "0.001"),
            ("runtime = \n", 1, ""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(&format!(":{line}: ")) && error.contains(reason), "{error}");
        }
    }

    #[test]
    fn changes_are_told_apart_by_whether_they_need_a_restart() {
        let old = read("log-level = 'info'\nruntime = 'runc'\n").unwrap();
        let new = read("runtime = 'crun'\nspare-shims = 1\n[containers]\ncpus = 1.0\n").unwrap();
        let (now, later) = old.changes(&new);
        assert_eq!(now, ["containers", "log-level"]);
        assert_eq!(later, ["runtime", "spare-shims"]);
        assert_eq!(old.changes(&old), (vec![], vec![]));
    }

    #[test]
    fn defaults_fill_in_only_what_the_container_leaves_open() {
        let text = "[containers]\nlog = 'none'\nmemory = '1m'\ncpus = 2.0\nrestart = 'always'\n";
        let defaults = read(text).unwrap().file.containers;
        let filled = |options| serde_json::to_value(defaults.apply(options).unwrap()).unwrap();
        let body = filled(ContainerOptions::host_rootfs());
        assert_eq!(
            (&body["config"]["memoryLimit"], &body["stdio"]["log"]),
            (&json!(1 << 20), &json!("none"))
        );
        assert_eq!(body["labels"][POLICY], "always");
        let own = ContainerOptions::host_rootfs().memory_limit(5).auto_remove();
        let body = filled(own);
        assert_eq!(body["config"]["memoryLimit"], 5);
        assert!(body["labels"].get(POLICY).is_none() && body["config"]["cpuLimit"] == 2000);
    }
}
