//! What libcontainer leaves undone with a container's mounts: propagation, mapped owners, `tmpcopyup`.
//!
//! libcontainer makes all mounts, runs the prestart hooks, and then changes the root. So the first
//! prestart hook is this program again: it enters the container's mount namespace, where the container's
//! root still is a directory, and finishes the mounts before any other hook sees them. What concerns the
//! root itself waits until that is the root ([`Plan::finish_root`]).
//!
//! All mounts of the new namespace are slaves of the host's meanwhile. So nothing that is mounted in
//! between is seen on the host, whatever the configuration asks for.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use holdfast_sys::mount::{self, Change, Reach};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::inside::{enter, make_dirs, open_in, open_mount, open_name, open_path, path_of};
use crate::options::{Around, IdMap, Kind, Propagation, Step};
use crate::peers::Tree;
use crate::{args, cgroup, copy_up, hierarchy, mountinfo, options};

/// All that there is to do.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Plan {
    rootfs: PathBuf,
    steps: Vec<Step>,
    /// `rootfsPropagation`.
    propagation: Option<Propagation>,
    /// The working directory, if it has to be made.
    cwd: Option<PathBuf>,
    /// Whether the container gets a user namespace that this process is not in.
    user_namespace: bool,
    /// Whether this process is in the container's user namespace, as its root.
    #[serde(default)]
    pub(crate) is_inside: bool,
    /// The container's cgroups; a copy counts as its memory.
    pub(crate) cgroups: Vec<PathBuf>,
}

impl Plan {
    /// Takes from a configuration what libcontainer does not do.
    pub(crate) fn take(config: &mut Value, rootfs: &Path) -> anyhow::Result<Self> {
        let namespaces = config["linux"]["namespaces"].as_array().into_iter().flatten();
        let types: Vec<&str> = namespaces.filter_map(|it| it["type"].as_str()).collect();
        let own_mounts = types.contains(&"mount");
        let mut plan = Self {
            rootfs: rootfs.to_owned(),
            user_namespace: types.contains(&"user"),
            propagation: root_propagation(config)?,
            ..Self::default()
        };
        let unified = cgroup::is_unified()?;
        let has_terminal = config["process"]["terminal"] == true;
        let all = config["mounts"].as_array().into_iter().flatten();
        let all = all.map(|it| it["destination"].as_str().unwrap_or_default().to_owned());
        let all: Vec<PathBuf> = all.map(PathBuf::from).collect();
        let peers = plan.propagation.is_some_and(|it| it.kind == Kind::Shared);
        for mount in config["mounts"].as_array_mut().into_iter().flatten() {
            let to = PathBuf::from(mount["destination"].as_str().unwrap_or_default());
            let has_mounts_below = all.iter().any(|it| *it != to && it.starts_with(&to));
            let step = options::take(mount, Around { has_terminal, has_mounts_below, unified })?;
            let joins = || peers && options::is_bind(mount);
            let bare = || Step { destination: to, bind: true, ..Step::default() };
            plan.steps.extend(step.or_else(|| joins().then(bare)));
            keep_mode(mount, rootfs)?;
        }
        if let Some(cwd) = config["process"]["cwd"].as_str().map(Path::new)
            && own_mounts
        {
            let there = open_in(&open_path(rootfs)?, cwd).is_ok();
            plan.cwd = (!there).then(|| cwd.to_owned());
        }
        if !own_mounts && (plan.propagation.is_some() || !plan.steps.is_empty()) {
            // All of it would be done to the host's mounts.
            bail!("linux.namespaces: mounts with options of this kind take a mount namespace");
        }
        Ok(plan)
    }

    /// Whether libcontainer does all by itself.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.cwd.is_none() && self.propagation.is_none()
    }

    /// Whether something is copied.
    fn copies(&self) -> bool {
        self.steps.iter().any(|step| step.copy_up)
    }

    /// Saves the plan in a directory and has the configuration's first hook carry it out.
    pub(crate) fn order(&self, config: &mut Value, dir: &Path) -> anyhow::Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let path = plan_file(dir);
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("write {}", path.display()))?;
        let hook = json!({ "path": "/proc/self/exe", "args": ["holdfast-oci", "mounts", path] });
        if !config["hooks"].is_object() {
            config["hooks"] = json!({});
        }
        match config["hooks"]["prestart"].as_array_mut() {
            Some(all) => all.insert(0, hook),
            None => config["hooks"]["prestart"] = json!([hook]),
        }
        Ok(())
    }

    /// Has the container's root, now that it is one, propagate as `rootfsPropagation` says.
    pub(crate) fn finish_root(&self, pid: i32, dir: &Path) -> anyhow::Result<()> {
        if !self.propagation.is_some_and(|it| matches!(it.kind, Kind::Shared | Kind::Unbindable)) {
            return Ok(());
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg("mounts").arg("--root-of").arg(pid.to_string()).arg(plan_file(dir));
        let status = command.stdin(Stdio::null()).status().context("execute this program")?;
        if status.success() {
            return Ok(());
        }
        bail!(failure(dir).unwrap_or_else(|| format!("rootfsPropagation: {status}")))
    }
}

/// Returns why a plan could not be carried out.
pub(crate) fn failure(dir: &Path) -> Option<String> {
    fs::read_to_string(error_file(&plan_file(dir))).ok().filter(|text| !text.is_empty())
}

fn plan_file(dir: &Path) -> PathBuf {
    dir.join("mounts.json")
}

fn error_file(plan: &Path) -> PathBuf {
    plan.with_extension("error")
}

/// The value of `rootfsPropagation`, which libcontainer then does not see: it knows four words, and as
/// `shared` it would show the host what is mounted meanwhile.
fn root_propagation(config: &mut Value) -> anyhow::Result<Option<Propagation>> {
    let linux = config["linux"].as_object_mut();
    let value = match linux.and_then(|linux| linux.remove("rootfsPropagation")) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match value.as_str() {
        Some("") => Ok(None),
        Some("runbindable") => bail!(
            "linux.rootfsPropagation=runbindable is not supported: paths that are to be read-only are \
             bind mounts of what would be unbindable"
        ),
        Some(name) => Propagation::parse(name)
            .map(Some)
            .with_context(|| format!("linux.rootfsPropagation={name} is not supported")),
        None => bail!("linux.rootfsPropagation is not a string"),
    }
}

/// A tmpfs has the mode of the directory that it covers, unless the configuration says another.
fn keep_mode(mount: &mut Value, rootfs: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let says = |option: &Value| option.as_str().is_some_and(|it| it.starts_with("mode="));
    let options = mount["options"].as_array();
    if mount["type"] != "tmpfs"
        || options::is_bind(mount)
        || options.is_some_and(|all| all.iter().any(says))
    {
        return Ok(());
    }
    let destination = mount["destination"].as_str().unwrap_or_default();
    let Ok(covered) = open_in(&open_path(rootfs)?, Path::new(destination)) else { return Ok(()) };
    let covered = File::from(covered).metadata()?;
    if covered.is_dir() {
        let mode = json!(format!("mode={:o}", covered.mode() & 0o7777));
        match mount["options"].as_array_mut() {
            Some(options) => options.push(mode),
            None => mount["options"] = json!([mode]),
        }
    }
    Ok(())
}

/// The hidden command: carries a plan out. What goes wrong is written beside the plan, for who ordered it.
pub(crate) fn execute(args: &args::Mounts) -> anyhow::Result<()> {
    // Opened before the namespace is another.
    let mut error_log = File::create(error_file(&args.plan)).context("make a file for errors")?;
    let plan = fs::read(&args.plan).with_context(|| format!("read {}", args.plan.display()))?;
    let plan: Plan = serde_json::from_slice(&plan).context("parse the plan")?;
    let done = match args.root_of {
        Some(pid) => plan.change_root(pid),
        None => pid_of_state().and_then(|pid| plan.finish(pid)),
    };
    if let Err(error) = done {
        error_log.write_all(format!("{error:#}").as_bytes())?;
        // The one that ordered it says so, and nobody else.
        std::process::exit(1);
    }
    Ok(())
}

/// Reads the pid from the state that a hook gets on its standard input.
fn pid_of_state() -> anyhow::Result<i32> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).context("read the state")?;
    let state: Value = serde_json::from_str(&text).context("parse the state")?;
    let pid = state["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
    pid.context("the state has no pid")
}

impl Plan {
    fn change_root(&self, pid: i32) -> anyhow::Result<()> {
        let Some(propagation) = self.propagation else { return Ok(()) };
        self.enter_mounts(pid)?;
        let (none, flag) = (None::<&str>, propagation.flag());
        nix::mount::mount(none, "/", none, flag, none).context("linux.rootfsPropagation")
    }

    fn finish(&self, pid: i32) -> anyhow::Result<()> {
        let tree = Tree::of(pid, &self.rootfs)?;
        let maps = self.steps.iter().map(|step| step.id_map.as_ref());
        let maps = maps.map(|map| map.map(|map| map.namespace(pid)).transpose());
        let maps = maps.collect::<anyhow::Result<Vec<_>>>()?;
        if let Some(dir) = cgroup::of_memory(&self.cgroups, pid).filter(|_| self.copies()) {
            hierarchy::enter(&dir).with_context(|| format!("enter cgroup {}", dir.display()))?;
        }
        let user = File::open(format!("/proc/{pid}/ns/user")).context("open user namespace")?;
        let is_root = self.enter_mounts(pid)?;
        let root = open_path(&self.rootfs)?;
        self.prepare_propagation(&root, &tree).context("linux.rootfsPropagation")?;
        for (step, map) in self.steps.iter().zip(&maps) {
            let context = || format!("mount {}", step.destination.display());
            self.finish_one(&root, step, map.as_ref(), &tree).with_context(context)?;
        }
        if self.user_namespace && (self.cwd.is_some() || self.copies()) {
            // Only its own users are known to its file systems.
            if is_root {
                setns(user, CloneFlags::CLONE_NEWUSER).context("enter the user namespace")?;
            }
            _ = setgroups(&[]);
            setgid(Gid::from_raw(0)).context("become the container's root group")?;
            setuid(Uid::from_raw(0)).context("become the container's root")?;
        }
        for step in self.steps.iter().filter(|step| step.copy_up) {
            fill(&root, &step.destination).with_context(|| {
                format!("mount {}: option \"tmpcopyup\"", step.destination.display())
            })?;
        }
        match &self.cwd {
            Some(cwd) => make_dirs(&root, cwd)
                .with_context(|| format!("process.cwd: make {}", cwd.display())),
            None => Ok(()),
        }
    }

    /// Enters the container's mount namespace, and returns whether that was by root's rights. Others have
    /// them in the container's user namespace alone.
    fn enter_mounts(&self, pid: i32) -> anyhow::Result<bool> {
        let is_root = geteuid().is_root();
        if self.user_namespace && !is_root {
            enter(pid, "user", CloneFlags::CLONE_NEWUSER)?;
        }
        enter(pid, "mnt", CloneFlags::CLONE_NEWNS)?;
        Ok(is_root)
    }

    /// What `rootfsPropagation` means for mounts that say nothing themselves.
    fn prepare_propagation(&self, root: &OwnedFd, tree: &Tree) -> anyhow::Result<()> {
        let Some(Propagation { kind, recursive }) = self.propagation else { return Ok(()) };
        let change = |flag: MsFlags, file: &OwnedFd| {
            let change = Change { propagation: flag.bits(), ..Change::default() };
            mount::change(file, Reach::One, change)
        };
        if matches!(kind, Kind::Shared | Kind::Private) {
            change(MsFlags::MS_PRIVATE, root).context("make the root private")?;
        }
        let of_root = tree.group_of_root(&self.rootfs);
        for known in tree.mounts.iter().filter(|it| it.point != self.rootfs) {
            // The root itself may not be shared before it is the root. What else the host's mount
            // shows in which the root lies is as private as that; for other peers of the host see
            // `finish_one`.
            let beside_root = of_root.is_some() && known.master == of_root;
            let flag = match kind {
                Kind::Private if recursive || beside_root => MsFlags::MS_PRIVATE,
                Kind::Shared if beside_root => MsFlags::MS_PRIVATE,
                Kind::Shared if recursive && known.master.is_none() => MsFlags::MS_SHARED,
                _ => continue,
            };
            // One that is covered by another can't be opened, nor seen.
            if let Ok(file) = open_path(&known.point)
                && mountinfo::id_of(&file)? == known.id
            {
                change(flag, &file).with_context(|| known.point.display().to_string())?;
            }
        }
        Ok(())
    }

    fn finish_one(
        &self,
        root: &OwnedFd,
        step: &Step,
        map: Option<&File>,
        tree: &Tree,
    ) -> anyhow::Result<()> {
        let mut at = open_mount(root, &step.destination)?;
        if let Some(namespace) = map {
            let recursive = step.id_map.as_ref().is_some_and(|map| map.recursive);
            at = replace_mapped(&at, namespace.as_fd(), recursive)
                .context("uidMappings, gidMappings: map the owners of its files")?;
        }
        // With a user namespace of its own a container is nobody's peer: Linux makes its mounts slaves.
        if step.bind && !self.user_namespace && !self.is_inside && self.is_peer(step) {
            tree.join(&at).context("propagation: become a peer of the host's mount")?;
        }
        for propagation in &step.propagation {
            let reach = if propagation.recursive { Reach::All } else { Reach::One };
            let change = Change { propagation: propagation.flag().bits(), ..Change::default() };
            mount::change(&at, reach, change)
                .with_context(|| format!("propagation {:?}", propagation.kind))?;
        }
        let set = if step.no_symlinks { mount::NO_SYMLINKS } else { 0 }
            | if step.read_only { mount::READ_ONLY } else { 0 };
        if set != 0 {
            let change = Change { set, ..Change::default() };
            mount::change(&at, Reach::One, change).context("set nosymfollow or ro")?;
        }
        Ok(())
    }

    /// Whether a bind mount shares what is mounted with the host, as it does with runc: where the
    /// configuration makes nobody a slave, or where it makes the root alone something else, and the mount
    /// asks for it.
    fn is_peer(&self, step: &Step) -> bool {
        let asks = step.propagation.iter().any(|it| it.kind == Kind::Shared);
        self.propagation.is_some_and(|of_root| match of_root.kind {
            Kind::Shared => true,
            _ => !of_root.recursive && asks,
        })
    }
}

impl IdMap {
    /// Returns a user namespace with this mapping, which nobody is in any more, or the container's own.
    fn namespace(&self, pid: i32) -> anyhow::Result<File> {
        let Some((uids, gids)) = &self.maps else {
            let path = format!("/proc/{pid}/ns/user");
            return File::open(&path).with_context(|| format!("open {path}"));
        };
        let mut child = Command::new("/proc/self/exe")
            .arg("user-namespace")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("execute this program")?;
        let made = (|| {
            // A word comes when it is in its namespace.
            let mut word = [0];
            let mut output = child.stdout.take().context("no pipe")?;
            output.read_exact(&mut word).context("make a user namespace")?;
            let proc = PathBuf::from(format!("/proc/{}", child.id()));
            fs::write(proc.join("uid_map"), uids).context("uidMappings: write uid_map")?;
            fs::write(proc.join("gid_map"), gids).context("gidMappings: write gid_map")?;
            File::open(proc.join("ns/user")).context("open the user namespace")
        })();
        drop(child.stdin.take());
        child.wait().context("wait for the user namespace's process")?;
        made
    }
}

/// The hidden command: makes a user namespace and waits until somebody has got hold of it.
pub(crate) fn user_namespace() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context("make a user namespace")?;
    io::stdout().write_all(b".")?;
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Puts a mapped clone in a mount's place: one that is attached can't be mapped.
fn replace_mapped(
    at: &OwnedFd,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> anyhow::Result<OwnedFd> {
    let path = path_of(at)?;
    let tree = mount::clone(at, Reach::All)?;
    let change = Change { id_map: Some(namespace), ..Change::default() };
    let reach = if recursive { Reach::All } else { Reach::One };
    mount::change(&tree, reach, change)?;
    umount2(&path, MntFlags::MNT_DETACH).context("take the mount away that is not mapped")?;
    mount::attach(&tree, &open_path(&path)?)?;
    open_path(&path)
}

/// Copies what a tmpfs covers into it.
fn fill(root: &OwnedFd, destination: &Path) -> anyhow::Result<()> {
    let at = open_mount(root, destination)?;
    let path = path_of(&at)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("it is the root");
    };
    // Clones of one mount each: the first shows what the tmpfs covers, the second what mounts in the
    // tmpfs cover.
    let parent = mount::clone(&open_path(parent)?, Reach::One).context("clone what is below")?;
    let to = mount::clone(&at, Reach::One).context("clone the tmpfs")?;
    mount::change(&to, Reach::One, Change { clear: mount::READ_ONLY, ..Change::default() })?;
    let from = open_name(&parent, name).context("open the directory that it covers")?;
    copy_up::copy(&from, &to)
}
