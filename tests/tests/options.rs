//! What a caller can change about a container, tried from the inside.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_supervisor::{
    ContainerOptions, Error, ErrorKind, ExecOptions, ExitStatus, Network, Supervisor, User,
};
use holdfast_tests::{Holdfast, Scratch, soon, status, unique_id};
use nix::libc::{SIGKILL, SIGTERM};

/// What a script prints in a container with these options.
async fn printed(supervisor: &Supervisor, options: ContainerOptions, script: &str) -> String {
    let container = supervisor.run(options.args(["sh", "-c", script])).await.expect("run");
    let output = soon("the output", container.output()).await.expect("its output");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.exit.status, ExitStatus::Code(0), "{script}: {text}{errors}");
    container.delete().await.expect("delete");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_option_is_what_the_container_finds() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let data = scratch.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), "from the host\n").unwrap();
    let rootfs = ContainerOptions::rootfs(scratch.bundle().join("rootfs"));
    // A bundle's own configuration is the base; without one it is the default. runc gives a tmpfs the mode
    // of the directory that it covers, so that is one which is not there yet.
    for (options, fresh) in [(scratch.options(["true"]), "/fresh-1"), (rootfs, "/fresh-2")] {
        let options = options
            .env("GREETING=hello")
            .env(format!("FRESH={fresh}"))
            .envs(["PATH=/bin:/usr/bin", "EMPTY="])
            .cwd("/tmp")
            .user(User { uid: 17, gid: 18, additional_gids: vec![19] })
            .hostname("inside")
            .bind_read_only(&data, "/tmp/ro")
            .bind(&data, "/tmp/rw")
            .tmpfs(fresh, 1 << 20)
            .read_only(true)
            .ulimit("RLIMIT_NOFILE", 77, 88)
            .cap_drop("ALL")
            .cap_add("net_bind_service")
            .no_new_privileges(true);
        let script = "echo $GREETING-$EMPTY-$PATH; pwd; id -u; id -g; id -G; hostname; cat ro/file; \
            touch ro/x 2>/dev/null || echo read-only; touch /x 2>/dev/null || echo read-only root; \
            touch $FRESH/x && echo tmpfs; ulimit -n; ulimit -Hn; \
            grep -E 'CapBnd|NoNewPrivs' /proc/self/status | tr -d '\\t'";
        let told = printed(&supervisor, options, script).await;
        let expected = "hello--/bin:/usr/bin\n/tmp\n17\n18\n18 19\ninside\nfrom the host\nread-only\n\
            read-only root\ntmpfs\n77\n88\nCapBnd:0000000000000400\nNoNewPrivs:1\n";
        assert_eq!(told, expected);
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_those_of_its_cgroup() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let options = scratch.script("exec sleep 100000").memory_limit(64 << 20).pids_limit(33);
    let container = supervisor.run(options.cpu_limit(500)).await.unwrap();
    let stats = container.stats().await.unwrap();
    assert_eq!(stats.memory_limit_bytes, Some(64 << 20));
    let id = container.id().clone();
    let read = |names: &[&str]| {
        let dirs = holdfast_tests::cgroups_of(&id);
        let mut found = dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
        let found = found.find(|path| path.exists()).expect("a file of its cgroup");
        std::fs::read_to_string(found).unwrap().trim().to_owned()
    };
    assert_eq!(read(&["pids.max"]), "33");
    assert!(["50000", "50000 100000"].contains(&&*read(&["cpu.max", "cpu.cfs_quota_us"])));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_last_change_is_made_to_what_the_runtime_is_given() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor
        .run_with(scratch.script("hostname"), |spec| {
            spec.set_hostname(Some("by-hand".to_owned()));
        })
        .await
        .unwrap();
    let output = soon("the output", container.output()).await.unwrap();
    assert_eq!(output.stdout, b"by-hand\n");
    let config = std::fs::read_to_string(container.info().bundle.join("config.json")).unwrap();
    assert!(config.contains("by-hand"), "{config}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for (options, reason) in [
        (scratch.script("true").env("NOVALUE"), "NOVALUE"),
        (scratch.script("true").cwd("tmp"), "absolute"),
        (scratch.script("true").bind("/etc", "etc"), "absolute"),
        (scratch.script("true").ulimit("RLIMIT_CORE", 2, 1), "RLIMIT_CORE"),
    ] {
        let error = supervisor.run(options).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    assert_eq!(scratch.leftovers(), [""; 0]);
    let container = supervisor.run(scratch.script("exec sleep 100000")).await.unwrap();
    let nothing = ExecOptions::new(Vec::<String>::new());
    assert_eq!(container.exec(nothing).await.unwrap_err().kind(), ErrorKind::Invalid);
    let exec = ExecOptions::new(["true"]).env("=x");
    assert_eq!(container.exec(exec).await.unwrap_err().kind(), ErrorKind::Invalid);
    scratch.close(supervisor).await;
}

/// Returns the runtime under test and the embedded one.
fn runtimes() -> [String; 2] {
    let own = holdfast_tests::binary("holdfast-oci");
    [holdfast_tests::runtime(), &own].map(|path| path.display().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_or_a_cgroup_by_which_the_host_would_change_is_refused_for_each_runtime() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let victim = scratch.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    let rootfs = scratch.bundle().join("rootfs");
    for runtime in &runtimes() {
        for name in ["dev", "proc", "sys"] {
            let place = rootfs.join(name);
            let _ = std::fs::remove_dir(&place);
            std::os::unix::fs::symlink(&victim, &place).unwrap();
            let bundle = scratch.options(["true"]);
            for options in [bundle, ContainerOptions::rootfs(&rootfs).args(["true"])] {
                let error = supervisor.run(options.runtime(runtime)).await.unwrap_err();
                let expected = format!("/{name} is a symbolic link, and has to be a directory");
                assert!(error.to_string().contains(&expected), "{error}");
            }
            std::fs::remove_file(&place).unwrap();
            std::fs::create_dir(&place).unwrap();
        }
        for path in ["/", "/.", "..", "/a/../..", "/../b"] {
            let cgroup = path.to_owned();
            let run =
                supervisor.run_with(scratch.options(["true"]).runtime(runtime), move |spec| {
                    if let Some(linux) = spec.linux_mut() {
                        linux.set_cgroups_path(Some(cgroup.into()));
                    }
                });
            // The typed change comes after the options, and is checked all the same.
            let error = run.await.unwrap_err();
            assert!(error.to_string().contains("not a cgroup below the root"), "{path}: {error}");
        }
    }
    assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
    assert!(supervisor.list().is_empty());
    scratch.close(supervisor).await;
}

/// Returns the interfaces in /proc/net/dev.
fn interfaces(text: &str) -> Vec<String> {
    let mut names: Vec<_> =
        text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_is_loopback_alone_or_the_hosts() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let rootfs = scratch.bundle().join("rootfs");
    let hosts = interfaces(&std::fs::read_to_string("/proc/net/dev").expect("read /proc"));
    for runtime in &runtimes() {
        let bare = || ContainerOptions::rootfs(&rootfs).runtime(runtime);
        let bundle = || scratch.options(["true"]).runtime(runtime);
        for (options, shares) in [
            (bare(), false),
            (bare().network(Network::None), false),
            (bare().network(Network::Host), true),
            (bundle(), false),
            (bundle().network(Network::Host), true),
        ] {
            // To an address of the loopback interface, which answers only if the interface is up.
            let script = "cat /proc/net/dev; nc -w 1 127.0.0.1 9 </dev/null 2>&1; \
                ip link show lo | grep -q LOWER_UP && echo up";
            let text = printed(&supervisor, options, script).await;
            let found = interfaces(text.split("nc:").next().unwrap_or_default());
            let context = format!("{runtime}: {text}");
            assert_eq!(found == hosts && hosts.len() > 1, shares && hosts.len() > 1, "{context}");
            assert!(shares || found == ["lo"], "{context}");
            assert!(shares || text.ends_with("up\n"), "{context}");
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_has_a_user_and_capabilities_of_its_own() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.script("exec sleep 100000")).await.unwrap();
    let script = "id -u; id -g; echo $A; pwd; grep CapBnd /proc/self/status | tr -d '\\t'";
    let options = ExecOptions::new(["sh", "-c", script])
        .user(User { uid: 3, gid: 4, ..User::default() })
        .env("A=b")
        .cwd("/proc")
        .cap_drop("ALL");
    let exec = container.exec(options).await.unwrap();
    let output = soon("the output", exec.output()).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "3\n4\nb\n/proc\nCapBnd:0000000000000000\n"
    );
    assert_eq!(exec.try_wait().map(|exit| exit.status), Some(ExitStatus::Code(0)));
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_are_kept_changed_and_looked_for() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let options = scratch.script("exec sleep 100000").label("app", "web").label("tier", "1");
    let web = supervisor.run(options).await.unwrap();
    let other = scratch.script("exec sleep 100000").label("app", "db");
    let db = supervisor.run(other).await.unwrap();
    let ids = |supervisor: &Supervisor, name: &str, value: Option<&str>| -> Vec<_> {
        let all = supervisor.list_with_label(name, value);
        all.iter().map(|container| container.id().clone()).collect()
    };
    assert_eq!(ids(&supervisor, "app", Some("web")), [web.id().clone()]);
    assert_eq!(ids(&supervisor, "app", None).len(), 2);
    let changed = BTreeMap::from([("app".to_owned(), "front".to_owned())]);
    web.set_labels(changed.clone()).await.unwrap();
    assert_eq!(web.info().labels, changed);
    let (web, db) = (web.id().clone(), db.id().clone());
    soon("the shutdown", supervisor.shutdown()).await;
    let supervisor = scratch.open().await;
    assert_eq!(supervisor.get(&web).unwrap().labels(), changed);
    assert_eq!(ids(&supervisor, "app", Some("db")), [db]);
    let container = supervisor.get(&web).unwrap();
    container.delete_forced().await.unwrap();
    let stale = container.set_labels(BTreeMap::new()).await.unwrap_err();
    assert!(matches!(stale, Error::NotFound(_)), "{stale}");
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_time_to_end_and_kills_what_does_not() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let waits = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let polite = supervisor.run(scratch.script(waits)).await.unwrap();
    holdfast_tests::said(&polite, "ready").await;
    let long = Duration::from_secs(60);
    let exit = soon("the stop", polite.stop(SIGTERM, long)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(7));
    // Once more: it has ended, and that is what was asked for.
    assert_eq!(soon("the stop", polite.stop(SIGTERM, long)).await.unwrap(), exit);
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let deaf = supervisor.run(scratch.script(deaf)).await.unwrap();
    holdfast_tests::said(&deaf, "ready").await;
    assert_eq!(deaf.try_wait(), None);
    let exit = soon("the stop", deaf.stop(SIGTERM, Duration::from_millis(100))).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Signal(SIGKILL));
    // A paused one could not act on a signal.
    let paused = supervisor.run(scratch.script(waits)).await.unwrap();
    holdfast_tests::said(&paused, "ready").await;
    paused.pause().await.unwrap();
    let exit = soon("the stop", paused.stop(SIGTERM, long)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(7));
    assert_eq!(status(&paused).await, ExitStatus::Code(7));
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_command_line_has_them_too() {
    let holdfast = Holdfast::start().await;
    let id = unique_id("options").to_string();
    let rootfs = holdfast.scratch.bundle().join("rootfs").display().to_string();
    let data = holdfast.scratch.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let volume = format!("{}:/mnt:ro", data.display());
    let script =
        "echo $A; pwd; id -u; hostname; ulimit -n; touch /mnt/x 2>/dev/null || echo read-only";
    let args = [
        "run",
        "--name",
        &id,
        "--rootfs",
        &rootfs,
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "-u",
        "5:6",
        "--hostname",
        "h",
        "-v",
        &volume,
        "--ulimit",
        "nofile=99",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        "--cap-drop",
        "ALL",
        "--label",
        "app=web",
        "--tmpfs",
        "/tmp:1m",
        "--",
        "sh",
        "-c",
        script,
    ];
    let ran = holdfast.run(&args).await;
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), "b\n/tmp\n5\nh\n99\nread-only\n"),
        "{ran:?}"
    );
    assert_eq!(holdfast.inspect(&id).await["labels"]["app"], "web");
    let listed = holdfast.json(&["ps", "-a", "--label", "app=web", "--json"]).await;
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    let none = holdfast.json(&["ps", "-a", "--label", "app=db", "--json"]).await;
    assert_eq!(none.as_array().map(Vec::len), Some(0), "{none}");
    for args in [
        ["--cpus", "many"],
        ["--ulimit", "nofile"],
        ["-v", "nowhere"],
        ["-u", ":5"],
        ["-m", "lots"],
    ] {
        let args = [&["run", "--rootfs", &rootfs][..], &args, &["--", "true"]].concat();
        holdfast.fails(125, &args).await;
    }
    holdfast.close().await;
}
