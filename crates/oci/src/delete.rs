//! `kill` and `delete`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::args::{Global, Kill};
use crate::cgroup::wait_for;
use crate::hooks;
use crate::log::Log;
use crate::record::{Dir, Record, Status};

const SIGKILL: i32 = Signal::SIGKILL as i32;
/// The first real-time signal that a program can have; the C library keeps two for itself.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;
/// How long a killed process may take to vanish.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Whether a container may be alive when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// Sends a signal.
pub(crate) fn kill(global: &Global, args: &Kill) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, &args.id)?;
    let record = dir.record()?;
    let signal = parse_signal(&args.signal)?;
    if args.all {
        return record.cgroup.signal(signal);
    }
    let Some(process) = record.process() else { bail!("container not running") };
    process.send_signal(signal).with_context(|| format!("send signal {signal}"))?;
    if signal == SIGKILL && record.cgroup.is_frozen() {
        // A suspended process dies of nothing in version 1.
        record.cgroup.signal(SIGKILL)?;
    }
    Ok(())
}

/// Removes a container and all that is left of it.
pub(crate) fn delete(global: &Global, log: &Log, id: &str, force: Force) -> anyhow::Result<()> {
    let dir = Dir::of(&global.root, id)?;
    if force == Force::Yes && !dir.exists() {
        return Ok(());
    }
    let record = match dir.record() {
        Err(_) if force == Force::Yes => {
            // Cut short before it had a record, and so before it had a process.
            return fs::remove_dir_all(&dir.path)
                .with_context(|| format!("remove {}", dir.path.display()));
        }
        record => record?,
    };
    let lock = dir.lock_file("lock")?;
    lock.lock().context("lock the container")?;
    match dir.status(&record) {
        Status::Stopped | Status::Created => {}
        _ if force == Force::Yes => {}
        status => {
            bail!("cannot delete container {id} that is not stopped: {}", status.name());
        }
    }
    destroy(&dir, &record)?;
    if dir.libcontainer().exists() {
        match hooks::of(&dir) {
            Ok(hooks) => {
                let hooks = hooks.as_ref().and_then(|hooks| hooks.poststop().as_deref());
                hooks::poststop(hooks.unwrap_or_default(), id, &record, log);
            }
            Err(error) => log.warn(&error.context("read the poststop hooks")),
        }
    }
    fs::remove_dir_all(&dir.path).with_context(|| format!("remove {}", dir.path.display()))
}

/// Kills every process of a container that runs.
pub(crate) fn stop(record: &Record) -> anyhow::Result<()> {
    if let Some(process) = record.process() {
        process.send_signal(SIGKILL).context("kill the container's process")?;
    }
    record.cgroup.signal(SIGKILL)
}

/// Kills every process and removes the cgroups.
fn destroy(dir: &Dir, record: &Record) -> anyhow::Result<()> {
    if record.pid == 0 {
        return destroy_unfinished(dir, record);
    }
    let process = record.process();
    if let Some(process) = &process {
        // Those that left the cgroup, with the rights of a privileged container, die with the
        // first process of their pid namespace.
        _ = process.send_signal(SIGKILL);
    }
    record.cgroup.destroy()?;
    if let Some(process) = process {
        wait_for(&process, Instant::now() + KILL_GRACE)?;
    }
    Ok(())
}

/// What a `create` that was killed has left may have yet to join the cgroup, and then waits for a
/// `start` for ever. All processes of a `create` hold its lock.
fn destroy_unfinished(dir: &Dir, record: &Record) -> anyhow::Result<()> {
    let lock = dir.lock_file("create.lock")?;
    let deadline = Instant::now() + KILL_GRACE;
    while lock.try_lock().is_err() {
        if Instant::now() >= deadline {
            bail!("container {} is being created", dir.id);
        }
        record.cgroup.destroy()?;
        // Nothing announces that another joins.
        std::thread::sleep(Duration::from_millis(2));
    }
    record.cgroup.destroy()
}

/// A signal by number or by name, real-time signals included.
fn parse_signal(text: &str) -> anyhow::Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        if (0..=SIGRTMAX).contains(&number) {
            return Ok(number);
        }
        bail!("unknown signal {text:?}");
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
    let real_time = if let Some(rest) = name.strip_prefix("RTMIN") {
        offset(rest).map(|offset| SIGRTMIN + offset)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        offset(rest).map(|offset| SIGRTMAX + offset)
    } else {
        None
    };
    if let Some(number) = real_time.filter(|number| (SIGRTMIN..=SIGRTMAX).contains(number)) {
        return Ok(number);
    }
    match format!("SIG{name}").parse::<Signal>() {
        Ok(signal) => Ok(signal as i32),
        Err(_) => bail!("unknown signal {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
            ("37", 37),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "65", "-1", "SIGRTMIN+40", "NOPE"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
