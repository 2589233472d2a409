//! What the command line shows of containers: lists, filters, templates, times, and shortened ids.

use std::time::SystemTime;

use holdfast_tests::{Holdfast, soon, unique_id};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

fn name() -> String {
    unique_id("lists").to_string()
}

/// The time, in seconds since 1970.
fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("it is after 1970");
    format!("{}.{:09}", since.as_secs(), since.subsec_nanos())
}

/// The ids that `ps` prints with these options, in its order.
async fn listed(holdfast: &Holdfast, options: &[&str]) -> Vec<String> {
    let ids = holdfast.ok(&[&["ps", "-q"][..], options].concat()).await;
    ids.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn ps_filters_orders_and_counts() {
    let holdfast = Holdfast::start().await;
    let [first, second, third] = [name(), name(), name()];
    holdfast.run_detached(&["--name", &first, "-l", "app=web"], &["sleep", "100000"]).await;
    holdfast.run_detached(&["--name", &second, "-l", "app=db"], &["sh", "-c", "exit 4"]).await;
    holdfast.run_detached(&["--name", &third], &["sh", "-c", "exit 0"]).await;
    holdfast.ok(&["wait", &second, &third]).await;

    assert_eq!(listed(&holdfast, &[]).await, [first.as_str()]);
    assert_eq!(listed(&holdfast, &["-a"]).await, [&*third, &second, &first]);
    assert_eq!(listed(&holdfast, &["-n", "2"]).await, [&*third, &second]);
    assert_eq!(listed(&holdfast, &["-l"]).await, [third.as_str()]);
    assert_eq!(listed(&holdfast, &["-a", "--sort", "status"]).await[0], first);
    let mut by_id = vec![first.clone(), second.clone(), third.clone()];
    by_id.sort();
    assert_eq!(listed(&holdfast, &["-a", "--sort", "id"]).await, by_id);
    for (filters, found) in [
        (&["status=exited"][..], &[&*third, &second][..]),
        (&["status=exited", "status=running"], &[&*third, &second, &first]),
        (&["exited=4"], &[&*second]),
        (&["label=app"], &[&*first]),
        (&["label=app", "status=exited"], &[&*second]),
        (&["label=app=web", "label=app=db"], &[]),
        (&["until=1h"], &[]),
    ] {
        let options: Vec<_> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        assert_eq!(listed(&holdfast, &options).await, found, "{filters:?}");
    }
    let by_name = format!("name={}", &second[2..]);
    assert_eq!(listed(&holdfast, &["-a", "-f", &by_name]).await, [second.as_str()]);
    assert!(holdfast.fails(2, &["ps", "--filter", "image=x"]).await.contains("label="));
    holdfast.close().await;
}

#[tokio::test]
async fn ps_fits_80_columns_and_prints_templates() {
    let holdfast = Holdfast::start().await;
    let long = "x".repeat(200);
    let args =
        ["run", "-d", "--rootfs", "host", "--", "sh", "-c", &format!("sleep 100000 # {long}")];
    let id = holdfast.ok(&args).await.trim().to_owned();
    let table = holdfast.ok(&["ps"]).await;
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    assert!(table.contains('…') && table.contains("Up "), "{table}");
    assert!(holdfast.ok(&["ps", "--no-trunc"]).await.contains(&long));
    holdfast.ok(&["pause", &id]).await;
    let template = "{{.ID}} {{.State}} {{.Pid}} {{json .labels}}";
    let pid = holdfast.inspect(&id).await["pid"].to_string();
    let line = holdfast.ok(&["ps", "--format", template]).await;
    assert_eq!(line, format!("{id} paused {pid} {{}}\n"));
    assert!(holdfast.ok(&["ps", "--format", "{{.Status}}"]).await.ends_with("(paused)\n"));
    let table = holdfast.ok(&["ps", "--format", "table {{.ID}}\\t{{.State}}"]).await;
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["ID", "STATE"], [&id, "paused"]]);
    let line: Value =
        serde_json::from_str(&holdfast.ok(&["ps", "--format", "json"]).await).unwrap();
    assert_eq!(line["ID"], json!(id));
    let error = holdfast.fails(1, &["ps", "--format", "{{.Image}}"]).await;
    assert!(error.contains("no field Image") && error.contains("Command"), "{error}");
    assert!(holdfast.fails(2, &["ps", "--format", "{{range .}}"]).await.contains("{{.Field}}"));
    holdfast.close().await;
}

#[tokio::test]
async fn an_id_that_holdfast_chose_may_be_shortened_and_a_name_may_not() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let web = holdfast.run_detached(&["--name", "web2"], &["sleep", "100000"]).await;
    let short = &id[..4];
    assert_eq!(holdfast.json(&["inspect", short]).await["id"], json!(id));
    holdfast.ok(&["kill", "-9", short]).await;
    assert_eq!(holdfast.ok(&["wait", short]).await, "137\n");
    assert_eq!(holdfast.ok(&["logs", short]).await, "");
    assert_eq!(holdfast.ok(&["rm", short]).await, format!("{short}\n"));
    let error = holdfast.fails(1, &["rm", "-f", "web"]).await;
    assert_eq!(error, "holdfast: no such container: web\n");
    // A beginning of several is refused, and one that is an id is that.
    for id in ["abcabc000001", "abcabc000002", "abc"] {
        holdfast.run_detached(&["--name", id], &["sleep", "100000"]).await;
    }
    let error = holdfast.fails(1, &["kill", "abcabc"]).await;
    assert!(error.contains("2 ids begin so"), "{error}");
    assert_eq!(holdfast.json(&["inspect", "abc"]).await["id"], "abc");
    let all = holdfast.ok(&["ps", "-q"]).await;
    assert!(all.contains(&web) && all.lines().count() == 4, "{all}");
    holdfast.close().await;
}

#[tokio::test]
async fn the_id_of_a_detached_exec_is_taken_by_wait_logs_kill_inspect_and_rm() {
    let holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let exec = holdfast.ok(&["exec", "-d", &id, "sh", "-c", script]).await;
    let exec = exec.trim();
    let info = holdfast.json(&["inspect", exec]).await;
    assert_eq!((&info["container"], &info["status"]), (&json!(id), &json!("running")));
    let mut logs = holdfast.begin(&["logs", "-f", exec]);
    assert_eq!(logs.line().await, "ready");
    holdfast.ok(&["kill", "-TERM", &exec[..8]]).await;
    assert_eq!(holdfast.ok(&["wait", exec]).await, "5\n");
    assert_eq!(logs.end().await.stdout, "bye\n");
    assert_eq!(holdfast.ok(&["logs", exec]).await, "ready\nbye\n");
    let error = holdfast.fails(1, &["stop", exec]).await;
    assert!(error.contains(&format!("is a process of container {id}")), "{error}");
    holdfast.ok(&["rm", exec]).await;
    assert_eq!(holdfast.json(&["inspect", &id]).await["execs"], json!([]));
    holdfast.close().await;
}

#[tokio::test]
async fn inspect_knows_the_configuration_the_record_and_the_runs() {
    let holdfast = Holdfast::start().await;
    let id =
        holdfast.run_detached(&["--name", &name(), "-e", "A=b"], &["sh", "-c", "exit 3"]).await;
    holdfast.ok(&["wait", &id]).await;
    holdfast.ok(&["start", &id]).await;
    holdfast.ok(&["wait", &id]).await;
    let info = holdfast.json(&["inspect", &id]).await;
    let env = info["config"]["process"]["env"].as_array().unwrap();
    assert!(env.contains(&json!("A=b")), "{env:?}");
    assert_eq!(info["record"]["holdfast"]["autoRemove"], false);
    assert_eq!(info["runs"][0]["exit"]["status"], json!({ "code": 3 }));
    let template = "{{.Exit.Status.Code}} {{json .config.process.cwd}}";
    let line = holdfast.ok(&["inspect", "-f", template, &id]).await;
    assert_eq!(line, "3 \"/\"\n");
    // What is typed after docker's is understood.
    let docker = |template: &'static str| {
        let (holdfast, id) = (&holdfast, &id);
        async move { holdfast.ok(&["inspect", "-f", template, id]).await }
    };
    let state =
        "{{.State.Status}} {{.State.Running}} {{.State.Pid}} {{.State.ExitCode}} {{.RestartCount}}";
    assert_eq!(docker(state).await, "exited false 0 3 0\n");
    let config = "{{.Name}} {{.Path}} {{.Config.User}} {{.Config.Tty}} {{.Config.WorkingDir}} {{json .Config.Cmd}}";
    let line = format!("{id} sh 0:0 false / [\"sh\",\"-c\",\"exit 3\"]\n");
    assert_eq!(docker(config).await, line);
    assert!(docker("{{json .Config.Env}}").await.contains("\"A=b\""));
    assert_eq!(docker("{{json .Config.process.cwd}}").await, "\"/\"\n");
    assert!(docker("{{.LogPath}}").await.contains(&id));
    let text = docker("{{.State.StartedAt}} {{.State.FinishedAt}} {{.State.Error}}|").await;
    assert_eq!(text.split(' ').filter(|time| time.contains('T')).count(), 2, "{text}");
    // They are not in the JSON.
    assert_eq!(info["State"], json!(null));
    holdfast.ok(&["rm", &id]).await;
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let pid = holdfast.inspect(&id).await["pid"].to_string();
    let state = "{{.State.Status}} {{.State.Paused}} {{.State.Pid}} {{.State.ExitCode}}";
    let line = holdfast.ok(&["inspect", "-f", state, &id]).await;
    assert_eq!(line, format!("running false {pid} 0\n"));
    let message = holdfast.fails(1, &["inspect", "-f", "{{.State.Image}}", &id]).await;
    assert!(message.contains("no field Image") && message.contains("StartedAt"), "{message}");
    holdfast.close().await;
}

#[tokio::test]
async fn logs_end_before_a_time_and_take_all_or_some_lines() {
    let holdfast = Holdfast::start().await;
    let script = "echo one; echo err >&2; read x; echo two; sleep 100000";
    let options = ["--name", &name(), "-i"];
    let id = holdfast.run_detached(&options, &["sh", "-c", script]).await;
    let both = async || {
        let ran = holdfast.run(&["logs", &id]).await;
        ran.stdout == "one\n" && ran.stderr == "err\n"
    };
    soon("both lines", async { while !both().await {} }).await;
    let until = now();
    let stdin = holdfast.root().join(&id).join("init/stdin");
    std::fs::write(stdin, "\n").unwrap();
    holdfast.said(&id, "two").await;
    let ran = holdfast.run(&["logs", "--until", &until, &id]).await;
    assert_eq!((ran.code, &*ran.stdout, &*ran.stderr), (Some(0), "one\n", "err\n"));
    let since = holdfast.run(&["logs", "--since", &until, &id]).await;
    assert_eq!((&*since.stdout, &*since.stderr), ("two\n", ""));
    assert_eq!(holdfast.run(&["logs", "-n", "1", &id]).await.stdout, "two\n");
    assert_eq!(holdfast.run(&["logs", "-n", "all", &id]).await.stdout, "one\ntwo\n");
    assert_eq!(holdfast.run(&["logs", "--since", "2000-01-01", &id]).await.stdout, "one\ntwo\n");
    assert_eq!(holdfast.run(&["logs", "--until", "86400", &id]).await.stdout, "");
    holdfast.close().await;
}

#[tokio::test]
async fn events_are_bounded_by_times_and_filtered() {
    let holdfast = Holdfast::start().await;
    let [before, id, after] = [name(), name(), name()];
    holdfast.ok(&["run", "--name", &before, "--rootfs", "host", "--", "true"]).await;
    let since = now();
    holdfast.ok(&["run", "--name", &id, "--rootfs", "host", "--", "true"]).await;
    let until = now();
    holdfast.ok(&["run", "--name", &after, "--rootfs", "host", "--", "true"]).await;
    let events = |options: &[&str]| {
        let args = [&["events", "--until", &until][..], options].concat();
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        let holdfast = &holdfast;
        async move { holdfast.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let all = events(&["--since", &since]).await;
    assert!(all.contains(&id) && !all.contains(&before) && !all.contains(&after), "{all}");
    let exits = ["--since", "1h", "-f", "event=exited", "--format", "{{.ID}} {{.Action}}"];
    assert_eq!(events(&exits).await, format!("{before} exited\n{id} exited\n"));
    let of_one = format!("container={before}");
    let filtered = events(&["--replay", "-f", &of_one, "-f", "event=exited", "--json"]).await;
    assert_eq!(filtered.lines().count(), 1, "{filtered}");
    assert_eq!(events(&[]).await, "");
    holdfast.close().await;
}

#[tokio::test]
async fn wait_has_a_bound_and_conditions() {
    let holdfast = Holdfast::start().await;
    let script = "trap 'exit 6' TERM; echo ready; while :; do sleep 0.1; done";
    let id = holdfast.run_detached(&["--name", &name()], &["sh", "-c", script]).await;
    let error = holdfast.fails(124, &["wait", "--timeout", "50ms", &id]).await;
    assert!(error.contains("has not ended within 50ms"), "{error}");
    assert_eq!(holdfast.ok(&["wait", "--condition", "running", &id]).await, "");
    holdfast.said(&id, "ready").await;
    // It looks at the container when it hears of events already; that is its second request.
    let address = holdfast.scratch.path().join("relay.sock");
    let relay = UnixListener::bind(&address).unwrap();
    let args = ["--address", address.to_str().unwrap(), "wait", "--condition", "next-exit", &id];
    let next = holdfast.begin(&args);
    let pass_on = async || {
        let (mut client, _) = soon("a request", relay.accept()).await.unwrap();
        let mut daemon = UnixStream::connect(holdfast.root().join("holdfast.sock")).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut daemon).await });
    };
    pass_on().await;
    pass_on().await;
    holdfast.ok(&["stop", &id]).await;
    pass_on().await;
    assert_eq!(next.end().await.stdout, "6\n");
    let running = holdfast.begin(&["wait", "--condition", "running", &id]);
    holdfast.ok(&["start", &id]).await;
    assert_eq!(running.end().await.code, Some(0));
    let removed = holdfast.begin(&["wait", "--condition", "removed", &id]);
    holdfast.ok(&["rm", "-f", &id]).await;
    assert_eq!(removed.end().await.stdout, "137\n");
    // Also if it was removed before.
    assert_eq!(holdfast.ok(&["wait", "--condition", "removed", &id]).await, "137\n");
    assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n");
    holdfast.close().await;
}

#[tokio::test]
async fn prune_deletes_what_has_ended_and_asks_before() {
    let holdfast = Holdfast::start().await;
    let running = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let ended = holdfast.run_detached(&["--name", &name(), "-l", "a=b"], &["true"]).await;
    let other = holdfast.run_detached(&["--name", &name()], &["true"]).await;
    holdfast.ok(&["wait", &ended, &other]).await;
    // Nobody answers.
    let asked = holdfast.run(&["prune"]).await;
    assert!(asked.code == Some(1) && asked.stderr.contains("[y/N]"), "{asked:?}");
    assert!(asked.stderr.contains("nothing is deleted"), "{asked:?}");
    assert_eq!(listed(&holdfast, &["-a"]).await.len(), 3);
    assert_eq!(holdfast.ok(&["prune", "-f", "--filter", "label=a=b"]).await, format!("{ended}\n"));
    assert_eq!(holdfast.ok(&["prune", "-f"]).await, format!("{other}\n"));
    assert_eq!(listed(&holdfast, &["-a"]).await, [running]);
    holdfast.close().await;
}

#[tokio::test]
async fn version_knows_both_sides_and_completion_knows_the_commands() {
    let mut holdfast = Holdfast::start().await;
    let own = env!("CARGO_PKG_VERSION");
    let version = holdfast.json(&["version", "--json"]).await;
    assert_eq!(version, json!({ "client": own, "daemon": own }));
    holdfast.kill_daemon().await;
    let ran = holdfast.run(&["version"]).await;
    assert_eq!((ran.code, ran.stdout), (Some(1), format!("holdfast  {own}\n")));
    for shell in ["bash", "zsh", "fish"] {
        let script = holdfast.ok(&["completion", shell]).await;
        assert!(script.contains("reopen-logs") && script.contains("cap-add"), "{shell}");
    }
    let pages = holdfast.scratch.path().join("man");
    std::fs::create_dir(&pages).unwrap();
    holdfast.ok(&["man", pages.to_str().unwrap()]).await;
    let page = std::fs::read_to_string(pages.join("holdfast-run.1")).unwrap();
    assert!(page.contains("cpu\\-shares") && page.contains("Examples"), "{page}");
    holdfast.start_daemon().await;
    holdfast.close().await;
}
