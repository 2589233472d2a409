//! Tables and text for people, and JSON for programs.

use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::{Table, presets};
use holdfast_daemon::api::{ExitRecord, ExitStatus, Info, ProcessEntry};
use serde::Serialize;

use crate::stats::bytes;
use crate::streams::{self, harmless, print};

/// One line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(serde_json::to_string(value)?)?)
}

/// JSON over several lines.
pub(crate) fn pretty_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(serde_json::to_string_pretty(value)?)?)
}

/// The daemon itself.
pub(crate) fn info(info: &Info, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(info);
    }
    let mut text = Vec::new();
    describe(info, &mut text)?;
    Ok(streams::write(&text)?)
}

fn describe(info: &Info, to: &mut impl std::io::Write) -> std::io::Result<()> {
    writeln!(to, "holdfast {} (pid {})", info.version, info.pid)?;
    writeln!(to, "root      {}", info.root.display())?;
    let took = Duration::from_micros(info.restore_micros);
    writeln!(to, "restored  {} containers in {took:?}", info.restored)?;
    match &info.runtime.program {
        Some(program) => {
            writeln!(to, "runtime   {} ({})", program.display(), info.runtime.reason)?;
        }
        None => writeln!(to, "runtime   none: {}", info.runtime.reason)?,
    }
    let abilities = &info.abilities;
    let yes_no = |able: bool| if able { "yes" } else { "no" };
    writeln!(to, "kernel    {}, cgroups {}", abilities.kernel, abilities.cgroups)?;
    let tells = yes_no(abilities.tells_endings);
    writeln!(to, "          tells how a process ended after it was reaped: {tells}")?;
    let handles = yes_no(abilities.process_handles);
    writeln!(to, "          handles of processes for the record: {handles}")?;
    if let Some(limit) = info.limits.first() {
        writeln!(
            to,
            "room      for {} containers: {} {} (raise {})",
            limit.containers, limit.most, limit.of, limit.raise
        )?;
    }
    if let Some(rootless) = &info.rootless {
        let ids: u64 = rootless.uid_mappings.iter().map(|it| u64::from(it.size)).sum();
        writeln!(to, "rootless  user {}; a container has {ids} user ids", rootless.uid)?;
        if let Some(reason) = &rootless.single_id {
            writeln!(to, "          no user ids but 0: {reason}")?;
        }
        match &rootless.no_cgroups {
            Some(reason) => {
                writeln!(to, "          no limits, no pause, no statistics: {reason}")?;
            }
            None => {
                let controllers = rootless.controllers.join(", ");
                writeln!(to, "          cgroups by the user's systemd, with {controllers}")?;
            }
        }
    }
    match &info.definitions {
        Some(path) => writeln!(to, "reboot    definitions in {}", path.display())?,
        None => writeln!(to, "reboot    no container outlives it: no --definitions")?,
    }
    for problem in &info.problems {
        let text = format!("{}: {}", problem.path.display(), problem.reason);
        writeln!(to, "problem   {}", harmless(&text))?;
    }
    Ok(())
}

/// A text of at most so many characters, with a sign where it was cut off.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// The processes in a container.
pub(crate) fn processes(processes: &[ProcessEntry], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&processes);
    }
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["PID", "PPID", "UID", "TIME", "MEMORY", "COMMAND"]);
    for process in processes {
        let seconds = process.cpu_millis / 1000;
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        table.add_row([
            process.pid.to_string(),
            process.ppid.to_string(),
            process.uid.to_string(),
            format!("{hours:02}:{minutes:02}:{:02}", seconds % 60),
            bytes(Some(process.memory_bytes)),
            harmless(&process.command),
        ]);
    }
    let mut text = String::new();
    let terminal = std::io::stdout().is_terminal().then(crate::terminal::size);
    let most = terminal.map_or(usize::MAX, |size| usize::from(size.width));
    for line in table.lines() {
        text += &shortened(line.trim_end(), most);
        text.push('\n');
    }
    Ok(streams::write(text.as_bytes())?)
}

/// One status, as `wait` prints it: the number that a shell would show, or that it is unknown.
pub(crate) fn exit(record: &ExitRecord, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(record);
    }
    Ok(match record.status {
        ExitStatus::Unknown(reason) => print(format_args!("unknown: {reason}")),
        status => print(status.as_number()),
    }?)
}
