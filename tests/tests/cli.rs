//! The command line with a daemon that is well: what each command prints, and its exit code.

use std::io::{Read, Write};

use holdfast_tests::{Holdfast, Ran, executable, runtime_name, skip, unique_id};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Says `ready`, then waits for a signal.
const WAITS: &str = "echo ready; sleep 100000 & wait; exit 99";

fn ran(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran { code: Some(code), stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

fn bundle(holdfast: &Holdfast) -> String {
    holdfast.scratch.bundle().into_os_string().into_string().expect("a path in UTF-8")
}

fn name() -> String {
    unique_id("cli").to_string()
}

fn lines_of_json(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

#[tokio::test]
async fn run_prints_hi_and_exits_with_7_with_the_hosts_programs_and_in_a_bundle() {
    let holdfast = Holdfast::start().await;
    let script = "echo hi; exit 7";
    let host = holdfast.run(&["run", "--rootfs", "host", "--", "sh", "-c", script]).await;
    assert_eq!(host, ran(7, "hi\n", ""));
    let bundle = bundle(&holdfast);
    let of_bundle = holdfast.run(&["run", "--bundle", &bundle, "--", "sh", "-c", script]).await;
    assert_eq!(of_bundle, ran(7, "hi\n", ""));
    let rootfs = format!("{bundle}/rootfs");
    let of_dir = holdfast.run(&["run", "--rootfs", &rootfs, "--", "sh", "-c", script]).await;
    assert_eq!(of_dir, ran(7, "hi\n", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn run_prints_hi_and_exits_with_7_in_a_bundle_of_runc_spec() {
    let Some(runc) = holdfast_tests::runtime::in_path("runc") else {
        return skip("about a bundle of `runc spec`, and runc is not in PATH");
    };
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    std::fs::remove_file(holdfast.scratch.bundle().join("config.json")).unwrap();
    let mut spec = tokio::process::Command::new(runc);
    let spec = spec.args(["spec", "--bundle", &bundle]).status().await.unwrap();
    assert!(spec.success());
    let args = ["run", "--bundle", &bundle, "--", "sh", "-c", "echo hi; exit 7"];
    assert_eq!(holdfast.run(&args).await, ran(7, "hi\n", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn run_without_arguments_does_what_the_bundle_says() {
    let holdfast = Holdfast::start().await;
    holdfast_tests::edit_json(&holdfast.scratch.bundle().join("config.json"), |config| {
        config["process"]["args"] = json!(["sh", "-c", "echo as said; exit 9"]);
    });
    // A path that is relative to where the command stands, not to where the daemon does.
    let mut command = holdfast.command(&["run", "--bundle", "bundle"]);
    command.current_dir(holdfast.scratch.path());
    assert_eq!(holdfast_tests::ran(command).await, ran(9, "as said\n", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn run_keeps_the_two_streams_apart_and_complete() {
    let holdfast = Holdfast::start().await;
    let script = "echo out; echo err >&2; head -c 300000 /dev/zero | tr '\\000' x; printf end >&2";
    let got =
        holdfast.run(&["run", "--bundle", &bundle(&holdfast), "--", "sh", "-c", script]).await;
    assert_eq!((got.code, got.stderr.as_str()), (Some(0), "err\nend"));
    assert!(got.stdout == format!("out\n{}", "x".repeat(300_000)), "{} bytes", got.stdout.len());
    holdfast.close().await;
}

#[tokio::test]
async fn run_exits_with_128_and_the_signal_that_killed_the_container() {
    let holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), name());
    let mut run =
        holdfast.begin(&["run", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", WAITS]);
    assert_eq!(run.line().await, "ready");
    holdfast.ok(&["kill", &id]).await;
    assert_eq!(run.end().await, ran(128 + 9, "", ""));
    // A code that looks like it is a code.
    let script = "exit 137";
    let code = holdfast.run(&["run", "--bundle", &bundle, "--", "sh", "-c", script]).await;
    assert_eq!(code, ran(137, "", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn run_exits_with_127_for_a_missing_program_and_126_for_one_that_is_none() {
    let holdfast = Holdfast::start().await;
    std::fs::write(holdfast.scratch.bundle().join("rootfs/bin/text"), "no program\n").unwrap();
    let bundle = bundle(&holdfast);
    for (code, program) in
        [(127, "no-such-program"), (127, "/no/such/program"), (126, "/bin/text"), (126, "/bin")]
    {
        for options in [["run", "--bundle"].as_slice(), &["run", "--detach", "--bundle"]] {
            let args = [options, &[&bundle, "--", program]].concat();
            let message = holdfast.fails(code, &args).await;
            let own = "holdfast: oci runtime error: ";
            assert!(message.starts_with(own) && message.contains(program), "{message}");
        }
    }
    // One that the container itself misses is the container's own matter.
    let script = "no-such-program";
    let inner = holdfast.run(&["run", "--bundle", &bundle, "--", "sh", "-c", script]).await;
    assert_eq!((inner.code, inner.stdout.as_str()), (Some(127), ""));
    assert!(inner.stderr.contains("no-such-program: not found"), "{inner:?}");
    assert_eq!(holdfast.ok(&["ps", "--all", "--json"]).await.matches("exitStatus").count(), 1);
    holdfast.close().await;
}

/// Says `ready`, then the name of each signal that it gets, and exits with 42 after a QUIT.
///
/// How often it waits is not counted: a signal may come between two waits and interrupt none.
fn says_signals(names: &str) -> String {
    format!(
        "for s in {names}; do trap \"echo $s\" $s; done; trap 'echo QUIT; exit 42' QUIT; \
         echo ready; while true; do sleep 100000 & wait $!; done"
    )
}

async fn foreground_run_passes_on(signals: &[(Signal, &str)]) {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let names: Vec<_> = signals.iter().map(|(_, name)| *name).collect();
    let script = says_signals(&names.join(" "));
    let mut run = holdfast.begin(&["run", "--bundle", &bundle, "--", "sh", "-c", &script]);
    assert_eq!(run.line().await, "ready");
    for (signal, name) in signals {
        run.signal(*signal);
        assert_eq!(run.line().await, *name);
    }
    run.signal(Signal::SIGQUIT);
    assert_eq!(run.end().await, ran(42, "QUIT\n", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn a_foreground_run_passes_signals_on_to_its_container() {
    foreground_run_passes_on(&[
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGHUP, "HUP"),
    ])
    .await;
}

#[tokio::test]
async fn a_foreground_run_passes_the_users_signals_on_to_its_container() {
    foreground_run_passes_on(&[(Signal::SIGUSR1, "USR1"), (Signal::SIGUSR2, "USR2")]).await;
}

#[tokio::test]
async fn a_signal_during_the_start_is_passed_on_once_there_is_somebody_to_take_it() {
    let holdfast = Holdfast::start().await;
    let dir = holdfast.scratch.path();
    let [here, go] = ["here", "go"].map(|name| {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("make a FIFO");
        std::fs::File::options().read(true).write(true).open(path).expect("open a FIFO")
    });
    // A runtime that says that it is about to begin, and then waits.
    let runtime = dir.join("waiting-runtime");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--detach*) echo > {0}/here; read -r x < {0}/go;; esac\n\
         exec {1} \"$@\"\n",
        dir.display(),
        runtime_name()
    );
    executable::script(&runtime, &script);
    // The first process of a pid namespace would not die of a signal that it does not handle, and
    // whether it handles it already would be a race.
    holdfast_tests::edit_json(&holdfast.scratch.bundle().join("config.json"), |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let (bundle, runtime) = (bundle(&holdfast), runtime.to_str().unwrap());
    let args = ["run", "--runtime", runtime, "--bundle", &bundle, "--", "sleep", "100000"];
    let run = holdfast.begin(&args);
    let told = tokio::task::spawn_blocking(move || (&here).read_exact(&mut [0]));
    holdfast_tests::soon("the start", told).await.unwrap().unwrap();
    run.signal(Signal::SIGTERM);
    (&go).write_all(b"\n").unwrap();
    assert_eq!(run.end().await, ran(128 + 15, "", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn run_detached_prints_the_id_and_nothing_else() {
    let holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), name());
    let named = ["run", "-d", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", WAITS];
    assert_eq!(holdfast.run(&named).await, ran(0, &format!("{id}\n"), ""));
    holdfast.said(&id, "ready").await;
    let random = holdfast.ok(&["run", "-d", "--bundle", &bundle, "--", "true"]).await;
    let random = random.strip_suffix('\n').unwrap();
    assert!(random.len() == 12 && random.bytes().all(|byte| byte.is_ascii_hexdigit()), "{random}");
    assert_eq!(holdfast.ok(&["wait", random]).await, "0\n");
    holdfast.close().await;
}

#[tokio::test]
async fn after_run_rm_in_the_foreground_the_id_is_free_and_nothing_is_shown() {
    let holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), name());
    // A matter of instants, so more than once.
    for code in 0..10 {
        let script = format!("echo brief; exit {code}");
        let run = ["run", "--rm", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", &script];
        assert_eq!(holdfast.run(&run).await, ran(code, "brief\n", ""));
        if code % 2 == 0 {
            assert_eq!(holdfast.json(&["ps", "--all", "--json"]).await, json!([]));
        }
    }
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn run_rm_detached_leaves_nothing() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let id = name();
    let script = gate.script("echo before");
    holdfast.run_detached(&["--rm", "--name", &id], &["sh", "-c", &script]).await;
    let mut logs = holdfast.begin(&["logs", "--follow", &id]);
    assert_eq!(logs.line().await, "before");
    gate.open(5);
    assert_eq!(logs.end().await, ran(0, "after\n", ""));
    // This waits for the deletion that goes on, unless it finds it done.
    holdfast.run(&["delete", &id]).await;
    let message = holdfast.fails(1, &["inspect", &id]).await;
    assert_eq!(message, format!("holdfast: no such container: {id}\n"));
    assert_eq!(holdfast.leftovers(), [""; 0]);
    holdfast.close().await;
}

#[tokio::test]
async fn nothing_is_left_of_a_container_whose_deletion_was_told() {
    let holdfast = Holdfast::start().await;
    let other = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let mut events = holdfast.begin(&["events", "--replay", "--json"]);
    assert_eq!(until(&mut events, "started").await[0]["container"], json!(other));
    // A matter of instants, so more than once.
    for _ in 0..20 {
        let id = holdfast.run_detached(&["--rm", "--name", &name()], &["true"]).await;
        assert_eq!(until(&mut events, "deleted").await.last().unwrap()["container"], json!(id));
        let message = holdfast.fails(1, &["inspect", &id]).await;
        assert_eq!(message, format!("holdfast: no such container: {id}\n"));
    }
    drop(events);
    holdfast.close().await;
}

#[tokio::test]
async fn create_prints_the_id_and_start_begins_what_was_made() {
    let holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), name());
    let script = "echo began; exit 3";
    let create = ["create", "--name", &id, "--bundle", &bundle, "--", "sh", "-c", script];
    assert_eq!(holdfast.run(&create).await, ran(0, &format!("{id}\n"), ""));
    let info = holdfast.inspect(&id).await;
    assert_eq!((&info["status"], &info["exitStatus"]), (&json!("created"), &Value::Null));
    assert!(info["pid"].is_i64());
    assert_eq!(holdfast.ok(&["logs", &id]).await, "");
    let early = holdfast.fails(125, &["exec", &id, "true"]).await;
    assert!(early.contains(&format!("container {id} is created")), "{early}");

    assert_eq!(holdfast.ok(&["start", &id]).await, format!("{id}\n"));
    assert_eq!(holdfast.ok(&["wait", &id]).await, "3\n");
    assert_eq!(holdfast.ok(&["logs", &id]).await, "began\n");
    // What has ended starts once more, and the log goes on.
    assert_eq!(holdfast.ok(&["start", &id]).await, format!("{id}\n"));
    assert_eq!(holdfast.ok(&["wait", &id]).await, "3\n");
    assert_eq!(holdfast.ok(&["logs", &id]).await, "began\nbegan\n");

    // Several at once, and one that was never started is waited for as well.
    let ids = [name(), name()];
    for id in &ids {
        holdfast.ok(&["create", "--name", id, "--bundle", &bundle, "--", "true"]).await;
    }
    let wait = holdfast.begin(&["wait", &ids[0], &ids[1]]);
    holdfast.ok(&["start", &ids[0], &ids[1]]).await;
    assert_eq!(wait.end().await, ran(0, "0\n0\n", ""));
    holdfast.close().await;
}

#[tokio::test]
async fn exec_has_the_output_and_the_exit_code_of_its_own_process() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", WAITS]).await;
    holdfast.said(&id, "ready").await;
    let script = "echo out; echo err >&2; exit 9";
    let exec = holdfast.run(&["exec", &id, "--", "sh", "-c", script]).await;
    assert_eq!(exec, ran(9, "out\n", "err\n"));
    assert_eq!(holdfast.run(&["exec", &id, "true"]).await, ran(0, "", ""));
    let killed = holdfast.run(&["exec", &id, "--", "sh", "-c", "kill -KILL $$"]).await;
    assert_eq!(killed, ran(128 + 9, "", ""));

    std::fs::write(holdfast.scratch.bundle().join("rootfs/bin/text"), "no program\n").unwrap();
    for (code, program) in [(127, "no-such-program"), (127, "/no/such/program"), (126, "/bin/text")]
    {
        for options in [["exec", &id].as_slice(), &["exec", "--detach", &id]] {
            let message = holdfast.fails(code, &[options, &["--", program]].concat()).await;
            let own = "holdfast: oci runtime error: ";
            assert!(message.starts_with(own) && message.contains(program), "{message}");
        }
    }
    // Signals go to the process that was started, not to the container.
    let script = "trap 'echo got it; exit 6' TERM; echo here; sleep 100000 & wait";
    let mut exec = holdfast.begin(&["exec", &id, "--", "sh", "-c", script]);
    assert_eq!(exec.line().await, "here");
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.end().await, ran(6, "got it\n", ""));
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    // They have ended, and nobody is to name them any more.
    holdfast.ok(&["kill", &id]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n");
    holdfast.close().await;
}

#[tokio::test]
async fn exec_detached_prints_the_process_which_runs_on_and_ends_with_the_container() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", WAITS]).await;
    let exec = holdfast.ok(&["exec", "-d", &id, "--", "sleep", "100000"]).await;
    let exec = exec.strip_suffix('\n').unwrap();
    assert!(!exec.is_empty() && !exec.contains(char::is_whitespace), "{exec:?}");
    let info = holdfast.inspect(&id).await;
    let process = &info["execs"][0];
    assert_eq!((&process["id"], &process["status"]), (&json!(exec), &json!("running")));
    let process = holdfast_tests::Proc::of(process["pid"].as_i64().unwrap().try_into().unwrap());
    let process = process.unwrap();
    assert!(process.lives());
    holdfast.ok(&["kill", &id]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n");
    assert!(!process.lives());
    let message = holdfast.fails(125, &["exec", "-d", &id, "true"]).await;
    assert!(message.contains(&format!("container {id} is stopped")), "{message}");
    holdfast.close().await;
}

#[tokio::test]
async fn ps_lists_what_runs_and_ps_all_what_has_ended_too() {
    let holdfast = Holdfast::start().await;
    assert_eq!(holdfast.json(&["ps", "--json"]).await, json!([]));
    let running = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let created = name();
    let bundle = bundle(&holdfast);
    holdfast.ok(&["create", "--name", &created, "--bundle", &bundle, "--", "true"]).await;
    let ended = holdfast.run_detached(&["--name", &name()], &["sh", "-c", "exit 4"]).await;
    holdfast.ok(&["wait", &ended]).await;

    let all = holdfast.json(&["ps", "--all", "--json"]).await;
    let all = all.as_array().unwrap();
    let find = |id: &str| all.iter().find(|container| container["id"] == id).unwrap();
    assert_eq!(all.len(), 3);
    for (id, status, exit) in [
        (&running, "running", Value::Null),
        (&created, "created", Value::Null),
        (&ended, "stopped", json!(4)),
    ] {
        let container = find(id);
        assert_eq!(container["status"], status);
        assert_eq!(container["exitStatus"], exit);
        assert_eq!(container["restored"], false);
        assert!(container.as_object().unwrap().contains_key("pid"));
    }
    for id in [&running, &created] {
        let pid = find(id)["pid"].as_i64().unwrap();
        assert!(holdfast_tests::Proc::of(pid.try_into().unwrap()).unwrap().lives());
    }
    let live = holdfast.json(&["ps", "--json"]).await;
    let mut ids: Vec<_> = live.as_array().unwrap().iter().map(|one| one["id"].clone()).collect();
    let mut expected = vec![json!(running), json!(created)];
    ids.sort_by_key(Value::to_string);
    expected.sort_by_key(Value::to_string);
    assert_eq!(ids, expected);

    let table = holdfast.ok(&["ps", "-a"]).await;
    let header: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["ID", "COMMAND", "CREATED", "STATUS"]);
    let row = table.lines().find(|line| line.contains(&ended)).unwrap();
    assert!(row.contains("sh -c exit 4") && row.contains("Exited (4) "), "{row}");
    let row = table.lines().find(|line| line.contains(&created)).unwrap();
    assert!(row.contains(" true ") && row.ends_with("Created"), "{row}");
    let table = holdfast.ok(&["ps"]).await;
    assert!(table.contains(&running) && table.contains(&created) && !table.contains(&ended));
    holdfast.close().await;
}

#[tokio::test]
async fn inspect_shows_all_about_each_container_as_json() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", "exit 4"]).await;
    let other = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    holdfast.ok(&["wait", &id]).await;
    let pretty = holdfast.ok(&["inspect", &id]).await;
    assert!(pretty.lines().count() > 5);
    let mut info: Value = serde_json::from_str(&pretty).unwrap();
    let mut again = holdfast.json(&["inspect", "--json", &id]).await;
    for info in [&mut info, &mut again] {
        // Its shim ends a moment after the container.
        info.as_object_mut().unwrap().remove("shimPid");
    }
    assert_eq!(info, again);
    assert_eq!((&info["id"], &info["status"]), (&json!(id), &json!("stopped")));
    assert_eq!(info["exit"]["status"], json!({ "code": 4 }));
    assert_eq!(info["runtime"], runtime_name());
    assert_eq!(info["log"], "cri,max-size=10485760,max-files=5");
    let both = lines_of_json(&holdfast.ok(&["inspect", "--json", &other, &id]).await);
    assert_eq!(both.iter().map(|one| &one["id"]).collect::<Vec<_>>(), [&json!(other), &json!(id)]);
    holdfast.close().await;
}

#[tokio::test]
async fn wait_prints_one_status_a_line_in_the_order_in_which_it_was_asked() {
    let holdfast = Holdfast::start().await;
    let gates = [(); 3].map(|()| holdfast.scratch.gate());
    let mut ids = Vec::new();
    for gate in &gates {
        let script = gate.script("true");
        ids.push(holdfast.run_detached(&["--name", &name()], &["sh", "-c", &script]).await);
    }
    let mut wait = holdfast.begin(&["wait", &ids[0], &ids[1], &ids[2]]);
    // Ended in another order than asked for.
    gates[1].open(1);
    assert_eq!(holdfast.ok(&["wait", &ids[1]]).await, "1\n");
    gates[0].open(255);
    assert_eq!(wait.line().await, "255");
    assert_eq!(wait.line().await, "1");
    holdfast.ok(&["kill", "-s", "9", &ids[2]]).await;
    assert_eq!(wait.end().await, ran(0, "137\n", ""));

    let records = lines_of_json(&holdfast.ok(&["wait", "--json", &ids[2], &ids[0]]).await);
    assert_eq!(records[0]["status"], json!({ "signal": 9 }));
    assert_eq!(records[1]["status"], json!({ "code": 255 }));
    holdfast.close().await;
}

#[tokio::test]
async fn kill_sends_the_signal_that_is_named() {
    let holdfast = Holdfast::start().await;
    let script = says_signals("TERM INT HUP");
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", &script]).await;
    let other = holdfast.run_detached(&["--name", &name()], &["sh", "-c", WAITS]).await;
    let mut logs = holdfast.begin(&["logs", "--follow", &id]);
    assert_eq!(logs.line().await, "ready");
    for (text, said) in [("TERM", "TERM"), ("SIGINT", "INT"), ("hup", "HUP"), ("15", "TERM")] {
        assert_eq!(holdfast.ok(&["kill", "-s", text, &id]).await, format!("{id}\n"));
        assert_eq!(logs.line().await, said);
    }
    holdfast.ok(&["kill", "--signal", "QUIT", &id]).await;
    assert_eq!(logs.end().await, ran(0, "QUIT\n", ""));
    assert_eq!(holdfast.ok(&["wait", &id]).await, "42\n");
    let late = holdfast.fails(1, &["kill", &id]).await;
    assert!(late.contains(&format!("container {id} is stopped")), "{late}");

    // One that cannot take it keeps nobody else from it.
    let both = holdfast.run(&["kill", &id, &other]).await;
    assert_eq!(both, ran(1, &format!("{other}\n"), &late));
    assert_eq!(holdfast.ok(&["wait", &other]).await, "137\n");
    holdfast.close().await;
}

#[tokio::test]
async fn logs_shows_what_was_written_and_follow_goes_on_to_the_end() {
    let holdfast = Holdfast::start().await;
    let gate = holdfast.scratch.gate();
    let script = gate.script("echo before; echo wrong >&2");
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", &script]).await;
    let mut follow = holdfast.begin(&["logs", "-f", &id]);
    assert_eq!(follow.line().await, "before");
    assert_eq!(holdfast.run(&["logs", &id]).await.stdout, "before\n");
    gate.open(0);
    assert_eq!(follow.end().await, ran(0, "after\n", "wrong\n"));
    assert_eq!(holdfast.run(&["logs", &id]).await, ran(0, "before\nafter\n", "wrong\n"));
    assert_eq!(holdfast.run(&["logs", "-f", &id]).await, ran(0, "before\nafter\n", "wrong\n"));
    holdfast.close().await;
}

/// Reads events up to and with the first of this kind.
async fn until(events: &mut holdfast_tests::Running, kind: &str) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    while all.last().is_none_or(|event| event["event"] != kind) {
        all.push(serde_json::from_str(&events.line().await).expect("an event as JSON"));
    }
    all
}

#[tokio::test]
async fn events_come_in_order_and_numbered_from_one() {
    let holdfast = Holdfast::start().await;
    let (bundle, id) = (bundle(&holdfast), name());
    holdfast.ok(&["create", "--name", &id, "--bundle", &bundle, "--", "sleep", "100000"]).await;
    // It begins with the past, and once that is told it misses nothing.
    let mut events = holdfast.begin(&["events", "--replay", "--json"]);
    let mut all = until(&mut events, "created").await;
    holdfast.ok(&["start", &id]).await;
    holdfast.run(&["exec", &id, "--", "sh", "-c", "exit 5"]).await;
    holdfast.ok(&["kill", &id]).await;
    holdfast.ok(&["wait", &id]).await;
    holdfast.ok(&["delete", &id]).await;

    all.extend(until(&mut events, "deleted").await);
    assert!(all.iter().all(|event| event["container"] == json!(id)), "{all:?}");
    let numbers: Vec<_> = all.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=u64::try_from(all.len()).unwrap()).collect::<Vec<_>>());
    assert!(all.iter().all(|event| event["time"].is_string()), "{all:?}");
    let of = |init: bool| {
        let chosen = all.iter().filter(move |event| (event["process"] == "init") == init);
        chosen.map(|event| event["event"].as_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(of(true), ["created", "starting", "started", "exited", "deleted"]);
    assert_eq!(of(false), ["created", "started", "exited"]);
    let exits: Vec<_> = all.iter().filter(|event| event["event"] == "exited").collect();
    assert_eq!(exits[0]["status"], json!({ "code": 5 }));
    assert_eq!(exits[1]["status"], json!({ "signal": 9 }));
    drop(events);
    holdfast.close().await;
}

#[tokio::test]
async fn events_for_people_say_what_happened_to_whom() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", "exit 5"]).await;
    holdfast.ok(&["wait", &id]).await;
    let mut events = holdfast.begin(&["events", "--replay"]);
    for end in ["created pid ", "started", "exited 5"] {
        let line = events.line().await;
        assert!(line.contains(&format!(" {id} #")) && line.contains(end), "{line}");
    }
    drop(events);
    holdfast.close().await;
}

#[tokio::test]
async fn delete_refuses_what_runs_and_by_force_deletes_it_too() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", WAITS]).await;
    let ended = holdfast.run_detached(&["--name", &name()], &["true"]).await;
    holdfast.ok(&["wait", &ended]).await;
    // The one that cannot be deleted keeps the other from nothing.
    let refused = holdfast.run(&["delete", &id, &ended]).await;
    let why = format!(
        "holdfast: container {id} is running, and deletion without force needs it stopped: stop it first, \
         or use --force\n"
    );
    assert_eq!(refused, ran(1, &format!("{ended}\n"), &why));
    let left = holdfast.json(&["ps", "--all", "--json"]).await;
    assert_eq!(left.as_array().unwrap().len(), 1);
    assert_eq!(left[0]["status"], "running");
    assert_eq!(holdfast.ok(&["delete", "-f", &id]).await, format!("{id}\n"));
    assert_eq!(holdfast.leftovers(), [""; 0]);
    let gone = holdfast.fails(1, &["delete", "-f", &id]).await;
    assert_eq!(gone, format!("holdfast: no such container: {id}\n"));
    holdfast.close().await;
}

#[tokio::test]
async fn whatever_is_there_to_read_can_be_had_as_json() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["true"]).await;
    let record = holdfast.json(&["wait", "--json", &id]).await;
    assert_eq!(record["status"], json!({ "code": 0 }));
    let info = holdfast.json(&["info", "--json"]).await;
    assert_eq!(info["pid"], json!(holdfast.daemon().process().pid));
    assert_eq!(info["root"], json!(holdfast.root()));
    assert_eq!((&info["restored"], &info["problems"]), (&json!(0), &json!([])));
    assert!(holdfast.ok(&["info"]).await.contains("restored  0 containers"));
    assert_eq!(holdfast.json(&["inspect", &id]).await["id"], json!(id));
    assert_eq!(holdfast.json(&["inspect", "--json", &id]).await["id"], json!(id));
    assert_eq!(holdfast.json(&["ps", "-a", "--json"]).await[0]["id"], json!(id));
    assert_eq!(holdfast.json(&["ps", "--json"]).await, json!([]));
    let mut events = holdfast.begin(&["events", "--replay", "--json"]);
    assert_eq!(until(&mut events, "exited").await.len(), 3);
    drop(events);
    holdfast.close().await;
}

/// Seen before: `holdfast run --rm -e A=1 --rootfs host -- env` said that `--bundle` was missing, and
/// `holdfast run --rootfs host --detatch -- env` that `--detatch` was not found in `$PATH` (127).
#[tokio::test]
async fn an_unknown_option_before_the_program_is_named() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    for (code, unknown, args) in [
        (125, "-y", &["run", "--rm", "-y", "A=1", "--bundle", &bundle, "--", "env"][..]),
        (125, "-y", &["run", "--bundle", &bundle, "-y", "A=1", "env"]),
        (125, "--weird", &["run", "--weird=x", "--bundle", &bundle, "true"]),
        (125, "-x", &["run", "-x"]),
        (125, "-x", &["run", "-itx", "--bundle", &bundle, "true"]),
        (2, "--weird", &["create", "--bundle", &bundle, "--weird", "true"]),
        (2, "--detach", &["create", "--bundle", &bundle, "--detach", "--", "true"]),
        (125, "--weird", &["exec", "--weird", &id, "true"]),
        (125, "--weird", &["exec", &id, "--weird", "true"]),
        (125, "--rm", &["exec", &id, "--rm", "--", "true"]),
        (125, "--weird", &["attach", "--weird", &id]),
        (125, "--weird", &["--weird", "run", "--bundle", &bundle, "true"]),
        (125, "--weird", &["--weird", "x", "exec", &id, "true"]),
        (2, "--weird", &["--weird", "ps", "run"]),
        (2, "--weird", &["ps", "--weird"]),
        (2, "--weird", &["delete", "--weird", "run"]),
    ] {
        let said = holdfast.fails(code, args).await;
        let expected = format!("error: unexpected argument '{unknown}' found\n");
        assert!(said.starts_with(&expected), "{args:?}: {said}");
    }
    for (meant, args) in [
        ("--detach", &["run", "--detatch", "--bundle", &bundle, "true"][..]),
        ("--detach", &["run", "--bundle", &bundle, "--detatch", "--", "true"]),
        ("--interactive", &["exec", "--interactiv", &id, "true"]),
        ("--name", &["create", "--nam", "x", "--bundle", &bundle, "true"]),
    ] {
        let said = holdfast.run(args).await.stderr;
        assert!(said.contains(&format!("a similar argument exists: '{meant}'")), "{said}");
    }
    assert_eq!(holdfast.json(&["ps", "--all", "--json"]).await.as_array().unwrap().len(), 1);
    holdfast.close().await;
}

#[tokio::test]
async fn what_looks_like_an_option_behind_the_program_is_the_programs() {
    let holdfast = Holdfast::start().await;
    let bundle = bundle(&holdfast);
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let script = "printf '<%s>' \"$@\"";
    let words = ["--rm", "-d", "--detatch", "--", "--name", "-e", "A=1", "--help", "-", "--", "-x"];
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    let run = ["run", "--rm", "--bundle", &bundle];
    let exec = ["exec", &id];
    for (begin, separator) in [(&run[..], &[][..]), (&run, &["--"]), (&exec, &[]), (&exec, &["--"])]
    {
        let args = [begin, separator, &["sh", "-c", script, "sh"], &words].concat();
        assert_eq!(holdfast.run(&args).await, ran(0, &expected, ""), "{args:?}");
    }
    // Behind `--` even the program itself may look like one.
    for begin in [&run[..], &exec] {
        let said = holdfast.fails(127, &[begin, &["--", "--rm"]].concat()).await;
        assert!(said.contains("--rm"), "{said}");
    }
    holdfast.ok(&["delete", "--force", &id]).await;
    holdfast.nothing_left().await;
    holdfast.close().await;
}

#[tokio::test]
async fn ps_lists_those_with_a_label_whatever_letters_it_has() {
    let holdfast = Holdfast::start().await;
    let odd = "a b&c=d%41+é";
    let label = format!("note={odd}");
    let web = holdfast.run_detached(&["--label", &label], &["sleep", "100000"]).await;
    let db = holdfast.run_detached(&["-l", "note"], &["sleep", "100000"]).await;
    let listed = async |label: &str| {
        let found = holdfast.json(&["ps", "--json", "--label", label]).await;
        let found = found.as_array().expect("an array").iter();
        let mut ids: Vec<_> = found.map(|it| it["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(listed(&label).await, [web.as_str()]);
    assert_eq!(listed("note=").await, [db.as_str()]);
    let mut both = [web, db];
    both.sort();
    assert_eq!(listed("note").await, both);
    assert_eq!(listed("note=a b").await, [] as [&str; 0]);
    holdfast.close().await;
}
