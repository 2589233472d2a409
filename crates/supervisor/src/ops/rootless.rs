//! The OCI configuration of a container whose supervisor is not run by root: a user namespace, and
//! nothing that takes root's rights on the host.

use serde_json::{Value, json};

use crate::os::rootless::{IdMapping, Rootless};

/// What `linux.resources` may say without a cgroup. Rules for devices are of no use in a user namespace, where
/// nobody can make a device: the container has those that are mounted for it.
const WITHOUT_CGROUP: &str = "devices";

/// Takes the settings out of a default configuration that only a cgroup gives.
pub(crate) fn without_cgroup(config: &mut Value) {
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
        linux.remove("resources");
    }
}

/// Changes a configuration such that it needs no root, or says why that is not possible.
pub(crate) fn adapt(config: &mut Value, rootless: &Rootless) -> Result<(), String> {
    if !config["linux"].is_object() {
        config["linux"] = json!({});
    }
    refuse_resources(&config["linux"]["resources"], &rootless.no_cgroups)?;
    without_cgroup(config);
    map_ids(&mut config["linux"], rootless)?;
    let gids = config["linux"]["gidMappings"].clone();
    let own_network = has_new_network(&config["linux"]);
    let Some(mounts) = config["mounts"].as_array_mut() else { return Ok(()) };
    // The cgroups would be those of the supervisor.
    mounts.retain(|mount| !matches!(mount["type"].as_str(), Some("cgroup" | "cgroup2")));
    for mount in mounts {
        match mount["type"].as_str() {
            // Linux mounts a sysfs only for the owner of the network namespace that it shows.
            Some("sysfs") if !own_network => bind_sys(mount),
            // Of all mounts, this one asks for a group by number: 5 is `tty`.
            Some("devpts") => leave_unmapped_group_out(mount, &gids),
            // Its other kind of attributes takes root's rights.
            Some("overlay") => add_option(mount, "userxattr"),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses limits that no cgroup is there for.
fn refuse_resources(resources: &Value, reason: &str) -> Result<(), String> {
    let fields = resources.as_object().into_iter().flatten();
    let mut asked = fields
        .filter(|(name, value)| *name != WITHOUT_CGROUP && is_set(value))
        .map(|(name, _)| name);
    match asked.next() {
        Some(name) => Err(format!("limits of {name} cannot be set: {reason}")),
        None => Ok(()),
    }
}

/// Returns whether a value asks for something: zero and less, and false, are no limits.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
        Value::Object(fields) => fields.values().any(is_set),
        Value::Array(all) => !all.is_empty(),
        Value::Bool(true) | Value::String(_) => true,
    }
}

/// Adds a user namespace with mappings, where the configuration does not have its own.
fn map_ids(linux: &mut Value, rootless: &Rootless) -> Result<(), String> {
    let given = ["uidMappings", "gidMappings"]
        .map(|kind| linux[kind].as_array().is_some_and(|all| !all.is_empty()));
    if linux["namespaces"].is_null() {
        linux["namespaces"] = json!([]);
    }
    let namespaces = linux["namespaces"].as_array_mut().ok_or("linux.namespaces is not a list")?;
    let own = namespaces.iter().find(|it| it["type"] == "user");
    let joins = own.is_some_and(|it| it["path"].as_str().is_some_and(|path| !path.is_empty()));
    if joins || given != [false, false] {
        return Ok(());
    }
    if own.is_none() {
        namespaces.push(json!({ "type": "user" }));
    }
    linux["uidMappings"] = json!(rootless.uid_mappings);
    linux["gidMappings"] = json!(rootless.gid_mappings);
    Ok(())
}

fn has_new_network(linux: &Value) -> bool {
    let namespaces = linux["namespaces"].as_array().into_iter().flatten();
    let mut of_network = namespaces.filter(|it| it["type"] == "network");
    of_network.any(|it| it["path"].as_str().is_none_or(str::is_empty))
}

/// Shows the host's `/sys` in place of a new one, read-only.
fn bind_sys(mount: &mut Value) {
    mount["type"] = json!("none");
    mount["source"] = json!("/sys");
    mount["options"] = json!(["rbind", "nosuid", "noexec", "nodev", "ro"]);
}

fn leave_unmapped_group_out(mount: &mut Value, gids: &Value) {
    let mappings: Vec<IdMapping> = serde_json::from_value(gids.clone()).unwrap_or_default();
    let is_mapped = |gid: u32| {
        let offset = |it: &IdMapping| gid.checked_sub(it.container_id);
        mappings.iter().any(|it| offset(it).is_some_and(|offset| offset < it.size))
    };
    if let Some(options) = mount["options"].as_array_mut() {
        options.retain(|option| {
            let gid = option.as_str().and_then(|option| option.strip_prefix("gid="));
            gid.and_then(|gid| gid.parse().ok()).is_none_or(is_mapped)
        });
    }
}

fn add_option(mount: &mut Value, option: &str) {
    match mount["options"].as_array_mut() {
        Some(options) if options.iter().any(|it| it == option) => {}
        Some(options) => options.push(json!(option)),
        None => mount["options"] = json!([option]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    fn rootless(ids: Vec<IdMapping>) -> Rootless {
        Rootless {
            uid: 1001,
            uid_mappings: ids.clone(),
            gid_mappings: ids,
            single_id: None,
            no_cgroups: "there are none".to_owned(),
        }
    }

    fn one_id() -> Rootless {
        rootless(vec![mapping(0, 1001, 1)])
    }

    fn config(namespaces: &[&str]) -> Value {
        let namespaces: Vec<_> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
        json!({
            "mounts": [
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
                { "destination": "/dev/pts", "type": "devpts", "options": ["mode=0620", "gid=5"] },
            ],
            "linux": { "namespaces": namespaces, "cgroupsPath": "/x" },
        })
    }

    #[test]
    fn a_user_namespace_is_added_and_what_only_root_can_have_is_left_out() {
        let mut changed = config(&["network"]);
        assert_eq!(adapt(&mut changed, &one_id()), Ok(()));
        let ids = json!([{ "containerID": 0, "hostID": 1001, "size": 1 }]);
        let linux = json!({
            "namespaces": [{ "type": "network" }, { "type": "user" }],
            "uidMappings": ids,
            "gidMappings": ids,
        });
        assert_eq!(changed["linux"], linux);
        let mounts = changed["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0]["type"], "sysfs");
        assert_eq!(mounts[1]["options"], json!(["mode=0620"]));
        let again = changed.clone();
        assert_eq!(adapt(&mut changed, &one_id()), Ok(()));
        assert_eq!(changed, again);
    }

    #[test]
    fn a_group_that_is_mapped_stays_and_the_hosts_sys_is_bound_in_its_network() {
        let mut changed = config(&[]);
        let ranges = rootless(vec![mapping(0, 1001, 1), mapping(1, 100_000, 10)]);
        assert_eq!(adapt(&mut changed, &ranges), Ok(()));
        assert_eq!(changed["mounts"][0]["source"], "/sys");
        assert_eq!(changed["mounts"][1]["options"], json!(["mode=0620", "gid=5"]));
    }

    #[test]
    fn mappings_and_namespaces_of_the_callers_stay() {
        let mut own = config(&["user"]);
        own["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": 7, "size": 1 }]);
        let mut joined = config(&[]);
        joined["linux"]["namespaces"] = json!([{ "type": "user", "path": "/proc/7/ns/user" }]);
        for mut changed in [own, joined] {
            let before = changed.clone();
            assert_eq!(adapt(&mut changed, &one_id()), Ok(()));
            for field in ["namespaces", "uidMappings", "gidMappings"] {
                assert_eq!(changed["linux"][field], before["linux"][field], "{field}");
            }
        }
    }

    #[test]
    fn limits_are_refused_by_name() {
        for (resources, name) in [
            (json!({ "memory": { "limit": 5 } }), Some("memory")),
            (json!({ "pids": { "limit": 1 } }), Some("pids")),
            (json!({ "unified": { "memory.high": "1" } }), Some("unified")),
            (json!({ "memory": { "disableOOMKiller": false }, "pids": { "limit": -1 } }), None),
            (json!({ "devices": [{ "allow": false, "access": "rwm" }] }), None),
        ] {
            let mut changed = config(&[]);
            changed["linux"]["resources"] = resources;
            let expected = match name {
                Some(name) => Err(format!("limits of {name} cannot be set: there are none")),
                None => Ok(()),
            };
            assert_eq!(adapt(&mut changed, &one_id()), expected);
        }
    }
}
