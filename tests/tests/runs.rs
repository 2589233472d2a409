//! Tests of starting a stopped container again.

use std::fs;
use std::time::Duration;

use holdfast_supervisor::{
    Container, ContainerOptions, Error, ErrorKind, EventKind, ExecOptions, ExitStatus, Status,
    Stdin, Stdio,
};
use holdfast_tests::{
    Holdfast, Scratch, binary, cgroups_of, edit_json, events_until, read_all, said, soon, status,
    unique_id,
};
use nix::libc::{SIGKILL, SIGTERM};
use tokio::io::AsyncWriteExt;

/// The options of a container whose exit code counts its runs.
fn counting(scratch: &Scratch) -> ContainerOptions {
    let data = scratch.path().join("data");
    fs::create_dir_all(&data).expect("a directory");
    fs::write(data.join("count"), "0").expect("a file");
    let script = "n=$(($(cat /data/count) + 1)); echo run $n; echo $n > /data/count; exit $n";
    scratch.script(script).bind(data, "/data")
}

async fn starts(container: &Container) {
    soon("the start", container.start()).await.expect("start");
}

/// Returns the numbers of the earlier runs, with their exit codes.
async fn runs(container: &Container) -> Vec<(u32, Option<ExitStatus>)> {
    let runs = container.runs().await.expect("the runs");
    runs.into_iter().map(|run| (run.run, run.exit.map(|exit| exit.status))).collect()
}

fn code(code: u8) -> Option<ExitStatus> {
    Some(ExitStatus::Code(code))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_container_starts_again_and_keeps_the_exit_of_each_run() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let id = unique_id("again");
    let options = counting(&scratch).id(id.clone()).label("of", "mine");
    let container = supervisor.run(options).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(1));
    let first = container.info();
    assert_eq!((first.run, runs(&container).await), (1, vec![]));
    starts(&container).await;
    assert_eq!(status(&container).await, ExitStatus::Code(2));
    let second = container.info();
    assert_eq!((second.status, second.run, second.exit_status), (Status::Stopped, 2, Some(2)));
    assert_eq!((&second.incarnation, &second.created), (&first.incarnation, &first.created));
    assert!(second.started > first.started && second.finished() >= second.started.as_ref());
    assert_eq!(second.labels["of"], "mine");
    assert_eq!(runs(&container).await, [(1, code(1))]);
    assert_eq!(container.runs().await.unwrap()[0].exit, first.exit);

    // After a restart of the supervisor everything is as it was.
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    let restored = container.info();
    assert_eq!(
        (restored.run, &restored.exit, &restored.started),
        (2, &second.exit, &second.started)
    );
    starts(&container).await;
    assert_eq!(status(&container).await, ExitStatus::Code(3));
    assert_eq!(runs(&container).await, [(1, code(1)), (2, code(2))]);
    assert_eq!(read_all(container.logs().unwrap()).await.stdout, b"run 1\nrun 2\nrun 3\n");
    container.delete().await.unwrap();
    let mut again = supervisor.events_since(events.cursor());
    let told = events_until(&mut again, |event| event.kind == EventKind::Deleted).await;
    let told: Vec<_> = told
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Created { .. } => Some((event.run, "created".to_owned())),
            EventKind::Started => Some((event.run, "started".to_owned())),
            EventKind::Exited { status, .. } => Some((event.run, status.to_string())),
            _ => None,
        })
        .collect();
    let expected: Vec<_> = (1..=3)
        .flat_map(|run| ["created", "started", &run.to_string()].map(|it| (run, it.to_owned())))
        .collect();
    assert_eq!(told, expected);
    drop(events.next());
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_fails_to_start_leaves_the_container_with_its_last_exit() {
    let scratch = Scratch::new();
    let mut supervisor = scratch.open().await;
    let id = unique_id("unstartable");
    let container = supervisor.run(scratch.options(["true"]).id(id.clone())).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    let first = container.info();
    let exit = first.exit;
    let config = container.info().bundle.join("config.json");
    let mut args = serde_json::Value::Null;
    edit_json(&config, |config| {
        args = config["process"]["args"].take();
        config["process"]["args"] = serde_json::json!(["/nosuch"]);
    });
    for attempt in 2..4 {
        let mut container = supervisor.get(&id).unwrap();
        let error = soon("the start", container.start()).await.unwrap_err();
        assert!(matches!(error, Error::Runtime(_)) && error.to_string().contains("nosuch"));
        if attempt == 3 {
            soon("the shutdown", supervisor.shutdown()).await;
            supervisor = scratch.open().await;
            container = supervisor.get(&id).unwrap();
        }
        let info = container.info();
        assert_eq!((info.status, info.run, &info.exit), (Status::Stopped, 1, &exit));
        assert_eq!(info.started, first.started);
        assert_eq!(status(&container).await, ExitStatus::Code(0));
        let failed = container.runs().await.unwrap().pop().unwrap();
        assert!(failed.run == attempt && failed.error.unwrap().contains("nosuch"));
        assert!(cgroups_of(&id).is_empty(), "{:?}", cgroups_of(&id));
    }
    edit_json(&config, |config| config["process"]["args"] = args);
    let container = supervisor.get(&id).unwrap();
    starts(&container).await;
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!(container.info().run, 4);
    let runs: Vec<_> = container.runs().await.unwrap().iter().map(|run| run.run).collect();
    assert_eq!(runs, [1, 2, 3]);
    let told = supervisor.past_exit(&id).await.unwrap();
    assert_eq!(told.status, ExitStatus::Code(0));
    container.delete().await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_ends_the_run_and_its_execs_and_begins_another() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let stdio = || Stdio::new().stdin(Stdin::Pipe);
    let script = "trap 'exit 7' TERM; read line; echo got $line; while :; do sleep 0.1; done";
    let container = supervisor.run(scratch.script(script).stdio(stdio())).await.unwrap();
    let mut last = None;
    for run in 1..=3 {
        let info = container.info();
        assert_eq!((info.status, info.run), (Status::Running, run));
        assert_ne!(info.pid, last, "the pid of the last run");
        assert!(info.shim_pid.is_some());
        last = info.pid;
        let mut input = container.stdin().unwrap();
        input.write_all(format!("{run}\n").as_bytes()).await.unwrap();
        said(&container, &format!("got {run}")).await;
        let exec = container.exec(ExecOptions::new(["sleep", "1000"])).await.unwrap();
        // A wait that began before the restart returns the exit of the run that it waited for.
        let waits = async {
            let restarted = container.restart(SIGTERM, Duration::from_secs(60));
            tokio::join!(biased; container.wait(), restarted)
        };
        let (of_this_run, restarted) = soon("the restart", waits).await;
        restarted.unwrap();
        assert_eq!(of_this_run.unwrap(), ExitStatus::Code(7));
        assert_eq!(exec.wait().await.unwrap(), ExitStatus::Signal(SIGKILL));
        assert_eq!(exec.info().status, Status::Stopped);
    }
    assert_eq!(container.info().execs.len(), 3);
    container.delete_forced().await.unwrap();
    assert!(matches!(container.start().await, Err(Error::NotFound(_))));
    assert!(matches!(container.runs().await, Err(Error::NotFound(_))));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_container_that_is_created_or_stopped_can_be_started() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "1000"])).await.unwrap();
    let error = container.start().await.unwrap_err();
    assert!(error.to_string().contains("is running, and start needs it created or stopped"));
    container.delete_forced().await.unwrap();

    let goes = supervisor.run(scratch.options(["sleep", "1000"]).auto_remove()).await.unwrap();
    let error = goes.restart(SIGKILL, Duration::ZERO).await.unwrap_err();
    assert!(error.to_string().contains("restart needs it kept after its exit"), "{error}");
    assert_eq!(goes.info().status, Status::Running);
    goes.delete_forced().await.unwrap();

    let removed = supervisor.run(scratch.options(["true"]).auto_remove()).await.unwrap();
    status(&removed).await;
    let error = removed.start().await.unwrap_err();
    assert!(matches!(error, Error::WrongState { .. } | Error::NotFound(_)), "{error}");
    scratch.close(supervisor).await;
}

/// Starts at the same time: one of them begins the next run, the other is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_starts_at_once_one_is_refused() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "1000"])).await.unwrap();
    for _ in 0..5 {
        container.stop(SIGKILL, Duration::from_secs(10)).await.unwrap();
        let (one, other) = tokio::join!(container.start(), container.start());
        assert!(one.is_ok() != other.is_ok(), "{one:?}, {other:?}");
        let refused = one.and(other).unwrap_err();
        assert!(matches!(refused, Error::WrongState { .. }), "{refused}");
    }
    assert_eq!(container.info().run, 6);
    container.delete_forced().await.unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_and_a_forced_deletion_cancel_the_start_of_a_further_run() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let runtime = binary("fake-runtime").into_os_string().into_string().expect("UTF-8");
    let container =
        supervisor.run(scratch.options(["sleep", "1000"]).runtime(runtime)).await.unwrap();
    container.stop(SIGKILL, Duration::from_secs(10)).await.unwrap();
    edit_json(&container.info().bundle.join("config.json"), |config| {
        config["annotations"] = serde_json::json!({ "fake": "hang-in-create" });
    });
    let starting = tokio::spawn({
        let container = container.clone();
        async move { container.start().await }
    });
    while container.info().status != Status::Creating {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The runtime is not asked for who is there: it knows no such container yet.
    let refused = container.signal_all(SIGKILL).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WrongState, "{refused}");
    // A stop also cancels the start. A wait then returns the exit of the last run.
    let waiting = tokio::spawn({
        let container = container.clone();
        async move { container.exit().await }
    });
    tokio::task::yield_now().await;
    let exit = soon("the stop", container.stop(SIGKILL, Duration::from_secs(10))).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(SIGKILL));
    assert!(starting.await.unwrap().is_err());
    assert_eq!(soon("the wait", waiting).await.unwrap().unwrap(), exit);
    assert_eq!(container.info().status, Status::Stopped);
    let starting = tokio::spawn({
        let container = container.clone();
        async move { container.start().await }
    });
    while container.info().status != Status::Creating {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    soon("the deletion", container.delete_forced()).await.unwrap();
    assert!(starting.await.unwrap().is_err());
    assert!(supervisor.get(container.id()).is_err());
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn a_start_in_the_foreground_shows_this_run_and_returns_its_status() {
    let holdfast = Holdfast::start().await;
    let bundle = holdfast.scratch.bundle().display().to_string();
    let create = async |options: &[&str], script: &str| {
        let bundle = ["--bundle", &bundle, "--", "sh", "-c", script];
        let id = holdfast.ok(&[&["create"], options, &bundle].concat()).await;
        id.trim().to_owned()
    };
    let script = "read -r line; echo got $line; echo err >&2; exit 7";
    for log in ["cri", "json-file", "cri,max-size=4096,max-files=2"] {
        let id = create(&["-i", "--log", log], script).await;
        for round in 0..3 {
            let mut command = holdfast.command(&["start", "-ai", &id]);
            let piped = std::process::Stdio::piped;
            command.stdin(piped()).stdout(piped()).stderr(piped());
            let mut child = command.spawn().expect("start");
            let mut input = child.stdin.take().expect("the input");
            let line = format!("{log} {round}\n");
            soon("the input", input.write_all(line.as_bytes())).await.expect("it is read");
            drop(input);
            let ended = soon("the end", child.wait_with_output()).await.expect("its output");
            assert_eq!(ended.status.code(), Some(7), "{ended:?}");
            assert_eq!(String::from_utf8_lossy(&ended.stdout), format!("got {line}"));
            assert_eq!(String::from_utf8_lossy(&ended.stderr), "err\n");
        }
    }
    // Such a log does not tell the streams apart.
    let id = create(&["--log", "file"], "echo hi; echo err >&2; exit 5").await;
    for _ in 0..2 {
        let ran = holdfast.run(&["start", "-a", &id]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(5), "hi\nerr\n"), "{ran:?}");
    }
    // Its output and its status are known though it is removed at once.
    let id = create(&["--rm"], "echo hi; exit 3").await;
    let ran = holdfast.run(&["start", "-a", &id]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), "hi\n"), "{ran:?}");
    let id = create(&["--log", "none"], "echo hi; exit 4").await;
    for _ in 0..2 {
        let ran = holdfast.run(&["start", "-a", &id]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(4), ""), "{ran:?}");
    }
    let id = create(&[], "exec sleep 100000").await;
    holdfast.ok(&["start", &id]).await;
    let said = holdfast.fails(125, &["start", "-a", &id]).await;
    assert!(said.contains("running"), "{said}");
    let said = holdfast.fails(125, &["start", "-a", &id, &id]).await;
    assert!(said.contains("one container"), "{said}");
    holdfast.close().await;
}

#[tokio::test]
async fn the_command_line_stops_starts_and_restarts() {
    let holdfast = Holdfast::start().await;
    let id = unique_id("cli-again");
    let name = id.as_str();
    let named = format!("{name}\n");
    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    holdfast.run_detached(&["--name", name], &["sh", "-c", script]).await;
    holdfast.said(name, "ready").await;
    assert_eq!(holdfast.ok(&["stop", name]).await, named);
    assert_eq!(holdfast.ok(&["wait", name]).await, "3\n");
    assert_eq!(holdfast.ok(&["start", name]).await, named);
    assert_eq!(holdfast.inspect(name).await["run"], 2);
    // One that does not care is killed when its time is over.
    assert_eq!(holdfast.ok(&["restart", "--signal", "CONT", "--time", "0", name]).await, named);
    let info = holdfast.inspect(name).await;
    assert_eq!((&info["run"], &info["status"]), (&3.into(), &"running".into()));
    let wrong = holdfast.fails(1, &["start", name]).await;
    assert!(wrong.contains("needs it created or stopped"), "{wrong}");
    assert_eq!(holdfast.ok(&["rm", "--force", name]).await, named);
    holdfast.close().await;
}

/// Its files have the place of those of the run before. What is asked of the container meanwhile is answered of one
/// run or of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_asked_while_another_run_begins() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("echo out")).await.unwrap();
    let asked = tokio::spawn({
        let container = container.clone();
        async move {
            let mut most = 0;
            while most < 40 {
                most = container.runs().await.unwrap().len();
                drop(container.logs().unwrap());
            }
        }
    });
    for _ in 0..40 {
        soon("an exit", container.exit()).await.unwrap();
        container.start().await.unwrap();
    }
    soon("the answers", asked).await.unwrap();
    soon("an exit", container.exit()).await.unwrap();
    scratch.close(supervisor).await;
}
