//! Many processes in the care of one shim: as safe as each with its own.

use std::collections::BTreeSet;
use std::fs;

use holdfast_supervisor::{
    Container, ContainerOptions, EventKind, Evidence, ExecOptions, ExitStatus, GroupName, Logging,
    Replay, Stdin, Stdio, Supervisor, TerminalSize,
};
use holdfast_tests::processes::shims;
use holdfast_tests::{
    Gate, Output, Proc, Scratch, events_until, eventually, read_all, said, soon, status, unique_id,
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
    let mut events = supervisor.events(Replay::No);
    let all = several(&scratch, &supervisor, 6).await;
    for _ in 0..2 {
        the_shim(&scratch).await.signal(Signal::SIGKILL);
        let mut waiting: BTreeSet<_> = all.iter().map(|(it, _)| it.id().clone()).collect();
        events_until(&mut events, |event| {
            if event.event.kind == EventKind::Adopted {
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
    assert!(names.contains("one".as_ref() as &std::ffi::OsStr), "{names:?}");
    scratch.close(supervisor).await;
}
