//! Side by side: what containerd and its users see of the runtime that containerd comes with, and of
//! Holdfast's. Each behaviour is a test with either.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use holdfast_supervisor::TerminalSize;
use holdfast_tests::containerd::{Containerd, Event, HOLDFAST, succeeded};
use holdfast_tests::{Proc, Pty, Ran, eventually, executable, ran, side_by_side, soon, tests_with};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

side_by_side! {
    a_container_ends_with_its_exit_code_and_has_both_streams,
    a_program_that_is_not_there_is_named_and_leaves_nothing,
    a_signal_is_128_and_its_number,
    a_signal_that_the_program_handles_is_up_to_it,
    a_signal_after_the_end_finds_no_process,
    a_detached_container_is_listed_with_its_processes,
    an_exec_has_a_status_and_streams_of_its_own,
    an_exec_that_a_signal_ends_is_128_and_its_number,
    an_exec_of_a_program_that_is_not_there_is_refused_and_can_be_tried_again,
    an_exec_is_killed_and_deleted_by_its_id,
    input_reaches_a_container_and_an_exec_and_ends,
    eight_mebibytes_at_once_are_complete,
    an_exec_ends_while_a_child_of_it_keeps_the_output_open,
    an_attached_client_reads_what_was_written_before_and_writes,
    a_signal_to_all_reaches_every_process,
    a_paused_container_stands_still,
    metrics_have_processes_memory_and_processor_time,
    events_come_in_the_order_of_the_life_of_a_container_and_an_exec,
    a_log_file_has_both_streams_of_all_tasks,
    a_log_program_reads_both_streams_and_ends_after_them,
    no_output_is_wanted_and_none_is_read,
    a_terminal_is_one_for_a_container,
    a_terminal_is_one_for_an_exec,
    a_running_task_is_deleted_by_force_alone,
    a_container_has_a_second_task,
    a_container_has_a_directory_as_its_root,
    containers_of_a_pod_share_a_shim_and_nothing_else,
    a_container_outlives_containerd,
    a_container_that_ends_without_containerd_keeps_its_status,
    an_exec_outlives_containerd,
    running_out_of_memory_is_an_event,
    a_container_has_a_user_namespace,
    a_bundle_has_the_pid_of_its_container,
    what_a_container_leaves_in_a_shared_pid_namespace_is_killed,
}

tests_with! {
    holdfast_alone, super::HOLDFAST,
    a_log_file_is_complete_when_its_task_is_deleted,
    containers_and_execs_outlive_the_supervisor,
    what_ends_as_its_front_is_killed_keeps_its_status,
}

const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };
const OTHER: TerminalSize = TerminalSize { width: 77, height: 22 };

async fn with(runtime: &'static str, behaviour: impl AsyncFnOnce(&mut Containerd)) {
    if let Some(mut containerd) = Containerd::start(runtime).await {
        behaviour(&mut containerd).await;
        containerd.close().await;
    }
}

fn came_to(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran { code: Some(code), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

/// `ctr run` in the foreground, of a shell's script.
fn script(containerd: &Containerd, id: &str, script: &str) -> Command {
    containerd.run(&["--rm"], id, &["sh", "-c", script])
}

async fn a_container_ends_with_its_exit_code_and_has_both_streams(containerd: &mut Containerd) {
    let ends = async |text: &str| ran(script(containerd, "a", text)).await;
    assert_eq!(ends("echo out; echo err >&2").await, came_to(0, "out\n", "err\n"));
    assert_eq!(ends("echo out; exit 7").await, came_to(7, "out\n", ""));
    assert_eq!(ends("exit 255").await, came_to(255, "", ""));
}

/// Where other programs look for it.
async fn a_bundle_has_the_pid_of_its_container(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let pid = containerd.task("a").await.expect("a task").pid;
    let stored = fs::read_to_string(containerd.bundle("a").join("init.pid"));
    assert_eq!(stored.expect("init.pid"), pid.to_string());
    containerd.done(&["task", "kill", "--signal", "KILL", "a"]).await;
    assert_eq!(containerd.ended("a").await, 137);
}

async fn a_program_that_is_not_there_is_named_and_leaves_nothing(containerd: &mut Containerd) {
    let ran = ran(containerd.run(&["--rm"], "a", &["/no/such"])).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let why = "OCI runtime create failed";
    assert!(ran.stderr.contains(why) && ran.stderr.contains("/no/such"), "{ran:?}");
    assert_eq!(containerd.task("a").await, None);
}

async fn a_signal_is_128_and_its_number(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    containerd.done(&["task", "kill", "--signal", "KILL", "a"]).await;
    assert_eq!(containerd.ended("a").await, 137);
    // The first process of a pid namespace ignores a signal that it has no handler for.
    let script = "trap 'exit 3' USR1; : > /share/ready; sleep 100000 & wait";
    containerd.run_detached("b", script).await;
    // runc, which it is at first, has one.
    let ready = containerd.share().join("ready");
    eventually("the script to run", || ready.exists()).await;
    containerd.done(&["task", "kill", "--signal", "TERM", "b"]).await;
    containerd.done(&["task", "exec", "--exec-id", "e", "b", "true"]).await;
    assert_eq!(containerd.task("b").await.expect("a task").status, "RUNNING");
    containerd.done(&["task", "kill", "--signal", "9", "b"]).await;
    assert_eq!(containerd.ended("b").await, 137);
}

async fn a_signal_that_the_program_handles_is_up_to_it(containerd: &mut Containerd) {
    let handles = "trap 'echo caught; exit 3' TERM; echo ready; sleep 100000 & wait";
    let mut client = Client::start(script(containerd, "a", handles));
    client.says("ready").await;
    containerd.done(&["task", "kill", "a"]).await;
    client.says("caught").await;
    assert_eq!(client.end().await, Some(3));
}

async fn a_signal_after_the_end_finds_no_process(containerd: &mut Containerd) {
    containerd.run_detached("a", "exit 4").await;
    containerd.reaches("a", "STOPPED").await;
    let ran = ran(containerd.ctr(&["task", "kill", "a"])).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("not found"), "{ran:?}");
    assert_eq!(containerd.ended("a").await, 4);
}

async fn a_detached_container_is_listed_with_its_processes(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000 & : > /share/ready; wait").await;
    let ready = containerd.share().join("ready");
    eventually("both processes", || ready.exists()).await;
    let task = containerd.task("a").await.expect("a task");
    assert_eq!(task.status, "RUNNING");
    succeeded(ran(containerd.exec(&["--detach"], "a", "e", &["sleep", "100000"])).await);
    let processes = containerd.processes("a").await;
    let named: Vec<_> = processes.iter().filter(|(_, exec)| exec.is_some()).collect();
    assert_eq!(processes.len(), 3, "{processes:?}");
    assert!(processes.contains(&(task.pid, None)), "{processes:?}");
    assert_eq!(named.len(), 1, "{processes:?}");
    assert_eq!(named[0].1.as_deref(), Some("e"));
    for (pid, _) in processes {
        // Containerd's own shim has started a process before its program runs.
        let sleeps = || Proc::of(pid).is_some_and(|it| it.command().contains("sleep 100000"));
        eventually("the program to run", sleeps).await;
    }
    containerd.remove("a").await;
}

async fn an_exec_has_a_status_and_streams_of_its_own(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let exec = ["sh", "-c", "echo out; echo err >&2; exit 3"];
    let ran = ran(containerd.exec(&[], "a", "e", &exec)).await;
    assert_eq!(ran, came_to(3, "out\n", "err\n"));
    assert_eq!(containerd.task("a").await.expect("a task").status, "RUNNING");
    containerd.remove("a").await;
}

async fn an_exec_that_a_signal_ends_is_128_and_its_number(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let ends = async |exec: &str| {
        ran(containerd.exec(&[], "a", "e", &["sh", "-c", exec])).await.code.expect("a code")
    };
    assert_eq!(ends("kill -KILL $$").await, 137);
    assert_eq!(ends("kill -TERM $$").await, 143);
    containerd.remove("a").await;
}

async fn an_exec_of_a_program_that_is_not_there_is_refused_and_can_be_tried_again(
    containerd: &mut Containerd,
) {
    containerd.run_detached("a", "sleep 100000").await;
    let refused = ran(containerd.exec(&[], "a", "e", &["/no/such"])).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let why = "OCI runtime exec failed";
    assert!(refused.stderr.contains(why) && refused.stderr.contains("/no/such"), "{refused:?}");
    let ran = ran(containerd.exec(&[], "a", "e", &["echo", "here"])).await;
    assert_eq!(ran, came_to(0, "here\n", ""));
    containerd.remove("a").await;
}

async fn an_exec_is_killed_and_deleted_by_its_id(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let mut events = containerd.events().await;
    succeeded(ran(containerd.exec(&["--detach"], "a", "e", &["sleep", "100000"])).await);
    containerd.done(&["task", "kill", "--exec-id", "e", "--signal", "KILL", "a"]).await;
    let exit = events.until("/tasks/exit", "e").await.pop().expect("an event");
    assert_eq!(exit.exit_code(), 137);
    let ran = ran(containerd.ctr(&["task", "delete", "--exec-id", "e", "a"])).await;
    assert_eq!(ran.code, Some(137), "{ran:?}");
    assert_eq!(containerd.processes("a").await.len(), 1);
    containerd.remove("a").await;
}

async fn input_reaches_a_container_and_an_exec_and_ends(containerd: &mut Containerd) {
    let counts = ["sh", "-c", "cat | wc -c; exit 5"];
    let input = vec![b'x'; 1 << 20];
    let fed = feed(containerd.run(&["--rm"], "a", &counts), input.clone()).await;
    assert_eq!(fed, came_to(5, "1048576\n", ""));
    containerd.run_detached("b", "sleep 100000").await;
    let fed = feed(containerd.exec(&[], "b", "e", &counts), input).await;
    assert_eq!(fed, came_to(5, "1048576\n", ""));
    containerd.remove("b").await;
}

/// Runs a command with an input, which ends.
async fn feed(mut command: Command, input: Vec<u8>) -> Ran {
    let mut client = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start ctr");
    let mut stdin = client.stdin.take().expect("a piped input");
    let writing = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = soon("the end of a command", client.wait_with_output()).await.expect("wait");
    writing.await.expect("the writer goes on").expect("write the input");
    let text = |bytes| String::from_utf8(bytes).expect("output in UTF-8");
    Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Makes a file of 8 MiB, says its checksum on standard error, and writes it at once before it ends.
const BURST: &str = "head -c 8388608 /dev/urandom > /burst; sha256sum < /burst >&2; cat /burst";

async fn eight_mebibytes_at_once_are_complete(containerd: &mut Containerd) {
    is_complete(script(containerd, "a", BURST)).await;
    containerd.run_detached("b", "sleep 100000").await;
    is_complete(containerd.exec(&[], "b", "e", &["sh", "-c", BURST])).await;
    containerd.remove("b").await;
}

async fn is_complete(mut command: Command) {
    let output = soon("a burst", command.output()).await.expect("run ctr");
    assert_eq!(output.stdout.len(), 8 << 20);
    let mut sum = Command::new("sha256sum");
    sum.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut sum = sum.spawn().expect("start sha256sum");
    let mut stdin = sum.stdin.take().expect("a piped input");
    stdin.write_all(&output.stdout).await.expect("write to sha256sum");
    drop(stdin);
    let sum = sum.wait_with_output().await.expect("wait for sha256sum").stdout;
    assert_eq!(String::from_utf8_lossy(&sum), String::from_utf8_lossy(&output.stderr));
}

async fn an_exec_ends_while_a_child_of_it_keeps_the_output_open(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let exec = containerd.exec(&[], "a", "e", &["sh", "-c", "sleep 100000 & echo done; exit 6"]);
    assert_eq!(ran(exec).await, came_to(6, "done\n", ""));
    assert_eq!(containerd.processes("a").await.len(), 2, "the child goes on");
    containerd.remove("a").await;
}

async fn an_attached_client_reads_what_was_written_before_and_writes(containerd: &mut Containerd) {
    let gate = containerd.gate();
    let echoes = "while read -r word; do echo got $word; done";
    // What is written before the first client has ended may be that one's.
    let text = format!("{}; echo before; touch /share/written; {echoes}", gate.wait("true"));
    containerd.run_detached("a", &text).await;
    gate.open(0);
    let written = containerd.share().join("written");
    eventually("something to be written", || written.exists()).await;
    let mut client = Client::start(containerd.ctr(&["task", "attach", "a"]));
    client.says("before").await;
    client.types("hello\n").await;
    client.says("got hello").await;
    containerd.done(&["task", "kill", "--signal", "KILL", "a"]).await;
    // It deletes the task.
    assert_eq!(client.end().await, Some(137));
    containerd.done(&["container", "delete", "a"]).await;
}

async fn a_signal_to_all_reaches_every_process(containerd: &mut Containerd) {
    let counts = "sh -c 'trap \"echo $0 >> /share/caught\" USR1; touch /share/ready-$0; \
                  while true; do sleep 0.1; done'";
    containerd
        .run_detached(
            "a",
            &format!("trap : USR1; {counts} one & {counts} two & while true; do wait; done"),
        )
        .await;
    let share = containerd.share();
    let ready = || share.join("ready-one").exists() && share.join("ready-two").exists();
    eventually("both to be ready", ready).await;
    containerd.done(&["task", "kill", "--all", "--signal", "USR1", "a"]).await;
    let caught = || {
        let caught = fs::read_to_string(share.join("caught")).unwrap_or_default();
        caught.contains("one\n") && caught.contains("two\n")
    };
    eventually("both to catch the signal", caught).await;
    containerd.done(&["task", "kill", "--all", "--signal", "KILL", "a"]).await;
    assert_eq!(containerd.ended("a").await, 137);
}

async fn a_paused_container_stands_still(containerd: &mut Containerd) {
    containerd.run_detached("a", "while true; do echo >> /share/ticks; sleep 0.01; done").await;
    let ticks = containerd.share().join("ticks");
    let length = || fs::metadata(&ticks).map_or(0, |it| it.len());
    eventually("the first tick", || length() > 0).await;
    containerd.done(&["task", "pause", "a"]).await;
    assert_eq!(containerd.task("a").await.expect("a task").status, "PAUSED");
    let before = length();
    let refused = ran(containerd.exec(&[], "a", "e", &["true"])).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(length(), before, "it stands still");
    containerd.done(&["task", "resume", "a"]).await;
    assert_eq!(containerd.task("a").await.expect("a task").status, "RUNNING");
    eventually("another tick", || length() > before).await;
    containerd.remove("a").await;
}

async fn metrics_have_processes_memory_and_processor_time(containerd: &mut Containerd) {
    let limit = (64 << 20).to_string();
    let run = containerd.run(
        &["--detach", "--memory-limit", &limit],
        "a",
        &[
            "sh",
            "-c",
            "head -c 1000000 /dev/urandom | sha256sum; sleep 100000 & : > /share/done; wait",
        ],
    );
    succeeded(ran(run).await);
    let done = containerd.share().join("done");
    eventually("some work to be done", || done.exists()).await;
    let metrics = containerd.done(&["task", "metrics", "a"]).await;
    let number = |names: [&str; 2]| {
        let line = metrics.lines().find(|line| names.iter().any(|name| line.starts_with(name)));
        let line = line.unwrap_or_else(|| panic!("{names:?} in {metrics}"));
        let number = line.split_whitespace().last().expect("a number");
        number.parse::<u64>().unwrap_or_else(|_| panic!("a number in {line:?}"))
    };
    // The names with cgroups of version 1 and 2.
    assert_eq!(number(["pids.current", "pids.current"]), 2);
    assert!(number(["memory.usage_in_bytes", "memory.usage "]) > 0);
    assert_eq!(number(["memory.limit_in_bytes", "memory.usage_limit"]), 64 << 20);
    assert!(number(["cpuacct.usage ", "cpu.usage_usec"]) > 0);
    containerd.remove("a").await;
}

fn in_words(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{} {}", event.topic, event.process())).collect()
}

async fn events_come_in_the_order_of_the_life_of_a_container_and_an_exec(
    containerd: &mut Containerd,
) {
    let mut events = containerd.events().await;
    containerd.run_detached("a", "sleep 100000").await;
    succeeded(ran(containerd.exec(&[], "a", "e", &["true"])).await);
    succeeded(ran(containerd.exec(&["--detach"], "a", "f", &["sleep", "100000"])).await);
    containerd.done(&["task", "pause", "a"]).await;
    containerd.done(&["task", "resume", "a"]).await;
    let pid = containerd.task("a").await.expect("a task").pid;
    containerd.remove("a").await;
    let events = events.until("/tasks/delete", "a").await;
    let expected = [
        "/tasks/create a",
        "/tasks/start a",
        "/tasks/exec-added e",
        "/tasks/exec-started e",
        "/tasks/exit e",
        "/tasks/exec-added f",
        "/tasks/exec-started f",
        "/tasks/paused a",
        "/tasks/resumed a",
        // The init is the last that is said to have ended, and takes the exec with it.
        "/tasks/exit f",
        "/tasks/exit a",
        "/tasks/delete a",
    ];
    assert_eq!(in_words(&events), expected);
    let of_the_container = ["/tasks/start", "/tasks/exit", "/tasks/delete"];
    for event in events {
        if event.process() == "a" && of_the_container.contains(&event.topic.as_str()) {
            assert_eq!(event.content["pid"], pid, "{event:?}");
            let code = if event.topic == "/tasks/start" { 0 } else { 137 };
            assert_eq!(event.exit_code(), code, "{event:?}");
        }
    }
}

/// Containerd's own shim may lose what was written right before the end, on a busy machine.
async fn a_log_file_has_both_streams_of_all_tasks(containerd: &mut Containerd) {
    let log = containerd.path().join("a.log");
    let uri = format!("file://{}", log.display());
    let gate = containerd.gate();
    let text = format!("echo out; echo err >&2; {}; exit 3", gate.wait("true"));
    let run = containerd.run(&["--detach", "--log-uri", &uri], "a", &["sh", "-c", &text]);
    succeeded(ran(run).await);
    let has = |wanted: &[&str]| sorted_lines(&log) == wanted;
    eventually("both streams", || has(&["err", "out"])).await;
    gate.open(0);
    containerd.reaches("a", "STOPPED").await;
    assert_eq!(containerd.delete_task(&[], "a").await, 3);
    containerd.done(&["task", "start", "--detach", "--log-uri", &uri, "a"]).await;
    eventually("both streams of both", || has(&["err", "err", "out", "out"])).await;
    gate.open(0);
    assert_eq!(containerd.ended("a").await, 3);
}

fn sorted_lines(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn a_log_file_is_complete_when_its_task_is_deleted(containerd: &mut Containerd) {
    let log = containerd.path().join("a.log");
    let uri = format!("file://{}", log.display());
    let text = "head -c 8388608 /dev/zero; echo; echo err >&2; exit 3";
    let run = containerd.run(&["--detach", "--log-uri", &uri], "a", &["sh", "-c", text]);
    succeeded(ran(run).await);
    assert_eq!(containerd.ended("a").await, 3);
    let length = fs::metadata(&log).expect("a log").len();
    assert_eq!(length, (8 << 20) + 1 + 4);
}

/// Copies both streams, and says for whom. It gets a signal to end as soon as the streams do.
const LOGGER: &str = "#!/bin/sh\n\
    trap '' TERM\n\
    dir=$(dirname \"$0\")\n\
    echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1 $2\" > \"$dir/logger.for\"\n\
    exec 5>&-\n\
    cat <&3 > \"$dir/logger.out\" & cat <&4 > \"$dir/logger.err\" &\n\
    wait\n\
    echo over > \"$dir/logger.over\"\n";

async fn a_log_program_reads_both_streams_and_ends_after_them(containerd: &mut Containerd) {
    executable::script(containerd.path().join("logger"), LOGGER);
    let uri = format!("binary://{}?key=value", containerd.path().join("logger").display());
    let gate = containerd.gate();
    let first = "head -c 200000 /dev/zero | tr '\\0' x; echo; echo err >&2";
    let run =
        containerd.run(&["--detach", "--log-uri", &uri], "a", &["sh", "-c", &gate.script(first)]);
    succeeded(ran(run).await);
    let read = |name| fs::read_to_string(containerd.path().join(name)).unwrap_or_default();
    gate.open(8);
    assert_eq!(containerd.ended("a").await, 8);
    let x = "x".repeat(200_000);
    assert_eq!(read("logger.out"), format!("{x}\nafter\n"));
    assert_eq!(read("logger.err"), "err\n");
    assert_eq!(read("logger.over"), "over\n");
    let whom = read("logger.for");
    assert!(whom.ends_with(" a key value\n"), "{whom:?}");
}

async fn no_output_is_wanted_and_none_is_read(containerd: &mut Containerd) {
    let ends = ["sh", "-c", "head -c 1000000 /dev/zero; cat; exit 2"];
    let run = ran(containerd.run(&["--rm", "--null-io"], "a", &ends)).await;
    assert_eq!(run, came_to(2, "", ""));
}

/// Says its size at each change, and reads lines: numbers, and `end`, at which it exits with the last number.
/// A `read` without a time misses a signal that comes just before it waits for input.
const DIALOG: &str = "trap 'echo size $(stty size)' WINCH; \
                      test -t 0 && test -t 1 && test -t 2 && echo terminal; \
                      while true; do read -t 1 -r word || continue; echo got $word; \
                      case $word in [0-9]*) n=$word;; end) exit $n;; esac; done";

/// `ctr` leaves its own terminal to put a carriage return before each line feed, once more.
async fn dialog(mut pty: Pty) {
    pty.shows("terminal\r").await;
    pty.types("hello\r");
    let echo = pty.shows("got hello\r").await;
    assert!(echo.replace('\r', "").contains("hello\n"), "an echo by the container's: {echo:?}");
    pty.resize(OTHER);
    // `ctr` sets the size once before it listens to changes, and misses one in between.
    soon("the other size", async {
        let pause = Duration::from_millis(100);
        while tokio::time::timeout(pause, pty.shows("size 22 77\r")).await.is_err() {
            pty.signal(Signal::SIGWINCH);
        }
    })
    .await;
    pty.types("41\r");
    let echo = pty.shows("got 41\r").await.replace('\r', "");
    // The shell prints its size for each signal that it has handled.
    let rest: Vec<_> = echo.lines().filter(|line| !["", "size 22 77"].contains(line)).collect();
    assert_eq!(rest, ["41"], "{echo:?}");
    pty.types("end\r");
    // `ctr` 1.6 may end before it has copied the last lines of a terminal, whatever the shim.
    assert_eq!(pty.end().await.0, Some(41));
}

async fn a_terminal_is_one_for_a_container(containerd: &mut Containerd) {
    let run = containerd.run(&["--rm", "--tty"], "a", &["sh", "-c", DIALOG]);
    dialog(Pty::start(&run, SIZE)).await;
}

async fn a_terminal_is_one_for_an_exec(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let exec = containerd.exec(&["--tty"], "a", "e", &["sh", "-c", DIALOG]);
    dialog(Pty::start(&exec, SIZE)).await;
    containerd.remove("a").await;
}

async fn a_running_task_is_deleted_by_force_alone(containerd: &mut Containerd) {
    containerd.run_detached("a", "sleep 100000").await;
    let refused = ran(containerd.ctr(&["task", "delete", "a"])).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("failed precondition"), "{refused:?}");
    assert_eq!(containerd.task("a").await.expect("a task").status, "RUNNING");
    assert_eq!(containerd.delete_task(&["--force"], "a").await, 137);
    assert_eq!(containerd.task("a").await, None);
    containerd.done(&["container", "delete", "a"]).await;
}

async fn a_container_has_a_second_task(containerd: &mut Containerd) {
    containerd.run_detached("a", "echo >> /lines; exit $(wc -l < /lines)").await;
    for code in 1..=3 {
        containerd.reaches("a", "STOPPED").await;
        assert_eq!(containerd.delete_task(&[], "a").await, code, "its files are kept");
        assert_eq!(containerd.task("a").await, None);
        containerd.done(&["task", "start", "--detach", "a"]).await;
    }
    assert_eq!(containerd.ended("a").await, 4);
}

async fn a_container_has_a_directory_as_its_root(containerd: &mut Containerd) {
    fs::write(containerd.rootfs().join("mark"), "here\n").expect("write a file");
    let run = containerd.run_directory(&containerd.rootfs(), "a", &["/bin/cat", "/mark"]);
    assert_eq!(ran(run).await, came_to(0, "here\n", ""));
    assert!(containerd.rootfs().join("mark").exists());
}

async fn a_container_outlives_containerd(containerd: &mut Containerd) {
    let log = containerd.path().join("a.log");
    let uri = format!("file://{}", log.display());
    let gates = [containerd.gate(), containerd.gate()];
    let text = format!("{}; echo one; {}", gates[0].wait("echo zero"), gates[1].script("echo two"));
    let run = containerd.run(&["--detach", "--log-uri", &uri], "a", &["sh", "-c", &text]);
    succeeded(ran(run).await);
    let task = containerd.task("a").await;
    let said = |word: &str| fs::read_to_string(&log).is_ok_and(|text| text.contains(word));
    containerd.kill();
    gates[0].open(0);
    eventually("output while containerd is away", || said("two\n")).await;
    containerd.restart().await;
    assert_eq!(containerd.task("a").await, task);
    let mut events = containerd.events().await;
    let exec = ran(containerd.exec(&[], "a", "e", &["echo", "exec"])).await;
    assert_eq!(exec, came_to(0, "exec\n", ""));
    gates[1].open(6);
    let exit = events.until("/tasks/exit", "a").await.pop().expect("an event");
    assert_eq!(exit.exit_code(), 6);
    assert_eq!(containerd.ended("a").await, 6);
    let all = fs::read_to_string(&log).expect("read the log");
    assert_eq!(all, "zero\none\ntwo\nafter\n");
}

async fn a_container_that_ends_without_containerd_keeps_its_status(containerd: &mut Containerd) {
    let gate = containerd.gate();
    containerd.run_detached("a", &gate.script("true")).await;
    let pid = containerd.task("a").await.expect("a task").pid;
    let init = Proc::of(pid).expect("a process");
    containerd.kill();
    gate.open(6);
    init.gone().await;
    containerd.restart().await;
    let task = containerd.task("a").await.expect("a task");
    assert_eq!((task.pid, task.status.as_str()), (pid, "STOPPED"));
    assert_eq!(containerd.ended("a").await, 6);
}

async fn an_exec_outlives_containerd(containerd: &mut Containerd) {
    let gate = containerd.gate();
    containerd.run_detached("a", "sleep 100000").await;
    let exec = ["sh", "-c", &gate.script("true")];
    succeeded(ran(containerd.exec(&["--detach"], "a", "e", &exec)).await);
    containerd.kill();
    containerd.restart().await;
    let mut events = containerd.events().await;
    gate.open(6);
    let exit = events.until("/tasks/exit", "e").await.pop().expect("an event");
    assert_eq!(exit.exit_code(), 6);
    let ran = ran(containerd.ctr(&["task", "delete", "--exec-id", "e", "a"])).await;
    assert_eq!(ran.code, Some(6), "{ran:?}");
    containerd.remove("a").await;
}

async fn running_out_of_memory_is_an_event(containerd: &mut Containerd) {
    let mut events = containerd.events().await;
    let limit = (16 << 20).to_string();
    let gate = containerd.gate();
    // The container lives on: containerd's own shim may miss what happens right before its end.
    let text = format!("sh -c 'x=x; while true; do x=$x$x; done'; {}", gate.script("echo $?"));
    let command = containerd.run(&["--rm", "--memory-limit", &limit], "a", &["sh", "-c", &text]);
    let mut client = Client::start(command);
    events.until("/tasks/oom", "a").await;
    client.says("137").await;
    gate.open(6);
    client.says("after").await;
    assert_eq!(client.end().await, Some(6));
}

async fn containers_of_a_pod_share_a_shim_and_nothing_else(containerd: &mut Containerd) {
    let pod = containerd.pod("pod");
    let gate = containerd.gate();
    let options = ["--detach", &pod[0], &pod[1]];
    for (id, text) in [("a", "sleep 100000"), ("b", &gate.script("true"))] {
        succeeded(ran(containerd.run(&options, id, &["sh", "-c", text])).await);
    }
    let shims = containerd.shims();
    assert_eq!(shims.len(), 1, "{shims:?}");
    // It was the first one's.
    containerd.remove("a").await;
    let exec = ran(containerd.exec(&[], "b", "e", &["echo", "here"])).await;
    assert_eq!(exec, came_to(0, "here\n", ""));
    assert_eq!(containerd.shims(), shims);
    gate.open(6);
    assert_eq!(containerd.ended("b").await, 6);
}

async fn containers_and_execs_outlive_the_supervisor(containerd: &mut Containerd) {
    let [gate, other] = [containerd.gate(), containerd.gate()];
    let mut events = containerd.events().await;
    let log = containerd.path().join("a.log");
    let uri = format!("file://{}", log.display());
    let text = gate.script("echo before");
    let run = containerd.run(&["--detach", "--log-uri", &uri], "a", &["sh", "-c", &text]);
    succeeded(ran(run).await);
    let exec = ["sh", "-c", &other.script("true")];
    succeeded(ran(containerd.exec(&["--detach"], "a", "e", &exec)).await);
    let task = containerd.task("a").await;
    let first = containerd.supervisor().await;
    first.signal(Signal::SIGKILL);
    first.gone().await;
    // It ends while there is no supervisor, or a new one.
    other.open(5);
    let exit = events.until("/tasks/exit", "e").await.pop().expect("an event");
    assert_eq!(exit.exit_code(), 5);
    assert_ne!(containerd.supervisor().await, first);
    assert_eq!(containerd.task("a").await, task);
    let echo = ran(containerd.exec(&[], "a", "f", &["echo", "here"])).await;
    assert_eq!(echo, came_to(0, "here\n", ""));
    gate.open(6);
    let exit = events.until("/tasks/exit", "a").await.pop().expect("an event");
    assert_eq!(exit.exit_code(), 6);
    assert_eq!(containerd.ended("a").await, 6);
    assert_eq!(fs::read_to_string(&log).expect("read the log"), "before\nafter\n");
}

/// containerd then has `delete` called, and tells what that says. Whoever answers it may not have heard of the end.
async fn what_ends_as_its_front_is_killed_keeps_its_status(containerd: &mut Containerd) {
    let mut events = containerd.events().await;
    let ids: Vec<String> = (0..20).map(|round| format!("a{round}")).collect();
    let mut all = Vec::new();
    for id in &ids {
        let gate = containerd.gate();
        containerd.run_detached(id, &gate.script("true")).await;
        let task = containerd.task(id).await.expect("a task");
        let process = Proc::of(task.pid).expect("its process");
        let fronts = containerd.shims();
        gate.open(9);
        process.ended().await;
        fronts[0].signal(Signal::SIGKILL);
        let is_gone = async || containerd.task(id).await.is_none();
        soon("the end of the task", async { while !is_gone().await {} }).await;
        // containerd may publish the exit event after it has removed the task.
        all.extend(events.until("/tasks/exit", id).await);
        containerd.done(&["container", "delete", id]).await;
    }
    assert_eq!(ran(script(containerd, "last", "exit 3")).await.code, Some(3));
    all.extend(events.until("/tasks/exit", "last").await);
    let of = |id: &str| -> Vec<i64> {
        let exits = all.iter().filter(|it| it.topic == "/tasks/exit" && it.process() == id);
        exits.map(Event::exit_code).collect()
    };
    for id in &ids {
        let codes = of(id);
        assert!(!codes.is_empty() && codes.iter().all(|code| *code == 9), "{id}: {codes:?}");
    }
}

async fn a_container_has_a_user_namespace(containerd: &mut Containerd) {
    let map = "0:100000:65536";
    // It opens its output again, which takes the right to do so.
    let says = "cat /proc/self/uid_map; id -u; touch /file && stat -c %u /file; \
                echo again > /dev/stdout && exit 5";
    let options = ["--rm", "--uidmap", map, "--gidmap", map];
    let ran = ran(containerd.run(&options, "a", &["sh", "-c", says])).await;
    assert_eq!(ran.code, Some(5), "{ran:?}");
    let words: Vec<_> = ran.stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "0", "again"], "{ran:?}");
}

async fn what_a_container_leaves_in_a_shared_pid_namespace_is_killed(containerd: &mut Containerd) {
    let shared = format!("pid:/proc/{}/ns/pid", std::process::id());
    let leaves = "sleep 100000 > /dev/null 2>&1 & echo $!; exit 4";
    let run = containerd.run(&["--rm", "--with-ns", &shared], "a", &["sh", "-c", leaves]);
    let ran = ran(run).await;
    assert_eq!(ran.code, Some(4), "{ran:?}");
    let pid = ran.stdout.trim().parse().expect("a process id");
    if let Some(process) = Proc::of(pid) {
        process.ended().await;
    }
}

/// A client in the foreground, spoken with line by line.
struct Client {
    child: tokio::process::Child,
    stdin: tokio::process::ChildStdin,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Client {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start ctr");
        let stdin = child.stdin.take().expect("a piped input");
        let lines = BufReader::new(child.stdout.take().expect("a piped output")).lines();
        Self { child, stdin, lines }
    }

    async fn says(&mut self, line: &str) {
        let next = soon(line, self.lines.next_line()).await.expect("read output");
        assert_eq!(next.as_deref(), Some(line));
    }

    async fn types(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).await.expect("write input");
    }

    /// Waits for its end. It must have no more to say.
    async fn end(mut self) -> Option<i32> {
        let status = soon("the end of a client", self.child.wait()).await.expect("wait");
        let mut rest = Vec::new();
        self.lines.into_inner().read_to_end(&mut rest).await.expect("read output");
        assert_eq!(String::from_utf8_lossy(&rest), "");
        status.code()
    }
}
