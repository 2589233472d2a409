//! One handler a request.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRef, FromRequestParts, Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, NoContent, Response};
use axum::{Json, Router};
use holdfast_policies::{HealthChecks, Restarts};
use holdfast_supervisor::{
    Container, ContainerId, Error, ExecProcess, ProcessId, Status, Supervisor,
};
use nix::libc::SIGKILL;
use serde::Deserialize;

use crate::answer::{Created, Executed, Frames, Lines, Text};
use crate::api::{
    AttachQuery, ContainerOptions, ContainerView, CreateRequest, Cursor, Details, ErrorKind,
    EventLine, ExecRequest, ExitRecord, Incarnation, Info, InspectQuery, KillRequest, Of, PastRun,
    Problem, ResizeRequest, StopRequest, WaitQuery,
};
use crate::body::{Input, give_back_soon};
use crate::error::Failure;
use crate::metrics::{self, Metrics};
use crate::output::Whose;
use crate::reload::SharedDefaults;
use crate::{openapi, operate, output};

pub(crate) type Answer<T> = Result<T, Failure>;

/// What the handlers share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) supervisor: Supervisor,
    pub(crate) restarts: Arc<Restarts>,
    pub(crate) checks: Arc<HealthChecks>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) defaults: SharedDefaults,
}

impl Shared {
    /// Fills in what the options of a container leave open.
    fn complete(&self, options: ContainerOptions) -> Answer<ContainerOptions> {
        let complete = self.defaults.get().apply(options);
        complete
            .map_err(|error| Failure::new(ErrorKind::Internal, format!("the defaults: {error}")))
    }
}

impl FromRef<Shared> for Supervisor {
    fn from_ref(shared: &Shared) -> Self {
        shared.supervisor.clone()
    }
}

/// Makes the router of the API from a table of its requests; in a test also the document.
macro_rules! requests {
    ($($method:ident $path:literal $handler:path, $summary:literal;)*) => {
        fn requests() -> Router<Shared> {
            Router::new()$(.route($path, axum::routing::$method($handler)))*
        }

        #[cfg(test)]
        pub(crate) fn describe(document: &mut crate::openapi::describe::Describing) {
            $(document.request(stringify!($method), $path, $summary, $handler);)*
        }
    };
}

requests! {
    get "/v1/info" info, "Returns the version, the state root, the kernel, the limits and the problems";
    get "/v1/openapi.json" openapi::show, "Returns this document";
    get "/v1/events" events, "Streams events: from now on, after a cursor, or all that are kept";
    get "/v1/stats" operate::all_stats, "Returns what all containers use that have a process";
    get "/v1/containers" list, "Lists all containers, or those with a label";
    post "/v1/containers" create, "Creates a container, and starts it if asked to";
    post "/v1/run" run, "Creates and starts a container, and streams its output until its exit";
    get "/v1/containers/{id}" inspect, "Returns one container";
    delete "/v1/containers/{id}" delete, "Deletes a container; a running one only with `force`";
    get "/v1/containers/{id}/details" details, "Returns the OCI configuration, the record and the earlier runs";
    post "/v1/containers/{id}/start" start, "Starts a container that is created or stopped";
    post "/v1/containers/{id}/start-attached" start_attached, "Starts a container unless this `run` of it has begun, and streams the output of the run until its exit";
    post "/v1/containers/{id}/stop" stop, "Stops a container, and waits for its exit";
    post "/v1/containers/{id}/restart" restart, "Stops a container and starts it again";
    get "/v1/containers/{id}/runs" runs, "Lists the earlier runs of a container, the oldest first";
    get "/v1/containers/{id}/wait" wait, "Waits for the exit of a process; also of a container that was deleted";
    post "/v1/containers/{id}/kill" kill, "Sends a signal to a process";
    post "/v1/containers/{id}/exec" exec, "Starts a further process, and streams its output unless it is detached";
    delete "/v1/containers/{id}/processes/{process}" delete_process, "Deletes a further process that has ended";
    post "/v1/containers/{id}/close-stdin" close_stdin, "Closes the input of a process";
    post "/v1/containers/{id}/resize" resize, "Sets the size of a terminal";
    post "/v1/containers/{id}/pause" operate::pause, "Freezes all processes of a container";
    post "/v1/containers/{id}/resume" operate::resume, "Thaws the processes of a paused container";
    post "/v1/containers/{id}/update" operate::update, "Changes limits: the body is `linux.resources` of an OCI configuration";
    post "/v1/containers/{id}/checkpoint" operate::checkpoint, "Writes the state of a container to a directory";
    get "/v1/containers/{id}/top" operate::top, "Lists the processes of a container";
    get "/v1/containers/{id}/stats" operate::stats, "Returns what a container uses";
    get "/v1/containers/{id}/logs" output::logs, "Streams what a process wrote";
    get "/v1/containers/{id}/attach" output::attach, "Streams the output from now on, or after a position, until the exit";
    post "/v1/containers/{id}/release" release, "Ends the wait of an automatic deletion: the client has read all output";
    post "/v1/containers/{id}/reopen-logs" output::reopen_logs, "Has the log files opened again after a rotation";
    get "/metrics" metrics::show, "Returns the metrics of the daemon";
}

pub(crate) fn router(shared: Shared) -> Router {
    requests()
        .fallback(async || Failure::new(ErrorKind::NotFound, "no such request; see docs/api.md"))
        .method_not_allowed_fallback(async || {
            Failure::new(ErrorKind::Invalid, "this path takes other methods")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(middleware::from_fn_with_state(shared.metrics.clone(), metrics::count))
        .with_state(shared)
}

/// Refuses what may change something. `attach` does: a client that leaves ends the wait of an automatic
/// deletion.
pub(crate) async fn only_reads(request: Request, next: Next) -> Response {
    if request.method() == Method::GET && !request.uri().path().ends_with("/attach") {
        return next.run(request).await;
    }
    let message = "this socket is read-only: it answers GET, and not attach";
    Failure::new(ErrorKind::Forbidden, message).into_response()
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

async fn info(State(Shared { supervisor, restarts, .. }): State<Shared>) -> Json<Info> {
    let report = supervisor.restore_report();
    let problems = report.problems.iter().cloned().chain(restarts.problems());
    let problems = problems.map(|it| Problem { path: it.path, reason: it.reason }).collect();
    Json(Info {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        root: supervisor.root().to_owned(),
        runtime: supervisor.default_runtime(),
        abilities: supervisor.abilities().clone(),
        limits: supervisor.limits().to_vec(),
        rootless: supervisor.rootless().cloned(),
        definitions: restarts.definitions().map(ToOwned::to_owned),
        restored: report.containers,
        restore_micros: u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX),
        problems,
    })
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// Only containers with this label: `NAME`, or `NAME=VALUE`.
    label: Option<String>,
}

async fn list(
    State(supervisor): State<Supervisor>,
    Asked(query): Asked<ListQuery>,
) -> Answer<Text<Vec<ContainerView>>> {
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
        serde_json::to_writer(&mut text, &ContainerView::from(container.info()))
            .map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?;
    }
    text.push(b']');
    give_back_soon(text.len());
    Ok(Text::new(text))
}

async fn inspect(
    State(Shared { supervisor, checks, .. }): State<Shared>,
    Path(id): Path<String>,
    Asked(query): Asked<InspectQuery>,
) -> Answer<Json<ContainerView>> {
    let container = find(&supervisor, &id)?;
    if query.begun {
        container.begun().await?;
    }
    let info = container.info();
    let health = checks.of(&info);
    Ok(Json(ContainerView { health, ..info.into() }))
}

/// The largest configuration or record that is read.
const DETAILS_LIMIT: u64 = 16 * 1024 * 1024;

async fn details(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
) -> Answer<Json<Details>> {
    let container = find(&supervisor, &id)?;
    let bundle = container.info().bundle;
    let record = supervisor.root().join(container.id().as_str()).join("init/process.json");
    let runs = container.runs().await?;
    let read = tokio::task::spawn_blocking(move || {
        Ok::<_, String>((read_json(&bundle.join("config.json"))?, read_json(&record)?))
    });
    let read = read.await.map_err(|error| error.to_string()).and_then(|read| read);
    match read {
        Ok((config, record)) => Ok(Json(Details { config, record, runs })),
        Err(error) => {
            // It may have been removed meanwhile; then that is the reason.
            find(&supervisor, &id)?;
            Err(Failure::new(ErrorKind::Internal, error))
        }
    }
}

fn read_json(path: &std::path::Path) -> Result<serde_json::Value, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        // The caller may have removed its bundle; one of containerd's 2016 shim has none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(serde_json::Value::Null);
        }
        Err(error) => return Err(failed(&error)),
    };
    let limited = std::io::BufReader::new(std::io::Read::take(file, DETAILS_LIMIT));
    serde_json::from_reader(limited).map_err(|error| failed(&error))
}

async fn create(
    State(shared): State<Shared>,
    Input(CreateRequest { options, start }): Input<CreateRequest>,
) -> Answer<Created<ContainerView>> {
    let options = shared.complete(options)?;
    let Shared { restarts, metrics, .. } = shared;
    let container = if start {
        metrics.start(restarts.run(options)).await?
    } else {
        restarts.create(options).await?
    };
    Ok(Created(container.info().into()))
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct PositionsQuery {
    /// Whether positions are wanted.
    #[serde(default)]
    positions: bool,
}

async fn run(
    State(shared): State<Shared>,
    Asked(query): Asked<PositionsQuery>,
    Input(CreateRequest { options, .. }): Input<CreateRequest>,
) -> Answer<Frames> {
    let options = shared.complete(options)?;
    let started = shared.metrics.start(shared.restarts.run_attached(options));
    let (container, log) = started.await?;
    Ok(output::life(Whose { container, exec: None }, log, query.positions).await)
}

async fn start(
    State(Shared { supervisor, restarts, metrics, .. }): State<Shared>,
    Path(id): Path<String>,
) -> Answer<NoContent> {
    metrics.start(restarts.start(&find(&supervisor, &id)?)).await?;
    Ok(NoContent)
}

async fn start_attached(
    State(Shared { supervisor, restarts, metrics, .. }): State<Shared>,
    Path(id): Path<String>,
    Asked(query): Asked<AttachQuery>,
) -> Answer<Frames> {
    if let Some(run) = query.run
        && has_begun(&supervisor, &id, &query, run).await?
    {
        let query = AttachQuery { resume: true, ..query };
        return output::attach(State(supervisor), Path(id), Asked(query)).await;
    }
    let container = find_incarnation(&supervisor, &id, query.incarnation)?;
    let log = metrics.start(restarts.start_attached(&container)).await?;
    Ok(output::life(Whose { container, exec: None }, log, query.positions).await)
}

/// Whether this run has begun, perhaps by an earlier daemon. A run of a container that was removed has.
async fn has_begun(
    supervisor: &Supervisor,
    id: &str,
    query: &AttachQuery,
    run: u32,
) -> Answer<bool> {
    let container = match find_incarnation(supervisor, id, query.incarnation) {
        Err(unknown) if unknown.body.kind == ErrorKind::NotFound => return Ok(true),
        found => found?,
    };
    match container.begun().await {
        Err(Error::NotBegun) => return Ok(false),
        begun => begun?,
    }
    let info = container.info();
    Ok(info.run > run || info.run == run && info.status != Status::Created)
}

async fn stop(
    State(Shared { supervisor, restarts, .. }): State<Shared>,
    Path(id): Path<String>,
    Input(request): Input<StopRequest>,
) -> Answer<Json<ExitRecord>> {
    let container = find(&supervisor, &id)?;
    let (signal, grace) = how_to_stop(&container, &request)?;
    Ok(Json(restarts.stop(&container, signal, grace).await?))
}

async fn restart(
    State(Shared { supervisor, restarts, .. }): State<Shared>,
    Path(id): Path<String>,
    Input(request): Input<StopRequest>,
) -> Answer<NoContent> {
    let container = find(&supervisor, &id)?;
    let (signal, grace) = how_to_stop(&container, &request)?;
    restarts.restart(&container, signal, grace).await?;
    Ok(NoContent)
}

/// What a request says, else what the container does, else what is usual.
fn how_to_stop(container: &Container, request: &StopRequest) -> Answer<(i32, Duration)> {
    let (signal, grace) = holdfast_policies::how_to_stop(&container.info());
    let signal = checked(request.signal.unwrap_or(signal))?;
    Ok((signal, request.grace_ms.map_or(grace, Duration::from_millis)))
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
) -> Answer<NoContent> {
    Whose::find(&supervisor, &id, None, request.process)?.release();
    Ok(NoContent)
}

async fn delete_process(
    State(supervisor): State<Supervisor>,
    Path((id, process)): Path<(String, ProcessId)>,
) -> Answer<NoContent> {
    find_exec(&find(&supervisor, &id)?, &process)?.delete().await?;
    Ok(NoContent)
}

async fn kill(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<KillRequest>,
) -> Answer<NoContent> {
    checked(request.signal)?;
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None if request.signal == SIGKILL => container.kill().await?,
        None => container.signal(request.signal)?,
        Some(exec) => exec.signal(request.signal)?,
    }
    Ok(NoContent)
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
) -> Answer<NoContent> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.close_stdin()?,
        Some(exec) => exec.close_stdin()?,
    }
    Ok(NoContent)
}

async fn resize(
    State(supervisor): State<Supervisor>,
    Path(id): Path<String>,
    Input(request): Input<ResizeRequest>,
) -> Answer<NoContent> {
    let container = find(&supervisor, &id)?;
    match find_process(&container, request.process)? {
        None => container.resize(request.size)?,
        Some(exec) => exec.resize(request.size)?,
    }
    Ok(NoContent)
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
) -> Answer<Executed> {
    let container = find(&supervisor, &id)?;
    if !detach {
        options = options.auto_remove();
    }
    let (process, log) = container.exec_attached(options).await?;
    let whose = Whose { container, exec: Some(process) };
    if detach {
        return Ok(Executed::Detached(whose.started()));
    }
    Ok(Executed::Attached(output::life(whose, log, query.positions).await))
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct DeleteQuery {
    /// Whether a container that still runs is killed.
    #[serde(default)]
    force: bool,
}

async fn delete(
    State(Shared { supervisor, restarts, .. }): State<Shared>,
    Path(id): Path<String>,
    Asked(query): Asked<DeleteQuery>,
) -> Answer<NoContent> {
    let id: ContainerId = id.parse().map_err(Error::from)?;
    match supervisor.get(&id) {
        Ok(container) if query.force => restarts.delete_forced(&container).await?,
        Ok(container) => restarts.delete(&container).await?,
        // It could not be made after a reboot, and is not to be tried again.
        Err(_) if restarts.forget(&id).await? => {}
        Err(unknown) => return Err(unknown.into()),
    }
    Ok(NoContent)
}

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub(crate) struct EventQuery {
    /// Whether all events that are kept come first; not together with `since`.
    #[serde(default)]
    replay: bool,
    /// The cursor after which events are wanted.
    since: Option<Cursor>,
    /// `false` to end with the last event that is there now.
    follow: Option<bool>,
}

async fn events(
    State(supervisor): State<Supervisor>,
    Asked(query): Asked<EventQuery>,
) -> Answer<Lines<EventLine>> {
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
    let end = (query.follow == Some(false)).then(|| supervisor.events().cursor());
    let lines = futures::stream::unfold(stream, move |mut stream| async move {
        if end.is_some_and(|end| stream.cursor().number() >= end.number()) {
            return None;
        }
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
    Ok(Lines::new(begin, Body::from_stream(lines)))
}
