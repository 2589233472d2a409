//! Attaching to what runs, several at once, and detaching from it.

use std::process::Stdio;
use std::time::Duration;

use holdfast_supervisor::TerminalSize;
use holdfast_tests::{Holdfast, Pty, Running, soon, unique_id};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };
const DETACH: &str = "\x10\x11";

/// Says its size at each change, and reads lines until one is a number, with which it exits.
/// A `read` without a time misses a signal that comes just before it waits for input.
const DIALOG: &str = "trap 'echo size $(stty size)' WINCH; echo ready; \
                      while true; do read -t 1 -r word || continue; echo got $word; \
                      case $word in [0-9]*) exit $word;; esac; done";

async fn started(holdfast: &Holdfast, options: &[&str], script: &str) -> String {
    let id = holdfast.run_detached(options, &["sh", "-c", script]).await;
    let mut logs = holdfast.begin(&["logs", "--follow", &id]);
    while logs.line().await.trim_end() != "ready" {}
    id
}

/// Attached with a terminal of this size.
async fn attached(holdfast: &Holdfast, id: &str, keys: Option<&str>, size: TerminalSize) -> Pty {
    let mut args = vec!["attach", id];
    args.extend(keys.into_iter().flat_map(|keys| ["--detach-keys", keys]));
    let mut pty = Pty::start(&holdfast.command(&args), size);
    pty.shows(&format!("size {} {}\r\n", size.height, size.width)).await;
    assert!(pty.is_raw());
    pty
}

#[tokio::test]
async fn two_attached_see_the_same_and_one_leaves_while_the_other_stays() {
    let holdfast = Holdfast::start().await;
    let id = started(&holdfast, &["-it"], DIALOG).await;
    let mut first = attached(&holdfast, &id, None, SIZE).await;
    let other = TerminalSize { width: 77, height: 22 };
    let mut second = attached(&holdfast, &id, None, other).await;
    assert_eq!(first.shows("size 22 77\r\n").await, "");
    first.types("hello\r");
    assert_eq!(first.shows("got hello\r\n").await, "hello\r\n");
    assert_eq!(second.shows("got hello\r\n").await, "hello\r\n");
    first.types(DETACH);
    let said = format!("holdfast: detached; container {id} runs on\r\n");
    assert_eq!(first.end().await, (Some(0), said));
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    second.types("world\r");
    assert_eq!(second.shows("got world\r\n").await, "world\r\n");
    // Who comes back has what comes from now on.
    let back = attached(&holdfast, &id, None, SIZE).await;
    assert_eq!(second.shows("size 33 101\r\n").await, "");
    second.types("43\r");
    assert_eq!(second.end().await, (Some(43), "43\r\ngot 43\r\n".to_owned()));
    assert_eq!(back.end().await, (Some(43), "43\r\ngot 43\r\n".to_owned()));
    let said = holdfast.fails(125, &["attach", &id]).await;
    assert!(said.contains("has ended") && said.contains("holdfast logs"), "{said}");
    holdfast.close().await;
}

#[tokio::test]
async fn other_keys_detach_and_what_only_begins_like_them_goes_on() {
    let holdfast = Holdfast::start().await;
    let id = started(&holdfast, &["-it"], DIALOG).await;
    let mut pty = attached(&holdfast, &id, Some("ctrl-a,x,y"), SIZE).await;
    pty.types("x\x01xz\r");
    assert_eq!(pty.shows("got x\x01xz\r\n").await, "x^Axz\r\n");
    pty.types("\x01x");
    pty.types("y");
    let (code, said) = pty.end().await;
    assert!(code == Some(0) && said.contains("detached"), "{code:?} {said:?}");
    for keys in ["", "ctrl-", "ctrl-p,ctrl-1", "alt-x", "ab"] {
        for command in [&["attach", &id][..], &["exec", "-it", &id, "sh"]] {
            let args = [&command[..1], &["--detach-keys", keys], &command[1..]].concat();
            let said = holdfast.fails(125, &args).await;
            assert!(said.contains("give keys as in ctrl-p,ctrl-q"), "{said}");
        }
    }
    holdfast.close().await;
}

#[tokio::test]
async fn one_detaches_from_run_and_exec_as_well() {
    let holdfast = Holdfast::start().await;
    let bundle = holdfast.scratch.bundle().into_os_string().into_string().unwrap();
    let id = unique_id("attach").to_string();
    let run = ["run", "-it", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", DIALOG];
    let exec = ["exec", "-it", &id, "--", "sh", "-c", DIALOG];
    for args in [&run[..], &exec[..]] {
        let mut pty = Pty::start(&holdfast.command(args), SIZE);
        pty.shows("ready\r\n").await;
        pty.types("half a line");
        pty.shows("half a line").await;
        pty.types(DETACH);
        let (code, said) = pty.end().await;
        assert!(code == Some(0) && said.contains("detached; "), "{code:?} {said:?}");
        assert_eq!(holdfast.inspect(&id).await["status"], "running");
    }
    // The exec is there still, and the container has all that was typed.
    let execs = holdfast.inspect(&id).await["execs"].clone();
    assert_eq!(execs.as_array().map(Vec::len), Some(1), "{execs}");
    let mut pty = attached(&holdfast, &id, None, TerminalSize { width: 90, height: 30 }).await;
    pty.types(" more\r");
    pty.shows("got half a line more\r\n").await;
    pty.types("5\r");
    assert_eq!(pty.end().await.0, Some(5));
    holdfast.close().await;
}

/// Attached with pipes.
fn piped(holdfast: &Holdfast, args: &[&str]) -> tokio::process::Child {
    let mut command = holdfast.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start a command")
}

#[tokio::test]
async fn piped_input_is_handed_on_as_it_is_and_its_end_ends_nothing() {
    let holdfast = Holdfast::start().await;
    let script =
        "echo ready; while read -r word; do echo got $word; [ $word = end ] && exit 4; done";
    let id = started(&holdfast, &["-i"], script).await;
    let mut first = piped(&holdfast, &["attach", &id]);
    let mut input = first.stdin.take().unwrap();
    soon("input", input.write_all(format!("a{DETACH}b\n").as_bytes())).await.unwrap();
    drop(input);
    // What it does not see of the output it came too late for, but not what it asked for.
    let mut watching = Running::of(holdfast.command(&["attach", "--no-stdin", &id]));
    let mut output = first.stdout.take().unwrap();
    let expected = format!("got a{DETACH}b\n");
    let mut got = vec![0; expected.len()];
    soon("output", output.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, expected.as_bytes());
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    // Attached without input: it ends with the container as all do.
    let mut second = piped(&holdfast, &["attach", &id]);
    let mut input = second.stdin.take().unwrap();
    let told = async {
        loop {
            input.write_all(b"more\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        line = watching.line() => assert!(line.starts_with("got "), "{line}"),
        () = soon("who watches to be attached", told) => {}
    }
    soon("input", input.write_all(b"end\n")).await.unwrap();
    for child in [first, second] {
        let ended = soon("the end of a command", child.wait_with_output()).await.unwrap();
        assert_eq!(ended.status.code(), Some(4));
        assert_eq!(ended.stderr, b"");
    }
    while let Some(line) = watching.next_line().await {
        assert!(line.starts_with("got "), "{line}");
    }
    assert_eq!(watching.end().await.code, Some(4));
    holdfast.close().await;
}

#[tokio::test]
async fn a_container_whose_output_is_not_kept_can_be_attached_to_for_its_input() {
    let holdfast = Holdfast::start().await;
    let id =
        holdfast.run_detached(&["-i", "--log", "none"], &["sh", "-c", "read x; exit $x"]).await;
    let mut child = piped(&holdfast, &["attach", &id]);
    let mut input = child.stdin.take().unwrap();
    soon("input", input.write_all(b"6\n")).await.unwrap();
    let ended = soon("the end of a command", child.wait_with_output()).await.unwrap();
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(6), &b""[..]));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("log driver is none"), "{said}");
    holdfast.close().await;
}

#[tokio::test]
async fn signals_go_to_the_container_and_its_status_comes_back() {
    let holdfast = Holdfast::start().await;
    let script = "trap 'exit 42' TERM; trap 'echo usr1' USR1; echo ready; \
                  while :; do echo tick; sleep 0.02; done";
    let id = started(&holdfast, &[], script).await;
    let mut attached = Running::of(holdfast.command(&["attach", &id]));
    assert_eq!(attached.line().await, "tick");
    attached.signal(nix::sys::signal::Signal::SIGUSR1);
    while attached.line().await != "usr1" {}
    attached.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(attached.end().await.code, Some(42));
    holdfast.close().await;
}

#[tokio::test]
async fn random_bytes_come_through_the_input_of_an_exec_unchanged() {
    const SIZE: usize = 64 * 1024 * 1024;
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let path = holdfast.scratch.path().join("random");
    let script = format!("head -c {SIZE} /dev/urandom > {}", path.display());
    let made = Command::new("sh").args(["-c", &script]).status();
    assert!(soon("random bytes", made).await.unwrap().success());
    let sum = Command::new("sha256sum").stdin(std::fs::File::open(&path).unwrap()).output();
    let expected = String::from_utf8(soon("sha256sum", sum).await.unwrap().stdout).unwrap();
    // From a file, which ends, and from a pipe, which is closed.
    for from_pipe in [false, true] {
        let mut command = holdfast.command(&["exec", "-i", &id, "--", "sha256sum"]);
        command.stdout(Stdio::piped());
        let child = if from_pipe {
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            let (mut to, bytes) = (child.stdin.take().unwrap(), std::fs::read(&path).unwrap());
            soon("input", to.write_all(&bytes)).await.unwrap();
            child
        } else {
            command.stdin(std::fs::File::open(&path).unwrap()).spawn().unwrap()
        };
        let ended = soon("the command", child.wait_with_output()).await.unwrap();
        assert_eq!(ended.status.code(), Some(0));
        assert_eq!(String::from_utf8(ended.stdout).unwrap(), expected);
    }
    holdfast.close().await;
}
