//! A shim can gain no privileges by the programs that it executes, and takes none from a container.

use std::fs;

use holdfast_supervisor::{EventKind, ExecOptions, ExitStatus};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Proc, Scratch, binary, events_until, runtime, said, shim_group, soon, unique_id,
};
use nix::sys::signal::Signal;

/// Returns whether a process has `no_new_privs`, as the kernel says it.
fn can_gain_none(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("read a status");
    let found = text.lines().find_map(|line| line.strip_prefix("NoNewPrivs:"));
    match found.map(str::trim) {
        Some("0") => false,
        Some("1") => true,
        other => panic!("NoNewPrivs of {pid}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_has_no_new_privs_and_its_container_and_execs_have_what_they_are_configured_with() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    // The shim of a group has children that start runtimes, and so must not have it.
    let expected = shim_group().is_none();
    for runtime in [runtime(), &binary("holdfast-oci")] {
        for no_new_privileges in [false, true] {
            let context = format!("{}, {no_new_privileges}", runtime.display());
            let (gate, exec_gate) = (scratch.gate(), scratch.gate());
            let id = unique_id("privileges");
            let options = scratch.script(&gate.script("echo ready")).id(id.clone());
            let options =
                options.runtime(runtime.display().to_string()).no_new_privileges(no_new_privileges);
            let container = soon("a start", supervisor.run(options)).await.expect("run");
            said(&container, "ready").await;
            let shim = shim_of(&scratch.root(), id.as_str(), "init");
            assert_eq!(can_gain_none(shim.pid), expected, "the shim; {context}");

            // By then the shim of the init process has the attribute.
            let exec = ExecOptions::new(["sh", "-c", &exec_gate.script("true")]);
            let exec = soon("an exec", container.exec(exec)).await.expect("exec");
            let exec_shim = shim_of(&scratch.root(), id.as_str(), exec.id().as_str());
            assert_eq!(can_gain_none(exec_shim.pid), expected, "the exec's shim; {context}");
            for pid in [container.info().pid, exec.pid()] {
                let pid = pid.expect("it runs");
                assert_eq!(can_gain_none(pid), no_new_privileges, "the container; {context}");
            }
            exec_gate.open(0);
            let ended = soon("the exec's exit", exec.wait()).await.expect("wait");
            assert_eq!(ended, ExitStatus::Code(0));

            shim.signal(Signal::SIGKILL);
            events_until(&mut events, |event| {
                event.container == id && event.kind == EventKind::Adopted
            })
            .await;
            let adopter = shim_of(&scratch.root(), id.as_str(), "init");
            assert_ne!(adopter.pid, shim.pid);
            assert_eq!(can_gain_none(adopter.pid), expected, "the adopter; {context}");
            gate.open(0);
            soon("the exit", container.wait()).await.expect("wait");
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_shim_of_a_group_passes_no_new_privs_to_no_container_that_it_starts_later() {
    let scratch = Scratch::new();
    let group = "all".parse().expect("the name of a group");
    let opened = scratch.builder().shim_group(Some(group)).open();
    let supervisor = soon("the supervisor", opened).await.expect("open a supervisor");
    let mut all = Vec::new();
    for _ in 0..2 {
        let gate = scratch.gate();
        let options = scratch.script(&gate.script("echo ready")).no_new_privileges(false);
        let container = soon("a start", supervisor.run(options)).await.expect("run");
        said(&container, "ready").await;
        let pid = container.info().pid.expect("it runs");
        assert!(!can_gain_none(pid), "{}", Proc::of(pid).expect("it runs"));
        all.push((container, gate));
    }
    for (container, gate) in all {
        gate.open(0);
        soon("the exit", container.wait()).await.expect("wait");
    }
    scratch.close(supervisor).await;
}
