//! Many processes in the care of one shim: as safe as each with its own.

use std::collections::BTreeSet;
use std::fs;

use holdfast_supervisor::{
    Container, ContainerOptions, EventKind, Evidence, ExecOptions, ExitStatus, GroupName, Logging,
    Stdin, Stdio, Supervisor, TerminalSize,
};
use holdfast_tests::processes::shims;
use holdfast_tests::{
    Gate, Holdfast, Output, Proc, Scratch, binary, events_until, eventually, executable, journal,
    read_all, said, soon, status, unique_id,
};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;

fn group(name: &str) -> GroupName {
    name.parse().expect("the name of a group")
}

async fn open(scratch: &Scratch) -> Supervisor {
    let opened = scratch.builder().shim_group(Some(group("all"))).open();
    soon("the supervisor", opened).await.expect("open a supervisor")
}

/// Containers that say `ready`, and `after` once they are let go.
async fn several(scratch: &Scratch, supervisor: &Supervisor, count: u8) -> Vec<(Container, Gate)> {
    let mut all = Vec::new();
    for number in 0..count {
        let gate = scratch.gate();
        let id = unique_id(&format!("seat{number}"));
        let options = scratch.script(&gate.script("echo ready; echo warn >&2")).id(id);
        let container = soon("a start", supervisor.run(options)).await.expect("run");
        said(&container, "ready").await;
        all.push((container, gate));
    }
    all
}

/// Lets each go with its own status, and finds that and all of its output.
async fn end_all(all: &[(Container, Gate)], evidence: &[Evidence]) {
    for (code, (container, gate)) in (0..).zip(all) {
        gate.open(code);
        let record = soon("an exit", container.exit()).await.expect("an exit");
        assert_eq!(record.status, ExitStatus::Code(code));
        assert!(evidence.contains(&record.evidence), "{record:?}");
        let output = Output { stdout: b"ready\nafter\n".into(), stderr: b"warn\n".into() };
        assert_eq!(read_all(container.logs().expect("a log")).await, output);
    }
}

/// The one that is left when those who started processes have ended.
async fn the_shim(scratch: &Scratch) -> Proc {
    eventually("one shim to be there", || shims(&scratch.root()).len() == 1).await;
    shims(&scratch.root()).remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_shim_has_them_all_and_ends_with_the_last() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let all = several(&scratch, &supervisor, 5).await;
    let shim = the_shim(&scratch).await;
    let exec = ExecOptions::new(["sh", "-c", "exit 9"]);
    let exec = soon("an exec", all[0].0.exec(exec)).await.unwrap();
    assert_eq!(soon("its exit", exec.wait()).await.unwrap(), ExitStatus::Code(9));
    assert!(shim.lives());
    end_all(&all, &[Evidence::Shim]).await;
    shim.gone().await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_it_is_killed_another_takes_over_all_and_nothing_is_lost() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let mut events = supervisor.events();
    let all = several(&scratch, &supervisor, 6).await;
    for _ in 0..2 {
        the_shim(&scratch).await.signal(Signal::SIGKILL);
        let mut waiting: BTreeSet<_> = all.iter().map(|(it, _)| it.id().clone()).collect();
        events_until(&mut events, |event| {
            if event.kind == EventKind::Adopted {
                assert!(waiting.remove(&event.container), "adopted twice: {event:?}");
            }
            waiting.is_empty()
        })
        .await;
    }
    the_shim(&scratch).await;
    end_all(&all, &[Evidence::Pidfd, Evidence::Zombie]).await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_supervisor_it_records_and_the_next_supervisor_asks_the_same_one() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let mut all = several(&scratch, &supervisor, 4).await;
    let shim = the_shim(&scratch).await;
    soon("the shutdown", supervisor.shutdown()).await;
    let (gone, gate) = all.remove(0);
    let exit_json = scratch.root().join(gone.id().as_str()).join("init/exit.json");
    gate.open(77);
    eventually("the record of an exit", || exit_json.exists()).await;
    let supervisor = open(&scratch).await;
    let found = |it: &Container| supervisor.get(it.id()).unwrap();
    assert_eq!(status(&found(&gone)).await, ExitStatus::Code(77));
    let mut all: Vec<_> = all.into_iter().map(|(it, gate)| (found(&it), gate)).collect();
    all.extend(several(&scratch, &supervisor, 2).await);
    assert_eq!(the_shim(&scratch).await.identity(), shim.identity());
    end_all(&all, &[Evidence::Shim]).await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_or_takes_too_long_harms_no_neighbour() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let all = several(&scratch, &supervisor, 2).await;
    let missing = scratch.script("true").args(["/no/such/program"]);
    let error = soon("the failure", supervisor.run(missing)).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/program"), "{error}");
    let nowhere = Logging::new(vec!["cri:/no/such/directory/log".parse().unwrap()]).unwrap();
    let nowhere = scratch.script("true").stdio(Stdio::default().log(nowhere));
    let error = soon("the failure", supervisor.run(nowhere)).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/directory"), "{error}");
    end_all(&all, &[Evidence::Shim]).await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_starts_and_exits_at_once_are_all_told_exactly() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let starts = (0..24_u8).map(|code| {
        let options = scratch.script(&format!("echo {code}; exit {code}"));
        let supervisor = supervisor.clone();
        tokio::spawn(async move { (code, supervisor.run(options).await) })
    });
    for start in starts.collect::<Vec<_>>() {
        let (code, container) = soon("a start", start).await.unwrap();
        let container = container.unwrap();
        assert_eq!(status(&container).await, ExitStatus::Code(code));
        let output = read_all(container.logs().unwrap()).await;
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{code}\n"));
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_seat_takes_four_descriptors() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let all = several(&scratch, &supervisor, 4).await;
    let shim = the_shim(&scratch).await;
    let files = format!("/proc/{}/fd", shim.pid);
    // The group's own: three standard ones, three sockets, signals, epoll, three to look into pipes.
    // Those of a log go when there has been no output for a while.
    let expected = 11 + 4 * all.len();
    eventually("all to come to rest", || fs::read_dir(&files).unwrap().count() == expected).await;
    end_all(&all, &[Evidence::Shim]).await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_and_a_terminal_go_through_it() {
    let scratch = Scratch::new();
    let supervisor = open(&scratch).await;
    let piped = Stdio::default().stdin(Stdin::Pipe);
    let cat = supervisor.run(scratch.script("cat; exit 4").stdio(piped)).await.unwrap();
    let terminal =
        Stdio::default().stdin(Stdin::Pipe).terminal(TerminalSize { width: 80, height: 24 });
    let tty = scratch.script("read line; echo got $line; stty size; exit 5").stdio(terminal);
    let tty = supervisor.run(tty).await.unwrap();
    the_shim(&scratch).await;
    let mut input = cat.stdin().unwrap();
    input.write_all(b"through\n").await.unwrap();
    said(&cat, "through").await;
    drop(input);
    cat.close_stdin().unwrap();
    assert_eq!(status(&cat).await, ExitStatus::Code(4));
    let mut input = tty.stdin().unwrap();
    input.write_all(b"typed\n").await.unwrap();
    assert_eq!(status(&tty).await, ExitStatus::Code(5));
    let output = read_all(tty.logs().unwrap()).await;
    let output = String::from_utf8(output.stdout).unwrap();
    assert!(output.contains("got typed\r\n24 80\r\n"), "{output:?}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_group_has_its_own_and_who_is_in_none_too() {
    let scratch = Scratch::new();
    let supervisor = scratch.builder().shim_group(None).open();
    let supervisor = soon("the supervisor", supervisor).await.unwrap();
    let gate = scratch.gate();
    let options = |group_name: Option<&str>| -> ContainerOptions {
        let options = scratch.script(&gate.script("echo ready"));
        match group_name {
            Some(name) => options.shim_group(group(name)),
            None => options,
        }
    };
    let mut all = Vec::new();
    for name in [Some("one"), Some("one"), Some("other"), None, None] {
        let container = supervisor.run(options(name)).await.unwrap();
        said(&container, "ready").await;
        all.push(container);
    }
    eventually("those who start to be gone", || shims(&scratch.root()).len() == 4).await;
    let inside = fs::read_dir(scratch.root().join(".groups")).unwrap();
    let names: BTreeSet<_> = inside.flatten().map(|it| it.file_name()).collect();
    assert!(names.contains("one@4".as_ref() as &std::ffi::OsStr), "{names:?}");
    scratch.close(supervisor).await;
}

/// How many pipes it has open.
fn pipes(shim: &Proc) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", shim.pid)).expect("its descriptors");
    let targets = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("pipe:")).count()
}

/// Seen before: the number of a pipe that had ended was used again for a neighbour's; the next supervisor
/// took that for what it had been, and the next group wrote one container's output into another's log.
/// The long form is `HOLDFAST_GROUP_ROUNDS`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_line_comes_into_a_foreign_log_whoever_closes_its_output_and_whoever_dies() {
    let rounds = std::env::var("HOLDFAST_GROUP_ROUNDS").ok().and_then(|text| text.parse().ok());
    for round in 0..rounds.unwrap_or(1_u32) {
        let scratch = Scratch::new();
        let supervisor = open(&scratch).await;
        let (mut closers, mut writers) = (Vec::new(), Vec::new());
        for number in 0..5 {
            let (close, end) = (scratch.gate(), scratch.gate());
            let id = unique_id(&format!("closer{number}"));
            // Both, or one of them.
            let closing = ["exec >&- 2>&-", "exec >&-", "exec 2>&-"][number % 3];
            let begin = close.wait(&format!("echo {id} begins; echo {id} begins >&2"));
            let script = format!("{begin}; {closing}; {}; exit 4", end.wait(":"));
            let options = scratch.script(&script).id(id);
            let closer = soon("a start", supervisor.run(options)).await.expect("run");
            closers.push((closer, close, end));
        }
        let shim = the_shim(&scratch).await;
        let before = pipes(&shim);
        closers.iter().for_each(|(_, close, _)| close.open(0));
        eventually("7 outputs to end", || pipes(&shim) == before - 7).await;
        for number in 0..5 {
            let (gate, id) = (scratch.gate(), unique_id(&format!("writer{number}")));
            let lines = format!(
                "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo {id} $i; echo {id} $i >&2; done"
            );
            let begin = gate.wait(&format!("echo {id} begins"));
            let options = scratch.script(&format!("{begin}; {lines}; exit 5")).id(id);
            let writer = soon("a start", supervisor.run(options)).await.expect("run");
            writers.push((writer, gate));
        }
        eventually("those who started them to end", || shims(&scratch.root()).len() == 1).await;
        soon("the shutdown", supervisor.shutdown()).await;
        let supervisor = open(&scratch).await;
        if round % 2 == 0 {
            let mut events = supervisor.events();
            shim.signal(Signal::SIGKILL);
            let mut waiting = 10;
            events_until(&mut events, |event| {
                waiting -= u32::from(event.kind == EventKind::Adopted);
                waiting == 0
            })
            .await;
        }
        writers.iter().for_each(|(_, gate)| gate.open(0));
        closers.iter().for_each(|(_, _, end)| end.open(0));
        let closers = closers.iter().map(|(it, ..)| (it.id(), 4, 0));
        let writers = writers.iter().map(|(it, _)| (it.id(), 5, 600));
        for (id, code, count) in closers.chain(writers) {
            let container = supervisor.get(id).expect("it is there");
            assert_eq!(status(&container).await, ExitStatus::Code(code), "{id}");
            let Output { stdout, stderr } = read_all(container.logs().expect("a log")).await;
            let all = String::from_utf8([stdout, stderr].concat()).expect("UTF-8");
            let begins = |line: &&str| line.starts_with(&format!("{id} "));
            assert!(all.lines().all(|line| begins(&line)), "{id} has another's lines: {all}");
            let written = all.lines().filter(|line| !line.ends_with(" begins")).count();
            assert_eq!(written, count, "{id}");
        }
        scratch.close(supervisor).await;
    }
}

/// Seen before: an adopted seat needs one descriptor more, so a full group could not be adopted, and the first
/// message that there was no room for ended the next group with all that it had taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_group_is_adopted_as_far_as_there_is_room_and_the_rest_alone() {
    let mut holdfast = Holdfast::without_daemon();
    let limited = holdfast.scratch.path().join("limited");
    let shim = binary("holdfast-shim").display().to_string();
    executable::script(&limited, &format!("#!/bin/sh\nulimit -n 220\nexec {shim} \"$@\"\n"));
    let args = ["--shim-group".as_ref(), "all".as_ref(), "--shim".as_ref(), limited.as_os_str()];
    holdfast.try_start_daemon(&binary("holdfast"), &args).await.expect("the daemon starts");
    let bundle = holdfast.scratch.bundle().display().to_string();
    let runtime = binary("fake-runtime").display().to_string();
    let mut all = Vec::new();
    let refusal = loop {
        let (id, gate) = (unique_id("full").to_string(), holdfast.scratch.gate());
        let script = gate.script_on_host("echo before");
        let args = ["run", "-d", "--name", &id, "--runtime", &runtime, "--bundle", &bundle];
        let ran = holdfast.run(&[&args[..], &["--", "sh", "-c", &script]].concat()).await;
        if ran.code != Some(0) {
            break ran.stderr;
        }
        all.push((id, gate));
    };
    assert!(refusal.contains("the group is full"), "{refusal}");
    assert!(all.len() > 3, "{} containers", all.len());
    eventually("those who started them to end", || shims(&holdfast.root()).len() == 1).await;
    shims(&holdfast.root()).remove(0).signal(Signal::SIGKILL);
    for (id, _) in &all {
        eventually("its adoption", || journal::has(&holdfast.root(), id, "adopted")).await;
    }
    for (code, (id, gate)) in (0_u8..).zip(&all) {
        gate.open(code);
        assert_eq!(holdfast.ok(&["wait", id]).await, format!("{code}\n"));
        assert_eq!(holdfast.ok(&["logs", id]).await, "before\nafter\n");
    }
    holdfast.close().await;
}
