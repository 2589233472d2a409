//! The daemon's process and its API.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_tests::binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;

use crate::Outcome;

/// Longer than a daemon takes to restore what there is; it times nothing.
const LIMIT: Duration = Duration::from_secs(600);

/// A daemon. Dropped, it is killed.
pub(crate) struct Daemon {
    pub(crate) root: PathBuf,
    pub(crate) pid: i32,
    child: Child,
    complaints: Arc<AtomicUsize>,
}

impl Daemon {
    /// Starts it, and returns once it listens.
    pub(crate) async fn start(root: &Path, runtime: &str) -> Outcome<Self> {
        let mut command = Command::new(binary("holdfast"));
        command.arg("--root").arg(root).args(["daemon", "--runtime", runtime]);
        command.env_remove("HOLDFAST_LOG").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
        let pid = child.id().ok_or("the daemon has no number")?.cast_signed();
        let mut lines = BufReader::new(child.stderr.take().ok_or("no standard error")?).lines();
        let mut said = String::new();
        loop {
            let line = timeout(LIMIT, lines.next_line()).await??;
            let line = line.ok_or_else(|| format!("the daemon did not come to listen:\n{said}"))?;
            said += &format!("{line}\n");
            if line.contains("listening") {
                break;
            }
        }
        let complaints = Arc::new(AtomicUsize::new(0));
        tokio::spawn(hear(lines, complaints.clone()));
        Ok(Self { root: root.to_owned(), pid, child, complaints })
    }

    /// Of how many things it has complained since it listens. The first few were printed.
    pub(crate) fn complaints(&self) -> usize {
        self.complaints.load(Ordering::Relaxed)
    }

    /// Ends it by a signal, and returns how it ended.
    pub(crate) async fn end(&mut self, signal: Signal) -> Outcome<ExitStatus> {
        kill(Pid::from_raw(self.pid), signal)?;
        Ok(timeout(LIMIT, self.child.wait()).await??)
    }

    /// One request; its answer, which must be a success.
    pub(crate) async fn ask(&self, what: &str, body: Option<&Value>) -> Outcome<Value> {
        let mut stream = self.request(what, body).await?;
        let mut answer = Vec::new();
        timeout(LIMIT, stream.read_to_end(&mut answer)).await??;
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").ok_or("no HTTP")?;
        let content = &answer[end + 4..];
        if !answer.get(9..12).is_some_and(|code| code.starts_with(b"2")) {
            return Err(format!("{what}: {}", String::from_utf8_lossy(&answer)).into());
        }
        if content.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(content)?) }
    }

    /// The events, as lines after a head of HTTP's.
    pub(crate) async fn events(&self, replay: bool) -> Outcome<Lines<BufReader<UnixStream>>> {
        let stream = self.request(&format!("GET /v1/events?replay={replay}"), None).await?;
        let mut lines = BufReader::new(stream).lines();
        // By the empty line the daemon is known to listen.
        while !timeout(LIMIT, lines.next_line()).await??.ok_or("no events")?.is_empty() {}
        Ok(lines)
    }

    /// In the version of HTTP that knows no chunks.
    async fn request(&self, what: &str, body: Option<&Value>) -> Outcome<UnixStream> {
        let mut stream = UnixStream::connect(self.root.join("holdfast.sock")).await?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{what} HTTP/1.0\r\nHost: holdfast\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).await?;
        Ok(stream)
    }

    /// `holdfast ps`, as its users have it, and the milliseconds that it took.
    pub(crate) async fn ps(&self) -> Outcome<(Vec<Value>, f64)> {
        let began = Instant::now();
        let mut command = Command::new(binary("holdfast"));
        command.arg("--root").arg(&self.root).args(["ps", "--json"]).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await??;
        let took = began.elapsed().as_secs_f64() * 1000.0;
        if !output.status.success() {
            return Err(format!("holdfast ps: {output:?}").into());
        }
        Ok((serde_json::from_slice(&output.stdout)?, took))
    }
}

async fn hear(mut lines: Lines<BufReader<ChildStderr>>, complaints: Arc<AtomicUsize>) {
    while let Ok(Some(line)) = lines.next_line().await {
        if (line.contains("WARN") || line.contains("ERROR"))
            && complaints.fetch_add(1, Ordering::Relaxed) < 10
        {
            eprintln!("the daemon said: {line}");
        }
    }
}
