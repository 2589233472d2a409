//! What of a configuration the embedded runtime can't apply, refused by the name of the field.
//!
//! libcontainer ignores some fields, and words the failure of others without a name. The specification has
//! a runtime generate an error for what it can't do.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::options;

/// The moments of a container's life that have hooks.
const MOMENTS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Refuses what can't be applied, and takes out of the configuration what means nothing.
pub(crate) fn config(config: &mut Value, unified: bool) -> anyhow::Result<()> {
    match config["ociVersion"].as_str() {
        Some(version) if version.starts_with("1.") => {}
        Some(version) => bail!("ociVersion {version:?}: only versions 1.x are supported"),
        None => bail!("ociVersion is missing"),
    }
    for platform in ["windows", "solaris", "vm", "zos", "freebsd"] {
        if is_set(&config[platform]) {
            bail!("{platform}: it is for another platform than Linux");
        }
    }
    process(&mut config["process"]).context("process")?;
    for (number, mount) in config["mounts"].as_array_mut().into_iter().flatten().enumerate() {
        self::mount(mount, number)?;
    }
    hooks(&config["hooks"])?;
    linux(&mut config["linux"]).context("linux")?;
    resources(&config["linux"]["resources"], unified).context("linux.resources")
}

/// Whether a field says something.
pub(crate) fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Object(all) => !all.is_empty(),
        _ => true,
    }
}

/// Refuses what can't be applied to a process, the first one or a further one.
pub(crate) fn process(process: &mut Value) -> anyhow::Result<()> {
    if !process.is_object() {
        return Ok(());
    }
    if !process["cwd"].as_str().is_some_and(|cwd| cwd.starts_with('/')) {
        bail!("cwd must be an absolute path");
    }
    for entry in process["env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if entry.find('=').is_none_or(|length| length == 0) || entry.contains('\0') {
            bail!("env: {entry:?} is not of the form NAME=VALUE");
        }
    }
    let args = process["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(arg) = args.into_iter().find(|arg| arg.contains('\0')) {
        bail!("args: {arg:?} contains a null byte");
    }
    for (field, name) in [("commandLine", "commandLine"), ("user", "username")] {
        if is_set(&process[field]) && (field == name || is_set(&process[field][name])) {
            bail!("{name}: it is for Windows");
        }
    }
    if process["user"]["umask"].as_u64().is_some_and(|umask| umask > 0o7777) {
        bail!("user.umask: {} is no mask of permissions", process["user"]["umask"]);
    }
    if process["oomScoreAdj"].as_i64().is_some_and(|it| !(-1000..=1000).contains(&it)) {
        bail!("oomScoreAdj: {} is not from -1000 to 1000", process["oomScoreAdj"]);
    }
    if process["ioPriority"]["priority"].as_i64().is_some_and(|it| !(0..=7).contains(&it)) {
        bail!("ioPriority.priority: {} is not from 0 to 7", process["ioPriority"]["priority"]);
    }
    if is_set(&process["selinuxLabel"]) {
        bail!("selinuxLabel: the embedded runtime sets no SELinux labels; use runc or crun");
    }
    if is_set(&process["apparmorProfile"]) {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if !enabled.is_ok_and(|text| text.trim() == "Y") {
            bail!("apparmorProfile: AppArmor is not enabled in this kernel");
        }
    } else if let Some(process) = process.as_object_mut() {
        process.remove("apparmorProfile");
    }
    rlimits(&process["rlimits"]).context("rlimits")
}

fn rlimits(all: &Value) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for limit in all.as_array().into_iter().flatten() {
        let name = limit["type"].as_str().unwrap_or_default();
        let (soft, hard) = (limit["soft"].as_u64(), limit["hard"].as_u64());
        if soft.unwrap_or(0) > hard.unwrap_or(0) {
            bail!("{name}: the soft limit is above the hard one");
        }
        if !seen.insert(name) {
            bail!("{name}: it is there twice");
        }
    }
    Ok(())
}

fn mount(mount: &mut Value, number: usize) -> anyhow::Result<()> {
    let Some(to) = mount["destination"].as_str().map(str::to_owned) else {
        bail!("mounts[{number}]: destination is missing");
    };
    let bind = options::is_bind(mount);
    if !is_set(&mount["source"]) {
        if bind {
            bail!("mount {to}: source is missing");
        }
        // It is a name and no more, but libcontainer wants one.
        mount["source"] = match &mount["type"] {
            kind if is_set(kind) => kind.clone(),
            _ => json!("none"),
        };
    }
    if !bind && !is_set(&mount["type"]) {
        bail!("mount {to}: type is missing, and it is no bind mount");
    }
    Ok(())
}

fn hooks(hooks: &Value) -> anyhow::Result<()> {
    for moment in MOMENTS {
        for (number, hook) in hooks[moment].as_array().into_iter().flatten().enumerate() {
            let path = hook["path"].as_str().unwrap_or_default();
            if !path.starts_with('/') {
                bail!("hooks.{moment}[{number}].path: {path:?} is not absolute");
            }
            if hook["timeout"].as_i64().is_some_and(|timeout| timeout <= 0) {
                bail!("hooks.{moment}[{number}].timeout: {} is not above 0", hook["timeout"]);
            }
        }
    }
    Ok(())
}

fn linux(linux: &mut Value) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for namespace in linux["namespaces"].as_array_mut().into_iter().flatten() {
        let kind = namespace["type"].as_str().unwrap_or_default().to_owned();
        match namespace["path"].as_str() {
            // As runc does: a new one.
            Some("") => namespace["path"] = Value::Null,
            Some(path) => {
                fs::metadata(path).with_context(|| format!("namespaces: {kind}: path {path}"))?;
            }
            None => {}
        }
        if !seen.insert(kind.clone()) {
            bail!("namespaces: {kind}: it is there twice");
        }
    }
    for (number, device) in linux["devices"].as_array().into_iter().flatten().enumerate() {
        if device["type"] == "a" {
            bail!("devices[{number}].type: \"a\" stands for all devices, not for one");
        }
    }
    if is_set(&linux["mountLabel"]) && !Path::new("/sys/fs/selinux").exists() {
        bail!("mountLabel: SELinux is not enabled in this kernel");
    }
    if is_set(&linux["personality"]["flags"]) {
        bail!("personality.flags: none are known to the specification, and none are set");
    }
    if linux["intelRdt"].is_object() {
        intel_rdt(&linux["intelRdt"]).context("intelRdt")?;
    }
    let devices = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let there = |name: &str| devices.lines().any(|line| line.trim_start().starts_with(name));
    for name in linux["netDevices"].as_object().into_iter().flatten().map(|(name, _)| name) {
        if !there(&format!("{name}:")) {
            bail!("netDevices: there is no {name} in the caller's network namespace");
        }
    }
    Ok(())
}

fn intel_rdt(rdt: &Value) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("resctrl")) {
        bail!("no resctrl file system is mounted");
    }
    for field in ["enableCMT", "enableMBM"] {
        if rdt[field] == true {
            bail!("{field}: the embedded runtime knows enableMonitoring only");
        }
    }
    Ok(())
}

/// Refuses resources that libcgroups does not apply, when a container is made and at an update.
pub(crate) fn resources(resources: &Value, unified: bool) -> anyhow::Result<()> {
    let version_1 = "it is for cgroup version 1, and this machine has version 2";
    let version_2 = "it is for cgroup version 2, and this machine has version 1";
    let refused: &[(&str, &str)] = if unified {
        &[
            ("/memory/disableOOMKiller", version_1),
            ("/memory/kernel", version_1),
            ("/memory/kernelTCP", version_1),
            ("/memory/swappiness", version_1),
            ("/network/classID", version_1),
            ("/network/priorities", version_1),
            ("/cpu/realtimeRuntime", version_1),
            ("/cpu/realtimePeriod", version_1),
            ("/blockIO/leafWeight", version_1),
        ]
    } else {
        &[
            ("/unified", version_2),
            ("/blockIO/weightDevice", "the embedded runtime sets it on cgroup version 2 alone"),
            ("/blockIO/leafWeight", "Linux has none since 5.0"),
        ]
    };
    let nobody = [("/rdma", "the embedded runtime sets no limits of RDMA; use runc or crun")];
    for (field, why) in refused.iter().chain(&nobody) {
        let value = resources.pointer(field).unwrap_or(&Value::Null);
        if is_set(value) && *value != false && *value != 0 {
            bail!("{}: {why}", field[1..].replace('/', "."));
        }
    }
    if resources["memory"]["useHierarchy"] == false {
        bail!("memory.useHierarchy: false: Linux always counts a cgroup's children since 5.11");
    }
    if resources["cpu"]["shares"].as_u64() == Some(1) && !unified {
        bail!("cpu.shares: 1: the least is 2");
    }
    for device in resources["blockIO"]["weightDevice"].as_array().into_iter().flatten() {
        if is_set(&device["leafWeight"]) {
            bail!("blockIO.weightDevice: leafWeight: Linux has none since 5.0");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": { "cwd": "/", "args": ["a"], "env": ["A=1"] },
            "linux": {},
        })
    }

    #[track_caller]
    fn refused(change: impl Fn(&mut Value), unified: bool, start: &str) {
        let mut json = minimal();
        change(&mut json);
        let error = format!("{:#}", config(&mut json, unified).expect_err(start));
        assert!(error.starts_with(start), "{error}");
    }

    #[test]
    fn an_ordinary_configuration_passes() {
        let mut json = minimal();
        json["process"]["apparmorProfile"] = json!("");
        json["linux"]["namespaces"] = json!([{ "type": "pid", "path": "" }, { "type": "mount" }]);
        json["mounts"] = json!([{ "destination": "/a", "type": "tmpfs" }]);
        json["linux"]["resources"] = json!({
            "memory": { "disableOOMKiller": false, "swappiness": 0, "limit": 5 },
            "network": { "priorities": [] }, "unified": {}, "rdma": {},
        });
        for unified in [false, true] {
            config(&mut json, unified).expect("nothing is wrong with it");
        }
        assert_eq!(json["mounts"][0]["source"], "tmpfs");
        assert!(json["linux"]["namespaces"][0]["path"].is_null());
        assert!(json["process"].get("apparmorProfile").is_none());
    }

    #[test]
    fn the_field_that_can_not_be_applied_is_named() {
        let set = |pointer: &'static str, value: Value| {
            move |json: &mut Value| {
                let (above, name) = pointer.rsplit_once('/').expect("a pointer");
                json.pointer_mut(above).expect("it is there")[name] = value.clone();
            }
        };
        for (pointer, value, start) in [
            ("/ociVersion", json!("2.0"), "ociVersion"),
            ("/process/cwd", json!("a"), "process: cwd"),
            ("/process/env", json!(["A"]), "process: env: \"A\""),
            ("/process/env", json!(["=x"]), "process: env: \"=x\""),
            ("/process/args", json!(["a\0b"]), "process: args"),
            ("/process/user", json!({ "umask": 99_999 }), "process: user.umask"),
            ("/process/oomScoreAdj", json!(5000), "process: oomScoreAdj"),
            ("/process/ioPriority", json!({ "priority": 9 }), "process: ioPriority.priority"),
            ("/process/selinuxLabel", json!("a:b"), "process: selinuxLabel"),
            (
                "/linux/namespaces",
                json!([{ "type": "pid" }, { "type": "pid" }]),
                "linux: namespaces: pid",
            ),
            (
                "/linux/namespaces",
                json!([{ "type": "pid", "path": "/no/such" }]),
                "linux: namespaces: pid: path /no/such",
            ),
            ("/linux/personality", json!({ "flags": ["A"] }), "linux: personality.flags"),
            ("/linux/netDevices", json!({ "nope0": {} }), "linux: netDevices: there is no nope0"),
            ("/linux/devices", json!([{ "type": "a" }]), "linux: devices[0].type"),
            ("/mounts", json!([{ "type": "tmpfs" }]), "mounts[0]: destination"),
            ("/mounts", json!([{ "destination": "/a" }]), "mount /a: type"),
            ("/mounts", json!([{ "destination": "/a", "type": "bind" }]), "mount /a: source"),
            ("/hooks", json!({ "poststop": [{ "path": "a" }] }), "hooks.poststop[0].path"),
            (
                "/hooks",
                json!({ "prestart": [{ "path": "/a", "timeout": 0 }] }),
                "hooks.prestart[0].timeout",
            ),
            ("/windows", json!({ "a": 1 }), "windows"),
        ] {
            refused(set(pointer, value), false, start);
        }
        let limit = |soft: u64| json!({ "type": "RLIMIT_CORE", "soft": soft, "hard": 1 });
        let start = "process: rlimits: RLIMIT_CORE: ";
        refused(set("/process/rlimits", json!([limit(2)])), false, start);
        refused(set("/process/rlimits", json!([limit(1), limit(0)])), false, start);
    }

    #[test]
    fn resources_of_the_other_version_of_cgroups_are_refused() {
        for (resources, unified, field) in [
            (json!({ "unified": { "memory.high": "1" } }), false, "unified"),
            (json!({ "memory": { "disableOOMKiller": true } }), true, "memory.disableOOMKiller"),
            (json!({ "memory": { "swappiness": 60 } }), true, "memory.swappiness"),
            (json!({ "network": { "classID": 1 } }), true, "network.classID"),
            (json!({ "rdma": { "a": {} } }), true, "rdma"),
            (json!({ "blockIO": { "weightDevice": [{}] } }), false, "blockIO.weightDevice"),
            (json!({ "memory": { "useHierarchy": false } }), false, "memory.useHierarchy"),
            (json!({ "cpu": { "shares": 1 } }), false, "cpu.shares"),
        ] {
            let error = super::resources(&resources, unified).expect_err(field).to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }
}
