//! A process whose shim dies gets a new one, and nothing of it is lost.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_supervisor::{
    ContainerOptions, Cursor, EventKind, Evidence, ExecOptions, ExitStatus, Status, Stdin, Stdio,
    TerminalSize, UnknownReason,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::processes::shim_of;
use holdfast_tests::{
    Holdfast, Output, Proc, Scratch, events_until, eventually, executable, read_all, said, soon,
    status, unique_id,
};
use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;

/// Kills the shim of a process and waits until another has taken over.
async fn lose_shim(
    scratch: &Scratch,
    events: &mut holdfast_supervisor::EventStream,
    container: &str,
    process: &str,
) {
    shim_of(&scratch.root(), container, process).signal(Signal::SIGKILL);
    events_until(events, |event| {
        event.container.as_str() == container
            && event.process.as_str() == process
            && event.kind == EventKind::Adopted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adopter_takes_over_the_output_the_exit_and_the_next_adopter_takes_it_from_there() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let gates = [scratch.gate(), scratch.gate(), scratch.gate()];
    let script = format!(
        "{}; {}; {}",
        gates[0].wait("echo ready; echo warn >&2"),
        gates[1].wait("echo first; echo second >&2"),
        gates[2].script("echo third")
    );
    let id = unique_id("again");
    let container = supervisor.run(scratch.script(&script).id(id.clone())).await.unwrap();
    said(&container, "ready").await;
    for (gate, line) in gates.iter().zip(["first", "third"]) {
        lose_shim(&scratch, &mut events, id.as_str(), "init").await;
        assert_eq!(container.info().status, Status::Running);
        gate.open(0);
        said(&container, line).await;
    }
    gates[2].open(31);
    let record = soon("the exit", container.exit()).await.unwrap();
    assert_eq!(record.status, ExitStatus::Code(31));
    assert!(matches!(record.evidence, Evidence::Pidfd | Evidence::Zombie), "{record:?}");
    let output =
        Output { stdout: b"ready\nfirst\nthird\nafter\n".into(), stderr: b"warn\nsecond\n".into() };
    assert_eq!(read_all(container.logs().unwrap()).await, output);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_while_there_was_no_shim_is_in_the_log_though_the_container_is_gone() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    // A matter of who is faster, so more than once.
    for _ in 0..10 {
        let gate = scratch.gate();
        let id = unique_id("gone");
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let container = supervisor.run(options).await.unwrap();
        said(&container, "ready").await;
        // The shim does nothing from now on, so the end of the container is for the adopter alone.
        let shim = shim_of(&scratch.root(), id.as_str(), "init");
        shim.signal(Signal::SIGSTOP);
        shim.reaches('T').await;
        let process = Proc::of(container.info().pid.unwrap()).unwrap();
        gate.open(3);
        process.ended().await;
        shim.signal(Signal::SIGKILL);
        assert_eq!(status(&container).await, ExitStatus::Code(3));
        assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nafter\n"));
        soon("the delete", container.delete()).await.unwrap();
    }
    scratch.close(supervisor).await;
}

/// Makes a runtime that waits before it makes a process. Returns its path, that of a file that says that it waits, and
/// that of a file for which it waits.
fn slow_runtime(scratch: &Scratch) -> (PathBuf, [PathBuf; 2]) {
    let [slow, asked, goes_on] =
        ["runtime", "asked", "goes-on"].map(|name| scratch.path().join(name));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--pid-file*) touch {}; \
         while ! [ -e {} ]; do sleep 0.01; done;; esac\nexec {} \"$@\"\n",
        asked.display(),
        goes_on.display(),
        holdfast_tests::runtime().display()
    );
    executable::script(&slow, &script);
    (slow, [asked, goes_on])
}

fn open_exit_fifo(root: &Path, id: &str) -> File {
    let exit = root.join(id).join("init/exit");
    File::options().read(true).write(true).open(exit).expect("open the exit FIFO")
}

fn is_announced(exit: &File) -> bool {
    holdfast_sys::fd::readable_bytes(exit).expect("look into the FIFO") > 0
}

/// Takes the announcement out of the FIFO, and returns it with the shim that made it: one that starts a process for a
/// group has handed it over by then.
fn taken(exit: &mut File) -> (Vec<u8>, Proc) {
    let mut room = [0; 256];
    let length = exit.read(&mut room).expect("read the announcement");
    let line = String::from_utf8_lossy(&room[..length]).into_owned();
    let pid = line.split(' ').find_map(|word| word.strip_prefix("shim=")?.trim().parse().ok());
    let shim = pid.and_then(Proc::of).unwrap_or_else(|| panic!("no shim: {line}"));
    (line.into_bytes(), shim)
}

/// It has announced the process, and the supervisor has not heard of it: this thread is the supervisor's, too, and
/// waits here. The process then ends before anybody adopts it.
#[tokio::test]
async fn a_shim_that_is_killed_behind_its_announcement_takes_no_output_along() {
    let wait_here = |what: &str, condition: &dyn Fn() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline, "waited for {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let scratch = Scratch::new();
    let (slow, [asked, goes_on]) = slow_runtime(&scratch);
    let supervisor =
        scratch.builder().runtime(slow.display().to_string()).open().await.expect("open");
    for _ in 0..3 {
        let (id, gate) = (unique_id("early"), scratch.gate());
        let options = scratch.script(&gate.script("echo ready")).id(id.clone());
        let starts = supervisor.clone();
        let start = tokio::spawn(async move { starts.run(options).await });
        eventually("the runtime", || asked.exists()).await;
        let mut exit = open_exit_fifo(&scratch.root(), id.as_str());
        File::create(&goes_on).expect("let it go on");
        wait_here("the announcement", &|| is_announced(&exit));
        let (announcement, shim) = taken(&mut exit);
        exit.write_all(&announcement).expect("put it back");
        shim.signal(Signal::SIGKILL);
        wait_here("the end of the shim", &|| !shim.lives());
        drop(exit);
        let container = soon("the start", start).await.unwrap().expect("it runs");
        let process = Proc::of(container.info().pid.unwrap()).unwrap();
        gate.open(3);
        wait_here("the end of the process", &|| !process.lives());
        assert_eq!(status(&container).await, ExitStatus::Code(3));
        assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nafter\n"));
        soon("the delete", container.delete()).await.unwrap();
        for path in [&asked, &goes_on] {
            fs::remove_file(path).expect("remove");
        }
    }
    scratch.close(supervisor).await;
}

/// A daemon dies when it has read the announcement and written nothing of it. The process ends, its shim is stopped
/// and does nothing, and is killed once the next daemon is there.
#[tokio::test]
async fn output_is_not_lost_with_a_daemon_that_had_read_where_it_is_and_the_shim() {
    let mut holdfast = Holdfast::without_daemon();
    let (slow, [asked, goes_on]) = slow_runtime(&holdfast.scratch);
    holdfast.start_daemon_by(|daemon| _ = daemon.arg("--runtime").arg(&slow)).await;
    let (id, gate) = (unique_id("unheard"), holdfast.scratch.gate());
    let bundle = holdfast.scratch.bundle().display().to_string();
    let script = gate.script("echo ready");
    let options = ["--detach", "--name", id.as_str(), "--bundle", &bundle];
    let start = [&["run"][..], &options, &["--", "sh", "-c", &script]].concat();
    let start = holdfast.begin(&start);
    eventually("the runtime", || asked.exists()).await;
    let mut exit = open_exit_fifo(&holdfast.root(), id.as_str());
    holdfast.daemon().process().signal(Signal::SIGSTOP);
    File::create(&goes_on).expect("let it go on");
    eventually("the announcement", || is_announced(&exit)).await;
    let (_, shim) = taken(&mut exit);
    shim.signal(Signal::SIGSTOP);
    shim.reaches('T').await;
    holdfast.kill_daemon().await;
    let pid = fs::read_to_string(holdfast.root().join(id.as_str()).join("init/pid")).expect("pid");
    let process = Proc::of(pid.trim().parse().expect("a pid")).expect("it runs");
    gate.open(3);
    process.ended().await;
    drop(exit);
    holdfast.start_daemon().await;
    shim.signal(Signal::SIGKILL);
    assert_eq!(holdfast.ok(&["wait", id.as_str()]).await, "3\n");
    assert_eq!(holdfast.ok(&["logs", id.as_str()]).await, "ready\nafter\n");
    assert_eq!(start.end().await.stdout, format!("{id}\n"));
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_shim_and_supervisor_dead_the_next_supervisor_has_it_adopted() {
    let scratch = Scratch::new();
    let id = unique_id("both");
    let gate = scratch.gate();
    let supervisor = scratch.open().await;
    let options = scratch.script(&gate.script("echo ready")).id(id.clone());
    let container = supervisor.run(options).await.unwrap();
    said(&container, "ready").await;
    let shim = shim_of(&scratch.root(), id.as_str(), "init");
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    shim.signal(Signal::SIGKILL);
    shim.ended().await;

    let supervisor = scratch.open().await;
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    let told = events_until(&mut events, |event| event.kind == EventKind::Adopted).await;
    let words: Vec<_> = told.iter().map(in_words).collect();
    assert_eq!(words, ["init created", "init started", "init shim lost", "init adopted"]);
    // The adopter's work is its own: it needs no supervisor either.
    soon("the shutdown", supervisor.shutdown()).await;
    let adopter = shim_of(&scratch.root(), id.as_str(), "init");
    gate.open(4);
    adopter.ended().await;
    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(4));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("ready\nafter\n"));
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_only_a_stopped_adopter_knows_is_not_given_up_by_the_next_supervisor() {
    let scratch = Scratch::new();
    let id = unique_id("slow");
    let gate = scratch.gate();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let options = scratch.script(&gate.script("echo ready")).id(id.clone());
    let container = supervisor.run(options).await.unwrap();
    said(&container, "ready").await;
    lose_shim(&scratch, &mut events, id.as_str(), "init").await;
    let adopter = shim_of(&scratch.root(), id.as_str(), "init");
    adopter.signal(Signal::SIGSTOP);
    adopter.reaches('T').await;
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    drop((container, events));
    soon("the shutdown", supervisor.shutdown()).await;
    gate.open(120);
    // Reaped by whom it had come to as an orphan, so that no number and no handle finds it again.
    process.gone().await;

    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    adopter.signal(Signal::SIGCONT);
    let known = status(&container).await;
    // Below Linux 6.15 nobody tells the adopter either.
    let lost = ExitStatus::Unknown(UnknownReason::ReapedByAnother);
    let tells = supervisor.abilities().tells_endings;
    assert_eq!(known, if tells { ExitStatus::Code(120) } else { lost });
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_survives_its_shim_in_both_directions() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let id = unique_id("terminal");
    let size = TerminalSize { width: 91, height: 17 };
    let stdio = Stdio::new().stdin(Stdin::Pipe).terminal(size);
    let script = "stty -echo; echo ready; read line; echo \"got $line\"; stty size; exit 8";
    let options = scratch.script(script).id(id.clone()).stdio(stdio);
    let container = supervisor.run(options).await.unwrap();
    heard(&container, "ready\r\n").await;
    lose_shim(&scratch, &mut events, id.as_str(), "init").await;
    container.resize(TerminalSize { width: 92, height: 18 }).unwrap();
    container.stdin().unwrap().write_all(b"words\n").await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(8));
    let output = read_all(container.logs().unwrap()).await;
    assert_eq!(output, Output::of("ready\r\ngot words\r\n18 92\r\n"));
    scratch.close(supervisor).await;
}

async fn heard(container: &holdfast_supervisor::Container, text: &str) {
    let mut reader = container.logs().expect("open the output");
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        let chunk = soon(text, reader.follow()).await.expect("read output").expect("it ended");
        all.extend_from_slice(&chunk.bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_is_adopted_like_a_container() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let id = unique_id("exec");
    let options = ContainerOptions::bundle(scratch.bundle()).args(["sleep", "100000"]);
    let container = supervisor.run(options.id(id.clone())).await.unwrap();
    let gate = scratch.gate();
    let exec = ExecOptions::new(["sh", "-c", &gate.script("echo exec")]);
    let exec = container.exec(exec.id("more".parse().unwrap())).await.unwrap();
    lose_shim(&scratch, &mut events, id.as_str(), "more").await;
    gate.open(12);
    assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(12));
    assert_eq!(read_all(exec.logs().unwrap()).await, Output::of("exec\nafter\n"));
    scratch.close(supervisor).await;
}
