//! What is done with a container that runs: freezing, limits, and a look inside.

use std::fs;
use std::path::PathBuf;

use holdfast_supervisor::{
    Container, ContainerId, Cursor, Error, Event, EventKind, ExecOptions, ExitStatus, Status,
    Stdin, Stdio,
};
use holdfast_tests::listen::{eventually, in_words};
use holdfast_tests::processes::{mentioning, with_command_line};
use holdfast_tests::{
    Holdfast, Proc, Running, Scratch, binary, cgroups_of, edit_json, events_until, runtime, said,
    soon, status, unique_id,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

const SIGKILL: i32 = 9;
const MEMORY: u64 = 64 * 1024 * 1024;

fn ended(event: &Event) -> bool {
    matches!(event.kind, EventKind::Exited { .. })
}

/// What one of these files in a container's cgroups says: their names differ by version.
fn cgroup_file(id: &ContainerId, names: &[&str]) -> String {
    let dirs = cgroups_of(id);
    let found = dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
    let path = found.into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("none of {names:?} in {dirs:?}"));
    fs::read_to_string(path).expect("read a cgroup's file").trim().to_owned()
}

fn is_frozen(id: &ContainerId) -> bool {
    matches!(cgroup_file(id, &["freezer.state", "cgroup.freeze"]).as_str(), "FROZEN" | "1")
}

/// Reads events up to the first of this kind, and returns the kinds.
async fn until(events: &mut Running, kind: &str) -> Vec<String> {
    let mut kinds: Vec<String> = Vec::new();
    while kinds.last().is_none_or(|last| last != kind) {
        let event: Value = serde_json::from_str(&events.line().await).expect("an event in JSON");
        // A daemon that was killed leaves a gap.
        kinds.extend(event["event"].as_str().map(str::to_owned));
    }
    kinds
}

#[tokio::test]
async fn a_paused_container_stays_so_over_a_restart_of_the_daemon_and_runs_on_when_resumed() {
    let mut holdfast = Holdfast::start().await;
    let id = unique_id("pause");
    let name = id.as_str();
    let gate = holdfast.scratch.gate();
    let script = gate.script("echo ready");
    holdfast.run_detached(&["--name", name], &["sh", "-c", &script]).await;
    holdfast.said(name, "ready").await;
    let wrong = holdfast.fails(1, &["resume", name]).await;
    assert!(wrong.contains("is running, and resume needs it paused"), "{wrong}");
    assert_eq!(holdfast.ok(&["pause", name]).await, format!("{name}\n"));
    assert!(is_frozen(&id));
    assert_eq!(holdfast.inspect(name).await["status"], "paused");
    assert!(holdfast.ok(&["ps"]).await.contains("paused"));
    let wrong = holdfast.fails(1, &["pause", name]).await;
    assert!(wrong.contains("is paused, and pause needs it running"), "{wrong}");
    let wrong = holdfast.fails(125, &["exec", name, "true"]).await;
    assert!(wrong.contains("is paused, and exec needs it running"), "{wrong}");
    let wrong = holdfast.fails(1, &["delete", name]).await;
    assert!(wrong.contains("is paused"), "{wrong}");

    holdfast.kill_daemon().await;
    holdfast.start_daemon().await;
    let info = holdfast.inspect(name).await;
    assert_eq!((&info["status"], &info["restored"]), (&json!("paused"), &json!(true)));
    assert!(is_frozen(&id));
    assert_eq!(holdfast.ok(&["resume", name]).await, format!("{name}\n"));
    // Not before: what ends as soon as it is thawed may have ended before that is told.
    gate.open(4);
    assert_eq!(holdfast.ok(&["wait", name]).await, "4\n");
    let mut events = holdfast.begin(&["events", "--replay", "--json"]);
    let told = until(&mut events, "exited").await;
    assert_eq!(told, ["created", "started", "pausing", "paused", "resuming", "resumed", "exited"]);
    drop(events);
    holdfast.close().await;
}

#[tokio::test]
async fn a_daemon_that_dies_while_the_runtime_freezes_asks_what_came_of_it() {
    for (mode, status) in [("hang-in-pause", "running"), ("hang-after-pause", "paused")] {
        let mut holdfast = Holdfast::start().await;
        edit_json(&holdfast.scratch.bundle().join("config.json"), |config| {
            config["annotations"] = json!({ "fake": mode });
        });
        let (id, runtime) = (unique_id("freezes").to_string(), binary("fake-runtime"));
        let options = ["--name", &id, "--runtime", runtime.to_str().unwrap()];
        holdfast.run_detached(&options, &["sleep", "100000"]).await;
        let mut events = holdfast.begin(&["events", "--replay", "--json"]);
        let pause = holdfast.begin(&["pause", &id]);
        assert_eq!(until(&mut events, "pausing").await, ["created", "started", "pausing"]);
        drop(events);
        // The event comes before the runtime has done anything.
        let state = holdfast.root().join(".runtime/fake-runtime").join(&id);
        let scratch = holdfast.scratch.path().to_owned();
        let at_work = || -> Vec<Proc> {
            // Not a shim, which has the runtime among its arguments.
            let program = |process: &Proc| process.command().split(' ').next().map(str::to_owned);
            let is_it =
                |process: &Proc| program(process).is_some_and(|it| it.ends_with("/fake-runtime"));
            mentioning(&scratch).into_iter().filter(is_it).collect()
        };
        let begun = || match status {
            "running" => !at_work().is_empty(),
            _ => state.join("paused").exists(),
        };
        holdfast_tests::eventually("the runtime is at work", begun).await;
        holdfast.kill_daemon().await;
        assert_eq!(pause.end().await.code, Some(1));
        for process in at_work() {
            process.signal(Signal::SIGKILL);
            process.ended().await;
        }

        holdfast.start_daemon().await;
        if status == "paused" {
            let mut events = holdfast.begin(&["events", "--replay", "--json"]);
            until(&mut events, "paused").await;
            drop(events);
        } else {
            // As if nothing had been asked. The next one is not made to hang.
            edit_json(&state.join("state.json"), |state| state["mode"] = json!(""));
            holdfast.ok(&["pause", &id]).await;
        }
        assert_eq!(holdfast.inspect(&id).await["status"], "paused", "{mode}");
        holdfast.ok(&["resume", &id]).await;
        assert_eq!(holdfast.inspect(&id).await["status"], "running", "{mode}");
        holdfast.close().await;
    }
}

/// How it was frozen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Frozen {
    ByUs,
    BehindOurBack,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_container_dies_of_kill_and_of_a_forced_delete_whoever_froze_it() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for frozen in [Frozen::ByUs, Frozen::BehindOurBack] {
        for by_delete in [false, true] {
            let id = unique_id("frozen");
            let options = scratch.script("echo ready; sleep 100000 & wait").id(id.clone());
            let container = supervisor.run(options).await.unwrap();
            said(&container, "ready").await;
            let exec = container.exec(ExecOptions::new(["sleep", "100000"])).await.unwrap();
            match frozen {
                Frozen::ByUs => container.pause().await.unwrap(),
                Frozen::BehindOurBack => {
                    let mut pause = tokio::process::Command::new(runtime());
                    pause.arg("--root").arg(scratch.runtime_state());
                    let status = pause.args(["pause", id.as_str()]).status();
                    assert!(soon("the runtime's pause", status).await.unwrap().success());
                }
            }
            assert!(is_frozen(&id));
            let process = Proc::of(container.info().pid.unwrap()).unwrap();
            if by_delete {
                soon("the delete", container.delete_forced()).await.unwrap();
            } else {
                soon("the kill", container.kill()).await.unwrap();
            }
            assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL));
            assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Signal(SIGKILL));
            assert!(!process.lives());
            if !by_delete {
                soon("the delete", container.delete()).await.unwrap();
            }
            assert_eq!(cgroups_of(&id), Vec::<PathBuf>::new());
            assert_eq!(scratch.leftovers(), [""; 0], "{frozen:?}");
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_command_line_kills_and_deletes_what_is_paused() {
    let holdfast = Holdfast::start().await;
    for command in [["kill"].as_slice(), &["delete", "--force"]] {
        let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
        holdfast.ok(&["pause", &id]).await;
        let wait = holdfast.begin(&["wait", &id]);
        holdfast.ok(&[command, &[&id]].concat()).await;
        let waited = wait.end().await;
        assert!(waited.stdout == "137\n" || waited.stderr.contains("no such"), "{waited:?}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn update_changes_limits_that_the_cgroup_has_then() {
    let holdfast = Holdfast::start().await;
    let id = unique_id("update");
    let name = id.as_str();
    holdfast.run_detached(&["--name", name], &["sleep", "100000"]).await;
    let pids = |limit: u32| json!({ "pids": { "limit": limit } }).to_string();
    let file = holdfast.scratch.path().join("limits.json");
    fs::write(&file, pids(77)).unwrap();
    assert_eq!(holdfast.ok(&["update", "--resources", file.to_str().unwrap(), name]).await, "");
    assert_eq!(cgroup_file(&id, &["pids.max"]), "77");

    let feed = async |text: &str| {
        let mut command = holdfast.command(&["update", "--resources", "-", name]);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
        let output = soon("update", child.wait_with_output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(feed(&pids(78)).await, (Some(0), String::new()));
    assert_eq!(cgroup_file(&id, &["pids.max"]), "78");
    for (text, complaint) in [("{", "not JSON"), ("[]", "limits are a JSON object")] {
        let (code, message) = feed(text).await;
        assert!(code == Some(1) && message.contains(complaint), "{message}");
    }
    let (code, message) = feed(r#"{"pids":{"limit":"many"}}"#).await;
    assert!(code == Some(1) && message.contains("oci runtime error"), "{message}");
    assert_eq!(cgroup_file(&id, &["pids.max"]), "78");

    holdfast.ok(&["kill", name]).await;
    holdfast.ok(&["wait", name]).await;
    for command in
        [vec!["update", "--resources", file.to_str().unwrap()], vec!["top"], vec!["stats"]]
    {
        let message = holdfast.fails(1, &[command, vec![name]].concat()).await;
        assert!(message.contains("is stopped, and"), "{message}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn top_lists_all_processes_and_stats_what_they_use() {
    let holdfast = Holdfast::start().await;
    let script = "sleep 100001 & while [ ! -e /proc/self/no ]; do :; done";
    let id = holdfast.run_detached(&[], &["sh", "-c", script]).await;
    let exec = holdfast.ok(&["exec", "-d", &id, "sleep", "100002"]).await;
    // runc returns when it has let its init go, which is still runc then.
    eventually("the script's child, and the exec", || {
        let there = mentioning(holdfast.scratch.path());
        let is_there = |command| there.iter().any(|process| process.command() == command);
        is_there("sleep 100001") && is_there("sleep 100002")
    })
    .await;
    let info = holdfast.inspect(&id).await;
    let top = holdfast.json(&["top", "--json", &id]).await;
    let find = |command: &str| {
        let found = top.as_array().unwrap().iter().find(|row| row["command"] == command);
        found.unwrap_or_else(|| panic!("{command} is not in {top}"))["pid"].clone()
    };
    assert_eq!(find(&format!("sh -c {script}")), info["pid"]);
    assert_eq!(info["execs"][0]["id"], exec.trim());
    assert_eq!(find("sleep 100002"), info["execs"][0]["pid"]);
    assert!(find("sleep 100001").is_i64());
    let row = top.as_array().unwrap().iter().find(|row| row["command"] == "sleep 100001").unwrap();
    assert_eq!((&row["ppid"], &row["uid"]), (&info["pid"], &json!(0)), "{row}");
    assert!(row["memoryBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{row}");
    assert_eq!(top.as_array().unwrap().len(), 3, "{top}");
    let table = holdfast.ok(&["top", &id]).await;
    assert!(table.contains("sleep 100002") && table.contains("COMMAND"), "{table}");
    let pids = holdfast.ok(&["top", &id, "-o", "pid="]).await;
    let mut pids: Vec<i64> = pids.lines().map(|pid| pid.trim().parse().unwrap()).collect();
    pids.sort_unstable();
    let mut expected: Vec<_> =
        top.as_array().unwrap().iter().map(|it| it["pid"].as_i64()).collect();
    expected.sort_unstable();
    assert_eq!(pids.into_iter().map(Some).collect::<Vec<_>>(), expected);
    // With a choice of processes of its own.
    let table = holdfast.ok(&["top", &id, "aux"]).await;
    assert!(table.contains("sleep 100002") && table.lines().count() == 4, "{table}");
    let message = holdfast.fails(1, &["top", &id, "-o", "nothing"]).await;
    assert!(message.contains("ps -o nothing: "), "{message}");

    let first = holdfast.json(&["stats", "--json", &id]).await;
    assert_eq!(
        (&first["id"], &first["pids"], &first["oomKills"]),
        (&json!(id), &json!(3), &json!(0))
    );
    // A container chooses its command lines. None of them acts on the terminal or forges a row.
    let forged = "sleep 100003; : '\u{1b}[2J\n1234  forged\u{202e}'";
    let exec = ["exec", "-d", &id, "sh", "-c", forged];
    holdfast.ok(&exec).await;
    eventually("the forger", || {
        let there = mentioning(holdfast.scratch.path());
        there.iter().any(|process| process.command().contains("forged"))
    })
    .await;
    let table = holdfast.ok(&["top", &id]).await;
    assert!(table.contains("\\u{1b}[2J\\n1234  forged\\u{202e}"), "{table}");
    assert!(!table.contains('\u{1b}') && (5..=6).contains(&table.lines().count()), "{table}");
    assert_eq!(first["memoryLimitBytes"], Value::Null);
    let memory = first["memoryBytes"].as_u64().unwrap();
    assert!((4096..1 << 30).contains(&memory), "{first}");
    let limits = holdfast.scratch.path().join("limits.json");
    fs::write(&limits, json!({ "memory": { "limit": MEMORY } }).to_string()).unwrap();
    holdfast.ok(&["update", "--resources", limits.to_str().unwrap(), &id]).await;
    let other = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let ended = holdfast.run_detached(&[], &["true"]).await;
    holdfast.ok(&["wait", &ended]).await;
    // It spins; all that run are shown when none is named.
    let all = holdfast.ok(&["stats", "--json"]).await;
    let all: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let second = all.iter().find(|stats| stats["id"] == id.as_str()).unwrap();
    assert_eq!(second["memoryLimitBytes"], MEMORY);
    let cpu = |stats: &Value| stats["cpuNanos"].as_u64().unwrap();
    assert!(cpu(second) > cpu(&first), "{first} {second}");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all.iter().any(|stats| stats["id"] == other.as_str()));
    let table = holdfast.ok(&["stats", "--no-stream"]).await;
    assert!(table.contains("/ 64MiB") && table.contains("BLOCK I/O"), "{table}");
    let template = ["stats", "--no-stream", "--format", "{{.CPUPerc}} {{.PIDs}}", &id];
    let line = holdfast.ok(&template).await;
    let share = line.split('%').next().and_then(|share| share.parse::<f64>().ok());
    // It spins.
    assert!(share.is_some_and(|share| share > 1.0), "{line}");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_for_want_of_memory_is_told_once_and_before_the_exit() {
    let scratch = with_little_memory();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    // A child that wants all that there is, and then the first process itself.
    for (script, end, killed) in [
        ("tail /dev/zero; echo $? >&2; exit 5", ExitStatus::Code(5), "exited 5"),
        ("exec tail /dev/zero", ExitStatus::Signal(SIGKILL), "exited 137 (signal 9)"),
    ] {
        // The cgroup of what has ended before the start is complete is not always known.
        let gate = scratch.gate();
        let script = format!("{}; {script}", gate.wait("true"));
        let container = supervisor.run(scratch.script(&script)).await.unwrap();
        gate.open(0);
        assert_eq!(status(&container).await, end);
        let told: Vec<_> = events_until(&mut events, ended).await.iter().map(in_words).collect();
        let exited = format!("init {killed}");
        assert_eq!(told, ["init created", "init started", "init out of memory", &exited]);
        soon("the delete", container.delete()).await.unwrap();
        events_until(&mut events, |event| event.kind == EventKind::Deleted).await;
    }
    scratch.close(supervisor).await;
}

fn with_little_memory() -> Scratch {
    let scratch = Scratch::new();
    edit_json(&scratch.bundle().join("config.json"), |config| {
        config["linux"]["resources"]["memory"] = json!({ "limit": MEMORY });
    });
    scratch
}

/// Seen before: the exit said so, and there was no event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_for_want_of_memory_that_no_supervisor_saw_is_told_before_the_exit() {
    for ends_meanwhile in [false, true] {
        let scratch = with_little_memory();
        let supervisor = scratch.open().await;
        let (kill, end) = (scratch.gate(), scratch.gate());
        let script = format!("{}; tail /dev/zero; echo killed", kill.wait("true"));
        let container = supervisor.run(scratch.script(&end.script(&script))).await.unwrap();
        let id = container.id().clone();
        let init = scratch.root().join(id.as_str()).join("init");
        drop(container);
        soon("the shutdown", supervisor.shutdown()).await;
        kill.open(0);
        let log = init.join("output.log");
        let is_killed = || fs::read_to_string(&log).is_ok_and(|log| log.contains("killed"));
        eventually("the kill", is_killed).await;
        if ends_meanwhile {
            end.open(5);
            eventually("the exit", || init.join("exit.json").exists()).await;
        }
        let supervisor = scratch.open().await;
        let mut events = supervisor.events_since(Cursor::BEGINNING);
        if !ends_meanwhile {
            end.open(5);
        }
        let told: Vec<_> = events_until(&mut events, ended).await.iter().map(in_words).collect();
        let expected = ["init created", "init started", "init out of memory", "init exited 5"];
        assert_eq!(told, expected);
        let container = supervisor.get(&id).unwrap();
        assert!(container.info().oom_killed);
        soon("the delete", container.delete()).await.unwrap();
        scratch.close(supervisor).await;
    }
}

/// Has a further process want all the memory that there is.
async fn exhaust(container: &Container) {
    let exec = container.exec(ExecOptions::new(["tail", "/dev/zero"])).await.expect("an exec");
    let killed = soon("the exec", exec.wait()).await.expect("wait");
    assert_eq!(killed, ExitStatus::Signal(SIGKILL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kill_is_told_of_a_container_that_lives_on_also_by_a_limit_set_later() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let mut events = supervisor.events();
    let out_of_memory = |event: &Event| event.kind == EventKind::OutOfMemory;
    let container = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    let id = container.id().clone();
    container.update(&json!({ "memory": { "limit": MEMORY } })).await.unwrap();
    for kills in 1..=2 {
        exhaust(&container).await;
        events_until(&mut events, out_of_memory).await;
        assert_eq!(container.stats().await.unwrap().oom_kills, Some(kills));
    }
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    // What was told is not told again, and what comes is told.
    let supervisor = scratch.open().await;
    let container = supervisor.get(&id).unwrap();
    assert_eq!(container.info().status, Status::Running);
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    exhaust(&container).await;
    let mut left = 3;
    events_until(&mut events, |event| {
        left -= i32::from(out_of_memory(event));
        left == 0
    })
    .await;
    container.signal(SIGKILL).unwrap();
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL));
    let last = events_until(&mut events, |event| ended(event) && event.process.is_init());
    assert!(!last.await.iter().any(out_of_memory), "told a fourth time");
    let refused = container.update(&json!({})).await.unwrap_err();
    assert!(matches!(refused, Error::WrongState { operation: "update", .. }), "{refused}");
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn an_exec_can_be_given_as_a_whole_process() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("exec sleep 1000")).await.unwrap();
    let process = json!({
        "args": ["sh", "-c", "echo $NAME $(pwd); exit 6"],
        "cwd": "/bin",
        "env": ["PATH=/usr/bin:/bin", "NAME=whole"],
        "user": { "uid": 0, "gid": 0 },
        "terminal": true,
    });
    let process = process.as_object().unwrap().clone();
    let none = ExecOptions::new(Vec::<String>::new());
    let exec = container.exec(none.clone().process(process.clone())).await.unwrap();
    let output = soon("the exit", exec.output()).await.unwrap();
    assert_eq!(
        (output.exit.status, output.stdout),
        (ExitStatus::Code(6), b"whole /bin\n".to_vec())
    );
    // The other options change it.
    let changed = ExecOptions::new(["pwd"]).process(process).cwd("/");
    let output = soon("the exit", container.exec(changed).await.unwrap().output()).await.unwrap();
    assert_eq!(output.stdout, b"/\n");
    let error = container.exec(none).await.unwrap_err();
    assert!(error.to_string().contains("needs a program to run"), "{error}");
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn a_signal_to_all_reaches_also_those_that_the_init_process_has_left() {
    let scratch = Scratch::new();
    // Without a pid namespace, the kernel ends nobody when the init process ends.
    edit_json(&scratch.bundle().join("config.json"), |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let supervisor = scratch.open().await;
    let marks = ["4001", "4002"].map(|seconds| format!("{seconds}.{}", std::process::id()));
    let [one, two] = &marks;
    let script = format!("sleep {one} & sleep {two} & echo ready; read -r word; exit 5");
    let stdio = Stdio::new().stdin(Stdin::Pipe);
    let container = supervisor.run(scratch.script(&script).stdio(stdio)).await.unwrap();
    said(&container, "ready").await;
    let left = || marks.each_ref().map(|mark| with_command_line(&["sleep", mark]));
    // The shell's children may not be sleep yet when the shell is ready.
    eventually("both to be sleep", || left() == [1, 1]).await;
    // A signal that nobody minds is sent to all and ends none.
    container.signal_all(Signal::SIGCHLD as i32).await.unwrap();
    assert_eq!(left(), [1, 1]);
    container.stdin().unwrap().write_all(b"go\n").await.unwrap();
    assert_eq!(status(&container).await, ExitStatus::Code(5));
    assert_eq!(left(), [1, 1], "they outlive the init process");
    container.signal_all(SIGKILL).await.unwrap();
    eventually("nobody to be left", || left() == [0, 0]).await;
    container.delete().await.unwrap();
    let error = container.signal_all(SIGKILL).await;
    assert!(error.is_err(), "it is gone");
    scratch.close(supervisor).await;
}
