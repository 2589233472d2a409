//! Restores containers from what is on disk, and resumes their watches. No shim is asked for
//! anything: files are read, and descriptors are opened and watched.

use std::collections::HashSet;
use std::io;
use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use holdfast_state::directory::is_damage;
use holdfast_state::handoff::FdName;
use holdfast_state::journal::{self, Doing, KnownProcess};
use holdfast_state::root::Found;
use holdfast_state::seed::SeedState;
use holdfast_state::{
    ContainerDir, ContainerId, Event, EventKind, Evidence, ExitRecord, ExitStatus, Launch, Problem,
    ProcessDir, ProcessId, ProcessRecord, ShimRecord, Timestamp, UnknownReason,
};
use holdfast_sys::{PidFd, resource};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::core::Core;
use crate::error::Error;
use crate::model::container::ContainerState;
use crate::model::copies::Copies;
use crate::model::events;
use crate::model::identity::Handle;
use crate::model::keeper::Kept;
use crate::model::lifecycle::{Activity, Shim, State};
use crate::model::process::{Origin, Process, incarnation_of};
use crate::ops::set_aside::{self, Trouble};
use crate::os::tasks::blocking;
use crate::runtime::command::Runtime;
use crate::shim::exit_fifo::ExitFifo;
use crate::watch::{Watch, change, shim_record};

/// How many threads give descriptors to the keeper.
const KEEPING: usize = 2;

/// How many descriptors there are for a container with output: of its exit FIFO, its process and its two pipes.
const FILES_EACH: usize = 4;

/// Before a restore of so many containers, room is made for their descriptors, and afterwards the memory that it took
/// meanwhile is given back.
const MANY: usize = 200;
/// How long after the restore.
const GIVE_BACK_AFTER: Duration = Duration::from_secs(2);

/// A process as it was found on disk.
struct Restored {
    process: Arc<Process>,
    exit: Option<ExitFifo>,
    /// The events that happened and are missing in the journal.
    missing: Vec<EventKind>,
    /// The container's events that an earlier build stored elsewhere; set for the init only.
    imported: Vec<Event>,
    /// Whether the runtime must be asked for the outcome of a change that was begun.
    doubtful: bool,
    /// Its shim, if that is alive.
    shim: Option<ShimRecord>,
    /// Whether the keeper already has our descriptors of it.
    kept: bool,
}

/// Restores every container in the state root. Returns the problems of those that could not be
/// restored.
pub(crate) async fn restore(core: &Arc<Core>) -> Result<Vec<Problem>, Error> {
    let restored = {
        let core = core.clone();
        blocking(move || {
            core.root.forget_runtimes_of_other_boots(&core.boot_id)?;
            core.shims.sweep_groups()?;
            let mut problems = Vec::new();
            let names = core.root.scan(&mut problems)?;
            let restored = restore_all(&core, &names, &mut problems);
            report_the_past(&core, &names, &restored);
            // The watches begin only now, because their tasks would slow down the threads that
            // restore.
            let turns = Arc::new(Semaphore::new(KEEPING));
            for (container, restored) in restored {
                take_up(&core, &container, restored, &turns);
            }
            Ok(problems)
        })
        .await
    };
    let mut problems = restored
        .map_err(Error::io(format!("read the state root {}", core.root.path().display())))?;
    if core.containers().len() >= MANY {
        let stop = core.tasks.stop.clone();
        core.tasks.spawn(async move {
            // Later: the allocator is locked meanwhile, and clients are waiting.
            let later = stop.run_until_cancelled(tokio::time::sleep(GIVE_BACK_AFTER)).await;
            if later.is_some() {
                tokio::task::spawn_blocking(holdfast_sys::memory::trim);
            }
        });
    }
    problems.sort_by(|one, other| one.path.cmp(&other.path));
    core.keeping.release_rest();
    Ok(problems)
}

/// Appends the events that are missing in the journal, in one write.
fn report_the_past(core: &Core, names: &[String], restored: &[(Arc<ContainerState>, Restored)]) {
    let there: HashSet<&str> = names.iter().map(String::as_str).collect();
    // First what is oldest: the exits of containers that an earlier build removed.
    let mut events = journal::import_exits(&core.root).unwrap_or_else(|error| {
        tracing::warn!(%error, "the exits that an earlier build kept are not imported");
        Vec::new()
    });
    let has_exits = !events.is_empty();
    events.extend(core.events.untold_deletions(|id| there.contains(id.as_str())));
    let mut imported_from = Vec::new();
    for (container, restored) in restored {
        if !restored.imported.is_empty() {
            events.extend(restored.imported.iter().cloned());
            imported_from.push(container);
        }
        let missing = restored.missing.clone();
        events.extend(events::of_process(&restored.process, &Timestamp::now(), missing));
    }
    core.events.append(events);
    if !has_exits && imported_from.is_empty() {
        return;
    }
    // The files of an earlier build are removed only after the journal was synced.
    let imported = core.events.sync_now().and_then(|_| {
        journal::forget_imported_exits(&core.root)?;
        imported_from.iter().try_for_each(|container| {
            journal::forget_imported(&core.root.container(&container.id)?)
        })
    });
    if let Err(error) = imported {
        tracing::warn!(%error, "events of an earlier build stay in their files, and are imported again");
    }
}

/// Restores with as many threads as there are processors. Each of them takes the next name, opens
/// what is there, and has closed it again before it continues.
fn restore_all(
    core: &Arc<Core>,
    names: &[String],
    problems: &mut Vec<Problem>,
) -> Vec<(Arc<ContainerState>, Restored)> {
    let next = AtomicUsize::new(0);
    let work = || {
        let _reactor = core.tasks.reactor.enter();
        let (mut restored, mut problems) = (Vec::new(), Vec::new());
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Some(found) = core.root.find(name, &mut problems) else { continue };
            let id = found.id.clone();
            match restore_container(core, found, &mut problems) {
                Ok((container, all)) => {
                    for Restored { process, exit, shim, .. } in &all {
                        // A process may exit when its shim is dead, or is killed now. Its last output
                        // is then lost unless its pipes were copied. So they are copied before the
                        // restore returns.
                        if !process.is_stopped() && !process.has_copies() {
                            take_copies(core, process, exit.is_some(), shim.as_ref());
                        }
                    }
                    restored.extend(all.into_iter().map(|process| (container.clone(), process)));
                }
                Err(trouble) => problems.push(set_aside::container(core, &id, trouble)),
            }
        }
        (restored, problems)
    };
    if names.len() >= MANY {
        let room = names.len().saturating_mul(FILES_EACH).saturating_add(MANY);
        // Nobody waits for this thread, and without it all goes on.
        let _ = std::thread::Builder::new().spawn(move || resource::make_room_for_files(room));
    }
    let threads = available_parallelism().map_or(1, NonZero::get).min(names.len());
    let mut all = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            let (restored, more) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            all.extend(restored);
            problems.extend(more);
        }
    });
    all
}

fn restore_container(
    core: &Arc<Core>,
    found: Found,
    problems: &mut Vec<Problem>,
) -> Result<(Arc<ContainerState>, Vec<Restored>), Trouble> {
    let (inits, execs): (Vec<_>, Vec<_>) =
        found.processes.into_iter().partition(|(id, _)| id.is_init());
    let init_dir = match inits.into_iter().next() {
        Some((_, init_dir)) => init_dir,
        // The directory is opened again to get the reason: the scan skips whatever is not a
        // directory, and gives none.
        None => found.directory.process(&ProcessId::init()).map_err(no_init)?,
    };
    if init_dir.is_between_runs()? {
        init_dir.revert_run(None)?;
    }
    let record = init_dir.load()?;
    let runtime = match &record.holdfast {
        Some(policies) => core.runtimes.at(policies.runtime.clone()),
        None => runtime_of_seed(core, &found.directory)?,
    };
    let bundle = record.holdfast.as_ref().map(|policies| &*policies.bundle);
    let runtime =
        runtime.with_args(&record.runtime_args).in_bundle(bundle.unwrap_or(Path::new("")));
    let incarnation = incarnation_of(&record);
    let (mut known, imported) = core.events.known(&found.directory, &found.id, Some(incarnation));
    if record.holdfast.as_ref().is_some_and(|policies| policies.run > known.run) {
        // All that is known of the init process belongs to its last run.
        known.processes.forget(&ProcessId::init());
    }
    let lost = set_aside::lost(found.directory.directory().path(), &execs, &known);
    let restore = |id: &ProcessId, dir: &ProcessDir, record: &ProcessRecord| {
        let known = known.processes.get(id).cloned().unwrap_or_default();
        restore_process(core, known, &found.id, id, dir, record)
    };
    let mut init = restore(&ProcessId::init(), &init_dir, &record)?;
    init.imported = imported;
    let container = Arc::new(ContainerState::new(found.id.clone(), runtime, init.process.clone()));
    let mut all = vec![init];
    for (id, dir) in execs {
        let restored = dir.load().map_err(Trouble::from).and_then(|mut record| {
            if let Some(policies) = &mut record.holdfast {
                // Earlier builds did not store the incarnation.
                policies.incarnation.get_or_insert(incarnation);
            }
            Ok(restore(&id, &dir, &record)?)
        });
        match restored {
            Ok(restored) => {
                container.execs().insert(id, restored.process.clone());
                all.push(restored);
            }
            // The container itself is fine.
            Err(trouble) => {
                problems.push(set_aside::process(core, &found.id, &known, &id, trouble));
            }
        }
    }
    problems.extend(lost);
    core.containers().insert(found.id, container.clone());
    Ok((container, all))
}

fn no_init(error: io::Error) -> Trouble {
    match Trouble::from(error) {
        Trouble::Damaged(reason) => Trouble::Damaged(format!("no process init in it: {reason}")),
        refused @ Trouble::Refused(_) => refused,
    }
}

/// Returns the runtime of a container of containerd's 2016 shim. It is recorded in a file beside
/// the processes. If that is missing, it is the default runtime.
fn runtime_of_seed(core: &Core, directory: &ContainerDir) -> Result<Runtime, Error> {
    let state = SeedState::load(directory).map_err(Error::io("read state.json"))?;
    state.map_or_else(|| core.runtimes.find(&core.runtime), |state| core.runtimes.of_seed(&state))
}

/// Begins to watch a process, and to settle a change whose outcome is unknown.
fn take_up(
    core: &Arc<Core>,
    container: &Arc<ContainerState>,
    restored: Restored,
    turns: &Arc<Semaphore>,
) {
    let Restored { process, exit, doubtful, kept, .. } = restored;
    if doubtful {
        core.tasks.spawn(settle(core.clone(), container.clone()));
    }
    // A shim that works enforces the start timeout. This deadline is for one that does not.
    let limit = match process.start_timeout {
        Duration::ZERO => core.start_timeout,
        limit => limit,
    };
    let deadline = process.is_creating().then(|| Instant::now().checked_add(limit)).flatten();
    let watch = Watch::new(core, container, &process, exit, None, deadline);
    if process.is_stopped() || kept || !core.keeping.is_any() {
        core.tasks.spawn(watch.run());
        return;
    }
    let (of, turns) = (core.clone(), turns.clone());
    core.tasks.spawn(async move {
        // This happens after all containers were restored, because nobody waits for it. The
        // semaphore is never closed, so this does not fail.
        let turn = turns.acquire().await;
        let held = blocking(move || {
            process.have_kept(&of.keeping);
            Ok(())
        });
        let _ = held.await;
        drop(turn);
        watch.run().await;
    });
}

/// Copies the descriptors that a shim reads from.
fn take_copies(core: &Core, process: &Process, has_shim: bool, shim: Option<&ShimRecord>) {
    let of_process = || {
        make_up(core, process, has_shim).unwrap_or_else(|error| {
            tracing::debug!(container = %process.container, %error, "no copies of the pipes of the process");
            None
        })
    };
    // The supervisor before may have died before it had recorded this shim.
    let of_another = || {
        let note = || process.dir(&core.root).and_then(|dir| dir.last_shim()).ok().flatten();
        let noted = has_shim.then(note).flatten().and_then(shim_record);
        if let Some(shim) = &noted {
            process.note_shim(Some(shim.pid));
        }
        Copies::of_shim_or(noted.as_ref(), &core.closer, of_process)
    };
    if let Some(copies) = Copies::of_shim_or(shim, &core.closer, of_another) {
        process.keep_copies(copies);
    }
}

/// Copies the pipes of a process from the process itself, and completes what a supervisor did not
/// record because it died just after the process had appeared: its identity. If the shim is alive and
/// no exit is on disk after the process was opened, this is the right process.
fn make_up(core: &Core, process: &Process, has_shim: bool) -> io::Result<Option<Copies>> {
    let Some(handle) = process.handle() else { return Ok(None) };
    let dir = process.dir(&core.root)?;
    let mut record = dir.load().map_err(io::Error::other)?;
    if dir.exit()?.is_some() {
        return Ok(None);
    }
    if has_shim && record.start_time.is_empty() && record.holdfast.is_some() {
        record = process.change_record(&dir, |record| handle.write_identity(record))?;
    }
    Ok(Some(Copies::of_process(&handle, &record, &core.closer)))
}

/// Finds out the outcome of a change that was begun.
async fn settle(core: Arc<Core>, container: Arc<ContainerState>) {
    let _operation = container.operation.lock().await;
    let State::Live { activity, .. } = container.init().state() else { return };
    let Some(change) = activity.change() else { return };
    let outcome = change::outcome(&container, change).await;
    container.init().apply(&core.events, outcome).await;
}

fn restore_process(
    core: &Core,
    mut known: KnownProcess,
    container: &ContainerId,
    id: &ProcessId,
    dir: &ProcessDir,
    record: &ProcessRecord,
) -> io::Result<Restored> {
    // The FIFO is opened first: from here on announcements are received, and what was announced
    // before is on disk.
    let reader = match dir.exit_reader() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            dir.make_fifos().and_then(|()| dir.exit_reader())
        }
        other => other,
    };
    let exit = reader.and_then(ExitFifo::restored);
    let exit = match exit {
        // Something else is in the place of the FIFO. If the process has ended, there is nothing
        // left to receive.
        Err(error) if is_damage(&error) && dir.exit()?.is_some() => None,
        other => Some(other?),
    };
    // An exec may have the id of an earlier one, whose exit was the last event that survived a
    // power failure.
    let made = record.holdfast.as_ref().map(|policies| &policies.created);
    if known.exited.as_ref().is_some_and(|exited| made.is_some_and(|made| *made > exited.time)) {
        known = KnownProcess::default();
    }
    let mut kept = core.keeping.of(container, id);
    let was_kept = kept.is_any();
    let (mut state, handle) = state_of(core, dir, record, exit.as_ref(), &known, &mut kept)?;
    if let State::Stopped(exit) = &mut state {
        exit.oom_killed |= known.oom_killed;
    }
    let missing = missing(&known, &state, record, || dir.pid().ok().flatten());
    let doubtful = matches!(&state, State::Live { activity, .. } if activity.change().is_some());
    let process =
        Process::new(container, id, record, state, handle.map(Arc::new), Origin::Restored);
    if known.failed {
        process.failure_is_told();
    }
    process.note_start(known.started_at);
    if known.oom_killed {
        process.note_oom();
    }
    match Copies::of_kept(&mut kept, record, &core.closer) {
        Some(copies) if !process.is_stopped() => process.keep_copies(copies),
        _ if was_kept && process.is_stopped() => core.keeping.release(&process),
        _ => {}
    }
    let policies = record.holdfast.as_ref();
    let shim = policies.and_then(|policies| policies.shim.clone());
    // The group of an earlier build announced bare descriptor numbers, and may have reused them
    // since.
    let is_in_group = policies.is_some_and(|policies| policies.shim_group.is_some());
    let shim = shim.filter(|shim| !is_in_group || shim.stdio.all().all(|fd| fd.identity.is_some()));
    let shim = shim.filter(|_| exit.as_ref().is_some_and(ExitFifo::has_shim));
    process.note_shim(shim.as_ref().map(|shim| shim.pid));
    Ok(Restored {
        process: Arc::new(process),
        shim,
        exit: exit.filter(ExitFifo::has_shim),
        missing,
        imported: Vec::new(),
        doubtful,
        kept: was_kept,
    })
}

/// Determines the state of a process from the files, the kernel and the journal, in this order.
fn state_of(
    core: &Core,
    dir: &ProcessDir,
    record: &ProcessRecord,
    exit: Option<&ExitFifo>,
    known: &KnownProcess,
    kept: &mut Kept,
) -> io::Result<(State, Option<Handle>)> {
    let stopped = |record: ExitRecord| Ok((State::Stopped(record), None));
    let recorded = |record: ExitRecord| {
        if let Err(error) = dir.record_exit(&record) {
            // The evidence of the exit is still there at the next restore.
            tracing::warn!(dir = %dir.path().display(), %error, "exit not recorded");
        }
        stopped(record)
    };
    let lost = |reason| recorded(ExitRecord::now(ExitStatus::Unknown(reason), Evidence::None));
    // A garbled file is no proof of an exit. If the process exists, that counts more.
    let garbled =
        |record: &ExitRecord| record.status == ExitStatus::Unknown(UnknownReason::UnreadableRecord);
    // No shim survives a reboot. If there is a shim, the boot id in the record is wrong.
    let has_shim = exit.is_some_and(ExitFifo::has_shim);
    let told = exit.and_then(ExitFifo::announced_exit).or(known.exited.clone());
    // If there is a shim, the exit file is read below, after the process was opened.
    if (!has_shim || told.is_some())
        && let Some(record) = dir.exit()?.filter(|record| !garbled(record))
    {
        return stopped(record);
    }
    // A shim that could not write (because the disk was full) has still announced the exit. An exit
    // that was published is final.
    if let Some(record) = told {
        return recorded(record);
    }
    if !has_shim && record.boot_id().is_some_and(|boot_id| boot_id != core.boot_id) {
        return lost(UnknownReason::MachineRebooted);
    }
    // No event of the process was ever published, and whoever was about to clear it away died
    // before that was done.
    if !has_shim && known.pid.is_none() && dir.is_abandoned()? {
        return Ok((State::Creating, None));
    }
    let pid = dir.pid();
    // A damaged pid file may still contain a number. The start time shows whether it is the right
    // one. If it is not, the journal has the right one. Without a start time, the journal is no
    // more reliable than the file.
    let named = pid.as_ref().ok().copied().flatten();
    let journalled = known.pid.filter(|_| !record.start_time.is_empty());
    let kept = kept.take(FdName::Process).map(PidFd::from);
    let handle = Handle::of_record(record, named.into_iter().chain(journalled), kept)?;
    // The exit is read again now that the pid was opened. A shim reaps a process only after it has
    // recorded the exit, so with a shim and without a record, the pid was still that of the
    // process.
    let there = has_shim || handle.is_some();
    if let Some(record) = dir.exit()?.filter(|record| !(there && garbled(record))) {
        return stopped(record);
    }
    if handle.is_some() {
        let shim = match (known.shim_lost, has_shim) {
            (true, false) => Shim::Gone,
            // A new shim has taken over, and nobody received its announcement.
            (true, true) => Shim::Adopting(1),
            (false, _) => Shim::Present,
        };
        return Ok((State::Live { activity: activity(known, record), shim }, handle));
    }
    match (pid?, journalled) {
        // The shim has still to report the exit, and its report is the best evidence.
        (Some(_), _) | (_, Some(_)) if has_shim => {
            let (activity, shim) = (activity(known, record), Shim::Present);
            Ok((State::Exiting { activity, shim }, None))
        }
        (Some(_), _) | (_, Some(_)) => lost(UnknownReason::ExitedUnwatched),
        (None, None) if record.holdfast.is_none() => {
            Err(damaged("a record by containerd's 2016 shim of a process that was never started"))
        }
        (None, None) if known.pid.is_some() || !record.start_time.is_empty() => {
            // This must not count as an unfinished start, which would be cleared away.
            Err(damaged("the pid of a process that has existed is missing"))
        }
        (None, None) => Ok((State::Creating, None)),
    }
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Returns the activity of a live process. Nothing is known of the containers of containerd's 2016
/// shim, so they count as running. A container of which the journal knows nothing may have been
/// started or not. Nobody may start it twice or delete it unasked, so the runtime is asked.
fn activity(known: &KnownProcess, record: &ProcessRecord) -> Activity {
    let waits = record.holdfast.as_ref().is_some_and(|policies| policies.launch == Launch::Create);
    match known.doing {
        Some(Doing::Starting) => Activity::Starting,
        Some(Doing::Started | Doing::Resumed) => Activity::Running,
        Some(Doing::Pausing) => Activity::Pausing,
        Some(Doing::Paused) => Activity::Paused,
        Some(Doing::Resuming) => Activity::Resuming,
        None if !waits => Activity::Running,
        None if known.pid.is_some() => Activity::Created,
        None => Activity::Starting,
    }
}

/// Returns the events that a process in this state has behind it, and that were not published yet.
fn missing(
    known: &KnownProcess,
    state: &State,
    record: &ProcessRecord,
    pid: impl Fn() -> Option<i32>,
) -> Vec<EventKind> {
    let mut missing = Vec::new();
    let (live, ended) = match state {
        State::Live { activity, .. } | State::Exiting { activity, .. } => (Some(*activity), None),
        State::Stopped(record) => (None, Some(record)),
        State::Creating | State::Abandoned => return missing,
    };
    if known.exited.is_some() {
        return missing;
    }
    if known.pid.is_none()
        && let Some(pid) = pid()
    {
        missing.push(EventKind::Created { pid });
    }
    // The start was begun, or is part of the creation, and the process has ended. So it was
    // started.
    let at_once = record.holdfast.as_ref().is_some_and(|policies| policies.launch.starts_at_once());
    let starting = known.doing == Some(Doing::Starting);
    let started = live == Some(Activity::Running)
        || (ended.is_some() && (starting || at_once) && pid().is_some());
    if started && !known.started {
        missing.push(EventKind::Started);
    }
    if let Some(record) = ended {
        if record.oom_killed && !known.oom_killed {
            missing.push(EventKind::OutOfMemory);
        }
        missing.push(record.event());
    }
    missing
}
