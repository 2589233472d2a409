//! Monitors that are killed, and what the keeper makes of it: another one takes over, and nothing of the container is
//! lost.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use holdfast_tests::conmon::{Case, Client, sleep_through, text_of, write_line};
use holdfast_tests::keeper::{Keeper, adopter, killed};
use holdfast_tests::podman::{HOLDFAST, Podman};
use holdfast_tests::tracer::{Deed, Point, Rule, Tracer};
use holdfast_tests::{Proc, binary, eventually, executable, in_path, ran, skip, soon};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, listen, recv,
    socket, socketpair,
};

fn socket_of(case: &Case) -> PathBuf {
    case.path().join("keeper.sock")
}

/// The options that name the keeper, as podman passes them.
fn kept(keeper: &Keeper) -> (&'static str, String) {
    ("HOLDFAST_CONMON_OPTIONS", format!("--keeper {}", keeper.socket().display()))
}

/// Waits until the keeper has as many descriptors as without any monitor.
async fn forgets_all(keeper: &Keeper, before: usize) {
    eventually("the keeper to forget", || keeper.descriptors() == before).await;
}

#[tokio::test]
async fn another_monitor_takes_over_and_the_status_is_exact() {
    for (end, status) in [("exit 7", "7"), ("exit 0", "0"), ("kill -9 $$; sleep 60", "137")] {
        let case = Case::script("true");
        let gate = case.gate();
        case.configure(|config| {
            let script = format!("{}; echo after; {end}", gate.wait("echo before"));
            config["process"]["args"] = serde_json::json!(["sh", "-c", script]);
            // Nobody may kill the first process of its own pid namespace.
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        let keeper = Keeper::start(socket_of(&case)).await;
        let before = keeper.descriptors();
        let (name, value) = kept(&keeper);
        let monitor = case.monitor().env(name, value).starts();
        eventually("the first line", || case.log().contains("before")).await;
        let adopter = killed(&monitor, &case.id).await;
        gate.open(0);
        adopter.ended().await;
        assert_eq!(case.exit_file().as_deref(), Some(status), "{}", keeper.said());
        let persisted = fs::read_to_string(case.path().join("persist/exit"));
        assert_eq!(persisted.expect("the persistent status"), status);
        assert_eq!(text_of(&case.log()), "before\nafter\n");
        assert!(!case.bundle().join("attach").exists());
        forgets_all(&keeper, before).await;
        assert_eq!(keeper.said(), "");
    }
}

#[tokio::test]
async fn a_monitor_that_ends_by_itself_is_forgotten() {
    let case = Case::script("cat");
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = keeper.descriptors();
    let (name, value) = kept(&keeper);
    let (monitor, _) = case.monitor().args(["-i"]).env(name, value).creates();
    eventually("the monitor to be kept", || keeper.descriptors() > before + 2).await;
    let client = Client::attach(&case.bundle().join("attach"));
    case.start();
    client.send(b"hello\n");
    client.end_input();
    assert_eq!(client.all().0, b"hello\n");
    monitor.ended().await;
    forgets_all(&keeper, before).await;
    assert!(adopter(&case.id).is_none());
    assert_eq!(keeper.said(), "");
}

#[tokio::test]
async fn no_line_is_lost_while_one_monitor_after_the_other_is_killed() {
    // However long the rounds take, it writes to the end of the last.
    let script =
        "i=0; while [ ! -e /over ]; do i=$((i+1)); echo line $i; done; echo $i lines; exit 4";
    let case = Case::script(script);
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let mut monitor = case.monitor().env(name, value).starts();
    for round in 1..=5 {
        let size = fs::metadata(case.log_path()).expect("the log").len();
        eventually("more output", || {
            fs::metadata(case.log_path()).expect("the log").len() > size + 10_000
        })
        .await;
        assert!(case.exit_file().is_none(), "it still runs in round {round}");
        monitor = killed(&monitor, &case.id).await;
    }
    fs::write(case.bundle().join("rootfs/over"), "").expect("write a file");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("4"));
    let text = text_of(&case.log());
    let count = text.lines().count().saturating_sub(1);
    let lines = (1..=count).map(|number| format!("line {number}\n"));
    let expected: String = lines.chain([format!("{count} lines\n")]).collect();
    let differs = text.lines().zip(expected.lines()).position(|(found, line)| found != line);
    let around = |at: usize| text.lines().skip(at.saturating_sub(3)).take(6).collect::<Vec<_>>();
    assert_eq!(differs.map(around), None, "other lines");
    assert!(text == expected, "the log is cut");
}

#[tokio::test]
async fn clients_attach_again_and_input_goes_on() {
    let case = Case::script("cat; echo over");
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let call = case.monitor().args(["-i", "--leave-stdin-open"]).env(name, value);
    let monitor = call.starts();
    let path = case.bundle().join("attach");
    let first = Client::attach(&path);
    first.send(b"one\n");
    first.until("one\n");
    let adopter = killed(&monitor, &case.id).await;
    assert_eq!(first.packet(), None, "it is closed");
    let second = Client::attach_again(&path).await;
    second.send(b"two\n");
    second.until("two\n");
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"));
}

#[tokio::test]
async fn input_ends_behind_an_adoption_as_without_one() {
    let case = Case::script("cat; echo over");
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().args(["-i"]).env(name, value).starts();
    let path = case.bundle().join("attach");
    let adopter = killed(&monitor, &case.id).await;
    let client = Client::attach_again(&path).await;
    client.send(b"text\n");
    client.end_input();
    assert_eq!(client.all().0, b"text\nover\n");
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("0"));
}

#[tokio::test]
async fn a_terminal_goes_on() {
    let case = Case::script("echo ready; read -r line; stty size; echo got $line; exit 5");
    case.with_terminal();
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().args(["-t"]).env(name, value).starts();
    eventually("the first line", || case.log().contains("ready")).await;
    let path = case.bundle().join("attach");
    let adopter = killed(&monitor, &case.id).await;
    let client = Client::attach_again(&path).await;
    write_line(&case.bundle().join("ctl"), "1 33 101");
    client.send(b"word\n");
    let (output, _, _) = client.all();
    let output = String::from_utf8_lossy(&output).into_owned();
    assert!(output.contains("33 101\r\n") && output.contains("got word\r\n"), "{output:?}");
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("5"));
}

/// Kills the monitor of an exec of this process, and waits for the one that takes over.
async fn killed_exec(monitor: &Proc, process: &Path) -> Proc {
    monitor.signal(Signal::SIGKILL);
    monitor.ended().await;
    let adopter = || {
        let all = holdfast_tests::processes::mentioning(process).into_iter();
        let mut adopters = all.filter(|it| it.command().contains("--adopt"));
        adopters.find(Proc::lives)
    };
    eventually("an adopter", || adopter().is_some()).await;
    adopter().expect("it runs on")
}

/// podman waits at a socket for the status of an exec. That it stays open is what podman relies on.
#[tokio::test]
async fn the_status_of_an_exec_reaches_who_waits_for_it() {
    let case = Case::script("sleep 1000");
    let monitor = case.monitor().starts();
    let gate = case.gate();
    let process = case.process(&["sh", "-c", &gate.script("true")], false);
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    // The other end is for the monitor alone.
    let flags = SockFlag::empty();
    let kind = SockType::SeqPacket;
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags).expect("sockets");
    let number = theirs.as_raw_fd().to_string();
    let call = case.exec(&process).env(name, value).env("_OCI_SYNCPIPE", &number);
    let exec = call.detaches();
    drop(theirs);
    let record = || {
        let mut room = [0; 4096];
        let length = recv(ours.as_raw_fd(), &mut room, MsgFlags::empty()).expect("receive");
        String::from_utf8_lossy(&room[..length]).into_owned()
    };
    assert!(record().starts_with("{\"data\": "));
    let next = killed_exec(&exec, &process).await;
    gate.open(9);
    assert_eq!(record(), "{\"data\": 9}\n");
    assert_eq!(record(), "", "it is closed");
    next.ended().await;
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    monitor.ended().await;
}

/// CRI-O removes the log of an exec whose monitor has gone. Seen before: the next monitor made it anew.
#[tokio::test]
async fn the_log_of_an_exec_that_was_removed_is_not_made_again() {
    let case = Case::script("sleep 1000");
    let monitor = case.monitor().starts();
    let gate = case.gate();
    let process = case.process(&["sh", "-c", &gate.script("echo out")], false);
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let exec = case.legacy_exec(&process).env(name, value).detaches();
    let log = case.log_path().with_extension("exec");
    eventually("the exec to be kept", || keeper.descriptors() >= 9).await;
    fs::remove_file(&log).expect("remove the log");
    let next = killed_exec(&exec, &process).await;
    gate.open(0);
    next.ended().await;
    assert!(!log.exists(), "{:?}", fs::read_to_string(&log));
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    monitor.ended().await;
}

#[tokio::test]
async fn a_container_that_ended_while_nobody_watched_has_its_status() {
    let case = Case::script("true");
    let gate = case.gate();
    case.configure(|config| {
        config["process"]["args"] = serde_json::json!(["sh", "-c", gate.script("echo before")]);
    });
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let (monitor, pid) = case.monitor().env(name, value).creates();
    case.start();
    let container = Proc::of(pid).expect("it runs");
    eventually("the first line", || case.log().contains("before")).await;
    keeper.process().signal(Signal::SIGSTOP);
    monitor.signal(Signal::SIGKILL);
    monitor.ended().await;
    gate.open(6);
    container.gone().await;
    assert_eq!(case.exit_file(), None);
    keeper.process().signal(Signal::SIGCONT);
    eventually("the status", || case.exit_file().is_some()).await;
    // Linux 6.15 and later tell how a process ended that was not one's own.
    let is_known = holdfast_sys::kernel::tells_endings();
    assert_eq!(case.exit_file().as_deref(), Some(if is_known { "6" } else { "255" }));
    eventually("the rest of the output", || text_of(&case.log()) == "before\nafter\n").await;
}

#[tokio::test]
async fn a_keeper_that_is_stopped_holds_nobody_up() {
    let case = Case::script("cat; exit 3");
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = keeper.descriptors();
    keeper.process().signal(Signal::SIGSTOP);
    let (name, value) = kept(&keeper);
    let (monitor, _) = case.monitor().args(["-i"]).env(name, value).creates();
    let client = Client::attach(&case.bundle().join("attach"));
    case.start();
    client.send(b"text\n");
    client.end_input();
    assert_eq!(client.all().0, b"text\n", "its input has ended");
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("3"));
    keeper.process().signal(Signal::SIGCONT);
    forgets_all(&keeper, before).await;
    assert!(adopter(&case.id).is_none());
}

/// The keeper has been told of it, and has not read it yet.
#[tokio::test]
async fn input_ends_though_a_stopped_keeper_has_a_copy_of_it() {
    let case = Case::script("cat; exit 3");
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = keeper.descriptors();
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().args(["-i"]).env(name, value).starts();
    eventually("the monitor to be kept", || keeper.descriptors() >= before + 4).await;
    keeper.process().signal(Signal::SIGSTOP);
    let client = Client::attach(&case.bundle().join("attach"));
    client.end_input();
    monitor.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("3"));
    keeper.process().signal(Signal::SIGCONT);
    forgets_all(&keeper, before).await;
}

#[tokio::test]
async fn a_keeper_that_follows_another_knows_all_monitors() {
    let case = Case::script("sleep 1000");
    let mut keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().env(name, value).starts();
    keeper.kill();
    // Nobody answers at its socket, which is replaced.
    assert!(Client::try_attach(keeper.socket()).is_err());
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = 6;
    eventually("the monitor to come", || keeper.descriptors() >= before + 3).await;
    let adopter = killed(&monitor, &case.id).await;
    // An adopter is such a monitor as well.
    drop(keeper);
    fs::remove_file(socket_of(&case)).expect("remove the socket");
    let keeper = Keeper::start(socket_of(&case)).await;
    eventually("the adopter to come", || keeper.descriptors() >= before + 3).await;
    let adopter = killed(&adopter, &case.id).await;
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"));
}

#[tokio::test]
async fn a_socket_of_systemds_serves_one_keeper_after_the_other() {
    let case = Case::script("sleep 1000");
    let path = socket_of(&case);
    let kind = SockType::SeqPacket;
    let listener = socket(AddressFamily::Unix, kind, SockFlag::empty(), None).expect("a socket");
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bind");
    listen(&listener, Backlog::new(64).expect("a backlog")).expect("listen");
    let mut keeper = Keeper::activated(path.clone(), &listener).await;
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().env(name, value).starts();
    eventually("the monitor to be kept", || keeper.descriptors() >= 9).await;
    keeper.kill();
    // It connects at once, and waits in the queue of the socket. With both killed nobody could take over.
    let keeper = Keeper::activated(path, &listener).await;
    eventually("the monitor to come", || keeper.descriptors() >= 9).await;
    let adopter = killed(&monitor, &case.id).await;
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"), "{}", keeper.said());
}

#[tokio::test]
async fn a_monitor_that_finds_no_keeper_starts_and_is_kept_once_there_is_one() {
    let case = Case::script("sleep 1000");
    let options = format!("--keeper {}", socket_of(&case).display());
    let monitor = case.monitor().env("HOLDFAST_CONMON_OPTIONS", options).starts();
    let keeper = Keeper::start(socket_of(&case)).await;
    eventually("the monitor to come", || keeper.descriptors() >= 9).await;
    let adopter = killed(&monitor, &case.id).await;
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    adopter.ended().await;
    assert_eq!(case.exit_file().as_deref(), Some("137"));
}

#[tokio::test]
async fn there_is_one_keeper_at_a_socket() {
    let case = Case::script("true");
    let keeper = Keeper::start(socket_of(&case)).await;
    let mut second = Keeper::begin(socket_of(&case));
    assert_eq!(second.code(), Some(1));
    assert!(keeper.said().contains("another keeper has this socket"), "{}", keeper.said());
    keeper.process().signal(Signal::SIGTERM);
    let mut keeper = keeper;
    assert_eq!(keeper.code(), Some(0));
}

/// A process that a keeper has just forked has copies of its descriptors until it is another program.
#[tokio::test]
async fn a_keeper_follows_one_that_was_killed_though_its_socket_is_open_elsewhere() {
    let Some(python) = in_path("python3") else {
        return skip("python3 is not installed");
    };
    let case = Case::script("true");
    let script = "import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen()
if os.fork() == 0:
    sys.stdin.read()";
    let mut command = std::process::Command::new(python);
    command.args(["-c", script]).arg(socket_of(&case)).stdin(Stdio::piped());
    let mut first = command.spawn().expect("start python3");
    let copy_ends = first.stdin.take();
    assert!(first.wait().expect("wait").success());
    let keeper = Keeper::start(socket_of(&case)).await;
    assert_eq!(keeper.said(), "");
    drop(copy_ends);
}

#[tokio::test]
async fn users_have_nothing_to_do_with_each_other() {
    const NOBODY: u32 = 65534;
    let case = Case::script("exit 2");
    let dir = case.path().join("other");
    fs::create_dir(&dir).expect("make a directory");
    fs::set_permissions(case.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("let others in");
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).expect("give a directory");
    let keeper = Keeper::start_as(dir.join("keeper.sock"), NOBODY).await;
    // A stranger is refused by who the keeper is,
    let kind = SockType::SeqPacket;
    let stranger = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    let address = UnixAddr::new(keeper.socket()).expect("an address");
    connect(stranger.as_raw_fd(), &address).expect("root may connect");
    let mut room = [0; 16];
    assert_eq!(recv(stranger.as_raw_fd(), &mut room, MsgFlags::empty()), Ok(0));
    eventually("the reason", || keeper.said().contains("is user 0's")).await;
    // and a monitor registers with no stranger.
    let (name, value) = kept(&keeper);
    let output = case.monitor().env(name, value).args(["--sync"]).spawn();
    eventually("the container", || case.bundle().join("attach").exists()).await;
    eventually("the start", || case.runtime(&["start", &case.id]).status.success()).await;
    let output = output.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(case.exit_file().as_deref(), Some("2"));
}

/// A script that appends the status that it finds to a file, and then waits for a gate if there is one.
fn exit_command(case: &Case, waits: &str) -> String {
    let path = case.path().join("exit-command");
    let exits = case.path().join("exits").join(&case.id).display().to_string();
    let said = case.path().join("said").display().to_string();
    executable::script(
        &path,
        &format!("#!/bin/sh\necho \"$1 $(cat {exits} 2>/dev/null) $KEPT\" >>{said}\n{waits}\n"),
    );
    path.display().to_string()
}

fn said(case: &Case) -> String {
    fs::read_to_string(case.path().join("said")).unwrap_or_default()
}

/// The status may be read as soon as it is there, and the container be removed or started again.
#[tokio::test]
async fn once_the_status_is_recorded_only_the_exit_command_is_run() {
    let case = Case::script("exit 8");
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let gate = case.host_gate();
    let command = exit_command(&case, &gate.wait("true"));
    let call = case.monitor().env(name, value).env("KEPT", "x");
    let call = call.args(["--exit-command", &command, "--exit-command-arg", "word"]);
    let monitor = call.starts();
    eventually("the exit command", || said(&case) == "word 8 x\n").await;
    // As the caller does.
    fs::remove_file(case.path().join("exits").join(&case.id)).expect("remove the status");
    fs::remove_dir_all(case.bundle()).expect("remove the bundle");
    let adopter = killed(&monitor, &case.id).await;
    eventually("the exit command again", || said(&case) == "word 8 x\nword  x\n").await;
    // Both go on.
    gate.open(0);
    gate.open(0);
    adopter.ended().await;
    assert_eq!(case.exit_file(), None);
    assert!(!case.bundle().exists());
}

/// Each step behind the start of the container at which the monitor can be killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_killed_at_any_step_loses_neither_status_nor_output_nor_the_exit_command() {
    let (steps, _) = life(None).await;
    assert!(steps.len() > 10, "{steps:?}");
    println!("{} steps: {steps:#?}", steps.len());
    let mut missed = Vec::new();
    for step in &steps {
        let (_, was_reached) = life(Some(step)).await;
        missed.extend((!was_reached).then_some(step));
    }
    // What comes at once or in two parts is a matter of the moment, and so are the steps for it.
    assert!(missed.len() <= 2, "not reached: {missed:?}");
}

/// A container's life, in which the monitor is killed at this step. Returns all steps behind the start, and whether
/// this one was reached.
async fn life(step: Option<&Point>) -> (Vec<Point>, bool) {
    let case = Case::script("true");
    let gate = case.gate();
    case.configure(|config| {
        config["process"]["args"] = serde_json::json!(["sh", "-c", gate.script("echo before")]);
    });
    // Each life has an id of its own.
    let renamed = |step: &Point, from: &str, to: &str| Point {
        key: step.key.replace(from, to),
        time: step.time,
    };
    let rule = |step: &Point| Rule::once(&renamed(step, "NAME", &case.id), Deed::Kill);
    let rules: Vec<_> = step.map(rule).into_iter().collect();
    let real = binary("holdfast-conmon");
    let base = case.path().to_owned();
    let mut tracer = Tracer::below(case.path(), base, &case.id, &real, "--sync", &rules).await;
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = keeper.descriptors();
    let (name, value) = kept(&keeper);
    let command = exit_command(&case, "");
    let call = case.monitor().program(tracer.program()).env(name, value);
    let call = call.args(["--sync", "--exit-command", &command, "--exit-command-arg", "word"]);
    let (call, records) = call.sync_pipe();
    let mut monitor = call.spawn();
    let pid = records.next()["pid"].as_i64().expect("a pid");
    assert!(pid > 0);
    // The steps before it are reported later than it comes.
    let tells = || tracer.calls().iter().position(|step| step.key.starts_with("write pipe"));
    eventually("the step that told the pid", || tells().is_some()).await;
    let begun = tells().map_or(0, |at| at + 1);
    case.start();
    // A container whose monitor is killed at its first step has no other.
    eventually("the first line", || case.log().contains("before")).await;
    // A keeper that has not heard of it yet would pass for one that has forgotten it.
    eventually("the keeper to know it", || keeper.descriptors() > before).await;
    gate.open(7);
    tracer.ended().await;
    let _ = monitor.wait();
    let ends = || case.exit_file().is_some() && adopter(&case.id).is_none();
    eventually("the end", || ends() && !said(&case).is_empty()).await;
    forgets_all(&keeper, before).await;
    let at = step.map_or("nowhere".to_owned(), Point::to_string);
    assert_eq!(case.exit_file().as_deref(), Some("7"), "killed at {at}");
    assert_eq!(text_of(&case.log()), "before\nafter\n", "killed at {at}");
    assert!(said(&case).lines().all(|line| line == "word 7 "), "killed at {at}: {}", said(&case));
    assert!(said(&case).lines().count() <= 2, "killed at {at}: {}", said(&case));
    assert!(!case.bundle().join("attach").exists(), "killed at {at}");
    let persisted = fs::read_to_string(case.path().join("persist/exit"));
    assert_eq!(persisted.expect("the persistent status"), "7", "killed at {at}");
    assert_eq!(keeper.said(), "", "killed at {at}");
    let was_reached = tracer.has_done();
    let steps = tracer.calls().split_off(begun);
    (steps.iter().map(|step| renamed(step, &case.id, "NAME")).collect(), was_reached)
}

#[tokio::test]
async fn an_adopter_that_cannot_take_over_is_tried_some_times_only() {
    let case = Case::script("sleep 1000");
    let keeper = Keeper::start(socket_of(&case)).await;
    let before = keeper.descriptors();
    // The peer is this process, and the keeper waits for its end unless the connection is closed.
    let process = keeper.process();
    process.signal(Signal::SIGSTOP);
    process.reaches('T').await;
    // A registration of nothing.
    let kind = SockType::SeqPacket;
    let monitor = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    connect(monitor.as_raw_fd(), &UnixAddr::new(keeper.socket()).expect("an address"))
        .expect("connect");
    let (deposit, other) =
        socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("sockets");
    nix::sys::socket::send(other.as_raw_fd(), b"nonsense", MsgFlags::empty()).expect("send");
    register(&monitor, &deposit);
    drop((monitor, deposit, other));
    let began = Instant::now();
    process.signal(Signal::SIGCONT);
    // The waits are 1, 2, 3 and 4 seconds.
    let given_up = || keeper.said().contains("a container is given up");
    soon("the keeper to give up", async {
        while !given_up() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
    forgets_all(&keeper, before).await;
}

fn register(connection: &OwnedFd, deposit: &OwnedFd) {
    use std::os::fd::AsFd;
    holdfast_sys::fd_passing::send(connection, b"HFK\x01", &[deposit.as_fd()]).expect("register");
}

/// podman, with monitors that are kept.
async fn podman() -> Option<(Podman, Keeper)> {
    let podman = Podman::start(HOLDFAST).await?;
    let keeper = Keeper::start(podman.path().join("keeper.sock")).await;
    let (name, value) = kept(&keeper);
    let variable = format!("{name}={value}");
    podman.configure(&format!("[engine]\nconmon_env_vars = [{variable:?}]\n"));
    Some((podman, keeper))
}

/// The monitor of a container of podman's.
async fn monitor_of(podman: &Podman, id: &str) -> Proc {
    let pid = podman.does(&["inspect", "--format", "{{.State.ConmonPid}}", id]).await;
    Proc::of(pid.parse().expect("a pid")).expect("the monitor runs")
}

/// podman remembers the pid of a monitor, and waits no longer than 20 seconds for a container whose monitor is gone.
#[tokio::test]
async fn podman_notices_nothing() {
    let Some((podman, keeper)) = podman().await else { return };
    let script = "trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 0.05; done";
    let id = podman.done(podman.script(&["-d", "--name", "one"], script)).await;
    let mut wait = podman.command(&["wait", &id]).spawn().expect("start podman");
    let monitor = monitor_of(&podman, &id).await;
    podman.has_said("one", "hello\n").await;
    // podman looks for the pid now and then, and is not to do so in the moment when nobody has it.
    let waiting = wait.id().expect("podman waits").cast_signed();
    let waiting = Proc::of(waiting).expect("podman waits");
    waiting.signal(Signal::SIGSTOP);
    waiting.reaches('T').await;
    let adopter = killed(&monitor, &id).await;
    waiting.signal(Signal::SIGCONT);
    assert_eq!(adopter.pid, monitor.pid, "it has the pid that podman knows");
    let state = ["inspect", "--format", "{{.State.Status}}", "one"];
    assert_eq!(podman.does(&state).await, "running");
    assert_eq!(podman.does(&["logs", "one"]).await, "hello");
    assert_eq!(podman.does(&["exec", "one", "echo", "in"]).await, "in");
    // Longer than podman waits for a monitor that is gone.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(wait.try_wait().expect("ask for podman"), None, "it waits on");
    podman.does(&["stop", "one"]).await;
    assert_eq!(soon("podman wait", wait.wait()).await.expect("wait").code(), Some(0));
    assert_eq!(podman.does(&["wait", "one"]).await, "7");
    let state = ["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "one"];
    assert_eq!(podman.does(&state).await, "exited 7");
    assert_eq!(podman.does(&["logs", "one"]).await, "hello\nbye");
    podman.does(&["rm", "one"]).await;
    adopter.ended().await;
    assert_eq!(keeper.said(), "");
    drop(keeper);
    podman.close().await;
}

/// What podman does of its own accord, its exit command does.
#[tokio::test]
async fn podman_restarts_and_removes_containers_of_monitors_that_were_killed() {
    let Some((podman, keeper)) = podman().await else { return };
    let share = podman.path().join("share");
    fs::create_dir(&share).expect("make a directory");
    let volume = format!("{}:/share", share.display());
    // None ends before both monitors were killed.
    let script = "echo begun; while [ ! -e /share/go ]; do sleep 0.1; done; exit 3";
    let options = ["-d", "--rm", "--volume", &volume, "--name", "gone"];
    let removed = podman.done(podman.script(&options, script)).await;
    let options = ["-d", "--restart", "on-failure:2", "--volume", &volume, "--name", "again"];
    let again = podman.done(podman.script(&options, script)).await;
    for id in [&removed, &again] {
        let _ = killed(&monitor_of(&podman, id).await, id).await;
    }
    fs::write(share.join("go"), "").expect("write a file");
    // podman itself fails where a process ends while it reads `/proc/PID/cgroup`.
    let said = async |args: &[&str]| ran(podman.command(args)).await.stdout;
    soon("the end of both", async {
        loop {
            let names = said(&["ps", "--all", "--format", "{{.Names}}"]).await;
            let state = said(&["inspect", "--format", "{{.State.Status}}", "again"]).await;
            let log = said(&["logs", "again"]).await;
            if (names.as_str(), state.as_str(), log.lines().count()) == ("again\n", "exited\n", 3) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    assert_eq!(podman.does(&["wait", "again"]).await, "3");
    podman.does(&["rm", "again"]).await;
    drop(keeper);
    podman.close().await;
}

#[tokio::test]
async fn nobody_wakes_up_while_nothing_happens() {
    let case = Case::script("sleep 1000");
    let keeper = Keeper::start(socket_of(&case)).await;
    let (name, value) = kept(&keeper);
    let monitor = case.monitor().env(name, value).starts();
    let adopter = killed(&monitor, &case.id).await;
    // Not at once: what the start needed is given back after a second.
    sleep_through(&[&keeper.process(), &adopter], Duration::from_secs(3)).await;
    let _ = case.runtime(&["kill", &case.id, "KILL"]);
    adopter.ended().await;
}
