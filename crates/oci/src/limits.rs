//! Limits that a container gets once it is made, and not before: libcontainer's own processes are in the
//! container's cgroup and have its limits, so that it could not make a container of one process, or of
//! few open files.

use std::fs;

use anyhow::Context;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, getgid, getuid, setresgid, setresuid};
use oci_spec::runtime::{LinuxPidsBuilder, LinuxResourcesBuilder, PosixRlimit, PosixRlimitType};
use serde_json::Value;

use crate::cgroup::{Cgroup, is_unified};
use crate::scope::Scope;

/// The limits of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Late {
    rlimits: Vec<PosixRlimit>,
    pids: Option<i64>,
    /// libcgroups always turns it on.
    oom_killer_off: Option<bool>,
    /// On version 1 libcgroups forgets it where it is alone.
    burst: Option<u64>,
}

impl Late {
    /// Takes them out of a configuration.
    pub(crate) fn take(config: &mut Value) -> anyhow::Result<Self> {
        let mut late = Self::default();
        if let Some(process) = config["process"].as_object_mut()
            && let Some(limits) = process.remove("rlimits").filter(|limits| !limits.is_null())
        {
            late.rlimits = serde_json::from_value(limits).context("process.rlimits")?;
        }
        let resources = &mut config["linux"]["resources"];
        late.oom_killer_off = resources["memory"]["disableOOMKiller"].as_bool();
        late.burst = resources["cpu"]["burst"].as_u64();
        if let Some(resources) = resources.as_object_mut()
            && let Some(pids) = resources.remove("pids").filter(|pids| !pids.is_null())
        {
            let limit = pids["limit"].as_i64();
            late.pids = Some(limit.context("linux.resources.pids.limit is missing")?);
        }
        Ok(late)
    }

    /// Applies them to the process that waits for `start`.
    pub(crate) fn apply(
        &self,
        pid: i32,
        cgroup: &Cgroup,
        scope: Option<&Scope>,
        id: &str,
    ) -> anyhow::Result<()> {
        for limit in &self.rlimits {
            let typ = limit.typ();
            let (soft, hard) = (limit.soft(), limit.hard());
            let set = || holdfast_sys::resource::set_limit(pid, number(typ), soft, hard);
            let done = match set() {
                Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
                    as_user_of(pid, set)?
                }
                done => done,
            };
            done.with_context(|| format!("process.rlimits: {typ}: set {soft} and {hard}"))?;
        }
        self.apply_to_cgroup(cgroup)?;
        self.apply_pids(cgroup, scope, id).context("pids.limit")
    }

    /// Those that an update of resources may change, beside what libcgroups does. What is not named stays.
    pub(crate) fn of_resources(resources: &Value, cgroup: &Cgroup) -> Self {
        let now = cgroup.dirs.iter().find_map(|dir| {
            let text = fs::read_to_string(dir.join("memory.oom_control")).ok()?;
            text.lines().find_map(|line| Some(line.strip_prefix("oom_kill_disable ")? == "1"))
        });
        let oom_killer_off = resources["memory"]["disableOOMKiller"].as_bool().or(now);
        Self { oom_killer_off, burst: resources["cpu"]["burst"].as_u64(), ..Self::default() }
    }

    /// Applies what concerns the cgroup alone.
    pub(crate) fn apply_to_cgroup(&self, cgroup: &Cgroup) -> anyhow::Result<()> {
        if is_unified()? {
            return Ok(());
        }
        if self.oom_killer_off == Some(true) {
            write(cgroup, "memory.oom_control", "1").context("memory.disableOOMKiller")?;
        }
        match self.burst {
            Some(burst) => {
                write(cgroup, "cpu.cfs_burst_us", &burst.to_string()).context("cpu.burst")
            }
            None => Ok(()),
        }
    }

    fn apply_pids(&self, cgroup: &Cgroup, scope: Option<&Scope>, id: &str) -> anyhow::Result<()> {
        let Some(limit) = self.pids else { return Ok(()) };
        let value = if limit > 0 { limit.to_string() } else { "max".to_owned() };
        if let Some(scope) = scope {
            return scope.write_pids_max(&value);
        }
        if !(cgroup.systemd && is_unified()?) {
            return write(cgroup, "pids.max", &value);
        }
        // systemd would write its own value again one day.
        let pids = LinuxPidsBuilder::default().limit(limit).build()?;
        let resources = LinuxResourcesBuilder::default().pids(pids).build()?;
        cgroup.apply(id, &resources)
    }
}

fn write(cgroup: &Cgroup, name: &str, value: &str) -> anyhow::Result<()> {
    let dir = cgroup.dirs.iter().find(|dir| dir.join(name).exists());
    let file = dir.map(|dir| dir.join(name));
    let file = file.with_context(|| format!("no cgroup of the container has {name}"))?;
    fs::write(&file, value).with_context(|| format!("write {value} to {}", file.display()))
}

/// Does something with the real user and group of a process, which the kernel demands of who sets limits
/// without `CAP_SYS_RESOURCE`. All other rights stay.
fn as_user_of<T>(pid: i32, act: impl FnOnce() -> T) -> anyhow::Result<T> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let first = |name: &str| {
        let ids = status.lines().find_map(|line| line.strip_prefix(name));
        let id = ids.and_then(|ids| ids.split_whitespace().next()?.parse().ok());
        id.with_context(|| format!("{path} has no {name}"))
    };
    let (user, group) = (Uid::from_raw(first("Uid:")?), Gid::from_raw(first("Gid:")?));
    let (own_user, own_group) = (getuid(), getgid());
    let (same_user, same_group) = (Uid::from_raw(u32::MAX), Gid::from_raw(u32::MAX));
    setresgid(group, same_group, same_group).context("take the real group of the container")?;
    let user_taken = setresuid(user, same_user, same_user);
    let result = user_taken.map(|()| act());
    setresuid(own_user, same_user, same_user).context("take the own real user again")?;
    setresgid(own_group, same_group, same_group).context("take the own real group again")?;
    result.context("take the real user of the container")
}

/// See asm-generic/resource.h.
fn number(typ: PosixRlimitType) -> u32 {
    match typ {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}
