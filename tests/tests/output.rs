//! Output is never lost and never held up, whatever it goes to and whoever is dead.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use holdfast_state::cri::{self, Mark, Stream};
use holdfast_state::json_file;
use holdfast_tests::numbered::{self, Follower, LINE};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{Holdfast, Proc, binary, eventually, unique_id};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use serde_json::json;

/// How many lines of 80 bytes a container writes: 32 MB, or what `HOLDFAST_OUTPUT_LINES` says. The
/// long form is a gigabyte, 12500000.
fn count() -> u64 {
    let given = std::env::var("HOLDFAST_OUTPUT_LINES").ok().and_then(|text| text.parse().ok());
    given.unwrap_or(400_000)
}

/// As [`soon`]; what a gigabyte takes is not up to us.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60) * u32::try_from(1 + count() / 1_000_000).unwrap_or(1);
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {limit:?} for {what}"),
    }
}

/// A container of the fake runtime that waits, writes numbered lines, and waits again.
struct Writer {
    id: String,
    report: PathBuf,
    start: File,
    end: File,
    process: Proc,
}

impl Writer {
    async fn new(holdfast: &Holdfast, log: &[&str], lines: u64) -> Self {
        let id = unique_id("output").to_string();
        let place = |name: &str| holdfast.scratch.path().join(format!("{id}-{name}"));
        let gate = |name: &str| {
            nix::unistd::mkfifo(&place(name), Mode::S_IRWXU).expect("make a FIFO");
            File::options().read(true).write(true).open(place(name)).expect("open a FIFO")
        };
        let (start, end) = (gate("start"), gate("end"));
        let report = place("report");
        let script = format!(
            "read -r _ < {}; {} {lines} {}; read -r code < {}; exit $code",
            place("start").display(),
            binary("writer").display(),
            report.display(),
            place("end").display()
        );
        let runtime = binary("fake-runtime").display().to_string();
        let bundle = holdfast.scratch.bundle().display().to_string();
        let mut args = vec!["run", "-d", "--name", &id, "--runtime", &runtime, "--bundle", &bundle];
        args.extend(log.iter().flat_map(|log| ["--log", log]));
        args.extend(["--", "sh", "-c", &script]);
        holdfast.ok(&args).await;
        let pid = holdfast.inspect(&id).await["pid"].as_i64().expect("a pid");
        let process = Proc::of(i32::try_from(pid).expect("a pid")).expect("its process");
        Self { id, report, start, end, process }
    }

    fn begin(&mut self) {
        self.start.write_all(b"\n").expect("write to a FIFO");
    }

    /// Waits until it has written everything.
    async fn wrote(&self) -> Duration {
        let took = || fs::read_to_string(&self.report).ok()?.parse().ok();
        in_time("all to be written", async {
            while took().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        Duration::from_millis(took().expect("a report"))
    }

    async fn end(mut self) {
        self.end.write_all(b"5\n").expect("write to a FIFO");
        self.process.gone().await;
    }

    fn dir(&self, holdfast: &Holdfast) -> PathBuf {
        holdfast.root().join(&self.id).join("init")
    }
}

/// The files of a rotated log, oldest first.
fn rotated(path: &Path) -> Vec<PathBuf> {
    let mut numbers: Vec<u32> = Vec::new();
    let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned() + ".";
    for entry in fs::read_dir(path.parent().expect("a parent")).expect("list").flatten() {
        let entry = entry.file_name().into_string().expect("UTF-8");
        numbers.extend(entry.strip_prefix(&name).and_then(|rest| rest.parse::<u32>().ok()));
    }
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    let old = numbers.iter().map(|number| PathBuf::from(format!("{}.{number}", path.display())));
    old.chain([path.to_owned()]).collect()
}

/// Every byte of the log, in order, by the marks it has.
fn follow(path: &Path) -> Follower {
    let mut follower = Follower::default();
    for file in rotated(path) {
        let content = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        assert!(content.is_empty() || content.ends_with(b"\n"), "{}: torn", file.display());
        let json = path.extension().is_some_and(|it| it == "json");
        for line in content.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let (piece, mark, stream) = if json {
                let entry = json_file::decode(line).expect("an entry");
                (entry.content, entry.mark, entry.stream)
            } else {
                let entry = cri::decode(line).expect("an entry");
                (entry.written(), entry.mark, entry.stream)
            };
            assert_eq!(stream, Stream::Stdout);
            assert_ne!(mark, Mark::Notice, "{}", String::from_utf8_lossy(&piece));
            let taken = follower.take(&piece, mark == Mark::Again);
            taken.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
    }
    follower
}

/// The most memory a process has had that is its own, in KiB.
fn peak(process: &Proc) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What came of a driver, for `cargo xtask bench gigabyte`: a line in the file that it names.
fn record(log: &str, lines: u64, longest: Duration, grown: u64) {
    println!("{log}: longest write {longest:?}, the shim has grown by {grown} KiB");
    if let Some(path) = std::env::var_os("HOLDFAST_OUTPUT_RESULTS") {
        let found = json!({
            "log": log,
            "bytes": lines * LINE as u64,
            "longestWriteMilliseconds": longest.as_millis(),
            "shimGrownKiB": grown,
        });
        let file = File::options().create(true).append(true).open(path);
        file.and_then(|mut file| writeln!(file, "{found}")).expect("write a result");
    }
}

fn fifo(holdfast: &Holdfast, name: &str) -> PathBuf {
    let path = holdfast.scratch.path().join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("make a FIFO");
    path
}

/// Reads a FIFO until so much has come.
fn reading(mut file: File, bytes: u64) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut chunk = vec![0; 1 << 16];
        while (all.len() as u64) < bytes {
            let length = file.read(&mut chunk).expect("read a FIFO");
            assert!(length > 0, "the FIFO ended after {} bytes", all.len());
            all.extend_from_slice(&chunk[..length]);
        }
        all
    })
}

fn assert_whole(content: &[u8], lines: u64) {
    let mut follower = Follower::default();
    for piece in content.chunks(LINE * 100) {
        follower.take(piece, false).expect("the next piece");
    }
    assert_eq!(follower.bytes(), lines * LINE as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_takes_all_while_no_daemon_is_there() {
    let lines = count();
    for log in ["cri", "json-file", "file"] {
        let mut holdfast = Holdfast::start().await;
        // All of it, however much that is.
        let spec = format!("{log},max-size=0");
        let mut writer = Writer::new(&holdfast, &[&spec], lines).await;
        let shim = shim_of(&holdfast.root(), &writer.id, "init");
        let before = peak(&shim);
        holdfast.kill_daemon().await;
        writer.begin();
        let longest = writer.wrote().await;
        // The kernel counts per processor, and so tells a little less than it knew before.
        let grown = peak(&shim).saturating_sub(before);
        assert!(grown < 1024, "{log}: the shim has grown by {grown} KiB");
        let dir = writer.dir(&holdfast);
        writer.end().await;
        holdfast.start_daemon().await;
        let id = dir.parent().and_then(Path::file_name).and_then(|id| id.to_str()).expect("an id");
        assert_eq!(holdfast.ok(&["wait", id]).await, "5\n");
        let bytes = lines * LINE as u64;
        match log {
            "cri" => assert_eq!(follow(&dir.join("output.log")).bytes(), bytes),
            "json-file" => assert_eq!(follow(&dir.join("output.json")).bytes(), bytes),
            _ => assert_whole(&fs::read(dir.join("output.raw")).expect("read"), lines),
        }
        record(log, lines, longest, grown);
        holdfast.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fifo_gets_all_while_no_daemon_is_there_and_its_shim_dies() {
    let lines = count();
    for options in ["", ",backpressure=spill,buffer=2g"] {
        let mut holdfast = Holdfast::start().await;
        let path = fifo(&holdfast, "out");
        let log = format!("fifo:{}{options}", path.display());
        // Opened for both, or it would wait for a writer.
        let _open = File::options().read(true).write(true).open(&path).expect("open a FIFO");
        let reader = File::open(&path).expect("open a FIFO");
        let reader = reading(reader, lines * LINE as u64);
        let mut writer = Writer::new(&holdfast, &[&log], lines).await;
        let shim = shim_of(&holdfast.root(), &writer.id, "init");
        let before = peak(&shim);
        holdfast.kill_daemon().await;
        writer.begin();
        if options.is_empty() {
            // The container writes itself: nobody is in the way who could lose anything.
            shim.signal(Signal::SIGKILL);
        }
        let read = tokio::task::spawn_blocking(move || reader.join().expect("the reader"));
        let content = in_time("all to be read", read).await.expect("the reader");
        assert_whole(&content, lines);
        let longest = writer.wrote().await;
        let grown = if options.is_empty() { 0 } else { peak(&shim).saturating_sub(before) };
        record(&format!("fifo{options}"), lines, longest, grown);
        writer.end().await;
        holdfast.start_daemon().await;
        holdfast.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_takes_nothing_holds_nobody_up_and_is_told_what_it_missed() {
    let lines = 50_000;
    for backpressure in ["drop-oldest", "spill"] {
        let holdfast = Holdfast::start().await;
        let path = fifo(&holdfast, "out");
        let log = format!("fifo:{},backpressure={backpressure},buffer=256k", path.display());
        let mut writer = Writer::new(&holdfast, &[&log], lines).await;
        writer.begin();
        writer.wrote().await;
        let mut reader =
            File::options().read(true).custom_flags(O_NONBLOCK).open(&path).expect("open a FIFO");
        let (mut all, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
        let last = numbered::line(lines - 1);
        let until = Instant::now() + Duration::from_secs(30);
        while !all.ends_with(&last) {
            assert!(Instant::now() < until, "the last line did not come");
            match reader.read(&mut chunk) {
                Ok(length) => all.extend_from_slice(&chunk[..length]),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        let text = String::from_utf8(all).expect("UTF-8");
        // The shim may have to drop more once it has told of the first.
        let (before, rest) = text.split_once("\n[holdfast: ").expect("a notice");
        let (mut dropped, mut after) = (0, 0);
        for part in rest.split("\n[holdfast: ") {
            let (number, came) = part.split_once(" bytes dropped]\n").expect("a notice");
            dropped += number.parse::<u64>().expect("a number");
            after += came.len() as u64;
        }
        let all = before.len() as u64 + after + dropped;
        assert_eq!(all, lines * LINE as u64, "{backpressure}: what came and what was dropped");
        assert!(after > 100_000, "{backpressure}: {after} bytes came at last");
        writer.end().await;
        holdfast.close().await;
    }
}

/// Seen before: the exit was told when the log had what the reader had taken, 86,016 of 288,894 bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_beside_a_fifo_is_complete_at_the_exit_whatever_the_fifos_reader_does() {
    // What a pipe of ours, a chunk in our hands and a FIFO hold is more.
    let lines = 4000;
    for is_read in [true, false] {
        let holdfast = Holdfast::start().await;
        let path = fifo(&holdfast, "out");
        // It takes nothing yet.
        let reader =
            File::options().read(true).custom_flags(O_NONBLOCK).open(&path).expect("open a FIFO");
        let fifo = format!("fifo:{}", path.display());
        let mut writer = Writer::new(&holdfast, &["cri", &fifo], lines).await;
        let shim = shim_of(&holdfast.root(), &writer.id, "init");
        writer.begin();
        writer.wrote().await;
        let (dir, id) = (writer.dir(&holdfast), writer.id.clone());
        writer.end().await;
        assert_eq!(holdfast.ok(&["wait", &id]).await, "5\n");
        let bytes = lines * LINE as u64;
        assert_eq!(follow(&dir.join("output.log")).bytes(), bytes);
        if is_read {
            // Kept open: of a shim that did not wait for it, it gets the end.
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::empty())).expect("have it wait");
            let read = tokio::task::spawn_blocking(move || reading(reader, bytes).join());
            let content = in_time("all to be read", read).await.expect("a thread");
            assert_whole(&content.expect("the reader"), lines);
            shim.gone().await;
        } else {
            in_time("the end of the shim's patience", shim.gone()).await;
            let log = fs::read_to_string(dir.join("shim-log.json")).expect("its log");
            let said = log.lines().last().expect("a line");
            assert!(said.contains("bytes are dropped: their reader took nothing"), "{said}");
        }
        holdfast.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_thousand_rotations_every_byte_is_there_once_and_in_order() {
    let holdfast = Holdfast::start().await;
    let log = "cri,max-size=40000,max-files=3000";
    let mut writer = Writer::new(&holdfast, &[log], count()).await;
    writer.begin();
    writer.wrote().await;
    let path = writer.dir(&holdfast).join("output.log");
    writer.end().await;
    let files = rotated(&path);
    assert!(files.len() > 1000, "{} files", files.len());
    assert!(files.iter().all(|file| file.metadata().expect("a file").len() <= 40_300));
    let follower = follow(&path);
    assert_eq!((follower.bytes(), follower.repeated), (count() * LINE as u64, 0));
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_log_stays_below_its_cap_and_keeps_the_newest() {
    let holdfast = Holdfast::start().await;
    for (log, name) in [
        ("cri,max-size=100k,max-files=3", "output.log"),
        ("json-file,max-size=100k,max-files=1", "output.json"),
    ] {
        let mut writer = Writer::new(&holdfast, &[log], 20_000).await;
        writer.begin();
        writer.wrote().await;
        let path = writer.dir(&holdfast).join(name);
        writer.end().await;
        let files = rotated(&path);
        assert_eq!(files.len(), if name == "output.log" { 3 } else { 1 });
        let content: Vec<u8> =
            files.iter().flat_map(|file| fs::read(file).expect("read")).collect();
        assert!(content.len() <= files.len() * 102_400, "{} bytes", content.len());
        let text = String::from_utf8(content).expect("UTF-8");
        assert!(text.lines().last().expect("a line").contains("000019999 "));
        assert!(files.len() == 1 || text.len() > 200_000, "{} bytes", text.len());
    }
    holdfast.close().await;
}

/// How large a log is unless somebody says otherwise: seen before, 40 MB of short lines were 820 MB in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_bounded_by_what_the_daemon_says_unless_it_says_something_else() {
    let mut holdfast = Holdfast::without_daemon();
    let args = ["--log-max-size", "64k", "--log-max-files=2"].map(AsRef::as_ref);
    holdfast.try_start_daemon(&binary("holdfast"), &args).await.expect("the daemon starts");
    let whole = 20_000 * LINE as u64;
    for (log, files, shown) in [
        ("cri", 2, "cri,max-size=65536,max-files=2"),
        ("json-file,rate=1000000", 2, "json-file,max-size=65536,max-files=2,rate=1000000"),
        ("cri,max-size=100k", 2, "cri,max-size=102400,max-files=2"),
        ("cri,max-size=64k,max-files=3", 3, "cri,max-size=65536,max-files=3"),
        ("cri,max-size=0", 1, "cri,max-size=0"),
    ] {
        let mut writer = Writer::new(&holdfast, &[log], 20_000).await;
        let info = holdfast.inspect(&writer.id).await;
        assert_eq!(info["log"], shown);
        // A record without a bound is one that an older build reads, and has always read, as that.
        let record = writer.dir(&holdfast).join("process.json");
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(record).expect("a record")).expect("JSON");
        assert_eq!(record["holdfast"]["log"], shown.trim_end_matches(",max-size=0"));
        writer.begin();
        writer.wrote().await;
        let name = if log.starts_with("cri") { "output.log" } else { "output.json" };
        let path = writer.dir(&holdfast).join(name);
        writer.end().await;
        let found = rotated(&path);
        assert_eq!(found.len(), files, "{log}");
        let size: u64 = found.iter().map(|file| file.metadata().expect("a file").len()).sum();
        if files == 1 {
            assert!(size > whole, "{log}: {size} bytes");
        } else {
            assert!(size <= files as u64 * 102_400, "{log}: {size} bytes");
        }
    }
    holdfast.close().await;
}

/// Seen before: a file of the name up to the comma, and options that nobody had given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_with_a_comma_and_a_backslash_is_that_path() {
    let holdfast = Holdfast::start().await;
    let directory = holdfast.scratch.path().join(r"x,rate=1\y");
    fs::create_dir(&directory).expect("make a directory");
    let path = directory.join(r"a\,stderr=b");
    let escaped = path.display().to_string().replace('\\', r"\\").replace(',', r"\,");
    for driver in ["cri", "file"] {
        let log = format!("{driver}:{escaped}");
        let id = holdfast.run_detached(&["--log", &log], &["echo", "hello"]).await;
        assert_eq!(holdfast.ok(&["wait", &id]).await, "0\n");
        assert_eq!(holdfast.ok(&["logs", &id]).await, "hello\n");
        assert!(fs::read_to_string(&path).expect("its file").ends_with("hello\n"));
        fs::remove_file(&path).expect("remove it");
    }
    assert_eq!(fs::read_dir(&directory).expect("list it").count(), 0);
    holdfast.close().await;
}

/// What a shim that is killed in the middle of its work had read stands in the log once, or twice
/// and marked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_under_load_loses_no_byte_and_marks_what_it_repeats() {
    for log in [
        &["cri,max-size=0"][..],
        &["json-file,max-size=0"],
        &["cri,max-size=1m,max-files=1000"],
        &["cri,max-size=0", "file"],
    ] {
        let holdfast = Holdfast::start().await;
        let mut writer = Writer::new(&holdfast, log, count()).await;
        writer.begin();
        let dir = writer.dir(&holdfast);
        let name = if log[0].starts_with("json-file") { "output.json" } else { "output.log" };
        let path = dir.join(name);
        let size = || -> u64 {
            rotated(&path).iter().filter_map(|file| Some(file.metadata().ok()?.len())).sum()
        };
        for kill in 1..=8_u64 {
            // Well within the work, and at a moment that nobody chose.
            let enough = kill * count() * 8;
            eventually("some output", || size() > enough || writer.report.exists()).await;
            let shims = holdfast_tests::processes::shims(&holdfast.root());
            for shim in shims {
                shim.signal(Signal::SIGKILL);
                shim.gone().await;
            }
        }
        writer.wrote().await;
        let id = writer.id.clone();
        writer.end().await;
        assert_eq!(holdfast.ok(&["wait", &id]).await, "5\n");
        let follower = follow(&path);
        println!("{log:?}: {} bytes repeated", follower.repeated);
        assert_eq!(follower.bytes(), count() * LINE as u64, "{log:?}");
        assert!(follower.repeated <= 8 * 65_536, "{log:?}: {} repeated", follower.repeated);
        holdfast.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_moved_away_is_opened_anew_when_that_is_asked_for() {
    let holdfast = Holdfast::start().await;
    let path = holdfast.scratch.path().join("app.log");
    let gate = holdfast.scratch.gate();
    let log = format!("cri:{}", path.display());
    let bundle = holdfast.scratch.bundle().display().to_string();
    let runtime = binary("fake-runtime").display().to_string();
    let script = gate.script_on_host("echo before");
    let args =
        ["run", "-d", "--name", "r", "--runtime", &runtime, "--bundle", &bundle, "--log", &log];
    holdfast.ok(&[&args[..], &["--", "sh", "-c", &script]].concat()).await;
    eventually("output", || fs::read_to_string(&path).is_ok_and(|log| log.contains("before")))
        .await;
    let moved = holdfast.scratch.path().join("app.log.old");
    fs::rename(&path, &moved).expect("move a log");
    let control = holdfast.root().join("r/init/control");
    fs::write(control, "3 0 0\n").expect("write to the control FIFO");
    eventually("a new log", || path.exists()).await;
    gate.open(0);
    assert_eq!(holdfast.ok(&["wait", "r"]).await, "0\n");
    let read = |path: &Path| fs::read_to_string(path).expect("read a log");
    assert!(read(&path).contains("after") && !read(&moved).contains("after"));
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_beyond_a_rate_are_dropped_and_counted_in_the_log() {
    let holdfast = Holdfast::start().await;
    let mut writer = Writer::new(&holdfast, &["cri,rate=100"], 10_000).await;
    writer.begin();
    writer.wrote().await;
    let path = writer.dir(&holdfast).join("output.log");
    let id = writer.id.clone();
    writer.end().await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "5\n");
    let log = fs::read(&path).expect("read a log");
    let (mut lines, mut dropped) = (0, 0);
    for entry in log.split(|&b| b == b'\n').filter_map(cri::decode) {
        if entry.mark == Mark::Notice {
            let text = String::from_utf8_lossy(entry.content);
            let number = text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok());
            dropped += number.expect("a number");
        } else {
            // A line that was read in two pieces is two entries.
            lines += u64::from(entry.full);
        }
    }
    assert!(lines >= 100 && dropped > 5_000, "{lines} lines, {dropped} dropped");
    assert_eq!(lines + dropped, 10_000);
    holdfast.close().await;
}

/// The fields of an entry by the journal's native protocol.
fn fields(mut message: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut fields = Vec::new();
    while let Some(end) = message.iter().position(|&b| b == b'\n') {
        let name = String::from_utf8(message[..end].to_vec()).expect("UTF-8");
        let (length, rest) = message[end + 1..].split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
        let (value, rest) = rest.split_at(usize::try_from(length).expect("a length"));
        fields.push((name, value.to_vec()));
        message = rest.strip_prefix(b"\n").expect("a line feed");
    }
    fields
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_gets_every_line_with_its_container_and_any_bytes() {
    let holdfast = Holdfast::start().await;
    let socket = holdfast.scratch.path().join("journal");
    let journal = UnixDatagram::bind(&socket).expect("bind a socket");
    journal.set_read_timeout(Some(Duration::from_secs(30))).expect("set a limit");
    let gate = holdfast.scratch.gate();
    let script = gate.script_on_host("printf 'a\\0\\377b\\n'; printf part >&2");
    let (bundle, runtime) = (
        holdfast.scratch.bundle().display().to_string(),
        binary("fake-runtime").display().to_string(),
    );
    let log = format!("journald:{}", socket.display());
    let args =
        ["run", "-d", "--name", "j", "--runtime", &runtime, "--bundle", &bundle, "--log", &log];
    holdfast.ok(&[&args[..], &["--", "sh", "-c", &script]].concat()).await;
    gate.open(0);
    let mut messages = Vec::new();
    for _ in 0..3 {
        let mut buffer = vec![0; 1 << 16];
        let length = journal.recv(&mut buffer).expect("an entry");
        let entry = fields(&buffer[..length]);
        let of = |name: &str| entry.iter().find(|(field, _)| field == name).map(|(_, v)| v.clone());
        assert_eq!(of("CONTAINER_ID").as_deref(), Some(&b"j"[..]));
        assert_eq!(of("HOLDFAST_PROCESS").as_deref(), Some(&b"init"[..]));
        let (priority, partial) = (of("PRIORITY").expect("one"), of("CONTAINER_PARTIAL_MESSAGE"));
        messages.push((of("MESSAGE").expect("a message"), priority, partial.is_some()));
    }
    messages.sort();
    let entry = |text: &[u8], priority: &[u8], partial| (text.to_vec(), priority.to_vec(), partial);
    assert_eq!(
        messages,
        [entry(b"a\0\xffb", b"6", false), entry(b"after", b"6", false), entry(b"part", b"3", true),]
    );
    assert_eq!(holdfast.ok(&["wait", "j"]).await, "0\n");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_takes_nothing_holds_nobody_up_and_is_told_what_it_missed() {
    let holdfast = Holdfast::start().await;
    let path = holdfast.scratch.path().join("journal");
    let socket = UnixDatagram::bind(&path).expect("bind a socket");
    // So many reads that a second for each would be too long.
    let lines = 100_000;
    let mut writer =
        Writer::new(&holdfast, &[&format!("journald:{}", path.display())], lines).await;
    writer.begin();
    writer.wrote().await;
    let mut chunk = vec![0; 1 << 16];
    // It goes on, and reads until all is over.
    socket.set_nonblocking(false).expect("a socket that waits");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a limit");
    let is_over = Arc::new(AtomicBool::new(false));
    let ended = is_over.clone();
    let (begins, begun) = tokio::sync::oneshot::channel();
    let read = tokio::task::spawn_blocking(move || {
        let (mut came, mut told) = (0, 0);
        begins.send(()).expect("the test waits");
        loop {
            // First: what comes before it is over is there to be read by then.
            let over = ended.load(Ordering::Relaxed);
            let Ok(length) = socket.recv(&mut chunk) else {
                if over {
                    return (came, told);
                }
                continue;
            };
            let fields = fields(&chunk[..length]);
            let field = |name: &str| fields.iter().find(|(other, _)| other == name);
            if field("HOLDFAST_MARK").is_some() {
                let text = String::from_utf8_lossy(&field("MESSAGE").expect("a message").1);
                let number = text.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok());
                told += number.expect("a number");
            } else {
                came += 1;
            }
        }
    });
    let id = writer.id.clone();
    // At the exit the shim waits a second for the journal to take something.
    begun.await.expect("the journal");
    writer.end().await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "5\n");
    is_over.store(true, Ordering::Relaxed);
    let (came, told) = in_time("all to be read", read).await.expect("the journal");
    // A line that two reads have a part of is two entries.
    let most = lines + lines * LINE as u64 / 4096;
    assert!((lines..=most).contains(&(came + told)), "{came} came, {told} were told to be missing");
    assert!(told > lines / 2, "{told} were told to be missing");
    holdfast.close().await;
}

/// Each row of docs/output.md that makes a promise names tests that there are.
#[test]
fn every_promise_about_output_has_its_test() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let read = |path: &Path| fs::read_to_string(path).expect("read a file");
    let mut tests = String::new();
    for dir in ["tests/tests", "crates/shim/src/output", "crates/state/src"] {
        for file in fs::read_dir(workspace.join(dir)).expect("list").flatten() {
            if file.path().is_file() {
                tests += &read(&file.path());
            }
        }
    }
    let docs = read(&workspace.join("docs/output.md"));
    let rows = docs.lines().skip_while(|line| *line != "| promise | test |").skip(2);
    let mut count = 0;
    for row in rows.take_while(|row| row.starts_with('|')) {
        let names = row.trim_end_matches(" |").rsplit(" | ").next().expect("a column");
        let names: Vec<_> = names.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test for {row}");
        for name in names {
            assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
        }
        count += 1;
    }
    assert!(count >= 10, "{count} promises");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_gets_all_while_no_daemon_is_there() {
    let lines = count();
    let mut holdfast = Holdfast::start().await;
    let socket = holdfast.scratch.path().join("journal");
    let journal = UnixDatagram::bind(&socket).expect("bind a socket");
    let reader = std::thread::spawn(move || {
        let mut follower = Follower::default();
        let mut buffer = vec![0; 1 << 16];
        while follower.bytes() < lines * LINE as u64 {
            let length = journal.recv(&mut buffer).expect("an entry");
            let mut entry: BTreeMap<_, _> = fields(&buffer[..length]).into_iter().collect();
            let mut message = entry.remove("MESSAGE").expect("a message");
            // A line that was read in two pieces is two entries.
            if !entry.contains_key("CONTAINER_PARTIAL_MESSAGE") {
                message.push(b'\n');
            }
            follower.take(&message, false).expect("the next line");
        }
    });
    let log = format!("journald:{}", socket.display());
    let mut writer = Writer::new(&holdfast, &[&log], lines).await;
    let shim = shim_of(&holdfast.root(), &writer.id, "init");
    let before = peak(&shim);
    holdfast.kill_daemon().await;
    writer.begin();
    let longest = writer.wrote().await;
    let read = tokio::task::spawn_blocking(move || reader.join().expect("the journal"));
    in_time("all to be read", read).await.expect("the journal");
    let grown = peak(&shim).saturating_sub(before);
    assert!(grown < 1024, "the shim has grown by {grown} KiB");
    record("journald", lines, longest, grown);
    writer.end().await;
    holdfast.start_daemon().await;
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_makes_no_sense_or_has_no_place_is_refused_and_leaves_nothing() {
    let holdfast = Holdfast::start().await;
    let bundle = holdfast.scratch.bundle().display().to_string();
    let run = |log: &'static str| vec!["run", "--log", log, "--bundle"];
    let odd = [
        "syslog",
        "cri:relative",
        "file,direct=yes,max-size=1m",
        "fifo",
        "cri,max-size=0,max-files=2",
    ];
    for log in odd {
        let args = [&run(log)[..], &[&bundle, "--", "true"]].concat();
        let said = holdfast.fails(125, &args).await;
        assert!(said.contains("DRIVER[:PATH]"), "{said}");
    }
    for (log, reason) in [
        ("cri:/no/such/directory/log", "No such file or directory"),
        ("fifo:/etc/passwd", "not a FIFO"),
        ("fifo:/no/such/fifo", "No such file or directory"),
    ] {
        let args = [&run(log)[..], &[&bundle, "--", "true"]].concat();
        let said = holdfast.fails(125, &args).await;
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(holdfast.json(&["ps", "-a", "--json"]).await, serde_json::json!([]));
    holdfast.close().await;
}
