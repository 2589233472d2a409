//! A bundle's configuration, made such that libcontainer does with it what runc would.
//!
//! The container keeps this copy: what happens to the bundle later is of no consequence, as the
//! runtime specification demands.

use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, Spec};
use serde_json::{Value, json};

use crate::args::Global;
use crate::cgroup::Cgroup;
use crate::confine::{self, Confinement};
use crate::hierarchy::Hierarchy;
use crate::limits::Late;
use crate::mounts::Plan;
use crate::rootless::{self, Users};
use crate::scope::Scope;
use crate::{cgroup, check, devices, explain, inside, options, scope};

/// A value of HOME that stands for none. libcontainer would look for one with getpwuid(3), which
/// executes libraries that it finds in the container; so it must find it set.
pub(crate) const NO_HOME: &str = "/.holdfast-oci-no-home";

/// A configuration that was read.
#[derive(Debug)]
pub(crate) struct Config {
    /// As JSON, with fields that `spec` does not know.
    json: Value,
    /// The same.
    pub(crate) spec: Spec,
    /// The bundle's path, absolute.
    pub(crate) bundle: PathBuf,
    /// The root file system's path, absolute.
    pub(crate) rootfs: PathBuf,
    /// The cgroup, or slice:prefix:name for systemd.
    pub(crate) cgroup: PathBuf,
    /// What libcontainer leaves undone with the mounts.
    pub(crate) plan: Plan,
    /// What it gets once it is made.
    pub(crate) late: Late,
    /// `process.capabilities`, which libcontainer does not get to see.
    pub(crate) capabilities: Value,
    /// What its first process gives up.
    pub(crate) confinement: Confinement,
    /// Whether this process is root in the container's new user namespace.
    is_inside: bool,
    /// The cgroup that such a process has to give.
    pub(crate) scope: Option<Scope>,
}

impl Config {
    /// Reads a bundle.
    pub(crate) fn load(global: &Global, bundle: &Path, id: &str) -> anyhow::Result<Self> {
        let (systemd, is_inside) = (global.makes_by_systemd(), global.is_inside);
        let scope = Scope::passed_on(global);
        let bundle =
            bundle.canonicalize().with_context(|| format!("bundle {}", bundle.display()))?;
        let path = bundle.join("config.json");
        let mut json = read_json(&path)?;
        let root = json["root"]["path"].as_str().context("config.json: root.path is missing")?;
        let rootfs = bundle.join(root);
        let rootfs =
            rootfs.canonicalize().with_context(|| format!("rootfs {}", rootfs.display()))?;
        json["root"]["path"] = json!(rootfs);
        if !json["linux"].is_object() {
            bail!("config.json: linux is missing");
        }
        if is_inside {
            Users::take(&mut json).context("config.json")?;
            rootless::check_user(&json["process"]).context("config.json: process")?;
            let resources = &mut json["linux"]["resources"];
            match &scope {
                Some(_) => scope::keep_late(resources),
                None => {
                    rootless::refuse_limits(resources).context("config.json: linux.resources")?;
                }
            }
        }
        if json["linux"]["cgroupsPath"].as_str().is_none_or(str::is_empty) {
            json["linux"]["cgroupsPath"] =
                if systemd { json!(format!(":holdfast:{id}")) } else { json!(format!("/{id}")) };
        }
        let mut cgroup = PathBuf::from(json["linux"]["cgroupsPath"].as_str().unwrap_or_default());
        if !systemd && cgroup.is_relative() {
            // On version 2 libcontainer would have systemd make it for a user namespace.
            cgroup = Path::new("/").join(cgroup);
            json["linux"]["cgroupsPath"] = json!(cgroup);
        }
        check::config(&mut json, cgroup::is_unified()?).context("config.json")?;
        absolute_bind_sources(&mut json["mounts"], &bundle);
        let hierarchies = cgroup::v1_mounts()?;
        protect_cgroups(&mut json, &hierarchies);
        let mut plan = Plan::take(&mut json, &rootfs).context("config.json")?;
        plan.is_inside = is_inside;
        let late = Late::take(&mut json).context("config.json")?;
        resolve_masked(&mut json["linux"]["maskedPaths"], &rootfs);
        normalise_process(&mut json["process"]);
        let capabilities = confine::take_capabilities(&mut json["process"]);
        if !is_inside {
            devices::complete(&mut json)?;
        }
        let spec: Spec = serde_json::from_value(json.clone())
            .with_context(|| format!("parse {}", path.display()))?;
        let confinement = Confinement::new(&capabilities, &spec)?;
        let config = Self {
            json,
            spec,
            bundle,
            rootfs,
            cgroup,
            plan,
            late,
            capabilities,
            confinement,
            is_inside,
            scope,
        };
        config.check()?;
        Ok(config)
    }

    /// What libcontainer would do wrong silently is refused here.
    fn check(&self) -> anyhow::Result<()> {
        let args = self.spec.process().as_ref().and_then(|process| process.args().as_ref());
        if args.is_none_or(Vec::is_empty) {
            bail!("config.json: process.args must not be empty");
        }
        check_cgroup(&self.cgroup)
    }

    /// The cgroups that it gets; see [`Cgroup::new`].
    pub(crate) fn cgroups(
        &self,
        systemd: bool,
        member: Option<i32>,
        hierarchies: &[Hierarchy],
    ) -> anyhow::Result<Cgroup> {
        if self.is_inside {
            return Ok(self.scope.as_ref().map_or_else(Cgroup::default, Scope::cgroup));
        }
        Cgroup::new(&self.cgroup, systemd, member, hierarchies)
    }

    /// Whether the container gets a user namespace.
    pub(crate) fn has_user_namespace(&self) -> bool {
        let namespaces = self.json["linux"]["namespaces"].as_array();
        let is_made = namespaces.is_some_and(|all| all.iter().any(|it| it["type"] == "user"));
        self.is_inside || is_made
    }

    /// Whether there are hooks that run once the program has started.
    pub(crate) fn has_poststart_hooks(&self) -> bool {
        self.json["hooks"]["poststart"].as_array().is_some_and(|all| !all.is_empty())
    }

    /// Whether it asks for a new network namespace.
    pub(crate) fn has_new_network(&self) -> bool {
        let namespaces = self.json["linux"]["namespaces"].as_array();
        namespaces.is_some_and(|all| {
            all.iter()
                .any(|it| it["type"] == "network" && it["path"].as_str().is_none_or(str::is_empty))
        })
    }

    /// What it says of devices; the first rule denies all.
    pub(crate) fn device_rules(&self) -> &[LinuxDeviceCgroup] {
        let resources = self.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default()
    }

    /// Has the hooks of `create` begin as this program, which tells them the bundle rather than our copy
    /// of it. Those that libcontainer runs while this process visits the container's cgroups go to other
    /// ones too: the caller's, as if nobody had gone anywhere. See `hooks::execute`.
    pub(crate) fn wrap_hooks(&mut self, global: &Global, cgroups: &[PathBuf]) {
        let state = json!({ "bundle": self.bundle, "annotations": self.json["annotations"] });
        let mut log = Vec::new();
        if let Some(path) = global.log.as_ref().and_then(|log| std::path::absolute(log).ok()) {
            // So that a hook that can't be executed is named there.
            let format = global.log_format.name();
            log.extend([json!("--log"), json!(path), json!("--log-format"), json!(format)]);
        }
        let cgroups: Vec<Value> =
            cgroups.iter().flat_map(|dir| [json!("--cgroup"), json!(dir)]).collect();
        for moment in ["prestart", "createRuntime", "createContainer"] {
            let inside = moment == "createContainer";
            if inside && self.has_user_namespace() {
                // This program may not be theirs to execute.
                continue;
            }
            let mut before = vec![json!("holdfast-oci")];
            before.extend(if inside { &[] } else { &log[..] }.iter().cloned());
            before.extend([json!("hook"), json!("--state"), json!(state.to_string())]);
            before.extend(if inside { &[] } else { &cgroups[..] }.iter().cloned());
            before.push(json!("--"));
            let hooks = self.json.pointer_mut(&format!("/hooks/{moment}"));
            for hook in hooks.and_then(Value::as_array_mut).into_iter().flatten() {
                let mut args = before.clone();
                args.push(hook["path"].clone());
                args.extend(hook["args"].as_array().into_iter().flatten().cloned());
                hook["args"] = json!(args);
                hook["path"] = json!("/proc/self/exe");
            }
        }
    }

    /// Has a container without a cgroup namespace see its own cgroups where libcontainer might show
    /// it the host's: it takes for the container's own what lies below the cgroup of the container's
    /// parent, and that is this process, which is in the same one.
    pub(crate) fn show_own_cgroups(&mut self, hierarchies: &[Hierarchy]) {
        let namespaces = self.json["linux"]["namespaces"].as_array();
        if namespaces.is_some_and(|all| all.iter().any(|it| it["type"] == "cgroup")) {
            return;
        }
        let relative = self.cgroup.strip_prefix("/").unwrap_or(&self.cgroup).to_owned();
        let shown = hierarchies
            .iter()
            .filter(|it| !it.known && !it.is_unified() && it.mount.starts_with("/sys/fs/cgroup"));
        let shown: Vec<(&OsStr, PathBuf)> = shown
            .filter_map(|it| Some((it.mount.file_name()?, it.mount.join(&relative))))
            .collect();
        let Some(mounts) = self.json["mounts"].as_array_mut() else { return };
        *mounts = std::mem::take(mounts)
            .into_iter()
            .flat_map(|mount| {
                let destination = mount["destination"].as_str().map(PathBuf::from);
                let destination = destination.filter(|_| mount["type"] == "cgroup");
                let covers = destination.into_iter().flat_map(|destination| {
                    let options = mount["options"].as_array();
                    let read_only = options.is_some_and(|all| all.iter().any(|it| it == "ro"));
                    let access = if read_only { "ro" } else { "rw" };
                    shown.iter().map(move |(name, dir)| {
                        json!({
                            "destination": destination.join(name),
                            "type": "bind",
                            "source": dir,
                            "options": ["rbind", "nosuid", "noexec", "nodev", access],
                        })
                    })
                });
                let covers: Vec<Value> = covers.collect();
                [mount].into_iter().chain(covers)
            })
            .collect();
    }

    /// Returns the reason of a failure, by the name of the field, if the configuration shows it.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        explain::failure(&self.json, &error).map_or(error, Into::into)
    }

    /// Writes the copy that libcontainer reads, and what is done beside it.
    pub(crate) fn save(&mut self, dir: &Path) -> anyhow::Result<()> {
        self.plan.order(&mut self.json, dir)?;
        let path = dir.join("config.json");
        fs::write(&path, self.json.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

/// The cgroup is killed and removed with its container: it must be one of its own.
fn check_cgroup(path: &Path) -> anyhow::Result<()> {
    let mut names = 0;
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(_) => names += 1,
            _ => bail!("cgroupsPath {} must not lead upwards", path.display()),
        }
    }
    if names == 0 {
        bail!("cgroupsPath {} is the root of all cgroups", path.display());
    }
    Ok(())
}

/// runc takes sources of bind mounts as relative to the bundle; libcontainer, to wherever it is.
fn absolute_bind_sources(mounts: &mut Value, bundle: &Path) {
    for mount in mounts.as_array_mut().into_iter().flatten() {
        let bind = options::is_bind(mount);
        if let (true, Some(source)) = (bind, mount["source"].as_str()) {
            mount["source"] = json!(bundle.join(source));
        }
    }
}

/// libcontainer mounts the hierarchies of version 1 writable, whatever the configuration says: root
/// in the container could lift its own limits. Read-only paths it does respect.
fn protect_cgroups(config: &mut Value, hierarchies: &[PathBuf]) {
    let read_only = |mount: &Value| {
        let options = mount["options"].as_array();
        mount["type"] == "cgroup"
            && options.is_some_and(|all| all.iter().any(|option| option == "ro"))
    };
    let mounts = config["mounts"].as_array().into_iter().flatten();
    let destinations: Vec<PathBuf> = mounts
        .filter(|mount| read_only(mount))
        .filter_map(|mount| mount["destination"].as_str().map(PathBuf::from))
        .collect();
    for destination in destinations {
        let names = hierarchies.iter().filter_map(|mount| mount.file_name());
        let mut paths: Vec<Value> = names.map(|name| json!(destination.join(name))).collect();
        if paths.is_empty() {
            continue;
        }
        paths.push(json!(destination));
        if !config["linux"]["readonlyPaths"].is_array() {
            config["linux"]["readonlyPaths"] = json!([]);
        }
        if let Some(all) = config["linux"]["readonlyPaths"].as_array_mut() {
            all.extend(paths);
        }
    }
}

/// libcontainer masks a symbolic link to a file, and leaves the file.
fn resolve_masked(paths: &mut Value, rootfs: &Path) {
    for path in paths.as_array_mut().into_iter().flatten() {
        let resolved = path.as_str().and_then(|path| inside::resolve(rootfs, Path::new(path)));
        if let Some(resolved) = resolved {
            *path = json!(resolved);
        }
    }
}

/// Gives a process a HOME for [`NO_HOME`]'s reason.
pub(crate) fn normalise_process(process: &mut Value) {
    if !process.is_object() {
        return;
    }
    if !process["env"].is_array() {
        process["env"] = json!([]);
    }
    if let Some(env) = process["env"].as_array_mut() {
        let home = |entry: &Value| {
            entry.as_str().is_some_and(|entry| entry.len() > 5 && entry.starts_with("HOME="))
        };
        if !env.iter().any(home) {
            env.push(json!(format!("HOME={NO_HOME}")));
        }
    }
}

/// Reads a file of JSON.
pub(crate) fn read_json(path: &Path) -> anyhow::Result<Value> {
    let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&content).with_context(|| format!("parse {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_not_the_containers_own_is_refused() {
        for path in ["/", "", ".", "/a/../b", "../a"] {
            assert!(check_cgroup(Path::new(path)).is_err(), "{path}");
        }
        for path in ["/a", "a", "/a/b.c"] {
            assert!(check_cgroup(Path::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn an_empty_home_counts_as_none() {
        for env in [json!(null), json!([]), json!(["HOME="])] {
            let mut process = json!({ "env": env });
            normalise_process(&mut process);
            let last = process["env"].as_array().unwrap().last().unwrap().clone();
            assert_eq!(last, json!(format!("HOME={NO_HOME}")));
        }
        let mut process = json!({ "env": ["HOME=/a"] });
        normalise_process(&mut process);
        assert_eq!(process["env"], json!(["HOME=/a"]));
    }

    #[test]
    fn read_only_cgroups_of_version_1_are_protected_one_by_one() {
        let mount = |options: &[&str]| {
            json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "options": options,
            })
        };
        let hierarchies = ["/sys/fs/cgroup/cpu".into(), "/sys/fs/cgroup/pids".into()];
        let mut config =
            json!({ "mounts": [mount(&["ro"])], "linux": { "readonlyPaths": ["/a"] } });
        protect_cgroups(&mut config, &hierarchies);
        let expected = ["/a", "/sys/fs/cgroup/cpu", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"];
        assert_eq!(config["linux"]["readonlyPaths"], json!(expected));
        let mut config = json!({ "mounts": [mount(&["rw"])], "linux": {} });
        protect_cgroups(&mut config, &hierarchies);
        assert_eq!(config["linux"], json!({}));
    }

    #[test]
    fn sources_of_bind_mounts_are_relative_to_the_bundle() {
        let mut mounts = json!([
            { "source": "data", "options": ["ro", "rbind"] },
            { "source": "/abs", "type": "bind" },
            { "source": "tmpfs", "type": "tmpfs" },
        ]);
        absolute_bind_sources(&mut mounts, Path::new("/bundle"));
        let sources: Vec<&str> =
            mounts.as_array().unwrap().iter().map(|m| m["source"].as_str().unwrap()).collect();
        assert_eq!(sources, ["/bundle/data", "/abs", "tmpfs"]);
    }
}
