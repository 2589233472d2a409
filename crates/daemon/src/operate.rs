//! Freezing, limits, checkpoints, and a look inside: one handler a request.

use axum::Json;
use axum::extract::State;
use axum::response::NoContent;
use holdfast_supervisor::{CheckpointOptions, Supervisor};

use crate::api::{CheckpointRequest, ErrorKind, ProcessEntry, Stats, StatsOf};
use crate::body::Input;
use crate::error::Failure;
use crate::routes::{Answer, Path, find};

pub(crate) async fn pause(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<NoContent> {
    find(&supervisor, &id)?.pause().await?;
    Ok(NoContent)
}

pub(crate) async fn resume(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<NoContent> {
    find(&supervisor, &id)?.resume().await?;
    Ok(NoContent)
}

pub(crate) async fn update(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(resources): Input<serde_json::Value>,
) -> Answer<NoContent> {
    if !resources.is_object() {
        let message = "limits are a JSON object: the linux.resources of an OCI configuration";
        return Err(Failure::new(ErrorKind::Invalid, message));
    }
    find(&supervisor, &id)?.update(&resources).await?;
    Ok(NoContent)
}

pub(crate) async fn checkpoint(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<CheckpointRequest>,
) -> Answer<NoContent> {
    if !request.path.is_absolute() {
        return Err(Failure::new(ErrorKind::Invalid, "a checkpoint needs an absolute path"));
    }
    let mut options = CheckpointOptions::new(request.path);
    if let Some(path) = request.work_path {
        options = options.work_path(path);
    }
    if request.leave_running {
        options = options.leave_running();
    }
    if request.tcp {
        options = options.tcp_established();
    }
    if request.unix_sockets {
        options = options.unix_sockets();
    }
    if request.shell_job {
        options = options.shell_job();
    }
    for kind in request.empty_ns {
        options = options.empty_namespace(kind);
    }
    find(&supervisor, &id)?.checkpoint(options).await?;
    Ok(NoContent)
}

pub(crate) async fn top(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Vec<ProcessEntry>>> {
    Ok(Json(find(&supervisor, &id)?.processes().await?))
}

pub(crate) async fn stats(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Stats>> {
    Ok(Json(find(&supervisor, &id)?.stats().await?))
}

pub(crate) async fn all_stats(State(supervisor): State<Supervisor>) -> Answer<Json<Vec<StatsOf>>> {
    let all = supervisor.stats_all().await?;
    let all = all.into_iter().map(|(of, stats)| StatsOf { id: of.id().clone(), stats });
    Ok(Json(all.collect()))
}
