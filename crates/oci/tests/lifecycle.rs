//! The real binary with real containers: what Holdfast relies on. Needs root and busybox-static.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, openat};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::{Mode, mkdirat};
use serde_json::{Value, json};
use support::{Fixture, wait};

#[test]
fn the_exit_code_reaches_the_subreaper() {
    let container = Fixture::script("echo hi; echo oops >&2; exit 7");
    let pid = container.launch("run");
    assert_eq!(wait(pid), 7);
    assert_eq!(container.out(), "hi\noops\n");
    assert_eq!(container.status(), "stopped");
    container.delete(&[]);
}

#[test]
fn create_start_state_kill_delete() {
    let container = Fixture::script(
        "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 1 & wait; done",
    );
    let pid = container.launch("create");
    assert_eq!(container.status(), "created");
    assert_eq!(container.out(), "");
    let twice = container.make("create").arg(&container.id).output().unwrap();
    assert!(String::from_utf8(twice.stderr).unwrap().contains("exists already"));

    container.ok("start", &[], &[]);
    assert_eq!(container.status(), "running");
    assert!(container.fails("start", &[], &[]).contains("already running"));
    assert!(container.fails("delete", &[], &[]).contains("not stopped: running"));
    let processes: Vec<i32> =
        serde_json::from_str(&container.ok("ps", &["--format", "json"], &[])).unwrap();
    assert!(processes.contains(&pid.as_raw()), "{processes:?}");

    // The handler is set once this is there.
    while !container.out().contains("ready") {
        std::thread::yield_now();
    }
    container.ok("kill", &[], &["TERM"]);
    assert_eq!(wait(pid), 3);
    assert!(container.fails("kill", &[], &["9"]).contains("not running"));
    assert!(container.fails("start", &[], &[]).contains("has stopped"));
    container.delete(&[]);
    assert!(container.fails("state", &[], &[]).contains("does not exist"));
    assert!(container.fails("delete", &[], &[]).contains("does not exist"));
    container.ok("delete", &["--force"], &[]);
}

#[test]
fn a_created_container_can_be_deleted() {
    let container = Fixture::script("echo never");
    let pid = container.launch("create");
    container.delete(&[]);
    assert_eq!(wait(pid), 128 + 9);
    assert_eq!(container.out(), "");
}

#[test]
fn exec_runs_in_the_container() {
    let container = Fixture::script("echo ready; sleep 1000");
    let (pid, _) = container.launch_to_line("run");
    let script = "echo $MARK; cat /proc/sys/kernel/hostname; ls /proc/$$/fd; exit 5";
    let exec = container.exec(&["sh", "-c", script]).unwrap();
    assert_eq!(wait(exec), 5);
    let out = fs::read_to_string(container.path("exec-out")).unwrap();
    assert_eq!(out, format!("42\n{}\n0\n1\n2\n", container.id));

    let error = container.exec(&["nope"]).unwrap_err();
    assert!(error.contains("exec: \"nope\": executable file not found in $PATH"), "{error}");
    let own = container.path("root").join(&container.id).join(&container.id);
    for entry in fs::read_dir(own).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with("tenant"), "left over: {name}");
    }
    container.delete(&["--force"]);
    assert_eq!(wait(pid), 128 + 9);
    assert!(container.exec(&["true"]).unwrap_err().contains("does not exist"));
}

#[test]
fn many_execs_at_once() {
    let container = Fixture::script("echo ready; sleep 1000");
    container.launch_to_line("run");
    let process = container.path("process.json");
    // One that nobody reaps would hold up the end of its pid namespace.
    assert_eq!(wait(container.exec(&["true"]).unwrap()), 0);
    let started: Vec<_> = (0..8)
        .map(|number| {
            let mut command = container.command("exec");
            command.arg("--detach").arg("--process").arg(&process).arg("--pid-file");
            command.arg(container.path(&format!("pid-{number}"))).arg(&container.id);
            command.spawn().unwrap()
        })
        .collect();
    for (number, mut child) in started.into_iter().enumerate() {
        assert!(child.wait().unwrap().success(), "{}", container.log());
        let pid = fs::read_to_string(container.path(&format!("pid-{number}"))).unwrap();
        assert_eq!(wait(nix::unistd::Pid::from_raw(pid.parse().unwrap())), 0);
    }
}

#[test]
fn a_missing_program_is_an_error_in_the_log() {
    for (program, text) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/proc/version", "exec: \"/proc/version\": permission denied"),
    ] {
        for verb in ["create", "run"] {
            let container = Fixture::program(&[program]);
            let output = container.make(verb).arg(&container.id).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            assert!(String::from_utf8(output.stderr).unwrap().contains(text));
            let errors = container.errors();
            assert!(errors.len() == 1 && errors[0].contains(text), "{errors:?}");
            assert!(!container.path("pid").exists());
            container.assert_nothing_left();
        }
    }
}

#[test]
fn an_error_names_its_cause() {
    let container = Fixture::program(&["true"]).edit(|config| {
        let mount = json!({
            "destination": "/x", "type": "bind", "source": "not-there", "options": ["rbind"],
        });
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    let output = container.make("create").arg(&container.id).output().unwrap();
    assert!(!output.status.success());
    let errors = container.errors();
    assert!(
        errors[0].contains("bundle/not-there") && errors[0].contains("No such file"),
        "{errors:?}"
    );
    container.assert_nothing_left();
}

#[test]
fn pause_and_resume() {
    let container = Fixture::script("echo ready; while :; do sleep 1 & wait; done");
    let (pid, _) = container.launch_to_line("run");
    container.ok("pause", &[], &[]);
    assert_eq!(container.status(), "paused");
    assert!(container.exec(&["true"]).unwrap_err().contains("paused"));
    assert!(container.fails("pause", &[], &[]).contains("paused"));
    container.ok("resume", &[], &[]);
    assert_eq!(container.status(), "running");
    // One that is suspended can be killed too.
    container.ok("pause", &[], &[]);
    container.ok("kill", &[], &["KILL"]);
    assert_eq!(wait(pid), 128 + 9);
    container.delete(&[]);
}

#[test]
fn a_signal_to_all_of_a_paused_container_does_not_keep_it_from_being_resumed() {
    let container = Fixture::script("trap 'exit 3' TERM; echo ready; sleep 1000 & wait");
    let (pid, _) = container.launch_to_line("run");
    container.ok("pause", &[], &[]);
    container.ok("kill", &["--all"], &["TERM"]);
    assert_eq!(container.status(), "paused");
    container.ok("resume", &[], &[]);
    assert_eq!(wait(pid), 3);
    container.delete(&[]);
}

#[test]
fn cgroups_that_are_nested_beyond_any_path_are_removed() {
    let container = Fixture::script("echo ready; sleep 1000");
    let (pid, _) = container.launch_to_line("run");
    let name = "x".repeat(200);
    let name = name.as_str();
    for cgroup in container.cgroups() {
        // One by one, as a container can that goes down as it makes them.
        let mut at = OwnedFd::from(File::open(cgroup).unwrap());
        for _ in 0..30 {
            mkdirat(&at, name, Mode::S_IRWXU).unwrap();
            at = openat(&at, name, OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        }
    }
    container.delete(&["--force"]);
    assert_eq!(wait(pid), 128 + 9);
}

#[test]
fn a_paused_container_can_be_deleted_by_force() {
    let container = Fixture::script("echo ready; sleep 1000");
    let (pid, _) = container.launch_to_line("run");
    container.ok("pause", &[], &[]);
    container.delete(&["--force"]);
    assert_eq!(wait(pid), 128 + 9);
}

#[test]
fn no_descriptor_and_no_signal_setting_reaches_the_container() {
    let inherited = File::open("/dev/null").unwrap();
    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let script = "ls /proc/1/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; :";
    let container = Fixture::script(script);
    // As a shim does that reads its signals from a descriptor.
    SigSet::all().thread_block().unwrap();
    let pid = container.launch("run");
    SigSet::all().thread_unblock().unwrap();
    assert_eq!(wait(pid), 0);
    let out = container.out();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..4], ["0", "1", "2", "SigBlk:\t0000000000000000"]);
    // What our own caller had ignored stays so, as with runc; but not what Rust programs ignore.
    let ignored = u64::from_str_radix(lines[4].trim_start_matches("SigIgn:\t"), 16).unwrap();
    assert_eq!(ignored & 1 << (Signal::SIGPIPE as i32 - 1), 0, "{ignored:x}");
    drop(inherited);
}

#[test]
fn the_standard_output_may_be_dev_null() {
    let container = Fixture::script("echo lost && echo lost >&2 && exit 4");
    let mut command = container.make("run");
    command.stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.arg(&container.id).status().unwrap().success());
    assert_eq!(wait(container.pid()), 4);
}

#[test]
fn another_user_owns_its_output_and_finds_its_home() {
    let container = Fixture::script("echo hi > /dev/stdout; echo $HOME; id -u")
        .edit(|config| config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    let etc = container.bundle().join("rootfs/etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), "root:x:0:0::/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n")
        .unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = container.make("run");
    assert!(command.stdout(writer).arg(&container.id).status().unwrap().success());
    drop(command);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    assert_eq!(out, "hi\n/home/me\n1000\n");
    assert_eq!(wait(container.pid()), 0);
}

#[test]
fn a_terminal_comes_through_the_console_socket() {
    let container = Fixture::script("tty; stty size; echo ready; read line; echo \"got $line\"")
        .edit(|config| {
            config["process"]["terminal"] = json!(true);
            config["process"]["consoleSize"] = json!({ "width": 101, "height": 33 });
        });
    let socket = container.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut command = container.make("create");
    command.arg("--console-socket").arg(&socket);
    let pid = container.launch_with(command);
    let mut master = receive_master(&listener);
    container.ok("start", &[], &[]);
    let said = read_until(&mut master, "ready");
    assert!(said.contains("/dev/pts/0") && said.contains("33 101"), "{said}");
    master.write_all(b"words\n").unwrap();
    read_until(&mut master, "got words");
    assert_eq!(wait(pid), 0);
    container.delete(&[]);

    let container = Fixture::script("echo ready; sleep 1000");
    container.launch_to_line("run");
    let pid = container
        .exec_with(&["sh", "-c", "tty; exit 6"], true, |command| {
            command.arg("--console-socket").arg(&socket);
        })
        .unwrap();
    // Held until the end: a terminal whose master is closed hangs up.
    let mut master = receive_master(&listener);
    read_until(&mut master, "/dev/pts/0");
    assert_eq!(wait(pid), 6);
}

#[test]
fn a_terminal_and_its_socket_come_together_or_not_at_all() {
    let container =
        Fixture::program(&["true"]).edit(|config| config["process"]["terminal"] = json!(true));
    let output = container.make("create").arg(&container.id).output().unwrap();
    assert!(!output.status.success());
    container.assert_nothing_left();
}

#[test]
fn a_container_cannot_write_to_cgroups_that_are_read_only() {
    let container = Fixture::script(
        "for dir in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir $dir/x 2>/dev/null && echo $dir; done; ls /sys/fs/cgroup",
    )
    .edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "cgroup" }));
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"],
        }));
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        }));
    });
    let pid = container.launch("run");
    assert_eq!(wait(pid), 0);
    let out = container.out();
    assert!(!out.contains('/') && !out.is_empty(), "could write to {out}");
}

#[test]
fn update_changes_the_limit_of_processes() {
    let container = Fixture::script("echo ready; sleep 1000");
    container.launch_to_line("run");
    let resources = container.path("resources.json");
    fs::write(&resources, json!({ "pids": { "limit": 33 } }).to_string()).unwrap();
    container.ok("update", &["--resources", resources.to_str().unwrap()], &[]);
    let stats: Value = serde_json::from_str(&container.ok("events", &["--stats"], &[])).unwrap();
    assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(container.id)));
    let data = &stats["data"];
    assert_eq!(data["pids"]["limit"], 33);
    assert!(data["pids"]["current"].as_u64().unwrap() >= 1);
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() > 0);
    assert!(data["memory"]["usage"]["limit"].as_u64().unwrap() > 0);

    let mut command = container.command("update");
    command.args(["--resources", "-"]).arg(&container.id).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(json!({ "pids": { "limit": 34 } }).to_string().as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let stats: Value = serde_json::from_str(&container.ok("events", &["--stats"], &[])).unwrap();
    assert_eq!(stats["data"]["pids"]["limit"], 34);
}

#[test]
fn delete_by_force_kills_what_is_left_and_removes_nested_cgroups() {
    // Without a pid namespace the first process's end ends no other.
    let container = Fixture::script("sleep 1000 & echo ready; exit 9").edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let (pid, _) = container.launch_to_line("run");
    assert_eq!(wait(pid), 9);
    let left: Vec<i32> =
        serde_json::from_str(&container.ok("ps", &["--format", "json"], &[])).unwrap();
    assert_eq!(left.len(), 1);
    for cgroup in container.cgroups() {
        fs::create_dir(cgroup.join("nested")).unwrap();
    }
    container.delete(&["--force"]);
    assert_eq!(wait(nix::unistd::Pid::from_raw(left[0])), 128 + 9);
}

#[test]
fn a_user_namespace_has_its_own_root() {
    let container =
        Fixture::script("cat /proc/self/uid_map; id -u; echo hi > /dev/stdout").edit(|config| {
            let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
            config["linux"]["uidMappings"] = mapping.clone();
            config["linux"]["gidMappings"] = mapping;
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({ "type": "user" }));
        });
    let rootfs = container.bundle().join("rootfs");
    assert!(
        Command::new("chown").args(["-R", "100000:100000"]).arg(rootfs).status().unwrap().success()
    );
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = container.make("run");
    assert!(command.stdout(writer).arg(&container.id).status().unwrap().success());
    drop(command);
    let mut out = String::new();
    reader.read_to_string(&mut out).unwrap();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "hi"]);
    assert_eq!(wait(container.pid()), 0);
    container.delete(&[]);
}

#[test]
fn a_command_that_is_killed_leaves_nothing_that_a_delete_does_not_find() {
    let container = Fixture::script("echo ready; sleep 1000");
    for delay in (0..100).step_by(4) {
        let mut command = container.make("create");
        killed_after(command.arg(&container.id), delay);
        container.delete(&["--force"]);
        assert_eq!(container.processes(), [""; 0]);
    }
    container.launch_to_line("run");
    assert_eq!(wait(container.exec(&["true"]).unwrap()), 0);
    for delay in (0..100).step_by(4) {
        let mut command = container.command("exec");
        command.arg("--detach").arg("--process").arg(container.path("process.json"));
        killed_after(command.arg(&container.id), delay);
    }
    // Killed along with their commands, but by the kernel, which does not wait for it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while !container.processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", container.processes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts a command and kills it after some milliseconds.
fn killed_after(command: &mut Command, delay: u64) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(delay));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_done_is_refused() {
    let container = Fixture::program(&["true"]);
    assert!(container.fails("checkpoint", &["--image-path", "/tmp/x"], &[]).contains("use runc"));
    assert!(container.fails("restore", &[], &[]).contains("not supported by the embedded runtime"));
    let container = container.edit(|config| config["linux"]["cgroupsPath"] = json!("/"));
    let output = container.make("create").arg(&container.id).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("root of all cgroups"));
    let container = container.edit(|config| {
        config["linux"]["cgroupsPath"] = json!("/x");
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_NOTIFY" });
    });
    let output = container.make("create").arg(&container.id).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("SCMP_ACT_NOTIFY is not supported"));
    container.assert_nothing_left();
}

#[test]
fn the_number_of_a_process_that_is_gone_is_nobody_else() {
    let container = Fixture::script("echo ready; sleep 1000");
    let (pid, _) = container.launch_to_line("run");
    let record = container.path("root").join(&container.id).join("record.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    content["start_time"] = json!("1");
    fs::write(&record, content.to_string()).unwrap();
    assert_eq!(container.status(), "stopped");
    assert!(container.fails("kill", &[], &["9"]).contains("not running"));
    kill(pid, None).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(wait(pid), 128 + 9);
}

#[test]
fn hooks_begin_in_the_callers_cgroups_and_as_the_bundle_says() {
    let container = Fixture::script("exit 0").edit(|config| {
        config["hooks"] = json!({});
    });
    let out = |name: &str| container.path(name).display().to_string();
    let hook = |name: &str| {
        let script = format!(
            "{{ cat /proc/self/cgroup; echo \"$0 $1 $MARK\"; tr -d '\\n'; }} > {}",
            out(name)
        );
        json!([{
            "path": "/bin/sh",
            "args": ["sh", "-c", script, "zero", "--one"],
            "env": ["PATH=/usr/bin:/bin", "MARK=7"],
            "timeout": 5,
        }])
    };
    let hooks = json!({ "prestart": hook("prestart"), "createRuntime": hook("create") });
    let container = container.edit(|config| config["hooks"] = hooks);
    assert_eq!(wait(container.launch("run")), 0);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    for name in ["prestart", "create"] {
        let text = fs::read_to_string(container.path(name)).unwrap();
        let rest = text.strip_prefix(&own).unwrap_or_else(|| panic!("{name}: {text}"));
        let (words, state) = rest.split_once('\n').unwrap();
        assert_eq!(words, "zero --one 7");
        let state: Value = serde_json::from_str(state).unwrap();
        assert_eq!(state["id"], json!(container.id));
    }
    container.delete(&[]);
}

#[test]
fn a_hook_that_is_not_there_fails_the_container_and_is_named() {
    for moment in ["prestart", "createRuntime"] {
        let container = Fixture::script("exit 0")
            .edit(|config| config["hooks"] = json!({ moment: [{ "path": "/no/such/hook" }] }));
        let output = container.make("create").arg(&container.id).output().unwrap();
        assert!(!output.status.success());
        let errors = container.errors();
        assert!(errors[0].contains("/no/such/hook: No such file"), "{errors:?}");
        container.assert_nothing_left();
    }
}

#[test]
fn the_command_is_back_in_its_callers_cgroups_when_it_runs_poststart_hooks() {
    let container = Fixture::script("exit 0");
    let path = container.path("poststart");
    let script = format!("cat /proc/self/cgroup > {}", path.display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    let container = container.edit(|config| config["hooks"] = json!({ "poststart": hook }));
    assert_eq!(wait(container.launch("run")), 0);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), own);
}

#[test]
fn without_namespaces_of_its_own_a_container_sees_no_cgroups_of_the_host() {
    let container = Fixture::script(
        "ls -d /sys/fs/cgroup/*/*/; cat /sys/fs/cgroup/systemd/cgroup.procs | grep -x 1",
    )
    .edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({
            "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"],
        }));
        mounts.push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
        }));
    });
    if !std::path::Path::new("/sys/fs/cgroup/systemd/cgroup.procs").exists() {
        return eprintln!("NOT RUN: it takes cgroups of version 1");
    }
    // The first process of the machine would be listed, and every other container's cgroup.
    assert_eq!(wait(container.launch("run")), 1);
    assert!(!container.out().lines().any(|line| line.starts_with('/')), "{}", container.out());
}

#[test]
fn an_update_changes_nothing_about_devices() {
    let container = Fixture::script("echo ready; sleep 1000");
    container.launch_to_line("run");
    let cgroups = container.cgroups();
    let Some(dir) = cgroups.iter().find(|dir| dir.join("devices.list").exists()) else {
        return eprintln!("NOT RUN: it takes cgroups of version 1");
    };
    let list = || fs::read_to_string(dir.join("devices.list")).unwrap();
    assert!(!list().contains('a'), "{}", list());
    // tun, which is allowed unless somebody takes it away.
    fs::write(dir.join("devices.deny"), "c 10:200 rwm").unwrap();
    let before = list();
    let resources = container.path("resources.json");
    for devices in [
        json!([{ "allow": true, "access": "rwm" }]),
        json!([{ "allow": true, "type": "b", "major": 7, "access": "rwm" }]),
    ] {
        let content = json!({ "pids": { "limit": 33 }, "devices": devices });
        fs::write(&resources, content.to_string()).unwrap();
        container.ok("update", &["--resources", resources.to_str().unwrap()], &[]);
        assert_eq!(list(), before);
    }
}

#[test]
fn a_container_of_an_earlier_build_can_be_used_and_deleted() {
    let container = Fixture::script("echo ready; sleep 1000");
    let (pid, _) = container.launch_to_line("run");
    let record = container.path("root").join(&container.id).join("record.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    let joined = content["cgroup"]["joined"].take();
    content["cgroup"].as_object_mut().unwrap().remove("joined");
    let dirs = content["cgroup"]["dirs"].as_array_mut().unwrap();
    let joined = joined.as_array().unwrap();
    dirs.retain(|dir| !joined.contains(dir));
    // It was in its caller's cgroup there.
    for dir in joined.iter().map(|dir| std::path::Path::new(dir.as_str().unwrap())) {
        fs::write(dir.parent().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
        fs::remove_dir(dir).unwrap();
    }
    fs::write(&record, content.to_string()).unwrap();
    assert_eq!(container.status(), "running");
    assert_eq!(wait(container.exec(&["true"]).unwrap()), 0);
    container.delete(&["--force"]);
    assert_eq!(wait(pid), 128 + 9);
}

#[test]
fn a_relative_cgroups_path_is_one_of_its_own_too() {
    let container = Fixture::script("echo ready; sleep 1000");
    let path = format!("oci-relative/{}", container.id);
    let container = container.edit(|config| config["linux"]["cgroupsPath"] = json!(path));
    let (pid, _) = container.launch_to_line("run");
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(text.lines().all(|line| line.ends_with(&format!("/{path}"))), "{text}");
    container.delete(&["--force"]);
    assert_eq!(wait(pid), 128 + 9);
    for dir in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        _ = fs::remove_dir(dir.path().join("oci-relative"));
    }
    _ = fs::remove_dir("/sys/fs/cgroup/oci-relative");
}

/// Accepts the runtime's connection and takes the descriptor that it sends.
fn receive_master(listener: &UnixListener) -> File {
    let (connection, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message =
        recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let fd = message
        .cmsgs()
        .unwrap()
        .find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        })
        .unwrap();
    #[allow(unsafe_code)]
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows its number.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn read_until(master: &mut File, text: &str) -> String {
    let mut all = String::new();
    let mut chunk = [0; 256];
    while !all.contains(text) {
        let length = master.read(&mut chunk).unwrap_or(0);
        assert!(length > 0, "the terminal ended before {text:?}: {all:?}");
        all.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
    }
    all
}
