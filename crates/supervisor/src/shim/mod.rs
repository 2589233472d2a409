//! Shims: how they are spawned, how messages reach them, and how their announcements are read.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use holdfast_state::StateRoot;

use crate::os::children::{Spawned, hide_our_own_manager};
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
        hide_our_own_manager(&mut command);
        command
    }
}
