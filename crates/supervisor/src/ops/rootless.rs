//! The OCI configuration of a container whose supervisor is not run by root: a user namespace, and
//! nothing that takes root's rights on the host.

use serde_json::{Value, json};

use crate::os::cgroup::scope;
use crate::os::rootless::{IdMapping, Rootless};

/// What of `linux.resources` is left out. Rules for devices are of no use in a user namespace, where nobody can make
/// a device: the container has those that are mounted for it.
const DEVICES: &str = "devices";

/// Takes those settings out of a default configuration that its cgroup cannot have.
pub(crate) fn without_missing_controllers(config: &mut Value, rootless: &Rootless) {
    if let Some(resources) = config["linux"]["resources"].as_object_mut() {
        resources.retain(|name, value| refusal(name, value, rootless).is_none());
    }
}

/// Changes a configuration such that it needs no root, or says why that is not possible. `unique` is a part of the
/// name of its cgroup, if it gets one.
pub(crate) fn adapt(config: &mut Value, rootless: &Rootless, unique: &str) -> Result<(), String> {
    if !config["linux"].is_object() {
        config["linux"] = json!({});
    }
    settle_cgroup(&mut config["linux"], rootless, unique)?;
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

/// Refuses limits that the cgroup of a container cannot have.
pub(crate) fn check_resources(resources: &Value, rootless: &Rootless) -> Result<(), String> {
    let all = resources.as_object().into_iter().flatten();
    let mut refused = all.filter_map(|(name, value)| refusal(name, value, rootless));
    refused.next().map_or(Ok(()), Err)
}

/// Names the cgroup that the user's systemd makes.
fn settle_cgroup(linux: &mut Value, rootless: &Rootless, unique: &str) -> Result<(), String> {
    check_resources(&linux["resources"], rootless)?;
    let Some(linux) = linux.as_object_mut() else { return Ok(()) };
    if rootless.no_cgroups.is_some() {
        linux.remove("cgroupsPath");
        linux.remove("resources");
        return Ok(());
    }
    linux.insert("cgroupsPath".to_owned(), json!(scope(unique)));
    if let Some(resources) = linux.get_mut("resources").and_then(Value::as_object_mut) {
        resources.remove(DEVICES);
    }
    Ok(())
}

/// Returns why the cgroup of a container cannot have a setting of `linux.resources`.
fn refusal(name: &str, value: &Value, rootless: &Rootless) -> Option<String> {
    if name == DEVICES || !is_set(value) {
        return None;
    }
    if let Some(reason) = &rootless.no_cgroups {
        return Some(format!("limits of {name} cannot be set: {reason}"));
    }
    let missing = controllers(name, value)
        .into_iter()
        .find(|controller| !rootless.controllers.iter().any(|it| it == controller))?;
    Some(format!(
        "limits of {name} cannot be set: the controller {missing} is not delegated to this user, only {}",
        rootless.controllers.join(", ")
    ))
}

/// Returns the controllers of cgroup version 2 that a setting takes (cgroups(7)).
fn controllers(name: &str, value: &Value) -> Vec<String> {
    let has = |fields: &[&str]| fields.iter().any(|field| is_set(&value[*field]));
    let named: &[&str] = match name {
        "cpu" => {
            match (has(&["cpus", "mems"]), has(&["shares", "quota", "period", "burst", "idle"])) {
                (true, true) => &["cpuset", "cpu"],
                (true, false) => &["cpuset"],
                (false, _) => &["cpu"],
            }
        }
        "blockIO" => &["io"],
        "hugepageLimits" => &["hugetlb"],
        "unified" => {
            let files = value.as_object().into_iter().flat_map(|fields| fields.keys());
            let of_file = |file: &String| Some(file.split_once('.')?.0.to_owned());
            // The files of every cgroup take no controller.
            return files.filter_map(of_file).filter(|controller| controller != "cgroup").collect();
        }
        other => &[other],
    };
    named.iter().map(|it| (*it).to_owned()).collect()
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
            controllers: Vec::new(),
            no_cgroups: Some("there are none".to_owned()),
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
        assert_eq!(adapt(&mut changed, &one_id(), "a"), Ok(()));
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
        assert_eq!(adapt(&mut changed, &one_id(), "a"), Ok(()));
        assert_eq!(changed, again);
    }

    #[test]
    fn a_group_that_is_mapped_stays_and_the_hosts_sys_is_bound_in_its_network() {
        let mut changed = config(&[]);
        let ranges = rootless(vec![mapping(0, 1001, 1), mapping(1, 100_000, 10)]);
        assert_eq!(adapt(&mut changed, &ranges, "a"), Ok(()));
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
            assert_eq!(adapt(&mut changed, &one_id(), "a"), Ok(()));
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
            assert_eq!(adapt(&mut changed, &one_id(), "a"), expected);
        }
    }

    #[test]
    fn a_cgroup_of_the_users_systemd_has_the_limits_of_its_controllers() {
        let with = Rootless {
            controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
            no_cgroups: None,
            ..one_id()
        };
        let missing = |name: &str| {
            format!("the controller {name} is not delegated to this user, only cpu, memory, pids")
        };
        for (resources, refused) in [
            (
                json!({ "memory": { "limit": 5 }, "cpu": { "quota": 5 }, "pids": { "limit": 1 } }),
                None,
            ),
            (json!({ "unified": { "memory.high": "1", "cgroup.max.depth": "1" } }), None),
            (json!({ "cpu": { "cpus": "0" } }), Some("cpuset")),
            (json!({ "unified": { "io.weight": "default 1" } }), Some("io")),
            (json!({ "blockIO": { "weight": 10 } }), Some("io")),
            (json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }] }), Some("hugetlb")),
            (json!({ "rdma": { "a": { "hcaHandles": 3 } } }), Some("rdma")),
        ] {
            let mut changed = config(&[]);
            changed["linux"]["resources"] = resources.clone();
            changed["linux"]["resources"]["devices"] = json!([{ "allow": true }]);
            let done = adapt(&mut changed, &with, "a.0f");
            match refused {
                Some(name) => assert!(done.unwrap_err().contains(&missing(name)), "{resources}"),
                None => {
                    assert_eq!(done, Ok(()));
                    assert_eq!(changed["linux"]["cgroupsPath"], "user.slice:holdfast:a.0f");
                    assert_eq!(changed["linux"]["resources"], resources);
                }
            }
        }
        let mut default = json!({ "linux": { "resources": { "pids": { "limit": 5 } } } });
        without_missing_controllers(&mut default, &with);
        assert_eq!(default["linux"]["resources"]["pids"]["limit"], 5);
        without_missing_controllers(&mut default, &Rootless { controllers: vec![], ..with });
        assert_eq!(default["linux"]["resources"], json!({}));
    }
}
