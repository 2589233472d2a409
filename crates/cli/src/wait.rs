//! `wait`: until a container or a process is in a state.

use std::time::Duration;

use anyhow::bail;
use holdfast_daemon::api::{
    ContainerId, ContainerInfo, EventKind, EventLine, ExitRecord, Incarnation, Status, WaitQuery,
};

use crate::args::{Condition, WaitArgs};
use crate::client::{Client, RequestError};
use crate::events::{Begin, Feed};
use crate::find::{Target, target};
use crate::show;

/// The time is over, and what was waited for has not come: as `timeout(1)` says it.
#[derive(Debug)]
pub(crate) struct TimeIsOver(String);

impl TimeIsOver {
    pub(crate) const EXIT_CODE: u8 = 124;
}

impl std::fmt::Display for TimeIsOver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimeIsOver {}

/// Waits for one of what was typed, and prints how it ended.
pub(crate) async fn wait(client: &Client, id: &ContainerId, args: &WaitArgs) -> anyhow::Result<()> {
    let reached = reached(client, id, args.condition);
    let exit = match args.timeout {
        None => reached.await?,
        Some(limit) => match tokio::time::timeout(limit, reached).await {
            Ok(exit) => exit?,
            Err(_) => return Err(TimeIsOver(over(id, args.condition, limit)).into()),
        },
    };
    exit.map_or(Ok(()), |exit| show::exit(&exit, args.json))
}

fn over(id: &ContainerId, condition: Condition, limit: Duration) -> String {
    let state = match condition {
        Condition::Stopped => "has not ended",
        Condition::NextExit => "has not ended again",
        Condition::Removed => "was not removed",
        Condition::Running => "was not started",
    };
    format!("{id} {state} within {}", humantime::format_duration(limit))
}

/// Waits, and returns how it ended if that was waited for.
async fn reached(
    client: &Client,
    id: &ContainerId,
    condition: Condition,
) -> anyhow::Result<Option<ExitRecord>> {
    let target = target(client, id).await?;
    if condition == Condition::Stopped {
        return exit(client, &target).await.map(Some);
    }
    let Target { container, process: None } = target else {
        bail!("{id} is a process of a container: it can be waited for until it has stopped only")
    };
    // Before the state is looked at: a change after that is among the events.
    let mut feed = Feed::new(client, Begin::Now);
    feed.open().await?;
    let path = format!("/containers/{container}");
    let info = client.again(async || client.get::<ContainerInfo>(&path).await).await;
    let info = match info {
        // It was removed; how it ended is known all the same.
        Err(error) if condition == Condition::Removed && RequestError::is_not_found(&error) => {
            return exit_of(client, &container, &WaitQuery::default()).await.map(Some);
        }
        info => info?,
    };
    if condition == Condition::Running && matches!(info.status, Status::Running | Status::Paused) {
        return Ok(None);
    }
    loop {
        let EventLine::Event { event, .. } = feed.next().await?.0 else { continue };
        if event.container != container || !event.process.is_init() {
            continue;
        }
        if info.incarnation.is_some_and(|incarnation| incarnation != event.incarnation) {
            continue;
        }
        let query = |run| WaitQuery { incarnation: info.incarnation, run, process: None };
        match (condition, &event.kind) {
            (Condition::Running, EventKind::Started) => return Ok(None),
            (Condition::NextExit, EventKind::Exited { .. }) => {
                return exit_of(client, &container, &query(Some(event.run))).await.map(Some);
            }
            (Condition::Removed, EventKind::Deleted) => {
                // One that was never started has not ended.
                let exit = exit_of(client, &container, &query(None)).await;
                return match exit {
                    Err(error) if RequestError::is_not_found(&error) => Ok(None),
                    exit => exit.map(Some),
                };
            }
            (_, EventKind::Deleted | EventKind::StartFailed { .. }) => {
                bail!(
                    "container {container} was removed, or its start failed, while it was waited for"
                )
            }
            _ => {}
        }
    }
}

/// Waits for the end of a process, by the incarnation and run of its container: another may have the
/// name when the next daemon is asked.
async fn exit(client: &Client, target: &Target) -> anyhow::Result<ExitRecord> {
    let path = format!("/containers/{}", target.container);
    let process = target.process.clone();
    let which = client.again(async || match client.get::<ContainerInfo>(&path).await {
        // It may have been removed; its exit is known all the same.
        Err(error) if RequestError::is_not_found(&error) => Ok((None, None)),
        info => info.map(|info| (info.incarnation, Some(info.run))),
    });
    let (incarnation, run): (Option<Incarnation>, Option<u32>) = which.await?;
    exit_of(client, &target.container, &WaitQuery { process, incarnation, run }).await
}

async fn exit_of(
    client: &Client,
    container: &ContainerId,
    query: &WaitQuery,
) -> anyhow::Result<ExitRecord> {
    let path = format!("/containers/{container}/wait?{}", serde_urlencoded::to_string(query)?);
    client.again(async || client.get(&path).await).await
}
