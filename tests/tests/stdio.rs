//! A process's input and output: FIFOs of the caller's, pipes, ownership, and who owns them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use holdfast_supervisor::{
    Error, ExecOptions, ExitStatus, LogSpec, Logging, Status, Stdin, Stdio, TerminalSize,
};
use holdfast_tests::listen::eventually;
use holdfast_tests::processes::with_command_line;
use holdfast_tests::{
    Holdfast, Output, Scratch, edit_json, is_runtime, read_all, said, skip, soon, status,
};
use nix::sys::stat::Mode;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::pipe::{OpenOptions, Receiver};

/// The host's uid and gid of the root of a container with a user namespace.
const MAPPED: (u32, u32) = (100_000, 200_000);

fn fifo(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path().join(name);
    nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).expect("make a FIFO");
    path
}

fn reader(path: &Path) -> Receiver {
    OpenOptions::new().open_receiver(path).expect("open a FIFO for reading")
}

fn lines(path: &Path) -> Lines<BufReader<Receiver>> {
    BufReader::new(reader(path)).lines()
}

async fn line(lines: &mut Lines<BufReader<Receiver>>) -> String {
    let line = soon("a line", lines.next_line()).await.expect("read a FIFO");
    line.expect("the FIFO has not ended")
}

/// Gives the bundle a user namespace whose root is another's on the host.
fn map_root(scratch: &Scratch) {
    edit_json(&scratch.bundle().join("config.json"), |config| {
        let linux = &mut config["linux"];
        let map = |host: u32| json!([{ "containerID": 0, "hostID": host, "size": 65536 }]);
        linux["uidMappings"] = map(MAPPED.0);
        linux["gidMappings"] = map(MAPPED.1);
        linux["namespaces"].as_array_mut().expect("namespaces").push(json!({ "type": "user" }));
    });
    // The mapped root must be able to pass, and to make what is mounted upon.
    let rootfs = scratch.bundle().join("rootfs");
    std::os::unix::fs::chown(rootfs, Some(MAPPED.0), Some(MAPPED.1)).expect("give the rootfs");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    fs::set_permissions(scratch.path(), mode).expect("let others pass");
}

fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let path = path.as_ref();
    let metadata = path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (metadata.uid(), metadata.gid())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mapped_root_of_a_user_namespace_owns_its_stdio_and_may_reopen_it() {
    let scratch = Scratch::new();
    map_root(&scratch);
    let supervisor = scratch.open().await;
    let script = "echo out > /dev/stdout; echo err > /dev/stderr; read -r word < /dev/stdin; \
                  stat -L -c %u:%g /dev/stdin /dev/stdout /dev/stderr; echo $word; read -r last";
    let options = scratch.script(script).stdio(Stdio::new().stdin(Stdin::Pipe));
    let container = supervisor.run(options).await.unwrap();
    soon("input", container.stdin().unwrap().write_all(b"word\n")).await.unwrap();
    said(&container, "word").await;
    let dir = scratch.root().join(container.id().as_str()).join("init");
    assert_eq!(owner(dir.join("stdin")), MAPPED);
    assert_eq!(owner(dir.join("output.log")), MAPPED);
    let pid = container.info().pid.unwrap();
    for fd in 0..3 {
        assert_eq!(owner(format!("/proc/{pid}/fd/{fd}")), MAPPED, "descriptor {fd}");
    }
    assert_eq!((owner(dir.join("exit")), owner(dir.join("control"))), ((0, 0), (0, 0)));
    container.close_stdin().unwrap();
    status(&container).await;
    let expected =
        Output { stdout: b"out\n0:0\n0:0\n0:0\nword\n".to_vec(), stderr: b"err\n".to_vec() };
    assert_eq!(read_all(container.logs().unwrap()).await, expected);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mapped_root_of_a_user_namespace_owns_its_terminal() {
    // libcontainer's exec joins every namespace but this one.
    if is_runtime("holdfast-oci") || is_runtime("youki") {
        return skip(
            "exec into a user namespace: libcontainer can't, and the embedded one refuses",
        );
    }
    let scratch = Scratch::new();
    map_root(&scratch);
    let supervisor = scratch.open().await;
    let script = "echo out > /dev/stdout; stat -L -c %u /dev/stdin /dev/stdout; echo ready; \
                  read -r last";
    let stdio = Stdio::new().stdin(Stdin::Pipe).terminal(TerminalSize { width: 80, height: 24 });
    let container = supervisor.run(scratch.script(script).stdio(stdio.clone())).await.unwrap();
    let exec = ExecOptions::new(["sh", "-c", script]).stdio(stdio);
    let (exec, exec_log) = container.exec_attached(exec).await.unwrap();
    for (mut log, pid) in
        [(container.logs().unwrap(), container.info().pid), (exec_log, exec.pid())]
    {
        let mut all = Vec::new();
        while !all.ends_with(b"ready\r\n") {
            all.extend(soon("output", log.follow()).await.unwrap().expect("it waits").bytes);
        }
        assert_eq!(all, b"out\r\n0\r\n0\r\nready\r\n");
        assert_eq!(owner(format!("/proc/{}/fd/0", pid.unwrap())).0, MAPPED.0);
    }
    soon("input", exec.stdin().unwrap().write_all(b"\n")).await.unwrap();
    assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(0));
    // Not before: the end of the container's first process is that of all others.
    soon("input", container.stdin().unwrap().write_all(b"\n")).await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_fifos_carry_input_and_both_outputs() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| fifo(&scratch, name));
    let (mut out, mut err) = (lines(&stdout), lines(&stderr));
    let script = "echo err >&2; while read -r word; do echo got $word; done; exit 4";
    let stdio = Stdio::new().stdin(Stdin::Fifo(stdin.clone()));
    let stdio = stdio.stdout_fifo(&stdout).stderr_fifo(&stderr);
    let container = supervisor.run(scratch.script(script).stdio(stdio)).await.unwrap();
    // One writer's end is not the end of the input: another may come.
    for word in ["one", "two"] {
        let mut writer = OpenOptions::new().open_sender(&stdin).expect("the FIFO is read");
        soon("input", writer.write_all(format!("{word}\n").as_bytes())).await.unwrap();
        drop(writer);
        assert_eq!(line(&mut out).await, format!("got {word}"));
    }
    assert_eq!(line(&mut err).await, "err");
    assert_eq!(container.stdin_path(), None, "Holdfast made no FIFO of its own");
    assert_eq!(container.info().status, Status::Running);
    container.close_stdin().unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(4));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::default(), "the log has none");
    // The last of those who write to it is gone.
    assert_eq!(soon("the end", out.next_line()).await.unwrap(), None);
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_command_line_takes_the_callers_fifos_too() {
    let holdfast = Holdfast::start().await;
    let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| fifo(&holdfast.scratch, name));
    let (mut out, mut err) = (lines(&stdout), lines(&stderr));
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let [stdin, stdout, stderr] = [text(&stdin), text(&stdout), text(&stderr)];
    let options = ["--stdin", &stdin, "--stdout", &stdout, "--stderr", &stderr];
    let script = "read -r word; echo $word; echo err >&2; exit 4";
    let id = holdfast.run_detached(&options, &["sh", "-c", script]).await;
    let mut writer = OpenOptions::new().open_sender(&stdin).expect("the FIFO is read");
    soon("input", writer.write_all(b"word\n")).await.unwrap();
    assert_eq!((line(&mut out).await, line(&mut err).await), ("word".into(), "err".into()));
    assert_eq!(holdfast.ok(&["wait", &id]).await, "4\n");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_fifo_is_refused_for_each_of_the_three() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let file = scratch.path().join("file");
    fs::write(&file, "kept").unwrap();
    let running = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    for path in [&file, &scratch.path().to_owned(), &scratch.path().join("missing")] {
        let all = [
            Stdio::new().stdin(Stdin::Fifo(path.clone())),
            Stdio::new().stdout_fifo(path),
            Stdio::new().stderr_fifo(path),
        ];
        for stdio in all {
            let error = supervisor.run(scratch.script("true").stdio(stdio.clone())).await;
            let error = error.expect_err("no FIFO");
            assert!(matches!(&error, Error::NotFifo(named) if named == path), "{error}");
            let error = running.exec(ExecOptions::new(["true"]).stdio(stdio)).await;
            let error = error.expect_err("no FIFO");
            assert!(matches!(&error, Error::NotFifo(named) if named == path), "{error}");
        }
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    assert!(running.info().execs.is_empty());
    assert_eq!(supervisor.list().len(), 1);
    soon("the delete", running.delete_forced()).await.unwrap();
    scratch.group_ended().await;
    assert_eq!(scratch.leftovers(), [""; 0]);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifos_that_nobody_opens_hold_up_neither_start_nor_end_nor_restore() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let [stdin, stdout, stderr] = ["in", "out", "err"].map(|name| fifo(&scratch, name));
    let all = Stdio::new().stdin(Stdin::Fifo(stdin.clone()));
    let all = all.stdout_fifo(&stdout).stderr_fifo(&stderr);
    let script = "echo out; echo err >&2; exit 3";
    let brief = supervisor.run(scratch.script(script).stdio(all.clone())).await.unwrap();
    assert_eq!(status(&brief).await, ExitStatus::Code(3));
    let waits = supervisor.create(scratch.script("read -r x; exit 5").stdio(all)).await.unwrap();
    waits.start().await.unwrap();
    let id = waits.id().clone();
    drop((brief, waits));
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    let waits = supervisor.get(&id).unwrap();
    assert_eq!(waits.info().status, Status::Running);
    let mut writer = OpenOptions::new().open_sender(&stdin).expect("the FIFO is read");
    soon("input", writer.write_all(b"\n")).await.unwrap();
    assert_eq!(status(&waits).await, ExitStatus::Code(5));
    drop(waits);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_not_killed_when_every_reader_of_its_fifo_goes() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let (stdout, first, second) = (fifo(&scratch, "out"), scratch.gate(), scratch.gate());
    let mut out = lines(&stdout);
    // A thousand writes without a reader, which the FIFO has room for.
    let writes = "for i in $(seq 1000); do echo $i; done";
    let script = format!("{}; {}", first.script("echo one"), second.script(writes));
    let script = script.replacen("exit $code; ", "", 1);
    let stdio = Stdio::new().stdout_fifo(&stdout);
    let container = supervisor.run(scratch.script(&script).stdio(stdio)).await.unwrap();
    assert_eq!(line(&mut out).await, "one");
    drop(out);
    first.open(0);
    // Who comes next finds what was written meanwhile, or is in time for it.
    let mut out = lines(&stdout);
    assert_eq!(line(&mut out).await, "after");
    for i in 1..=1000 {
        assert_eq!(line(&mut out).await, i.to_string());
    }
    drop(out);
    second.open(6);
    assert_eq!(status(&container).await, ExitStatus::Code(6), "no SIGPIPE");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_by_a_pipe_has_several_writers_and_ends_when_told_and_they_are_gone() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let stdio = Stdio::new().stdin(Stdin::Pipe);
    let container = supervisor.run(scratch.options(["cat"]).stdio(stdio.clone())).await.unwrap();
    let (mut first, mut second) = (container.stdin().unwrap(), container.stdin().unwrap());
    soon("input", first.write_all(b"first\n")).await.unwrap();
    said(&container, "first").await;
    container.close_stdin().unwrap();
    drop(first);
    soon("input", second.write_all(b"second\n")).await.unwrap();
    drop(second);
    assert_eq!(status(&container).await, ExitStatus::Code(0));
    assert_eq!(read_all(container.logs().unwrap()).await, Output::of("first\nsecond\n"));

    // Without: nothing to read, and nothing to write to.
    let none = supervisor.run(scratch.options(["cat"])).await.unwrap();
    assert_eq!(status(&none).await, ExitStatus::Code(0));
    assert!(none.stdin().is_err());
    assert_eq!(none.stdin_path(), None);
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn two_hundred_megabytes_come_through_the_input_unchanged() {
    const SIZE: usize = 200_000_000;
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let mut command = holdfast.command(&["exec", "-i", &id, "--", "md5sum"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start the command");
    let mut expected = tokio::process::Command::new("md5sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start md5sum");
    // Every byte value, and no period that a buffer's size has.
    let block: Vec<u8> = (0..65_521_u32).map(|n| (n * n % 251) as u8).collect();
    let (mut to, mut also_to) = (child.stdin.take().unwrap(), expected.stdin.take().unwrap());
    let mut left = SIZE;
    while left > 0 {
        let part = &block[..left.min(block.len())];
        soon("input", to.write_all(part)).await.expect("write to the command");
        soon("input", also_to.write_all(part)).await.expect("write to md5sum");
        left -= part.len();
    }
    drop((to, also_to));
    let got = soon("the command", child.wait_with_output()).await.unwrap();
    let expected = soon("md5sum", expected.wait_with_output()).await.unwrap();
    assert_eq!(got.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&got.stdout), String::from_utf8_lossy(&expected.stdout));
    holdfast.close().await;
}

#[tokio::test]
async fn a_process_that_reads_none_of_its_input_ends_as_it_likes() {
    let holdfast = Holdfast::start().await;
    let bundle = holdfast.scratch.bundle().into_os_string().into_string().unwrap();
    let gate = holdfast.scratch.gate();
    let script = gate.script("echo ready");
    for endless in [true, false] {
        let mut command =
            holdfast.command(&["run", "-i", "--bundle", &bundle, "--", "sh", "-c", &script]);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("start the command");
        // More than any pipe holds, until nobody takes it; or a writer that says nothing.
        let mut stdin = child.stdin.take().unwrap();
        let feeding = tokio::spawn(async move {
            while endless && stdin.write_all(&[b'x'; 65536]).await.is_ok() {}
            stdin
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = soon("a line", lines.next_line()).await.unwrap();
        assert_eq!(ready.as_deref(), Some("ready"));
        gate.open(9);
        let status = soon("the command", child.wait()).await.unwrap();
        assert_eq!(status.code(), Some(9), "endless: {endless}");
        drop(soon("the end of the writer", feeding).await.unwrap());
    }
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_fifo_ends_when_its_exec_is_deleted_though_a_child_still_has_the_output() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("exec sleep 1000")).await.unwrap();
    let gate = scratch.gate();
    let path = fifo(&scratch, "out");
    let mut out = lines(&path);
    // The child goes on writing after the end of the exec, and must not be held up by that.
    let mark = format!("1000.{}", std::process::id());
    let child = format!("{}; seq 200000; exec sleep {mark}", gate.wait("echo child"));
    let script = format!("sh -c '{}' & echo first; exit 3", child.replace('\'', r"'\''"));
    let log: LogSpec = format!("fifo:{},relay=yes", path.display()).parse().unwrap();
    let stdio = Stdio::new().log(Logging::new(vec![log]).unwrap());
    let exec = container.exec(ExecOptions::new(["sh", "-c", &script]).stdio(stdio)).await.unwrap();
    assert_eq!(soon("the exit", exec.wait()).await.unwrap(), ExitStatus::Code(3));
    let mut got = vec![line(&mut out).await, line(&mut out).await];
    got.sort();
    assert_eq!(got, ["child", "first"], "the child has the same output");
    soon("the deletion", exec.delete()).await.unwrap();
    assert_eq!(soon("the end", out.next_line()).await.unwrap(), None);
    gate.open(0);
    // All of its output is taken, and goes nowhere.
    let waits = || with_command_line(&["sleep", &mark]) == 1;
    eventually("the child to have written everything", waits).await;
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn a_relayed_fifo_has_all_that_was_written_when_its_exec_is_deleted_at_once() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("exec sleep 1000")).await.unwrap();
    let path = fifo(&scratch, "out");
    let mut out = reader(&path);
    let log: LogSpec = format!("fifo:{},relay=yes", path.display()).parse().unwrap();
    let stdio = Stdio::new().log(Logging::new(vec![log]).unwrap());
    let program = ["sh", "-c", "head -c 300000 /dev/zero"];
    let reading = tokio::spawn(async move {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).await.map(|_| bytes.len())
    });
    let exec = container.exec(ExecOptions::new(program).stdio(stdio)).await.unwrap();
    assert_eq!(soon("the exit", exec.wait()).await.unwrap(), ExitStatus::Code(0));
    exec.delete().await.unwrap();
    assert_eq!(soon("the end", reading).await.unwrap().unwrap(), 300_000);
    scratch.close(supervisor).await;
}
