//! One handler a request.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_supervisor::{Container, ContainerId, Error, ExecProcess, ProcessId, Supervisor};
use nix::libc::SIGKILL;
use serde::Deserialize;

use crate::api::{
    ContainerInfo, CreateRequest, Cursor, ErrorKind, EventLine, ExecRequest, ExitRecord,
    Incarnation, Info, KillRequest, Of, PastRun, Problem, ResizeRequest, StopRequest, WaitQuery,
};
use crate::body::{Input, give_back_soon};
use crate::error::Failure;
use crate::output::Whose;
use crate::{operate, output};

pub(crate) type Answer<T> = Result<T, Failure>;

pub(crate) fn router(supervisor: Supervisor) -> Router {
    let v1 = Router::new()
        .route("/info", get(info))
        .route("/events", get(events))
        .route("/run", post(run))
        .route("/containers", get(list).post(create))
        .route("/containers/{id}", get(inspect).delete(delete))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/runs", get(runs))
        .route("/containers/{id}/wait", get(wait))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/exec", post(exec))
        .route("/containers/{id}/close-stdin", post(close_stdin))
        .route("/containers/{id}/release", post(release))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/processes/{process}", axum::routing::delete(delete_process))
        .merge(output::routes())
        .merge(operate::routes());
    Router::new()
        .nest("/v1", v1)
        .fallback(async || Failure::new(ErrorKind::NotFound, "no such request; see GET /v1/info"))
        .method_not_allowed_fallback(async || {
            Failure::new(ErrorKind::Invalid, "this path takes other methods")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(supervisor)
}

/// What stands behind the `?`. A name that means nothing there is an error: it may be a typing mistake, and
/// what it was to change would be done otherwise.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Failure))]
pub(crate) struct Asked<T>(pub(crate) T);

/// The parts of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Failure))]
pub(crate) struct Path<T>(pub(crate) T);

pub(crate) fn find(supervisor: &Supervisor, id: &str) -> Answer<Container> {
    let id = id.parse().map_err(Error::from)?;
    Ok(supervisor.get(&id)?)
}

/// Finds the container if it is of this incarnation.
pub(crate) fn find_incarnation(
    supervisor: &Supervisor,
    id: &str,
    incarnation: Option<Incarnation>,
) -> Answer<Container> {
    let container = find(supervisor, id)?;
    match incarnation {
        Some(incarnation) if container.info().incarnation != Some(incarnation) => {
            Err(Error::NotFound(container.id().clone()).into())
        }
        _ => Ok(container),
    }
}

async fn info(State(supervisor): State<Supervisor>) -> Json<Info> {
    let report = supervisor.restore_report();
    let problems = report
        .problems
        .iter()
        .map(|p| Problem { path: p.path.clone(), reason: p.reason.clone() })
        .collect();
    Json(Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        root: supervisor.root().to_owned(),
        runtime: supervisor.default_runtime(),
        abilities: supervisor.abilities().clone(),
        limits: supervisor.limits().to_vec(),
        restored: report.containers,
        restore_micros: u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX),
        problems,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    label: Option<String>,
}

async fn list(
    State(supervisor): State<Supervisor>,
    Asked(query): Asked<ListQuery>,
) -> Answer<Response> {
    let containers = match &query.label {
        None => supervisor.list(),
        Some(label) => {
            let (name, value) = match label.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (label.as_str(), None),
            };
            supervisor.list_with_label(name, value)
        }
    };
    // One after the other: of ten thousand containers, only the text is there at the same time.
    let mut text = vec![b'['];
    for (place, container) in containers.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, &container.info())
            .map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?;
    }
    text.push(b']');
    give_back_soon(text.len());
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

async fn inspect(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<ContainerInfo>> {
    Ok(Json(find(&supervisor, &id)?.info()))
}

async fn create(
    State(supervisor): State<Supervisor>,
    Input(CreateRequest { options, start }): Input<CreateRequest>,
) -> Answer<(StatusCode, Json<ContainerInfo>)> {
    let container =
        if start { supervisor.run(options).await? } else { supervisor.create(options).await? };
    Ok((StatusCode::CREATED, Json(container.info())))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PositionsQuery {
    #[serde(default)]
    positions: bool,
}

async fn run(
    State(supervisor): State<Supervisor>,
    Asked(query): Asked<PositionsQuery>,
    Input(CreateRequest { options, .. }): Input<CreateRequest>,
) -> Answer<Response> {
    let (container, log) = supervisor.run_attached(options).await?;
    Ok(output::life(Whose { container, exec: None }, log, query.positions).await)
}

async fn start(State(supervisor): State<Supervisor>, Path(id): Path<String>) -> Answer<StatusCode> {
    find(&supervisor, &id)?.start().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn stop(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<StopRequest>,
) -> Answer<Json<ExitRecord>> {
    let (signal, grace) = (checked(request.signal)?, Duration::from_millis(request.grace_ms));
    Ok(Json(find(&supervisor, &id)?.stop(signal, grace).await?))
}

async fn restart(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<StopRequest>,
) -> Answer<StatusCode> {
    let (signal, grace) = (checked(request.signal)?, Duration::from_millis(request.grace_ms));
    find(&supervisor, &id)?.restart(signal, grace).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn runs(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Vec<PastRun>>> {
    Ok(Json(find(&supervisor, &id)?.runs().await?))
}

async fn wait(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(of): Asked<WaitQuery>,
) -> Answer<Json<ExitRecord>> {
    let WaitQuery { process, incarnation, run } = of;
    let found = find_incarnation(&supervisor, &id, incarnation)
        .and_then(|container| Ok((find_process(&container, process.clone())?, container)));
    match (found, run) {
        (Ok((None, container)), None) => Ok(Json(container.exit().await?)),
        (Ok((None, container)), Some(run)) => Ok(Json(container.exit_of_run(run).await?)),
        (Ok((Some(exec), _)), _) => Ok(Json(exec.exit().await?)),
        // An exec that was deleted is known to those alone who name its container beyond doubt.
        (Err(unknown), _)
            if incarnation.is_none() && process.as_ref().is_some_and(|it| !it.is_init()) =>
        {
            Err(unknown)
        }
        // It may have been removed, with `--rm` perhaps, while nobody waited for its end.
        (Err(unknown), _) => {
            let id = id.parse().map_err(Error::from)?;
            let process = process.unwrap_or_else(ProcessId::init);
            match past_exit(&supervisor, &id, &process, incarnation, run).await {
                Err(Failure { body, .. }) if body.kind == ErrorKind::NotFound => Err(unknown),
                past => Ok(Json(past?)),
            }
        }
    }
}

/// How a process ended that is not there any more, from the journal.
pub(crate) async fn past_exit(
    supervisor: &Supervisor,
    id: &ContainerId,
    process: &ProcessId,
    incarnation: Option<Incarnation>,
    run: Option<u32>,
) -> Answer<ExitRecord> {
    if process.is_init() && incarnation.is_none() && run.is_none() {
        return Ok(supervisor.past_exit(id).await?);
    }
    let past = supervisor.past_end(id, process, incarnation, run).await?;
    past.exit.ok_or_else(|| {
        // The kind of the failure is in its words alone.
        let reason = past.error.unwrap_or_default();
        let kind = Failure::from(Error::Runtime(reason.clone())).body.kind;
        Failure::new(kind, reason)
    })
}

async fn release(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<Of>,
) -> Answer<StatusCode> {
    Whose::find(&supervisor, &id, None, request.process)?.release();
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_process(
    State(supervisor): State<Supervisor>,
    Path((id, process)): Path<(String, ProcessId)>,
) -> Answer<StatusCode> {
    find_exec(&find(&supervisor, &id)?, &process)?.delete().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<KillRequest>,
) -> Answer<StatusCode> {
    checked(request.signal)?;
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None if request.signal == SIGKILL => container.kill().await?,
        None => container.signal(request.signal)?,
        Some(exec) => exec.signal(request.signal)?,
    }
    Ok(StatusCode::NO_CONTENT)
}

fn checked(signal: i32) -> Answer<i32> {
    match signal {
        1..=64 => Ok(signal),
        _ => {
            let message = format!("no signal has the number {signal}");
            Err(Failure::new(ErrorKind::Invalid, message))
        }
    }
}

async fn close_stdin(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<Of>,
) -> Answer<StatusCode> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.close_stdin()?,
        Some(exec) => exec.close_stdin()?,
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn resize(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<ResizeRequest>,
) -> Answer<StatusCode> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.resize(request.size)?,
        Some(exec) => exec.resize(request.size)?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// An exec, or `None` for the container's first process.
pub(crate) fn find_process(
    container: &Container,
    process: Option<ProcessId>,
) -> Answer<Option<ExecProcess>> {
    let exec = process.filter(|process| !process.is_init());
    exec.map(|process| find_exec(container, &process)).transpose()
}

fn find_exec(container: &Container, process: &ProcessId) -> Answer<ExecProcess> {
    container.process(process).ok_or_else(|| {
        Failure::new(
            ErrorKind::NotFound,
            format!("no such process in container {}: {process}", container.id()),
        )
    })
}

async fn exec(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(query): Asked<PositionsQuery>,
    Input(ExecRequest { mut options, detach }): Input<ExecRequest>,
) -> Answer<Response> {
    let container = find(&supervisor, &id)?;
    if !detach {
        options = options.auto_remove();
    }
    let (process, log) = container.exec_attached(options).await?;
    let whose = Whose { container, exec: Some(process) };
    if detach {
        return Ok(Json(whose.started()).into_response());
    }
    Ok(output::life(whose, log, query.positions).await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DeleteQuery {
    #[serde(default)]
    force: bool,
}

async fn delete(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Asked(query): Asked<DeleteQuery>,
) -> Answer<StatusCode> {
    let container = find(&supervisor, &id)?;
    if query.force {
        container.delete_forced().await?
    } else {
        container.delete().await?
    }
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    #[serde(default)]
    replay: bool,
    since: Option<Cursor>,
}

async fn events(
    State(supervisor): State<Supervisor>,
    Asked(query): Asked<EventQuery>,
) -> Answer<Response> {
    let stream = match (query.since, query.replay) {
        (Some(_), true) => {
            let message = "`since` says where to begin, and `replay` at the beginning: one of them";
            return Err(Failure::new(ErrorKind::Invalid, message));
        }
        (Some(cursor), false) => supervisor.events_since(cursor),
        (None, true) => supervisor.events_since(Cursor::BEGINNING),
        (None, false) => supervisor.events(),
    };
    let begin = stream.cursor().to_string();
    let lines = futures::stream::unfold(stream, async |mut stream| {
        let item = stream.next().await?;
        let cursor = stream.cursor();
        let line = match item {
            Ok(event) => EventLine::Event { cursor, event },
            Err(gap) => EventLine::Gap { cursor, gap },
        };
        let line = serde_json::to_vec(&line).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, stream))
    });
    let kind = [
        (header::CONTENT_TYPE, "application/x-ndjson".to_owned()),
        (HeaderName::from_static("holdfast-cursor"), begin),
    ];
    Ok((kind, Body::from_stream(lines)).into_response())
}
