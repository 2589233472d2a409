//! What this runtime does first when it is not run by root: it becomes root in the container's user namespace,
//! so that all that comes after it is done with the rights there.
//!
//! libcontainer could make that namespace too. But it joins none for a process of `exec`, and on cgroup version
//! 1 it fails without the right to write to a cgroup. So it is shown a machine of version 2 whose cgroups are
//! read-only, which it leaves alone.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use libcgroups::common::DEFAULT_CGROUP_ROOT;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_dumpable;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};
use serde_json::Value;

use crate::args::{Global, MapIds, Remove, Run, Verb};
use crate::record::{Dir, Status};
use crate::scope;
use crate::sealed::start_over;
use crate::spec::read_json;

/// Whether this process is root, be it that of a user namespace.
pub(crate) fn is_root() -> bool {
    geteuid().is_root()
}

/// Becomes root in the user namespace of the container that a command is for, and starts over.
///
/// What comes of this process may be looked into from that namespace only if it was executed there
/// (`PTRACE_MODE_READ_FSCREDS` of ptrace(2)).
pub(crate) fn become_root_for(global: &Global, verb: &Verb) -> anyhow::Result<()> {
    let program = File::open("/proc/self/exe").context("open /proc/self/exe")?;
    let path = fs::read_link("/proc/self/exe").context("read the link /proc/self/exe")?;
    let socket = match verb {
        Verb::Create(create) | Verb::Run(Run { create, .. }) => &create.process.console_socket,
        Verb::Exec(exec) => &exec.common.console_socket,
        _ => return Ok(()),
    };
    let console_dir = socket.as_deref().map(open_console_dir).transpose()?;
    let mut scope = None;
    match verb {
        Verb::Create(create) | Verb::Run(Run { create, .. }) => {
            let mut config = read_json(&create.bundle.join("config.json"))?;
            let users = Users::take(&mut config).context("config.json")?;
            match global.in_scope {
                Some(program) => scope = Some(scope::enter(program, &create.id, &config)?),
                None if scope::is_asked_for(global)? => {
                    return scope::start_over(&create.id, &config);
                }
                None => {}
            }
            users.enter_new()?;
        }
        Verb::Exec(exec) => {
            let dir = Dir::of(&global.root, &exec.id)?;
            let record = dir.record()?;
            if dir.status(&record) == Status::Paused {
                // This process would be suspended in the container's cgroup.
                bail!("cannot exec in a paused container");
            }
            let process = record.process().context("cannot exec in a stopped container")?;
            scope::join(&record.cgroup)?;
            setns(process, CloneFlags::CLONE_NEWUSER)
                .context("enter the container's user namespace")?;
            become_root()?;
        }
        _ => return Ok(()),
    }
    hide_cgroups().context("hide the cgroups from libcontainer")?;
    let mut args = vec!["--is-inside".to_owned()];
    if let Some(dir) = &console_dir {
        args.extend(["--console-dir".to_owned(), dir.as_raw_fd().to_string()]);
    }
    if let Some(scope) = &scope {
        args.extend(scope.args()?);
    }
    start_over(in_this_namespace(program, &path)?, &args)
}

/// Opens this program in the mount namespace that it is in now, whose mounts alone can be cloned. The same file,
/// if its path leads elsewhere meanwhile.
fn in_this_namespace(program: File, path: &Path) -> anyhow::Result<File> {
    let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino()));
    match File::open(path) {
        Ok(found) if identity(&found)? == identity(&program)? => Ok(found),
        _ => Ok(program),
    }
}

/// Opens the directory of a console socket for the program that this one becomes: its path may lead through a
/// descriptor of the caller's, into which the root of another user namespace may not look.
fn open_console_dir(socket: &Path) -> anyhow::Result<OwnedFd> {
    let socket = std::path::absolute(socket)?;
    let dir = socket.parent().context("a console socket is in a directory")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    open(dir, flags, Mode::empty()).with_context(|| format!("open {}", dir.display()))
}

/// The path by which this process reaches the console socket.
pub(crate) fn console_socket(global: &Global, socket: &Path) -> anyhow::Result<PathBuf> {
    let Some(dir) = global.console_dir else { return Ok(std::path::absolute(socket)?) };
    let name = socket.file_name().context("a console socket has a name")?;
    Ok(Path::new("/proc/self/fd").join(dir.to_string()).join(name))
}

/// The mappings of a container's new user namespace.
#[derive(Debug)]
pub(crate) struct Users {
    uids: Vec<String>,
    gids: Vec<String>,
}

impl Users {
    /// Takes the new user namespace out of a configuration.
    pub(crate) fn take(config: &mut Value) -> anyhow::Result<Self> {
        let linux = &mut config["linux"];
        let is_new =
            |it: &Value| it["type"] == "user" && it["path"].as_str().is_none_or(str::is_empty);
        let namespaces = linux["namespaces"].as_array_mut();
        let own = namespaces.and_then(|all| Some((all.iter().position(is_new)?, all)));
        let Some((own, namespaces)) = own else {
            bail!(
                "linux.namespaces has no new user namespace, and this is user {}: add one of type \"user\", \
                 with uidMappings and gidMappings",
                geteuid()
            );
        };
        namespaces.remove(own);
        let mut take = |name: &str| {
            let mappings = linux.as_object_mut().and_then(|linux| linux.remove(name));
            words(&mappings.unwrap_or_default()).with_context(|| format!("linux.{name}"))
        };
        let (uids, gids) = (take("uidMappings")?, take("gidMappings")?);
        Ok(Self { uids, gids })
    }

    /// Makes the namespace and becomes root in it.
    fn enter_new(&self) -> anyhow::Result<()> {
        let is_one = |words: &[String], own: u32| match words {
            [_, host, size] => *host == own.to_string() && size == "1",
            _ => false,
        };
        if is_one(&self.uids, geteuid().as_raw()) && is_one(&self.gids, getegid().as_raw()) {
            make()?;
            let write = |name: &str, text: &str| {
                let path = format!("/proc/self/{name}");
                fs::write(&path, text).with_context(|| format!("write {text:?} to {path}"))
            };
            // The kernel demands it of who maps its own group alone.
            write("setgroups", "deny")?;
            write("uid_map", &self.uids.join(" "))?;
            write("gid_map", &self.gids.join(" "))?;
        } else {
            self.have_mapped()?;
        }
        become_root()
    }

    /// Has newuidmap(1) and newgidmap(1) map the ids. A process that is in a new user namespace can't execute
    /// them with the rights that they take, so a child does that has stayed.
    fn have_mapped(&self) -> anyhow::Result<()> {
        let mut child = Command::new("/proc/self/exe")
            .arg("map-ids")
            .args(["--pid", &std::process::id().to_string()])
            .args(["--uids", &self.uids.join(" "), "--gids", &self.gids.join(" ")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("execute this program")?;
        let made = make();
        // The child waits for this word.
        let told = made.and_then(|()| {
            let mut input = child.stdin.take().context("no pipe")?;
            input.write_all(b".").context("tell the child")
        });
        drop(child.stdin.take());
        let output = child.wait_with_output().context("wait for newuidmap and newgidmap")?;
        told?;
        if output.status.success() {
            return Ok(());
        }
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
    }
}

fn make() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "make a user namespace: the kernel may allow none to this user; see user.max_user_namespaces and \
         kernel.unprivileged_userns_clone of sysctl(8)",
    )?;
    // newuidmap(1) maps a process of its caller's alone, and a process that is not dumpable is root's.
    Ok(set_dumpable(true)?)
}

/// The ids of mappings as newuidmap(1) takes them.
fn words(mappings: &Value) -> anyhow::Result<Vec<String>> {
    let all = mappings.as_array().filter(|all| !all.is_empty()).context("there are no mappings")?;
    let fields = all.iter().flat_map(|it| ["containerID", "hostID", "size"].map(|name| (it, name)));
    fields
        .map(|(mapping, name)| {
            let number = mapping[name].as_u64().with_context(|| format!("{name} is no number"))?;
            Ok(number.to_string())
        })
        .collect()
}

/// The hidden command: waits for a word, and maps the ids of a process.
pub(crate) fn map_ids(args: &MapIds) -> anyhow::Result<()> {
    if io::stdin().read(&mut [0])? == 0 {
        // Whoever was to make the namespace has failed, and says so.
        return Ok(());
    }
    for (program, ids) in [("newuidmap", &args.uids), ("newgidmap", &args.gids)] {
        let output = Command::new(program)
            .arg(args.pid.to_string())
            .args(ids.split(' '))
            .output()
            .with_context(|| format!("execute {program}; Debian has it in the package uidmap"))?;
        if !output.status.success() {
            bail!("{program} {ids}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// The hidden command: removes a directory in which files may belong to any of these ids.
pub(crate) fn remove(args: &Remove) -> anyhow::Result<()> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect();
    Users { uids: words(&args.uids), gids: words(&args.gids) }.enter_new()?;
    fs::remove_dir_all(&args.path).with_context(|| format!("remove {}", args.path.display()))
}

fn become_root() -> anyhow::Result<()> {
    // The caller's groups are no business of the container's. Where its ids are mapped by itself alone, the
    // kernel has it keep them.
    _ = setgroups(&[]);
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(group, group, group).context("linux.gidMappings: become group 0")?;
    setresuid(user, user, user).context("linux.uidMappings: become user 0")
}

/// Shows the processes that come of this one cgroups of version 2 in which nobody can write.
fn hide_cgroups() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP).context("make namespaces")?;
    let none = None::<&str>;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none).context("/")?;
    // On a machine of version 2 that file system is mounted there, and Linux mounts none twice at the same place.
    mount(Some("tmpfs"), DEFAULT_CGROUP_ROOT, Some("tmpfs"), flags, none)
        .with_context(|| format!("mount tmpfs at {DEFAULT_CGROUP_ROOT}"))?;
    mount(Some("cgroup2"), DEFAULT_CGROUP_ROOT, Some("cgroup2"), flags, none)
        .with_context(|| format!("mount cgroup2 at {DEFAULT_CGROUP_ROOT}"))?;
    // Of this mount alone: the file system is one for all.
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount(none, DEFAULT_CGROUP_ROOT, none, read_only, none)
        .with_context(|| format!("make {DEFAULT_CGROUP_ROOT} read-only"))
}

/// Refuses what would take a cgroup. Rules for devices do not: in a user namespace nobody can make one.
pub(crate) fn refuse_limits(resources: &mut Value) -> anyhow::Result<()> {
    for (name, value) in std::mem::take(resources).as_object().into_iter().flatten() {
        if name != "devices" && crate::check::is_set(value) {
            bail!("{name}: there is no cgroup without root's rights");
        }
    }
    Ok(())
}

/// Refuses a user of a process who is nobody in this user namespace: setresuid(2) would call it an invalid
/// argument.
pub(crate) fn check_user(process: &Value) -> anyhow::Result<()> {
    let user = &process["user"];
    let further = user["additionalGids"].as_array().into_iter().flatten();
    let groups = std::iter::once(&user["gid"]).chain(further);
    let users = std::iter::once(&user["uid"]);
    let uids = fs::read_to_string("/proc/self/uid_map").context("read /proc/self/uid_map")?;
    let gids = fs::read_to_string("/proc/self/gid_map").context("read /proc/self/gid_map")?;
    let users = users.map(|id| ("uid", id, &uids));
    for (name, id, map) in users.chain(groups.map(|id| ("gid", id, &gids))) {
        let id = id.as_u64().unwrap_or(0);
        if !is_mapped(map, id) {
            bail!("user: {name} {id} is not mapped in the container's user namespace");
        }
    }
    Ok(())
}

/// Whether a map of user_namespaces(7) has an id.
fn is_mapped(map: &str, id: u64) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
        let [inside, _, size] = numbers[..] else { return false };
        id.checked_sub(inside).is_some_and(|offset| offset < size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mappings_become_the_words_of_newuidmap() {
        let mapping = json!([
            { "containerID": 0, "hostID": 1001, "size": 1 },
            { "containerID": 1, "hostID": 100_000, "size": 65_536 },
        ]);
        assert_eq!(words(&mapping).unwrap(), ["0", "1001", "1", "1", "100000", "65536"]);
        assert!(words(&json!([])).is_err());
        assert!(words(&json!([{ "containerID": 0, "size": 1 }])).is_err());
    }

    #[test]
    fn an_id_is_mapped_or_not() {
        let map = "         0       1001          1\n         1     100000      65536\n";
        assert!([0, 1, 65_536].iter().all(|id| is_mapped(map, *id)));
        assert!(!is_mapped(map, 65_537) && !is_mapped("", 0) && !is_mapped("x y z", 0));
    }

    #[test]
    fn limits_are_refused_by_name_and_rules_for_devices_are_not() {
        let mut resources = json!({ "devices": [{ "allow": false }], "memory": {}, "pids": null });
        refuse_limits(&mut resources).unwrap();
        assert!(resources.is_null());
        let error = refuse_limits(&mut json!({ "pids": { "limit": 5 } })).unwrap_err().to_string();
        assert!(error.starts_with("pids: "), "{error}");
    }
}
