//! Side by side: what podman and its users see of conmon, and of Holdfast's monitor. Each behaviour is a test with
//! either, and one of a user who is not root.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;

use holdfast_supervisor::TerminalSize;
use holdfast_tests::podman::Podman;
use holdfast_tests::{Pty, Ran, in_path, ran, skip, soon, with_both_monitors};
use nix::unistd::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

with_both_monitors! {
    a_container_in_the_foreground_has_both_streams_and_its_code,
    a_program_that_is_not_there_is_named,
    a_detached_container_is_waited_for_and_its_log_is_there,
    a_log_is_followed_to_its_end,
    a_hundred_megabytes_go_in_and_come_back,
    output_is_complete_though_input_is_not_read,
    a_terminal_is_one_and_is_resized,
    a_client_detaches_and_another_attaches,
    a_container_is_created_and_then_started_with_input,
    an_exec_has_a_code_and_streams_of_its_own,
    an_exec_gets_input_and_a_terminal,
    an_exec_in_the_background_and_one_that_is_refused,
    no_code_of_an_exec_is_lost,
    a_container_is_stopped_killed_and_paused,
    a_container_is_killed_when_its_time_is_over,
    a_policy_restarts_a_container,
    a_health_check_is_an_exec,
    a_first_process_of_podmans_reaps_and_a_container_removes_itself,
    containers_of_a_pod_end_one_by_one,
    readiness_is_told_by_whom_it_is_to_be,
    each_log_driver_does_what_it_says,
    the_journal_has_a_log,
    a_log_has_a_size_limit,
    running_out_of_memory_is_seen,
    descriptors_are_preserved,
    a_container_runs_again_and_its_log_goes_on,
    a_checkpoint_is_restored_here_and_from_an_archive,
}

const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };
const OTHER: TerminalSize = TerminalSize { width: 77, height: 22 };

async fn with(monitor: &'static str, behaviour: impl AsyncFnOnce(&mut Podman)) {
    if let Some(mut podman) = Podman::start(monitor).await {
        behaviour(&mut podman).await;
        podman.close().await;
    }
}

fn came_to(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran { code: Some(code), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

/// Runs a command with an input, which ends if it is to.
async fn feed(mut command: Command, input: Vec<u8>) -> (Option<i32>, Vec<u8>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = command.spawn().expect("start podman");
    let mut stdin = client.stdin.take().expect("a piped input");
    // It may go before it has read all.
    tokio::spawn(async move { stdin.write_all(&input).await });
    let output = soon("the end of podman", client.wait_with_output()).await.expect("wait");
    (output.status.code(), output.stdout)
}

/// Starts a container that runs until it is removed.
async fn runs_on(podman: &Podman, name: &str, options: &[&str], script: &str) {
    let options = [&["-d", "--name", name], options].concat();
    podman.done(podman.script(&options, &format!("{script}; sleep 100000"))).await;
}

/// Types a word until this size is said behind it: podman hands sizes on beside all else.
async fn comes_to_size(terminal: &mut Pty, word: &str, size: &str) {
    soon(size, async {
        loop {
            terminal.types(&format!("{word}\n"));
            if terminal.shows(&format!("{word}\r\n")).await.contains(size) {
                return;
            }
        }
    })
    .await;
}

async fn state(podman: &Podman, name: &str) -> String {
    podman.does(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name]).await
}

async fn a_container_in_the_foreground_has_both_streams_and_its_code(podman: &mut Podman) {
    let ends = async |script: &str| ran(podman.script(&["--rm"], script)).await;
    assert_eq!(ends("echo out; echo err >&2").await, came_to(0, "out\n", "err\n"));
    assert_eq!(ends("printf open; exit 7").await, came_to(7, "open", ""));
    assert_eq!(podman.does(&["ps", "--all", "--quiet"]).await, "");
}

async fn a_program_that_is_not_there_is_named(podman: &mut Podman) {
    let missing = ran(podman.container("run", &["--rm"], &["/no/such/program"])).await;
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert!(missing.stderr.contains("/no/such/program"), "{missing:?}");
    let denied = ran(podman.container("run", &["--rm"], &["/bin"])).await;
    assert_eq!(denied.code, Some(126), "{denied:?}");
    assert_eq!(podman.does(&["ps", "--all", "--quiet"]).await, "");
}

async fn a_detached_container_is_waited_for_and_its_log_is_there(podman: &mut Podman) {
    let id =
        podman.done(podman.script(&["-d"], "echo out; echo err >&2; printf open; exit 3")).await;
    assert_eq!(podman.does(&["wait", &id]).await, "3");
    assert_eq!(state(podman, &id).await, "exited 3");
    let log = ran(podman.command(&["logs", &id])).await;
    assert_eq!((log.stdout.as_str(), log.stderr.as_str()), ("out\nopen", "err\n"));
    let last = ran(podman.command(&["logs", "--tail", "1", "--timestamps", &id])).await;
    assert!(last.stdout.contains('T') || last.stderr.contains('T'), "{last:?}");
}

async fn a_log_is_followed_to_its_end(podman: &mut Podman) {
    let script = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; sleep 0.05; done";
    let id = podman.done(podman.script(&["-d"], script)).await;
    let log = ran(podman.command(&["logs", "--follow", &id])).await;
    let expected: String = (1..=20).map(|number| format!("{number}\n")).collect();
    assert_eq!(log, came_to(0, &expected, ""));
}

async fn a_hundred_megabytes_go_in_and_come_back(podman: &mut Podman) {
    let input: Vec<u8> = (0..100_000_000_u32).map(|i| (i / 7).to_le_bytes()[0]).collect();
    let command = podman.container("run", &["--rm", "-i", "--log-driver", "none"], &["cat"]);
    let (code, output) = feed(command, input.clone()).await;
    assert_eq!(code, Some(0));
    assert!(output == input, "{} bytes", output.len());
}

async fn output_is_complete_though_input_is_not_read(podman: &mut Podman) {
    if !podman.is_holdfast() {
        // It closes a socket with input in it, and podman takes the error for the end.
        return skip("conmon loses the output now and then");
    }
    for _ in 0..3 {
        let command = podman.script(&["--rm", "-i"], "yes | head -c 100000");
        let (code, output) = feed(command, vec![b'x'; 1_000_000]).await;
        assert_eq!((code, output.len()), (Some(0), 100_000));
    }
}

async fn a_terminal_is_one_and_is_resized(podman: &mut Podman) {
    let script = "echo ready; while read -r word; do stty size; [ $word = end ] && exit 5; done";
    let mut terminal = Pty::start(&podman.script(&["--rm", "-it"], script), SIZE);
    terminal.shows("ready\r\n").await;
    comes_to_size(&mut terminal, "one", "33 101").await;
    terminal.resize(OTHER);
    comes_to_size(&mut terminal, "two", "22 77").await;
    terminal.types("end\n");
    assert_eq!(terminal.end().await.0, Some(5));
}

async fn a_client_detaches_and_another_attaches(podman: &mut Podman) {
    let script =
        "echo ready; while read -r word; do echo got $word; [ $word = end ] && exit 4; done";
    let mut first = Pty::start(
        &podman.script(&["-it", "--name", "a", "--detach-keys", "ctrl-q"], script),
        SIZE,
    );
    first.shows("ready\r\n").await;
    first.types("\u{11}");
    assert_eq!(first.end().await.0, Some(0));
    assert_eq!(state(podman, "a").await, "running 0");
    let mut second = Pty::start(&podman.command(&["attach", "a"]), SIZE);
    second.types("one\n");
    second.shows("got one\r\n").await;
    second.types("end\n");
    // podman's own code says nothing of the container here.
    assert_eq!(second.end().await.0, Some(0));
    assert_eq!(podman.does(&["wait", "a"]).await, "4");
}

async fn a_container_is_created_and_then_started_with_input(podman: &mut Podman) {
    podman
        .done(podman.container("create", &["-i", "--name", "a"], &["sh", "-c", "cat; exit 6"]))
        .await;
    let command = podman.command(&["start", "--attach", "--interactive", "a"]);
    let (code, output) = feed(command, b"hello\n".to_vec()).await;
    assert_eq!((code, &output[..]), (Some(6), &b"hello\n"[..]));
}

async fn an_exec_has_a_code_and_streams_of_its_own(podman: &mut Podman) {
    runs_on(podman, "a", &[], "true").await;
    let exec = async |script: &str| ran(podman.command(&["exec", "a", "sh", "-c", script])).await;
    assert_eq!(exec("echo out; echo err >&2; exit 9").await, came_to(9, "out\n", "err\n"));
    assert_eq!(exec("kill -KILL $$").await.code, Some(137));
    let with = ["exec", "-e", "KEY=value", "-w", "/tmp", "a", "sh", "-c", "echo $KEY; pwd"];
    assert_eq!(ran(podman.command(&with)).await, came_to(0, "value\n/tmp\n", ""));
    // Its child goes on, and keeps the output open.
    assert_eq!(exec("sleep 1000 & echo done; exit 2").await, came_to(2, "done\n", ""));
}

async fn an_exec_gets_input_and_a_terminal(podman: &mut Podman) {
    runs_on(podman, "a", &[], "true").await;
    let input = vec![b'x'; 5_000_000];
    let (code, output) = feed(podman.command(&["exec", "-i", "a", "cat"]), input.clone()).await;
    assert!(code == Some(0) && output == input, "{code:?}, {} bytes", output.len());
    // A monitor sizes the terminal before it passes input, and maybe not before the exec runs.
    let script = "echo ready; read -r it; stty size; exit $it";
    let mut terminal = Pty::start(&podman.command(&["exec", "-it", "a", "sh", "-c", script]), SIZE);
    terminal.shows("ready\r\n").await;
    terminal.types("8\n");
    terminal.shows("33 101\r\n").await;
    assert_eq!(terminal.end().await.0, Some(8));
}

async fn an_exec_in_the_background_and_one_that_is_refused(podman: &mut Podman) {
    runs_on(podman, "a", &[], "true").await;
    let session = podman.does(&["exec", "-d", "a", "sh", "-c", "echo x >/tmp/file"]).await;
    assert_eq!(session.len(), 64);
    soon("what the exec does", async {
        while ran(podman.command(&["exec", "a", "cat", "/tmp/file"])).await.stdout != "x\n" {}
    })
    .await;
    let missing = ran(podman.command(&["exec", "a", "/no/such/program"])).await;
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert!(missing.stderr.contains("/no/such/program"), "{missing:?}");
    assert_eq!(ran(podman.command(&["exec", "a", "/bin"])).await.code, Some(126));
    podman.does(&["stop", "--time", "0", "a"]).await;
    assert_eq!(ran(podman.command(&["exec", "a", "true"])).await.code, Some(255));
}

async fn no_code_of_an_exec_is_lost(podman: &mut Podman) {
    runs_on(podman, "a", &[], "true").await;
    for code in 0..15 {
        let exec = podman.command(&["exec", "a", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(ran(exec).await, came_to(code, "", ""));
    }
}

async fn a_container_is_stopped_killed_and_paused(podman: &mut Podman) {
    let traps = "trap 'echo term; exit 11' TERM; echo ready; while true; do sleep 0.05; done";
    podman.done(podman.script(&["-d", "--name", "a"], traps)).await;
    podman.has_said("a", "ready\n").await;
    if podman.has_cgroups() {
        podman.does(&["pause", "a"]).await;
        assert_eq!(state(podman, "a").await, "paused 0");
        podman.does(&["unpause", "a"]).await;
    }
    podman.does(&["stop", "--time", "30", "a"]).await;
    assert_eq!(state(podman, "a").await, "exited 11");
    runs_on(podman, "b", &[], "trap '' TERM; echo ready").await;
    // runc, which it is at first, ends by this signal.
    podman.has_said("b", "ready\n").await;
    podman.does(&["stop", "--time", "1", "b"]).await;
    assert_eq!(state(podman, "b").await, "exited 137");
    runs_on(podman, "c", &[], "true").await;
    podman.does(&["kill", "--signal", "KILL", "c"]).await;
    assert_eq!(podman.does(&["wait", "c"]).await, "137");
}

async fn a_container_is_killed_when_its_time_is_over(podman: &mut Podman) {
    let timed = ran(podman.script(&["--timeout", "1", "--name", "a"], "sleep 100000")).await;
    let now = state(podman, "a").await;
    assert!(!now.starts_with("running"), "{now}");
    // Its time begins when it is created. If it is over before the start, that fails.
    let is_right = |code: i32| if now == "created 0" { code != 0 } else { code == 255 };
    assert!(timed.code.is_some_and(is_right), "{now}: {timed:?}");
}

async fn a_policy_restarts_a_container(podman: &mut Podman) {
    let options = ["-d", "--name", "a", "--restart", "on-failure:2"];
    podman.done(podman.script(&options, "echo run; exit 5")).await;
    soon("the last run", async {
        let format = ["inspect", "--format", "{{.RestartCount}} {{.State.Status}}", "a"];
        // podman itself fails where the process ends while it reads `/proc/PID/cgroup`.
        while ran(podman.command(&format)).await.stdout != "2 exited\n" {}
    })
    .await;
    assert_eq!(podman.does(&["logs", "a"]).await, "run\nrun\nrun");
}

async fn a_health_check_is_an_exec(podman: &mut Podman) {
    let check = "test -e /tmp/healthy";
    let options = ["--health-cmd", check, "--health-interval", "disable"];
    runs_on(podman, "a", &options, "true").await;
    let ill = ran(podman.command(&["healthcheck", "run", "a"])).await;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    podman.does(&["exec", "a", "touch", "/tmp/healthy"]).await;
    assert_eq!(ran(podman.command(&["healthcheck", "run", "a"])).await.code, Some(0));
}

async fn a_first_process_of_podmans_reaps_and_a_container_removes_itself(podman: &mut Podman) {
    if in_path("catatonit").is_none() {
        return skip("catatonit, the first process, is not in PATH");
    }
    let ended = ran(podman.script(&["--rm", "--init"], "cat /proc/1/comm; exit 3")).await;
    assert_eq!(ended, came_to(3, "podman-init\n", ""));
    assert_eq!(podman.does(&["ps", "--all", "--quiet"]).await, "");
}

async fn containers_of_a_pod_end_one_by_one(podman: &mut Podman) {
    podman.does(&["pod", "create", "--infra=false", "--name", "p"]).await;
    for name in ["a", "b"] {
        let mut command = podman.command(&["run", "-d", "--pod", "p", "--name", name]);
        command.args(["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit"]);
        command.args(["nproc=1000:1000", "busybox", "sleep", "100000"]);
        podman.done(command).await;
    }
    podman.does(&["kill", "a"]).await;
    assert_eq!(podman.does(&["wait", "a"]).await, "137");
    assert_eq!(state(podman, "b").await, "running 0");
    podman.does(&["pod", "rm", "--force", "--time", "0", "p"]).await;
    assert_eq!(podman.does(&["ps", "--all", "--quiet"]).await, "");
}

async fn readiness_is_told_by_whom_it_is_to_be(podman: &mut Podman) {
    let path = podman.path().join("notify");
    let host = UnixDatagram::bind(&path).expect("a socket");
    host.set_nonblocking(true).expect("no waiting");
    let told = || {
        let mut room = [0; 1024];
        let length = host.recv(&mut room).ok()?;
        Some(String::from_utf8_lossy(&room[..length]).into_owned())
    };
    // Without socat or systemd-notify in the image: what is there can't send a datagram, and is asked where to.
    let script = "echo ${NOTIFY_SOCKET:-none}; sleep 0.1";
    for (mode, socket, is_ready) in [
        ("ignore", "none\n", false),
        ("conmon", "none\n", true),
        ("container", "/run/notify/notify.sock\n", false),
    ] {
        let mut command = podman.script(&["--rm", "--sdnotify", mode], script);
        command.env("NOTIFY_SOCKET", &path);
        assert_eq!(ran(command).await, came_to(0, socket, ""), "{mode}");
        let mut all = String::new();
        while let Some(text) = told() {
            all += &text;
            all.push('\n');
        }
        assert_eq!(all.contains("MAINPID="), mode != "ignore", "{mode}: {all}");
        assert_eq!(all.contains("READY=1"), is_ready, "{mode}: {all}");
    }
}

async fn each_log_driver_does_what_it_says(podman: &mut Podman) {
    let path = podman.path().join("my.log").display().to_string();
    for (options, is_kept) in [
        (&["--log-driver", "k8s-file"][..], true),
        (&["--log-driver", "json-file"], true),
        (&["--log-driver", "none"], false),
        (&["--log-driver", "k8s-file", "--log-opt", &format!("path={path}")], true),
    ] {
        let options = [&["--name", "a"], options].concat();
        let ended = ran(podman.script(&options, "echo out; echo err >&2")).await;
        assert_eq!(ended, came_to(0, "out\n", "err\n"), "{options:?}");
        let log = ran(podman.command(&["logs", "a"])).await;
        assert_eq!(log.stdout == "out\n" && log.stderr == "err\n", is_kept, "{options:?}: {log:?}");
        podman.does(&["rm", "a"]).await;
    }
    assert!(fs::read_to_string(&path).expect("the log").contains(" stdout F out\n"));
    let passed =
        podman.script(&["--rm", "--log-driver", "passthrough"], "echo out; echo err >&2; exit 2");
    assert_eq!(ran(passed).await, came_to(2, "out\n", "err\n"));
}

async fn the_journal_has_a_log(podman: &mut Podman) {
    if !Path::new("/run/systemd/journal/stdout").exists() || !geteuid().is_root() {
        return skip("it takes a journald that runs, and root to read its journal");
    }
    let long = "x".repeat(20_000);
    let script = format!("echo out; echo err >&2; echo {long}; printf open; exit 3");
    let options = ["--name", "a", "--log-driver", "journald", "--log-opt", "tag=the tag"];
    let ended = ran(podman.script(&options, &script)).await;
    assert_eq!(ended, came_to(3, &format!("out\n{long}\nopen"), "err\n"));
    let id = podman.does(&["inspect", "--format", "{{.Id}}", "a"]).await;
    let mut journalctl = Command::new("journalctl");
    journalctl.args(["--output", "json", "--all", &format!("CONTAINER_ID_FULL={id}")]);
    let entries = podman.done(journalctl).await;
    let entries: Vec<serde_json::Value> =
        entries.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |priority: &str| {
        let them = entries.iter().filter(|entry| entry["PRIORITY"] == priority);
        // conmon's have the line's end.
        let text = them.map(|entry| entry["MESSAGE"].as_str().unwrap_or_default().trim_end());
        text.collect::<String>()
    };
    assert_eq!(of("6"), format!("out{long}open"));
    assert_eq!(of("3"), "err");
    for entry in &entries {
        assert_eq!(entry["CONTAINER_NAME"], "a", "{entry}");
        assert_eq!(entry["CONTAINER_TAG"], "the tag", "{entry}");
        assert_eq!(entry["CONTAINER_ID"], id[..12], "{entry}");
    }
    let log = ran(podman.command(&["logs", "a"])).await;
    // podman ends a line behind each entry.
    assert_eq!(log.stdout.replace('\n', ""), format!("out{long}open"));
    assert_eq!(log.stderr, "err\n");
}

async fn a_log_has_a_size_limit(podman: &mut Podman) {
    let path = podman.path().join("my.log").display().to_string();
    let options = ["--rm", "--log-driver", "k8s-file", "--log-opt", "max-size=10k", "--log-opt"];
    let place = format!("path={path}");
    let options = [&options[..], &[&place]].concat();
    let script = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done >/proc/self/fd/2";
    assert_eq!(ran(podman.script(&options, script)).await.code, Some(0));
    let log = fs::read_to_string(&path).expect("the log");
    assert!(log.len() <= 10 * 1024 && log.ends_with("line 2000\n"), "{}", log.len());
}

async fn running_out_of_memory_is_seen(podman: &mut Podman) {
    if !podman.has_cgroups() {
        return skip("a user's containers have no cgroups on this machine");
    }
    let script = "head -c 100m /dev/zero | tail; exit 1";
    let options = ["--name", "a", "--memory", "16m", "--memory-swap", "16m"];
    let ended = ran(podman.script(&options, script)).await;
    assert_ne!(ended.code, Some(0), "{ended:?}");
    let killed = podman.does(&["inspect", "--format", "{{.State.OOMKilled}}", "a"]).await;
    // Debian's conmon may find the cgroup gone before it has looked at its event.
    assert!(killed == "true" || !podman.is_holdfast(), "{killed}");
    let ended = ran(podman.script(&["--name", "b", "--memory", "16m"], "exit 1")).await;
    assert_eq!(ended.code, Some(1));
    let killed = podman.does(&["inspect", "--format", "{{.State.OOMKilled}}", "b"]).await;
    assert_eq!(killed, "false");
}

async fn descriptors_are_preserved(podman: &mut Podman) {
    let path = podman.path().join("kept");
    let inner = podman.script(&["--rm", "--preserve-fds", "1"], "echo kept >&3");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec 3>{}; exec \"$@\"", path.display())).arg("sh");
    command.arg(inner.as_std().get_program()).args(inner.as_std().get_args());
    assert_eq!(ran(command).await, came_to(0, "", ""));
    assert_eq!(fs::read_to_string(path).expect("a file"), "kept\n");
}

async fn a_container_runs_again_and_its_log_goes_on(podman: &mut Podman) {
    let ended = ran(podman.script(&["--name", "a"], "echo run; exit 3")).await;
    assert_eq!(ended, came_to(3, "run\n", ""));
    assert_eq!(ran(podman.command(&["start", "--attach", "a"])).await, came_to(3, "run\n", ""));
    assert_eq!(podman.does(&["logs", "a"]).await, "run\nrun");
    runs_on(podman, "b", &[], "echo begun").await;
    podman.has_said("b", "begun\n").await;
    podman.does(&["restart", "--time", "0", "b"]).await;
    podman.has_said("b", "begun\nbegun\n").await;
    assert_eq!(state(podman, "b").await, "running 0");
}

async fn a_checkpoint_is_restored_here_and_from_an_archive(podman: &mut Podman) {
    if !geteuid().is_root() || in_path("criu").is_none() {
        return skip("it takes root and CRIU");
    }
    let script =
        "trap 'exit 5' TERM; i=0; while true; do i=$((i+1)); echo line $i; sleep 0.1; done";
    podman.done(podman.script(&["-d", "--name", "a"], script)).await;
    let lines = async || podman.does(&["logs", "a"]).await.lines().count();
    let goes_on = async |from: usize| {
        soon("more lines", async { while lines().await < from {} }).await;
    };
    goes_on(3).await;
    podman.does(&["container", "checkpoint", "a"]).await;
    assert_eq!(state(podman, "a").await, "exited 0");
    let before = lines().await;
    podman.does(&["container", "restore", "a"]).await;
    assert_eq!(state(podman, "a").await, "running 0");
    goes_on(before + 3).await;
    let archive = podman.path().join("archive.tar.gz").display().to_string();
    podman.does(&["container", "checkpoint", "--export", &archive, "a"]).await;
    let before = lines().await;
    podman.does(&["rm", "a"]).await;
    podman.does(&["container", "restore", "--import", &archive]).await;
    goes_on(before + 3).await;
    // The program counts on, and the log goes on.
    let log = podman.does(&["logs", "a"]).await;
    let said = (1..).map(|number| format!("line {number}"));
    assert!(log.lines().zip(said).all(|(line, expected)| line == expected), "{log}");
    podman.does(&["stop", "--time", "100", "a"]).await;
    assert_eq!(state(podman, "a").await, "exited 5");
}
