//! Starts a process that is on disk by a shim, and waits until it exists or the failed start has
//! been cleared away.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;

use holdfast_state::shim_options;
use nix::sys::resource::{Resource, getrlimit};
use tokio::time::Instant;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::failure::Failure;
use crate::model::lifecycle::State;
use crate::model::process::Process;
use crate::ops::layout::{Job, millis};
use crate::shim::begin::ShimEnds;
use crate::shim::exit_fifo::ExitFifo;
use crate::watch::Watch;

/// A start that is under way. Its shim may have failed to spawn.
pub(crate) struct Begun {
    container: Arc<ContainerState>,
    process: Arc<Process>,
    /// The deadline of the start; `None` if the clock can't represent it.
    deadline: Option<Instant>,
    shim: io::Result<(File, Option<Child>)>,
}

/// Spawns the shim of a process. This blocks on the disk.
pub(crate) fn begin(core: &Arc<Core>, container: &Arc<ContainerState>, job: &Job) -> Begun {
    let deadline = Instant::now().checked_add(job.timeout);
    let shim = begin_shim(core, container.runtime.bundle(), job);
    let (container, process) = (container.clone(), job.process.clone());
    Begun { container, process, deadline, shim }
}

/// Spawns the watch of the process. Waits until the process exists, or the failed start has been
/// cleared away.
pub(crate) async fn launch(core: &Arc<Core>, begun: Begun) -> Result<(), Error> {
    let Begun { container, process, deadline, shim } = begun;
    let (exit, shim) = shim
        .and_then(|(reader, shim)| Ok((Some(ExitFifo::new(reader)?), shim)))
        .unwrap_or_else(|error| {
            // Nothing runs yet, so all that the watch has to do is to clear away.
            process.fail(match error.kind() {
                io::ErrorKind::TimedOut => {
                    let timeout = process.start_timeout;
                    Failure::Timeout { timeout, detail: error.to_string() }
                }
                _ => Failure::io(format!("start {}", core.shims.program.display()), &error),
            });
            (None, None)
        });
    let has_own_shim = shim.is_some();
    core.tasks.spawn(Watch::new(core, &container, &process, exit, shim, deadline).run());
    let state = tokio::select! {
        state = process.reached(|state| *state != State::Creating) => state,
        () = core.tasks.stop.cancelled() => return Err(Error::Closed),
    };
    match state {
        State::Abandoned => Err(process.failure()),
        _ => {
            if has_own_shim {
                core.shims.refill_later();
            }
            Ok(())
        }
    }
}

fn begin_shim(core: &Arc<Core>, bundle: &Path, job: &Job) -> io::Result<(File, Option<Child>)> {
    let mut ends = ShimEnds::open(&job.dir, &job.record)?;
    ends.words.extend(["--timeout-ms".into(), millis(job.timeout).to_string().into()]);
    // The shim of a group raises its own limit, so that of the container must be given.
    let own = || getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
    let in_a_group = ends.group.is_some();
    if let Some(soft) = core.container_nofile.or_else(|| own().filter(|_| in_a_group)) {
        ends.words.extend(["--nofile".into(), soft.to_string().into()]);
    }
    if bundle != Path::new("") {
        ends.words.extend([shim_options::CWD.into(), bundle.into()]);
    }
    ends.words.push("--".into());
    ends.words.extend(job.command.iter().cloned());
    ends.begin(&core.shims, job.timeout, None)
}
