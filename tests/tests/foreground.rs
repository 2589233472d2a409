//! A command in the foreground and our own streams: programs that end before their input is open, and
//! outputs that take nothing any more.

use std::fs::File;
use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use holdfast_supervisor::TerminalSize;
use holdfast_tests::{Holdfast, Proc, Pty, eventually, rounds, runtime_name, soon, unique_id};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };

fn bundle(holdfast: &Holdfast) -> String {
    holdfast.scratch.bundle().into_os_string().into_string().expect("a path in UTF-8")
}

/// Where the standard input of a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// `/dev/null`
    Null,
    /// `<&-`
    Closed,
    /// `yes |`
    Endless,
    /// A pipe into which nobody writes, and that nobody closes.
    Silent,
    /// A terminal at which nobody types; the output goes there as well.
    Terminal,
}

const INPUTS: [Input; 5] =
    [Input::Null, Input::Closed, Input::Endless, Input::Silent, Input::Terminal];

/// A command as the argument of a shell script, in which it is `"$@"`.
fn by_shell(command: &Command, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(command.as_std().get_program());
    shell.args(command.as_std().get_args()).env_remove("HOLDFAST_LOG").kill_on_drop(true);
    shell
}

/// Runs a command to its end: its status, and what it wrote. It may not complain of anything.
async fn fed(holdfast: &Holdfast, args: &[&str], input: Input) -> (Option<i32>, String) {
    let mut command = holdfast.command(args);
    match input {
        Input::Terminal => return Pty::start(&command, SIZE).end().await,
        Input::Null => {}
        Input::Closed => command = by_shell(&command, "exec \"$@\" <&-"),
        Input::Endless => command = by_shell(&command, "yes | \"$@\""),
        Input::Silent => _ = command.stdin(Stdio::piped()),
    }
    let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("start a command");
    let silent = child.stdin.take();
    let what = format!("{args:?} with {input:?}");
    let output = soon(&what, child.wait_with_output()).await.expect("its output");
    drop(silent);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{what}");
    (output.status.code(), String::from_utf8(output.stdout).expect("text"))
}

/// `run --rm` answers before the removal.
async fn closed_after_removals(holdfast: Holdfast) {
    holdfast.nothing_left().await;
    holdfast.close().await;
}

/// Which command runs the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Run,
    RunRm,
    Exec,
}

/// Runs programs that end at once, with inputs of every kind in turns.
async fn ends_at_once(by: By, options: &str) {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let begin = match by {
        By::Run => vec!["run", options, "--bundle", &bundle, "--"],
        By::RunRm => vec!["run", "--rm", options, "--bundle", &bundle, "--"],
        By::Exec => vec!["exec", options, &id, "--"],
    };
    let has_terminal = options.contains('t');
    for round in 0..rounds(20) {
        let input = INPUTS[round % INPUTS.len()];
        let says = (round / INPUTS.len()).is_multiple_of(2);
        let program: &[&str] = if says { &["sh", "-c", "echo hi; exit 7"] } else { &["true"] };
        let (code, output) = fed(&holdfast, &[&begin, program].concat(), input).await;
        let what = format!("{by:?} {options} {input:?}, round {round}");
        assert_eq!(code, Some(if says { 7 } else { 0 }), "{what}: {output:?}");
        let expected = match (says, has_terminal || input == Input::Terminal) {
            (false, _) => "",
            (true, false) => "hi\n",
            // Each of the two terminals ends the line in its own way: only `-i` has ours leave it be.
            (true, true) if options == "-t" && input == Input::Terminal => "hi\r\r\n",
            (true, true) => "hi\r\n",
        };
        // The container's terminal echoes what is typed, however little of it is read: a `y` may come
        // between a line and its end.
        if options == "-it" && input == Input::Endless {
            assert!(output.replace('y', "").contains(expected), "{what}: {output:?}");
        } else {
            assert_eq!(output, expected, "{what}");
        }
        if by == By::Run {
            let all = holdfast.json(&["ps", "--all", "--json"]).await;
            let mut all = all.as_array().expect("an array").iter();
            let ended = all.find(|one| one["id"] != json!(id)).expect("it is kept");
            holdfast.ok(&["delete", ended["id"].as_str().expect("an id")]).await;
        }
    }
    holdfast.ok(&["delete", "--force", &id]).await;
    closed_after_removals(holdfast).await;
}

/// Seen with the command line before: `holdfast run -i --rootfs host -- sh -c 'echo hi; exit 7'` and
/// every other line of this table with an `-i` exited with 125, printed nothing and said `open the
/// input of the container, …/init/stdin: No such device or address`, 6 of 6 times. Those with `-t` alone were right.
macro_rules! a_program_that_ends_at_once {
    ($($name:ident: $by:ident $options:literal,)+) => {$(
        #[tokio::test]
        async fn $name() {
            ends_at_once(By::$by, $options).await;
        }
    )+};
}

a_program_that_ends_at_once! {
    run_i_of_a_program_that_ends_at_once_has_its_output_and_status: Run "-i",
    run_t_of_a_program_that_ends_at_once_has_its_output_and_status: Run "-t",
    run_it_of_a_program_that_ends_at_once_has_its_output_and_status: Run "-it",
    run_rm_i_of_a_program_that_ends_at_once_has_its_output_and_status: RunRm "-i",
    run_rm_t_of_a_program_that_ends_at_once_has_its_output_and_status: RunRm "-t",
    run_rm_it_of_a_program_that_ends_at_once_has_its_output_and_status: RunRm "-it",
    exec_i_of_a_program_that_ends_at_once_has_its_output_and_status: Exec "-i",
    exec_t_of_a_program_that_ends_at_once_has_its_output_and_status: Exec "-t",
    exec_it_of_a_program_that_ends_at_once_has_its_output_and_status: Exec "-it",
}

/// Seen before: `holdfast run -i … cat </tmp` waited for ever, because a failed read was no end.
#[tokio::test]
async fn an_input_that_cannot_be_read_is_reported_and_ends_the_input_of_the_container() {
    let holdfast = Holdfast::start().await;
    let args = ["run", "-i", "--bundle", &bundle(&holdfast), "--", "sh", "-c", "cat; exit 4"];
    let mut command = holdfast.command(&args);
    command.stdin(File::open("/tmp").unwrap());
    let ran = holdfast_tests::ran(command).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(4), ""));
    assert_eq!(ran.stderr, "holdfast: standard input: Is a directory (os error 21)\n");
    holdfast.close().await;
}

/// Seen before: `holdfast attach` exited with 125, and neither output nor status came.
#[tokio::test]
async fn a_container_whose_input_cannot_be_opened_keeps_its_output_and_status() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let script = gate.script("echo ready");
    let id = holdfast.run_detached(&["-i"], &["sh", "-c", &script]).await;
    holdfast.said(&id, "ready").await;
    let fifo = holdfast.root().join(&id).join("init/stdin");
    std::fs::remove_file(&fifo).unwrap();
    std::fs::create_dir(&fifo).unwrap();
    let mut attached = holdfast.command(&["attach", &id]);
    attached.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut attached = attached.spawn().unwrap();
    let mut errors = BufReader::new(attached.stderr.take().unwrap()).lines();
    let said = soon("a complaint", errors.next_line()).await.unwrap().unwrap();
    assert!(said.starts_with("holdfast: our input is not handed on: open "), "{said}");
    assert!(said.ends_with("Is a directory (os error 21)"), "{said}");
    gate.open(5);
    let output = soon("the command", attached.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(5), &b"after\n"[..]));
    std::fs::remove_dir(&fifo).unwrap();
    holdfast.close().await;
}

/// Starts a command whose standard output is this.
fn writing_to(holdfast: &Holdfast, args: &[&str], stdout: impl Into<Stdio>) -> Child {
    let mut command = holdfast.command(args);
    command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("start a command")
}

/// Its exit code and what it complained of.
async fn end(child: Child) -> (Option<i32>, String) {
    let output = soon("the end of a command", child.wait_with_output()).await.expect("its end");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("open /dev/full").into()
}

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().expect("make a pipe");
    writer.into()
}

fn piped() -> (PipeReader, Stdio) {
    let (reader, writer) = std::io::pipe().expect("make a pipe");
    (reader, writer.into())
}

const FULL: &str = "holdfast: standard output: No space left on device (os error 28)";

/// Seen before: `holdfast ps | true` and `holdfast ps >/dev/full` panicked in a print macro (101 of a debug
/// build), and `holdfast --help >/dev/full` exited with 0 in silence.
#[tokio::test]
async fn every_command_reports_a_full_output_and_goes_quietly_when_nobody_reads() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sh", "-c", "echo ready; exec sleep 100000"]).await;
    holdfast.said(&id, "ready").await;
    let ended = holdfast.run_detached(&[], &["sh", "-c", "exit 3"]).await;
    holdfast.ok(&["wait", &ended]).await;
    for (code, args) in [
        (1, &["ps"][..]),
        (1, &["ps", "--all", "--json"]),
        (1, &["info"]),
        (1, &["info", "--json"]),
        (1, &["inspect", &id]),
        (1, &["inspect", "--json", &id, &ended]),
        (1, &["stats"]),
        (1, &["stats", "--json"]),
        (1, &["top", &id]),
        (1, &["top", "--json", &id]),
        (1, &["logs", &id]),
        (1, &["logs", "--follow", &id]),
        (1, &["events", "--replay"]),
        (1, &["events", "--replay", "--json"]),
        (1, &["wait", &ended]),
        (1, &["wait", "--json", &ended]),
        (1, &["--help"]),
        (1, &["--version"]),
        (1, &["help"]),
        (1, &["help", "run"]),
        (1, &["ps", "--help"]),
        (125, &["run", "--help"]),
    ] {
        let said = end(writing_to(&holdfast, args, full())).await;
        assert_eq!(said, (Some(code), format!("{FULL}\n")), "{args:?}");
        let said = end(writing_to(&holdfast, args, closed())).await;
        assert_eq!(said, (Some(141), String::new()), "{args:?}");
    }
    // An output that is open for reading alone is one that fails.
    let args = ["ps", "--all"];
    let said = end(writing_to(&holdfast, &args, File::open("/dev/null").unwrap())).await;
    let expected = "holdfast: standard output: Bad file descriptor (os error 9)\n";
    assert_eq!(said, (Some(1), expected.to_owned()));
    holdfast.close().await;
}

/// Seen before: `holdfast run -d … >/dev/full` panicked, and the id of what runs on was lost.
#[tokio::test]
async fn an_id_that_cannot_be_printed_is_named_in_the_error() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let waits = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    for (full_code, how) in [(125, "runs on"), (1, "was made")] {
        for (code, stdout) in [(full_code, full as fn() -> Stdio), (141, closed)] {
            let id = unique_id("foreground").to_string();
            let command = if how == "was made" { &["create"][..] } else { &["run", "--detach"] };
            let options = ["--name", &id, "--bundle", &bundle, "--", "sleep", "100000"];
            let args = [command, &options].concat();
            let (got, said) = end(writing_to(&holdfast, &args, stdout())).await;
            assert_eq!(got, Some(code), "{said}");
            assert!(said.ends_with(&format!("; container {id} {how}\n")), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
            assert!(holdfast.inspect(&id).await["pid"].is_i64());
        }
    }
    let args = ["exec", "--detach", &waits, "--", "sleep", "100000"];
    let (code, said) = end(writing_to(&holdfast, &args, full())).await;
    let exec = holdfast.inspect(&waits).await["execs"][0]["id"].as_str().unwrap().to_owned();
    let expected = format!("{FULL}; process {exec} of container {waits} runs on\n");
    assert_eq!((code, said), (Some(125), expected));
    holdfast.close().await;
}

/// Seen before: `holdfast run … >/dev/full` said nothing and went on to the container's end, with 0 for
/// `echo hi`.
#[tokio::test]
async fn a_full_output_ends_the_command_in_the_foreground_and_the_container_runs_on() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let gate = holdfast.scratch.gate();
    let id = unique_id("foreground").to_string();
    let script = gate.script("echo before");
    let args = ["run", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", &script];
    let said = end(writing_to(&holdfast, &args, full())).await;
    assert_eq!(said, (Some(125), format!("{FULL}; container {id} runs on\n")));
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    let exec = ["exec", &id, "--", "sh", "-c", "echo here; exec sleep 100000"];
    let (code, said) = end(writing_to(&holdfast, &exec, full())).await;
    let process = holdfast.inspect(&id).await["execs"][0]["id"].as_str().unwrap().to_owned();
    let expected = format!("{FULL}; process {process} of container {id} runs on\n");
    assert_eq!((code, said), (Some(125), expected));
    gate.open(6);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "6\n");
    assert_eq!(holdfast.ok(&["logs", &id]).await, "before\nafter\n");
    holdfast.close().await;
}

/// Reads the first line of what a command writes. Who drops the reader has gone away.
async fn first_line(reader: PipeReader) -> (String, BufReader<tokio::fs::File>) {
    let file = tokio::fs::File::from_std(File::from(OwnedFd::from(reader)));
    let (mut reader, mut line) = (BufReader::new(file), String::new());
    soon("a line", reader.read_line(&mut line)).await.expect("read a pipe");
    (line, reader)
}

/// Seen before: `holdfast run --rm --rootfs host yes | head -1` printed a line and went on for ever.
#[tokio::test]
async fn who_reads_no_more_ends_the_command_and_not_the_container() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    // One that writes for ever, and one that never writes again.
    for script in ["exec yes first", "echo first; exec sleep 100000"] {
        let id = unique_id("foreground").to_string();
        let (reader, stdout) = piped();
        let args = ["run", "--rm", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", script];
        let run = writing_to(&holdfast, &args, stdout);
        assert_eq!(first_line(reader).await.0, "first\n");
        let expected = format!(
            "holdfast: nobody reads our standard output any more; container {id} runs on\n"
        );
        assert_eq!(end(run).await, (Some(141), expected.clone()), "{script}");
        assert_eq!(holdfast.inspect(&id).await["status"], "running");

        // The same for who attaches to it, and for a further process of it.
        let (reader, stdout) = piped();
        let attached = writing_to(&holdfast, &["attach", &id], stdout);
        drop(reader);
        assert_eq!(end(attached).await, (Some(141), expected), "{script}");
        let (reader, stdout) = piped();
        let exec = writing_to(&holdfast, &["exec", &id, "--", "sh", "-c", script], stdout);
        assert_eq!(first_line(reader).await.0, "first\n");
        let (code, said) = end(exec).await;
        assert_eq!(code, Some(141));
        assert!(said.ends_with(&format!(" of container {id} runs on\n")), "{said}");

        // It is removed when it ends, as was asked for.
        holdfast.ok(&["kill", &id]).await;
        let directory = holdfast.root().join(&id);
        eventually("the container to be removed", || !directory.exists()).await;
    }
    closed_after_removals(holdfast).await;
}

/// Seen before: `holdfast wait` whose reader had gone still waited a minute later.
#[tokio::test]
async fn who_only_waits_and_watches_ends_with_its_reader() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sh", "-c", "echo ready; exec sleep 100000"]).await;
    holdfast.said(&id, "ready").await;
    for args in [&["wait", &id][..], &["logs", "--follow", &id], &["events"]] {
        let (reader, stdout) = piped();
        let command = writing_to(&holdfast, args, stdout);
        drop(reader);
        assert_eq!(end(command).await, (Some(141), String::new()), "{args:?}");
        // A socket in place of the pipe, as some that start programs have it.
        let (reader, stdout) = UnixStream::pair().unwrap();
        let command = writing_to(&holdfast, args, OwnedFd::from(stdout));
        drop(reader);
        assert_eq!(end(command).await, (Some(141), String::new()), "{args:?}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn a_container_that_ends_when_its_reader_goes_still_has_its_status() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    for _ in 0..rounds(10) {
        let (reader, stdout) = piped();
        let name = unique_id("foreground").to_string();
        let text = "trap 'exit 3' USR1; echo first; while true; do sleep 0.01; done";
        let script = ["--", "sh", "-c", text];
        let run = ["run", "--rm", "--name", &name, "--bundle", &bundle];
        let run = writing_to(&holdfast, &[&run[..], &script].concat(), stdout);
        let (line, reader) = first_line(reader).await;
        assert_eq!(line, "first\n");
        // Its time for the status is short. It begins when the status is there.
        let command = Proc::of(run.id().expect("it runs").cast_signed()).expect("it runs");
        command.signal(Signal::SIGSTOP);
        command.reaches('T').await;
        drop(reader);
        holdfast.ok(&["kill", "--signal", "USR1", &name]).await;
        holdfast.run(&["wait", &name]).await;
        command.signal(Signal::SIGCONT);
        assert_eq!(end(run).await, (Some(3), String::new()));
    }
    closed_after_removals(holdfast).await;
}

/// Seen before: `holdfast inspect no-such no-other 2>/dev/full` panicked in a print macro (101).
#[tokio::test]
async fn a_standard_error_that_takes_nothing_costs_neither_output_nor_status() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let script = "echo out; echo err >&2; echo err >&2; echo more; exit 4";
    let run = ["run", "--rm", "--bundle", &bundle, "--", "sh", "-c", script];
    let cases = [
        (&run[..], 4, "out\nmore\n"),
        (&["inspect", "no-such", "no-other"], 1, ""),
        (&["delete", "no-such", "no-other"], 1, ""),
        (&["run", "--no-such-option"], 125, ""),
        (&["run", "--bundle", "/no/such", "--", "true"], 125, ""),
        (&["ps", "--no-such-option"], 2, ""),
    ];
    for (args, code, output) in cases {
        for script in ["exec \"$@\" 2>&-", "exec \"$@\" 2>/dev/full"] {
            let ran = holdfast_tests::ran(by_shell(&holdfast.command(args), script)).await;
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), output), "{args:?} {script}");
        }
        let mut command = holdfast.command(args);
        let child = command.stdout(Stdio::piped()).stderr(closed()).spawn().unwrap();
        drop(command);
        let got = soon("the command", child.wait_with_output()).await.unwrap();
        assert_eq!((got.status.code(), got.stdout.as_slice()), (Some(code), output.as_bytes()));
    }
    closed_after_removals(holdfast).await;
}

/// Seen before: 2,442,944 bytes of 3,000,000 came, the rest was dropped in silence.
#[tokio::test]
async fn an_output_that_another_has_made_non_blocking_loses_nothing() {
    const LENGTH: usize = 3_000_000;
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&writer, flags).unwrap();
    let script = format!("head -c {LENGTH} /dev/zero; exit 5");
    let args = ["run", "--rm", "--bundle", &bundle, "--", "sh", "-c", &script];
    let run = writing_to(&holdfast, &args, writer);
    let mut output = Vec::new();
    let mut file = tokio::fs::File::from_std(File::from(reader));
    soon("the output", file.read_to_end(&mut output)).await.unwrap();
    assert_eq!(output.len(), LENGTH);
    assert_eq!(end(run).await, (Some(5), String::new()));
    closed_after_removals(holdfast).await;
}

/// How long the reader of the input is there depends on the runtime. Seen before with the fake one, which
/// is the quickest: `open the input of the container`, each time.
#[tokio::test]
async fn a_runtime_that_is_quick_loses_nothing_either() {
    let holdfast = Holdfast::start().await;
    let fake = holdfast_tests::binary("fake-runtime");
    let bundle = bundle(&holdfast);
    for runtime in [fake.to_str().unwrap(), runtime_name()] {
        let args = ["run", "-i", "--rm", "--runtime", runtime, "--bundle", &bundle, "--"];
        let args = [&args[..], &["sh", "-c", "echo hi; exit 7"]].concat();
        for input in [Input::Null, Input::Endless, Input::Silent] {
            let got = fed(&holdfast, &args, input).await;
            assert_eq!(got, (Some(7), "hi\n".to_owned()), "{runtime} {input:?}");
        }
    }
    closed_after_removals(holdfast).await;
}
