//! What a process without root's rights can give its containers: the ids that it may map in a user
//! namespace (user_namespaces(7)), and cgroups where the user's systemd makes them.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, getegid, geteuid};
use serde::{Deserialize, Serialize};

use crate::os::cgroup::{CONTROLLERS, Cgroups, MOUNT};

/// The programs that map ids of `/etc/subuid` and `/etc/subgid` (newuidmap(1), newgidmap(1)).
const MAPPERS: [&str; 2] = ["newuidmap", "newgidmap"];

/// What the containers of a supervisor have that is not run by root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Rootless {
    /// The uid of the supervisor, which the containers' root user has on the host.
    pub uid: u32,
    /// How the user ids of a container are mapped to those of the host.
    pub uid_mappings: Vec<IdMapping>,
    /// How its group ids are mapped.
    pub gid_mappings: Vec<IdMapping>,
    /// Why a container has no ids but 0; `None` if it has more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub single_id: Option<String>,
    /// The controllers of the containers' cgroups (cgroups(7)), each of which is a scope that the user's
    /// systemd makes; empty if containers have no cgroups of their own.
    #[serde(default)]
    pub controllers: Vec<String>,
    /// Why containers have no cgroups of their own, and so no limits, no pause and no statistics; `None` if
    /// they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_cgroups: Option<String>,
}

/// A range of ids, in the words of the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IdMapping {
    /// The first id in the container.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// The first id on the host.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// The number of ids.
    pub size: u32,
}

impl Rootless {
    /// Returns what this process can give; `None` for root, which needs none of it.
    pub(crate) fn find() -> Option<Self> {
        let (uid, gid) = (geteuid(), getegid());
        if uid.is_root() {
            return None;
        }
        let only = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
        let (uid_mappings, gid_mappings, single_id) = match ranges(uid.as_raw()) {
            Ok((uids, gids)) => {
                (mappings(uid.as_raw(), &uids), mappings(gid.as_raw(), &gids), None)
            }
            Err(reason) => (only(uid.as_raw()), only(gid.as_raw()), Some(reason)),
        };
        let (controllers, no_cgroups) = match delegated(uid.as_raw()) {
            Ok(controllers) => (controllers, None),
            Err(reason) => {
                (Vec::new(), Some(format!("no cgroup is delegated to this user: {reason}")))
            }
        };
        Some(Self {
            uid: uid.as_raw(),
            uid_mappings,
            gid_mappings,
            single_id,
            controllers,
            no_cgroups,
        })
    }

    /// Says it once, in the log.
    pub(crate) fn report(&self) {
        if let Some(reason) = &self.single_id {
            tracing::warn!(reason, "containers have the user and group id 0 alone");
        }
        if let Some(reason) = &self.no_cgroups {
            tracing::warn!(reason, "containers have no limits, no pause and no statistics");
        }
    }
}

/// Returns the controllers that the user's systemd has for the user's own cgroups, or why it makes none for
/// containers.
///
/// A process is moved by who may write to the cgroup that both of its cgroups are in. So that a runtime can move
/// a process of an exec into its container's cgroup, this process has to be among those of the user's systemd.
fn delegated(uid: u32) -> Result<Vec<String>, String> {
    let Some(own) = Cgroups::own_unified() else {
        return Err("the machine has cgroups of version 1".to_owned());
    };
    let is_writable = |path: &&Path| access(&path.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
    let Some(manager) = manager_of(&own, uid).filter(is_writable) else {
        return Err(format!(
            "this process is not one of the user's own systemd: start it as a unit of the user, or by \
             `systemd-run --user --scope` (its cgroup is /{})",
            own.strip_prefix(MOUNT).unwrap_or(&own).display()
        ));
    };
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).unwrap_or_default();
    for (name, package) in [("systemd/private", "systemd"), ("bus", "dbus-user-session")] {
        if !dir.join(name).exists() {
            let path = dir.join(name);
            return Err(format!("no {}; Debian has it in the package {package}", path.display()));
        }
    }
    let path = manager.join(CONTROLLERS);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Returns the cgroup of a user's systemd, if a cgroup is below it.
fn manager_of(cgroup: &Path, uid: u32) -> Option<&Path> {
    let name = format!("user@{uid}.service");
    cgroup.ancestors().find(|path| path.file_name().is_some_and(|it| it == name.as_str()))
}

/// A range of `/etc/subuid` or `/etc/subgid`: its first id, and the number of ids.
type Range = (u32, u32);

/// Returns the ranges of a user, or why there are none that can be mapped.
fn ranges(uid: u32) -> Result<(Vec<Range>, Vec<Range>), String> {
    for program in MAPPERS {
        if !in_path(program) {
            return Err(format!("{program} is not in PATH; Debian has it in the package uidmap"));
        }
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = name_of(&passwd, uid);
    let of = |path: &str| {
        let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        let found = parse(&text, uid, name);
        if found.is_empty() {
            return Err(format!(
                "{path} has no range for user {}",
                name.unwrap_or(&uid.to_string())
            ));
        }
        Ok(found)
    };
    Ok((of("/etc/subuid")?, of("/etc/subgid")?))
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .any(|path| path.is_file() && access(&path, AccessFlags::X_OK).is_ok())
}

/// Returns the name of a user, by the text of `/etc/passwd`. A user that only another source of nsswitch.conf(5)
/// knows is found in `/etc/subuid` by its number.
fn name_of(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// Parses a file as described in subuid(5). Lines that make no sense are left out, as newuidmap(1) does.
fn parse(text: &str, uid: u32, name: Option<&str>) -> Vec<Range> {
    let range = |line: &str| {
        let [owner, start, count] = line.split(':').collect::<Vec<_>>().try_into().ok()?;
        let (start, count): (u32, u32) = (start.parse().ok()?, count.trim().parse().ok()?);
        let is_owner = name == Some(owner) || owner.parse() == Ok(uid);
        (is_owner && count > 0 && start.checked_add(count).is_some()).then_some((start, count))
    };
    text.lines().filter_map(range).collect()
}

/// Maps 0 to an id of the caller's own, and 1 and those that follow to ranges.
fn mappings(own: u32, ranges: &[Range]) -> Vec<IdMapping> {
    let mut all = vec![IdMapping { container_id: 0, host_id: own, size: 1 }];
    let mut next: u32 = 1;
    for (host_id, size) in ranges {
        let Some(end) = next.checked_add(*size) else { break };
        all.push(IdMapping { container_id: next, host_id: *host_id, size: *size });
        next = end;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_known_by_its_name_and_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1001:1001::/home/ann:/bin/sh\n";
        assert_eq!(name_of(passwd, 1001), Some("ann"));
        assert_eq!(name_of(passwd, 7), None);
        let text = "bob:1:2\nann:100000:65536\nann:x:5\nann:5\n1001:300000:10\nann:9:0\nann:4294967295:2\n";
        assert_eq!(parse(text, 1001, Some("ann")), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(parse(text, 1001, None), [(300_000, 10)]);
        assert_eq!(parse(text, 5, Some("eve")), []);
    }

    #[test]
    fn the_cgroup_of_a_users_systemd_is_above_those_of_its_units() {
        let manager = "user.slice/user-7.slice/user@7.service";
        for (cgroup, found) in [
            (format!("{manager}/app.slice/a.service"), true),
            (manager.to_owned(), true),
            ("user.slice/user-7.slice/session-3.scope".to_owned(), false),
            ("user.slice/user-8.slice/user@8.service/a.scope".to_owned(), false),
            (String::new(), false),
        ] {
            let expected = found.then_some(Path::new(manager));
            assert_eq!(manager_of(Path::new(&cgroup), 7), expected, "{cgroup}");
        }
    }

    #[test]
    fn the_ids_of_a_container_are_without_gaps() {
        let mapping = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let expected =
            [mapping(0, 1001, 1), mapping(1, 100_000, 65_536), mapping(65_537, 300_000, 10)];
        assert_eq!(mappings(1001, &[(100_000, 65_536), (300_000, 10)]), expected);
        assert_eq!(mappings(1001, &[(5, u32::MAX)]), expected[..1]);
    }
}
