//! What goes wrong, as its user sees it: the error, and nothing left behind.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use holdfast_supervisor::{
    Container, ContainerId, ContainerOptions, Error, Event, EventKind, Evidence, ExecOptions,
    ExitStatus, GroupName, Status, Supervisor,
};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Output, Proc, Scratch, binary, cgroups_of, edit_json, events_until, eventually, read_all, said,
    soon, status, unique_id,
};
use nix::sys::signal::Signal;

const SIGKILL: i32 = 9;

/// Has the fake runtime do this in place of its work.
fn make(scratch: &Scratch, mode: &str) {
    edit_json(&scratch.bundle().join("config.json"), |config| {
        config["annotations"] = serde_json::json!({ "fake": mode, "fake-trace": trace(scratch) });
    });
}

/// Where the fake runtime writes the numbers of the processes that hang.
fn trace(scratch: &Scratch) -> PathBuf {
    scratch.path().join("trace")
}

/// Has the shim give a start up.
fn give_up(scratch: &Scratch, id: &ContainerId) {
    let control = scratch.root().join(id.as_str()).join("init/control");
    std::fs::write(control, "2 9 0\n").expect("write to the control FIFO");
}

/// A container of the fake runtime, which runs these arguments on the host.
fn fake(scratch: &Scratch, args: &[&str]) -> ContainerOptions {
    let runtime = binary("fake-runtime");
    scratch.options(args.iter().copied()).runtime(runtime.to_str().expect("a path in UTF-8"))
}

/// The error of a start that fails, after which nothing is left.
async fn failed_start(
    scratch: &Scratch,
    supervisor: &Supervisor,
    options: ContainerOptions,
) -> Error {
    let mut events = supervisor.events();
    let id = unique_id("fails");
    let error = soon("the start", supervisor.run(options.id(id.clone()))).await;
    let error = error.expect_err("this start must fail");
    assert!(matches!(supervisor.get(&id), Err(Error::NotFound(_))));
    scratch.group_ended().await;
    assert_eq!(scratch.leftovers(), [""; 0], "after: {error}");
    assert!(cgroups_of(&id).is_empty());
    // One event says why, and nothing else was told of it: the next one is another's.
    let next = supervisor.run(scratch.script("exit 0")).await.expect("a good container");
    let told = events_until(&mut events, |event| event.kind == EventKind::Started).await;
    let (of_it, of_next): (Vec<_>, Vec<_>) = told.iter().partition(|event| event.container == id);
    assert!(of_next.iter().all(|event| event.container == *next.id()), "{told:?}");
    match of_it[..] {
        [event] => match &event.kind {
            EventKind::StartFailed { reason } => assert_eq!(*reason, error.to_string()),
            other => panic!("{other:?}"),
        },
        // What was refused before anything was made.
        [] => assert!(
            matches!(
                error,
                Error::Rootfs { .. }
                    | Error::Bundle { .. }
                    | Error::NotInstalled { .. }
                    | Error::Checkpoint { .. }
            ),
            "{error}"
        ),
        _ => panic!("{told:?}"),
    }
    soon("the delete", next.delete_forced()).await.expect("delete");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fake_runtime_works_where_nothing_else_is_asked_of_it() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script = "echo began; echo oops >&2; exit 3";
    let container = supervisor.run(fake(&scratch, &["sh", "-c", script])).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(3));
    let expected = Output { stdout: b"began\n".into(), stderr: b"oops\n".into() };
    assert_eq!(read_all(container.logs().unwrap()).await, expected);

    let created = supervisor.create(fake(&scratch, &["sh", "-c", script])).await.unwrap();
    assert_eq!(created.info().status, Status::Created);
    assert_eq!(created.logs().unwrap().next().await.unwrap(), None);
    created.start().await.unwrap();
    assert_eq!(status(&created).await, ExitStatus::Code(3));
    assert_eq!(read_all(created.logs().unwrap()).await, expected);

    let long = supervisor.run(fake(&scratch, &["sleep", "100000"])).await.unwrap();
    let exec = long.exec(ExecOptions::new(["sh", "-c", "exit 8"])).await.unwrap();
    assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(8));
    assert_eq!(
        scratch.leftovers().iter().filter(|left| left.contains("(sleep 100000)")).count(),
        1
    );
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_inherits_no_blocked_signal_from_the_shim() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(fake(&scratch, &["cat", "/proc/self/status"])).await.unwrap();
    let status = String::from_utf8(read_all(container.logs().unwrap()).await.stdout).unwrap();
    assert!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_its_shim_gives_up_while_nobody_is_there_never_was() {
    let scratch = Scratch::new();
    make(&scratch, "hang-after-pid");
    let supervisor = scratch.open().await;
    let id = unique_id("given-up");
    let options = fake(&scratch, &["sleep", "100000"]).id(id.clone());
    let start = tokio::spawn({
        let supervisor = supervisor.clone();
        async move { supervisor.run(options).await }
    });
    let dir = scratch.root().join(id.as_str()).join("init");
    eventually("the pid to be written", || dir.join("pid").exists()).await;
    let shim = shim_of(&scratch.root(), id.as_str(), "init");
    soon("the shutdown", supervisor.shutdown()).await;
    assert!(matches!(soon("the start", start).await.unwrap(), Err(Error::Closed)));
    // As when its time limit passes, it ends all that it has begun.
    give_up(&scratch, &id);
    shim.ended().await;
    assert!(!dir.join("exitStatus").exists());

    let supervisor = scratch.open().await;
    eventually("it to be cleared away", || supervisor.get(&id).is_err()).await;
    assert!(supervisor.list().is_empty());
    scratch.close(supervisor).await;
}

/// A restored start is waited for by whoever asks for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_wait_for_a_start_are_told_why_it_failed() {
    let scratch = Scratch::new();
    make(&scratch, "hang-in-create");
    let supervisor = scratch.open().await;
    let id = unique_id("told");
    let hanging = supervisor.run(fake(&scratch, &["true"]).id(id.clone()));
    let waits = async {
        eventually("the runtime to hang", || trace(&scratch).exists()).await;
        let container = supervisor.get(&id).unwrap();
        let waits = join_all((0..3).map(|_| container.begun()));
        // In this order: all of them wait by then.
        tokio::join!(biased; waits, async { give_up(&scratch, &id) }).0
    };
    let (started, waited) = soon("the failure", async { tokio::join!(hanging, waits) }).await;
    let told: Vec<_> = waited.into_iter().map(|waited| waited.unwrap_err()).collect();
    for error in told.iter().chain([&started.unwrap_err()]) {
        assert_eq!(error.to_string(), "shim error: the start was given up");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_hangs_in_create_is_cleared_away_and_holds_nobody_up() {
    let scratch = Scratch::new();
    make(&scratch, "complain-and-hang");
    let supervisor = scratch.open().await;
    let began = Instant::now();
    let limit = Duration::from_secs(1);
    let hanging = supervisor.run(fake(&scratch, &["true"]).start_timeout(limit));
    let healthy = async {
        // Before that, they could keep it from the processors for all of its second.
        eventually("the runtime to hang", || trace(&scratch).exists()).await;
        join_all((0..20).map(|_| supervisor.run(scratch.script("echo ready; exit 5")))).await
    };
    let (hung, healthy) = soon("all starts", async { tokio::join!(hanging, healthy) }).await;

    let error = hung.expect_err("this start must fail");
    // The supervisor, which would give it up later than the shim, does not know what it said.
    let Error::StartTimeout { timeout, detail } = &error else { panic!("{error}") };
    assert_eq!((*timeout, detail.as_str()), (limit, "made to hang"));
    let text = "container did not start before the specified timeout of 1s";
    assert!(error.to_string().starts_with(text), "{error}");
    assert!(began.elapsed() >= limit, "it was not given its time");
    // Both were there, the runtime and what it left in a session of its own, and both are gone.
    let pids = std::fs::read_to_string(trace(&scratch)).expect("the fake runtime has hung");
    let pids: Vec<i32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
    assert_eq!(pids.len(), 2);
    assert!(pids.iter().all(|pid| Proc::of(*pid).is_none()), "{pids:?}");

    assert_eq!(healthy.len(), 20);
    for container in healthy {
        let container = container.unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(5));
        assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\n"));
        soon("the delete", container.delete()).await.unwrap();
    }
    // Before `close` deletes anything.
    scratch.group_ended().await;
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

/// Opens the state root again, where the start of a created container may take a second. A limit
/// that it had from the beginning would hold for its creation too.
async fn with_limit(
    scratch: &Scratch,
    supervisor: Supervisor,
    container: Container,
) -> (Supervisor, Container) {
    let id = container.id().clone();
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    let record = scratch.root().join(id.as_str()).join("init/process.json");
    edit_json(&record, |record| record["holdfast"]["startTimeoutMs"] = 1000.into());
    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).expect("it is restored");
    (supervisor, container)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_hangs_in_start_leaves_the_container_created() {
    let scratch = Scratch::new();
    make(&scratch, "hang-in-start");
    let supervisor = scratch.open().await;
    let container = supervisor.create(fake(&scratch, &["sleep", "100000"])).await.unwrap();
    let (supervisor, container) = with_limit(&scratch, supervisor, container).await;
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    let error = soon("the start", container.start()).await.unwrap_err();
    assert!(matches!(&error, Error::RuntimeTimeout { .. }), "{error}");
    assert!(error.to_string().contains("fake-runtime start"), "{error}");
    assert_eq!(container.info().status, Status::Created);
    assert!(process.lives());
    soon("the delete", container.delete()).await.unwrap();
    assert!(!process.exists());
    scratch.group_ended().await;
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

/// At 91d2b83 the container counted as created: its program ran, `start` and `exec` were refused, and a
/// delete without force killed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_whose_command_fails_has_the_state_that_the_runtime_tells() {
    for (mode, expected) in [
        ("hang-after-start", Status::Running),
        ("fail-after-start", Status::Running),
        ("fail-in-start", Status::Created),
    ] {
        let scratch = Scratch::new();
        make(&scratch, mode);
        let supervisor = scratch.open().await;
        let container = supervisor.create(fake(&scratch, &["sleep", "100000"])).await.unwrap();
        let hangs = mode == "hang-after-start";
        let (supervisor, container) = match hangs {
            true => with_limit(&scratch, supervisor, container).await,
            false => (supervisor, container),
        };
        let error = soon("the start", container.start()).await.expect_err(mode);
        assert!(matches!(error, Error::RuntimeTimeout { .. } | Error::Runtime(_)), "{error}");
        // How much of its work the limit let it do is up to the machine.
        let state = scratch.root().join(".runtime/fake-runtime").join(container.id().as_str());
        let is_cut_short = hangs && !state.join("started").exists();
        let expected = if is_cut_short { Status::Created } else { expected };
        assert_eq!(container.info().status, expected, "{mode}");
        if expected == Status::Running {
            let exec = container.exec(ExecOptions::new(["true"])).await.expect("exec");
            assert_eq!(soon("the end of an exec", exec.wait()).await.unwrap(), ExitStatus::Code(0));
            let refused = soon("a delete without force", container.delete()).await;
            assert!(matches!(refused, Err(Error::WrongState { .. })), "{refused:?}");
        }
        scratch.close(supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_or_resume_whose_command_fails_has_the_state_that_the_runtime_tells() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    make(&scratch, "fail-after-pause");
    let container = supervisor.run(fake(&scratch, &["sleep", "100000"])).await.unwrap();
    let error = soon("the pause", container.pause()).await.unwrap_err();
    assert!(error.to_string().contains("made to fail after pause"), "{error}");
    assert_eq!(container.info().status, Status::Paused);
    soon("the resume", container.resume()).await.unwrap();
    assert_eq!(container.info().status, Status::Running);

    make(&scratch, "fail-after-resume");
    let container = supervisor.run(fake(&scratch, &["sleep", "100000"])).await.unwrap();
    soon("the pause", container.pause()).await.unwrap();
    soon("the resume", container.resume()).await.unwrap_err();
    assert_eq!(container.info().status, Status::Running);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_after_which_the_runtime_fails_is_a_delete() {
    let scratch = Scratch::new();
    make(&scratch, "fail-after-delete");
    let supervisor = scratch.open().await;
    let container = supervisor.run(fake(&scratch, &["sleep", "100000"])).await.unwrap();
    soon("the delete", container.delete_forced()).await.unwrap();
    assert!(supervisor.get(container.id()).is_err());
    scratch.close(supervisor).await;
}

/// A group that does not answer, as it is stopped: at 91d2b83 a start with a limit of one second was
/// given up after nine, and the eleventh at once waited ten before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_in_a_group_that_does_not_answer_keeps_its_limit() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let group: GroupName = "stopped".parse().unwrap();
    let options = |args: &[&str]| fake(&scratch, args).shim_group(group.clone());
    make(&scratch, "");
    let first = supervisor.run(options(&["sleep", "100000"])).await.unwrap();
    let shims = holdfast_tests::processes::shims(&scratch.root());
    let group_shim = shims.iter().find(|shim| shim.command().contains("--group")).unwrap();
    group_shim.signal(Signal::SIGSTOP);
    group_shim.reaches('T').await;
    let limit = Duration::from_secs(1);
    let mut events = supervisor.events();
    // More than the queue of its socket takes.
    let starts = (0..20).map(|_| supervisor.run(options(&["true"]).start_timeout(limit)));
    let began = Instant::now();
    // An event comes as the limit passes. How long it takes to clear away is up to the machine.
    let told = async {
        let mut failed = 0;
        let is_last = |event: &Event| {
            if let EventKind::StartFailed { reason } = &event.kind {
                assert!(reason.starts_with("container did not start before"), "{reason}");
                failed += 1;
            }
            failed == 20
        };
        events_until(&mut events, is_last).await;
        began.elapsed()
    };
    let all = async { tokio::join!(join_all(starts), told) };
    let (started, took) = soon("all starts", all).await;
    for error in started {
        let error = error.expect_err("this start must fail");
        assert!(matches!(error, Error::StartTimeout { .. }), "{error}");
    }
    assert!(took < Duration::from_secs(8), "a limit of {limit:?} was kept after {took:?}");
    // Outside of it nothing has happened.
    let healthy = supervisor
        .run(scratch.script("exit 5").shim_group("other".parse().unwrap()))
        .await
        .unwrap();
    assert_eq!(status(&healthy).await, ExitStatus::Code(5));
    group_shim.signal(Signal::SIGCONT);
    // What it is asked too late for comes to nothing, and it goes on.
    let late = supervisor.run(options(&["true"])).await.unwrap();
    assert_eq!(status(&late).await, ExitStatus::Code(0));
    assert_eq!(first.info().status, Status::Running);
    eventually("what was asked for too late to be gone", || supervisor.list().len() == 3).await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_the_runtime_is_told_in_its_own_words() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for (mode, text) in [
        ("fail", "oci runtime error: made to fail"),
        ("fail-stderr", "oci runtime error: made to fail on the standard error"),
        ("no-pid", "shim error: the runtime succeeded and wrote no pid"),
    ] {
        make(&scratch, mode);
        let error = failed_start(&scratch, &supervisor, fake(&scratch, &["true"])).await;
        assert_eq!(error.to_string(), text, "{mode}");
    }
    make(&scratch, "foreign-pid");
    let error = failed_start(&scratch, &supervisor, fake(&scratch, &["true"])).await;
    let text = "shim error: the runtime's process 1 did not become our child";
    assert!(error.to_string().starts_with(text), "{error}");

    make(&scratch, "");
    let error = failed_start(&scratch, &supervisor, fake(&scratch, &["/no/such/program"])).await;
    assert!(error.to_string().starts_with("oci runtime error: exec "), "{error}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runtime_says_what_is_wrong_with_a_container() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let error = failed_start(&scratch, &supervisor, scratch.options(["/no/such/program"])).await;
    assert!(matches!(error, Error::Runtime(_)));
    let text = error.to_string();
    assert!(text.starts_with("oci runtime error: "), "{text}");
    assert!(text.contains("/no/such/program"), "{text}");
    assert!(text.contains("no such file or directory"), "{text}");

    let running = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    let error = running.exec(ExecOptions::new(["/no/such/exec"])).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("oci runtime error: ") && text.contains("/no/such/exec"), "{text}");
    assert_eq!(running.info().status, Status::Running);
    assert!(running.info().execs.is_empty());
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_root_file_system_is_said() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let nowhere = scratch.path().join("nowhere");
    let error = failed_start(&scratch, &supervisor, ContainerOptions::rootfs(&nowhere)).await;
    assert!(matches!(&error, Error::Rootfs { path, .. } if *path == nowhere), "{error}");
    assert!(error.to_string().contains("No such file or directory"), "{error}");

    // One that a bundle names is for the runtime to miss.
    let other = holdfast_tests::busybox_bundle(&scratch.path().join("other"));
    std::fs::remove_dir_all(other.join("rootfs")).unwrap();
    let error = failed_start(&scratch, &supervisor, ContainerOptions::bundle(&other)).await;
    let text = error.to_string();
    assert!(text.starts_with("oci runtime error: ") && text.contains("rootfs"), "{text}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_installed_is_named() {
    let scratch = Scratch::new();
    let error = scratch.builder().shim("/no/such/holdfast-shim").open().await.unwrap_err();
    assert!(matches!(error, Error::NotInstalled { .. }), "{error}");
    assert!(error.to_string().starts_with("holdfast-shim: not installed on system"), "{error}");
    assert!(error.to_string().contains("/no/such/holdfast-shim"), "{error}");
    // A file that can't be executed is no shim either.
    let file = scratch.bundle().join("config.json");
    let error = scratch.builder().shim(file).open().await.unwrap_err();
    assert!(matches!(error, Error::NotInstalled { .. }), "{error}");

    let supervisor = scratch.open().await;
    for runtime in ["no-such-runtime", "/no/such/runtime"] {
        let options = scratch.script("exit 0").runtime(runtime);
        let error = failed_start(&scratch, &supervisor, options).await;
        assert!(matches!(&error, Error::NotInstalled { name, .. } if name == runtime), "{error}");
        assert!(error.to_string().starts_with(&format!("{runtime}: not installed")), "{error}");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_root_in_use_is_refused_and_its_holder_named() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    let error = scratch.builder().open().await.unwrap_err();
    assert!(matches!(error, Error::Root(_)));
    let holder = format!("is in use by process {}", std::process::id());
    let text = error.to_string();
    assert!(text.contains(&holder) && text.contains(scratch.root().to_str().unwrap()), "{text}");
    container.signal(SIGKILL).unwrap();
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL), "the first one lost it");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_shim_holds_up_neither_the_restore_nor_the_status_for_ever() {
    let scratch = Scratch::new();
    let (id, other) = (unique_id("frozen"), unique_id("well"));
    let (gate, other_gate) = (scratch.gate(), scratch.gate());
    let supervisor = scratch.open().await;
    for (id, gate) in [(&id, &gate), (&other, &other_gate)] {
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        said(&supervisor.run(options).await.unwrap(), "ready").await;
    }
    let shim = shim_of(&scratch.root(), id.as_str(), "init");
    shim.signal(Signal::SIGSTOP);
    shim.reaches('T').await;
    soon("the shutdown", supervisor.shutdown()).await;

    let supervisor = scratch.open().await;
    assert_eq!(supervisor.restore_report().containers, 2);
    let (container, well) = (supervisor.get(&id).unwrap(), supervisor.get(&other).unwrap());
    assert_eq!(container.info().status, Status::Running);
    gate.open(5);
    other_gate.open(6);
    assert_eq!(status(&well).await, ExitStatus::Code(6));
    let record = soon("the exit", container.exit()).await.unwrap();
    assert_eq!((record.status, record.evidence), (ExitStatus::Code(5), Evidence::Zombie));
    assert_eq!(shim.state(), Some('T'), "the shim was stopped all the while");

    // Awake again it changes nothing: who asks is told the same, now and after a restart.
    shim.signal(Signal::SIGCONT);
    shim.ended().await;
    assert_eq!(soon("the exit", container.exit()).await.unwrap(), record);
    drop((container, well));
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    assert_eq!(status(&supervisor.get(&id).unwrap()).await, ExitStatus::Code(5));
    scratch.close(supervisor).await;
}
