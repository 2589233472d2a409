//! `process.json`: what a process is, in the seed's form.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use thiserror::Error;

use crate::announce::StdioFds;
use crate::{GroupName, Incarnation, Logging, Timestamp};

/// The version of the `holdfast` object that this build writes. A newer one is refused by name and
/// left alone; all older ones are read.
pub const SCHEMA: u32 = 1;

/// The seed's `processState`, the `holdfast` object, and every field that we do not know, which
/// survives a rewrite. Unknown fields include the OCI process itself: the seed flattened it into
/// the same object, in the form of 2016 (capabilities were a list then), and we keep what is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessRecord {
    /// Whether this is an exec into a running container.
    pub exec: bool,
    /// The host's uid of the container's root: the owner of its stdio.
    #[serde(rename = "rootUID")]
    pub root_uid: u32,
    /// The host's gid of the container's root.
    #[serde(rename = "rootGID")]
    pub root_gid: u32,
    /// The checkpoint it is restored from, or empty.
    pub checkpoint: String,
    /// Whether the runtime is told not to use `pivot_root(2)`.
    pub no_pivot_root: bool,
    /// Further arguments for the runtime, before its command.
    #[serde(deserialize_with = "null_is_default")]
    pub runtime_args: Vec<String>,
    /// The directory of this process.
    pub root: String,
    /// Field 22 of `/proc/PID/stat` as text; empty until it is known.
    pub start_time: String,
    /// A FIFO of the caller's, or empty.
    pub stdin: String,
    /// A FIFO of the caller's, or empty.
    pub stdout: String,
    /// A FIFO of the caller's, or empty.
    pub stderr: String,
    /// What the seed did not know; `None` in a file that the seed wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holdfast: Option<Policies>,
    /// The OCI process and all fields that this build does not know.
    #[serde(flatten)]
    pub oci: Map<String, Value>,
}

impl Default for ProcessRecord {
    fn default() -> Self {
        Self {
            exec: false,
            root_uid: 0,
            root_gid: 0,
            checkpoint: String::new(),
            no_pivot_root: false,
            runtime_args: Vec::new(),
            root: String::new(),
            start_time: String::new(),
            stdin: String::new(),
            stdout: String::new(),
            stderr: String::new(),
            holdfast: None,
            oci: Map::new(),
        }
    }
}

impl ProcessRecord {
    /// Returns the owner of the stdio of a process, as user and group ids of the host. It is the user
    /// of the process, so that the process may reopen `/dev/stdout`. The ids are those of a mapping in
    /// one range, as all tools make them.
    #[must_use]
    pub fn stdio_owner(&self) -> (u32, u32) {
        let user = self.oci.get("user");
        let id = |name: &str| {
            let id = user.and_then(|user| user[name].as_u64());
            id.and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
        };
        (self.root_uid.saturating_add(id("uid")), self.root_gid.saturating_add(id("gid")))
    }
}

/// Go writes a nil slice as null.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The `holdfast` object of a record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    /// Always [`SCHEMA`] in what this build writes.
    pub schema: u32,
    /// The boot in which the process was made.
    pub boot_id: String,
    /// When it was made.
    pub created: Timestamp,
    /// Which life of its container's name it belongs to; earlier builds wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// Which start within that, from 1.
    #[serde(default = "first_run", skip_serializing_if = "is_first_run")]
    pub run: u32,
    /// The labels of a container: data that the caller has stored with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How the runtime brings it to life.
    pub launch: Launch,
    /// The runtime's executable.
    pub runtime: PathBuf,
    /// The bundle; empty for an exec.
    pub bundle: PathBuf,
    /// Whether the runtime makes no session keyring: it gets `--no-new-keyring`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
    /// Whether its shim writes down that it is about to run the runtime
    /// ([`ProcessDir::note_shim`](crate::ProcessDir::note_shim)); that of an earlier build does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub marks_start: bool,
    /// Whether its input ends with the first writer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdin_once: bool,
    /// Where its output goes.
    pub log: Logging,
    /// What happens to it when its shim dies.
    pub on_orphan: OrphanPolicy,
    /// Whether it is deleted once it has exited.
    pub auto_remove: bool,
    /// How long its deletion after the exit waits for the client that reads its output, in
    /// milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hold_ms: u64,
    /// How long its start may take, in milliseconds.
    pub start_timeout_ms: u64,
    /// The signal by which it is stopped, if another one than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// After how much time SIGKILL follows then, in milliseconds, if another one than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_grace_ms: Option<u64>,
    /// Its handle in pidfs, as [`holdfast_sys::pidfs::Handle`] writes it: proof of identity on
    /// kernels that have those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfs: Option<String>,
    /// The shim that has it; `None` until there is a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim: Option<ShimRecord>,
    /// The group whose one shim has it; `None` if it has a shim of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim_group: Option<GroupName>,
    /// Fields of a later build.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn first_run() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_first_run(run: &u32) -> bool {
    *run == first_run()
}

/// Who the shim of a process is, and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShimRecord {
    /// Its pid.
    pub pid: i32,
    /// Field 22 of its `/proc/PID/stat`.
    pub start_time: String,
    /// The descriptors by which it reads the output of the process.
    #[serde(flatten)]
    pub stdio: StdioFds,
}

/// How the runtime brings a process to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// `create`: it waits for a start.
    Create,
    /// `run --detach`: made and started in one go.
    Run,
    /// `exec --detach`: a further process of a running container.
    Exec,
    /// `restore --detach`: from a checkpoint, as it was when that was made.
    Restore,
}

impl Launch {
    /// Whether the process runs as soon as the runtime is done, without a start of its own.
    #[must_use]
    pub fn starts_at_once(self) -> bool {
        self != Self::Create
    }
}

/// What happens to a process when its shim dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OrphanPolicy {
    /// It keeps running, and another shim takes it over.
    #[default]
    Adopt,
    /// It is killed, as by containerd's 2016 shim.
    Kill,
}

/// What a record of any version has.
#[derive(Deserialize)]
struct Newer {
    holdfast: Versioned,
}

#[derive(Deserialize)]
struct Versioned {
    schema: u64,
}

/// A record that can't be used.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It is not what it should be.
    #[error("not a process record: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The `holdfast` object stands under another name: without it the record would be taken for
    /// one of the seed's, and its container for another's.
    #[error("not a process record: the holdfast object stands under the name {0:?}")]
    Renamed(String),
    /// A later build wrote it.
    #[error(
        "written by a newer Holdfast (schema {found}, this one reads up to {SCHEMA}); left alone"
    )]
    NewerSchema {
        /// Its version.
        found: u64,
    },
}

impl ProcessRecord {
    /// Reads a record; the schema is looked at before anything else is believed.
    pub fn from_json(content: &[u8]) -> Result<Self, RecordError> {
        let read = serde_json::from_slice::<Self>(content);
        let schema = match &read {
            Ok(record) => record.holdfast.as_ref().map(|policies| u64::from(policies.schema)),
            // A newer one may be of any form in all else.
            Err(_) => serde_json::from_slice(content)
                .ok()
                .map(|Newer { holdfast: Versioned { schema } }| schema),
        };
        match schema {
            Some(found) if found > u64::from(SCHEMA) => Err(RecordError::NewerSchema { found }),
            _ => Self::sound(read?),
        }
    }

    fn sound(record: Self) -> Result<Self, RecordError> {
        let is_ours =
            |value: &Value| value.get("schema").is_some() && value.get("bootId").is_some();
        match record.oci.iter().find(|(_, value)| is_ours(value)) {
            Some((name, _)) if record.holdfast.is_none() => Err(RecordError::Renamed(name.clone())),
            _ => Ok(record),
        }
    }

    /// The file's content.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Strings, numbers and JSON values only: there is nothing in it that can't be written.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether nothing more than the seed's guesses are known about it.
    #[must_use]
    pub fn boot_id(&self) -> Option<&str> {
        self.holdfast.as_ref().map(|h| h.boot_id.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As the seed's `json.Encoder` wrote it, for a container process before its start.
    const SEED: &str = r#"{"terminal":false,"user":{"uid":0,"gid":0},"args":["sh"],"env":["PATH=/bin"],"cwd":"/","capabilities":["CAP_KILL"],"rlimits":[{"type":"RLIMIT_NOFILE","hard":1024,"soft":1024}],"noNewPrivileges":true,"exec":false,"rootUID":0,"rootGID":0,"checkpoint":"","noPivotRoot":false,"runtimeArgs":null,"root":"/run/x/init","startTime":"","stdin":"","stdout":"","stderr":""}"#;

    #[test]
    fn a_file_of_the_seed_loads_and_loses_nothing() {
        let record = ProcessRecord::from_json(SEED.as_bytes()).unwrap();
        assert_eq!(record.root, "/run/x/init");
        assert_eq!(record.holdfast, None);
        assert_eq!(record.oci["args"], serde_json::json!(["sh"]));
        let again: Value = serde_json::from_slice(&record.to_json()).unwrap();
        let mut before: Value = serde_json::from_str(SEED).unwrap();
        before["runtimeArgs"] = serde_json::json!([]);
        assert_eq!(again, before);
    }

    #[test]
    fn a_newer_schema_is_refused_by_its_number() {
        let error = ProcessRecord::from_json(br#"{"holdfast":{"schema":9,"odd":[]}}"#).unwrap_err();
        assert!(error.to_string().contains("schema 9"), "{error}");
    }

    #[test]
    fn a_record_of_ours_is_never_taken_for_one_of_the_seeds() {
        let content = br#"{"holdfasu":{"schema":1,"bootId":"b"}}"#;
        assert!(matches!(ProcessRecord::from_json(content), Err(RecordError::Renamed(_))));
    }

    proptest! {
        #[test]
        fn unknown_fields_survive_a_rewrite(
            name in "x[a-z]{1,8}",
            number in any::<i64>(),
            fraction in any::<f64>(),
        ) {
            let mut value: Value = serde_json::from_str(SEED).unwrap();
            value[&name] = serde_json::json!({ "deep": number, "fraction": fraction });
            let record = ProcessRecord::from_json(value.to_string().as_bytes()).unwrap();
            let again: Value = serde_json::from_slice(&record.to_json()).unwrap();
            prop_assert_eq!(&again[&name], &value[&name]);
        }

        #[test]
        fn no_content_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ProcessRecord::from_json(&content);
        }
    }

    /// Returns the record of a container that Holdfast created.
    fn ours(schema: u32) -> Value {
        let mut value: Value = serde_json::from_str(SEED).unwrap();
        value["holdfast"] = serde_json::json!({
            "schema": schema,
            "bootId": "b",
            "created": "2026-11-26T00:00:00.000000000Z",
            "launch": "create",
            "runtime": "/usr/sbin/runc",
            "bundle": "/b",
            "log": "cri",
            "onOrphan": "adopt",
            "autoRemove": false,
            "startTimeoutMs": 1,
        });
        value
    }

    fn read(value: &Value) -> Result<ProcessRecord, RecordError> {
        ProcessRecord::from_json(value.to_string().as_bytes())
    }

    #[test]
    fn a_schema_is_read_up_to_ours() {
        let record = read(&ours(SCHEMA)).unwrap();
        assert_eq!(record.boot_id(), Some("b"));
        assert_eq!(ProcessRecord::from_json(SEED.as_bytes()).unwrap().boot_id(), None);
        // A newer one is refused whether or not this build could make sense of it.
        let error = read(&ours(SCHEMA + 1)).unwrap_err();
        assert!(
            matches!(error, RecordError::NewerSchema { found } if found == u64::from(SCHEMA) + 1)
        );
    }

    #[test]
    fn a_field_that_only_looks_like_ours_is_kept() {
        let mut value = ours(SCHEMA);
        value["copy"] = value["holdfast"].clone();
        assert_eq!(read(&value).unwrap().oci["copy"], value["copy"]);
        for part in ["schema", "bootId"] {
            let mut value: Value = serde_json::from_str(SEED).unwrap();
            value["other"] = serde_json::json!({ part: 1 });
            assert_eq!(read(&value).unwrap().oci["other"], value["other"]);
        }
    }

    #[test]
    fn arguments_for_the_runtime_are_a_list_or_gos_null() {
        let mut value: Value = serde_json::from_str(SEED).unwrap();
        assert!(read(&value).unwrap().runtime_args.is_empty());
        value["runtimeArgs"] = serde_json::json!(["--debug", "--log"]);
        assert_eq!(read(&value).unwrap().runtime_args, ["--debug", "--log"]);
    }

    #[test]
    fn only_what_was_created_waits_for_a_start() {
        for (word, at_once) in [("create", false), ("run", true), ("exec", true), ("restore", true)]
        {
            let launch: Launch = serde_json::from_value(word.into()).unwrap();
            assert_eq!(launch.starts_at_once(), at_once, "{word}");
            assert_eq!(serde_json::to_value(launch).unwrap(), word);
        }
    }
}
