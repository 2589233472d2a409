//! The options of a configuration's mounts: which of them libcontainer applies, which are ours, and which
//! nobody can apply.
//!
//! libcontainer ignores propagation (`rslave`) and flags of a whole file system (`sync`), passes what it
//! does not know to the file system, and drops that for a bind mount. So what it does not apply is taken
//! out of the configuration here, to be done by [`mounts`](crate::mounts), or is refused.

use std::path::PathBuf;

use anyhow::{Context, bail};
use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Options that libcontainer applies to a mount of any type.
const APPLIED: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rrelatime",
    "rro",
    "rrw",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "rw",
    "strictatime",
    "suid",
];
/// What is so anyway, or concerns the kernel's log alone; a file system would not know the word.
const DEFAULTS: &[&str] = &["noiversion", "nolazytime", "symfollow", "loud", "silent", ""];
/// What a cgroup mount of version 1 may say: libcontainer mounts it one way, and `ro` is seen to elsewhere.
const OF_CGROUPS: &[&str] = &["defaults", "nodev", "noexec", "nosuid", "relatime", "ro", "rw"];
/// Flags of a whole file system, which are no business of a bind mount.
const OF_FILE_SYSTEM: &[&str] = &["dirsync", "iversion", "lazytime", "sync"];

/// What of a mount libcontainer leaves undone.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Where it is mounted, in the container.
    pub(crate) destination: PathBuf,
    /// Whether it shows a part of another file system.
    pub(crate) bind: bool,
    /// How it and those below it propagate, in this order.
    pub(crate) propagation: Vec<Propagation>,
    pub(crate) no_symlinks: bool,
    /// Made read-only only after libcontainer has written to it.
    pub(crate) read_only: bool,
    /// What the root file system has there is copied into it.
    pub(crate) copy_up: bool,
    pub(crate) id_map: Option<IdMap>,
}

impl Step {
    fn is_needed(&self) -> bool {
        let plain =
            Self { destination: self.destination.clone(), bind: self.bind, ..Self::default() };
        *self != plain
    }
}

/// What of the rest of a configuration matters to a mount.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around {
    pub(crate) has_terminal: bool,
    pub(crate) has_mounts_below: bool,
    /// Whether this machine has cgroups of version 2 alone.
    pub(crate) unified: bool,
}

/// One option of propagation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Propagation {
    pub(crate) kind: Kind,
    pub(crate) recursive: bool,
}

/// See mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Shared,
    Slave,
    Private,
    Unbindable,
}

impl Propagation {
    /// The one that an option, or `rootfsPropagation`, names.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (kind, recursive) = match name {
            "shared" => (Kind::Shared, false),
            "rshared" => (Kind::Shared, true),
            "slave" => (Kind::Slave, false),
            "rslave" => (Kind::Slave, true),
            "private" => (Kind::Private, false),
            "rprivate" => (Kind::Private, true),
            "unbindable" => (Kind::Unbindable, false),
            "runbindable" => (Kind::Unbindable, true),
            _ => return None,
        };
        Some(Self { kind, recursive })
    }

    /// As mount(2) and mount_setattr(2) have it.
    pub(crate) fn flag(self) -> MsFlags {
        match self.kind {
            Kind::Shared => MsFlags::MS_SHARED,
            Kind::Slave => MsFlags::MS_SLAVE,
            Kind::Private => MsFlags::MS_PRIVATE,
            Kind::Unbindable => MsFlags::MS_UNBINDABLE,
        }
    }
}

/// How owners of files are shown.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// `uid_map` and `gid_map` of user_namespaces(7); none stands for the container's own.
    pub(crate) maps: Option<(String, String)>,
    /// Whether mounts below it are concerned too.
    pub(crate) recursive: bool,
}

/// Takes from a mount's options what libcontainer does not apply, and returns what there is to do. An
/// error names the mount and the option.
pub(crate) fn take(mount: &mut Value, around: Around) -> anyhow::Result<Option<Step>> {
    let destination = mount["destination"].as_str().unwrap_or_default().to_owned();
    take_all(mount, &destination, around).with_context(|| format!("mount {destination}"))
}

fn take_all(mount: &mut Value, to: &str, around: Around) -> anyhow::Result<Option<Step>> {
    let options: Vec<String> = match &mount["options"] {
        Value::Null => Vec::new(),
        options => serde_json::from_value(options.clone()).context("options")?,
    };
    let kind = mount["type"].as_str().unwrap_or_default().to_owned();
    let bind = is_bind(mount);
    let mut step = Step { destination: PathBuf::from(to), bind, ..Step::default() };
    let mut kept = Vec::new();
    let mut id_map = None;
    for option in options {
        let propagation = Propagation::parse(&option);
        let for_file_system = !bind && !["cgroup", "cgroup2"].contains(&kind.as_str());
        match option.as_str() {
            _ if propagation.is_some() => step.propagation.extend(propagation),
            "nosymfollow" => step.no_symlinks = true,
            "idmap" => id_map = Some(false),
            "ridmap" => id_map = Some(true),
            "tmpcopyup" if kind == "tmpfs" && !bind => step.copy_up = true,
            "tmpcopyup" => bail!("option \"tmpcopyup\": it is for a tmpfs"),
            "mand" => bail!("option \"mand\": Linux has no mandatory locks since 5.15"),
            "remount" => bail!("option \"remount\": the embedded runtime changes no other mount"),
            name if DEFAULTS.contains(&name) => {}
            name if kind == "cgroup" && !around.unified && !OF_CGROUPS.contains(&name) => {
                bail!(
                    "option {name:?}: the embedded runtime mounts cgroups of version 1 without it"
                )
            }
            name if APPLIED.contains(&name) => kept.push(option),
            // libcontainer would forget the flag; with a value it passes it on as it is.
            "sync" | "dirsync" if for_file_system => kept.push(format!("{option}=")),
            name if OF_FILE_SYSTEM.contains(&name) && bind => {
                bail!("option {name:?}: it is for a whole file system, and this is a bind mount")
            }
            _ if for_file_system => kept.push(option),
            name => bail!("option {name:?}: there is none of this name for a mount like this"),
        }
    }
    step.id_map = read_id_map(mount, bind, id_map)?;
    let written = kind == "tmpfs" && (step.copy_up || around.has_mounts_below) || to == "/dev";
    if written && kept.iter().any(|option| option == "ro") {
        if to == "/dev" && around.has_terminal {
            bail!("option \"ro\": the embedded runtime makes /dev/console there for the terminal");
        }
        kept.retain(|option| option != "ro");
        step.read_only = true;
    }
    if !mount["options"].is_null() {
        mount["options"] = json!(kept);
    }
    Ok(step.is_needed().then_some(step))
}

/// Returns the mapping that a mount asks for, by its own fields or, with the option alone, by the
/// container's, and takes the fields away: libcontainer would refuse them.
fn read_id_map(
    mount: &mut Value,
    bind: bool,
    option: Option<bool>,
) -> anyhow::Result<Option<IdMap>> {
    let mut map = |field: &str| -> anyhow::Result<Option<String>> {
        let entries = match mount.as_object_mut().and_then(|mount| mount.remove(field)) {
            None | Some(Value::Null) => return Ok(None),
            Some(entries) => entries,
        };
        let entries = entries.as_array().with_context(|| format!("{field} is not a list"))?;
        let line = |entry: &Value| {
            let number = |name: &str| {
                let number = entry[name].as_u64().and_then(|it| u32::try_from(it).ok());
                number.with_context(|| format!("{field}: {name} is missing or not a number"))
            };
            Ok(format!("{} {} {}\n", number("containerID")?, number("hostID")?, number("size")?))
        };
        let lines = entries.iter().map(line).collect::<anyhow::Result<String>>()?;
        Ok(Some(lines).filter(|lines| !lines.is_empty()))
    };
    let maps = match (map("uidMappings")?, map("gidMappings")?) {
        (Some(uids), Some(gids)) => Some((uids, gids)),
        (None, None) => None,
        (None, _) => bail!("uidMappings: missing, and there are gidMappings"),
        (_, None) => bail!("gidMappings: missing, and there are uidMappings"),
    };
    if maps.is_none() && option.is_none() {
        return Ok(None);
    }
    if !bind {
        let name = if maps.is_some() { "uidMappings" } else { "option \"idmap\"" };
        bail!("{name}: only a bind mount can be mapped");
    }
    Ok(Some(IdMap { maps, recursive: option.unwrap_or(false) }))
}

/// Whether an option is a flag of mount(2) rather than one of a file system's.
pub(crate) fn is_flag(option: &str) -> bool {
    APPLIED.contains(&option)
}

/// Whether a mount shows what is elsewhere, as libcontainer decides it.
pub(crate) fn is_bind(mount: &Value) -> bool {
    let options = mount["options"].as_array();
    mount["type"] == "bind"
        || options.is_some_and(|all| all.iter().any(|it| it == "bind" || it == "rbind"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mut mount: Value) -> (Value, Option<Step>) {
        let step = take(&mut mount, Around::default()).expect("it can be applied");
        (mount["options"].clone(), step)
    }

    fn refused(options: Value) -> String {
        let mut mount = json!({ "destination": "/a", "source": "/b", "options": options });
        format!("{:#}", take(&mut mount, Around::default()).expect_err("it can't be applied"))
    }

    #[test]
    fn a_mount_that_libcontainer_makes_whole_takes_no_step() {
        let plain = json!({ "destination": "/a", "options": ["rbind", "ro", "rnosuid"] });
        assert_eq!(taken(plain.clone()), (plain["options"].clone(), None));
        assert_eq!(taken(json!({ "destination": "/a" })), (Value::Null, None));
    }

    #[test]
    fn propagation_is_taken_out_of_the_options() {
        let (options, step) =
            taken(json!({ "destination": "/a", "options": ["rbind", "rslave", "ro", "shared"] }));
        assert_eq!(options, json!(["rbind", "ro"]));
        let slave = Propagation { kind: Kind::Slave, recursive: true };
        let shared = Propagation { kind: Kind::Shared, recursive: false };
        assert_eq!(step.expect("a step").propagation, [slave, shared]);
    }

    #[test]
    fn an_option_that_nobody_can_apply_is_named() {
        for option in ["nonsense", "sync", "mode=755", "remount", "mand", "tmpcopyup"] {
            let error = refused(json!(["bind", option]));
            assert!(error.starts_with(&format!("mount /a: option {option:?}: ")), "{error}");
        }
        assert!(refused(json!(["bind", 1])).contains("options"));
    }

    #[test]
    fn a_cgroup_mount_of_version_1_takes_few_options() {
        let take = |option: &str, unified: bool| {
            let options = ["nosuid", "noexec", "nodev", "relatime", "ro", "rprivate", option];
            let mut mount = json!({ "destination": "/a", "type": "cgroup", "options": options });
            take(&mut mount, Around { unified, ..Around::default() }).is_ok()
        };
        assert!(take("rw", false) && !take("noatime", false) && take("noatime", true));
        assert!(!take("nonsense", false) && !take("nonsense", true));
    }

    #[test]
    fn what_a_file_system_may_know_is_passed_on() {
        let (options, step) = taken(json!({
            "destination": "/a", "type": "tmpfs", "options": ["mode=755", "sync", "silent", "ro"],
        }));
        assert_eq!((options, step), (json!(["mode=755", "sync=", "ro"]), None));
    }

    #[test]
    fn a_mapping_has_both_its_lists() {
        let entry = json!([{ "containerID": 0, "hostID": 7, "size": 2 }]);
        let mut mount = json!({
            "destination": "/a", "type": "bind", "uidMappings": entry, "gidMappings": entry,
            "options": ["rbind", "ridmap"],
        });
        let step = take(&mut mount, Around::default()).expect("it can be applied").expect("a step");
        let maps = Some(("0 7 2\n".to_owned(), "0 7 2\n".to_owned()));
        assert_eq!(step.id_map, Some(IdMap { maps, recursive: true }));
        assert!(mount.get("uidMappings").is_none() && mount["options"] == json!(["rbind"]));
        let mut mount = json!({ "destination": "/a", "type": "bind", "gidMappings": entry });
        let error =
            format!("{:#}", take(&mut mount, Around::default()).expect_err("one is missing"));
        assert!(error.starts_with("mount /a: uidMappings: missing"), "{error}");
    }
}
