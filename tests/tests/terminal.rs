//! Terminals: under a person's own, without one, and through the library.

use std::process::Stdio as Process;

use holdfast_supervisor::{Error, ExitStatus, LogReader, Stdin, Stdio, TerminalSize};
use holdfast_tests::{Holdfast, Pty, Scratch, read_all, soon, status, unique_id};
use tokio::io::AsyncWriteExt;

const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };
const OTHER: TerminalSize = TerminalSize { width: 77, height: 22 };

/// Says its size at each change, `interrupted` at each control-C, and reads lines until one is a
/// number, with which it exits.
/// A `read` without a time misses a signal that comes just before it waits for input.
const DIALOG: &str = "trap 'echo size $(stty size)' WINCH; trap 'echo interrupted' INT; \
                      test -t 0 && test -t 1 && test -t 2 && echo terminal $TERM; stty size; \
                      while true; do read -t 1 -r word || continue; echo got $word; \
                      case $word in [0-9]*) exit $word;; esac; done";

fn bundle(holdfast: &Holdfast) -> String {
    holdfast.scratch.bundle().into_os_string().into_string().expect("a path in UTF-8")
}

/// A person's dialog with a process, the same for a container's first and for an exec.
async fn dialog(mut pty: Pty) {
    assert_eq!(pty.shows("terminal xterm\r\n").await, "");
    assert_eq!(pty.shows("33 101\r\n").await, "");
    assert!(pty.is_raw());
    pty.types("hello\r");
    assert_eq!(pty.shows("got hello\r\n").await, "hello\r\n", "one echo, by the container's");
    pty.resize(OTHER);
    assert_eq!(pty.shows("size 22 77\r\n").await, "");
    pty.types("\x03");
    assert_eq!(pty.shows("interrupted\r\n").await, "^C");
    pty.types("41\r");
    assert_eq!(pty.end().await, (Some(41), "41\r\ngot 41\r\n".to_owned()));
}

#[tokio::test]
async fn run_it_is_a_dialog_with_keys_sizes_control_c_and_a_status() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let command = holdfast.command(&["run", "-it", "--bundle", &bundle, "--", "sh", "-c", DIALOG]);
    dialog(Pty::start(&command, SIZE)).await;
    holdfast.close().await;
}

#[tokio::test]
async fn exec_it_is_a_dialog_too() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let command = holdfast.command(&["exec", "-it", &id, "--", "sh", "-c", DIALOG]);
    dialog(Pty::start(&command, SIZE)).await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn control_d_ends_the_input_and_nothing_else() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let script = "echo ready; cat; echo end of input; read -r word; echo then $word; exit 7";
    let command = holdfast.command(&["run", "-it", "--bundle", &bundle, "--", "sh", "-c", script]);
    let mut pty = Pty::start(&command, SIZE);
    pty.shows("ready\r\n").await;
    pty.types("line\r");
    assert_eq!(pty.shows("line\r\nline\r\n").await, "");
    pty.types("\x04");
    assert_eq!(pty.shows("end of input\r\n").await, "");
    pty.types("word\r");
    assert_eq!(pty.end().await, (Some(7), "word\r\nthen word\r\n".to_owned()));
    holdfast.close().await;
}

#[tokio::test]
async fn the_terminal_is_given_back_when_the_container_is_killed_and_when_the_daemon_is() {
    let mut holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), unique_id("tty").to_string());
    let start = ["run", "-it", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", DIALOG];
    let mut pty = Pty::start(&holdfast.command(&start), SIZE);
    pty.shows("33 101\r\n").await;
    holdfast.ok(&["kill", &id]).await;
    assert_eq!(pty.end().await, (Some(137), String::new()));
    holdfast.ok(&["delete", &id]).await;

    let mut pty = Pty::start(&holdfast.command(&start), SIZE);
    pty.shows("33 101\r\n").await;
    assert!(pty.is_raw());
    holdfast.kill_daemon().await;
    let (code, said) = pty.end().await;
    assert!(code == Some(125) && said.contains("runs on"), "{code:?} {said:?}");
    // The container has its terminal still, and ends when it is told.
    holdfast.start_daemon().await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn without_a_terminal_of_ours_a_container_still_gets_one_of_the_usual_size() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let script = "test -t 1 && stty size; echo err >&2; exit 3";
    let ran = holdfast.run(&["run", "-t", "--bundle", &bundle, "--", "sh", "-c", script]).await;
    // One stream: a terminal has no other.
    let got = (ran.code, ran.stdout.as_str(), ran.stderr.as_str());
    assert_eq!(got, (Some(3), "24 80\r\nerr\r\n", ""));
    holdfast.close().await;
}

/// What a command does with this input, which then ends.
async fn fed(holdfast: &Holdfast, args: &[&str], input: &[u8]) -> (Option<i32>, String) {
    let mut command = holdfast.command(args);
    command.stdin(Process::piped()).stdout(Process::piped());
    let mut child = command.spawn().expect("start the command");
    let mut stdin = child.stdin.take().expect("its input");
    soon("input", stdin.write_all(input)).await.expect("write its input");
    drop(stdin);
    let output = soon("the command", child.wait_with_output()).await.expect("its output");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

#[tokio::test]
async fn the_end_of_a_piped_input_ends_that_of_a_terminal() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let cat = ["run", "-it", "--bundle", &bundle, "--", "cat"];
    let plain = ["run", "-i", "--bundle", &bundle, "--", "cat"];
    assert_eq!(fed(&holdfast, &plain, b"word\n").await, (Some(0), "word\n".into()));
    assert_eq!(fed(&holdfast, &plain, b"word").await, (Some(0), "word".into()));
    assert_eq!(fed(&holdfast, &plain, b"").await, (Some(0), String::new()));
    assert_eq!(fed(&holdfast, &cat, b"word\n").await, (Some(0), "word\r\nword\r\n".into()));
    assert_eq!(fed(&holdfast, &cat, b"").await, (Some(0), String::new()));
    holdfast.close().await;
}

#[tokio::test]
async fn the_end_of_a_piped_input_ends_that_of_a_terminal_in_the_middle_of_a_line_too() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let cat = ["run", "-it", "--bundle", &bundle, "--", "cat"];
    assert_eq!(fed(&holdfast, &cat, b"word").await, (Some(0), "wordword".into()));
    holdfast.close().await;
}

#[tokio::test]
async fn more_input_than_a_terminal_holds_waits_until_it_is_read() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let bundle = bundle(&holdfast);
    // No echo, so that nothing but the program reads it.
    let script = format!("stty -echo; echo ready; {}", gate.script("true"));
    let script = script.replace("exit $code", "sed 's/ *$//' | uniq -c");
    let command = ["run", "-it", "--bundle", &bundle, "--", "sh", "-c", &script];
    let mut command = holdfast.command(&command);
    let mut child = command.stdin(Process::piped()).stdout(Process::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let line = [b"x".repeat(99), b"\n".to_vec()].concat();
    let feeding = tokio::spawn(async move {
        for _ in 0..5000 {
            stdin.write_all(&line).await?;
        }
        Ok::<(), std::io::Error>(())
    });
    gate.open(0);
    soon("input", feeding).await.unwrap().unwrap();
    let output = soon("the command", child.wait_with_output()).await.unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let last = output.lines().last().unwrap_or_default();
    assert_eq!(last.trim(), format!("5000 {}", "x".repeat(99)), "{output}");
    holdfast.close().await;
}

#[tokio::test]
async fn twenty_megabytes_through_a_terminal_are_complete() {
    const LINES: usize = 200_000;
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let program = "BEGIN { for (i = 0; i < 200000; i++) printf \"%099d\\n\", i }";
    let ran = holdfast.run(&["run", "-t", "--bundle", &bundle, "--", "awk", program]).await;
    assert_eq!((ran.code, ran.stdout.len()), (Some(0), LINES * 101));
    for (number, line) in ran.stdout.split_terminator("\r\n").enumerate() {
        assert_eq!(line.trim_start_matches('0'), number.to_string().trim_start_matches('0'));
    }
    holdfast.close().await;
}

/// Reads on until the output ends with this.
async fn shows(log: &mut LogReader, text: &str) {
    let mut all = String::new();
    while !all.ends_with(text) {
        let what = format!("{text:?} after {all:?}");
        let chunk = soon(&what, log.follow()).await.expect("read output").expect("it runs");
        all += &String::from_utf8_lossy(&chunk.bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_resizes_types_and_restores_a_container_with_a_terminal() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let stdio = Stdio::new().stdin(Stdin::Pipe).terminal(SIZE);
    let container = supervisor.run(scratch.script(DIALOG).stdio(stdio)).await.unwrap();
    let mut log = container.logs().unwrap();
    shows(&mut log, "33 101\r\n").await;
    container.resize(OTHER).unwrap();
    shows(&mut log, "size 22 77\r\n").await;
    let id = container.id().clone();
    drop((log, container));
    soon("the shutdown", supervisor.shutdown()).await;

    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    let mut log = container.logs().unwrap();
    shows(&mut log, "size 22 77\r\n").await;
    container.resize(SIZE).unwrap();
    shows(&mut log, "size 33 101\r\n").await;
    soon("input", container.stdin().unwrap().write_all(b"8\n")).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(8));
    let output = String::from_utf8(read_all(container.logs().unwrap()).await.stdout).unwrap();
    assert!(output.ends_with("size 33 101\r\n8\r\ngot 8\r\n"), "{output}");
    drop((container, log));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_a_terminal_that_fails_is_told_in_the_runtimes_words() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // It fails when the runtime has the socket already, and hangs up with nothing sent.
    holdfast_tests::edit_json(&scratch.bundle().join("config.json"), |config| {
        config["mounts"] = serde_json::json!([
            { "destination": "/proc", "type": "no-such-type", "source": "proc" }
        ]);
    });
    let options = scratch.script("true").stdio(Stdio::new().terminal(SIZE));
    let error = soon("the start", supervisor.run(options)).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    assert!(error.to_string().contains("no-such-type") || error.to_string().contains("proc"));
    scratch.group_ended().await;
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}
