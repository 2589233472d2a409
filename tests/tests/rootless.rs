//! A user without root's rights: daemon, library, command line and both runtimes.
//!
//! Each test is run as a real user of this machine, once as one with ranges of ids and once as one without:
//! see `holdfast_tests::user`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use holdfast_supervisor::{
    Container, EventKind, ExitStatus, Supervisor, TerminalSize, UnknownReason,
};
use holdfast_tests::processes::{shim_of, shims, unified_cgroup_of};
use holdfast_tests::user::{User, runtime_dir};
use holdfast_tests::{
    Daemon, Holdfast, Output, Pty, Scratch, binary, events_until, eventually, in_path, ran,
    read_all, said, soon, status, unique_id,
};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Makes two tests of each function: as a user with ranges of ids, and as one without.
macro_rules! as_users {
    ($($test:ident),* $(,)?) => {
        mod with_ranges {
            use super::User;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if User::WithRanges.runs_this() {
                    super::$test(User::WithRanges).await;
                }
            })*
        }
        mod with_one_id {
            use super::User;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if User::WithOneId.runs_this() {
                    super::$test(User::WithOneId).await;
                }
            })*
        }
    };
}

as_users!(
    a_container_lives_from_run_to_delete,
    a_dialog_at_a_terminal_and_an_input_reach_containers_and_execs,
    a_daemon_that_was_killed_is_followed_by_one_that_knows_each_status_and_all_output,
    a_shim_that_was_killed_is_replaced_and_nothing_is_lost,
    the_shim_of_a_group_has_them_all_and_is_replaced_too,
    ids_in_a_container_are_those_of_the_user_and_of_its_ranges,
    what_takes_a_cgroup_is_refused_with_the_reason,
    a_cgroup_of_the_users_systemd_gives_limits_pause_and_statistics,
    a_cgroup_of_the_users_systemd_counts_kills_and_goes_with_its_container,
    each_kind_of_root_and_network_works,
    the_state_is_in_the_users_own_directories,
    a_bundle_with_mappings_of_its_own_keeps_them,
    hooks_of_a_bundle_run_and_read_the_state,
    further_groups_are_there_or_refused,
);

/// The runtimes of this machine.
fn runtimes() -> Vec<String> {
    let runc = in_path("runc").map(|path| path.display().to_string());
    runc.into_iter().chain([binary("holdfast-oci").display().to_string()]).collect()
}

async fn with_daemon(runtime: &str) -> Holdfast {
    let mut holdfast = Holdfast::without_daemon();
    restart(&mut holdfast, runtime).await;
    holdfast
}

async fn restart(holdfast: &mut Holdfast, runtime: &str) {
    holdfast.start_daemon_by(|command| _ = command.args(["--runtime", runtime])).await;
}

/// Ends a test. With `--rm` the answer comes before the deletion.
async fn close(holdfast: Holdfast) {
    let all = holdfast.json(&["ps", "--all", "--json"]).await;
    for container in all.as_array().expect("an array") {
        holdfast.run(&["delete", "--force", container["id"].as_str().expect("an id")]).await;
    }
    holdfast.nothing_left().await;
    holdfast.close().await;
}

async fn a_container_lives_from_run_to_delete(_: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let gate = holdfast.scratch.gate();
        let script = gate.script("echo out; echo err >&2");
        let id = holdfast.run_detached(&["--label", "a=b"], &["sh", "-c", &script]).await;
        holdfast.said(&id, "out").await;
        let seen = holdfast.inspect(&id).await;
        assert_eq!(seen["status"], "running", "{runtime}");
        let pid = seen["pid"].as_i64().expect("a pid");
        let owner = fs::metadata(format!("/proc/{pid}")).expect("it runs").uid();
        assert_eq!(owner, geteuid().as_raw(), "root in the container is the user; {runtime}");

        let exec = holdfast.run(&["exec", &id, "--", "sh", "-c", "id -u; exit 5"]).await;
        assert_eq!((exec.code, exec.stdout.as_str()), (Some(5), "0\n"), "{runtime}: {exec:?}");
        // The processes are told from others without a cgroup.
        let top = holdfast.json(&["top", "--json", &id]).await;
        assert_eq!(top.as_array().expect("an array").len(), 1, "{runtime}: {top}");
        holdfast.ok(&["stats", "--no-stream", &id]).await;

        gate.open(3);
        assert_eq!(holdfast.ok(&["wait", &id]).await, "3\n", "{runtime}");
        let logs = holdfast.run(&["logs", &id]).await;
        assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\nafter\n", "err\n"));
        holdfast.ok(&["start", &id]).await;
        holdfast.ok(&["stop", "--time", "0", &id]).await;
        assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n", "{runtime}");
        holdfast.ok(&["delete", &id]).await;

        let bundle = holdfast.scratch.bundle().display().to_string();
        let run = ["run", "--rm", "--bundle", &bundle, "--", "sh", "-c", "exit 7"];
        assert_eq!(holdfast.run(&run).await.code, Some(7), "{runtime}");
        let missing =
            holdfast.run(&["run", "--rm", "--bundle", &bundle, "--", "no-such-program"]).await;
        assert_eq!(missing.code, Some(127), "{runtime}: {missing:?}");
        close(holdfast).await;
    }
}

async fn a_dialog_at_a_terminal_and_an_input_reach_containers_and_execs(_: User) {
    const SIZE: TerminalSize = TerminalSize { width: 101, height: 33 };
    let script = "test -t 0 && stty size; read -r word; echo got $word; exit 41";
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let bundle = holdfast.scratch.bundle().display().to_string();
        let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
        let run = ["run", "--rm", "-it", "--bundle", &bundle, "--", "sh", "-c", script];
        let exec = ["exec", "-it", &id, "--", "sh", "-c", script];
        for args in [&run[..], &exec[..]] {
            let mut pty = Pty::start(&holdfast.command(args), SIZE);
            assert_eq!(pty.shows("33 101\r\n").await, "", "{runtime}");
            pty.types("hello\r");
            assert_eq!(pty.end().await, (Some(41), "hello\r\ngot hello\r\n".to_owned()));
        }
        let run = ["run", "--rm", "-i", "--bundle", &bundle, "--", "cat"];
        let exec = ["exec", "-i", &id, "--", "cat"];
        for args in [&run[..], &exec[..]] {
            let mut command = holdfast.command(args);
            command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
            let mut child = command.spawn().expect("start a command");
            let mut input = child.stdin.take().expect("an input");
            input.write_all(b"line\n").await.expect("write");
            drop(input);
            let output =
                soon("the end of a command", child.wait_with_output()).await.expect("wait");
            assert_eq!(output.stdout, b"line\n", "{runtime} {args:?}");
            assert_eq!(output.status.code(), Some(0), "{runtime} {args:?}");
        }
        close(holdfast).await;
    }
}

async fn a_daemon_that_was_killed_is_followed_by_one_that_knows_each_status_and_all_output(
    _: User,
) {
    for runtime in runtimes() {
        let mut holdfast = with_daemon(&runtime).await;
        let mut all = Vec::new();
        for number in 0..4 {
            let gate = holdfast.scratch.gate();
            let script = gate.script("echo before");
            let id = holdfast.run_detached(&[], &["sh", "-c", &script]).await;
            holdfast.said(&id, "before").await;
            all.push((id, gate, number));
        }
        let ends: Vec<_> = all[..2].iter().map(|(id, ..)| holdfast.end_of_shim(id)).collect();
        holdfast.kill_daemon().await;
        for ((_, gate, number), end) in all[..2].iter().zip(ends) {
            gate.open(*number);
            end.come().await;
        }
        restart(&mut holdfast, &runtime).await;
        for (id, gate, number) in &all {
            if *number >= 2 {
                assert_eq!(holdfast.inspect(id).await["status"], "running", "{runtime}");
                holdfast.ok(&["exec", id, "true"]).await;
                gate.open(*number);
            }
            assert_eq!(holdfast.ok(&["wait", id]).await, format!("{number}\n"), "{runtime}");
            assert_eq!(holdfast.ok(&["logs", id]).await, "before\nafter\n", "{runtime}");
        }
        close(holdfast).await;
    }
}

async fn a_shim_that_was_killed_is_replaced_and_nothing_is_lost(_: User) {
    for runtime in runtimes() {
        let scratch = Scratch::new();
        let supervisor = soon("the supervisor", scratch.builder().runtime(&runtime).open()).await;
        let supervisor = supervisor.expect("open a supervisor");
        let mut events = supervisor.events();
        let gates = [scratch.gate(), scratch.gate()];
        let script = format!("{}; {}", gates[0].wait("echo ready"), gates[1].script("echo more"));
        let id = unique_id("adopted");
        let container = supervisor.run(scratch.script(&script).id(id.clone()));
        let container = soon("a start", container).await.expect("run");
        said(&container, "ready").await;
        shim_of(&scratch.root(), id.as_str(), "init").signal(Signal::SIGKILL);
        events_until(&mut events, |event| event.kind == EventKind::Adopted).await;
        gates[0].open(0);
        said(&container, "more").await;
        gates[1].open(31);
        ends_after_an_adoption(&supervisor, &container, 31).await;
        let output = read_all(container.logs().expect("a log")).await;
        assert_eq!(output, Output::of("ready\nmore\nafter\n"), "{runtime}");
        scratch.close(supervisor).await;
    }
}

/// Waits for the end of a container whose shim was replaced. Before Linux 6.15 the status may be gone with the process,
/// which the user's systemd reaps.
async fn ends_after_an_adoption(supervisor: &Supervisor, container: &Container, code: u8) {
    let status = status(container).await;
    let is_lost = status == ExitStatus::Unknown(UnknownReason::ReapedByAnother);
    let may_be_lost = !supervisor.abilities().tells_endings;
    assert!(status == ExitStatus::Code(code) || (is_lost && may_be_lost), "{status:?}");
}

async fn the_shim_of_a_group_has_them_all_and_is_replaced_too(_: User) {
    for runtime in runtimes() {
        let scratch = Scratch::new();
        let group = "all".parse().expect("the name of a group");
        let opened = scratch.builder().runtime(&runtime).shim_group(Some(group)).open();
        let supervisor = soon("the supervisor", opened).await.expect("open a supervisor");
        let mut events = supervisor.events();
        let mut all = Vec::new();
        for _ in 0..3 {
            let gate = scratch.gate();
            let options = scratch.script(&gate.script("echo ready"));
            let container = soon("a start", supervisor.run(options)).await.expect("run");
            said(&container, "ready").await;
            all.push((container, gate));
        }
        let one = || shims(&scratch.root()).len() == 1;
        eventually("the shims that started them to have ended", one).await;
        shims(&scratch.root())[0].signal(Signal::SIGKILL);
        let mut adopted = 0;
        events_until(&mut events, |event| {
            adopted += usize::from(event.kind == EventKind::Adopted);
            adopted == all.len()
        })
        .await;
        for (code, (container, gate)) in (0..).zip(&all) {
            gate.open(code);
            ends_after_an_adoption(&supervisor, container, code).await;
            let output = read_all(container.logs().expect("a log")).await;
            assert_eq!(output, Output::of("ready\nafter\n"), "{runtime}");
        }
        drop(all);
        scratch.close(supervisor).await;
    }
}

/// The owner of a file that a container's user has made, in a directory that this user may write to.
async fn owner_of_new_file(holdfast: &Holdfast, user: &str) -> Result<(u32, u32), String> {
    let shared = holdfast.scratch.path().join("shared");
    fs::create_dir_all(&shared).expect("make a directory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&shared, mode).expect("set the mode of a directory");
    let file = shared.join("file");
    _ = fs::remove_file(&file);
    let bundle = holdfast.scratch.bundle().display().to_string();
    let volume = format!("{}:/mnt", shared.display());
    // Its output is opened anew by its name, which takes a right to the pipe.
    let script = "echo > /mnt/file && echo out > /dev/stdout && echo err > /dev/stderr";
    let run = [
        "run", "--rm", "--user", user, "-v", &volume, "--bundle", &bundle, "--", "sh", "-c", script,
    ];
    let ran = holdfast.run(&run).await;
    if ran.code != Some(0) || ran.stdout != "out\n" || ran.stderr != "err\n" {
        return Err(format!("{ran:?}"));
    }
    let metadata = fs::metadata(file).expect("the file");
    Ok((metadata.uid(), metadata.gid()))
}

async fn ids_in_a_container_are_those_of_the_user_and_of_its_ranges(user: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        fs::create_dir_all(holdfast.scratch.bundle().join("rootfs/mnt")).expect("make a directory");
        let own = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        assert_eq!(owner_of_new_file(&holdfast, "0:0").await, Ok(own), "{runtime}");
        let other = owner_of_new_file(&holdfast, "1000:1000").await;
        match user {
            User::WithRanges => {
                let first = |path: &str| {
                    let text = fs::read_to_string(path).expect("read the ranges");
                    let line = text.lines().find_map(|line| line.strip_prefix("holdfast-ranges:"));
                    let start = line.and_then(|line| line.split(':').next()?.parse::<u32>().ok());
                    start.expect("a range")
                };
                let expected = (first("/etc/subuid") + 999, first("/etc/subgid") + 999);
                assert_eq!(other, Ok(expected), "{runtime}");
            }
            User::WithOneId => {
                let error = other.expect_err("there is no such id");
                assert!(error.contains("125"), "{runtime}: {error}");
            }
        }
        let info = holdfast.json(&["info", "--json"]).await;
        assert_eq!(info["rootless"]["uid"], own.0);
        let single = info["rootless"]["singleId"].as_str();
        assert_eq!(single.is_some(), user == User::WithOneId, "{single:?}");
        close(holdfast).await;
    }
}

/// Why a machine has no cgroups for a user's containers; `None` if it has.
async fn no_cgroups(holdfast: &Holdfast) -> Option<String> {
    let info = holdfast.json(&["info", "--json"]).await;
    info["rootless"]["noCgroups"].as_str().map(str::to_owned)
}

async fn what_takes_a_cgroup_is_refused_with_the_reason(_: User) {
    if no_cgroups(&with_daemon("auto").await).await.is_none() {
        return holdfast_tests::skip("containers have cgroups here");
    }
    let reason = "no cgroup is delegated to this user";
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let bundle = holdfast.scratch.bundle().display().to_string();
        for (limit, name) in [
            (["--memory", "64m"], "memory"),
            (["--pids-limit", "10"], "pids"),
            (["--cpus", "0.5"], "cpu"),
        ] {
            let run = ["run", "--rm", limit[0], limit[1], "--bundle", &bundle, "--", "true"];
            let error = holdfast.fails(125, &run).await;
            assert!(error.contains(name) && error.contains(reason), "{runtime} {limit:?}: {error}");
        }
        let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
        let resources = holdfast.scratch.path().join("resources.json");
        fs::write(&resources, r#"{"memory":{"limit":67108864}}"#).expect("write a file");
        let resources = resources.to_str().expect("a path in UTF-8");
        let update = ["update", "--resources", resources, &id];
        for args in [&["pause", &id][..], &["resume", &id], &update] {
            let error = holdfast.fails(1, args).await;
            assert!(error.contains(reason), "{runtime} {args:?}: {error}");
        }
        assert_eq!(holdfast.inspect(&id).await["status"], "running");
        assert!(holdfast.ok(&["info"]).await.contains(reason));
        assert_eq!(holdfast.daemon_log().matches(reason).count(), 1);
        // The kernel shows one without a cgroup of its own, too.
        let all = holdfast.run(&["kill", "--signal", "KILL", &id]).await;
        assert_eq!(all.code, Some(0), "{all:?}");
        assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n", "{runtime}");
        close(holdfast).await;
    }
}

/// What a file of a cgroup says.
fn says(cgroup: &Path, name: &str) -> String {
    let path = cgroup.join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.trim_end().to_owned()
}

async fn a_cgroup_of_the_users_systemd_gives_limits_pause_and_statistics(_: User) {
    if let Some(reason) = no_cgroups(&with_daemon("auto").await).await {
        return holdfast_tests::skip(&reason);
    }
    for runtime in runtimes() {
        let mut holdfast = with_daemon(&runtime).await;
        let limits = ["--memory", "64m", "--pids-limit", "20", "--cpus", "0.5"];
        let id = holdfast.run_detached(&limits, &["sleep", "100000"]).await;
        let cgroup = unified_cgroup_of(&holdfast.inspect(&id).await["pid"]);
        assert!(cgroup.to_string_lossy().contains("/holdfast-"), "{runtime}: {cgroup:?}");
        let limited = |memory: &str| {
            let found = ["memory.max", "pids.max", "cpu.max"].map(|name| says(&cgroup, name));
            assert_eq!(found, [memory, "20", "50000 100000"], "{runtime}");
        };
        limited("67108864");
        // systemd writes again what it has been told.
        let mut reload = Command::new("systemctl");
        reload.args(["--user", "daemon-reload"]);
        assert_eq!(ran(reload).await.code, Some(0));
        limited("67108864");
        let resources = holdfast.scratch.path().join("resources.json");
        fs::write(&resources, r#"{"memory":{"limit":33554432}}"#).expect("write a file");
        let resources = resources.to_str().expect("a path in UTF-8");
        holdfast.ok(&["update", "--resources", resources, &id]).await;
        limited("33554432");
        // What is begun later is in it too.
        let exec = holdfast.ok(&["exec", "-d", &id, "--", "sleep", "4321"]).await;
        let commands = holdfast.ok(&["top", &id]).await;
        assert!(commands.contains("sleep 100000") && commands.contains("sleep 4321"), "{commands}");
        assert_eq!(says(&cgroup, "cgroup.procs").lines().count(), 2, "{runtime}: {exec}");
        holdfast.ok(&["pause", &id]).await;
        assert_eq!(holdfast.inspect(&id).await["status"], "paused");
        assert!(says(&cgroup, "cgroup.events").contains("frozen 1"), "{runtime}");
        // The next daemon knows all of it.
        holdfast.kill_daemon().await;
        restart(&mut holdfast, &runtime).await;
        assert_eq!(holdfast.inspect(&id).await["status"], "paused");
        holdfast.ok(&["unpause", &id]).await;
        assert!(says(&cgroup, "cgroup.events").contains("frozen 0"), "{runtime}");
        let stats = holdfast.json(&["stats", "--json", &id]).await;
        for field in ["memoryBytes", "cpuNanos", "pids"] {
            assert!(stats[field].is_u64(), "{runtime}: no {field}: {stats}");
        }
        // A limit by default, and one that is not to be had.
        let run = ["run", "-d", "--rootfs", "host", "--", "sleep", "100000"];
        let other = holdfast.ok(&run).await;
        let pid = holdfast.inspect(other.trim_end()).await["pid"].clone();
        assert_eq!(says(&unified_cgroup_of(&pid), "pids.max"), "2048", "{runtime}");
        fs::write(resources, r#"{"cpu":{"cpus":"0"}}"#).expect("write a file");
        if !holdfast.ok(&["info"]).await.contains("cpuset") {
            let error = holdfast.fails(1, &["update", "--resources", resources, &id]).await;
            assert!(error.contains("controller cpuset is not delegated"), "{runtime}: {error}");
        }
        close(holdfast).await;
    }
}

async fn a_cgroup_of_the_users_systemd_counts_kills_and_goes_with_its_container(_: User) {
    if let Some(reason) = no_cgroups(&with_daemon("auto").await).await {
        return holdfast_tests::skip(&reason);
    }
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let id = holdfast.run_detached(&["--memory", "16m"], &["sleep", "100000"]).await;
        let cgroup = unified_cgroup_of(&holdfast.inspect(&id).await["pid"]);
        let killed = holdfast.run(&["exec", &id, "--", "tail", "/dev/zero"]).await;
        assert_eq!(killed.code, Some(137), "{runtime}: {killed:?}");
        let is_counted = async || holdfast.inspect(&id).await["oomKilled"] == true;
        soon("the kill to be counted", async { while !is_counted().await {} }).await;
        // All that is in it ends with its container.
        holdfast.ok(&["kill", "-s", "KILL", &id]).await;
        holdfast.ok(&["wait", &id]).await;
        holdfast.ok(&["start", &id]).await;
        let again = unified_cgroup_of(&holdfast.inspect(&id).await["pid"]);
        assert_eq!(says(&again, "memory.max"), "16777216", "{runtime}");
        holdfast.ok(&["rm", "-f", &id]).await;
        eventually("no cgroup to be left", || !cgroup.exists() && !again.exists()).await;
        close(holdfast).await;
    }
}

async fn each_kind_of_root_and_network_works(_: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let rootfs = holdfast.scratch.bundle().join("rootfs").display().to_string();
        for name in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir_all(Path::new(&rootfs).join(name)).expect("make a directory");
        }
        // The second removes and makes again what the layer below has.
        let plain = "ls /sys/class/net && cat /proc/self/uid_map";
        // And leaves what may belong to another user of the container's.
        let layered = "rm -r /gates && mkdir /gates && echo x > /gates/file && ls /gates; \
                       mkdir -p /of/other && echo x > /of/other/file && chmod 700 /of && chown -R 1000 /of; :";
        for (options, script, said) in [
            (&["--rootfs", "host"][..], plain, "lo\n"),
            (&["--rootfs", "host", "--network", "host"], plain, "lo\n"),
            (&["--rootfs", &rootfs], plain, "lo\n"),
            (
                &["--rootfs", &rootfs, "--read-only=false", "--tmpfs", "/tmp"],
                "echo x > /tmp/x; echo lo",
                "lo\n",
            ),
            (&["--rootfs", &rootfs, "--overlay"], layered, "file\n"),
            (&["--rootfs", &rootfs, "--init"], "echo lo", "lo\n"),
        ] {
            let ran = holdfast
                .run(&[&["run", "--rm"], options, &["--", "sh", "-c", script]].concat())
                .await;
            let shown = format!("{runtime} {options:?}: {ran:?}");
            assert!(ran.code == Some(0) && ran.stdout.contains(said), "{shown}");
        }
        assert!(Path::new(&rootfs).join("gates").is_dir(), "the layer below is as it was");
        close(holdfast).await;
    }
}

/// A command that knows nothing of a state root but what the environment says.
fn plain(args: &[&str], runtime_dir: Option<&Path>, home: &Path) -> Command {
    let mut command = Command::new(binary("holdfast"));
    command.args(args).env_remove("HOLDFAST_ROOT").env_remove("XDG_STATE_HOME").env("HOME", home);
    match runtime_dir {
        Some(dir) => command.env("XDG_RUNTIME_DIR", dir),
        None => command.env_remove("XDG_RUNTIME_DIR"),
    };
    command
}

async fn the_state_is_in_the_users_own_directories(_: User) {
    let (dir, home) = (runtime_dir(), runtime_dir());
    for command in [&["daemon"][..], &["ps"]] {
        let ran = ran(plain(command, None, home.path())).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for word in ["XDG_RUNTIME_DIR", "--root", "HOLDFAST_ROOT"] {
            assert!(ran.stderr.contains(word), "{command:?}: {ran:?}");
        }
    }
    let daemon = Daemon::start(plain(&["daemon"], Some(dir.path()), home.path())).await;
    let run = [
        "run",
        "--rootfs",
        "host",
        "--restart",
        "always",
        "--name",
        "x",
        "-d",
        "--",
        "sleep",
        "100000",
    ];
    for args in [&run[..], &["ps"], &["delete", "--force", "x"]] {
        let ran = ran(plain(args, Some(dir.path()), home.path())).await;
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
    }
    assert!(dir.path().join("holdfast/.holdfast").is_file(), "the state root");
    assert!(home.path().join(".local/state/holdfast/definitions").is_dir(), "the definitions");
    assert_eq!(daemon.end(Signal::SIGTERM).await.code(), Some(0));
}

async fn a_bundle_with_mappings_of_its_own_keeps_them(_: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let (uid, gid) = (geteuid().as_raw(), nix::unistd::getegid().as_raw());
        holdfast_tests::edit_json(&holdfast.scratch.bundle().join("config.json"), |config| {
            let one = |id: u32| serde_json::json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("an array");
            namespaces.push(serde_json::json!({ "type": "user" }));
            config["linux"]["uidMappings"] = one(uid);
            config["linux"]["gidMappings"] = one(gid);
        });
        let bundle = holdfast.scratch.bundle().display().to_string();
        let run = ["run", "--rm", "--bundle", &bundle, "--", "cat", "/proc/self/uid_map"];
        let map = holdfast.ok(&run).await;
        let words: Vec<_> = map.split_whitespace().collect();
        assert_eq!(words, ["0", &uid.to_string(), "1"], "{runtime}");
        close(holdfast).await;
    }
}

async fn hooks_of_a_bundle_run_and_read_the_state(_: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let bundle = holdfast.scratch.bundle();
        let moments = ["prestart", "createRuntime", "poststart", "poststop"];
        let path = |moment: &str| holdfast.scratch.path().join(moment);
        holdfast_tests::edit_json(&bundle.join("config.json"), |config| {
            for moment in moments {
                let script = format!("cat > {}", path(moment).display());
                config["hooks"][moment] =
                    serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
            }
        });
        let bundle = bundle.display().to_string();
        let run = ["run", "--name", "a", "--bundle", &bundle, "--", "sh", "-c", "exit 7"];
        assert_eq!(holdfast.run(&run).await.code, Some(7), "{runtime}");
        holdfast.ok(&["delete", "a"]).await;
        for moment in moments {
            let text = fs::read(path(moment));
            let text = text.unwrap_or_else(|error| panic!("{runtime}, {moment}: {error}"));
            let state: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            assert!(state["id"].is_string() && state["bundle"].is_string(), "{moment}: {state}");
        }
        close(holdfast).await;
    }
}

async fn further_groups_are_there_or_refused(user: User) {
    for runtime in runtimes() {
        let holdfast = with_daemon(&runtime).await;
        let bundle = holdfast.scratch.bundle();
        holdfast_tests::edit_json(&bundle.join("config.json"), |config| {
            config["process"]["user"]["additionalGids"] = serde_json::json!([5, 1000]);
        });
        let bundle = bundle.display().to_string();
        let ran = holdfast.run(&["run", "--rm", "--bundle", &bundle, "--", "id", "-G"]).await;
        // runc 1.1 sets none for a user.
        if user == User::WithRanges && runtime.ends_with("holdfast-oci") {
            assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "0 5 1000"), "{ran:?}");
        } else {
            assert_eq!(ran.code, Some(125), "{runtime}: {ran:?}");
            let is_named = ["additional groups", "gid 5"].iter().any(|it| ran.stderr.contains(it));
            assert!(is_named, "{runtime}: {ran:?}");
        }
        close(holdfast).await;
    }
}

/// A container without a cgroup of its own is in that of the supervisor that has started it, and stays there when
/// another follows that is elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_does_not_stand_for_what_else_is_in_its_supervisors_cgroup() {
    let user = User::WithRanges;
    if let Err(reason) = user.ready() {
        return holdfast_tests::skip(&reason);
    }
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let base = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    let cgroup = Path::new(base).join(unique_id("cgroup").as_str());
    fs::create_dir(&cgroup).expect("make a cgroup");
    let procs = cgroup.join("cgroup.procs");
    // Begins in that cgroup, and goes on as the user.
    let within = |command: std::process::Command| {
        let mut outer = Command::new("sh");
        outer.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(&procs);
        outer.arg(command.get_program()).args(command.get_args()).env_clear();
        let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        outer.envs(set).current_dir("/");
        outer
    };
    let dir = runtime_dir();
    let mut chown = Command::new("chown");
    chown.arg(user.name()).arg(dir.path());
    assert_eq!(ran(chown).await.code, Some(0));
    let root = dir.path().join("state").display().to_string();
    let holdfast = |args: &[&str]| {
        let mut command = user.command(&binary("holdfast"));
        command.args(["--root", &root]).args(args);
        command
    };
    let (oci, mark) = (binary("holdfast-oci"), std::process::id().to_string());
    let daemon = ["daemon", "--runtime", oci.to_str().expect("a path in UTF-8")];
    let sleep = |seconds: &str| format!("sleep {seconds}.{mark}");
    let mut other = user.command(Path::new("sleep"));
    other.arg(format!("4004.{mark}"));
    let mut other = within(other).kill_on_drop(true).spawn().expect("start sleep");

    let first = Daemon::start(within(holdfast(&daemon))).await;
    let seconds = format!("4005.{mark}");
    let run = ["run", "-d", "--name", "a", "--rootfs", "host", "--", "sleep", &seconds];
    let started = ran(holdfast(&run).into()).await;
    assert_eq!(started.code, Some(0), "{started:?}");
    first.end(Signal::SIGKILL).await;
    let second = Daemon::start(holdfast(&daemon).into()).await;
    let listed = ran(holdfast(&["top", "a"]).into()).await.stdout;
    assert!(listed.contains(&sleep("4005")) && !listed.contains(&sleep("4004")), "{listed}");

    let removed = ran(holdfast(&["rm", "-f", "a"]).into()).await;
    assert_eq!(removed.code, Some(0), "{removed:?}");
    assert_eq!(second.end(Signal::SIGTERM).await.code(), Some(0));
    other.kill().await.expect("kill sleep");
    let is_removed = || fs::remove_dir(&cgroup).is_ok();
    eventually("the cgroup to be empty", is_removed).await;
}
