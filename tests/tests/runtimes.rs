//! What a runtime is told: checkpoints and restores, and options of the user's.

use std::fs;
use std::path::{Path, PathBuf};

use holdfast_supervisor::{
    CheckpointOptions, Container, ContainerOptions, Error, Event, EventKind, ExecOptions,
    ExitStatus, Status,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::{
    Holdfast, Scratch, binary, edit_json, events_until, executable, runtime_name, soon, status,
    unique_id,
};
use serde_json::{Value, json};

const SIGKILL: i32 = 9;

fn text(path: impl Into<PathBuf>) -> String {
    path.into().into_os_string().into_string().expect("a path in UTF-8")
}

/// Has the fake runtime write down how it is called, and do this.
fn recorded(scratch: &Scratch, mode: &str) {
    edit_json(&scratch.bundle().join("config.json"), |config| {
        let record = scratch.path().join("record");
        config["annotations"] = json!({ "fake": mode, "fake-record": record });
    });
}

/// All calls of this command until now.
fn calls(scratch: &Scratch, verb: &str) -> Vec<Vec<String>> {
    let record = fs::read_to_string(scratch.path().join("record")).unwrap_or_default();
    let calls = record.lines().map(|line| serde_json::from_str(line).expect("a call"));
    calls.filter(|call: &Vec<String>| call.iter().any(|arg| arg == verb)).collect()
}

fn fake(scratch: &Scratch) -> ContainerOptions {
    scratch.options(["sleep", "100000"]).runtime(text(binary("fake-runtime")))
}

fn runtime_root(scratch: &Scratch) -> String {
    text(scratch.root().join(".runtime/fake-runtime"))
}

/// A call with these arguments after `--root` and the log, which is in this directory for what the shim runs.
fn expected(scratch: &Scratch, process: Option<&Path>, args: &[&str]) -> Vec<String> {
    let mut all = vec!["--root".to_owned(), runtime_root(scratch)];
    let log = process.map_or("/dev/stderr".to_owned(), |dir| text(dir.join("log.json")));
    all.extend(["--log".to_owned(), log, "--log-format".to_owned(), "json".to_owned()]);
    all.extend(args.iter().map(|&arg| arg.to_owned()));
    all
}

fn init_dir(scratch: &Scratch, container: &Container) -> PathBuf {
    scratch.root().join(container.id().as_str()).join("init")
}

fn read_config(images: &Path) -> Value {
    serde_json::from_slice(&fs::read(images.join("config.json")).expect("read it")).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_and_its_restore_are_told_the_same_to_the_runtime() {
    let scratch = Scratch::new();
    recorded(&scratch, "");
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let ended = |event: &Event| matches!(event.kind, EventKind::Exited { .. });
    let container = supervisor.run(fake(&scratch)).await.unwrap();
    let id = container.id().as_str();
    let (images, work) = (scratch.path().join("a/images"), scratch.path().join("work"));
    let all = CheckpointOptions::new(&images).work_path(&work).leave_running().shell_job();
    let all =
        all.tcp_established().unix_sockets().empty_namespace("network").empty_namespace("ipc");
    container.checkpoint(all).await.unwrap();
    let flags = [
        "--shell-job",
        "--tcp-established",
        "--ext-unix-sk",
        "--empty-ns",
        "network",
        "--empty-ns",
        "ipc",
    ];
    let (images, work) = (text(images), text(work));
    let paths = ["checkpoint", "--image-path", &images, "--work-path", &work];
    let args = [&paths[..], &flags, &["--leave-running", id]].concat();
    assert_eq!(calls(&scratch, "checkpoint"), [expected(&scratch, None, &args)]);
    assert_eq!(container.info().status, Status::Running);
    let mut config = read_config(Path::new(&images));
    assert!(config["created"].take().as_str().is_some_and(|time| time.ends_with('Z')));
    let of_seed = json!({
        "created": null, "name": "", "tcp": true, "unixSockets": true, "shell": true, "exit": false,
        "emptyNS": ["network", "ipc"],
    });
    assert_eq!(config, of_seed);

    let restored = fake(&scratch).checkpoint(&images).no_pivot_root();
    let restored = supervisor.run(restored).await.unwrap();
    let dir = init_dir(&scratch, &restored);
    let (pid, bundle) = (text(dir.join("pid")), text(dir.join("../.bundle").as_path()));
    let bundle = bundle.replace("/init/..", "");
    let work = format!("{images}/criu.work");
    let paths = ["restore", "--detach", "--image-path", &images, "--work-path", &work];
    let rest = ["--pid-file", &pid, "--bundle", &bundle, "--no-pivot", restored.id().as_str()];
    let args = [&paths[..], &flags, &rest].concat();
    assert_eq!(calls(&scratch, "restore"), [expected(&scratch, Some(&dir), &args)]);
    assert_eq!(restored.info().status, Status::Running);
    restored.signal(SIGKILL).unwrap();
    assert_eq!(status(&restored).await, ExitStatus::Signal(SIGKILL));
    let told = events_until(&mut events, ended).await;
    let told: Vec<_> = told.iter().map(in_words).collect();
    let expected_words = ["created", "started", "checkpointed", "created", "started"];
    let expected_words = expected_words.map(|word| format!("init {word}"));
    assert_eq!(told[..5], expected_words);

    // By default the container ends with it.
    let images = scratch.path().join("plain");
    container.checkpoint(CheckpointOptions::new(&images)).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL));
    let (images, work) = (text(images.clone()), text(images.join("criu.work")));
    let args = ["checkpoint", "--image-path", &images, "--work-path", &work, id];
    assert_eq!(calls(&scratch, "checkpoint")[1], expected(&scratch, None, &args));
    assert_eq!(read_config(Path::new(&images))["exit"], true);
    let told = events_until(&mut events, ended).await;
    assert_eq!(in_words(&told[0]), "init checkpointed");
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_command_line_checkpoints_and_restores() {
    let holdfast = Holdfast::start().await;
    recorded(&holdfast.scratch, "");
    let (id, runtime) = (unique_id("source").to_string(), text(binary("fake-runtime")));
    let options = ["--name", &id, "--runtime", &runtime];
    holdfast.run_detached(&options, &["sleep", "100000"]).await;
    // Relative to where the command stands.
    let flags = ["--tcp", "--unix-sockets", "--shell-job", "--empty-ns", "network"];
    let paths = ["checkpoint", "--path", "images", "--work-path", "work"];
    let args = [&paths[..], &flags, &["--leave-running", &id]].concat();
    let mut command = holdfast.command(&args);
    command.current_dir(holdfast.scratch.path());
    let ran = holdfast_tests::ran(command).await;
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(0), "", ""));
    let [images, work] = ["images", "work"].map(|name| text(holdfast.scratch.path().join(name)));
    let told = ["--shell-job", "--tcp-established", "--ext-unix-sk", "--empty-ns", "network"];
    let paths = ["checkpoint", "--image-path", &images, "--work-path", &work];
    let args = [&paths[..], &told, &["--leave-running", &id]].concat();
    let scratch = &holdfast.scratch;
    assert_eq!(calls(scratch, "checkpoint"), [expected(scratch, None, &args)]);

    let options = ["--runtime", &runtime, "--checkpoint", &images];
    let restored = holdfast.run_detached(&options, &["sleep", "100000"]).await;
    assert_eq!(holdfast.inspect(&restored).await["status"], "running");
    let restore = &calls(&holdfast.scratch, "restore")[0];
    assert!(restore.windows(told.len()).any(|part| part == told), "{restore:?}");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_that_cannot_be_made_or_used_is_refused_and_leaves_all_as_it_was() {
    let scratch = Scratch::new();
    recorded(&scratch, "fail-in-checkpoint");
    let supervisor = scratch.open().await;
    let container = supervisor.run(fake(&scratch)).await.unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "kept").unwrap();
    let error = container.checkpoint(CheckpointOptions::new(&file)).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("make /"), "{error}");
    assert_eq!(calls(&scratch, "checkpoint").len(), 0, "the runtime was not asked");

    let images = scratch.path().join("images");
    let error = container.checkpoint(CheckpointOptions::new(&images)).await.unwrap_err();
    assert!(matches!(error, Error::Runtime(_)), "{error}");
    assert!(error.to_string().contains("made to fail in checkpoint"), "{error}");
    assert!(!images.join("config.json").exists(), "what was not made is not described");
    assert_eq!(container.info().status, Status::Running);
    let created = supervisor.create(fake(&scratch)).await.unwrap();
    let error = created.checkpoint(CheckpointOptions::new(&images)).await.unwrap_err();
    assert!(matches!(error, Error::WrongState { operation: "checkpoint", .. }), "{error}");
    soon("the delete", created.delete()).await.unwrap();

    let missing = scratch.path().join("missing");
    fs::write(images.join("config.json"), "{").unwrap();
    for (path, reason) in
        [(&missing, "No such file"), (&file, "not a directory"), (&images, "config.json: ")]
    {
        let error = supervisor.run(fake(&scratch).checkpoint(path)).await.unwrap_err();
        assert!(
            matches!(&error, Error::Checkpoint { path: named, .. } if named == path),
            "{error}"
        );
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(calls(&scratch, "restore").len(), 0);
    assert_eq!(supervisor.list().len(), 1);
    soon("the delete", container.delete_forced()).await.unwrap();
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

/// As containerd has it for an image of a checkpoint: it pauses the container before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_container_can_be_checkpointed_and_stays_paused_also_if_that_fails() {
    for (mode, works) in [("", true), ("fail-in-checkpoint", false)] {
        let scratch = Scratch::new();
        recorded(&scratch, mode);
        let supervisor = scratch.open().await;
        let container = supervisor.run(fake(&scratch)).await.unwrap();
        container.pause().await.unwrap();
        let options = CheckpointOptions::new(scratch.path().join("images")).leave_running();
        assert_eq!(container.checkpoint(options).await.is_ok(), works);
        assert_eq!(container.info().status, Status::Paused);
        assert_eq!(calls(&scratch, "resume").len(), 0);
        container.resume().await.unwrap();
        soon("the delete", container.delete_forced()).await.unwrap();
        scratch.close(supervisor).await;
    }
}

/// As under containerd and conmon: wrappers of a runtime read `config.json` there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runtime_runs_in_the_bundle() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let (wrapper, told) = (scratch.path().join("wrapper"), scratch.path().join("told"));
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *' run '*|*' exec '*) pwd >> {};; esac\nexec {} \"$@\"\n",
        told.display(),
        binary("fake-runtime").display()
    );
    executable::script(&wrapper, &script);
    let container = supervisor.run(fake(&scratch).runtime(text(&wrapper))).await.unwrap();
    let exec = container.exec(ExecOptions::new(["true"])).await.unwrap();
    soon("the exec", exec.wait()).await.unwrap();
    let bundle = container.info().bundle.display().to_string();
    assert_eq!(std::fs::read_to_string(told).unwrap(), format!("{bundle}\n{bundle}\n"));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pivot_and_arguments_of_the_users_reach_the_runtime() {
    let scratch = Scratch::new();
    recorded(&scratch, "");
    let supervisor = scratch.open().await;
    let options = || fake(&scratch).runtime_args(["--debug", "--systemd-cgroup"]).no_pivot_root();
    let run = supervisor.run(options()).await.unwrap();
    let exec = run.exec(ExecOptions::new(["true"])).await.unwrap();
    soon("the exec", exec.wait()).await.unwrap();
    let created = supervisor.create(options()).await.unwrap();
    created.start().await.unwrap();
    for (verb, no_pivot) in [("run", true), ("create", true), ("exec", false), ("start", false)] {
        let calls = calls(&scratch, verb);
        assert_eq!(calls.len(), 1, "{verb}");
        let at = calls[0].iter().position(|arg| arg == verb).unwrap();
        assert_eq!(calls[0][at - 2..at], ["--debug", "--systemd-cgroup"], "{verb}");
        assert_eq!(calls[0].contains(&"--no-pivot".to_owned()), no_pivot, "{verb}");
    }
    let plain = supervisor.run(fake(&scratch)).await.unwrap();
    assert!(!calls(&scratch, "run")[1].iter().any(|arg| arg == "--no-pivot" || arg == "--debug"));
    drop((run, exec, created, plain));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_of_the_users_reach_every_command_of_the_runtime() {
    let scratch = Scratch::new();
    recorded(&scratch, "");
    let supervisor = scratch.open().await;
    let run = supervisor.run(fake(&scratch).runtime_args(["--debug"])).await.unwrap();
    run.pause().await.unwrap();
    run.resume().await.unwrap();
    run.update(&json!({})).await.unwrap();
    let images = scratch.path().join("images");
    run.checkpoint(CheckpointOptions::new(images)).await.unwrap();
    status(&run).await;
    soon("the delete", run.delete()).await.unwrap();
    for verb in ["pause", "resume", "update", "checkpoint", "delete"] {
        let calls = calls(&scratch, verb);
        assert!(calls[0].contains(&"--debug".to_owned()), "{calls:?}");
    }
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_real_runtime_takes_them_from_the_command_line() {
    let holdfast = Holdfast::start().await;
    let options = ["--no-pivot", "--runtime-arg=--debug", "--runtime", runtime_name()];
    let id = holdfast.run_detached(&options, &["sleep", "100000"]).await;
    let log = holdfast.root().join(&id).join("init/log.json");
    let log = fs::read_to_string(log).expect("read the runtime's log");
    assert!(log.contains("\"level\":\"debug\""), "{log}");
    assert_eq!(holdfast.inspect(&id).await["runtime"], runtime_name());
    let script = "exit 3";
    let run = ["run", "--runtime-arg=--no-such-option", "--bundle"];
    let bundle = text(holdfast.scratch.bundle());
    let args = [&run[..], &[&bundle, "--", "sh", "-c", script]].concat();
    let message = holdfast.fails(125, &args).await;
    assert!(message.contains("no-such-option"), "{message}");
    holdfast.close().await;
}
