//! `holdfast-conmon` by conmon's protocol, with a real runtime: what podman and CRI-O rely on. What conmon's own test suite
//! tries is in `conmon_bats`, and what podman makes of it in `podman`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use holdfast_tests::conmon::{Case, Client, sleep_through, text_of, write_line};
use holdfast_tests::{Proc, eventually, executable, rounds, soon};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The lines of a k8s-file: stream, tag and content.
fn entries(log: &str) -> Vec<(&str, &str, &str)> {
    log.lines()
        .map(|line| {
            let mut fields = line.splitn(4, ' ').skip(1);
            let mut next = || fields.next().unwrap_or_else(|| panic!("no entry: {line}"));
            (next(), next(), next())
        })
        .collect()
}

#[tokio::test]
async fn a_container_is_created_started_and_its_status_is_where_it_is_looked_for() {
    let case = Case::script("echo out; echo err >&2; printf open; exit 7");
    let (call, records) = case.monitor().sync_pipe();
    let monitor = call.detaches();
    let pid = records.next()["pid"].as_i64().expect("a pid");
    records.end();
    let file = case.path().join(format!("pidfile-{}", case.id));
    assert_eq!(fs::read_to_string(file).expect("the default pid file"), pid.to_string());
    let monitor_of = Proc::of(i32::try_from(pid).expect("a pid")).and_then(|it| it.parent());
    assert_eq!(monitor_of, Some(monitor.pid), "the container is the monitor's child");
    assert_eq!(case.exit_file(), None);
    case.start();
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("7"));
    let persisted = fs::read_to_string(case.path().join("persist/exit"));
    assert_eq!(persisted.expect("the persistent status"), "7");
    let log = case.log();
    let mut entries = entries(&log);
    entries.sort_unstable();
    let expected = [("stderr", "F", "err"), ("stdout", "F", "out"), ("stdout", "P", "open")];
    assert_eq!(entries, expected);
}

#[tokio::test]
async fn the_key_of_a_message_is_data_for_who_knows_the_api() {
    let case = Case::script("true");
    let (call, records) = case.monitor().args(["--api-version", "1"]).sync_pipe();
    let monitor = call.detaches();
    let pid = records.next()["data"].as_i64().expect("a pid");
    assert!(pid > 0);
    case.start();
    monitor.ended().await;
}

#[tokio::test]
async fn a_signal_is_128_and_its_number_and_the_monitor_hands_signals_on() {
    for (signal, status) in [(Signal::SIGTERM, "7"), (Signal::SIGINT, "8")] {
        let case = Case::script(
            "trap 'exit 7' TERM; trap 'exit 8' INT; echo ready; while :; do sleep 0.05; done",
        );
        let monitor = case.monitor().starts();
        eventually("the container", || case.log().contains("ready")).await;
        // By mistake, for nobody.
        for other in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGALRM] {
            monitor.signal(other);
        }
        monitor.signal(signal);
        monitor.ended().await;
        assert_eq!(case.exit_file().as_deref(), Some(status), "{signal}");
    }
    let case = Case::script("sleep 60");
    let (monitor, pid) = case.monitor().creates();
    case.start();
    Proc::of(pid).expect("it runs").signal(Signal::SIGKILL);
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"));
}

#[tokio::test]
async fn a_runtime_that_fails_is_quoted_and_leaves_nothing() {
    let case = Case::script("true");
    case.configure(|config| config["process"]["args"] = json!(["/no/such/program"]));
    let (call, records) = case.monitor().sync_pipe();
    let monitor = call.detaches();
    let record = records.next();
    assert_eq!(record["pid"], -1);
    let message = record["message"].as_str().expect("a message");
    assert!(message.contains("/no/such/program"), "{message}");
    records.end();
    monitor.ended().await;
    assert_eq!(case.exit_file(), None);
    assert!(!case.bundle().join("attach").exists());
    assert_eq!(fs::read_dir(case.path().join("sockets")).expect("a directory").count(), 0);
}

/// podman reads a record by a buffer of 4096 bytes, and what of a packet does not fit into that is lost.
#[tokio::test]
async fn whatever_a_runtime_says_fits_one_record_of_json() {
    let case = Case::script("true");
    let runtime = case.path().join("runtime");
    executable::script(
        &runtime,
        "#!/bin/sh\nyes '\"/\\\u{e9}\t' | head -c 9000 >&2\nprintf '\\377' >&2\nexit 1\n",
    );
    let call = case.bare().id(&case.id).args(["-l", "none", "--full-attach"]);
    let (call, records) = call.args(["-r".as_ref(), runtime.as_os_str()]).sync_pipe();
    let monitor = call.detaches();
    let line = records.line();
    assert!(line.len() < 4095 && line.len() > 4000, "{} bytes", line.len());
    let record: Value = serde_json::from_str(&line).expect("JSON");
    assert!(record["message"].as_str().expect("a message").starts_with("\"/\\\u{e9}\t\n\"/"));
    monitor.ended().await;
}

/// A script that appends its arguments, and what it finds of the status, to a file.
fn exit_command(case: &Case, code: i32) -> String {
    let path = case.path().join("exit-command");
    let exits = case.path().join("exits").join(&case.id).display().to_string();
    let said = case.path().join("said").display().to_string();
    let text = format!(
        "#!/bin/sh\necho \"$@\" \"$(cat {exits} 2>/dev/null)\" \"$(cat /proc/self/oom_score_adj)\" >>{said}\nexit {code}\n"
    );
    executable::script(&path, &text);
    path.display().to_string()
}

#[tokio::test]
async fn the_exit_command_is_run_behind_the_end_with_its_arguments() {
    let case = Case::script("exit 3");
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("a score");
    let command = exit_command(&case, 0);
    let call = case.monitor().args(["--exit-command", &command]);
    let call = call.args(["--exit-command-arg", "--root", "--exit-command-arg=x y"]);
    call.runs().await;
    let said = fs::read_to_string(case.path().join("said")).expect("the command was run");
    assert_eq!(said, format!("--root x y 3 {}\n", own.trim()));
}

#[tokio::test]
async fn the_exit_command_is_run_behind_a_start_that_failed_too() {
    let case = Case::script("true");
    case.configure(|config| config["process"]["args"] = json!(["/no/such/program"]));
    let command = exit_command(&case, 0);
    let monitor = case.monitor().args(["--exit-command", &command]).detaches();
    monitor.ended().await;
    let said = fs::read_to_string(case.path().join("said")).expect("the command was run");
    assert_eq!(said.lines().count(), 1);
}

#[tokio::test]
async fn the_exit_command_waits_as_long_as_it_is_told() {
    let case = Case::script("true");
    let command = exit_command(&case, 0);
    case.monitor().args(["--exit-command", &command, "--exit-delay", "2"]).runs().await;
    let written = |file: &str| {
        let file = fs::metadata(case.path().join(file)).expect("the file");
        file.modified().expect("a time")
    };
    let waited = written("said").duration_since(written(&format!("exits/{}", case.id)));
    assert!(waited.as_ref().is_ok_and(|it| *it > Duration::from_secs(1)), "{waited:?}");
}

#[tokio::test]
async fn an_exit_file_is_never_seen_half_written() {
    let case = Case::script("exit 5");
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
    inotify.add_watch(&case.path().join("exits"), AddWatchFlags::IN_ALL_EVENTS).expect("watch");
    case.monitor().runs().await;
    let events = inotify.read_events().expect("events");
    let of_file = events.iter().filter(|it| it.name.as_deref() == Some(case.id.as_ref()));
    let kinds: Vec<_> = of_file.map(|event| event.mask).collect();
    assert_eq!(kinds.first(), Some(&AddWatchFlags::IN_MOVED_TO), "{kinds:?}");
    let mode = fs::metadata(case.path().join("exits").join(&case.id)).expect("the file");
    assert_eq!(mode.permissions().mode() & 0o777, 0o644);
}

#[tokio::test]
async fn the_oom_killer_leaves_the_monitor_alone_and_not_its_container() {
    let case = Case::script("sleep 60");
    let own = fs::read_to_string("/proc/self/oom_score_adj").expect("a score");
    let (monitor, pid) = case.monitor().creates();
    let score =
        |pid: i32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
    // The privilege for that may be missing here; then it stays as it is.
    let may = Command::new("sh").args(["-c", "echo -1000 >/proc/self/oom_score_adj"]).status();
    let expected = if may.expect("sh").success() { "-1000" } else { own.trim() };
    assert_eq!((score(monitor.pid).trim(), &*score(pid)), (expected, &*own));
    Proc::of(pid).expect("it is there").signal(Signal::SIGKILL);
    monitor.ended().await;
}

#[tokio::test]
async fn a_log_is_in_local_time_and_a_group_may_read_it() {
    let case = Case::script("echo x");
    case.monitor().env("TZ", "XYZ-5:30").runs().await;
    let log = case.log();
    assert_eq!(&log[29..], "+05:30 stdout F x\n", "{log}");
    let mode = fs::metadata(case.log_path()).expect("the log").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[tokio::test]
async fn a_long_line_comes_in_pieces_of_8_kib() {
    let case = Case::script("yes x | tr -d '\\n' | head -c 20000; echo; echo end");
    case.monitor().runs().await;
    let log = case.log();
    let entries = entries(&log);
    let text: String = entries
        .iter()
        .map(|(_, tag, text)| format!("{text}{}", if *tag == "F" { "\n" } else { "" }))
        .collect();
    assert_eq!(text, format!("{}\nend\n", "x".repeat(20_000)));
    assert!(entries.iter().all(|(_, _, text)| text.len() <= 8192));
}

#[tokio::test]
async fn a_size_limit_holds_at_any_line_and_the_newest_stays() {
    let case = Case::script(
        "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; yes | tr -d '\\n' | head -c 50000",
    );
    case.monitor().args(["--log-size-max", "10000"]).runs().await;
    let size = fs::metadata(case.log_path()).expect("the log").len();
    assert!(size <= 10_000, "{size}");
    assert!(case.log().ends_with("y\n"));
    assert!(!case.log_path().with_extension("1").exists());
}

#[tokio::test]
async fn full_logs_are_kept_as_many_as_were_asked_for() {
    let case = Case::script("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done");
    let options = ["--log-size-max", "10000", "--log-rotate", "--log-max-files", "3"];
    case.monitor().args(options).runs().await;
    let mut numbers = Vec::new();
    for number in (1..=3).rev() {
        let path = case.log_path().with_extension(number.to_string());
        let text = fs::read_to_string(&path).expect("a full log");
        assert!(text.len() <= 10_000 && text.len() > 9_900, "{}", text.len());
        numbers.push(text);
    }
    numbers.push(case.log());
    assert!(!case.log_path().with_extension("4").exists());
    let all = numbers.concat();
    let lines: Vec<u32> =
        entries(&all).iter().map(|(_, _, text)| text[5..].parse().expect("a number")).collect();
    let last: Vec<u32> = (1..=3000).rev().take(lines.len()).collect();
    assert!(lines.iter().rev().eq(last.iter()), "the newest are there, once and in order");
}

#[tokio::test]
async fn what_the_caller_has_no_option_for_is_in_the_environment() {
    let case = Case::script("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done");
    let options = "--log-rotate --log-max-files=2  --log-size-max=1000";
    let call = case.monitor().env("HOLDFAST_CONMON_OPTIONS", options);
    // What is said there stands above it.
    call.args(["--log-size-max", "5000"]).runs().await;
    for (extension, is_there) in [("1", true), ("2", true), ("3", false)] {
        let length = fs::metadata(case.log_path().with_extension(extension)).map(|it| it.len());
        let is_right = |length: &u64| (4900..=5000).contains(length);
        assert_eq!(length.as_ref().is_ok_and(is_right), is_there, ".{extension}: {length:?}");
    }
}

#[tokio::test]
async fn no_more_is_written_in_all_than_was_allowed() {
    let case = Case::script("yes | head -c 100000; exit 4");
    case.monitor().args(["--log-global-size-max", "5000"]).runs().await;
    let size = fs::metadata(case.log_path()).expect("the log").len();
    assert!(size <= 5000 && size > 4900, "{size}");
    assert_eq!(case.exit_file().as_deref(), Some("4"));
}

/// CRI-O waits, for ever, for an event of the log's own name.
#[tokio::test]
async fn a_log_that_is_opened_anew_shows_that_whether_it_was_moved_away_or_not() {
    let case = Case::script("true");
    let gate = case.gate();
    case.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", gate.script("echo before")]);
    });
    let monitor = case.monitor().starts();
    eventually("the first line", || case.log().contains("before")).await;
    for moved in [false, true] {
        if moved {
            fs::rename(case.log_path(), case.path().join("moved")).expect("rename");
        }
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        let kinds =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO;
        inotify.add_watch(case.path(), kinds).expect("watch");
        write_line(&case.bundle().join("ctl"), "2 0 0");
        let came = || {
            let events = inotify.read_events().unwrap_or_default();
            events.iter().any(|event| event.name.as_deref() == Some("log".as_ref()))
        };
        eventually("an event of the log", came).await;
        assert_eq!(case.log().contains("before"), !moved, "nothing is lost");
    }
    gate.open(0);
    monitor.ended().await;
    assert!(case.log().contains("after"));
    let moved = fs::read_to_string(case.path().join("moved")).expect("the moved log");
    assert!(moved.contains("before") && !moved.contains("after"));
}

#[tokio::test]
async fn clients_get_both_streams_to_their_end_in_packets_that_they_can_read() {
    let case = Case::script("echo out; echo err >&2; yes | head -c 100000");
    let (monitor, _) = case.monitor().creates();
    let path = case.bundle().join("attach");
    let clients = [Client::attach(&path), Client::attach(&path)];
    case.start();
    for client in clients {
        let (stdout, stderr, longest) = client.all();
        assert!(stdout.starts_with(b"out\ny\n") && stdout.len() == 100_004, "{}", stdout.len());
        assert_eq!(stderr, b"err\n");
        assert!(longest <= 8193, "{longest}");
    }
    monitor.ended().await;
    assert!(!path.exists());
    assert!(case.log().contains("stdout F out"));
}

#[tokio::test]
async fn the_bundle_is_reached_by_a_link_in_the_socket_directory_until_the_end() {
    let case = Case::script("true");
    let (monitor, _) = case.monitor().creates();
    let link = case.path().join("sockets").join(&case.id);
    assert_eq!(fs::read_link(&link).expect("a link"), case.bundle());
    let client = Client::attach(&link.join("attach"));
    case.start();
    let _ = client.all();
    monitor.ended().await;
    assert!(!link.is_symlink());
    let (monitor, _) = {
        let _ = case.runtime(&["delete", &case.id]);
        case.monitor().args(["--full-attach"]).creates()
    };
    assert!(!link.is_symlink());
    case.start();
    monitor.ended().await;
}

#[tokio::test]
async fn a_clients_input_reaches_the_container_and_ends_with_the_client() {
    let case = Case::script("cat; echo over");
    let (monitor, _) = case.monitor().args(["-i"]).creates();
    let client = Client::attach(&case.bundle().join("attach"));
    case.start();
    let big = vec![b'x'; 32_768];
    for _ in 0..40 {
        client.send(&big);
    }
    client.send(b"end\n");
    client.end_input();
    let (stdout, _, _) = client.all();
    assert_eq!(stdout.len(), 40 * big.len() + "end\nover\n".len());
    assert!(stdout.ends_with(b"xend\nover\n"));
    monitor.ended().await;
}

#[tokio::test]
async fn input_that_is_to_stay_open_outlives_its_clients() {
    let case = Case::script("read -r line; echo $line; read -r line; echo $line");
    let (monitor, _) = case.monitor().args(["-i", "--leave-stdin-open"]).creates();
    case.start();
    let attach = || Client::attach(&case.bundle().join("attach"));
    let first = attach();
    first.send(b"one\n");
    first.until("one\n");
    first.end_input();
    drop(first);
    let second = attach();
    second.send(b"two\n");
    let (stdout, _, _) = second.all();
    assert_eq!(stdout, b"two\n");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("0"));
}

#[tokio::test]
async fn a_container_without_input_reads_its_end_whatever_clients_send() {
    let case = Case::script("cat; echo over");
    let (monitor, _) = case.monitor().creates();
    let client = Client::attach(&case.bundle().join("attach"));
    client.send(b"ignored");
    case.start();
    assert_eq!(client.all().0, b"over\n");
    monitor.ended().await;
}

/// The socket holds 208 KiB and the queue 1 MiB; then the container waits, for as long as it is told to.
#[tokio::test]
async fn a_client_that_never_reads_is_let_go_and_costs_no_output() {
    let case = Case::script("true");
    let gate = case.gate();
    let first = gate.wait("head -c 2000000 /dev/zero | tr '\\0' x");
    let script = format!("{first}; head -c 20000 /dev/zero | tr '\\0' y; exit 6");
    case.configure(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    let (monitor, _) = case.monitor().args(["--attach-patience", "1"]).creates();
    let path = case.bundle().join("attach");
    let stuck = Client::attach(&path);
    case.start();
    // It is let go by then.
    eventually("the first part", || case.log().matches('x').count() == 2_000_000).await;
    // The second part fits the socket: a client that is late to read it needs no patience.
    let reader = Client::attach(&path);
    gate.open(0);
    let (stdout, _, _) = reader.all();
    assert!(stdout == b"y".repeat(20_000), "another client gets all: {}", stdout.len());
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("6"));
    let text = "x".repeat(2_000_000) + &"y".repeat(20_000);
    assert!(text_of(&case.log()) == text, "the log has all");
    let (late, _, _) = stuck.all();
    assert!(late.len() < 1_000_000, "what was on its way: {}", late.len());
}

#[tokio::test]
async fn a_client_that_is_slow_gets_everything_and_delays_no_status() {
    let case = Case::script("yes | head -c 900000");
    let (monitor, _) = case.monitor().creates();
    let client = Client::attach(&case.bundle().join("attach"));
    case.start();
    // It reads nothing before the end is told.
    eventually("the status", || case.exit_file().is_some()).await;
    assert!(monitor.lives());
    assert_eq!(client.all().0.len(), 900_000);
    monitor.ended().await;
}

/// Seen before: what was written last was behind an error that podman takes for the end.
#[tokio::test]
async fn output_is_complete_for_a_client_whose_input_nobody_has_read() {
    for _ in 0..rounds(5) {
        let case = Case::script("yes | head -c 100000");
        let (monitor, _) = case.monitor().args(["-i"]).creates();
        let client = Client::attach(&case.bundle().join("attach"));
        for _ in 0..4 {
            client.send(&[b'x'; 32_768]);
        }
        case.start();
        eventually("the status", || case.exit_file().is_some()).await;
        assert_eq!(client.all().0.len(), 100_000);
        monitor.ended().await;
    }
}

#[tokio::test]
async fn clients_that_go_at_any_moment_cost_nothing() {
    let case = Case::script("while read -r line; do echo $line; [ $line = end ] && exit 9; done");
    let call = case.monitor().args(["-i", "--leave-stdin-open"]);
    let (monitor, _) = call.creates();
    case.start();
    let attach = || Client::attach(&case.bundle().join("attach"));
    for round in 0..rounds(50) {
        let client = attach();
        client.send(format!("{round}\n").as_bytes());
        match round % 4 {
            0 => client.until(&format!("{round}\n")),
            1 => client.end_input(),
            2 => write_line(&case.bundle().join("ctl"), "2 0 0"),
            _ => {}
        }
    }
    let last = attach();
    last.send(b"end\n");
    last.until("end\n");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("9"));
}

#[tokio::test]
async fn a_terminal_is_resized_by_both_fifos() {
    let case = Case::script("while [ ! -e /over ]; do stty size; sleep 0.05; done; tty");
    case.with_terminal();
    let (monitor, _) = case.monitor().args(["-t"]).creates();
    let client = Client::attach(&case.bundle().join("attach"));
    write_line(&case.bundle().join("ctl"), "1 33 101");
    case.start();
    client.until("33 101\r\n");
    // Not a size, and nothing else either.
    write_line(&case.bundle().join("winsz"), "1001 1");
    write_line(&case.bundle().join("winsz"), "44 102");
    client.until("44 102\r\n");
    fs::write(case.bundle().join("rootfs/over"), "").expect("write a file");
    client.until("/dev/pts/0\r\n");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("0"));
    assert!(text_of(&case.log()).contains("44 102\r\n"), "{}", case.log());
}

#[tokio::test]
async fn a_terminal_gets_what_is_typed_and_what_a_program_wrote_last_is_there() {
    let case = Case::script("read -r line; echo got $line; exit 3");
    case.with_terminal();
    let (monitor, _) = case.monitor().args(["-t"]).creates();
    let client = Client::attach(&case.bundle().join("attach"));
    case.start();
    client.send(b"hello\r");
    client.until("got hello\r\n");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("3"));
}

/// A container that runs until its gate opens.
macro_rules! running {
    ($case:ident, $gate:ident, $monitor:ident) => {
        let $case = Case::script("true");
        let $gate = $case.gate();
        $case.configure(|config| {
            config["process"]["args"] = json!(["sh", "-c", $gate.script("echo ready")]);
        });
        let $monitor = $case.monitor().starts();
        eventually("the container", || $case.log().contains("ready")).await;
    };
}

#[tokio::test]
async fn an_exec_tells_its_pid_and_then_its_status() {
    running!(case, gate, monitor);
    let process = case.process(&["sh", "-c", "echo hello; exit 42"], false);
    let (call, records) = case.exec(&process).sync_pipe();
    let exec = call.detaches();
    assert!(records.next()["data"].as_i64().expect("a pid") > 0);
    assert_eq!(records.next(), json!({ "data": 42 }));
    records.end();
    exec.ended().await;
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn an_exec_begins_when_its_client_is_there() {
    running!(case, gate, monitor);
    let process = case.process(&["sh", "-c", "echo out; echo err >&2; exit 5"], false);
    let (call, records) = case.exec(&process).sync_pipe();
    let (call, attached) = call.attach_pipe();
    let (call, mut start) = call.start_pipe();
    start.write_all(b"x").expect("write");
    let (call, path) = (call, case.path());
    let exec = call.detaches();
    assert_eq!(attached.next(), json!({ "data": 0 }));
    attached.end();
    let dirs = fs::read_dir(path).expect("a directory").flatten().map(|entry| entry.path());
    let dir = dirs.into_iter().find(|path| path.join("attach").exists() && path != &case.bundle());
    let client = Client::attach(&dir.expect("the exec's directory").join("attach"));
    start.write_all(b"x").expect("write");
    assert!(records.next()["data"].as_i64().expect("a pid") > 0);
    let (stdout, stderr, _) = client.all();
    assert_eq!((&stdout[..], &stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(records.next(), json!({ "data": 5 }));
    exec.ended().await;
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn no_status_of_an_exec_is_lost_however_short_it_is() {
    running!(case, gate, monitor);
    for round in 0..rounds(30) {
        let code = round % 256;
        let process = case.process(&["sh", "-c", &format!("exit {code}")], round % 3 == 0);
        let call = case.exec(&process);
        let call = if round % 3 == 0 { call.args(["-t"]) } else { call };
        let (call, records) = call.sync_pipe();
        let exec = call.detaches();
        assert!(records.next()["data"].as_i64().expect("a pid") > 0);
        assert_eq!(records.next(), json!({ "data": code }));
        exec.ended().await;
    }
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn an_exec_that_the_runtime_refuses_says_why() {
    running!(case, gate, monitor);
    let process = case.process(&["/no/such/program"], false);
    let (call, records) = case.exec(&process).sync_pipe();
    let exec = call.detaches();
    let record = records.next();
    assert_eq!(record["data"], -1);
    assert!(
        record["message"].as_str().expect("a message").contains("/no/such/program"),
        "{record}"
    );
    records.end();
    exec.ended().await;
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn crio_gets_one_record_and_a_log_of_its_own() {
    running!(case, gate, monitor);
    let process = case.process(&["sh", "-c", "echo out; echo err >&2; exit 4"], false);
    let (call, records) = case.legacy_exec(&process).args(["--sync"]).sync_pipe();
    let output = call.ends();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert_eq!(records.line(), "{\"exit_code\": 4}");
    records.end();
    let log = fs::read_to_string(case.log_path().with_extension("exec")).expect("the log");
    let mut entries = entries(&log);
    entries.sort_unstable();
    assert_eq!(entries, [("stderr", "F", "err"), ("stdout", "F", "out")]);
    gate.open(0);
    monitor.ended().await;
}

/// The command lines of CRI-O's create and of its exec for a probe, as it makes them.
#[tokio::test]
async fn crios_command_lines_create_a_container_and_an_exec() {
    let case = Case::script("cat");
    let dir = |name: &str| case.path().join(name).display().to_string();
    let (bundle, id) = (dir("bundle"), case.id.as_str());
    let root = format!("--root={}", dir("state"));
    let runc = holdfast_tests::runtime().display().to_string();
    let (call, records) = case
        .bare()
        .args(["-b", &bundle, "-c", id, "--exit-dir", &dir("exits"), "-l", &dir("log")])
        .args(["--log-level", "info", "-n", "k8s_name", "-P", &dir("monitor-pid")])
        .args(["-p", &dir("bundle/pidfile"), "--persist-dir", &dir("persist"), "-r", &runc])
        .args(["--runtime-arg", &root, "--socket-dir-path", &dir("sockets"), "--syslog", "-u", id])
        .args(["--log-size-max", "52428800", "--no-sync-log", "--leave-stdin-open", "-i"])
        .sync_pipe();
    let (call, mut start) = call.start_pipe();
    start.write_all(b"x").expect("write");
    let output = call.ends();
    assert!(output.status.success(), "{output:?}");
    let pid = records.next()["pid"].to_string();
    assert_eq!(fs::read_to_string(dir("bundle/pidfile")).expect("the pid file"), pid);
    case.start();
    let process = case.process(&["sh", "-c", "echo probed; exit 3"], false).display().to_string();
    let (call, records) = case
        .bare()
        .args(["-c", id, "-n", "k8s_name", "-r", &runc, "-p", &dir("exec-pid"), "-e"])
        .args(["-l", &dir("log.exec"), "--socket-dir-path", &dir("sockets"), "--log-level", "info"])
        .args(["--sync", "--log-global-size-max", "16777216", "-T", "10"])
        .args(["--exec-process-spec", &process, "--runtime-arg", &root])
        .sync_pipe();
    assert_eq!(call.ends().status.code(), Some(3));
    assert_eq!(records.line(), "{\"exit_code\": 3}");
    assert!(fs::read_to_string(dir("log.exec")).expect("the log").ends_with(" stdout F probed\n"));
    let attached = Client::attach(&case.path().join("sockets").join(id).join("attach"));
    attached.send(b"hello\n");
    attached.until("hello\n");
    let pid = fs::read_to_string(dir("monitor-pid")).expect("the monitor's pid");
    let monitor = Proc::of(pid.parse().expect("a pid")).expect("it runs");
    monitor.signal(Signal::SIGINT);
    let container = case.runtime(&["kill", id, "KILL"]);
    assert!(container.status.success(), "{container:?}");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"));
}

#[tokio::test]
async fn an_exec_whose_time_is_over_is_killed_and_says_so() {
    running!(case, gate, monitor);
    let process = case.process(&["sh", "-c", "sleep 60"], false);
    let (call, records) = case.legacy_exec(&process).args(["--sync", "-T", "1"]).sync_pipe();
    let output = call.ends();
    assert_eq!(output.status.code(), Some(255), "{output:?}");
    assert_eq!(records.next(), json!({ "exit_code": -1, "message": "command timed out" }));
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn an_exec_ends_though_a_child_of_it_keeps_its_output_open() {
    running!(case, gate, monitor);
    let process = case.process(&["sh", "-c", "sleep 1000 & echo out"], false);
    let (call, records) = case.legacy_exec(&process).args(["--sync"]).sync_pipe();
    let exec = call.spawn();
    assert_eq!(records.next(), json!({ "exit_code": 0 }));
    assert_eq!(exec.wait_with_output().expect("wait").status.code(), Some(0));
    gate.open(0);
    monitor.ended().await;
}

#[tokio::test]
async fn a_container_whose_time_is_over_is_killed() {
    let case = Case::script("sleep 60");
    let (monitor, _) = case.monitor().args(["--timeout=1"]).creates();
    // Its time begins when it is created, and may be over before this.
    let _ = case.runtime(&["start", &case.id]);
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("-1"));
}

/// The fields of an entry, by the journal's native protocol.
fn fields(message: &[u8]) -> Vec<(String, String)> {
    let (mut rest, mut fields) = (message, Vec::new());
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().expect("a length"));
        let end = end + 9 + usize::try_from(length).expect("a length");
        fields.push((
            name,
            String::from_utf8_lossy(&rest[end - usize::try_from(length).expect("a length")..end])
                .into_owned(),
        ));
        rest = &rest[end + 1..];
    }
    fields
}

#[tokio::test]
async fn the_journal_gets_conmons_fields_and_a_long_line_as_one_entry() {
    let case = Case::script(
        "echo out; echo '<4>warned' >&2; echo err >&2; yes x | tr -d '\\n' | head -c 100000; echo; printf open",
    );
    let path = case.path().join("journal");
    let journal = UnixDatagram::bind(&path).expect("a socket");
    journal.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let driver = format!("journald:{}", path.display());
    let call = case.without_log().args(["--log-path", &driver, "-n", "name", "--log-tag", "tag"]);
    let call = call.args(["--log-label", "MY_LABEL=value", "--log-label", "OTHER="]);
    let monitor = call.starts();
    let mut entries = Vec::new();
    while entries.len() < 5 {
        let mut room = vec![0; 300_000];
        let length = journal.recv(&mut room).expect("an entry");
        entries.push(fields(&room[..length]));
    }
    monitor.ended().await;
    let field = |entry: &[(String, String)], name: &str| {
        entry.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone())
    };
    for entry in &entries {
        let has = |name: &str| field(entry, name);
        assert_eq!(has("CONTAINER_ID_FULL").as_deref(), Some(case.id.as_str()));
        assert_eq!(has("CONTAINER_ID").as_deref(), Some(&case.id[..12]));
        assert_eq!(has("CONTAINER_NAME").as_deref(), Some("name"));
        assert_eq!(has("CONTAINER_TAG").as_deref(), Some("tag"));
        assert_eq!(has("SYSLOG_IDENTIFIER").as_deref(), Some("tag"));
        assert_eq!(has("MY_LABEL").as_deref(), Some("value"));
        assert_eq!(has("OTHER").as_deref(), Some(""));
    }
    let said: BTreeSet<_> = entries
        .iter()
        .map(|entry| {
            let partial = field(entry, "CONTAINER_PARTIAL_MESSAGE").is_some();
            let priority = field(entry, "PRIORITY").expect("a priority");
            (field(entry, "MESSAGE").expect("a message"), priority, partial)
        })
        .collect();
    let expected = [
        ("out", "6", false),
        ("warned", "4", false),
        ("err", "3", false),
        (&*"x".repeat(100_000), "6", false),
        ("open", "6", true),
    ];
    let expected: BTreeSet<_> = expected
        .map(|(text, priority, partial)| (text.to_owned(), priority.to_owned(), partial))
        .into();
    assert_eq!(said, expected);
}

#[tokio::test]
async fn several_drivers_get_the_same() {
    let case = Case::script("echo out");
    let path = case.path().join("journal");
    let journal = UnixDatagram::bind(&path).expect("a socket");
    journal.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let other = case.path().join("other").display().to_string();
    let call = case.monitor().args(["-l", &format!("journald:{}", path.display()), "-l", &other]);
    call.args(["-l", "none"]).runs().await;
    let mut room = vec![0; 10_000];
    let length = journal.recv(&mut room).expect("an entry");
    assert!(fields(&room[..length]).contains(&("MESSAGE".to_owned(), "out".to_owned())));
    for log in [case.log(), fs::read_to_string(other).expect("the other log")] {
        assert_eq!(entries(&log), [("stdout", "F", "out")]);
    }
}

#[tokio::test]
async fn with_passthrough_the_container_has_the_callers_descriptors() {
    let case = Case::script("true");
    let gate = case.gate();
    case.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", gate.script("echo out; echo err >&2")]);
    });
    let (call, records) = case.without_log().args(["-l", "passthrough"]).sync_pipe();
    let child = call.spawn();
    assert!(records.next()["pid"].as_i64().expect("a pid") > 0);
    case.start();
    assert!(!case.bundle().join("attach").exists() && !case.bundle().join("ctl").exists());
    gate.open(3);
    // The container holds these to its end, and the monitor does not.
    let output = child.wait_with_output().expect("the output");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\nafter\n"[..], &b"err\n"[..]));
    eventually("the status", || case.exit_file().is_some()).await;
    assert_eq!(case.exit_file().as_deref(), Some("3"));
}

#[tokio::test]
async fn notifications_are_passed_on_as_far_as_they_are_the_containers_to_make() {
    let case = Case::script("true");
    let host = case.path().join("host");
    let receiver = UnixDatagram::bind(&host).expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    fs::create_dir(case.bundle().join("notify")).expect("make a directory");
    let socket = format!("--sdnotify-socket={}", host.display());
    let (monitor, _) = case.monitor().args([socket]).creates();
    let sender = UnixDatagram::unbound().expect("a socket");
    let path = case.bundle().join("notify/notify.sock");
    assert_eq!(fs::metadata(&path).expect("it").permissions().mode() & 0o777, 0o777);
    sender.send_to(b"READY=1\nMAINPID=1\nSTATUS=fine", &path).expect("send");
    let mut room = [0; 256];
    let length = receiver.recv(&mut room).expect("a notification");
    assert_eq!(&room[..length], b"READY=1\nSTATUS=fine");
    case.start();
    monitor.ended().await;
}

#[tokio::test]
async fn what_the_caller_left_open_is_closed_before_the_end_is_told() {
    running_with_leak().await;
}

async fn running_with_leak() {
    let case = Case::script("true");
    let gate = case.gate();
    case.configure(|config| {
        config["process"]["args"] = json!(["sh", "-c", gate.script("echo ready")]);
    });
    let command = case.path().join("exit-command");
    let said = case.path().join("said");
    executable::script(&command, &format!("#!/bin/sh\nls -l /proc/self/fd >{}\n", said.display()));
    let (call, leaked) = case.monitor().leaked(7);
    let (call, records) = call.sync_pipe();
    let monitor = call.args(["--exit-command".as_ref(), command.as_os_str()]).detaches();
    let _ = records.next();
    case.start();
    eventually("the container", || case.log().contains("ready")).await;
    assert!(!leaked.has_ended(), "the monitor holds it");
    gate.open(0);
    leaked.end();
    monitor.ended().await;
    let said = fs::read_to_string(said).expect("the exit command was run");
    assert!(!said.contains("pipe-"), "{said}");
}

/// With conmon the pipe has no reader then, and SIGPIPE ends the container.
#[tokio::test]
async fn a_container_outlives_its_monitor_and_can_go_on_writing() {
    let case = Case::script("true");
    let gate = case.gate();
    let script = format!("{}; echo written; echo alive >/alive", gate.wait("echo ready"));
    case.configure(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    let monitor = case.monitor().starts();
    eventually("the container", || case.log().contains("ready")).await;
    monitor.signal(Signal::SIGKILL);
    monitor.ended().await;
    gate.open(0);
    let alive = case.bundle().join("rootfs/alive");
    eventually("a sign of life", || fs::read_to_string(&alive).is_ok_and(|it| it == "alive\n"))
        .await;
}

/// A runtime that writes down how it was called, and fails.
fn recording_runtime(case: &Case) -> std::path::PathBuf {
    let path = case.path().join("runtime");
    let said = case.path().join("said").display().to_string();
    let text = format!(
        "#!/bin/sh\necho \"$@\" >{said}\necho \"$LISTEN_PID $$\" >>{said}\nstat -L -c %t:%T /dev/stdin >>{said}\nls -l /proc/self/fd >>{said}\nexit 1\n"
    );
    executable::script(&path, &text);
    path
}

#[tokio::test]
async fn a_runtime_is_called_as_conmon_calls_it() {
    let case = Case::script("true");
    let runtime = recording_runtime(&case);
    let bundle = case.bundle().display().to_string();
    let call =
        case.bare().id("container-id").args(["-l", "none", "--full-attach", "-s", "-b", &bundle]);
    let call = call.args(["-p", "/p", "--no-pivot", "--no-new-keyring", "--restore", "/image"]);
    let call =
        call.args(["--runtime-arg", "--log-format=json", "--runtime-opt", "--tcp-established"]);
    let call = call.args(["-r".as_ref(), runtime.as_os_str()]).env("LISTEN_PID", "1");
    let call = call.args(["--replace-listen-pid"]);
    call.detaches().ended().await;
    let said = fs::read_to_string(case.path().join("said")).expect("it was called");
    let mut lines = said.lines();
    let expected = format!(
        "--systemd-cgroup --log-format=json restore --bundle {bundle} --pid-file /p --no-pivot --no-new-keyring --detach --image-path /image --work-path {bundle} --tcp-established container-id"
    );
    assert_eq!(lines.next(), Some(&*expected));
    let (told, own) = lines.next().and_then(|line| line.split_once(' ')).expect("two numbers");
    assert_eq!(told, own, "LISTEN_PID is the runtime's pid");
    assert_eq!(lines.next(), Some("1:3"), "standard input is the null device");
    let rest: String = lines.collect();
    assert!(
        rest.contains("0 -> ") && !rest.contains("anon_inode"),
        "no descriptor of ours: {rest}"
    );
}

#[tokio::test]
async fn descriptors_that_are_to_be_preserved_reach_the_container() {
    let case = Case::script("echo kept >&3");
    let path = case.path().join("kept");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
    drop(path);
    let (call, kept) = case.monitor().leaked(3);
    call.args(["--runtime-opt", "--preserve-fds", "--runtime-opt", "1"]).runs().await;
    assert_eq!(kept.line(), "kept");
    kept.end();
}

#[tokio::test]
async fn an_oom_kill_is_noted_in_the_bundle_and_the_persistent_directory() {
    let case = Case::script("head -c 100m /dev/zero | tail");
    case.configure(|config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    });
    case.monitor().runs().await;
    assert_ne!(case.exit_file().as_deref(), Some("0"));
    for dir in [case.bundle(), case.path().join("persist")] {
        assert!(dir.join("oom").exists(), "{}", dir.display());
    }
    let case = Case::script("true");
    case.monitor().runs().await;
    assert!(!case.bundle().join("oom").exists(), "nobody was killed");
}

#[test]
fn messages_go_to_syslog_if_that_is_asked_for() {
    let case = Case::script("true");
    let path = case.path().join("syslog");
    let syslog = UnixDatagram::bind(&path).expect("a socket");
    syslog.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    // A /dev of its own, with this socket as its log.
    let script = "mount -t tmpfs tmpfs /dev && mknod -m 666 /dev/null c 1 3 && ln -s \"$1\" /dev/log && \
                  shift && exec \"$@\"";
    let id = "0123456789abcdef0123456789abcdef";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&path);
    command.arg(holdfast_tests::binary("holdfast-conmon"));
    command.args(["--syslog", "--cid", id, "--cuuid", id, "--runtime", "/not/there"]);
    let output = command.output().expect("call the monitor");
    let text = "Runtime path /not/there is not valid: No such file or directory";
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("[conmon:e]: {text}\n"));
    let mut room = [0; 512];
    let length = syslog.recv(&mut room).expect("a message");
    let expected = format!("<11>conmon: conmon 0123456789abcdef0123 <error>: {text}");
    assert_eq!(String::from_utf8_lossy(&room[..length]), expected);
}

#[tokio::test]
async fn while_nothing_happens_the_monitor_does_nothing() {
    let case = Case::script("true");
    let gate = case.gate();
    // A child that keeps the output open, and one that has closed it.
    let script = gate.wait("sleep 1000 & exec 2>&-; echo ready");
    case.configure(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    let (monitor, _) = case.monitor().args(["-i", "--timeout=1000"]).creates();
    let path = case.bundle().join("attach");
    // One that is attached, one that sends no more, one that is gone.
    let clients = [Client::attach(&path), Client::attach(&path), Client::attach(&path)];
    case.start();
    clients[0].until("ready");
    clients[1].end_input();
    let [_first, _second, third] = clients;
    drop(third);
    // Not at once: it gives back memory a second after the last output.
    sleep_through(&[&monitor], Duration::from_secs(5)).await;
    gate.open(0);
    soon("the monitor's end", monitor.ended()).await;
}
