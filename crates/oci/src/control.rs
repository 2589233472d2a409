//! `pause`, `resume` and `update`.

use std::fs::File;
use std::io::{self, Read};

use anyhow::{Context, bail};
use libcgroups::common::{CgroupManager, ControllerOpt, FreezerState};
use oci_spec::runtime::LinuxResources;

use crate::args::{Global, Update};
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
    let resources: LinuxResources = serde_json::from_str(&text).context("parse resources")?;
    let options = ControllerOpt {
        resources: &resources,
        freezer_state: None,
        oom_score_adj: None,
        disable_oom_killer: false,
    };
    record.cgroup.manager(&args.id)?.apply(&options).context("apply resources")
}
