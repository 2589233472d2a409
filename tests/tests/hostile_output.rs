//! What a container does to its own output costs it that output, and nothing else: no shim dies of it, and
//! each exit is exact.
//!
//! At 91d2b83 (tried by hand with the programs of that revision): of containers that read their own output
//! most lose their shim ("EAGAIN", shim-log.json) within milliseconds, and with the daemon dead their
//! status; a terminal that is closed and opened again is not read any more after 19 KB; with the directory
//! of a log gone five adopters die in a row, and no further one comes; a shim whose FIFO nobody reads
//! survives the deletion of its container.

use std::fs;
use std::path::Path;

use holdfast_supervisor::{
    Container, ContainerOptions, EventKind, Evidence, ExitStatus, Logging, OrphanPolicy, Stdio,
    Supervisor, TerminalSize,
};
use holdfast_tests::processes::{shim_of, shims};
use holdfast_tests::{
    Scratch, binary, events_until, eventually, executable, read_all, said, shim_group, soon,
    status, unique_id,
};
use nix::sys::signal::Signal;

fn hostile(scratch: &Scratch, args: &[String]) -> ContainerOptions {
    let program = scratch.bundle().join("rootfs/bin/hostile");
    if !program.exists() {
        executable::copied(binary("hostile"), &program);
    }
    scratch.options(std::iter::once("hostile".to_owned()).chain(args.iter().cloned()))
}

fn mischief(scratch: &Scratch, seed: u64, code: u8) -> ContainerOptions {
    let words = ["mischief".to_owned(), seed.to_string(), "400".to_owned(), code.to_string()];
    hostile(scratch, &words)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_container_does_to_its_output_its_shim_lives_and_its_exit_is_exact() {
    for policy in [OrphanPolicy::Adopt, OrphanPolicy::Kill] {
        let scratch = Scratch::new();
        let supervisor = scratch.open().await;
        let mut events = supervisor.events();
        let mut containers = Vec::new();
        for seed in 1..=12 {
            let code = u8::try_from(100 + seed).expect("a small number");
            let options = mischief(&scratch, seed, code).on_orphan(policy);
            containers.push((supervisor.run(options).await.unwrap(), code));
        }
        let mut left = containers.len();
        let told = events_until(&mut events, |event| {
            left -= usize::from(matches!(event.kind, EventKind::Exited { .. }));
            left == 0
        })
        .await;
        let lost: Vec<_> = told.iter().filter(|it| it.kind == EventKind::ShimLost).collect();
        assert!(lost.is_empty(), "{lost:?}");
        for (container, code) in &containers {
            let record = soon("an exit", container.exit()).await.unwrap();
            assert_eq!((record.status, record.evidence), (ExitStatus::Code(*code), Evidence::Shim));
        }
        scratch.close(supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_it_lose_its_status_while_nobody_is_there() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut ids = Vec::new();
    for seed in 21..=30 {
        let id = unique_id("mischief");
        let code = u8::try_from(seed).expect("a small number");
        let container =
            supervisor.run(mischief(&scratch, seed, code).id(id.clone())).await.unwrap();
        ids.push((id, code, container.info().pid));
    }
    soon("the shutdown", supervisor.shutdown()).await;
    let gone =
        |pid: &Option<i32>| pid.is_none_or(|pid| !Path::new(&format!("/proc/{pid}")).exists());
    eventually("all to end", || ids.iter().all(|(_, _, pid)| gone(pid))).await;
    let supervisor = scratch.open().await;
    for (id, code, _) in &ids {
        let record = soon("an exit", supervisor.get(id).unwrap().exit()).await.unwrap();
        assert_eq!((record.status, record.evidence), (ExitStatus::Code(*code), Evidence::Shim));
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_that_reads_its_own_output_takes_only_what_it_reads() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let script = "cat <&1 >/dev/null & for i in 1 2 3 4 5 6 7 8 9; do echo $i; done; sleep 0.3; \
                  kill $!; wait; echo the end; exit 9";
    let container = supervisor.run(scratch.script(script)).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(9));
    let output = read_all(container.logs().unwrap()).await;
    assert!(output.stdout.ends_with(b"the end\n"), "{output:?}");
    scratch.close(supervisor).await;
}

fn terminal() -> Stdio {
    Stdio::new().terminal(TerminalSize { width: 80, height: 24 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_is_closed_and_opened_again_goes_on() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // More than a terminal takes while nobody reads it.
    let script = "echo begins; exec </dev/null >/dev/null 2>&1; sleep 0.3; exec >/dev/console; \
                  i=0; while [ $i -lt 2000 ]; do echo 0123456789012345678901234567890123456789; \
                  i=$((i+1)); done; exec >/dev/null; sleep 0.1; echo the end >/dev/console; exit 4";
    let options = scratch.script(script).stdio(terminal());
    let container = supervisor.run(options).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(4));
    let output = String::from_utf8(read_all(container.logs().unwrap()).await.stdout).unwrap();
    assert!(output.starts_with("begins\r\n") && output.ends_with("the end\r\n"), "{output:?}");
    assert_eq!(output.matches("0123456789\r\n").count(), 2000);
    eventually("its shim to end", || shim_group().is_some() || shims(&scratch.root()).is_empty())
        .await;
    scratch.close(supervisor).await;
}

fn logging(specs: &[&str]) -> Logging {
    let specs = specs.iter().map(|spec| spec.parse().expect("where output goes")).collect();
    Logging::new(specs).expect("places that go together")
}

async fn running_with_log(
    scratch: &Scratch,
    supervisor: &Supervisor,
    log: &str,
    script: &str,
) -> Container {
    let options = scratch.script(script).stdio(Stdio::new().log(logging(&[log])));
    supervisor.run(options).await.expect("run")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopter_needs_no_more_than_the_first_shim_did() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let logs = scratch.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let gate = scratch.gate();
    let script = gate.script("echo first");
    let log = format!("cri:{}", logs.join("log").display());
    let container = running_with_log(&scratch, &supervisor, &log, &script).await;
    said(&container, "first").await;
    let away = scratch.path().join("away");
    fs::rename(&logs, &away).unwrap();
    shim_of(&scratch.root(), container.id().as_str(), "init").signal(Signal::SIGKILL);
    events_until(&mut events, |event| event.kind == EventKind::Adopted).await;
    fs::rename(&away, &logs).unwrap();
    gate.open(6);
    assert_eq!(status(&container).await, ExitStatus::Code(6));
    let written = fs::read_to_string(logs.join("log")).unwrap();
    assert!(written.contains(" F first\n") && written.contains(" F after\n"), "{written}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_ends_a_shim_that_waits_for_a_reader() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let also = scratch.path().join("log");
    // The FIFO takes 64 KiB by itself; the rest waits in the shim.
    let script = "head -c 200000 /dev/zero; exit 2";
    let (log, fifo) = (
        format!("cri:{}", also.display()),
        format!("fifo:{},backpressure=drop-oldest", fifo.display()),
    );
    let options = scratch.script(script).stdio(Stdio::new().log(logging(&[&log, &fifo])));
    let container = supervisor.run(options).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(2));
    soon("the delete", container.delete()).await.unwrap();
    scratch.close(supervisor).await;
}
