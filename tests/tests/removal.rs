//! What is deleted, what is left alone, and what is known afterwards.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use holdfast_supervisor::{
    ContainerId, Cursor, Error, Event, EventKind, ExecOptions, ExitStatus, Status, Supervisor,
};
use holdfast_tests::processes::shims;
use holdfast_tests::{
    Holdfast, Proc, Scratch, binary, cgroups_of, edit_json, events_until, eventually, said, soon,
    status, unique_id,
};
use nix::sys::signal::Signal;

/// Everything below a directory: names, kinds, modes, contents.
fn tree(dir: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut all = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(path) = ahead.pop() {
        let metadata = path.symlink_metadata().expect("look at a file");
        let content =
            if metadata.is_file() { fs::read(&path).expect("read a file") } else { Vec::new() };
        all.push((path.display().to_string(), metadata.permissions().mode(), content));
        if metadata.is_dir() {
            ahead.extend(
                fs::read_dir(&path)
                    .expect("read a directory")
                    .map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    all.sort();
    all
}

/// At 91d2b83 such a directory became mode 0700, lost `.new-1`, and `photos` went into `.broken`.
#[tokio::test]
async fn a_directory_of_somebody_elses_is_refused_and_stays_as_it_is() {
    let scratch = Scratch::new();
    for names in [&["photos/2026/a.jpg", ".new-1/notes", ".gone-1"][..], &["x"], &[".new-1/x"]] {
        let root = scratch.path().join("home");
        for name in names {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), "mine").unwrap();
        }
        fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
        let before = tree(&root);
        let opened = Supervisor::builder(&root).shim(binary("holdfast-shim")).open().await;
        let error = opened.unwrap_err().to_string();
        assert!(error.contains("is not a state root of Holdfast"), "{error}");
        assert_eq!(tree(&root), before);
        fs::remove_dir_all(&root).unwrap();
    }
}

/// Roots of earlier builds have no marker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_without_a_marker_is_taken_up_and_marked() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("old");
    supervisor.run(scratch.script("exec sleep 100000").id(id.clone())).await.unwrap();
    soon("the shutdown", supervisor.shutdown()).await;
    let marker = scratch.root().join(".holdfast");
    fs::remove_file(&marker).unwrap();
    fs::create_dir(scratch.root().join("no container")).unwrap();
    let supervisor = scratch.open().await;
    assert_eq!(supervisor.get(&id).unwrap().info().status, Status::Running);
    assert!(fs::read_to_string(&marker).unwrap().contains("state root"));
    fs::remove_dir(scratch.root().join("no container")).unwrap();
    scratch.close(supervisor).await;
}

/// A directory that can't be removed.
struct Stuck(std::path::PathBuf);

impl Stuck {
    fn set(&self, immutable: bool) {
        let flag = if immutable { "+i" } else { "-i" };
        let done = std::process::Command::new("chattr").arg(flag).arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "chattr {flag}");
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        if self.0.exists() {
            self.set(false);
        }
    }
}

/// The auto-remover looked up by the id: after one failed removal it deleted whatever had the id by
/// then, at 91d2b83, seen with a container and with an exec.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_is_tried_again_never_meets_another_container_of_the_id() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for reused_as in [Status::Created, Status::Running, Status::Stopped] {
        let id = unique_id("reused");
        let gate = scratch.gate();
        let first = scratch.script(&gate.script("echo ready")).id(id.clone()).auto_remove();
        let first = supervisor.run(first).await.unwrap();
        said(&first, "ready").await;
        // Its directory can be neither renamed nor removed.
        let stuck = Stuck(scratch.root().join(id.as_str()));
        stuck.set(true);
        gate.open(7);
        assert_eq!(status(&first).await, ExitStatus::Code(7));
        let refused = soon("a refused delete", first.delete()).await;
        assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
        // Somebody else gets it out of the way; the remover does not know of that.
        stuck.set(false);
        let deleted = soon("a delete", first.delete()).await;
        assert!(matches!(deleted, Ok(()) | Err(Error::NotFound(_))), "{deleted:?}");
        let second = scratch.script("exec sleep 100000").id(id.clone());
        let second = match reused_as {
            Status::Created => supervisor.create(second).await.unwrap(),
            _ => supervisor.run(second).await.unwrap(),
        };
        if reused_as == Status::Stopped {
            second.kill().await.unwrap();
            status(&second).await;
        }
        // Beyond the pause before the remover's second attempt.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        assert_eq!(second.info().status, reused_as);
        assert!(supervisor.get(&id).is_ok());
        // The old handle deletes nothing either.
        let stale = soon("a delete by a stale handle", first.delete_forced()).await;
        assert!(matches!(stale, Err(Error::NotFound(_))), "{stale:?}");
        assert_eq!(second.info().status, reused_as);
        soon("the delete", second.delete_forced()).await.unwrap();
    }
    scratch.close(supervisor).await;
}

/// An exec of a container that is gone deleted, at 91d2b83, the exec of its id in the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_of_a_container_that_has_gone_deletes_nothing_of_the_next() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("execs");
    let options = || scratch.script("exec sleep 100000").id(id.clone());
    let exec = || ExecOptions::new(["true"]).id("probe".parse().unwrap());
    let first = supervisor.run(options()).await.unwrap();
    let old = first.exec(exec()).await.unwrap();
    soon("the end of an exec", old.wait()).await.unwrap();
    soon("the delete", first.delete_forced()).await.unwrap();
    let second = supervisor.run(options()).await.unwrap();
    let new = second.exec(exec()).await.unwrap();
    soon("the end of an exec", new.wait()).await.unwrap();
    let _ = soon("a delete by a stale handle", old.delete()).await;
    assert!(second.process(&"probe".parse().unwrap()).is_some());
    assert!(scratch.root().join(id.as_str()).join("probe").is_dir());
    scratch.close(supervisor).await;
}

fn code(exit: u8) -> ExitStatus {
    ExitStatus::Code(exit)
}

/// How the streams of events tell of the end of a container's first process.
async fn told(supervisor: &Supervisor, id: &ContainerId) -> Vec<ExitStatus> {
    // What comes later is no part of the past.
    let last = supervisor.events().cursor().number();
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    let past = events_until(&mut events, |event| event.seq >= last).await;
    let of_it = past.iter().filter(|event| event.container == *id && event.process.is_init());
    of_it
        .filter_map(|event| match event.kind {
            EventKind::Exited { status, .. } => Some(status),
            _ => None,
        })
        .collect()
}

/// At 91d2b83 nothing knew the status of such a container 300 ms after the second supervisor was
/// opened: it was not listed, its journal was gone, and `wait` answered that there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_is_known_after_the_container_has_removed_itself_whoever_was_dead_meanwhile() {
    let mut holdfast = Holdfast::start().await;
    let mut ended = Vec::new();
    for shim_dies in [false, true] {
        let gate = holdfast.scratch.gate();
        let script = gate.script("echo ready");
        let id = holdfast.run_detached(&["--rm"], &["sh", "-c", &script]).await;
        holdfast.said(&id, "ready").await;
        ended.push((id, gate, shim_dies));
    }
    let mut shim_ends = Vec::new();
    for (id, _, shim_dies) in &ended {
        shim_ends.push((!shim_dies).then(|| holdfast.end_of_shim(id)));
    }
    holdfast.kill_daemon().await;
    for ((id, gate, _), end) in ended.iter().zip(shim_ends) {
        match end {
            Some(end) => {
                gate.open(9);
                end.come().await;
            }
            // Nobody is left who knows more than that it has gone.
            None if holdfast_tests::shim_group().is_none() => {
                let shim = holdfast_tests::processes::shim_of(&holdfast.root(), id, "init");
                // Before it can have recorded anything.
                shim.signal(Signal::SIGSTOP);
                gate.open(9);
                shim.signal(Signal::SIGKILL);
                shim.ended().await;
            }
            None => gate.open(9),
        }
    }
    holdfast.start_daemon().await;
    holdfast.nothing_left().await;
    // Once more, by one that has not seen any of it.
    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    let (id, ..) = &ended[0];
    assert_eq!(holdfast.ok(&["wait", id]).await, "9\n");
    let (id, ..) = &ended[1];
    let record = holdfast.json(&["wait", "--json", id]).await;
    assert!(record["status"].is_object(), "{record}");
    let unknown = holdfast.fails(1, &["wait", "never-there"]).await;
    assert!(unknown.contains("never-there"), "{unknown}");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_has_the_exits_of_what_has_been_removed_each_once() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("gone");
    for exit in [3, 4] {
        let options = scratch.script(&format!("exit {exit}")).id(id.clone()).auto_remove();
        let container = supervisor.run(options).await.unwrap();
        assert_eq!(status(&container).await, code(exit));
    }
    let mut events = supervisor.events();
    let container = supervisor.run(scratch.script("exit 5").id(id.clone())).await.unwrap();
    assert_eq!(status(&container).await, code(5));
    // `wait` may return a moment before the event is published.
    let is_exit =
        |event: &Event| matches!(event.kind, EventKind::Exited { status, .. } if status == code(5));
    events_until(&mut events, is_exit).await;
    assert_eq!(told(&supervisor, &id).await, [code(3), code(4), code(5)]);
    assert_eq!(soon("a past exit", supervisor.past_exit(&id)).await.unwrap().status, code(5));
    soon("the delete", container.delete()).await.unwrap();
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    assert_eq!(told(&supervisor, &id).await, [code(3), code(4), code(5)]);
    assert_eq!(soon("a past exit", supervisor.past_exit(&id)).await.unwrap().status, code(5));
    scratch.close(supervisor).await;
}

/// Leaves the pid namespace out of the bundle.
fn without_pid_namespace(scratch: &Scratch) {
    edit_json(&scratch.bundle().join("config.json"), |config| {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }
    });
}

/// At 91d2b83 the process, the directory and the cgroup stayed for ever, and `ps -a` hid it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_without_a_pid_namespace_that_is_to_go_ends_and_leaves_nothing() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id = unique_id("company");
    without_pid_namespace(&scratch);
    let options = scratch.script("sleep 4000 & exit 5").id(id.clone()).auto_remove();
    let container = supervisor.run(options).await.unwrap();
    assert_eq!(status(&container).await, code(5));
    eventually("it to be gone", || supervisor.get(&id).is_err()).await;
    eventually("its cgroups to be gone", || cgroups_of(&id).is_empty()).await;
    assert_eq!(soon("a past exit", supervisor.past_exit(&id)).await.unwrap().status, code(5));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_does_one_whose_end_nobody_was_there_for() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let gate = scratch.gate();
    without_pid_namespace(&scratch);
    let id = unique_id("company");
    let script = gate.script("sleep 4000 & echo ready");
    let container = supervisor.run(scratch.script(&script).id(id.clone()).auto_remove()).await;
    let container = container.unwrap();
    said(&container, "ready").await;
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    gate.open(6);
    process.gone().await;
    let supervisor = scratch.open().await;
    eventually("it to be gone", || supervisor.get(&id).is_err()).await;
    eventually("its cgroups to be gone", || cgroups_of(&id).is_empty()).await;
    assert_eq!(soon("a past exit", supervisor.past_exit(&id)).await.unwrap().status, code(6));
    eventually("its shim to end", || shims(&scratch.root()).is_empty()).await;
    scratch.close(supervisor).await;
}
