//! Containers outlive their supervisor and their shim, and no status is lost over it.

use std::collections::BTreeMap;

use holdfast_supervisor::{
    Container, ContainerId, Cursor, Error, Event, EventKind, Evidence, ExecOptions, ExitRecord,
    ExitStatus, OrphanPolicy, Status, Supervisor, UnknownReason,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Output, Proc, Scratch, binary, edit_json, events_until, read_all, said, soon, status, unique_id,
};
use nix::sys::signal::Signal;

const SIGKILL: i32 = 9;

/// The container's process.
fn process(container: &Container) -> Proc {
    Proc::of(container.info().pid.expect("it has a process")).expect("the process lives")
}

/// Leaves a container without supervisor, then without shim, and then without process: nobody has
/// recorded how that ended.
async fn left_to_die(scratch: &Scratch, id: &ContainerId) {
    let supervisor = scratch.open().await;
    let options = scratch.script("echo ready; exec sleep 100000").id(id.clone());
    let container = supervisor.run(options).await.expect("run");
    said(&container, "ready").await;
    let (process, shim) = (process(&container), shim_of(&scratch.root(), id.as_str(), "init"));
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    shim.signal(Signal::SIGKILL);
    shim.ended().await;
    process.signal(Signal::SIGKILL);
    process.gone().await;
}

async fn exit(container: &Container) -> ExitRecord {
    soon("the exit of a container", container.exit()).await.expect("wait")
}

/// Deletes all containers and returns all that was ever told of each, in words. Their numbers
/// rise, and what is told of an exit is told once.
async fn history(supervisor: &Supervisor) -> BTreeMap<ContainerId, Vec<String>> {
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    let containers = supervisor.list();
    let mut left = containers.len();
    assert!(left > 0, "no container has a history");
    for container in containers {
        soon("the delete", container.delete_forced()).await.expect("delete");
    }
    let all = events_until(&mut events, |event| {
        left -= usize::from(event.kind == EventKind::Deleted);
        left == 0
    });
    let mut told: BTreeMap<ContainerId, Vec<Event>> = BTreeMap::new();
    for event in all.await {
        told.entry(event.container.clone()).or_default().push(event);
    }
    for events in told.values() {
        assert!(events.is_sorted_by_key(|event| event.seq), "{events:?}");
    }
    told.into_iter().map(|(id, events)| (id, events.iter().map(in_words).collect())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exits_without_a_supervisor_are_known_exactly_and_told_once() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let codes = [0, 1, 255];
    let gates = codes.map(|_| scratch.gate());
    let mut processes = BTreeMap::new();
    let mut expected = BTreeMap::new();
    for (gate, code) in gates.iter().zip(codes) {
        let id = unique_id("ends");
        let options = scratch.script(&gate.script("echo warn >&2; echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        processes.insert(id.clone(), process(&container));
        expected.insert(id, (ExitStatus::Code(code), "ready\nafter\n"));
    }
    let id = unique_id("killed");
    let gate = scratch.gate();
    let options = scratch.script(&gate.script("echo warn >&2; echo ready")).id(id.clone());
    let container = supervisor.run(options).await.unwrap();
    said(&container, "ready").await;
    let killed = process(&container);
    processes.insert(id.clone(), killed.clone());
    expected.insert(id, (ExitStatus::Signal(SIGKILL), "ready\n"));
    let waiter = tokio::spawn({
        let container = container.clone();
        async move { container.wait().await }
    });
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    let interrupted = soon("the waiter", waiter).await.unwrap().unwrap_err();
    assert!(matches!(interrupted, Error::Closed), "{interrupted}");

    assert!(processes.values().all(Proc::lives), "a shutdown ended a container");
    gates.iter().zip(codes).for_each(|(gate, code)| gate.open(code));
    killed.signal(Signal::SIGKILL);
    for process in processes.values() {
        process.gone().await;
    }

    let supervisor = scratch.open().await;
    let report = supervisor.restore_report();
    assert_eq!((report.containers, report.problems.as_slice()), (4, [].as_slice()));
    for (id, (status, stdout)) in &expected {
        let container = supervisor.get(id).unwrap();
        let info = container.info();
        assert!(info.restored);
        assert_eq!((info.status, info.pid), (Status::Stopped, None));
        let record = exit(&container).await;
        assert_eq!((record.status, record.evidence), (*status, Evidence::Shim));
        let output = Output { stdout: (*stdout).into(), stderr: b"warn\n".into() };
        assert_eq!(read_all(container.logs().unwrap()).await, output);
    }
    let told = history(&supervisor).await;
    for (id, (status, _)) in expected {
        let exited = format!("init exited {status}");
        assert_eq!(told[&id], ["init created", "init started", &exited, "init deleted"]);
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_and_its_exec_run_on_over_several_restarts() {
    let scratch = Scratch::new();
    let (gate, exec_gate) = (scratch.gate(), scratch.gate());
    let (id, exec_id) = (unique_id("stays"), "more".parse().unwrap());
    let pid = {
        let supervisor = scratch.open().await;
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        let exec = ExecOptions::new(["sh", "-c", &exec_gate.script("echo exec")]);
        container.exec(exec.id("more".parse().unwrap())).await.unwrap();
        let pid = container.info().pid;
        drop(container);
        soon("the shutdown", supervisor.shutdown()).await;
        pid
    };
    for _ in 0..3 {
        let supervisor = scratch.open().await;
        let info = supervisor.get(&id).unwrap().info();
        assert_eq!((info.status, info.pid, info.restored), (Status::Running, pid, true));
        assert_eq!(info.execs.len(), 1);
        soon("the shutdown", supervisor.shutdown()).await;
    }
    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    let exec = container.process(&exec_id).unwrap();
    exec_gate.open(11);
    assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(11));
    assert_eq!(read_all(exec.logs().unwrap()).await, Output::of("exec\nafter\n"));
    let further = container.exec(ExecOptions::new(["sh", "-c", "exit 12"])).await.unwrap();
    assert_eq!(soon("the exec", further.wait()).await.unwrap(), ExitStatus::Code(12));
    further.delete().await.unwrap();
    gate.open(13);
    assert_eq!(status(&container).await, ExitStatus::Code(13));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nafter\n"));
    let told = history(&supervisor).await.remove(&id).unwrap();
    let told: Vec<_> =
        told.iter().filter(|word| !word.starts_with(further.id().as_str())).collect();
    let expected = [
        "init created",
        "init started",
        "more created",
        "more started",
        "more exited 11",
        "init exited 13",
        "init deleted",
    ];
    assert_eq!(told, expected);
    drop((container, exec, further));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_container_that_was_only_created_can_still_be_started() {
    let scratch = Scratch::new();
    let id = unique_id("later");
    let supervisor = scratch.open().await;
    let options = scratch.script("echo began; exit 6").id(id.clone());
    drop(supervisor.create(options).await.unwrap());
    soon("the shutdown", supervisor.shutdown()).await;

    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    let info = container.info();
    assert_eq!((info.status, info.restored), (Status::Created, true));
    assert_eq!(container.logs().unwrap().next().await.unwrap(), None);
    container.start().await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(6));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("began\n"));
    let told = history(&supervisor).await.remove(&id).unwrap();
    let expected =
        ["init created", "init starting", "init started", "init exited 6", "init deleted"];
    assert_eq!(told, expected);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_reboot_a_status_is_unknown_and_the_new_owner_of_the_pid_is_spared() {
    let scratch = Scratch::new();
    let id = unique_id("rebooted");
    // As after a power cut: nothing runs, nothing was recorded, and the number is someone else's.
    left_to_die(&scratch, &id).await;
    let dir = scratch.root().join(id.as_str()).join("init");
    assert!(!dir.join("exit.json").exists());
    edit_json(&dir.join("process.json"), |record| {
        assert!(record["holdfast"]["bootId"].is_string());
        record["holdfast"]["bootId"] = "another".into();
    });
    let mut stranger = std::process::Command::new("sleep").arg("100000").spawn().unwrap();
    std::fs::write(dir.join("pid"), stranger.id().to_string()).unwrap();

    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    let record = exit(&container).await;
    assert_eq!(record.status, ExitStatus::Unknown(UnknownReason::MachineRebooted));
    assert_eq!(record.evidence, Evidence::None);
    assert!(container.signal(SIGKILL).is_err());
    let told = history(&supervisor).await.remove(&id).unwrap();
    assert_eq!(told[2..], ["init exited unknown (machine rebooted)", "init deleted"], "{told:?}");
    assert!(stranger.try_wait().unwrap().is_none(), "another's process was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_shim_costs_no_status() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for (code, by_signal) in [(7, false), (0, false), (9, true)] {
        let mut events = supervisor.events();
        let gate = scratch.gate();
        let id = unique_id("orphan");
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        shim_of(&scratch.root(), id.as_str(), "init").signal(Signal::SIGKILL);
        events_until(&mut events, |event| event.kind == EventKind::ShimLost).await;
        assert_eq!(container.info().status, Status::Running);
        let expected = if by_signal {
            container.signal(SIGKILL).unwrap();
            ExitStatus::Signal(SIGKILL)
        } else {
            gate.open(code);
            ExitStatus::Code(code)
        };
        let record = exit(&container).await;
        assert_eq!(record.status, expected);
        assert!(matches!(record.evidence, Evidence::Pidfd | Evidence::Zombie), "{record:?}");
    }
    assert_eq!(history(&supervisor).await.len(), 3);
    scratch.close(supervisor).await;
}

/// Regression: the copies of the pipes were made some time after the restore. If a shim was killed and
/// its container exited before that, the last output was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_as_soon_as_the_supervisor_is_back_costs_no_output() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut all = Vec::new();
    for _ in 0..40 {
        let (gate, id) = (scratch.gate(), unique_id("early"));
        let runtime = binary("fake-runtime").display().to_string();
        let options = scratch.options(["sh", "-c", &gate.script_on_host("echo ready")]);
        let container = supervisor.run(options.id(id.clone()).runtime(runtime)).await.unwrap();
        said(&container, "ready").await;
        all.push((id, gate));
    }
    let shims: Vec<_> =
        all.iter().map(|(id, _)| shim_of(&scratch.root(), id.as_str(), "init")).collect();
    soon("the shutdown", supervisor.shutdown()).await;
    // Every second shim is dead before the supervisor is back, the others die just after that.
    let kill = |odd: usize| {
        shims.iter().skip(odd).step_by(2).for_each(|shim| shim.signal(Signal::SIGKILL));
    };
    kill(0);
    let supervisor = scratch.open().await;
    kill(1);
    all.iter().for_each(|(_, gate)| gate.open(7));
    for (id, _) in &all {
        let container = supervisor.get(id).unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(7));
        let output = soon("the output", container.output()).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ready\nafter\n", "{id}");
        container.delete().await.unwrap();
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_was_told_is_on_disk() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // A matter of instants, so more than once.
    for _ in 0..20 {
        let mut events = supervisor.events();
        let gate = scratch.gate();
        let id = unique_id("orphan");
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        shim_of(&scratch.root(), id.as_str(), "init").signal(Signal::SIGKILL);
        events_until(&mut events, |event| event.kind == EventKind::ShimLost).await;
        gate.open(7);
        assert_eq!(status(&container).await, ExitStatus::Code(7));
        let file = scratch.root().join(id.as_str()).join("init/exit.json");
        assert!(file.exists(), "should everything die now, the status would be lost");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_while_no_supervisor_is_there_costs_no_status_either() {
    let scratch = Scratch::new();
    let (runs, ended) = (unique_id("runs"), unique_id("ended"));
    let supervisor = scratch.open().await;
    let (gate, ended_gate) = (scratch.gate(), scratch.gate());
    let mut all = Vec::new();
    for (id, gate) in [(&runs, &gate), (&ended, &ended_gate)] {
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        all.push((process(&container), shim_of(&scratch.root(), id.as_str(), "init")));
    }
    soon("the shutdown", supervisor.shutdown()).await;
    for (_, shim) in &all {
        shim.signal(Signal::SIGKILL);
        shim.ended().await;
    }
    ended_gate.open(5);
    all[1].0.gone().await;

    let supervisor = scratch.open().await;
    // Nobody saw this end, and nobody claims to have.
    let record = exit(&supervisor.get(&ended).unwrap()).await;
    assert_eq!(record.status, ExitStatus::Unknown(UnknownReason::ExitedUnwatched));
    let container = supervisor.get(&runs).unwrap();
    assert_eq!(container.info().status, Status::Running);
    gate.open(17);
    let record = exit(&container).await;
    assert_eq!(record.status, ExitStatus::Code(17));
    assert!(matches!(record.evidence, Evidence::Pidfd | Evidence::Zombie), "{record:?}");
    let told = history(&supervisor).await.remove(&runs).unwrap();
    let expected = [
        "init created",
        "init started",
        "init shim lost",
        "init adopted",
        "init exited 17",
        "init deleted",
    ];
    assert_eq!(told, expected);
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_being_cleared_away_when_the_supervisor_died_never_was() {
    let scratch = Scratch::new();
    let id = unique_id("abandoned");
    // As if the shim had been killed before it announced the process, and the supervisor when it
    // had killed that.
    left_to_die(&scratch, &id).await;
    let dir = scratch.root().join(id.as_str());
    holdfast_tests::journal::forget(&scratch.root(), id.as_str());
    std::fs::write(dir.join("init/abandoned"), "").unwrap();
    edit_json(&dir.join("init/process.json"), |record| {
        record["startTime"] = "".into();
        record["holdfast"]["shim"] = serde_json::Value::Null;
        record["holdfast"]["pidfs"] = serde_json::Value::Null;
    });

    let supervisor = scratch.open().await;
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    if let Ok(container) = supervisor.get(&id) {
        let ended = soon("the clearing away", container.exit()).await;
        assert!(ended.is_err(), "it has an exit: {ended:?}");
    }
    holdfast_tests::eventually("it to be gone", || supervisor.get(&id).is_err()).await;
    soon("the shutdown", supervisor.shutdown()).await;
    let mut told = Vec::new();
    while let Some(item) = events.next().await {
        // What was taken out of the journal is a gap.
        told.extend(item.ok());
    }
    assert!(
        matches!(told.as_slice(), [one] if matches!(one.kind, EventKind::StartFailed { .. })),
        "{told:?}"
    );
    assert_eq!(scratch.leftovers(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_is_killed_where_that_was_asked_for() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("kill");
    let gate = scratch.gate();
    let options = scratch.script(&gate.script("echo ready")).id(id.clone());
    let container = supervisor.run(options.on_orphan(OrphanPolicy::Kill)).await.unwrap();
    said(&container, "ready").await;
    shim_of(&scratch.root(), id.as_str(), "init").signal(Signal::SIGKILL);
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL));
    let told = history(&supervisor).await.remove(&id).unwrap();
    let killed = "init exited 137 (signal 9)";
    assert_eq!(told, ["init created", "init started", "init shim lost", killed, "init deleted"]);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_free_after_a_shutdown_whoever_still_holds_a_container() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("exit 1")).await.unwrap();
    status(&container).await;
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    drop(container);
    scratch.close(supervisor).await;
}
