//! The metrics of the daemon, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Counters count from the start of the daemon. What is counted from events includes everything after
//! the restore; an exit while there was no daemon is published by the restore, and not counted.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use holdfast_policies::{CheckCounts, Health, HealthStatus};
use holdfast_supervisor::{Event, EventKind, ExitStatus, Status, Supervisor};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::api::ErrorKind;
use crate::error::Failure;
use crate::routes::{Answer, Shared};

/// The content type of what is answered.
pub(crate) const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of the histogram of starts, in seconds.
const START_BOUNDS: [f64; 12] =
    [0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProcess {
    process: ProcessKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum ProcessKind {
    Init,
    Exec,
}

impl EncodeLabelValue for ProcessKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        encoder.write_str(match self {
            Self::Init => "init",
            Self::Exec => "exec",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exit {
    process: ProcessKind,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    method: &'static str,
    route: String,
    code: u16,
}

const STATES: [Status; 5] =
    [Status::Creating, Status::Created, Status::Running, Status::Paused, Status::Stopped];

const HEALTH: [HealthStatus; 3] =
    [HealthStatus::Starting, HealthStatus::Healthy, HealthStatus::Unhealthy];

/// All metrics. Those that are a state and no count are set when they are read.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    containers: Family<InState, Gauge>,
    health: Family<InState, Gauge>,
    health_checks: Family<WithResult, Counter>,
    journal_size: Gauge,
    restarts: Counter,
    counts: Counts,
    requests: Family<Asked, Counter>,
    start_duration: Histogram,
}

/// What is counted from events.
#[derive(Debug, Clone, Default)]
struct Counts {
    events: Counter,
    starts: Family<OfProcess, Counter>,
    start_failures: Family<OfProcess, Counter>,
    exits: Family<Exit, Counter>,
    oom_kills: Counter,
}

impl Metrics {
    /// Begins to count the events of a supervisor, until it stops.
    pub(crate) fn begin(supervisor: &Supervisor) -> Self {
        let mut registry = Registry::with_prefix("holdfast");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "The version of the daemon", version);
        let report = supervisor.restore_report();
        let restore: Gauge<f64, AtomicU64> = Gauge::default();
        restore.set(report.elapsed.as_secs_f64());
        let help = "How long this daemon took to restore the containers";
        registry.register_with_unit("restore_duration", help, Unit::Seconds, restore);
        let restored: Gauge = Gauge::default();
        restored.set(i64::try_from(report.containers).unwrap_or(i64::MAX));
        registry.register("restored_containers", "Containers that this daemon restored", restored);

        let this = Self {
            registry,
            containers: Family::default(),
            health: Family::default(),
            health_checks: Family::default(),
            journal_size: Gauge::default(),
            restarts: Counter::default(),
            counts: Counts::default(),
            requests: Family::default(),
            start_duration: Histogram::new(START_BOUNDS),
        };
        let counts = this.counts.clone();
        let mut events = supervisor.events();
        tokio::spawn(async move {
            while let Some(item) = events.next().await {
                if let Ok(event) = item {
                    counts.add(&event);
                }
            }
        });
        this.registered()
    }

    fn registered(mut self) -> Self {
        let mut registry = std::mem::take(&mut self.registry);
        let counts = &self.counts;
        registry.register("containers", "Containers by status", self.containers.clone());
        let help = "Running containers with a health check by health";
        registry.register("health", help, self.health.clone());
        let help = "Health checks: timeout is one that took too long and was killed";
        registry.register("health_checks", help, self.health_checks.clone());
        let help = "The files of the journal of events";
        registry.register_with_unit("journal_size", help, Unit::Bytes, self.journal_size.clone());
        let help = "Containers that were restarted by their policy";
        registry.register("restarts", help, self.restarts.clone());
        registry.register("events", "Events of containers", counts.events.clone());
        let help = "Processes that were started";
        registry.register("starts", help, counts.starts.clone());
        let help = "Processes whose start failed";
        registry.register("start_failures", help, counts.start_failures.clone());
        let help =
            "Exits: success is code 0, failure another code, unknown a status that nobody saw";
        registry.register("exits", help, counts.exits.clone());
        let help = "Times that the OOM killer killed a process of a container";
        registry.register("oom_kills", help, counts.oom_kills.clone());
        let help = "Requests to the API by route and HTTP status";
        registry.register("api_requests", help, self.requests.clone());
        let help = "From the request to start a container until its program ran";
        let starts = self.start_duration.clone();
        registry.register_with_unit("start_duration", help, Unit::Seconds, starts);
        self.registry = registry;
        self
    }

    /// Awaits the start of a container, and observes how long it took if it succeeds.
    pub(crate) async fn start<T, E>(
        &self,
        start: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let started = start.await;
        if started.is_ok() {
            self.start_duration.observe(began.elapsed().as_secs_f64());
        }
        started
    }

    /// Returns all metrics as text.
    pub(crate) async fn text(&self, shared: &Shared) -> Answer<String> {
        let mut counts = STATES.map(|status| (status, 0));
        let mut by_health = HEALTH.map(|health| (health, 0));
        for container in shared.supervisor.list() {
            let info = container.info();
            if let Some((_, count)) = counts.iter_mut().find(|(state, _)| *state == info.status) {
                *count += 1;
            }
            if info.status == Status::Running
                && let Some(Health { status, .. }) = Health::of(&info)
                && let Some((_, count)) = by_health.iter_mut().find(|(health, _)| *health == status)
            {
                *count += 1;
            }
        }
        for (health, count) in by_health {
            self.health.get_or_create(&InState { state: health.as_str() }).set(count);
        }
        let CheckCounts { succeeded, failed, timed_out, .. } = shared.checks.counts();
        for (result, count) in [("success", succeeded), ("failure", failed), ("timeout", timed_out)]
        {
            let counter = self.health_checks.get_or_create(&WithResult { result });
            counter.inner().store(count, Ordering::Relaxed);
        }
        for (status, count) in counts {
            self.containers.get_or_create(&InState { state: status.as_str() }).set(count);
        }
        self.restarts.inner().store(shared.restarts.count(), Ordering::Relaxed);
        let journal = shared.supervisor.root().join(".journal");
        let size = tokio::task::spawn_blocking(move || size_of(&journal)).await.unwrap_or_default();
        self.journal_size.set(i64::try_from(size).unwrap_or(i64::MAX));
        let mut text = String::new();
        text::encode(&mut text, &self.registry)
            .map_err(|error| Failure::new(ErrorKind::Internal, format!("the metrics: {error}")))?;
        Ok(text)
    }
}

impl Counts {
    fn add(&self, event: &Event) {
        self.events.inc();
        let process = if event.process.is_init() { ProcessKind::Init } else { ProcessKind::Exec };
        match &event.kind {
            EventKind::Started => {
                self.starts.get_or_create(&OfProcess { process }).inc();
            }
            EventKind::StartFailed { .. } => {
                self.start_failures.get_or_create(&OfProcess { process }).inc();
            }
            EventKind::OutOfMemory => {
                self.oom_kills.inc();
            }
            EventKind::Exited { status, .. } => {
                let kind = match status {
                    ExitStatus::Code(0) => "success",
                    ExitStatus::Code(_) => "failure",
                    ExitStatus::Signal(_) => "signal",
                    _ => "unknown",
                };
                self.exits.get_or_create(&Exit { process, kind }).inc();
            }
            _ => {}
        }
    }
}

/// Returns the sum of the sizes of the files in a directory, in bytes.
fn size_of(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// Answers with the metrics.
pub(crate) async fn show(State(shared): State<Shared>) -> Answer<OpenMetrics> {
    Ok(OpenMetrics(shared.metrics.text(&shared).await?))
}

/// Metrics as text.
#[derive(Debug)]
pub(crate) struct OpenMetrics(String);

impl IntoResponse for OpenMetrics {
    fn into_response(self) -> Response {
        ([(header::CONTENT_TYPE, OPEN_METRICS)], self.0).into_response()
    }
}

/// Counts a request. Only names of routes become labels, so that a client cannot make up new ones.
pub(crate) async fn count(
    State(metrics): State<Arc<Metrics>>,
    request: Request,
    next: Next,
) -> Response {
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let answer = next.run(request).await;
    let asked = Asked { method, route, code: answer.status().as_u16() };
    metrics.requests.get_or_create(&asked).inc();
    answer
}
