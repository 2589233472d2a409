//! Tables and text for people, and JSON for programs.

use std::time::Duration;

use comfy_table::{Table, presets};
use futures::{StreamExt, TryStreamExt};
use holdfast_daemon::api::{
    ContainerInfo, Cursor, EventLine, ExitRecord, ExitStatus, Info, ProcessEntry, StatsOf,
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::Serialize;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::away::Away;
use crate::client::Client;
use crate::streams::{self, complain, harmless, print};

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
    for problem in &info.problems {
        let text = format!("{}: {}", problem.path.display(), problem.reason);
        writeln!(to, "problem   {}", harmless(&text))?;
    }
    Ok(())
}

/// A table of containers.
pub(crate) fn containers(containers: &[ContainerInfo]) -> anyhow::Result<()> {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(["ID", "STATUS", "PID", "EXIT", "RESTORED", "CREATED"]);
    for container in containers {
        table.add_row([
            container.id.to_string(),
            container.status.as_str().to_owned(),
            container.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            container.exit.as_ref().map_or_else(|| "-".to_owned(), |exit| exit.status.to_string()),
            if container.restored { "yes" } else { "no" }.to_owned(),
            container
                .created
                .as_ref()
                .map_or_else(|| "-".to_owned(), |time| seconds(time.as_str())),
        ]);
    }
    Ok(print(table)?)
}

/// The processes in a container.
pub(crate) fn processes(processes: &[ProcessEntry], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return json(&processes);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["PID", "COMMAND"]);
    for process in processes {
        table.add_row([process.pid.to_string(), harmless(&process.command)]);
    }
    Ok(print(table)?)
}

/// What containers use.
pub(crate) fn stats(rows: &[StatsOf], as_json: bool) -> anyhow::Result<()> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "ID",
        "CPU",
        "MEMORY",
        "LIMIT",
        "PIDS",
        "OOM KILLS",
    ]);
    for StatsOf { id, stats } in rows {
        if as_json {
            let mut value = serde_json::to_value(stats)?;
            value["id"] = id.as_str().into();
            json(&value)?;
            continue;
        }
        let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let bytes =
            |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| format!("{} KiB", n / 1024));
        table.add_row([
            id.to_string(),
            stats.cpu_nanos.map_or_else(
                || "-".to_owned(),
                |nanos| format!("{:?}", Duration::from_millis(nanos / 1_000_000)),
            ),
            bytes(stats.memory_bytes),
            bytes(stats.memory_limit_bytes),
            number(stats.pids),
            number(stats.oom_kills),
        ]);
    }
    if !as_json {
        print(table)?;
    }
    Ok(())
}

/// RFC 3339 without the fraction of a second.
fn seconds(time: &str) -> String {
    time.split_once('.').map_or_else(|| time.to_owned(), |(whole, _)| format!("{whole}Z"))
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

/// Events as they come.
pub(crate) async fn events(
    client: &Client,
    replay: bool,
    since: Option<Cursor>,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut at = since;
    let mut absence = None;
    loop {
        let query = match at {
            Some(cursor) => format!("since={cursor}"),
            None => format!("replay={replay}"),
        };
        match client.stream_with(&format!("/events?{query}"), "holdfast-cursor").await {
            Ok((body, begin)) => {
                absence = None;
                if at.is_none() {
                    at = begin.and_then(|begin| begin.parse().ok());
                }
                print_events(body, &mut at, as_json).await?;
                let gone = Away::went("the daemon has ended");
                client.come_back(&mut absence, gone, None).await?;
            }
            Err(error) => client.come_back(&mut absence, error, None).await?,
        }
    }
}

/// Prints events until the daemon ends, and notes the place after each.
async fn print_events(
    body: Incoming,
    at: &mut Option<Cursor>,
    as_json: bool,
) -> anyhow::Result<()> {
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let mut lines = FramedRead::new(StreamReader::new(bytes), LinesCodec::new());
    // A daemon that is killed may leave the beginning of a line.
    while let Some(Ok(line)) = lines.next().await {
        let Ok(item) = serde_json::from_str(&line) else { break };
        let (EventLine::Event { cursor, .. } | EventLine::Gap { cursor, .. }) = &item;
        *at = Some(*cursor);
        if as_json {
            print(line)?;
            continue;
        }
        let event = match item {
            EventLine::Event { event, .. } => event,
            EventLine::Gap { gap, .. } => {
                complain(gap);
                continue;
            }
        };
        let process =
            if event.process.is_init() { String::new() } else { format!("/{}", event.process) };
        let kind = serde_json::to_value(&event.kind)?;
        let name = kind["event"].as_str().unwrap_or_default();
        let detail = match &event.kind {
            holdfast_daemon::api::EventKind::Exited { status, .. } => format!(" {status}"),
            holdfast_daemon::api::EventKind::Created { pid } => format!(" pid {pid}"),
            holdfast_daemon::api::EventKind::StartFailed { reason } => {
                format!(" {}", harmless(reason))
            }
            _ => String::new(),
        };
        let (time, container, seq) = (event.time, event.container, event.seq);
        print(format_args!("{time} {container}{process} #{seq} {name}{detail}"))?;
    }
    Ok(())
}
