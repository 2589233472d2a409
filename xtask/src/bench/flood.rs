//! The daemon under clients that mean no good: its memory and its descriptors before, during and after
//! each kind of them, and how long an honest request waits meanwhile.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::memory::Memory;
use super::peers::Daemon;
use super::{Samples, Scratch, build, save};

/// How long the daemon may take to give up a client, and to come to rest afterwards.
const LIMIT: Duration = Duration::from_secs(60);
/// Clients that are at work at the same time.
const AT_ONCE: usize = 64;
/// A body of the size that the daemon just accepts.
const BODY: usize = 2 * 1024 * 1024 - 64;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many requests make no sense
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    malformed: usize,
    /// How many clients send the beginning of a request, and then nothing
    #[arg(long, value_name = "N", default_value_t = 1000)]
    slow: usize,
    /// How many connections send nothing
    #[arg(long, value_name = "N", default_value_t = 5000)]
    idle: usize,
    /// How many bodies of two megabytes come
    #[arg(long, value_name = "N", default_value_t = 600)]
    bodies: usize,
    /// How many clients go away in the middle of a request or of its answer
    #[arg(long, value_name = "N", default_value_t = 2000)]
    vanish: usize,
}

struct Flood {
    daemon: Daemon,
    socket: PathBuf,
}

/// What the daemon uses.
#[derive(Clone, Copy)]
struct Usage {
    pss_kib: f64,
    files: usize,
}

impl Usage {
    fn json(self) -> Value {
        json!({ "pssKiB": self.pss_kib, "files": self.files })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let daemon = Daemon::start(&build()?, &scratch.0.join("root"))?;
    let socket = daemon.root.join("holdfast.sock");
    let flood = Flood { daemon, socket };
    // What the daemon needs for any request is there afterwards.
    for _ in 0..100 {
        flood.ask()?;
    }
    let Options { malformed, slow, idle, bodies, vanish } = *options;
    let found = [
        flood.measure("malformed requests", malformed, |count| flood.each(count, nonsense))?,
        flood.measure("slow requests", slow, |count| flood.hold(count, b"GET /v1/inf"))?,
        flood.measure("idle connections", idle, |count| flood.hold(count, b""))?,
        flood.measure("bodies of 2 MB", bodies, |count| flood.each(count, large_body))?,
        flood.measure("clients that vanish", vanish, |count| flood.each(count, vanishing))?,
    ];
    let command = format!(
        "cargo xtask bench flood --malformed {malformed} --slow {slow} --idle {idle} --bodies {bodies} --vanish {vanish}"
    );
    save("flood.json", &command, &json!(found))
}

impl Flood {
    fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.daemon.pid();
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Usage { pss_kib: Memory::of(pid)?.pss, files })
    }

    /// An honest request. Returns how long it took, in milliseconds.
    fn ask(&self) -> anyhow::Result<f64> {
        let began = Instant::now();
        let answer =
            ask(&self.socket, b"GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let answer = answer.context("an honest request has no answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "an honest request is answered by {answer}");
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    }

    /// Looks at the daemon while a step is at work, and until it has come to rest.
    fn measure(
        &self,
        name: &str,
        count: usize,
        step: impl FnOnce(usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<Value> {
        let before = self.usage()?;
        let (over, seen) = (AtomicBool::new(false), Mutex::new((before, Samples::default())));
        let look = || -> anyhow::Result<()> {
            while !over.load(Ordering::Relaxed) {
                let (now, took) = (self.usage()?, self.ask()?);
                let mut seen = seen.lock().map_err(|_| anyhow::anyhow!("a panic"))?;
                seen.0.pss_kib = seen.0.pss_kib.max(now.pss_kib);
                seen.0.files = seen.0.files.max(now.files);
                seen.1.0.push(took);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        };
        let began = Instant::now();
        std::thread::scope(|scope| {
            let looking = scope.spawn(look);
            let done = step(count);
            over.store(true, Ordering::Relaxed);
            done.and(looking.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))))
        })?;
        let seconds = began.elapsed().as_secs_f64();
        let deadline = Instant::now() + LIMIT;
        let mut after = self.usage()?;
        while after.files > before.files && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            after = self.usage()?;
        }
        // Memory is given back a second after the last large body.
        std::thread::sleep(Duration::from_secs(2));
        after = self.usage()?;
        let (during, honest) = seen.into_inner().map_err(|_| anyhow::anyhow!("a panic"))?;
        println!(
            "{count} {name} in {seconds:.1} s: PSS {:.0}, {:.0}, {:.0} KiB and {}, {}, {} files before, at most and after; an honest request {:.1} ms, at most {:.1}",
            before.pss_kib,
            during.pss_kib,
            after.pss_kib,
            before.files,
            during.files,
            after.files,
            honest.median(),
            honest.quantile(1.0),
        );
        Ok(json!({
            "what": name,
            "count": count,
            "seconds": seconds,
            "before": before.json(),
            "atMost": during.json(),
            "after": after.json(),
            "honestRequestMilliseconds": { "median": honest.median(), "max": honest.quantile(1.0) },
        }))
    }

    /// Does one thing for each number, many at the same time.
    fn each(
        &self,
        count: usize,
        act: fn(&Path, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let next = AtomicUsize::new(0);
        let work = || -> anyhow::Result<()> {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                act(&self.socket, number)?;
            }
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            let done = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a panic"))));
            done.collect::<anyhow::Result<()>>()
        })
    }

    /// Opens connections, sends this on each, and waits until the daemon has closed all of them.
    fn hold(&self, count: usize, beginning: &[u8]) -> anyhow::Result<()> {
        let mut all = Vec::new();
        for _ in 0..count {
            let mut connection = connect(&self.socket)?;
            connection.write_all(beginning)?;
            all.push(connection);
        }
        for mut connection in all {
            let mut rest = Vec::new();
            connection.read_to_end(&mut rest).context("the daemon does not close a connection")?;
        }
        Ok(())
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.set_write_timeout(Some(LIMIT))?;
    Ok(connection)
}

/// Sends this, and returns the beginning of the answer.
fn ask(socket: &Path, request: &[u8]) -> io::Result<String> {
    let mut connection = connect(socket)?;
    // The daemon may have answered, and closed, before it has read all of it.
    let _ = connection.write_all(request);
    let mut answer = Vec::new();
    match connection.take(64 * 1024).read_to_end(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => return Err(error),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn nonsense(socket: &Path, number: usize) -> anyhow::Result<()> {
    let close = "Host: x\r\nConnection: close\r\n";
    let body = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\n{close}Content-Length: {}\r\n\r\n{body}", body.len())
    };
    let request = match number % 9 {
        0 => "\u{0}\u{1}\u{2}\r\n\r\n".to_owned(),
        1 => format!("GET /v1/nosuch HTTP/1.1\r\n{close}\r\n"),
        2 => format!("BREW /v1/info HTTP/1.1\r\n{close}\r\n"),
        3 => body("/v1/run", "{"),
        4 => body("/v1/run", &"[".repeat(10_000)),
        5 => body("/v1/run", r#"{"rootfs":"host","args":1}"#),
        6 => format!("GET /v1/info HTTP/1.1\r\n{close}X: {}\r\n\r\n", "x".repeat(1_000_000)),
        7 => format!("GET /v1/containers/{} HTTP/1.1\r\n{close}\r\n", "a".repeat(5000)),
        _ => format!("POST /v1/run HTTP/1.1\r\n{close}Content-Length: 99999999999\r\n\r\n"),
    };
    // The last one is a promise that is not kept: nobody waits for the answer.
    if number % 9 == 8 {
        let mut connection = connect(socket)?;
        connection.write_all(request.as_bytes())?;
        return Ok(connection.shutdown(Shutdown::Write)?);
    }
    let answer = ask(socket, request.as_bytes())?;
    ensure!(!answer.starts_with("HTTP/1.1 2"), "{request:.60}: {answer:.200}");
    Ok(())
}

fn large_body(socket: &Path, _: usize) -> anyhow::Result<()> {
    let text = "x".repeat(BODY - 40);
    let body = format!(r#"{{"rootfs":"host","nosuch":"{text}"}}"#);
    let head = "POST /v1/run HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    let answer = ask(socket, request.as_bytes())?;
    ensure!(answer.starts_with("HTTP/1.1 4"), "a large body: {answer:.200}");
    Ok(())
}

fn vanishing(socket: &Path, number: usize) -> anyhow::Result<()> {
    let mut connection = connect(socket)?;
    let request: &[u8] = match number % 3 {
        0 => b"GET /v1/events?replay=true HTTP/1.1\r\nHost: x\r\n\r\n",
        1 => b"POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"rootfs\"",
        _ => b"GET /v1/containers HTTP/1.1\r\nHost: x\r\n\r\n",
    };
    connection.write_all(request)?;
    // Dropped: closed without a word.
    Ok(())
}
