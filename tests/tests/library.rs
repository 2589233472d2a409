//! The library against a real runtime: statuses, output, execs, deletion, events.

use std::time::Duration;

use holdfast_supervisor::{
    ContainerOptions, Error, Event, EventKind, ExecOptions, ExitStatus, ProcessId, Status, Stdin,
    Stdio, TerminalSize,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Output, Proc, Scratch, cgroups_of, edit_json, events_until, read_all, said, soon, status,
    unique_id,
};

use tokio::io::AsyncWriteExt;

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Says `ready`, then waits for a signal.
const WAITS: &str = "echo ready; sleep 100000 & wait; exit 99";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_come_back_as_they_were_255_too() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for code in [0, 7, 255] {
        let container = supervisor.run(scratch.script(&format!("exit {code}"))).await.unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(code));
        let info = container.info();
        assert_eq!((info.status, info.exit_status), (Status::Stopped, Some(code)));
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_whose_end_was_told_shows_no_pid_any_more() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // A matter of instants, so more than once.
    for _ in 0..20 {
        let container = supervisor.run(scratch.options(["true"])).await.unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(0));
        assert_eq!(container.info().pid, None);
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_that_kills_is_told_from_a_code_that_looks_like_it() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let killed = supervisor.run(scratch.script(WAITS)).await.unwrap();
    said(&killed, "ready").await;
    killed.signal(SIGKILL).unwrap();
    assert_eq!(status(&killed).await, ExitStatus::Signal(SIGKILL));
    assert_eq!(killed.info().exit_status, Some(137));

    let pretends = supervisor.run(scratch.script("exit 137")).await.unwrap();
    assert_eq!(status(&pretends).await, ExitStatus::Code(137));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_that_handles_sigterm_chooses_its_own_code() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script = format!("trap 'echo bye; exit 42' TERM; {WAITS}");
    let container = supervisor.run(scratch.script(&script)).await.unwrap();
    said(&container, "ready").await;
    container.signal(SIGTERM).unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(42));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nbye\n"));
    let error = container.signal(SIGTERM).unwrap_err();
    assert!(matches!(error, Error::WrongState { status: "stopped", .. }), "{error}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_signal_is_blocked_in_a_container_or_an_exec() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script(&format!("cat /proc/self/status; {WAITS}")));
    let container = container.await.unwrap();
    said(&container, "ready").await;
    let exec = ExecOptions::new(["cat", "/proc/self/status"]);
    let (_, exec) = container.exec_attached(exec).await.unwrap();
    let of_exec = read_all(exec).await;
    container.signal(SIGKILL).unwrap();
    for output in [read_all(container.logs().unwrap()).await, of_exec] {
        let status = String::from_utf8(output.stdout).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_of_both_streams_is_there_byte_for_byte() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // Every awkward byte, empty lines, a line longer than any buffer, no line feed at the end.
    let script = "printf 'a\\000\\377\\r\\n\\n\\n'; head -c 300000 /dev/zero | tr '\\000' x; \
                  printf '\\nout end'; \
                  { head -c 150000 /dev/zero | tr '\\000' e; printf '\\n\\nerr end'; } >&2";
    let expected = Output {
        stdout: [b"a\0\xff\r\n\n\n".as_slice(), &[b'x'; 300_000], b"\nout end"].concat(),
        stderr: [[b'e'; 150_000].as_slice(), b"\n\nerr end"].concat(),
    };
    let (container, log) = supervisor.run_attached(scratch.script(script)).await.unwrap();
    let live = read_all(log).await;
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!((live.stdout.len(), live.stderr.len()), (300_015, 150_009));
    assert!(live == expected, "a reader that came first has other bytes");
    assert!(read_all(container.logs().unwrap()).await == expected, "a late reader has others");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_container_does_nothing_before_its_start() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.create(scratch.script("echo began; exit 3")).await.unwrap();
    let info = container.info();
    assert_eq!((info.status, info.exit), (Status::Created, None));
    assert!(Proc::of(info.pid.unwrap()).unwrap().lives());
    let exec = container.exec(ExecOptions::new(["true"])).await.unwrap_err();
    assert!(matches!(exec, Error::WrongState { status: "created", .. }), "{exec}");
    let mut log = container.logs().unwrap();
    assert_eq!(log.next().await.unwrap(), None);

    container.start().await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(3));
    assert_eq!(read_all(log).await, Output::of("began\n"));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_container_can_be_deleted_without_having_started() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.create(scratch.script("echo began")).await.unwrap();
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    soon("the delete", container.delete()).await.unwrap();
    assert!(!process.exists());
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_image_or_id_the_hosts_programs_run_and_cannot_write_to_it() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script =
        "ls /usr/bin/env && touch /tmp/mine && ! touch /etc/mine && ! touch /mine; exit $?";
    let options = ContainerOptions::host_rootfs().args(["sh", "-c", script]);
    let container = supervisor.run(options).await.unwrap();
    let id = container.id().as_str();
    assert!(id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!(read_all(container.logs().unwrap()).await.stdout, b"/usr/bin/env\n");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_has_its_own_status_output_environment_and_end() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script(WAITS)).await.unwrap();
    said(&container, "ready").await;

    let id: ProcessId = "helper".parse().unwrap();
    let script = "echo $GREETING; pwd; echo oops >&2; exit 9";
    let options = ExecOptions::new(["sh", "-c", script]).env("GREETING=hello").cwd("/bin");
    let options = options.id(id.clone());
    let (exec, log) = container.exec_attached(options.clone()).await.unwrap();
    assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(9));
    let expected = Output { stdout: b"hello\n/bin\n".to_vec(), stderr: b"oops\n".to_vec() };
    assert_eq!(read_all(log).await, expected);
    assert_eq!(read_all(exec.logs().unwrap()).await, expected);
    let taken = container.exec(options.clone()).await.unwrap_err();
    assert!(matches!(taken, Error::ProcessExists(_, _)), "{taken}");
    exec.delete().await.unwrap();
    assert!(container.process(&id).is_none());
    let again = container.exec(options).await.unwrap();
    assert_eq!(soon("the exec", again.wait()).await.unwrap(), ExitStatus::Code(9));

    let sleeper = container.exec(ExecOptions::new(["sleep", "100000"])).await.unwrap();
    let early = sleeper.delete().await.unwrap_err();
    assert!(matches!(early, Error::WrongExecState { .. }), "{early}");
    sleeper.signal(SIGTERM).unwrap();
    assert_eq!(soon("the exec", sleeper.wait()).await.unwrap(), ExitStatus::Signal(SIGTERM));
    assert_eq!(container.info().status, Status::Running);

    // One that still runs goes with the container.
    let last = container.exec(ExecOptions::new(["sleep", "100000"])).await.unwrap();
    soon("the delete", container.delete_forced()).await.unwrap();
    assert_eq!(soon("the exec", last.wait()).await.unwrap(), ExitStatus::Signal(SIGKILL));
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_leaves_no_process_directory_runtime_state_or_cgroup() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("whole");
    // With processes in the background, one of which has left the session.
    let script = "setsid sleep 100000 & sleep 100000 & echo ready; wait; exit 99";
    let container = supervisor.run(scratch.script(script).id(id.clone())).await.unwrap();
    said(&container, "ready").await;
    let first = Proc::of(container.info().pid.unwrap()).unwrap();
    let shim = shim_of(&scratch.root(), id.as_str(), "init");
    let state = scratch.runtime_state().join(id.as_str());
    assert!(first.lives() && shim.lives() && state.is_dir());
    assert!(!cgroups_of(&id).is_empty());
    // The two sleeps, the shell, the shim, the directory, the runtime's state.
    assert_eq!(scratch.leftovers().len(), 6, "{:?}", scratch.leftovers());

    let refused = container.delete().await.unwrap_err();
    assert!(matches!(refused, Error::WrongState { status: "running", .. }), "{refused}");
    assert!(first.lives() && shim.lives());

    soon("the delete", container.delete_forced()).await.unwrap();
    assert!(!first.exists(), "the container's process");
    assert!(!shim.exists(), "the shim, or its zombie");
    assert_eq!(scratch.leftovers(), [""; 0]);
    assert_eq!(cgroups_of(&id), [""; 0].map(std::path::PathBuf::from));
    assert!(matches!(supervisor.get(&id), Err(Error::NotFound(_))));
    assert!(matches!(container.delete().await, Err(Error::NotFound(_))));
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL), "known after the delete");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_id_is_refused_and_its_container_is_left_in_peace() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("twice");
    let container = supervisor.run(scratch.script(WAITS).id(id.clone())).await.unwrap();
    said(&container, "ready").await;
    let error = supervisor.run(scratch.script("true").id(id.clone())).await.unwrap_err();
    assert!(matches!(&error, Error::Exists(taken) if *taken == id), "{error}");
    assert_eq!(supervisor.get(&id).unwrap().info().status, Status::Running);
    assert_eq!(supervisor.list().len(), 1);
    soon("the delete", container.delete_forced()).await.unwrap();
    let next = supervisor.run(scratch.script("exit 5").id(id)).await.unwrap();
    assert_eq!(status(&next).await, ExitStatus::Code(5));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_unknown_or_no_bundle_is_said_and_leaves_nothing() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let unknown = supervisor.get(&"nobody".parse().unwrap()).unwrap_err();
    assert_eq!(unknown.to_string(), "no such container: nobody");

    let config = scratch.bundle().join("config.json");
    let good = std::fs::read(&config).unwrap();
    let refused = async |reason: &str| {
        let error = supervisor.run(scratch.options([""; 0])).await.unwrap_err();
        assert!(matches!(error, Error::Bundle { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains(scratch.bundle().to_str().unwrap()), "{error}");
        assert_eq!(scratch.leftovers(), [""; 0]);
    };
    std::fs::write(&config, "{").unwrap();
    refused("not JSON").await;
    std::fs::write(&config, &good).unwrap();
    edit_json(&config, |config| config["process"]["args"] = serde_json::json!([]));
    refused("no process.args").await;
    std::fs::remove_file(&config).unwrap();
    refused("config.json").await;
    std::fs::remove_dir_all(scratch.bundle()).unwrap();
    refused("No such file").await;
    assert!(supervisor.list().is_empty());
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everyone_who_waits_is_told_before_and_after_the_exit_and_the_delete() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let gate = scratch.gate();
    let container = supervisor.run(scratch.script(&gate.script("true"))).await.unwrap();
    let early: Vec<_> = (0..16)
        .map(|_| {
            let container = container.clone();
            tokio::spawn(async move { status(&container).await })
        })
        .collect();
    // One who gives up takes nothing from the others.
    tokio::time::timeout(std::time::Duration::ZERO, container.wait()).await.unwrap_err();
    gate.open(21);
    for waiter in early {
        assert_eq!(waiter.await.unwrap(), ExitStatus::Code(21));
    }
    assert_eq!(status(&container).await, ExitStatus::Code(21));
    soon("the delete", container.delete()).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(21));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auto_removed_container_goes_and_leaves_status_and_output() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let id = unique_id("brief");
    let options = scratch.script("echo brief; exit 4").id(id.clone()).auto_remove();
    let (container, log) = supervisor.run_attached(options).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(4));
    assert_eq!(read_all(log).await, Output::of("brief\n"));
    events_until(&mut events, |event| event.kind == EventKind::Deleted).await;
    assert!(matches!(container.delete().await, Err(Error::NotFound(_))));
    drop(container);
    // The shutdown waits for what was begun, the removal among it.
    soon("the shutdown", supervisor.shutdown()).await;
    assert_eq!(scratch.leftovers(), [""; 0]);
    let supervisor = scratch.open().await;
    assert!(matches!(supervisor.get(&id), Err(Error::NotFound(_))));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_in_order_and_numbered_without_a_gap() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let deleted = |event: &Event| event.kind == EventKind::Deleted;
    let words = |events: &[Event]| -> Vec<String> {
        let first = events[0].seq;
        assert!((first..).zip(events).all(|(seq, event)| event.seq == seq), "{events:?}");
        events.iter().map(in_words).collect()
    };

    let run = supervisor.run(scratch.script("exit 1")).await.unwrap();
    status(&run).await;
    run.delete().await.unwrap();
    let told = words(&events_until(&mut events, deleted).await);
    assert_eq!(told, ["init created", "init started", "init exited 1", "init deleted"]);
    let after_the_first = events.cursor();

    let script = format!("trap 'exit 2' TERM; {WAITS}");
    let created = supervisor.create(scratch.script(&script)).await.unwrap();
    created.start().await.unwrap();
    said(&created, "ready").await;
    let options = ExecOptions::new(["sh", "-c", "exit 6"]).id("more".parse().unwrap());
    let exec = created.exec(options).await.unwrap();
    soon("the exec", exec.wait()).await.unwrap();
    created.signal(SIGTERM).unwrap();
    status(&created).await;
    let mut replay = supervisor.events_since(after_the_first);
    created.delete().await.unwrap();
    let live = events_until(&mut events, deleted).await;
    let expected = [
        "init created",
        "init starting",
        "init started",
        "more created",
        "more started",
        "more exited 6",
        "init exited 2",
        "init deleted",
    ];
    assert_eq!(words(&live), expected);
    assert_eq!(events_until(&mut replay, deleted).await, live, "the replay, then what came");
    scratch.close(supervisor).await;
}

/// At 91d2b83 it counted as shut down, and left a container that nobody could delete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_no_clock_reaches_is_none() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let options = scratch.script("exit 3").start_timeout(Duration::MAX);
    let container = soon("a start", supervisor.run(options)).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(3));
    scratch.close(supervisor).await;
}

/// At 91d2b83 a program of `--rootfs` had 1024 of them, whoever said what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_a_root_file_system_may_open_as_many_files_as_the_supervisor_says() {
    let scratch = Scratch::new();
    let supervisor = scratch.builder().container_nofile(Some(2000)).open().await.unwrap();
    let rootfs = scratch.bundle().join("rootfs");
    let options = ContainerOptions::rootfs(rootfs).args(["sh", "-c", "ulimit -Sn"]);
    let container = supervisor.run(options.id(unique_id("limits"))).await.unwrap();
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("2000\n"));
    scratch.close(supervisor).await;
}

/// At 91d2b83 four of thirty said that it was done, and the container was still there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_by_force_while_it_starts_is_gone() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for number in 0..30 {
        let id = unique_id("short");
        let options = scratch.script(WAITS).id(id.clone());
        let start = tokio::spawn({
            let supervisor = supervisor.clone();
            async move { supervisor.run(options).await }
        });
        let container = loop {
            match supervisor.get(&id) {
                Ok(container) => break container,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        // At another moment of the start each time.
        tokio::time::sleep(Duration::from_millis(number)).await;
        soon("the deletion", container.delete_forced()).await.unwrap();
        assert!(matches!(supervisor.get(&id), Err(Error::NotFound(_))), "{id} is still there");
        // The start may have come to its end before.
        let _ = soon("the start", start).await.unwrap();
        assert_eq!(cgroups_of(&id), Vec::<std::path::PathBuf>::new(), "of {id}");
    }
    scratch.close(supervisor).await;
}

/// At 91d2b83 a container could be shown as stopped without an exit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_shown_of_a_container_was_so_at_one_moment() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for _ in 0..20 {
        let container = supervisor.run(scratch.options(["true"])).await.unwrap();
        loop {
            let info = container.info();
            let is_stopped = info.status == Status::Stopped;
            assert_eq!(info.exit.is_some(), is_stopped, "{info:?}");
            assert!(info.pid.is_none() || !is_stopped, "{info:?}");
            if is_stopped {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    scratch.close(supervisor).await;
}

/// At 91d2b83 what goes by a path went to the next container of the id: input, its end, the output.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_of_a_container_that_was_deleted_acts_on_no_other_that_has_its_id() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("again");
    let piped = || Stdio::default().stdin(Stdin::Pipe);
    let options = |script: &str| scratch.script(script).id(id.clone()).stdio(piped());
    let old = supervisor.run(options("exit 1")).await.unwrap();
    status(&old).await;
    old.delete().await.unwrap();
    let new = supervisor.run(options("echo new; cat; exit 7")).await.unwrap();
    said(&new, "new").await;

    let size = TerminalSize { width: 80, height: 24 };
    let told = [
        ("stdin", old.stdin().map(drop)),
        ("close_stdin", old.close_stdin()),
        ("resize", old.resize(size)),
        ("reopen_logs", old.reopen_logs()),
        ("logs", old.logs().map(drop)),
        ("delete", old.delete().await),
        ("delete_forced", old.delete_forced().await),
    ];
    for (what, result) in told {
        assert!(matches!(result, Err(Error::NotFound(_))), "{what}: {result:?}");
    }
    let refused = [
        ("start", old.start().await),
        ("signal", old.signal(SIGKILL)),
        ("pause", old.pause().await),
        ("resume", old.resume().await),
        ("exec", old.exec(ExecOptions::new(["true"])).await.map(drop)),
        ("processes", old.processes().await.map(drop)),
        ("stats", old.stats().await.map(drop)),
    ];
    for (what, result) in refused {
        assert!(result.is_err(), "{what} of what was deleted");
    }
    assert_eq!(old.stdin_path(), None);
    assert_eq!(old.wait().await.unwrap(), ExitStatus::Code(1), "its own");

    let mut input = new.stdin().unwrap();
    input.write_all(b"mine\n").await.unwrap();
    drop(input);
    new.close_stdin().unwrap();
    assert_eq!(status(&new).await, ExitStatus::Code(7));
    assert_eq!(read_all(new.logs().unwrap()).await, Output::of("new\nmine\n"));
    scratch.close(supervisor).await;
}

/// At 91d2b83: "has lost its shim", no error at all, and a bare "No such file or directory".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_says_what_is_missing() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script(WAITS)).await.unwrap();
    let size = TerminalSize { width: 80, height: 24 };
    let error = container.resize(size).unwrap_err();
    assert!(error.to_string().ends_with("has no terminal"), "{error}");
    let error = container.stdin().unwrap_err();
    assert!(error.to_string().ends_with("was made without an input"), "{error}");
    container.signal(SIGKILL).unwrap();
    status(&container).await;
    let error = loop {
        // Its shim may still be there for a moment.
        match container.close_stdin() {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("is stopped, and closing its input"), "{error}");
    // Each cause once, however it is printed.
    let missing = ContainerOptions::bundle(scratch.bundle()).id(unique_id("x"));
    let nowhere = missing.stdio(Stdio::default().stdout_fifo("/no/such/fifo"));
    let error: Box<dyn std::error::Error> = supervisor.run(nowhere).await.unwrap_err().into();
    let text = error.to_string();
    assert!(error.source().is_none_or(|source| !text.contains(&source.to_string())), "{text}");
    scratch.close(supervisor).await;
}
