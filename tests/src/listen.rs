//! Reading output and events to their end, and never for ever: a test that hangs says at what.

use std::time::Duration;

use holdfast_supervisor::{
    Container, Event, EventKind, EventStream, ExitStatus, LogReader, Mark, OutputStream,
};

/// Longer than anything here takes on a loaded machine. It times nothing; it turns a hang into a
/// failure. An emulated processor takes more: `HOLDFAST_TEST_LIMIT` says how many seconds.
fn limit() -> Duration {
    let seconds = std::env::var("HOLDFAST_TEST_LIMIT").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

/// Waits for what must come.
///
/// # Panics
///
/// If it does not come.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = limit();
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {limit:?} for {what}"),
    }
}

/// Waits until something holds of which nothing tells. So this looks again and again.
///
/// # Panics
///
/// If it does not come to hold.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// What a process wrote.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// To its standard output.
    pub stdout: Vec<u8>,
    /// To its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// What a process wrote that wrote text to its standard output only.
    #[must_use]
    pub fn of(stdout: &str) -> Self {
        Self { stdout: stdout.into(), stderr: Vec::new() }
    }
}

/// Reads until the process has ended and all is read. What a shim that was killed had written and not
/// yet taken out of the pipe comes once more, and marked: that is left out.
pub async fn read_all(mut reader: LogReader) -> Output {
    let mut output = Output::default();
    while let Some(chunk) = soon("output", reader.follow()).await.expect("read output") {
        let stream = match chunk.stream {
            OutputStream::Stdout => &mut output.stdout,
            OutputStream::Stderr => &mut output.stderr,
        };
        if chunk.mark != Mark::Again || !stream.ends_with(&chunk.bytes) {
            stream.extend_from_slice(&chunk.bytes);
        }
    }
    output
}

/// Waits until a container has written this line to its standard output.
pub async fn said(container: &Container, line: &str) {
    let mut reader = container.logs().expect("open the output");
    let wanted = format!("{line}\n");
    while let Some(chunk) = soon(line, reader.follow()).await.expect("read output") {
        if chunk.stream == OutputStream::Stdout && chunk.bytes == wanted.as_bytes() {
            return;
        }
    }
    panic!("container {} ended and never said {line:?}", container.id());
}

/// Reads events up to and with the one that `last` accepts.
pub async fn events_until(
    events: &mut EventStream,
    mut last: impl FnMut(&Event) -> bool,
) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let event = soon("an event", events.next()).await.expect("the stream of events has ended");
        let event = event.expect("missed no event");
        all.push(event.clone());
        if last(&event) {
            return all;
        }
    }
}

/// How a container ended, by `wait`.
pub async fn status(container: &Container) -> ExitStatus {
    soon("the exit of a container", container.wait()).await.expect("wait")
}

/// An event in words: its process, what happened and, for an exit, how.
///
/// # Panics
///
/// If the library has an event that is not here.
#[must_use]
pub fn in_words(event: &Event) -> String {
    let what = match &event.kind {
        EventKind::Created { .. } => "created",
        EventKind::Starting => "starting",
        EventKind::Started => "started",
        EventKind::Exited { status, .. } => &format!("exited {status}"),
        EventKind::ShimLost => "shim lost",
        EventKind::Adopted => "adopted",
        EventKind::Pausing => "pausing",
        EventKind::Paused => "paused",
        EventKind::Resuming => "resuming",
        EventKind::Resumed => "resumed",
        EventKind::OutOfMemory => "out of memory",
        EventKind::Checkpointed => "checkpointed",
        EventKind::Deleted => "deleted",
        EventKind::StartFailed { reason } => &format!("start failed: {reason}"),
        EventKind::SetAside => "set aside",
        other => panic!("an event that no test knows: {other:?}"),
    };
    format!("{} {what}", event.process)
}
