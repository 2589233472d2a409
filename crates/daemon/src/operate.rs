//! Freezing, limits, checkpoints, and a look inside: one handler a request.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_supervisor::{CheckpointOptions, Supervisor};

use crate::api::{CheckpointRequest, ErrorKind, ProcessEntry, Stats, StatsOf};
use crate::body::Input;
use crate::error::Failure;
use crate::routes::{Answer, Path, find};

pub(crate) fn routes() -> Router<Supervisor> {
    Router::new()
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/resume", post(resume))
        .route("/containers/{id}/update", post(update))
        .route("/containers/{id}/checkpoint", post(checkpoint))
        .route("/containers/{id}/top", get(top))
        .route("/containers/{id}/stats", get(stats))
        .route("/stats", get(all_stats))
}

async fn pause(State(supervisor): State<Supervisor>, Path(id): Path<String>) -> Answer<StatusCode> {
    find(&supervisor, &id)?.pause().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn resume(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    find(&supervisor, &id)?.resume().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(resources): Input<serde_json::Value>,
) -> Answer<StatusCode> {
    if !resources.is_object() {
        let message = "limits are a JSON object: the linux.resources of an OCI configuration";
        return Err(Failure::new(ErrorKind::Invalid, message));
    }
    find(&supervisor, &id)?.update(&resources).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn checkpoint(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<CheckpointRequest>,
) -> Answer<StatusCode> {
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
    Ok(StatusCode::NO_CONTENT)
}

async fn top(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Vec<ProcessEntry>>> {
    Ok(Json(find(&supervisor, &id)?.processes().await?))
}

async fn stats(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Stats>> {
    Ok(Json(find(&supervisor, &id)?.stats().await?))
}

async fn all_stats(State(supervisor): State<Supervisor>) -> Answer<Json<Vec<StatsOf>>> {
    let all = supervisor.stats_all().await?;
    let all = all.into_iter().map(|(of, stats)| StatsOf { id: of.id().clone(), stats });
    Ok(Json(all.collect()))
}
