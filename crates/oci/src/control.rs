//! `pause`, `resume` and `update`.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

use anyhow::{Context, bail};
use libcgroups::common::{CgroupManager, FreezerState};
use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use crate::args::{Global, Update};
use crate::cgroup::{Cgroup, is_unified};
use crate::check;
use crate::limits::Late;
use crate::record::{Dir, Status};

/// Suspends all processes.
pub(crate) fn pause(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Running | Status::Created => {}
        status => bail!("container not running or created: {}", status.name()),
    }
    record.cgroup.manager(id)?.freeze(FreezerState::Frozen).context("freeze the cgroup")
}

/// Lets them go on.
pub(crate) fn resume(global: &Global, id: &str) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    let record = dir.record()?;
    match dir.status(&record) {
        Status::Paused => {}
        status => bail!("container not paused: {}", status.name()),
    }
    record.cgroup.manager(id)?.freeze(FreezerState::Thawed).context("thaw the cgroup")
}

/// Changes limits; what is not named stays.
pub(crate) fn update(global: &Global, args: &Update) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, &args.id)?;
    let record = dir.record()?;
    if dir.status(&record) == Status::Stopped {
        bail!("container not running");
    }
    let mut text = String::new();
    if args.resources.as_os_str() == "-" {
        io::stdin().read_to_string(&mut text).context("read resources")?;
    } else {
        File::open(&args.resources)
            .and_then(|mut file| file.read_to_string(&mut text))
            .with_context(|| format!("read {}", args.resources.display()))?;
    }
    let json: Value = serde_json::from_str(&text).context("parse resources")?;
    check::resources(&json, is_unified()?).context("resources")?;
    if json["memory"]["checkBeforeUpdate"] == true && is_unified()? {
        // On version 1 the kernel compares the limit with the usage by itself.
        bail!("resources: memory.checkBeforeUpdate: not supported on cgroup version 2");
    }
    let mut resources: LinuxResources =
        serde_json::from_value(json.clone()).context("parse resources")?;
    // As with runc: what a container may open is settled when it is made.
    resources.set_devices(None);
    let devices = DeviceList::read(&record.cgroup)?;
    let late = Late::of_resources(&json, &record.cgroup);
    let applied = record.cgroup.apply(&args.id, &resources).context("apply resources");
    devices.restore()?;
    applied?;
    late.apply_to_cgroup(&record.cgroup)
}

/// The devices that a container may use, on cgroup version 1.
#[derive(Debug)]
struct DeviceList(Option<(PathBuf, String)>);

impl DeviceList {
    fn read(cgroup: &Cgroup) -> anyhow::Result<Self> {
        let Some(dir) = cgroup.dirs.iter().find(|dir| dir.join("devices.list").exists()) else {
            return Ok(Self(None));
        };
        let path = dir.join("devices.list");
        let list = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self(Some((dir.clone(), list))))
    }

    /// Takes back what has been allowed since: libcgroups allows its own few at each change of
    /// anything, and somebody may have denied one of them to the running container.
    fn restore(&self) -> anyhow::Result<()> {
        let Some((dir, before)) = &self.0 else { return Ok(()) };
        let now = fs::read_to_string(dir.join("devices.list")).context("read devices.list")?;
        for added in now.lines().filter(|line| !before.lines().any(|known| known == *line)) {
            fs::write(dir.join("devices.deny"), added)
                .with_context(|| format!("deny {added} again"))?;
        }
        Ok(())
    }
}
