//! Reading logs: by the library and the command line, while they grow, are rotated and cut off.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use futures::StreamExt;
use holdfast_supervisor::{
    Container, Error, ExecOptions, ExitStatus, LogOptions, LogReader, Logging, Mark, OutputStream,
    Stdin, Stdio, Supervisor,
};
use holdfast_tests::{
    Gate, Holdfast, Output, Running, Scratch, edit_json, eventually, read_all, said, soon, status,
    unique_id,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An entry in the CRI's format, of that second of 1970.
fn entry(second: u64, text: &str) -> String {
    format!("1970-01-01T00:{:02}:{:02}.000000000Z stdout F {text}\n", second / 60, second % 60)
}

/// A container that says nothing, and a log that is written by hand.
struct ByHand {
    supervisor: Supervisor,
    container: Container,
    gate: Gate,
    path: PathBuf,
    scratch: Scratch,
}

impl ByHand {
    async fn begin(driver: &str, options: &str) -> Self {
        let scratch = Scratch::new();
        let supervisor = scratch.open().await;
        let (gate, path) = (scratch.gate(), scratch.path().join("by-hand.log"));
        let log = format!("{driver}:{}{options}", path.display()).parse().expect("a log");
        let stdio = Stdio::new().log(Logging::new(vec![log]).expect("one log"));
        let script = gate.wait("true");
        let container = supervisor.run(scratch.script(&script).stdio(stdio)).await;
        let container = container.expect("run a container");
        Self { supervisor, container, gate, path, scratch }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => format!("{}.{number}", self.path.display()).into(),
        }
    }

    fn append(&self, text: &str) {
        let file = OpenOptions::new().append(true).create(true).open(&self.path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("append to a log");
    }

    /// As the shim does it, with three files in all.
    fn rotate(&self) {
        for number in [1, 0] {
            let _ = fs::rename(self.numbered(number), self.numbered(number + 1));
        }
    }

    async fn end(self) {
        self.gate.open(0);
        assert_eq!(status(&self.container).await, ExitStatus::Code(0));
        drop(self.container);
        self.scratch.close(self.supervisor).await;
    }
}

async fn next(reader: &mut LogReader) -> String {
    let chunk = soon("a piece of output", reader.follow()).await.expect("read the log");
    String::from_utf8(chunk.expect("it runs").bytes.to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_log_is_woken_by_growth_rotation_and_cutting_off() {
    let by_hand = ByHand::begin("cri", ",max-size=1m,max-files=3").await;
    let mut reader = by_hand.container.logs().unwrap();
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        while let Some(chunk) = reader.follow().await.unwrap() {
            assert_eq!(chunk.mark, Mark::Plain);
            sender.send(String::from_utf8(chunk.bytes.to_vec()).unwrap()).unwrap();
        }
    });
    for round in 0..20 {
        by_hand.append(&entry(round, &format!("first {round}")));
        assert_eq!(soon("a line", lines.recv()).await.unwrap(), format!("first {round}\n"));
        // A shim dies half-way through an entry, and the one that adopts cuts it off.
        let whole = fs::metadata(&by_hand.path).unwrap().len();
        by_hand.append("1970-01-01T00:00:00.000000000Z stdout F to");
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        OpenOptions::new().write(true).open(&by_hand.path).unwrap().set_len(whole).unwrap();
        by_hand.append(&entry(round, &format!("second {round}")));
        assert_eq!(soon("a line", lines.recv()).await.unwrap(), format!("second {round}\n"));
        by_hand.append(&entry(round, &format!("third {round}")));
        by_hand.rotate();
        if round % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        by_hand.append(&entry(round, &format!("fourth {round}")));
        for word in ["third", "fourth"] {
            assert_eq!(soon("a line", lines.recv()).await.unwrap(), format!("{word} {round}\n"));
        }
    }
    // The last of all is there before the end is told.
    by_hand.rotate();
    by_hand.append(&entry(0, "last"));
    by_hand.gate.open(0);
    assert_eq!(soon("a line", lines.recv()).await.unwrap(), "last\n");
    soon("the end of the output", following).await.unwrap();
    assert_eq!(lines.recv().await, None);
    by_hand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_came_before_the_log_finds_it_when_it_appears() {
    let by_hand = ByHand::begin("json-file", "").await;
    let _ = fs::remove_file(&by_hand.path);
    let mut reader = by_hand.container.logs().unwrap();
    assert_eq!(reader.next().await.unwrap(), None);
    let waiting = tokio::spawn(async move { (next(&mut reader).await, reader) });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let line = r#"{"log":"hi\n","stream":"stderr","time":"2026-01-01T00:00:00Z"}"#;
    by_hand.append(&format!("{line}\n"));
    let (line, reader) = soon("a line", waiting).await.unwrap();
    assert_eq!(line, "hi\n");
    by_hand.gate.open(0);
    assert_eq!(read_all(reader).await, Output::default());
    by_hand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_very_bytes_are_read_as_they_come_and_have_no_times() {
    let by_hand = ByHand::begin("file", "").await;
    let mut reader = by_hand.container.logs().unwrap();
    by_hand.append("no line feed");
    assert_eq!(next(&mut reader).await, "no line feed");
    by_hand.append(" yet\nnow");
    assert_eq!(next(&mut reader).await, " yet\nnow");
    let tail = |lines| by_hand.container.logs_with(LogOptions::new().tail(lines)).unwrap();
    assert_eq!(next(&mut tail(1)).await, "now");
    assert_eq!(next(&mut tail(2)).await, "no line feed yet\nnow");
    let error = by_hand.container.logs_with(LogOptions::new().since(UNIX_EPOCH)).unwrap_err();
    assert!(matches!(error, Error::NoTimes { .. }), "{error}");
    by_hand.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_waiting_half_way_misses_nothing() {
    let by_hand = ByHand::begin("cri", "").await;
    let mut reader = by_hand.container.logs().unwrap();
    let path = by_hand.path.clone();
    let writing = tokio::task::spawn_blocking(move || {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        for number in 0..2000 {
            file.write_all(entry(0, &number.to_string()).as_bytes()).unwrap();
        }
    });
    for number in 0..2000 {
        let chunk = loop {
            let limit = Duration::from_micros(number % 50);
            if let Ok(chunk) = tokio::time::timeout(limit, reader.follow()).await {
                break chunk.unwrap().expect("it runs");
            }
        };
        assert_eq!(chunk.bytes, format!("{number}\n"));
    }
    soon("the writer", writing).await.unwrap();
    by_hand.end().await;
}

/// What the command line makes of a log that was written by hand.
async fn prepared() -> (Holdfast, String, PathBuf) {
    let holdfast = Holdfast::start().await;
    let path = holdfast.scratch.path().join("by-hand.log");
    let log = format!("cri:{},max-size=1m,max-files=9", path.display());
    let id = holdfast.run_detached(&["--log", &log], &["sleep", "100000"]).await;
    let write = |name: &str, seconds: std::ops::Range<u64>| {
        let text: String = seconds.map(|second| entry(second, &format!("line {second}"))).collect();
        fs::write(path.with_file_name(name), text).expect("write a log");
    };
    // Two are missing since a crash.
    write("by-hand.log.5", 0..10);
    write("by-hand.log.4", 10..20);
    write("by-hand.log.1", 20..25);
    write("by-hand.log", 25..30);
    (holdfast, id, path)
}

fn numbered(lines: std::ops::Range<u64>) -> String {
    lines.map(|line| format!("line {line}\n")).collect()
}

#[tokio::test]
async fn the_command_line_shows_all_of_a_log_or_its_last_lines_or_what_is_recent() {
    let (holdfast, id, path) = prepared().await;
    assert_eq!(holdfast.ok(&["logs", &id]).await, numbered(0..30));
    assert_eq!(holdfast.ok(&["logs", "--tail", "3", &id]).await, numbered(27..30));
    assert_eq!(holdfast.ok(&["logs", "--tail", "17", &id]).await, numbered(13..30));
    assert_eq!(holdfast.ok(&["logs", "--tail", "0", &id]).await, "");
    let since = "1970-01-01T02:00:18+02:00";
    assert_eq!(holdfast.ok(&["logs", "--since", since, &id]).await, numbered(18..30));
    assert_eq!(holdfast.ok(&["logs", "--since", "10m", &id]).await, "");
    let timed = holdfast.ok(&["logs", "-t", "--tail", "1", &id]).await;
    assert_eq!(timed, "1970-01-01T00:00:29.000000000Z line 29\n");
    // What follows is shown, however little of what was there.
    let mut following = holdfast.begin(&["logs", "-f", "--tail", "1", &id]);
    assert_eq!(following.line().await, "line 29");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"1970-01-01T00:00:30.000000000Z stdout P one \n").unwrap();
    file.write_all(b"1970-01-01T00:00:31.000000000Z stderr F:notice 3 lines dropped\n").unwrap();
    file.write_all(b"1970-01-01T00:00:32.000000000Z stdout F:again line\n").unwrap();
    assert_eq!(following.line().await, "one line");
    holdfast.ok(&["kill", &id]).await;
    let ended = following.end().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    assert_eq!(ended.stderr, "3 lines dropped\n");
    let ran = holdfast.run(&["logs", "--timestamps", "--tail", "2", &id]).await;
    assert_eq!(ran.stdout, "1970-01-01T00:00:30.000000000Z one line\n");
    assert_eq!(ran.stderr, "1970-01-01T00:00:31.000000000Z 3 lines dropped\n");
    holdfast.close().await;
}

#[tokio::test]
async fn what_can_not_be_read_back_says_why_and_where_to_look() {
    let holdfast = Holdfast::start().await;
    let fifo = holdfast.scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fifo = format!("fifo:{}", fifo.display());
    for (log, clue) in
        [("none", "none"), ("journald", "journalctl CONTAINER_ID="), (&fifo, "/fifo")]
    {
        let id = holdfast.run_detached(&["--log", log], &["sleep", "100000"]).await;
        let said = holdfast.fails(1, &["logs", &id]).await;
        assert!(said.contains("log driver is") && said.contains(clue), "{said}");
        assert!(!said.contains("journalctl") || said.contains(&format!("CONTAINER_ID={id}`")));
    }
    let file = format!("file:{}", holdfast.scratch.path().join("raw").display());
    let id = holdfast.run_detached(&["--log", &file], &["sleep", "100000"]).await;
    for option in ["--timestamps", "--since=10m"] {
        let said = holdfast.fails(1, &["logs", option, &id]).await;
        assert!(said.contains("has no times"), "{said}");
    }
    let said = holdfast.fails(2, &["logs", "--since", "yesterday", &id]).await;
    assert!(said.contains("10m"), "{said}");
    holdfast.close().await;
}

#[tokio::test]
async fn reopen_logs_reaches_the_shims_of_those_that_run() {
    let holdfast = Holdfast::start().await;
    let [first, second] = [
        holdfast.run_detached(&[], &["sleep", "100000"]).await,
        holdfast.run_detached(&[], &["sleep", "100000"]).await,
    ];
    assert_eq!(holdfast.ok(&["reopen-logs", &first, &second]).await, "");
    holdfast.ok(&["kill", &first]).await;
    holdfast.ok(&["wait", &first]).await;
    let said = holdfast.fails(1, &["reopen-logs", &first, &second]).await;
    assert!(said.contains("stopped") && said.contains("reopening its logs"), "{said}");
    assert_eq!(holdfast.inspect(&second).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_gives_streams_and_lines_of_a_container_and_an_exec() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script = "read -r word; echo out $word; echo err >&2; printf end; cat >&2";
    let stdio = Stdio::new().stdin(Stdin::Pipe);
    let container = supervisor.run(scratch.script(script).stdio(stdio.clone())).await.unwrap();
    let exec = ExecOptions::new(["sh", "-c", script]).stdio(stdio);
    let exec = container.exec(exec).await.unwrap();

    let mut input = exec.stdin().unwrap();
    soon("input", input.write_all(b"one\nrest")).await.unwrap();
    soon("the shutdown of the input", input.shutdown()).await.unwrap();
    let error = soon("input", input.write_all(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    soon("stdout", exec.stdout().unwrap().read_to_string(&mut stdout)).await.unwrap();
    soon("stderr", exec.stderr().unwrap().read_to_string(&mut stderr)).await.unwrap();
    assert_eq!((stdout.as_str(), stderr.as_str()), ("out one\nend", "err\nrest"));
    // It has ended, and needs no input.
    soon("another shutdown", input.shutdown()).await.unwrap();

    let mut lines = container.lines().unwrap();
    let mut input = container.stdin().unwrap();
    soon("input", input.write_all(b"two\n")).await.unwrap();
    let line = soon("a line", lines.next()).await.unwrap().unwrap();
    assert_eq!((line.stream, &line.bytes[..]), (OutputStream::Stdout, &b"out two"[..]));
    assert!(line.complete && line.time.is_some_and(|time| time.ends_with('Z')));
    soon("the shutdown of the input", input.shutdown()).await.unwrap();
    let rest: Vec<_> = soon("the rest", lines.map(|line| line.unwrap()).collect()).await;
    let rest: Vec<_> =
        rest.iter().map(|line| (line.stream, &line.bytes[..], line.complete)).collect();
    let [out, err] = [OutputStream::Stdout, OutputStream::Stderr];
    assert_eq!(rest, [(err, &b"err"[..], true), (out, b"end", false)]);
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_of_bytes_goes_on_until_the_process_ends() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let gate = scratch.gate();
    let container = supervisor.run(scratch.script(&gate.script("echo ready"))).await.unwrap();
    said(&container, "ready").await;
    let mut stdout = container.stdout().unwrap();
    let mut bytes = vec![0; 6];
    soon("output", stdout.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes, b"ready\n");
    let early = tokio::time::timeout(Duration::from_millis(20), stdout.read(&mut bytes)).await;
    assert!(early.is_err(), "nothing was written: {early:?}");
    gate.open(3);
    let mut rest = String::new();
    soon("the rest", stdout.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "after\n");
    assert_eq!(status(&container).await, ExitStatus::Code(3));
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn who_follows_has_every_line_across_the_shims_own_rotations() {
    const LINES: u32 = 20_000;
    let holdfast = Holdfast::start().await;
    for driver in ["cri", "json-file"] {
        let gate = holdfast.scratch.gate();
        // Hundreds of files, of which none is set aside for good.
        let log = format!("{driver},max-size=4k,max-files=1000");
        let script = format!("{}; seq {LINES}", gate.wait("echo 0"));
        let id = holdfast.run_detached(&["--log", &log], &["sh", "-c", &script]).await;
        let mut following = holdfast.begin(&["logs", "-f", &id]);
        assert_eq!(following.line().await, "0");
        gate.open(0);
        for number in 1..=LINES {
            assert_eq!(following.line().await, number.to_string());
        }
        let ended = following.end().await;
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
        let last: String = (LINES - 299..=LINES).map(|number| format!("{number}\n")).collect();
        assert_eq!(holdfast.ok(&["logs", "--tail", "300", &id]).await, last);
        let all: String = (0..=LINES).map(|number| format!("{number}\n")).collect();
        assert_eq!(holdfast.ok(&["logs", &id]).await, all);
    }
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_before_there_was_a_default_bound_has_none_and_those_to_come_have_one() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let gate = scratch.gate();
    let script = gate.script("echo ready");
    let container = supervisor.run(scratch.script(&script)).await.unwrap();
    said(&container, "ready").await;
    assert_eq!(text(&container.info().log), r#""cri,max-size=10485760,max-files=5""#);
    let id = container.id().clone();
    drop(container);
    supervisor.shutdown().await;
    let record = scratch.root().join(id.as_str()).join("init/process.json");
    edit_json(&record, |record| record["holdfast"]["log"] = "cri".into());

    for (max_size, max_files) in [(Some(100), 5), (Some(1 << 20), 0)] {
        let error = scratch.builder().log_rotation(max_size, max_files).open().await.unwrap_err();
        assert!(matches!(error, Error::InvalidLog(_)), "{error}");
    }
    let builder = scratch.builder().log_rotation(Some(1 << 20), 2);
    let supervisor = soon("the supervisor", builder.open()).await.unwrap();
    let container = supervisor.get(&id).unwrap();
    assert_eq!(text(&container.info().log), r#""cri,max-size=0""#);
    let exec = ExecOptions::new(["echo", "of the exec"]);
    soon("the exec", container.exec(exec).await.unwrap().wait()).await.unwrap();
    assert_eq!(text(&container.info().execs[0].log), r#""cri,max-size=1048576,max-files=2""#);
    gate.open(0);
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nafter\n"));
    drop(container);
    scratch.close(supervisor).await;
}

fn text(log: &Logging) -> String {
    serde_json::to_string(log).expect("JSON")
}

#[tokio::test]
async fn a_reader_that_falls_behind_by_more_than_the_log_is_told_and_repeats_nothing() {
    const LINES: u32 = 200_000;
    let holdfast = Holdfast::start().await;
    let bundle = holdfast.scratch.bundle().display().to_string();
    for (log, command) in [
        ("cri,max-size=64k,max-files=3", "logs"),
        ("json-file,max-size=64k,max-files=1", "logs"),
        ("cri,max-size=64k,max-files=2", "run"),
        ("cri,max-size=64k,max-files=2", "attach"),
    ] {
        let (first, second) = (holdfast.scratch.gate(), holdfast.scratch.gate());
        // `attach` shows only output that is written after it connects. So its own input makes the
        // container write the first line.
        let zero = if command == "attach" { "read -r _; echo 0" } else { "echo 0" };
        let script = second.wait(&format!("{}; seq {LINES}", first.wait(zero)));
        let id = unique_id("slow").to_string();
        let program = ["sh", "-c", script.as_str()];
        // Its standard output is a pipe that nobody reads for a while.
        let mut slow = match command {
            "run" => {
                let args = ["run", "--name", &id, "--log", log, "--bundle", &bundle, "--"];
                holdfast.begin(&[&args[..], &program].concat())
            }
            "logs" => {
                holdfast.run_detached(&["--name", &id, "--log", log], &program).await;
                holdfast.begin(&["logs", "-f", &id])
            }
            _ => {
                holdfast.run_detached(&["-i", "--name", &id, "--log", log], &program).await;
                let (input, mut typed) = std::io::pipe().expect("make a pipe");
                typed.write_all(b"\n").expect("write to a pipe");
                let mut attach = holdfast.command(&["attach", &id]);
                attach.stdin(input);
                Running::of(attach)
            }
        };
        assert_eq!(slow.line().await, "0");
        first.open(0);
        let name = if log.starts_with("cri") { "output.log" } else { "output.json" };
        let file = holdfast.root().join(&id).join("init").join(name);
        let last = LINES.to_string();
        let is_written = || fs::read_to_string(&file).is_ok_and(|log| log.contains(&last));
        eventually("all to be written", is_written).await;
        second.open(0);
        let (mut seen, mut gaps) = (0, 0);
        while let Some(line) = slow.next_line().await {
            let number: u32 = line.parse().expect("a whole line");
            assert!(number > seen, "{log}: {number} after {seen}");
            gaps += usize::from(number > seen + 1);
            seen = number;
        }
        let ended = slow.end().await;
        assert_eq!((seen, ended.code), (LINES, Some(0)), "{log} {command}");
        let told = ended.stderr.matches("output may be missing here").count();
        // When the file that was read last is gone, no reader knows whether it was the only one.
        assert!(gaps > 0 && told >= gaps, "{log} {command}: {gaps} gaps, told {told} times");
    }
    holdfast.close().await;
}

/// Seen before: a container that makes its own log 8 TiB long had all readers print zeros without end.
#[tokio::test]
async fn a_container_that_makes_its_raw_log_terabytes_long_has_nobody_print_zeros() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let script = format!(
        "echo before; truncate -s 8796093022208 /proc/self/fd/1; {}; truncate -s 0 /proc/self/fd/1; echo end",
        gate.wait("echo after")
    );
    let id = holdfast.run_detached(&["--log", "file,direct=yes"], &["sh", "-c", &script]).await;
    let mut following = holdfast.begin(&["logs", "-f", &id]);
    assert_eq!(following.line().await, "before");
    assert_eq!(following.line().await.trim_start_matches('\0'), "after");
    for (args, shown) in
        [(&["logs", &id][..], "before\nafter\n"), (&["logs", "--tail=1", &id], "after\n")]
    {
        let ran = soon("the output", holdfast.run(args)).await;
        assert_eq!(ran.stdout.replace('\0', ""), shown);
        assert!(ran.stdout.len() < 100_000 && ran.stderr.ends_with("never written]\n"), "{ran:?}");
    }
    gate.open(0);
    assert_eq!(following.line().await, "end");
    let ended = following.end().await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), ""));
    let said: Vec<_> = ended.stderr.lines().collect();
    assert!(
        said[0].contains(" bytes are left out here") && said[1].contains("cut off"),
        "{said:?}"
    );
    assert_eq!(said.len(), 2);
    holdfast.close().await;
}

/// Seen before: the container held the host's file itself, and made it one that sets the user id, and
/// as long as it liked.
#[tokio::test]
async fn a_container_has_a_pipe_and_not_the_hosts_file() {
    let holdfast = Holdfast::start().await;
    let path = holdfast.scratch.path().join("raw");
    let script = "echo one; chmod 4755 /proc/self/fd/1; truncate -s 1T /proc/self/fd/1; \
        readlink /proc/self/fd/1; readlink /proc/self/fd/2; echo two >&2";
    let log = format!("file:{}", path.display());
    let id = holdfast.run_detached(&["--log", &log], &["sh", "-c", script]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "0\n");
    let content = fs::read_to_string(&path).expect("its log");
    // Two pipes: their order among each other is nobody's promise.
    let mut lines: Vec<_> = content.lines().filter(|line| !line.contains("1T")).collect();
    lines.sort_unstable();
    assert!(
        matches!(lines[..], ["one", one, other, "two"] if one.starts_with("pipe:") && other.starts_with("pipe:")),
        "{content}"
    );
    let mode = fs::metadata(&path).expect("its log").permissions().mode();
    assert_eq!(mode & 0o7111, 0, "{mode:o}");
    holdfast.close().await;
}

#[tokio::test]
async fn a_raw_log_is_read_back_over_all_its_files() {
    let holdfast = Holdfast::start().await;
    let log = "file,max-size=4096,max-files=4";
    let id = holdfast.run_detached(&["--log", log], &["seq", "1", "5000"]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "0\n");
    let numbers = |from: u32| (from..=5000).map(|n| format!("{n}\n")).collect::<String>();
    let all = holdfast.ok(&["logs", &id]).await;
    let first: u32 = all.lines().next().expect("a line").parse().expect("a number");
    assert!(all == numbers(first) && all.len() > 12_000 && first > 1, "{first}");
    // More lines than one file has.
    assert_eq!(holdfast.ok(&["logs", "--tail=1500", &id]).await, numbers(3501));
    assert_eq!(holdfast.ok(&["logs", "--tail=3", &id]).await, numbers(4998));
    holdfast.close().await;
}

#[tokio::test]
async fn who_follows_goes_on_in_the_new_file_after_reopen_logs() {
    let holdfast = Holdfast::start().await;
    let (first, second) = (holdfast.scratch.gate(), holdfast.scratch.gate());
    let path = holdfast.scratch.path().join("app.log");
    let log = format!("cri:{}", path.display());
    let script =
        format!("{}; echo two; {}; echo three", first.wait("echo one"), second.wait("true"));
    let id = holdfast.run_detached(&["--log", &log], &["sh", "-c", &script]).await;
    let mut following = holdfast.begin(&["logs", "-f", &id]);
    assert_eq!(following.line().await, "one");
    fs::rename(&path, path.with_file_name("app.log.20260101")).unwrap();
    // Still into the file that was moved.
    first.open(0);
    assert_eq!(following.line().await, "two");
    holdfast.ok(&["reopen-logs", &id]).await;
    eventually("the new file", || path.exists()).await;
    second.open(0);
    assert_eq!(following.line().await, "three");
    let ended = following.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    holdfast.close().await;
}
