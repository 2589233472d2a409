//! An exporter: serves the state of its containers to Prometheus, in its text format.
//!
//! `exporter ROOT ADDRESS`: serves http://ADDRESS/metrics. The file `ROOT-exits.json` has the
//! numbers of exits, and the position in the stream of events up to which they are counted. So each
//! exit is counted once, also one that happens while no exporter runs. HTTP and the text format are
//! written by hand; a real service would leave both to libraries.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io;
use std::time::Duration;

use holdfast_supervisor::{
    ContainerOptions, Cursor, Event, EventKind, Gap, GapReason, Stats, Status, Supervisor,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long a client may take for its request and its answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);

/// The position up to which exits are counted, and their number by status.
type Exits = (Cursor, BTreeMap<String, u64>);

/// Counts an exit. Nothing is stored after other events: it does no harm to read them again.
fn count(item: Result<Event, Gap>, exits: &mut Exits, path: &str) -> io::Result<()> {
    match item {
        Ok(Event { process, kind: EventKind::Exited { status, .. }, .. }) if process.is_init() => {
            *exits.1.entry(status.to_string()).or_default() += 1;
            // Position and numbers are replaced together.
            let new = format!("{path}.new");
            std::fs::write(&new, serde_json::to_vec(exits)?)?;
            std::fs::rename(new, path)?;
        }
        // An exporter that was killed leaves an unclean gap, in which no event is missing.
        Err(gap) if gap.reason != GapReason::Unclean => eprintln!("events: {gap}"),
        _ => {}
    }
    Ok(())
}

/// Returns the lines of a metric. Ids and statuses have no quotes, so nothing is escaped.
fn lines<V: Display>(metric: &str, label: &str, samples: &[(impl Display, V)]) -> String {
    let kind = if metric.ends_with("_total") { "counter" } else { "gauge" };
    let mut text = format!("# TYPE holdfast_{metric} {kind}\n");
    for (key, value) in samples {
        text += &format!("holdfast_{metric}{{{label}=\"{key}\"}} {value}\n");
    }
    text
}

async fn metrics(supervisor: &Supervisor, (_, exits): &Exits) -> io::Result<String> {
    let (infos, stats) = (supervisor.infos(), supervisor.stats_all().await?);
    let running = infos.iter().filter(|info| info.status == Status::Running).count();
    let runs: Vec<_> = infos.iter().map(|info| (&info.id, info.run)).collect();
    // What the kernel does not report of a container is left out.
    let each = |value: fn(&Stats) -> Option<u64>, unit: f64| -> Vec<_> {
        stats.iter().filter_map(|(it, of)| Some((it.id(), value(of)? as f64 / unit))).collect()
    };
    Ok(lines("containers", "status", &[("running", running)])
        + &lines("cpu_seconds_total", "id", &each(|it| it.cpu_nanos, 1e9))
        + &lines("memory_working_set_bytes", "id", &each(|it| it.memory_working_set_bytes, 1.0))
        + &lines("oom_kills_total", "id", &each(|it| it.oom_kills, 1.0))
        + &lines("runs_total", "id", &runs)
        + &lines("exits_total", "status", &exits.iter().collect::<Vec<_>>()))
}

/// Answers one request, whatever it asks for.
async fn answer(mut client: TcpStream, metrics: &str) -> io::Result<()> {
    let mut request = BufReader::new((&mut client).take(8192)).lines();
    while request.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close";
    client.write_all(format!("{head}\r\n\r\n{metrics}").as_bytes()).await?;
    client.shutdown().await
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [root, address] = &args[..] else {
        return Err(io::Error::other("usage: exporter ROOT ADDRESS"));
    };
    let path = format!("{root}-exits.json");
    let mut exits: Exits = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Cursor::BEGINNING, [].into()),
        text => serde_json::from_slice(&text?)?,
    };
    let shim = std::env::current_exe()?.with_file_name("../holdfast-shim");
    let builder = Supervisor::builder(root).shim(shim);
    let (supervisor, mut events) = builder.open_with_events(exits.0).await?;
    if supervisor.list().is_empty() {
        let demo = ["sh", "-c", "trap 'exit 0' TERM; echo ready; while true; do sleep 1; done"];
        supervisor.run(ContainerOptions::host_rootfs().args(demo).auto_remove()).await?;
    }
    let listener = TcpListener::bind(address).await?;
    println!("http://{}/metrics", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    loop {
        tokio::select! {
            Some(item) = events.next() => {
                exits.0 = events.cursor();
                count(item, &mut exits, &path)?;
            }
            // One client after the other. Events that come meanwhile wait in the journal.
            accepted = listener.accept() => {
                let metrics = metrics(&supervisor, &exits).await?;
                let answered = timeout(CLIENT_LIMIT, answer(accepted?.0, &metrics)).await;
                if let Err(error) = answered.unwrap_or_else(|late| Err(late.into())) {
                    eprintln!("a client: {error}");
                }
            }
            _ = terminate.recv() => break,
        }
    }
    supervisor.shutdown().await;
    Ok(())
}
