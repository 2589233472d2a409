//! One process, as the seed gave it to its caller: pid, descriptor, signals, status, and why a start
//! failed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use holdfast_supervisor::{
    Container, Error, Event, EventKind, ExecOptions, ExitStatus, Status, Stdin, Stdio, Supervisor,
    TerminalSize,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::processes::{mentioning, shim_of};
use holdfast_tests::{
    Holdfast, Proc, Scratch, binary, edit_json, events_until, eventually, executable, read_all,
    said, shim_group, soon, status, unique_id,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::OpenOptions;

const SIGUSR1: i32 = 10;
const SIGTERM: i32 = 15;

/// Says `ready`, then `usr1` at each such signal, and exits with 42 after SIGTERM.
const TALKS: &str = "trap 'echo usr1' USR1; trap 'exit 42' TERM; echo ready; \
                     while true; do sleep 100000 & wait $!; done";

/// A foreign event loop: `poll(2)` and nothing else.
fn readable(fd: &OwnedFd, timeout: PollTimeout) -> bool {
    let mut set = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut set, timeout).expect("poll") == 1
}

#[test]
fn an_exit_is_a_descriptor_in_a_foreign_event_loop() {
    let limit = PollTimeout::from(60_000_u16);
    let scratch = Scratch::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let supervisor = runtime.block_on(scratch.open());
    let (gate, exec_gate) = (scratch.gate(), scratch.gate());
    let container = supervisor.run(scratch.script(&gate.script("true")));
    let container = runtime.block_on(container).unwrap();
    let exec = ExecOptions::new(["sh", "-c", &exec_gate.script("true")]);
    let exec = runtime.block_on(container.exec(exec)).unwrap();
    // From here on no Tokio runtime is entered but to wait for what has come.
    let (of_container, of_exec) = (container.exit_fd().unwrap(), exec.exit_fd().unwrap());
    // One that is closed takes nothing from the others.
    drop(container.exit_fd().unwrap());
    assert!(!readable(&of_container, PollTimeout::ZERO) && !readable(&of_exec, PollTimeout::ZERO));
    exec_gate.open(3);
    assert!(readable(&of_exec, limit));
    assert_eq!(runtime.block_on(exec.wait()).unwrap(), ExitStatus::Code(3));
    assert!(!readable(&of_container, PollTimeout::ZERO));
    gate.open(4);
    assert!(readable(&of_container, limit));
    assert_eq!(runtime.block_on(container.wait()).unwrap(), ExitStatus::Code(4));
    assert!(readable(&of_container, PollTimeout::ZERO), "until it is read");
    let mut count = [0; 8];
    File::from(of_container).read_exact(&mut count).unwrap();
    assert_eq!(u64::from_ne_bytes(count), 1);
    assert!(readable(&container.exit_fd().unwrap(), limit), "of one that has ended");
    runtime.block_on(scratch.close(supervisor));
}

/// Writes to the control FIFO as a person might.
fn by_hand(scratch: &Scratch, container: &Container, text: &str) {
    let path = scratch.root().join(container.id().as_str()).join("init/control");
    let mut fifo = File::options().write(true).open(path).expect("open the control FIFO");
    fifo.write_all(text.as_bytes()).expect("write to the control FIFO");
}

fn warnings(scratch: &Scratch, container: &Container) -> Vec<String> {
    let path = scratch.root().join(container.id().as_str()).join("init/shim-log.json");
    let log = fs::read_to_string(path).expect("read the shim's log");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| format!("{}: {}", line["level"], line["msg"])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_lines_written_by_hand_signal_and_nonsense_is_logged_and_skipped() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script(TALKS)).await.unwrap();
    said(&container, "ready").await;
    let hand = |text: &str| by_hand(&scratch, &container, text);
    hand("2 10 0\n");
    said(&container, "usr1").await;
    let overlong = format!("{}\n", "2 10 0 ".repeat(500));
    let nonsense = ["nonsense\n", "2 99 0\n", "9 9 9\n", "\n", "2 10\n", "1 80 24\n", &overlong];
    nonsense.iter().for_each(|line| hand(line));
    // One line in two writes, and then two lines in one.
    hand("2 1");
    hand("5 0\n0 0 0\n");
    assert_eq!(status(&container).await, ExitStatus::Code(42));
    assert_eq!(read_all(container.logs().unwrap()).await.stdout, b"ready\nusr1\n");
    let warnings = warnings(&scratch, &container);
    assert_eq!(warnings.len(), nonsense.len(), "{warnings:#?}");
    for (warning, line) in warnings.iter().zip(nonsense) {
        let about =
            if line.starts_with('1') { "no terminal" } else { &line[..line.len().min(9) - 1] };
        assert!(warning.starts_with("\"warning\": \"control: "), "{warning}");
        assert!(warning.contains(about), "{warning} of {line:?}");
        assert!(warning.len() < 200, "{warning}");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_lines_written_by_hand_resize_and_close_the_input() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script = "trap 'stty size' WINCH; echo ready; cat; echo over; sleep 100000";
    let size = TerminalSize { width: 80, height: 24 };
    let stdio = Stdio::new().stdin(Stdin::Pipe).terminal(size);
    let container = supervisor.run(scratch.script(script).stdio(stdio)).await.unwrap();
    let plain = scratch.options(["cat"]).stdio(Stdio::new().stdin(Stdin::Pipe));
    let plain = supervisor.run(plain).await.unwrap();
    let mut log = container.logs().unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"ready\r\n") {
        all.extend(soon("output", log.follow()).await.unwrap().expect("it runs").bytes);
    }
    by_hand(&scratch, &container, "1 132 43\n0 0 0\n");
    by_hand(&scratch, &plain, "0 0 0\n");
    while !all.ends_with(b"over\r\n") {
        all.extend(soon("output", log.follow()).await.unwrap().expect("it runs").bytes);
    }
    assert_eq!(String::from_utf8_lossy(&all), "ready\r\n43 132\r\nover\r\n");
    assert_eq!(status(&plain).await, ExitStatus::Code(0));
    soon("the delete", container.delete_forced()).await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_a_process_whose_shim_is_stopped() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // Its output goes past the shim.
    let path = scratch.path().join("out");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut out = BufReader::new(OpenOptions::new().open_receiver(&path).unwrap()).lines();
    let stdio = Stdio::new().stdout_fifo(&path);
    let container = supervisor.run(scratch.script(TALKS).stdio(stdio)).await.unwrap();
    assert_eq!(soon("a line", out.next_line()).await.unwrap().unwrap(), "ready");
    let shim = shim_of(&scratch.root(), container.id().as_str(), "init");
    shim.signal(Signal::SIGSTOP);
    shim.reaches('T').await;
    container.signal(SIGUSR1).unwrap();
    assert_eq!(soon("a line", out.next_line()).await.unwrap().unwrap(), "usr1");
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    container.signal(SIGTERM).unwrap();
    process.ended().await;
    shim.signal(Signal::SIGCONT);
    assert_eq!(status(&container).await, ExitStatus::Code(42));
    scratch.close(supervisor).await;
}

/// A number as the seed's readers find it.
fn status_file(holdfast: &Holdfast, id: &str) -> String {
    fs::read_to_string(holdfast.root().join(id).join("init/exitStatus")).expect("a status")
}

#[tokio::test]
async fn by_the_policy_kill_an_orphan_is_137_and_what_nobody_saw_is_255() {
    let mut holdfast = Holdfast::start().await;
    let mut all = BTreeMap::new();
    let gates = ["live", "later", "gone", "other", "adopted"]
        .map(|name| (name, unique_id(name).to_string(), holdfast.scratch.gate()));
    for (name, id, gate) in &gates {
        let policy = if *name == "adopted" { "adopt" } else { "kill" };
        // Whatever else is tested in a group: here each is to lose its shim by itself.
        let group: &[&str] = if shim_group().is_some() { &["--shim-group", id] } else { &[] };
        let options = [&["--name", id, "--on-orphan", policy], group].concat();
        holdfast.run_detached(&options, &["sh", "-c", &gate.script("echo ready")]).await;
        holdfast.said(id, "ready").await;
        let pid = holdfast.inspect(id).await["pid"].as_i64().unwrap().try_into().unwrap();
        let shim = shim_of(&holdfast.root(), id, "init");
        all.insert(*name, (id.as_str(), shim, Proc::of(pid).unwrap(), gate));
    }
    // While the daemon watches.
    let (id, shim, process, _) = &all["live"];
    shim.signal(Signal::SIGKILL);
    assert_eq!(holdfast.ok(&["wait", id]).await, "137\n");
    assert_eq!(holdfast.inspect(id).await["exitStatus"], 137);
    assert_eq!(status_file(&holdfast, id), "137");
    assert!(!process.lives());
    // While it does not.
    holdfast.kill_daemon().await;
    for name in ["later", "gone", "other", "adopted"] {
        all[name].1.signal(Signal::SIGKILL);
        all[name].1.ended().await;
    }
    // As long as it is a zombie, its status can be known.
    for name in ["other", "gone"] {
        all[name].2.signal(Signal::SIGKILL);
        all[name].2.gone().await;
    }
    let mut stranger = std::process::Command::new("sleep").arg("100000").spawn().unwrap();
    let other = holdfast.root().join(all["other"].0).join("init/pid");
    fs::write(other, stranger.id().to_string()).unwrap();
    assert!(all["later"].2.lives(), "there was nobody to kill it");
    holdfast.start_daemon().await;

    for (name, number, text) in [
        ("later", 137, "137\n"),
        ("gone", 255, "unknown: exited while shim and daemon were dead\n"),
        ("other", 255, "unknown: exited while shim and daemon were dead\n"),
    ] {
        let (id, _, process, _) = &all[name];
        assert_eq!(holdfast.ok(&["wait", id]).await, text, "{name}");
        assert_eq!(holdfast.inspect(id).await["exitStatus"], number, "{name}");
        assert_eq!(status_file(&holdfast, id), number.to_string(), "{name}");
        assert!(!process.lives(), "{name}");
    }
    assert!(stranger.try_wait().unwrap().is_none(), "another's process was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let (id, _, process, gate) = &all["adopted"];
    assert!(process.lives());
    assert_eq!(holdfast.inspect(id).await["status"], "running");
    gate.open(6);
    assert_eq!(holdfast.ok(&["wait", id]).await, "6\n");
    holdfast.close().await;
}

/// A shim that leaves these logs and fails.
fn shim_that_leaves(scratch: &Scratch, own: &str, runtime: Option<&str>) {
    let dir = scratch.path().join("logs");
    fs::create_dir_all(&dir).expect("make a directory");
    fs::write(dir.join("own"), own).expect("write a log");
    let _ = fs::remove_file(dir.join("runtime"));
    if let Some(runtime) = runtime {
        fs::write(dir.join("runtime"), runtime).expect("write a log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_start_is_explained_by_the_first_error_in_the_logs_however_they_look() {
    let scratch = Scratch::new();
    let shim = scratch.path().join("failing-shim");
    let logs = scratch.path().join("logs");
    let script = format!(
        "#!/bin/sh\n[ $1 != --version ] || {{ echo its protocol 4; exit; }}\ncat {0}/own >&2\n[ ! -e {0}/runtime ] || cp {0}/runtime \"$2/log.json\"\nexit 1\n",
        logs.display()
    );
    executable::script(&shim, &script);
    let supervisor = scratch.builder().shim(&shim).shim_group(None).open();
    let supervisor = soon("the supervisor", supervisor).await.unwrap();
    let whole = "{\"level\":\"error\",\"msg\":\"whole\"}\n";
    let runtime = "{\"level\":\"info\",\"msg\":\"i\"}\n{\"level\":\"error\",\"msg\":\"said no\"}\n";
    let none = "container not started: the shim exited before the process was there";
    let warning = "{\"level\":\"warning\",\"msg\":\"w\"}\n";
    let cases: [(&str, String, Option<String>, &str); 9] = [
        ("the shim's", whole.into(), None, "shim error: whole"),
        ("both", whole.into(), Some(runtime.into()), "shim error: whole"),
        ("the runtime's", warning.into(), Some(runtime.into()), "oci runtime error: said no"),
        ("cut short", format!("{whole}{{\"level\":\"er"), None, "shim error: whole"),
        (
            "cut short alone",
            "{\"level\":\"error\",\"msg\":\"ha".into(),
            Some(runtime.into()),
            "oci runtime error: said no",
        ),
        (
            "others between",
            format!("time=now level=info\n\n\x00\u{fffd}{{}}\n{whole}"),
            None,
            "shim error: whole",
        ),
        (
            "without line feeds, as the seed wrote",
            "{\"level\": \"warn\",\"msg\": \"w\"}{\"level\": \"error\",\"msg\": \"open IO\"}"
                .into(),
            None,
            "shim error: open IO",
        ),
        ("nothing", String::new(), None, none),
        ("no error", warning.into(), Some(warning.into()), none),
    ];
    for (what, own, runtime, expected) in cases {
        shim_that_leaves(&scratch, &own, runtime.as_deref());
        let error = soon("the start", supervisor.run(scratch.script("true"))).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "{what}");
        assert_eq!(scratch.leftovers(), [""; 0], "{what}");
    }
    scratch.close(supervisor).await;
}

/// Kills a shim while its runtime hangs, and checks what is told of that start.
async fn shim_killed_during_the_start(scratch: &Scratch) -> Supervisor {
    let trace = scratch.path().join("trace");
    edit_json(&scratch.bundle().join("config.json"), |config| {
        config["annotations"] = json!({ "fake": "hang-in-create", "fake-trace": trace });
    });
    let supervisor = scratch.open().await;
    let id = unique_id("killed");
    let runtime = binary("fake-runtime").into_os_string().into_string().expect("UTF-8");
    let options = scratch.script("true").id(id.clone()).runtime(runtime);
    let start = tokio::spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.run(options).await }
    });
    eventually("the runtime hangs", || trace.exists()).await;
    shim_of(&scratch.root(), id.as_str(), "init").signal(Signal::SIGKILL);
    let started = soon("the start", start).await.expect("no panic");
    let error = started.expect_err("there is no process");
    assert!(matches!(error, Error::NotStarted(_)), "{error}");
    assert!(matches!(supervisor.get(&id), Err(Error::NotFound(_))));
    supervisor
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_during_the_start_is_told() {
    let scratch = Scratch::new();
    let supervisor = shim_killed_during_the_start(&scratch).await;
    // The runtime dies with its shim; what it has started in a session of its own does not.
    let left = mentioning(scratch.path());
    assert!(left.iter().all(|process| !process.command().contains(" --bundle ")), "{left:?}");
    for process in left {
        process.signal(Signal::SIGKILL);
        process.ended().await;
    }
    scratch.close(supervisor).await;
}

/// What was told of each process of a container, in words; nobody else has numbers between.
fn told(events: &[Event]) -> BTreeMap<String, Vec<String>> {
    let first = events[0].seq;
    assert!((first..).zip(events).all(|(seq, event)| event.seq == seq), "{events:?}");
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for event in events {
        let words = in_words(event);
        let (process, what) = words.split_once(' ').expect("two words");
        all.entry(process.to_owned()).or_default().push(what.to_owned());
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_before_anyone_looks_has_its_status_and_its_events_in_order() {
    const EXECS: usize = 60;
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let ended = |event: &Event| matches!(event.kind, EventKind::Exited { .. });
    for _ in 0..15 {
        let run = supervisor.run(scratch.options(["true"])).await.unwrap();
        assert_eq!(status(&run).await, ExitStatus::Code(0));
        let of_run = told(&events_until(&mut events, ended).await);
        assert_eq!(of_run["init"], ["created", "started", "exited 0"]);
        let created = supervisor.create(scratch.options(["false"])).await.unwrap();
        created.start().await.unwrap();
        assert_eq!(status(&created).await, ExitStatus::Code(1));
        let of_created = told(&events_until(&mut events, ended).await);
        assert_eq!(of_created["init"], ["created", "starting", "started", "exited 1"]);
    }
    let container = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..EXECS {
        let exec = container.exec(ExecOptions::new(["true"])).await.unwrap();
        assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(0));
        assert_eq!(exec.pid(), None);
        ids.push(exec.id().to_string());
    }
    assert_eq!(container.info().status, Status::Running);
    let mut left = EXECS;
    let all = events_until(&mut events, |event| {
        left -= usize::from(ended(event));
        left == 0
    });
    let all = told(&all.await);
    assert_eq!(all.len(), EXECS + 1);
    for id in ids {
        assert_eq!(all[&id], ["created", "started", "exited 0"], "{id}");
    }
    scratch.close(supervisor).await;
}

/// Not even as a zombie: nobody who is told of the exit meets its pid.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_is_told_when_its_process_is_gone() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for _ in 0..30 {
        let gate = scratch.gate();
        let container = supervisor.run(scratch.script(&gate.script("true"))).await.unwrap();
        let pid = container.info().pid.expect("it runs");
        gate.open(0);
        assert_eq!(status(&container).await, ExitStatus::Code(0));
        let sent = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
        assert_eq!(sent, Err(nix::errno::Errno::ESRCH));
        container.delete().await.unwrap();
    }
    scratch.close(supervisor).await;
}
