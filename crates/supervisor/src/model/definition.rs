//! Options as JSON: a request to the daemon, or a definition that is stored.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::{ContainerId, GroupName, Incarnation, Logging, OrphanPolicy, ProcessId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::config::Config;
use crate::model::options::{ContainerOptions, ExecOptions, Source, Stdin, Stdio, TerminalSize};

/// [`ContainerOptions`] as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ContainerDefinition {
    /// The id; twelve random hexadecimal digits if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<ContainerId>,
    /// Either this or `rootfs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<PathBuf>,
    /// The root file system, with a configuration that Holdfast makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<Rootfs>,
    /// The command, in place of the bundle's.
    args: Vec<String>,
    /// Changes of the OCI configuration.
    config: Config,
    /// Data that is stored with the container.
    labels: BTreeMap<String, String>,
    /// The OCI runtime, by name or path.
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<String>,
    /// Global options of the OCI runtime.
    runtime_args: Vec<String>,
    /// Whether the runtime does without pivot_root(2).
    no_pivot: bool,
    /// Whether the container keeps the session keyring of its creator.
    no_new_keyring: bool,
    /// How long the start may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// The signal that `stop` sends first.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<i32>,
    /// The time after which `stop` kills, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_grace_ms: Option<u64>,
    /// Only together with a directory as `rootfs`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    overlay: bool,
    /// The standard streams.
    stdio: Stdio,
    /// The checkpoint from which the container is restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<PathBuf>,
    /// What happens to its processes when their shim dies.
    on_orphan: OrphanPolicy,
    /// The group whose one shim its processes share.
    #[serde(skip_serializing_if = "Option::is_none")]
    shim_group: Option<GroupName>,
    /// Whether it is deleted after its exit.
    remove: bool,
    /// How long the deletion waits for a client that reads the output, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_ms: Option<u64>,
    /// The incarnation, if the caller has chosen one.
    #[serde(skip_serializing_if = "Option::is_none")]
    incarnation: Option<Incarnation>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
enum Rootfs {
    /// The host's own programs, read-only.
    Host,
    /// A directory.
    Dir(PathBuf),
}

/// [`ExecOptions`] as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ExecDefinition {
    /// The id; twelve random hexadecimal digits if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<ProcessId>,
    /// The command.
    args: Vec<String>,
    /// The `process` of the OCI runtime specification, in place of the init's.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Map<String, Value>>,
    /// Changes of the process; only what concerns a process.
    config: Config,
    /// How long the start may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    /// The standard streams.
    stdio: Stdio,
    /// Whether it is deleted after its exit.
    remove: bool,
    /// How long the deletion waits for a client that reads the output, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    hold_ms: Option<u64>,
}

/// [`Stdio`] as JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct StdioDefinition {
    /// Whether Holdfast creates a FIFO for the input.
    interactive: bool,
    /// The size of its terminal, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    terminal: Option<TerminalSize>,
    /// Whether the input ends with its first writer; only together with `interactive`.
    stdin_once: bool,
    /// The path of a FIFO that the caller has created for the input; not together with `interactive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdin: Option<PathBuf>,
    /// The path of a FIFO for the standard output, in place of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    stdout: Option<PathBuf>,
    /// The path of a FIFO for the standard error, in place of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<PathBuf>,
    /// Where the output is logged.
    log: Logging,
}

impl TryFrom<ContainerDefinition> for ContainerOptions {
    type Error = &'static str;

    fn try_from(definition: ContainerDefinition) -> Result<Self, &'static str> {
        let source = match (definition.bundle, definition.rootfs) {
            (Some(bundle), None) => Source::Bundle(bundle),
            (None, Some(Rootfs::Dir(rootfs))) if definition.overlay => Source::Overlay(rootfs),
            _ if definition.overlay => return Err("an overlay needs a directory as its rootfs"),
            (None, Some(Rootfs::Dir(rootfs))) => Source::Rootfs(rootfs),
            (None, Some(Rootfs::Host)) => Source::Host,
            _ => return Err("a container needs either a bundle or a rootfs"),
        };
        Ok(Self {
            source,
            id: definition.id,
            args: definition.args,
            config: definition.config,
            labels: definition.labels,
            runtime: definition.runtime,
            runtime_args: definition.runtime_args,
            no_pivot_root: definition.no_pivot,
            no_new_keyring: definition.no_new_keyring,
            start_timeout: definition.timeout_ms.map(Duration::from_millis),
            stop_signal: definition.stop_signal,
            stop_grace: definition.stop_grace_ms.map(Duration::from_millis),
            stdio: definition.stdio,
            checkpoint: definition.checkpoint,
            on_orphan: definition.on_orphan,
            shim_group: definition.shim_group,
            auto_remove: definition.remove,
            hold: Duration::from_millis(definition.hold_ms.unwrap_or_default()),
            incarnation: definition.incarnation,
        })
    }
}

impl From<ContainerOptions> for ContainerDefinition {
    fn from(options: ContainerOptions) -> Self {
        let overlay = matches!(options.source, Source::Overlay(_));
        let (bundle, rootfs) = match options.source {
            Source::Bundle(bundle) => (Some(bundle), None),
            Source::Rootfs(rootfs) | Source::Overlay(rootfs) => (None, Some(Rootfs::Dir(rootfs))),
            Source::Host => (None, Some(Rootfs::Host)),
        };
        Self {
            id: options.id,
            bundle,
            rootfs,
            args: options.args,
            config: options.config,
            labels: options.labels,
            runtime: options.runtime,
            runtime_args: options.runtime_args,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            timeout_ms: options.start_timeout.map(millis),
            stop_signal: options.stop_signal,
            stop_grace_ms: options.stop_grace.map(millis),
            overlay,
            stdio: options.stdio,
            checkpoint: options.checkpoint,
            on_orphan: options.on_orphan,
            shim_group: options.shim_group,
            remove: options.auto_remove,
            hold_ms: Some(millis(options.hold)).filter(|ms| *ms > 0),
            incarnation: options.incarnation,
        }
    }
}

impl From<ExecDefinition> for ExecOptions {
    fn from(definition: ExecDefinition) -> Self {
        let ExecDefinition { id, args, process, config, timeout_ms, stdio, remove, hold_ms } =
            definition;
        let start_timeout = timeout_ms.map(Duration::from_millis);
        let hold = Duration::from_millis(hold_ms.unwrap_or_default());
        Self { id, args, process, config, start_timeout, stdio, auto_remove: remove, hold }
    }
}

impl From<ExecOptions> for ExecDefinition {
    fn from(options: ExecOptions) -> Self {
        let ExecOptions { id, args, process, config, start_timeout, stdio, auto_remove, hold } =
            options;
        let timeout_ms = start_timeout.map(millis);
        let hold_ms = Some(millis(hold)).filter(|ms| *ms > 0);
        Self { id, args, process, config, timeout_ms, stdio, remove: auto_remove, hold_ms }
    }
}

impl TryFrom<StdioDefinition> for Stdio {
    type Error = &'static str;

    fn try_from(definition: StdioDefinition) -> Result<Self, &'static str> {
        let StdioDefinition { interactive, stdin_once, terminal, stdin, stdout, stderr, log } =
            definition;
        let stdin = match (interactive, stdin) {
            (false, _) if stdin_once => {
                return Err("an input that ends with its first writer needs to be interactive");
            }
            (false, None) => Stdin::Null,
            (true, None) if stdin_once => Stdin::Once,
            (true, None) => Stdin::Pipe,
            (false, Some(path)) => Stdin::Fifo(path),
            (true, Some(_)) => {
                return Err("a process has either an interactive input or a FIFO of the caller's");
            }
        };
        Ok(Self { stdin, stdout, stderr, terminal, log })
    }
}

impl From<Stdio> for StdioDefinition {
    fn from(stdio: Stdio) -> Self {
        let Stdio { stdin, stdout, stderr, terminal, log } = stdio;
        let (interactive, stdin_once) = (stdin.is_own(), stdin == Stdin::Once);
        let stdin = match stdin {
            Stdin::Fifo(path) => Some(path),
            Stdin::Null | Stdin::Pipe | Stdin::Once => None,
        };
        Self { interactive, stdin_once, terminal, stdin, stdout, stderr, log }
    }
}

fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Network;

    #[test]
    fn options_survive_being_stored() {
        let all = ContainerOptions::bundle("/b")
            .id("web".parse().unwrap())
            .args(["sh"])
            .env("A=b")
            .cwd("/srv")
            .hostname("h")
            .bind("/data", "/data")
            .bind_read_only("/etc", "/etc")
            .tmpfs("/tmp", 1 << 20)
            .read_only(false)
            .network(Network::Host)
            .memory_limit(1)
            .pids_limit(2)
            .cpu_limit(500)
            .cpu_shares(512)
            .user_name("nobody:tty")
            .device("/dev/null", "/dev/x", "rw")
            .stop_signal(1)
            .stop_grace(Duration::from_secs(3))
            .ulimit("RLIMIT_NOFILE", 1, 2)
            .cap_add("NET_ADMIN")
            .cap_drop("ALL")
            .no_new_privileges(true)
            .annotation("a", "b")
            .label("c", "d")
            .runtime("crun")
            .runtime_args(["--debug"])
            .start_timeout(Duration::from_millis(1500))
            .stdio(Stdio::new().stdin(Stdin::Pipe).terminal(TerminalSize { width: 1, height: 2 }))
            .on_orphan(OrphanPolicy::Kill)
            .auto_remove()
            .hold(Duration::from_secs(3))
            .incarnation(Incarnation::random().unwrap());
        let namespace = ContainerOptions::rootfs("/r").network(Network::Namespace("/n".into()));
        let overlay = ContainerOptions::overlay("/r");
        for options in [all, ContainerOptions::host_rootfs(), namespace, overlay] {
            let text = serde_json::to_string(&options).unwrap();
            assert_eq!(serde_json::from_str::<ContainerOptions>(&text).unwrap(), options, "{text}");
        }
        let once = Stdio::new().stdin(Stdin::Once);
        let exec = ExecOptions::new(["sh"]).env("A=b").cwd("/").cap_drop("ALL").auto_remove();
        let exec = exec.stdio(once).hold(Duration::from_millis(7));
        let text = serde_json::to_string(&exec).unwrap();
        assert_eq!(serde_json::from_str::<ExecOptions>(&text).unwrap(), exec, "{text}");
    }

    #[test]
    fn a_definition_that_makes_no_sense_is_refused() {
        for (text, reason) in [
            ("{}", "either a bundle or a rootfs"),
            (r#"{"bundle":"/b","rootfs":"host"}"#, "either a bundle or a rootfs"),
            (r#"{"rootfs":"host","overlay":true}"#, "an overlay needs a directory"),
            (r#"{"bundle":"/b","bundel":1}"#, "bundel"),
            (r#"{"bundle":"/b","config":{"evn":[]}}"#, "evn"),
            (
                r#"{"bundle":"/b","stdio":{"interactive":true,"stdin":"/f"}}"#,
                "either an interactive",
            ),
            (r#"{"bundle":"/b","stdio":{"stdinOnce":true}}"#, "needs to be interactive"),
        ] {
            let error = serde_json::from_str::<ContainerOptions>(text).unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
        }
    }
}
