//! The machine's cgroup hierarchies, and this process's way into a container's cgroups.
//!
//! libcgroups puts a container into the hierarchies of the controllers that it knows. In all others
//! (`name=systemd` and its like, the unified one beside version 1, `rdma`, `misc`) the container would
//! stay in its caller's cgroup, and with a user and a cgroup namespace of its own could mount that and
//! kill or stop what else is in it. libcontainer offers no step at which to move the container before
//! it has its cgroup namespace. So this process goes into the container's cgroups there while
//! libcontainer forks, and comes back.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use holdfast_sys::mountinfo::{self, Mount};
use libcgroups::common::DEFAULT_CGROUP_ROOT;

use crate::cgroup::is_unified;

/// What version 1's hierarchies of a controller that libcgroups knows are mounted as. It finds them by
/// the last part of that path.
const KNOWN: [&str; 15] = [
    "blkio",
    "cpu",
    "cpu,cpuacct",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_cls,net_prio",
    "net_prio",
    "net_prio,net_cls",
    "perf_event",
    "pids",
];

/// A hierarchy that is mounted where this process sees it. One that is not can't be joined: a container
/// shares its caller's cgroup there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Its mount point.
    pub(crate) mount: PathBuf,
    /// Whether libcgroups puts containers into it.
    pub(crate) known: bool,
    /// What `/proc/PID/cgroup` calls it: its controllers, or its name.
    name: String,
    /// The cgroup of this process in it, as that file has it.
    own: PathBuf,
    /// The same as a directory; none if the mount does not show it.
    home: Option<PathBuf>,
}

impl Hierarchy {
    /// Whether it is the one of version 2.
    pub(crate) fn is_unified(&self) -> bool {
        self.name.is_empty()
    }
}

/// All hierarchies, as they are before any [`Visit`].
pub(crate) fn all() -> anyhow::Result<Vec<Hierarchy>> {
    let cgroup = read("/proc/self/cgroup")?;
    let mounts = read("/proc/self/mountinfo")?;
    let unified = is_unified()?;
    // One that is hidden by another mount is none.
    Ok(parse(&cgroup, &mounts, unified, |mount| mount.join("cgroup.procs").exists()))
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

/// See proc_pid_mountinfo(5) and cgroups(7).
fn parse(
    cgroup: &str,
    mounts: &str,
    unified: bool,
    is_there: impl Fn(&Path) -> bool,
) -> Vec<Hierarchy> {
    let mounts = mountinfo::parse(mounts);
    let mut found = Vec::new();
    for (name, own) in cgroups(cgroup) {
        let wanted: Vec<&str> = name.split(',').filter(|name| !name.is_empty()).collect();
        let fits = |mount: &&Mount| {
            let has_all = |has: Vec<&str>| {
                has.is_empty() == wanted.is_empty() && wanted.iter().all(|name| has.contains(name))
            };
            mount.controllers().is_some_and(has_all) && is_there(&mount.point)
        };
        let known = |mount: &Mount| match (unified, wanted.is_empty()) {
            (true, true) => mount.point == Path::new(DEFAULT_CGROUP_ROOT),
            (false, false) => {
                let last = mount.point.file_name().and_then(|name| name.to_str());
                wanted.iter().any(|name| KNOWN.contains(name))
                    && last.is_some_and(|last| KNOWN.contains(&last))
            }
            _ => false,
        };
        let home = |mount: &Mount| {
            let below = own.strip_prefix(&mount.root).ok()?;
            let upwards = below.components().any(|part| part.as_os_str() == "..");
            let whole = below.as_os_str().is_empty();
            let dir = if whole { mount.point.clone() } else { mount.point.join(below) };
            (!upwards).then_some(dir)
        };
        // Where libcgroups goes; else, where the way back is to be seen.
        let chosen = mounts.iter().filter(fits).min_by_key(|it| (!known(it), home(it).is_none()));
        if let Some(mount) = chosen {
            found.push(Hierarchy {
                mount: mount.point.clone(),
                known: known(mount),
                name: name.to_owned(),
                own: own.to_owned(),
                home: home(mount),
            });
        }
    }
    found
}

/// The lines of `/proc/PID/cgroup`: each hierarchy's name, and the process's cgroup there.
fn cgroups(text: &str) -> impl Iterator<Item = (&str, &Path)> {
    text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, Path::new(fields.next()?)))
    })
}

/// Fails if a process is in the cgroup in which this one was when the hierarchies were looked for, or in
/// one above that.
pub(crate) fn check_apart(pid: i32, all: &[Hierarchy]) -> anyhow::Result<()> {
    let text = read(&format!("/proc/{pid}/cgroup"))?;
    for (name, path) in cgroups(&text) {
        let Some(hierarchy) = all.iter().find(|it| it.name == name) else { continue };
        if hierarchy.own.starts_with(path) {
            bail!(
                "the container stayed in cgroup {} of the hierarchy at {}, where its caller is too",
                path.display(),
                hierarchy.mount.display()
            );
        }
    }
    Ok(())
}

/// This process in the cgroups of a container, where libcgroups puts nobody. It goes back when this is
/// dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Visit {
    homes: Vec<PathBuf>,
}

impl Visit {
    /// Makes the cgroups and goes there. Each directory is in the hierarchy of the same place in the
    /// list.
    pub(crate) fn begin<'a>(
        cgroups: impl IntoIterator<Item = (&'a Hierarchy, &'a PathBuf)>,
    ) -> anyhow::Result<Self> {
        let mut visit = Self { homes: Vec::new() };
        for (hierarchy, dir) in cgroups {
            let home = hierarchy.home.clone().with_context(|| {
                format!(
                    "the mount at {} does not show this process's own cgroup, so that it could not \
                     come back from the container's",
                    hierarchy.mount.display()
                )
            })?;
            make(&hierarchy.mount, dir)
                .with_context(|| format!("make cgroup {}", dir.display()))?;
            enter(dir).with_context(|| format!("enter cgroup {}", dir.display()))?;
            visit.homes.push(home);
        }
        Ok(visit)
    }

    /// Where this process goes back to.
    pub(crate) fn homes(&self) -> &[PathBuf] {
        &self.homes
    }

    /// Goes back.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        std::mem::take(&mut self.homes).iter().try_for_each(|home| go_back(home))
    }

    /// Stays: this process ends now. On the way back it might wait for a grace period of the kernel, of some
    /// ten milliseconds.
    pub(crate) fn stay(mut self) {
        self.homes.clear();
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        for home in &self.homes {
            if let Err(error) = go_back(home) {
                tracing::error!("{error:#}");
            }
        }
    }
}

/// Puts this process into a cgroup in which it has been before. A service manager may have removed that
/// since, as it was empty.
pub(crate) fn go_back(home: &Path) -> anyhow::Result<()> {
    let entered = match enter(home) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(home).and_then(|()| enter(home))
        }
        entered => entered,
    };
    entered.with_context(|| format!("go back to cgroup {}", home.display()))
}

/// Puts this process into a cgroup.
pub(crate) fn enter(dir: &Path) -> io::Result<()> {
    open(dir)?.write_all(b"0")
}

/// Opens what a process writes to that wants to be in a cgroup. That it may is decided here.
pub(crate) fn open(dir: &Path) -> io::Result<File> {
    File::options().write(true).open(dir.join("cgroup.procs"))
}

/// Makes a cgroup and those above it.
fn make(mount: &Path, dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if !dir.join("cpuset.mems").exists() {
        return Ok(());
    }
    // In version 1 a new cgroup has no processors and no memory to run on until it is given some.
    let below: Vec<&Path> = dir.ancestors().take_while(|it| *it != mount).collect();
    for dir in below.iter().rev() {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if fs::read_to_string(dir.join(name))?.trim().is_empty() {
                let above = dir.parent().unwrap_or(mount).join(name);
                fs::write(dir.join(name), fs::read(above)?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(cgroup: &str, mounts: &str, unified: bool) -> Vec<(String, bool, Option<String>)> {
        let text = |path: &Path| path.display().to_string();
        parse(cgroup, mounts, unified, |mount| mount != Path::new("/hidden"))
            .iter()
            .map(|it| (text(&it.mount), it.known, it.home.as_deref().map(text)))
            .collect()
    }

    fn entry(mount: &str, known: bool, home: Option<&str>) -> (String, bool, Option<String>) {
        (mount.to_owned(), known, home.map(str::to_owned))
    }

    #[test]
    fn each_hierarchy_is_found_by_its_controllers() {
        let cgroup = "13:misc:/\n12:cpu,cpuacct:/a\n11:name=systemd:/a/b\n10:pids:/a\n\
                      9:name=other:/\n8:rdma:/\n0::/c d\n";
        let mounts = "24 19 0:22 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755\n\
             25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:5 - cgroup cgroup rw,cpu,cpuacct\n\
             26 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
             27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             28 24 0:26 / /elsewhere/pids rw - cgroup cgroup rw,pids\n\
             29 24 0:27 / /a\\040mount rw - cgroup other rw,name=other\n\
             30 24 0:28 / /hidden rw - cgroup cgroup rw,rdma\n";
        let expected = [
            entry("/sys/fs/cgroup/cpu,cpuacct", true, Some("/sys/fs/cgroup/cpu,cpuacct/a")),
            entry("/sys/fs/cgroup/systemd", false, Some("/sys/fs/cgroup/systemd/a/b")),
            entry("/elsewhere/pids", true, Some("/elsewhere/pids/a")),
            entry("/a mount", false, Some("/a mount")),
            entry("/sys/fs/cgroup/unified", false, Some("/sys/fs/cgroup/unified/c d")),
        ];
        assert_eq!(found(cgroup, mounts, false), expected);
    }

    #[test]
    fn on_version_2_libcgroups_goes_to_the_unified_hierarchy_alone() {
        let mounts = "25 24 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                      26 24 0:24 / /run/net_cls rw - cgroup net_cls rw,net_cls\n";
        let expected = [
            entry("/run/net_cls", false, Some("/run/net_cls/vpn")),
            entry("/sys/fs/cgroup", true, Some("/sys/fs/cgroup/user.slice")),
        ];
        assert_eq!(found("1:net_cls:/vpn\n0::/user.slice\n", mounts, true), expected);
    }

    #[test]
    fn a_mount_that_shows_a_part_is_joined_by_what_it_shows() {
        let mounts =
            "1 0 0:1 /docker/x /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let part = |home| vec![entry("/sys/fs/cgroup/systemd", false, home)];
        let home = Some("/sys/fs/cgroup/systemd/y");
        assert_eq!(found("1:name=systemd:/docker/x/y\n", mounts, false), part(home));
        assert_eq!(found("1:name=systemd:/docker/xy\n", mounts, false), part(None));
        // As it is seen from another cgroup namespace than the mount's.
        let mounts = mounts.replace("/docker/x", "/..");
        assert_eq!(found("1:name=systemd:/a\n", &mounts, false), part(None));
        // A second mount may show more.
        let both = format!("{mounts}2 0 0:1 / /mnt rw - cgroup cgroup rw,name=systemd\n");
        assert_eq!(
            found("1:name=systemd:/a\n", &both, false),
            [entry("/mnt", false, Some("/mnt/a"))]
        );
    }

    #[test]
    fn a_process_beside_this_one_is_not_apart() {
        let own = i32::try_from(std::process::id()).unwrap();
        let all = all().unwrap();
        if all.is_empty() {
            return eprintln!("NOT RUN: it takes a cgroup hierarchy");
        }
        let error = check_apart(own, &all).unwrap_err().to_string();
        assert!(error.contains("where its caller is too"), "{error}");
    }
}
