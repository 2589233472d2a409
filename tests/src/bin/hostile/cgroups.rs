//! Cgroups of others, and the own limits.
//!
//! A container has `/sys/fs/cgroup`, read-only. In a user and a cgroup namespace of its own it may mount
//! each hierarchy anew, where it sees what the cgroup namespace shows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

use super::report::Report;

/// Mounts of hierarchies that are there, and those that can be made: as what this is, and as root of a user
/// and a cgroup namespace of its own.
fn hierarchies(report: &mut Report) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (path, kind) in mounts() {
        if (kind == "cgroup" || kind == "cgroup2") && !found.contains(&path) {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            let none: Option<&str> = None;
            let done = mount(none, &path, none, flags, none);
            report.must_fail(format!("remount {} for writing", path.display()), done);
            found.push(path);
        }
    }
    mount_all("hierarchy", &mut found, report);
    let all = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS;
    let (uid, gid) = (getuid(), getgid());
    let made = unshare(all).map_err(io::Error::from).and_then(|()| {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    });
    // Whether that is refused or not is the concern of another attack.
    report.may_fail("unshare user, cgroup and mount namespaces", made);
    mount_all("own-hierarchy", &mut found, report);
    found
}

/// Mounts every hierarchy that there is.
fn mount_all(place: &str, found: &mut Vec<PathBuf>, report: &mut Report) {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    for (number, line) in own.lines().enumerate() {
        let name = line.split(':').nth(1).unwrap_or_default();
        let (kind, data) = match name.strip_prefix("name=") {
            _ if name.is_empty() => ("cgroup2", None),
            Some(_) => ("cgroup", Some(format!("none,{name}"))),
            None => ("cgroup", Some(name.to_owned())),
        };
        let places = ["/dev/shm", "/tmp", "/dev"].map(|dir| format!("{dir}/{place}{number}"));
        let Some(at) = places.into_iter().find(|at| fs::create_dir_all(at).is_ok()) else {
            continue;
        };
        let at = PathBuf::from(at);
        let done = mount(Some("none"), &at, Some(kind), MsFlags::empty(), data.as_deref());
        if report.may_fail(format!("mount {kind} {name}"), done).is_some() {
            found.push(at);
        }
    }
}

/// The mounts of this process, and of what kind they are.
pub(crate) fn mounts() -> Vec<(PathBuf, String)> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let path = front.split(' ').nth(4)?.replace("\\040", " ");
        Some((PathBuf::from(path), back.split(' ').next()?.to_owned()))
    };
    text.lines().filter_map(mount).collect()
}

/// `cgroups NAME`.
pub(crate) fn foreign(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [name] = args else { return Err(io::Error::other("the name of a cgroup")) };
    for dir in hierarchies(report) {
        let shown = dir.display();
        // A process of another pid namespace has the number 0.
        let members = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        if members.lines().any(|line| line == "0") {
            report.broke(format!("{shown} shows processes of others"));
        }
        for victim in [dir.join(name), dir.join("..").join(name), dir.join("../../..").join(name)] {
            attack(&victim, report);
        }
    }
    Ok(())
}

fn attack(victim: &Path, report: &mut Report) {
    // It is not frozen: this joins it before, and would never say what came of that.
    let files = [
        ("cgroup.kill", "1"),
        ("cgroup.procs", "0"),
        ("tasks", "0"),
        ("cgroup.max.descendants", "7"),
        ("pids.max", "1"),
    ];
    if report.must_fail(victim.display(), fs::metadata(victim)).is_none() {
        return;
    }
    for (file, value) in files {
        // It must be there: files can't be made here, but this may not be what it looks like.
        if victim.join(file).exists() {
            let done = fs::write(victim.join(file), value);
            report.must_fail(format!("write {value} to {file} of it"), done);
        }
    }
}

/// `cgroup-limits`.
pub(crate) fn own_limits(_: &[&str], report: &mut Report) -> io::Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let paths: Vec<&str> = own.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect();
    let mut lifted = 0;
    for dir in hierarchies(report) {
        let mut places = vec![dir.clone()];
        places.extend(paths.iter().map(|path| dir.join(path.trim_start_matches('/'))));
        for place in places {
            for (file, value) in [
                ("pids.max", "max"),
                ("memory.max", "max"),
                ("memory.high", "max"),
                ("cpu.max", "max"),
                ("memory.limit_in_bytes", "-1"),
                ("cpu.cfs_quota_us", "-1"),
                ("devices.allow", "a *:* rwm"),
                ("cgroup.procs", "0"),
            ] {
                let path = place.join(file);
                // The own cgroup may be joined: one is in it.
                if !path.exists() || (file == "cgroup.procs" && place != dir) {
                    continue;
                }
                let done = fs::write(&path, value);
                lifted += usize::from(done.is_ok() && file != "cgroup.procs");
                report.may_fail(format!("write {value} to {}", path.display()), done);
            }
        }
    }
    // Without a limit there is nothing to lift: who runs this looks at the limits.
    report.saw(format!("{lifted} limits written"));
    if lifted > 0 {
        report.broke("limits of the own cgroup are written");
    }
    Ok(())
}
