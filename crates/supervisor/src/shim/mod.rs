//! Shims: how they are spawned, how messages reach them, and how their announcements are read.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use holdfast_state::{StateRoot, shim_options};

use crate::os::children::Spawned;
use crate::os::tasks::Tasks;
use crate::shim::groups::Groups;
use crate::shim::spares::Spares;

pub(crate) mod begin;
pub(crate) mod control;
pub(crate) mod exit_fifo;
pub(crate) mod groups;
mod spares;

/// The name of the shim's executable.
pub(crate) const SHIM: &str = "holdfast-shim";

/// The environment of shims and of the runtimes that they start: how to find programs, and the
/// systemd manager of a user. Anything more would be shown to whoever looks at a shim, and would
/// use memory in each of them.
const ENVIRONMENT: [&str; 3] = ["PATH", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"];

/// What a supervisor needs to spawn and reach its shims.
#[derive(Debug)]
pub(crate) struct Shims {
    pub(crate) program: PathBuf,
    root: Arc<StateRoot>,
    spawned: Arc<Spawned>,
    tasks: Tasks,
    groups: Groups,
    spares: Spares,
}

impl Shims {
    /// Creates this state. `spares` is the number of spare shims that wait for a start.
    pub(crate) fn new(
        program: PathBuf,
        spares: usize,
        root: Arc<StateRoot>,
        spawned: Arc<Spawned>,
        tasks: Tasks,
    ) -> Self {
        let (groups, spares) = (Groups::default(), Spares::new(spares));
        Self { program, root, spawned, tasks, groups, spares }
    }

    /// Returns the command of a shim, still without arguments.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear();
        command.envs(ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command
    }
}

/// Returns the option by which a shim knows in which protocol to announce.
fn protocol() -> [OsString; 2] {
    [shim_options::PROTOCOL_OPTION.into(), shim_options::PROTOCOL.to_string().into()]
}
