//! Commands that wait, over the ends of daemons: they go on with the very next byte or event, and know the
//! right status.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use holdfast_tests::{Holdfast, Proc, Ran, Running, eventually, soon, unique_id};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const KILLS: u32 = 20;

/// Writes numbers, one a millisecond at most, until SIGTERM; then a last line.
const NUMBERS: &str = "trap 'echo end; exit 7' TERM; i=0; \
                       while :; do echo $i; i=$((i+1)); usleep 1000; done";

/// Moments that differ from one test run to the next.
fn random(below: u64) -> u64 {
    let mut bytes = [0; 8];
    let mut file = std::fs::File::open("/dev/urandom").expect("open /dev/urandom");
    std::io::Read::read_exact(&mut file, &mut bytes).expect("random bytes");
    u64::from_ne_bytes(bytes) % below
}

fn bundle(holdfast: &Holdfast) -> String {
    holdfast.scratch.bundle().into_os_string().into_string().expect("a path in UTF-8")
}

/// Makes a directory that a container has as `/tmp`. Returns it, and the value of `-v` for it.
fn shared(holdfast: &Holdfast) -> (PathBuf, String) {
    let shared = holdfast.scratch.path().join("shared");
    std::fs::create_dir(&shared).expect("make a directory");
    let volume = format!("{}:/tmp", shared.display());
    (shared, volume)
}

/// Kills the daemon at some moment, and starts the next one: `KILLS` times, and once in between it is
/// ended in order, as for an upgrade.
async fn other_daemons(holdfast: &mut Holdfast) {
    for round in 0..=KILLS {
        // To meet another moment each time; nothing depends on how long it is.
        tokio::time::sleep(Duration::from_millis(random(60))).await;
        if round == KILLS / 2 {
            let status = holdfast.take_daemon().end(Signal::SIGTERM).await;
            assert_eq!(status.code(), Some(0));
        } else {
            holdfast.kill_daemon().await;
        }
        holdfast.start_daemon().await;
    }
}

/// Asserts that the lines are numbers from `first` on, each once, and then the last line.
fn assert_exact(what: &str, output: &str, first: Option<u64>) {
    let lines: Vec<&str> = output.lines().collect();
    let (last, numbers) = lines.split_last().unwrap_or_else(|| panic!("{what}: no output"));
    assert_eq!(*last, "end", "{what}");
    let first =
        first.unwrap_or_else(|| numbers.first().map_or(0, |it| it.parse().expect("a number")));
    for (expected, line) in (first..).zip(numbers) {
        assert_eq!(*line, expected.to_string(), "{what}: a line is missing, or there twice");
    }
    assert!(numbers.len() > 100, "{what}: only {} lines", numbers.len());
}

/// Ends a process without the daemon.
fn terminate(pid: i64) {
    let process = i32::try_from(pid).ok().and_then(Proc::of);
    process.expect("the process runs").signal(Signal::SIGTERM);
}

/// Without the note that the daemon is away: a loaded machine may take more than the second after
/// which a command says so.
fn complaints(stderr: &str) -> String {
    let is_note = |line: &&str| line.starts_with("holdfast: the daemon is away, trying again for ");
    stderr.split_inclusive('\n').filter(|line| !is_note(line)).collect()
}

/// Asserts that a command ended so, without a complaint.
fn assert_ended(what: &str, ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "{what}: {}", ran.stderr);
    assert_eq!(complaints(&ran.stderr), "", "{what}");
}

/// C4: 125 or 1, and with --rm the status was gone.
#[tokio::test]
async fn every_command_that_waits_survives_the_ends_of_twenty_daemons() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let script = ["--", "sh", "-c", NUMBERS];
    let kept = unique_id("reconnect").to_string();
    let removed = unique_id("reconnect").to_string();
    let options = ["--bundle", &bundle, "--name"];
    let mut begun: Vec<(&str, Running)> = Vec::new();
    let run = [&["run"][..], &options, &[&kept], &script].concat();
    let run_rm = [&["run", "--rm"][..], &options, &[&removed], &script].concat();
    let mut events = holdfast.begin(&["events", "--json", "--replay"]);
    for (what, args) in [("run", run), ("run --rm", run_rm)] {
        let mut running = holdfast.begin(&args);
        assert_eq!(running.line().await, "0", "{what}");
        begun.push((what, running));
    }
    let exec = [&["exec", &kept][..], &script].concat();
    begun.push(("exec", holdfast.begin(&exec)));
    assert_eq!(begun[2].1.line().await, "0");
    begun.push(("attach", holdfast.begin(&["attach", "--no-stdin", &kept])));
    begun.push(("logs -f", holdfast.begin(&["logs", "--follow", &kept])));
    begun.push(("logs -f --tail", holdfast.begin(&["logs", "--follow", "--tail", "3", &kept])));
    for (what, running) in &mut begun[3..] {
        assert!(running.line().await.parse::<u64>().is_ok(), "{what}");
    }
    // With a bound, which holds from the beginning: nothing shows when they have connected.
    let waits = [&kept, &removed].map(|id| holdfast.begin(&["wait", "--reconnect", "1m", id]));
    let exec = holdfast.inspect(&kept).await["execs"][0]["pid"].as_i64().expect("a pid");
    let first: Value = serde_json::from_str(&events.line().await).unwrap();
    other_daemons(&mut holdfast).await;

    terminate(exec);
    let (_, exec) = begun.remove(2);
    let ran = exec.end().await;
    assert_ended("exec", &ran, 7);
    assert_exact("exec", &ran.stdout, Some(1));
    // The end comes while there is no daemon.
    let ends = [&kept, &removed].map(|id| holdfast.end_of_shim(id));
    let pids = [&kept, &removed];
    for id in pids {
        let pid = holdfast.inspect(id).await["pid"].as_i64().expect("a pid");
        if id == pids[0] {
            holdfast.ok(&["kill", "--signal", "TERM", id]).await;
        } else {
            let daemon = holdfast.take_daemon();
            assert!(!daemon.end(Signal::SIGKILL).await.success());
            terminate(pid);
        }
    }
    for end in ends {
        end.come().await;
    }
    holdfast.start_daemon().await;
    for (what, running) in begun {
        let ran = running.end().await;
        assert_ended(what, &ran, if what.starts_with("logs") { 0 } else { 7 });
        assert_exact(what, &ran.stdout, what.starts_with("run").then_some(1));
    }
    for wait in waits {
        let ran = wait.end().await;
        assert_ended("wait", &ran, 0);
        assert_eq!(ran.stdout, "7\n");
    }
    let mut seen = vec![first];
    while !seen.iter().any(|it| it["event"] == "deleted" && it["container"] == removed.as_str()) {
        seen.extend(event(&events.line().await));
    }
    let replayed = replay(&holdfast, seen.len()).await;
    assert_eq!(seen, replayed, "events were lost, or came twice");
    let exits = |id: &str| {
        let exited = seen.iter().filter(|it| it["event"] == "exited" && it["process"] == "init");
        exited.filter(|it| it["container"] == id).count()
    };
    assert_eq!((exits(&kept), exits(&removed)), (1, 1));
    drop(events);
    holdfast.nothing_but(&[&kept]).await;
    holdfast.close().await;
}

/// An event; of the gaps that a killed daemon leaves, several in a row may be one when read again.
fn event(line: &str) -> Option<Value> {
    let item: Value = serde_json::from_str(line).expect("an event");
    item.get("gap").is_none().then_some(item)
}

/// The first events of the journal.
async fn replay(holdfast: &Holdfast, count: usize) -> Vec<Value> {
    let mut events = holdfast.begin(&["events", "--json", "--replay"]);
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(event(&events.line().await));
    }
    all
}

/// Also for a start: whether it was begun is known by the incarnation, so it is never begun twice.
#[tokio::test]
async fn a_daemon_that_dies_between_request_and_answer_starts_nothing_twice_and_loses_nothing() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let (shared, volume) = shared(&holdfast);
    let waits = holdfast.run_detached(&["-v", &volume], &["sleep", "100000"]).await;
    let patient = ["--reconnect", "20s"];
    for round in 0..KILLS {
        let name = unique_id("reconnect").to_string();
        let script = format!("echo x >> /tmp/{name}; echo hi; echo err >&2; exit 7");
        let program = ["--", "sh", "-c", &script];
        let rm = ["run", "--rm", "--name", &name, "-v", &volume, "--bundle", &bundle];
        let detached = ["run", "--detach", "--name", &name, "-v", &volume, "--bundle", &bundle];
        let exec = ["exec", &waits];
        let (what, begin): (_, &[&str]) = match round % 4 {
            0 | 1 => ("run --rm", &rm),
            2 => ("exec", &exec),
            _ => ("run --detach", &detached),
        };
        let running = holdfast.begin(&[&patient, begin, &program].concat());
        // To meet another moment each time; a start takes some 30 ms.
        tokio::time::sleep(Duration::from_millis(random(45))).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
        let ran = running.end().await;
        let what = format!("{what}, round {round}: {ran:?}");
        if begin.contains(&"--detach") {
            assert_eq!((ran.code, ran.stdout.trim()), (Some(0), name.as_str()), "{what}");
            assert_eq!(holdfast.ok(&["wait", &name]).await, "7\n", "{what}");
            holdfast.ok(&["delete", &name]).await;
        } else {
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(7), "hi\n"), "{what}");
            assert_eq!(complaints(&ran.stderr), "err\n", "{what}");
        }
        assert_eq!(std::fs::read_to_string(shared.join(&name)).unwrap(), "x\n", "{what}");
    }
    holdfast.nothing_but(&[&waits]).await;
    holdfast.close().await;
}

/// Whether a run was begun is known by its number, and its output is what follows that of the run before.
#[tokio::test]
async fn a_run_in_the_foreground_is_begun_once_and_shows_its_own_output_whenever_the_daemon_dies() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let (_, volume) = shared(&holdfast);
    let id = unique_id("reconnect").to_string();
    let script = "echo x >> /tmp/runs; n=$(wc -l < /tmp/runs); echo run $n; echo err >&2; exit $n";
    let options = ["--name", &id, "-v", &volume, "--bundle", &bundle, "--", "sh", "-c", script];
    holdfast.ok(&[&["create"][..], &options].concat()).await;
    for round in 1..=i32::try_from(KILLS).unwrap() {
        let running = holdfast.begin(&["--reconnect", "20s", "start", "--attach", &id]);
        // To meet another moment each time; a start takes some 30 ms.
        tokio::time::sleep(Duration::from_millis(random(60))).await;
        holdfast.kill_daemon().await;
        holdfast.start_daemon().await;
        let ran = running.end().await;
        assert_eq!(ran.code, Some(round), "{ran:?}");
        assert_eq!(ran.stdout, format!("run {round}\n"));
        assert_eq!(complaints(&ran.stderr), "err\n");
    }
    holdfast.close().await;
}

/// A name that another container has is taken, however often one asks.
#[tokio::test]
async fn a_container_of_another_with_the_same_name_is_not_taken_for_ours() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    holdfast.kill_daemon().await;
    let args = ["--reconnect", "20s", "run", "--rm", "--name", &id, "--bundle", &bundle, "true"];
    let running = holdfast.begin(&args);
    holdfast.start_daemon().await;
    let ran = running.end().await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(125), ""), "{ran:?}");
    assert!(ran.stderr.contains("exists"), "{ran:?}");
    holdfast.close().await;
}

#[tokio::test]
async fn input_goes_on_while_there_is_no_daemon_and_its_end_is_not_lost() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let mut command = holdfast.command(&["run", "-i", "--rm", "--bundle", &bundle, "--", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = child.stdout.take().unwrap();
    let (mut sent, mut got) = (Vec::new(), Vec::new());
    for round in 0..KILLS {
        if round > 0 {
            holdfast.kill_daemon().await;
        }
        let bytes: Vec<u8> = (0..50).flat_map(|n| format!("{round} {n}\n").into_bytes()).collect();
        soon("input", input.write_all(&bytes)).await.unwrap();
        sent.extend(bytes);
        if round > 0 {
            holdfast.start_daemon().await;
        }
        while got.len() < sent.len() {
            let mut chunk = [0; 4096];
            let length = soon("output", output.read(&mut chunk)).await.unwrap();
            assert!(length > 0, "the output has ended");
            got.extend_from_slice(&chunk[..length]);
        }
        assert_eq!(got, sent);
    }
    holdfast.kill_daemon().await;
    drop(input);
    holdfast.start_daemon().await;
    let mut rest = Vec::new();
    soon("the end of the output", output.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    let ended = soon("the end of a command", child.wait_with_output()).await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!((ended.status.code(), complaints(&said).as_str()), (Some(0), ""));
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn signals_are_kept_while_there_is_no_daemon_and_delivered_in_order() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let script = "trap 'echo usr1' USR1; trap 'echo usr2; exit 9' USR2; echo ready; \
                  while :; do usleep 1000; done";
    let args = ["run", "--rm", "--bundle", &bundle, "--", "sh", "-c", script];
    let mut running = holdfast.begin(&args);
    assert_eq!(running.line().await, "ready");
    holdfast.kill_daemon().await;
    running.signal(Signal::SIGUSR1);
    // The kernel may deliver two signals that are pending at the same time in any order (signal(7)).
    let process = running.process();
    let is_taken = || process.mask_has("ShdPnd", Signal::SIGUSR1) == Some(false);
    eventually("the first signal to be taken", is_taken).await;
    running.signal(Signal::SIGUSR2);
    holdfast.start_daemon().await;
    let ran = running.end().await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(9), "usr1\nusr2\n"), "{ran:?}");
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn a_bound_says_how_long_a_command_waits_and_a_note_that_it_does() {
    let mut holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let gate = holdfast.scratch.gate();
    let script = gate.script("echo ready");
    let (first, second) = (unique_id("reconnect").to_string(), unique_id("reconnect").to_string());
    let options = ["--bundle", &bundle, "--name"];
    let program = ["--", "sh", "-c", &script];
    let sleep = ["--", "sh", "-c", "echo ready; exec sleep 100000"];
    let patient = [&["run", "--reconnect", "1m"][..], &options, &[&first], &program].concat();
    let mut patient = holdfast.command(&patient);
    let mut patient = patient.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(patient.stdout.take().unwrap()).lines();
    let mut notes = BufReader::new(patient.stderr.take().unwrap()).lines();
    let line = soon("a line", output.next_line()).await.unwrap();
    assert_eq!(line.as_deref(), Some("ready"));
    let run = [&["run", "--reconnect", "0"][..], &options, &[&second], &sleep].concat();
    let mut impatient = holdfast.begin(&run);
    assert_eq!(impatient.line().await, "ready");
    let waits = holdfast.begin(&["wait", "--reconnect", "200ms", &first]);
    // It waits once it has found out for what, which the daemon does not show.
    tokio::time::sleep(Duration::from_millis(300)).await;
    holdfast.kill_daemon().await;
    let ran = impatient.end().await;
    assert_eq!(ran.code, Some(125));
    let said = format!("container {second} runs on: see `holdfast wait {second}`");
    assert!(ran.stderr.contains(&said), "{ran:?}");
    let ran = waits.end().await;
    assert!(ran.code == Some(1) && ran.stderr.contains("within 200ms"), "{ran:?}");
    // No one waits who did not ask for it and finds no daemon.
    let said = holdfast.fails(1, &["wait", &first]).await;
    assert!(said.contains("no daemon answers"), "{said}");
    let note = "holdfast: the daemon is away, trying again for 59 s; the container runs on";
    let said = soon("the note", notes.next_line()).await.unwrap();
    assert_eq!(said.as_deref(), Some(note));
    holdfast.start_daemon().await;
    gate.open(3);
    let line = soon("a line", output.next_line()).await.unwrap();
    assert_eq!(line.as_deref(), Some("after"));
    assert_eq!(soon("the last note", notes.next_line()).await.unwrap(), None);
    assert_eq!(soon("its end", patient.wait()).await.unwrap().code(), Some(3));
    holdfast.close().await;
}

#[tokio::test]
async fn top_and_stats_wait_for_the_next_daemon_if_that_is_asked_for() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    for _ in 0..KILLS / 4 {
        holdfast.kill_daemon().await;
        let commands = [["top", &id], ["stats", &id]]
            .map(|[command, id]| holdfast.begin(&[command, "--json", "--reconnect", "20s", id]));
        holdfast.start_daemon().await;
        for command in commands {
            let ran = command.end().await;
            assert_eq!((ran.code, complaints(&ran.stderr).as_str()), (Some(0), ""), "{ran:?}");
            serde_json::from_str::<Value>(&ran.stdout).unwrap();
        }
    }
    holdfast.close().await;
}

#[tokio::test]
async fn output_that_was_removed_while_there_was_no_daemon_is_said_to_be_lost() {
    let mut holdfast = Holdfast::start().await;
    let script = ["sh", "-c", NUMBERS];
    let id = holdfast.run_detached(&["--rm"], &script).await;
    let mut attached = holdfast.begin(&["attach", "--no-stdin", &id]);
    let mut logs = holdfast.begin(&["logs", "--follow", &id]);
    for running in [&mut attached, &mut logs] {
        running.line().await;
    }
    let pid = holdfast.inspect(&id).await["pid"].as_i64().unwrap();
    let end = holdfast.end_of_shim(&id);
    // Stopped, so that they come back when all is gone.
    for running in [&attached, &logs] {
        running.signal(Signal::SIGSTOP);
    }
    holdfast.kill_daemon().await;
    terminate(pid);
    end.come().await;
    holdfast.start_daemon().await;
    holdfast.nothing_but(&[]).await;
    for (running, code) in [(attached, 7), (logs, 1)] {
        running.signal(Signal::SIGCONT);
        let ran = running.end().await;
        assert_eq!(ran.code, Some(code), "{ran:?}");
        assert!(ran.stderr.contains("the rest of it is lost"), "{ran:?}");
        let numbers: Vec<u64> = ran.stdout.lines().map(|line| line.parse().unwrap()).collect();
        let once: BTreeSet<u64> = numbers.iter().copied().collect();
        assert_eq!(numbers, once.into_iter().collect::<Vec<_>>());
    }
    holdfast.close().await;
}
