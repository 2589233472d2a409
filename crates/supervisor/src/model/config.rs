//! Changes to the OCI configuration of a container, whether that is a bundle's own or the default one.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::stat::{SFlag, major, minor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

/// What is changed in the configuration of a container. What is `None` or empty stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Config {
    /// `NAME=VALUE`; replaces a variable of the same name.
    pub(crate) env: Vec<String>,
    /// The working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cwd: Option<String>,
    /// The user and its groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<User>,
    /// `USER[:GROUP]`, to be looked up in the root file system; comes before `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_name: Option<String>,
    /// The host name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    /// Further mounts.
    pub(crate) mounts: Vec<Mount>,
    /// Devices of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<Device>,
    /// The network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<Network>,
    /// Whether the root file system is read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read_only: Option<bool>,
    /// The memory limit, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_limit: Option<u64>,
    /// The largest number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pids_limit: Option<u64>,
    /// The limit of processor time, in thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_limit: Option<u64>,
    /// The weight when processors are scarce; 1024 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_shares: Option<u64>,
    /// Resource limits (setrlimit(2)).
    pub(crate) ulimits: Vec<Ulimit>,
    /// Further capabilities, as in `NET_ADMIN`.
    pub(crate) cap_add: Vec<String>,
    /// Capabilities to take away, or `ALL`.
    pub(crate) cap_drop: Vec<String>,
    /// Whether its programs can gain no privileges by execve(2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) no_new_privileges: Option<bool>,
    /// The seccomp profile in the OCI form, or null for none.
    #[serde(deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub(crate) seccomp: Option<Option<Value>>,
    /// Annotations of the OCI configuration.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A user and its groups, as the container counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    #[serde(default)]
    pub gid: u32,
    /// The ids of further groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

/// The network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Network {
    /// A network namespace of its own, in which there is only the loopback interface.
    None,
    /// The network of the host: all interfaces and all ports.
    Host,
    /// The network namespace at this absolute path, which the caller has made.
    Namespace(PathBuf),
}

/// A mount that is added to the container. It replaces one with the same destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    /// The path in the container.
    pub(crate) destination: PathBuf,
    /// The file system, as in `tmpfs`; `none` for a bind mount.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The path on the host, or the source of the file system.
    pub(crate) source: PathBuf,
    /// The options of mount(8).
    pub(crate) options: Vec<String>,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    /// The path on the host.
    pub(crate) source: PathBuf,
    /// The path in the container.
    pub(crate) destination: PathBuf,
    /// Letters of `rwm`.
    pub(crate) access: String,
}

/// A resource limit (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Ulimit {
    /// `RLIMIT_NOFILE`, …
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The soft limit.
    pub(crate) soft: u64,
    /// The hard limit.
    pub(crate) hard: u64,
}

/// The period by which the processor time of a container is limited, in microseconds.
const CPU_PERIOD: u64 = 100_000;

impl Config {
    /// Changes an OCI configuration.
    ///
    /// # Errors
    ///
    /// The reason, for a value that no container can have.
    pub(crate) fn apply(&self, config: &mut Value) -> Result<(), String> {
        if *self == Self::default() {
            return Ok(());
        }
        self.apply_to_process(&mut config["process"])?;
        if let Some(hostname) = &self.hostname {
            if hostname.is_empty() || hostname.len() > 64 {
                return Err(format!("{hostname:?} is not a host name: 1 to 64 bytes"));
            }
            let namespaces = config["linux"]["namespaces"].as_array();
            let own = namespaces.is_some_and(|all| all.iter().any(|it| it["type"] == "uts"));
            if !own {
                return Err("a host name needs a uts namespace in the configuration".to_owned());
            }
            config["hostname"] = json!(hostname);
        }
        if let Some(network) = &self.network {
            let namespaces = array(&mut config["linux"]["namespaces"])?;
            // One with a path is the namespace of others, and is not kept for `Network::None` either.
            namespaces.retain(|it| it["type"] != "network");
            match network {
                Network::Host => {}
                Network::None => namespaces.push(json!({ "type": "network" })),
                Network::Namespace(path) => {
                    let shown = path.display();
                    if !path.is_absolute() {
                        return Err(format!(
                            "the network namespace {shown} is not an absolute path"
                        ));
                    }
                    path.metadata()
                        .map_err(|error| format!("the network namespace {shown}: {error}"))?;
                    namespaces.push(json!({ "type": "network", "path": path }));
                }
            }
        }
        if let Some(read_only) = self.read_only {
            config["root"]["readonly"] = json!(read_only);
        }
        for mount in &self.mounts {
            if !mount.destination.is_absolute() {
                let shown = mount.destination.display();
                return Err(format!("the destination of a mount is an absolute path, not {shown}"));
            }
            if mount.options.iter().any(|option| option == "bind" || option == "rbind") {
                let shown = mount.source.display();
                if !mount.source.is_absolute() {
                    return Err(format!(
                        "the source of a bind mount is an absolute path, not {shown}"
                    ));
                }
                mount
                    .source
                    .metadata()
                    .map_err(|error| format!("bind mount of {shown}: {error}"))?;
            }
            let all = array(&mut config["mounts"])?;
            all.retain(|it| it["destination"] != json!(mount.destination));
            all.push(json!(mount));
        }
        for device in &self.devices {
            device.add(&mut config["linux"])?;
        }
        let resources = &mut config["linux"]["resources"];
        if let Some(limit) = self.memory_limit {
            resources["memory"]["limit"] = json!(limit);
        }
        if let Some(limit) = self.pids_limit {
            resources["pids"]["limit"] = json!(limit);
        }
        if let Some(limit) = self.cpu_limit {
            if limit < 10 {
                return Err("the kernel grants at least 0.01 processors".to_owned());
            }
            resources["cpu"]["quota"] = json!(limit.saturating_mul(CPU_PERIOD / 1000));
            resources["cpu"]["period"] = json!(CPU_PERIOD);
        }
        if let Some(shares) = self.cpu_shares {
            resources["cpu"]["shares"] = json!(shares);
        }
        match &self.seccomp {
            None => {}
            Some(None) => {
                let linux = config["linux"].as_object_mut();
                linux.and_then(|linux| linux.remove("seccomp"));
            }
            Some(Some(profile)) => {
                check_profile(profile)?;
                config["linux"]["seccomp"] = profile.clone();
            }
        }
        for (name, value) in &self.annotations {
            config["annotations"][name] = json!(value);
        }
        Ok(())
    }

    /// Changes an OCI process: the container's first, or an exec.
    pub(crate) fn apply_to_process(&self, process: &mut Value) -> Result<(), String> {
        for variable in &self.env {
            let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty())
            else {
                return Err(format!("{variable:?} is not NAME=VALUE"));
            };
            let all = array(&mut process["env"])?;
            let has_name = |it: &Value| {
                it.as_str().and_then(|it| it.split_once('=')).is_some_and(|it| it.0 == name)
            };
            match all.iter_mut().find(|it| has_name(it)) {
                Some(found) => *found = json!(variable),
                None => all.push(json!(variable)),
            }
        }
        if let Some(cwd) = &self.cwd {
            if !cwd.starts_with('/') {
                return Err(format!("the working directory is an absolute path, not {cwd:?}"));
            }
            process["cwd"] = json!(cwd);
        }
        if let Some(user) = &self.user {
            process["user"] = json!(user);
        }
        for limit in &self.ulimits {
            if limit.soft > limit.hard {
                return Err(format!("{}: the soft limit is above the hard one", limit.kind));
            }
            let all = array(&mut process["rlimits"])?;
            all.retain(|it| it["type"] != json!(limit.kind));
            all.push(json!(limit));
        }
        if let Some(no_new_privileges) = self.no_new_privileges {
            process["noNewPrivileges"] = json!(no_new_privileges);
        }
        self.change_capabilities(process)
    }

    fn change_capabilities(&self, process: &mut Value) -> Result<(), String> {
        let names = |names: &[String]| names.iter().map(|it| capability(it)).collect::<Vec<_>>();
        let (add, drop) = (names(&self.cap_add), names(&self.cap_drop));
        if add.is_empty() && drop.is_empty() {
            return Ok(());
        }
        let add = match add.iter().any(|name| name == "CAP_ALL") {
            true => grantable()?,
            false => add,
        };
        let drop_all = drop.iter().any(|name| name == "CAP_ALL");
        for set in ["bounding", "effective", "permitted"] {
            let all = array(&mut process["capabilities"][set])?;
            all.retain(|it| !drop_all && !drop.iter().any(|name| it == name));
            for name in &add {
                if !all.iter().any(|it| it == name) {
                    all.push(json!(name));
                }
            }
        }
        // Nothing may be inheritable or ambient that is not permitted.
        let permitted =
            process["capabilities"]["permitted"].as_array().cloned().unwrap_or_default();
        for set in ["inheritable", "ambient"] {
            if let Some(all) = process["capabilities"][set].as_array_mut() {
                all.retain(|it| permitted.contains(it));
            }
        }
        Ok(())
    }
}

impl Device {
    /// Adds the device node, and the right to use it, to the `linux` object of a configuration.
    fn add(&self, linux: &mut Value) -> Result<(), String> {
        let shown = self.source.display();
        let metadata =
            self.source.metadata().map_err(|error| format!("device {shown}: {error}"))?;
        let kind = match SFlag::from_bits_truncate(metadata.mode()) & SFlag::S_IFMT {
            SFlag::S_IFCHR => "c",
            SFlag::S_IFBLK => "b",
            _ => return Err(format!("{shown} is not a device")),
        };
        if !self.destination.is_absolute() {
            let shown = self.destination.display();
            return Err(format!("the path of a device is absolute, not {shown}"));
        }
        if self.access.is_empty() || self.access.chars().any(|c| !"rwm".contains(c)) {
            return Err(format!("{:?} is not an access to a device: letters of rwm", self.access));
        }
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));
        let nodes = array(&mut linux["devices"])?;
        nodes.retain(|it| it["path"] != json!(self.destination));
        nodes.push(json!({
            "path": self.destination,
            "type": kind,
            "major": major,
            "minor": minor,
            "fileMode": metadata.mode() & 0o777,
            "uid": metadata.uid(),
            "gid": metadata.gid(),
        }));
        array(&mut linux["resources"]["devices"])?.push(json!({
            "allow": true,
            "type": kind,
            "major": major,
            "minor": minor,
            "access": self.access,
        }));
        Ok(())
    }
}

/// All capabilities by number (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The capabilities that this process may grant: a runtime fails over any other.
fn grantable() -> Result<Vec<String>, String> {
    let failed = || "the capabilities of this process are not in /proc/self/status".to_owned();
    let status = std::fs::read_to_string("/proc/self/status").map_err(|_| failed())?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).ok_or_else(failed)?;
    let set = u64::from_str_radix(set.trim(), 16).map_err(|_| failed())?;
    let named = CAPABILITIES.iter().zip(0..).filter(|(_, number)| set >> number & 1 == 1);
    Ok(named.map(|(name, _)| format!("CAP_{name}")).collect())
}

/// The longest argument or variable that execve(2) takes, in bytes: MAX_ARG_STRLEN, less the zero at its end.
const LONGEST: usize = 128 * 1024 - 1;

/// Refuses arguments and variables that the kernel would refuse, after everything was prepared and with an
/// error that names none of them.
pub(crate) fn check_process(process: &Value) -> Result<(), String> {
    for (what, list) in [("argument", &process["args"]), ("environment variable", &process["env"])]
    {
        let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        for text in texts {
            let beginning: String = text.chars().take(40).collect();
            if text.len() > LONGEST {
                let length = text.len();
                return Err(format!(
                    "the {what} {beginning:?}… has {length} bytes, and the kernel takes {LONGEST} each"
                ));
            }
            if text.contains('\0') {
                return Err(format!("the {what} {beginning:?} has a zero byte in it"));
            }
        }
    }
    Ok(())
}

/// Tells null, which asks for no profile, from a field that is not there.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Value>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Refuses what is no profile in the OCI form: a runtime would take it for one without rules.
fn check_profile(profile: &Value) -> Result<(), String> {
    if !profile["archMap"].is_null() {
        return Err("the seccomp profile is in the form of docker and podman; in the OCI form it has \
                    `architectures` instead of `archMap`, and rules without `includes` and `excludes`"
            .to_owned());
    }
    if !profile["defaultAction"].is_string() {
        return Err("the seccomp profile has no defaultAction".to_owned());
    }
    Ok(())
}

/// The name of a capability as the specification has it, from `net_admin` or `CAP_NET_ADMIN`.
fn capability(name: &str) -> String {
    let name = name.to_ascii_uppercase();
    if name.starts_with("CAP_") { name } else { format!("CAP_{name}") }
}

/// A list in a configuration, which is made if it is missing.
fn array(value: &mut Value) -> Result<&mut Vec<Value>, String> {
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| "a list of the configuration is none".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "root": { "path": "rootfs" },
            "hostname": "before",
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "process": {
                "args": ["sh"],
                "cwd": "/",
                "env": ["PATH=/bin", "TERM=xterm"],
                "user": { "uid": 0, "gid": 0 },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 2 }],
                "capabilities": {
                    "bounding": ["CAP_KILL", "CAP_CHOWN"],
                    "effective": ["CAP_KILL", "CAP_CHOWN"],
                    "permitted": ["CAP_KILL", "CAP_CHOWN"],
                    "inheritable": ["CAP_KILL"],
                    "ambient": ["CAP_KILL"],
                },
            },
            "linux": { "namespaces": [{ "type": "uts" }], "resources": { "pids": { "limit": 9 } } },
        })
    }

    #[test]
    fn what_is_not_asked_for_stays_as_it_is() {
        let mut config = base();
        assert_eq!(Config::default().apply(&mut config), Ok(()));
        assert_eq!(config, base());
    }

    #[test]
    fn each_change_is_made_in_its_place() {
        let mut config = base();
        let changes = Config {
            env: vec!["PATH=/usr/bin".into(), "LANG=C".into(), "EMPTY=".into()],
            cwd: Some("/srv".into()),
            user: Some(User { uid: 7, gid: 8, additional_gids: vec![9] }),
            hostname: Some("web".into()),
            mounts: vec![Mount {
                destination: "/proc".into(),
                kind: "none".into(),
                source: "/tmp".into(),
                options: vec!["rbind".into()],
            }],
            network: Some(Network::None),
            read_only: Some(true),
            memory_limit: Some(1 << 20),
            pids_limit: Some(5),
            cpu_limit: Some(1500),
            ulimits: vec![Ulimit { kind: "RLIMIT_NOFILE".into(), soft: 3, hard: 4 }],
            seccomp: Some(Some(json!({ "defaultAction": "SCMP_ACT_ALLOW" }))),
            cap_add: vec!["net_admin".into(), "CAP_KILL".into()],
            cap_drop: vec!["chown".into()],
            no_new_privileges: Some(false),
            annotations: BTreeMap::from([("a.b/c".to_owned(), "d".to_owned())]),
            cpu_shares: Some(512),
            devices: vec![Device {
                source: "/dev/null".into(),
                destination: "/dev/x".into(),
                access: "rw".into(),
            }],
            user_name: None,
        };
        assert_eq!(changes.apply(&mut config), Ok(()));
        let process = &config["process"];
        assert_eq!(process["env"], json!(["PATH=/usr/bin", "TERM=xterm", "LANG=C", "EMPTY="]));
        assert_eq!(process["cwd"], "/srv");
        assert_eq!(process["user"], json!({ "uid": 7, "gid": 8, "additionalGids": [9] }));
        assert_eq!(process["rlimits"], json!([{ "type": "RLIMIT_NOFILE", "soft": 3, "hard": 4 }]));
        assert_eq!(process["noNewPrivileges"], false);
        for set in ["bounding", "effective", "permitted"] {
            assert_eq!(process["capabilities"][set], json!(["CAP_KILL", "CAP_NET_ADMIN"]), "{set}");
        }
        assert_eq!(config["hostname"], "web");
        let own = json!([{ "type": "uts" }, { "type": "network" }]);
        assert_eq!(config["linux"]["namespaces"], own);
        let host = Config { network: Some(Network::Host), ..Config::default() };
        assert_eq!(host.apply(&mut config), Ok(()));
        assert_eq!(config["linux"]["namespaces"], json!([{ "type": "uts" }]));
        assert_eq!(config["root"]["readonly"], true);
        let mount = json!({ "destination": "/proc", "type": "none", "source": "/tmp", "options": ["rbind"] });
        assert_eq!(config["mounts"], json!([mount]));
        let resources = json!({
            "memory": { "limit": 1 << 20 },
            "pids": { "limit": 5 },
            "cpu": { "quota": 150_000, "period": 100_000, "shares": 512 },
            "devices": [{ "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" }],
        });
        assert_eq!(config["linux"]["resources"], resources);
        assert_eq!(config["annotations"], json!({ "a.b/c": "d" }));
        let node = &config["linux"]["devices"][0];
        assert_eq!((&node["path"], &node["major"]), (&json!("/dev/x"), &json!(1)));
    }

    #[test]
    fn all_capabilities_are_those_that_this_process_has() {
        let mut config = base();
        let changes = Config { cap_add: vec!["ALL".into()], ..Config::default() };
        assert_eq!(changes.apply(&mut config), Ok(()));
        let permitted = config["process"]["capabilities"]["permitted"].as_array().unwrap();
        for name in grantable().unwrap() {
            assert!(permitted.contains(&json!(name)), "{name}");
        }
        assert!(!permitted.contains(&json!("CAP_ALL")));
    }

    #[test]
    fn all_capabilities_can_be_dropped_and_nothing_stays_inheritable() {
        let mut config = base();
        let changes = Config { cap_drop: vec!["ALL".into()], ..Config::default() };
        assert_eq!(changes.apply(&mut config), Ok(()));
        for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
            assert_eq!(config["process"]["capabilities"][set], json!([]), "{set}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused_by_its_name() {
        let of = |argument: String| check_process(&json!({ "args": ["sh", argument] }));
        assert_eq!(of("x".repeat(LONGEST)), Ok(()));
        let error = of("x".repeat(LONGEST + 1)).unwrap_err();
        assert!(error.contains("argument \"xxx") && error.contains("131072 bytes"), "{error}");
        assert!(of("a\0b".to_owned()).unwrap_err().contains("zero byte"));
        let env = json!({ "args": ["sh"], "env": ["A=b\0"] });
        assert!(check_process(&env).unwrap_err().contains("environment"));
    }

    #[test]
    fn what_no_container_can_have_is_refused_with_a_reason() {
        let refused = |changes: Config| changes.apply(&mut base()).unwrap_err();
        let nothing = Config::default;
        assert!(refused(Config { env: vec!["NOVALUE".into()], ..nothing() }).contains("NOVALUE"));
        assert!(refused(Config { env: vec!["=x".into()], ..nothing() }).contains("NAME=VALUE"));
        assert!(refused(Config { cwd: Some("srv".into()), ..nothing() }).contains("absolute"));
        assert!(
            refused(Config { hostname: Some(String::new()), ..nothing() }).contains("host name")
        );
        assert!(refused(Config { cpu_limit: Some(9), ..nothing() }).contains("0.01"));
        let device = |source: &str, access: &str| {
            let (source, destination) = (source.into(), "/dev/x".into());
            Config {
                devices: vec![Device { source, destination, access: access.to_owned() }],
                ..nothing()
            }
        };
        assert!(refused(device("/etc/passwd", "rw")).contains("not a device"));
        assert!(refused(device("/no/such", "rw")).contains("/no/such"));
        assert!(refused(device("/dev/null", "x")).contains("rwm"));
        let namespace = Network::Namespace("/no/such".into());
        assert!(refused(Config { network: Some(namespace), ..nothing() }).contains("/no/such"));
        let ulimits = vec![Ulimit { kind: "RLIMIT_CORE".into(), soft: 2, hard: 1 }];
        assert!(refused(Config { ulimits, ..nothing() }).contains("RLIMIT_CORE"));
        let mounts = vec![Mount {
            destination: "x".into(),
            kind: "none".into(),
            source: "/".into(),
            options: vec![],
        }];
        assert!(refused(Config { mounts, ..nothing() }).contains("absolute"));
        let mut shared = base();
        shared["linux"]["namespaces"] = json!([]);
        let hostname = Config { hostname: Some("x".into()), ..nothing() };
        assert!(hostname.apply(&mut shared).unwrap_err().contains("uts"));
    }
}
