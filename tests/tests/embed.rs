//! The examples of services that host containers themselves, run as their users would run them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use holdfast_supervisor::TerminalSize;
use holdfast_tests::runtime::in_path;
use holdfast_tests::{Holdfast, Proc, Pty, Running, binary, eventually, ran, runtime};
use nix::sys::signal::Signal;
use tokio::process::Command;

/// An example, still to be run. Dropped, it is killed.
fn example(name: &str, root: &Path, args: &[&str]) -> Command {
    example_with_tools(None, name, root, args)
}

/// The same, with further programs in its `PATH`.
fn example_with_tools(tools: Option<&Path>, name: &str, root: &Path, args: &[&str]) -> Command {
    // It takes what `auto` finds: the runtime under test, else Holdfast's own.
    let own = binary("holdfast");
    let own = [runtime(), &own].map(|program| program.parent().expect("a file's directory"));
    let path = std::env::join_paths(own.into_iter().chain(tools)).expect("a PATH");
    // By `env`, which becomes the example: of a command for a terminal only the arguments count.
    let mut command = Command::new("env");
    command.arg(format!("PATH={}", path.display())).arg(binary(&format!("examples/{name}")));
    command.arg(root).args(args).kill_on_drop(true);
    command
}

fn begin(name: &str, root: &Path, args: &[&str]) -> Running {
    Running::of(example(name, root, args))
}

/// The first process of a container, once it has one.
async fn init(root: &Path, id: &str) -> Proc {
    let path = root.join(id).join("init/pid");
    let find = || Proc::of(fs::read_to_string(&path).ok()?.trim().parse().ok()?);
    eventually("the pid of a container", || find().is_some()).await;
    find().expect("a container that runs")
}

/// Waits until so many runs of a container have their trap, which they say. Before that they do not end
/// by SIGTERM, as the first process of a pid namespace.
async fn is_ready(root: &Path, id: &str, runs: usize) {
    let log = root.join(id).join("init/output.log");
    let log = || fs::read_to_string(&log).unwrap_or_default();
    let said = || log().lines().filter(|line| line.ends_with(" ready")).count();
    eventually("a script to be ready", || said() == runs).await;
}

#[tokio::test]
async fn the_embed_example_picks_its_containers_up_after_it_was_killed() {
    // The state root, and a look at what is left; the daemon here is the example.
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let mut first = begin("embed", &root, &[]);
    let line = first.line().await;
    assert!(line.starts_with("0 containers restored in "), "{line}");
    let mut begun = [first.line().await, first.line().await, first.line().await];
    begun.sort();
    assert_eq!(begun, ["failing: started", "quick: started", "slow: started"]);
    // They are, once that is in the journal.
    let started = |id: &str| holdfast_tests::journal::has(&root, id, "started");
    eventually("all three to run", || ["slow", "failing"].into_iter().all(started)).await;
    let end = holdfast.end_of_shim("failing");
    // Its five seconds could be over before the other's two.
    let failing = init(&root, "failing").await;
    failing.signal(Signal::SIGSTOP);
    assert_eq!(first.line().await, "quick: ended with 0 (known by Shim)");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().await.code, None);
    // It ends with nobody there but its shim.
    failing.signal(Signal::SIGCONT);
    end.come().await;

    let mut second = begin("embed", &root, &[]);
    let mut said = Vec::new();
    while let Some(line) = second.next_line().await {
        said.push(line);
    }
    let ended = second.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{said:?}");
    // The quick one was being deleted when the first was killed: it may be found or be made anew.
    let restored = &said[0];
    let two_or_three = restored.starts_with("2 containers") || restored.starts_with("3 containers");
    assert!(two_or_three && restored.contains(" restored in "), "{said:?}");
    for line in [
        "failing: picked up, stopped",
        "failing: ended with 42 (known by Shim)",
        "slow: picked up, running",
        "slow: ended with 3 (known by Shim)",
        "quick: ended with 0 (known by Shim)",
    ] {
        assert!(said.iter().any(|said| said == line), "{line:?} is not in {said:#?}");
    }
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

/// Writes a job of these steps, and returns its path.
fn job(holdfast: &Holdfast, name: &str, steps: &[&str]) -> String {
    let path = holdfast.scratch.path().join(name);
    fs::write(&path, steps.join("\n")).expect("write a job");
    path.into_os_string().into_string().expect("a path in UTF-8")
}

/// What a runner said, without how long each step took.
fn without_times(stdout: &str) -> Vec<&str> {
    stdout
        .lines()
        .map(|line| match line.rsplit_once(", ") {
            Some((before, _)) if line.starts_with("step ") && line.ends_with('s') => before,
            _ => line,
        })
        .collect()
}

#[tokio::test]
async fn the_ci_runner_ends_with_the_first_step_that_fails() {
    let holdfast = Holdfast::without_daemon();
    let steps = ["echo made > file; echo one", "", "cat file; echo bad >&2; exit 7", "echo three"];
    let job = job(&holdfast, "job", &steps);
    let ended = ran(example("ci_runner", &holdfast.root(), &[&job])).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(7), ""), "{ended:?}");
    let mut said = without_times(&ended.stdout);
    // There is no order between the two streams of a step.
    said[4..6].sort_unstable();
    let expected = [
        "step 1: echo made > file; echo one",
        "1 out: one",
        "step 1: exit 0",
        "step 2: cat file; echo bad >&2; exit 7",
        "2 err: bad",
        "2 out: made",
        "step 2: exit 7",
    ];
    assert_eq!(said, expected);
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_ci_runner_tells_of_a_step_that_takes_too_long_or_too_much_memory() {
    let holdfast = Holdfast::without_daemon();
    let slow = job(&holdfast, "slow", &["trap 'exit 0' TERM; while true; do sleep 0.1; done"]);
    let ended = ran(example("ci_runner", &holdfast.root(), &[&slow, "1"])).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(124), ""), "{ended:?}");
    assert!(ended.stdout.contains(", stopped: over the time limit, "), "{ended:?}");

    let large = job(&holdfast, "large", &["head -c 1000m /dev/zero | tail"]);
    let ended = ran(example("ci_runner", &holdfast.root(), &[&large])).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(137), ""), "{ended:?}");
    assert!(ended.stdout.contains("step 1: exit 137, out of memory, "), "{ended:?}");
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_ci_runner_deletes_what_one_that_was_killed_has_left() {
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let endless = job(&holdfast, "endless", &["echo begun; sleep 100000"]);
    let mut killed = begin("ci_runner", &root, &[&endless]);
    while killed.line().await != "1 out: begun" {}
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.end().await.code, None);

    let job = job(&holdfast, "job", &["true"]);
    let ended = ran(example("ci_runner", &root, &[&job])).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stdout.starts_with("left over, deleted: "), "{ended:?}");
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

#[tokio::test]
async fn the_services_of_the_manager_run_on_when_it_is_killed_and_again_when_they_are() {
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let mut first = begin("service_manager", &root, &[]);
    for line in [
        "database: run 1 started",
        "web: run 1 started",
        "mailer: run 1 started",
        "mailer: exited with 3, again in 100ms",
        "mailer: run 2 started",
    ] {
        assert_eq!(first.line().await, line);
    }
    let (database, web) = (init(&root, "database").await, init(&root, "web").await);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().await.code, None);
    assert!(database.lives() && web.lives());

    let mut second = begin("service_manager", &root, &[]);
    assert_eq!(second.line().await, "database: picked up in run 1, running");
    assert_eq!(second.line().await, "web: picked up in run 1, running");
    let line = second.line().await;
    assert!(line.starts_with("mailer: picked up in run "), "{line}");
    assert_eq!(init(&root, "database").await, database);
    assert_eq!(init(&root, "web").await, web);
    is_ready(&root, "web", 1).await;
    web.signal(Signal::SIGKILL);
    while second.line().await != "web: exited with 137 (signal 9), again in 100ms" {}
    while second.line().await != "web: run 2 started" {}
    let again = init(&root, "web").await;
    assert_ne!(again, web);
    assert_eq!(init(&root, "database").await, database);

    is_ready(&root, "database", 1).await;
    is_ready(&root, "web", 2).await;
    second.signal(Signal::SIGTERM);
    let ended = second.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    let stopped: Vec<_> = ended.stdout.lines().filter(|line| line.contains("stopped")).collect();
    let expected = ["mailer: stopped, exit 3", "web: stopped, exit 0", "database: stopped, exit 0"];
    assert_eq!(stopped, expected);
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

/// Starts an exporter, and returns it with its address.
async fn exporter(root: &Path) -> (Running, String) {
    let mut exporter = begin("exporter", root, &["127.0.0.1:0"]);
    let line = exporter.line().await;
    let address = line.strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics"));
    let address = address.unwrap_or_else(|| panic!("no address: {line}")).to_owned();
    (exporter, address)
}

/// The samples that an exporter serves.
fn metrics(address: &str) -> BTreeMap<String, f64> {
    let mut server = TcpStream::connect(address).expect("connect to the exporter");
    server.write_all(b"GET /metrics HTTP/1.1\r\nHost: exporter\r\n\r\n").expect("send a request");
    let mut answer = String::new();
    server.read_to_string(&mut answer).expect("read an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let samples = text.lines().filter(|line| !line.starts_with("# TYPE "));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse().expect("a number"))
    };
    samples.map(sample).collect()
}

/// The containers of a state root.
fn containers(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

/// The one container of an exporter, and its first process.
async fn demo(root: &Path) -> (String, Proc) {
    eventually("one container", || containers(root).len() == 1).await;
    let id = containers(root).remove(0);
    let init = init(root, &id).await;
    (id, init)
}

#[tokio::test]
async fn the_exporter_counts_each_exit_once_though_it_is_killed() {
    const RUNNING: &str = "holdfast_containers{status=\"running\"}";
    const IN_ORDER: &str = "holdfast_exits_total{status=\"0\"}";
    const KILLED: &str = "holdfast_exits_total{status=\"137 (signal 9)\"}";
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();

    let (first, address) = exporter(&root).await;
    let (id, process) = demo(&root).await;
    let before = metrics(&address);
    assert_eq!(before[RUNNING], 1.0);
    assert_eq!(before[&format!("holdfast_runs_total{{id=\"{id}\"}}")], 1.0);
    assert!(before[&format!("holdfast_cpu_seconds_total{{id=\"{id}\"}}")] > 0.0);
    assert!(before[&format!("holdfast_memory_working_set_bytes{{id=\"{id}\"}}")] > 0.0);
    assert_eq!(before[&format!("holdfast_oom_kills_total{{id=\"{id}\"}}")], 0.0);
    assert!(!before.contains_key(IN_ORDER), "{before:?}");
    is_ready(&root, &id, 1).await;
    process.signal(Signal::SIGTERM);
    eventually("an exit to be counted", || metrics(&address).contains_key(IN_ORDER)).await;
    // Whoever hears of an event finds the new state.
    assert_eq!(metrics(&address)[RUNNING], 0.0);
    assert_eq!(metrics(&address)[IN_ORDER], 1.0);
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().await.code, None);

    // This one is killed before its container is.
    let (second, address) = exporter(&root).await;
    let (id, process) = demo(&root).await;
    assert_eq!(metrics(&address)[IN_ORDER], 1.0);
    second.signal(Signal::SIGKILL);
    assert_eq!(second.end().await.code, None);
    let end = holdfast.end_of_shim(&id);
    process.signal(Signal::SIGKILL);
    end.come().await;

    // Exits are counted in their order, so the first one would have been counted again by now.
    let (third, address) = exporter(&root).await;
    eventually("the other exit to be counted", || metrics(&address).contains_key(KILLED)).await;
    let after = metrics(&address);
    assert_eq!((after[IN_ORDER], after[KILLED]), (1.0, 1.0));
    let (_, process) = demo(&root).await;
    process.signal(Signal::SIGKILL);
    eventually("the last exit to be counted", || metrics(&address)[KILLED] == 2.0).await;
    eventually("the container to be deleted", || containers(&root).is_empty()).await;
    third.signal(Signal::SIGTERM);
    let ended = third.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

/// Runs the example with this as its standard input.
async fn typed(root: &Path, input: &str, args: &[&str]) -> (Option<i32>, String) {
    let (reader, mut writer) = std::io::pipe().expect("make a pipe");
    writer.write_all(input.as_bytes()).expect("write to a pipe");
    drop(writer);
    let mut command = example("terminal", root, args);
    command.stdin(reader);
    let ended = ran(command).await;
    assert_eq!(ended.stderr, "");
    (ended.code, ended.stdout)
}

#[tokio::test]
async fn the_terminal_has_its_input_from_a_pipe_and_passes_the_exit_code_on() {
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let script = "read -r word; echo got $word; test -t 0 && stty size; exit 6";
    let shown = typed(&root, "hello\n", &["sh", "-c", script]).await;
    assert_eq!(shown, (Some(6), "hello\r\ngot hello\r\n24 80\r\n".to_owned()));
    // The example does not wait for the end of the shim.
    holdfast.nothing_left().await;
    // The end of the input is that of the terminal.
    assert_eq!(typed(&root, "a\n", &["cat"]).await, (Some(0), "a\r\na\r\n".to_owned()));
    let (code, shown) = typed(&root, "echo $((6 * 7)); exit 5\n", &[]).await;
    assert!(code == Some(5) && shown.contains("42\r\n"), "{code:?} {shown:?}");
    // One that ends at once.
    for _ in 0..10 {
        assert_eq!(typed(&root, "", &["true"]).await, (Some(0), String::new()));
        holdfast.nothing_left().await;
    }
}

#[tokio::test]
async fn the_terminal_has_the_keys_and_the_size_of_a_real_one() {
    let holdfast = Holdfast::without_daemon();
    // It asks stty for the size. Not in the directory of the test: a process whose environment
    // has that counts as left over.
    let tools = tempfile::tempdir().expect("make a directory");
    symlink(in_path("stty").expect("stty is in PATH"), tools.path().join("stty")).expect("a link");
    let script = "sleep 100000 & trap 'echo size $(stty size); kill $!' WINCH; stty size; \
                  wait; read -r word; exit $word";
    let args = ["sh", "-c", script];
    let command = example_with_tools(Some(tools.path()), "terminal", &holdfast.root(), &args);
    let mut pty = Pty::start(&command, TerminalSize { width: 101, height: 33 });
    assert_eq!(pty.shows("33 101\r\n").await, "");
    assert!(pty.is_raw());
    pty.resize(TerminalSize { width: 77, height: 22 });
    assert_eq!(pty.shows("size 22 77\r\n").await, "");
    pty.types("41\r");
    assert_eq!(pty.end().await, (Some(41), "41\r\n".to_owned()));
    holdfast.nothing_left().await;
}

#[test]
fn the_examples_are_short() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/supervisor/examples");
    let mut found = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        let most = if path.ends_with("embed.rs") { 60 } else { 120 };
        assert!(lines < most, "{}: {lines} lines", path.display());
        found += 1;
    }
    assert_eq!(found, 5);
}
