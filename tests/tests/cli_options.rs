//! The options of `run` and `create` as the container finds them, with a root file system and with a
//! bundle, with runc and with the embedded runtime.

use std::os::unix::fs::MetadataExt;

use holdfast_tests::{Holdfast, runtime_name, unique_id};
use serde_json::json;

fn name() -> String {
    unique_id("options").to_string()
}

/// The root file system and the bundle, as options.
fn sources(holdfast: &Holdfast) -> [[String; 2]; 2] {
    let bundle = holdfast.scratch.bundle();
    let text = |path: &std::path::Path| path.to_str().expect("a path in UTF-8").to_owned();
    [["--rootfs".to_owned(), text(&bundle.join("rootfs"))], ["--bundle".to_owned(), text(&bundle)]]
}

/// Runs a script with these options, from both sources, and returns what it printed, which is the same.
async fn printed(holdfast: &Holdfast, options: &[&str], script: &str) -> String {
    let mut outputs = Vec::new();
    for [source, path] in sources(holdfast) {
        let args = [&["run", &source, &path][..], options, &["--", "sh", "-c", script]];
        let ran = holdfast.run(&args.concat()).await;
        assert!(ran.code == Some(0) && ran.stderr.is_empty(), "{source} {options:?}: {ran:?}");
        outputs.push(ran.stdout);
    }
    assert_eq!(outputs[0], outputs[1], "{options:?}");
    outputs.swap_remove(0)
}

#[tokio::test]
async fn variables_come_from_options_from_files_and_from_us() {
    let holdfast = Holdfast::start().await;
    let file = holdfast.scratch.path().join("env");
    std::fs::write(&file, "# a comment\n\nA=file\nB=x=y # all of it\nOURS\n").unwrap();
    let [source, path] = &sources(&holdfast)[0];
    let mut command = holdfast.command(&["run", source, path, "--env-file"]);
    command.arg(&file).args(["-e", "A=option", "-e", "MINE", "-e", "UNSET", "--"]);
    command.args(["sh", "-c", "echo $A:$B:$OURS:$MINE:${UNSET-unset}"]);
    command.env("OURS", "1").env("MINE", "2").env_remove("UNSET");
    let ran = holdfast_tests::ran(command).await;
    assert_eq!(ran.stdout, "option:x=y # all of it:1:2:unset\n", "{ran:?}");
    std::fs::write(&file, "A=1\nNO NAME=x\n").unwrap();
    let file = file.to_str().unwrap();
    let args = ["run", source, path, "--env-file", file, "--", "true"];
    assert!(holdfast.fails(125, &args).await.contains("line 2"));
    holdfast.close().await;
}

#[tokio::test]
async fn a_user_is_found_by_name_in_the_container_and_for_an_exec_too() {
    let holdfast = Holdfast::start().await;
    let etc = holdfast.scratch.bundle().join("rootfs/etc");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n").unwrap();
    std::fs::write(etc.join("group"), "root:x:0:\nadm:x:4:web\nweb:x:34:\n").unwrap();
    let script = "echo $(id -u):$(id -g):$(id -G)";
    assert_eq!(printed(&holdfast, &["-u", "web"], script).await, "33:34:34 4\n");
    assert_eq!(printed(&holdfast, &["-u", "web:adm"], script).await, "33:4:4\n");
    assert_eq!(printed(&holdfast, &["-u", "5:6"], script).await, "5:6:6\n");
    let [source, path] = &sources(&holdfast)[0];
    let error = holdfast.fails(125, &["run", "-u", "nobody", source, path, "--", "true"]).await;
    assert!(error.contains("no user \"nobody\""), "{error}");
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let exec = ["exec", "-u", "web", "-w", "/bin", "-e", "A=b", &id];
    let exec = [&exec[..], &["sh", "-c", "id -u; pwd; echo $A"]].concat();
    assert_eq!(holdfast.ok(&exec).await, "33\n/bin\nb\n");
    let error = holdfast.fails(125, &["exec", "-u", "nobody", &id, "true"]).await;
    assert!(error.contains("no user"), "{error}");
    holdfast.close().await;
}

#[tokio::test]
async fn mounts_are_made_in_all_of_dockers_forms() {
    let holdfast = Holdfast::start().await;
    let data = holdfast.scratch.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("f"), "here\n").unwrap();
    let data = data.to_str().unwrap();
    let writes = "cat /mnt/f; touch /mnt/new 2>/dev/null && echo writes; rm -f /mnt/new";
    for (option, value, shown) in [
        ("-v", format!("{data}:/mnt"), "here\nwrites\n"),
        ("-v", format!("{data}:/mnt:ro"), "here\n"),
        ("-v", format!("{data}:/mnt:ro,rslave"), "here\n"),
        ("--mount", format!("type=bind,src={data},dst=/mnt"), "here\nwrites\n"),
        ("--mount", format!("type=bind,source={data},target=/mnt,readonly"), "here\n"),
    ] {
        assert_eq!(printed(&holdfast, &[option, &value], writes).await, shown, "{value}");
    }
    let size = "df -k /mnt | tail -n 1 | awk '{print $2}'";
    for (option, value) in [
        ("--tmpfs", "/mnt:1m"),
        ("--tmpfs", "/mnt:rw,noexec,nosuid,size=1024k"),
        ("--mount", "type=tmpfs,dst=/mnt,tmpfs-size=1m"),
    ] {
        assert_eq!(printed(&holdfast, &[option, value], size).await, "1024\n", "{value}");
    }
    let [source, path] = &sources(&holdfast)[0];
    for (option, value, said) in [
        ("--mount", "type=volume,src=a,dst=/mnt", "no volumes"),
        ("--mount", "type=bind,dst=/mnt", "src=PATH"),
        ("--tmpfs", "/mnt:huge=always", "no option of a tmpfs"),
        ("-v", "/a:/b:z", "no option of a mount"),
    ] {
        let error = holdfast.fails(125, &["run", option, value, source, path, "--", "true"]).await;
        assert!(error.contains(said), "{value}: {error}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn a_device_is_there_and_may_be_used_as_far_as_it_was_given() {
    let holdfast = Holdfast::start().await;
    let script = "head -c 3 /dev/given | wc -c; echo x > /dev/given && echo writes";
    let options = ["--device", "/dev/zero:/dev/given:rw"];
    assert_eq!(printed(&holdfast, &options, script).await, "3\nwrites\n");
    // One that no container has by itself: the kernel's log.
    let script = "test -c /dev/kmsg && (exec 3</dev/kmsg) && echo opens";
    let options = ["--device", "/dev/kmsg:r", "--cap-add", "SYSLOG"];
    assert_eq!(printed(&holdfast, &options, script).await, "opens\n");
    let [source, path] = &sources(&holdfast)[0];
    for (value, said) in [("/etc/passwd", "not a device"), ("/dev/zero:/x:q", "letters of rwm")] {
        let error = holdfast.fails(125, &["run", "--device", value, source, path]).await;
        assert!(error.contains(said), "{value}: {error}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn a_network_namespace_is_taken_by_its_path() {
    let holdfast = Holdfast::start().await;
    let options = ["--name", &name(), "--network", "none"];
    let id = holdfast.run_detached(&options, &["sleep", "100000"]).await;
    let pid = holdfast.inspect(&id).await["pid"].as_i64().unwrap();
    let path = format!("/proc/{pid}/ns/net");
    let inode = std::fs::metadata(&path).unwrap().ino();
    let network = format!("ns:{path}");
    let shown = printed(&holdfast, &["--network", &network], "readlink /proc/self/ns/net").await;
    assert_eq!(shown, format!("net:[{inode}]\n"));
    let [source, path] = &sources(&holdfast)[0];
    for (network, said) in [("ns:/no/such", "/no/such"), ("bridge", "sets up no networks")] {
        let error = holdfast.fails(125, &["run", "--network", network, source, path]).await;
        assert!(error.contains(said), "{network}: {error}");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn all_capabilities_are_granted_if_asked_for() {
    let holdfast = Holdfast::start().await;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    let script = "grep CapEff /proc/self/status | awk '{print $2}'";
    let all = printed(&holdfast, &["--cap-add", "ALL"], script).await;
    assert_eq!(all.trim(), own);
    let id = holdfast.run_detached(&["--name", &name()], &["sleep", "100000"]).await;
    let less = holdfast.ok(&["exec", &id, "sh", "-c", script]).await;
    assert_ne!(less.trim(), own);
    let exec = holdfast.ok(&["exec", "--privileged", &id, "sh", "-c", script]).await;
    assert_eq!(exec.trim(), own);
    holdfast.close().await;
}

#[tokio::test]
async fn an_entrypoint_takes_the_place_of_the_program() {
    let holdfast = Holdfast::start().await;
    for [source, path] in sources(&holdfast) {
        let args = ["run", &source, &path, "--entrypoint", "echo", "--", "a", "b"];
        assert_eq!(holdfast.ok(&args).await, "a b\n");
        let args = ["run", &source, &path, "--entrypoint", "pwd"];
        assert_eq!(holdfast.ok(&args).await, "/\n");
    }
    holdfast.close().await;
}

#[tokio::test]
async fn an_init_reaps_orphans_hands_signals_on_and_ends_as_the_program_does() {
    let holdfast = Holdfast::start().await;
    let script = "tr '\\0' ' ' < /proc/1/cmdline; test $$ -gt 1 && echo; echo not the first";
    let shown = printed(&holdfast, &["--init"], script).await;
    assert!(
        shown.starts_with("/dev/init sh -c ") && shown.ends_with("\nnot the first\n"),
        "{shown}"
    );
    for [source, path] in sources(&holdfast) {
        for (script, code) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let args = ["run", &source, &path, "--init", "--", "sh", "-c", script];
            assert_eq!(holdfast.run(&args).await.code, Some(code), "{source} {script}");
        }
    }
    let script = "trap 'exit 6' TERM; echo ready; while :; do sleep 0.1; done";
    let id = holdfast.run_detached(&["--name", &name(), "--init"], &["sh", "-c", script]).await;
    holdfast.said(&id, "ready").await;
    holdfast.ok(&["stop", &id]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "6\n");
    // The program itself would never reap what an exec leaves behind.
    let id = holdfast.run_detached(&["--name", &name(), "--init"], &["sleep", "100000"]).await;
    let script = "true & exec true";
    holdfast.ok(&["exec", &id, "sh", "-c", script]).await;
    let script = "while grep -q '^State:.Z' /proc/[0-9]*/status; do sleep 0.01; done; echo reaped";
    assert_eq!(holdfast.run(&["exec", &id, "sh", "-c", script]).await.stdout, "reaped\n");
    let bundle = holdfast.scratch.bundle();
    holdfast_tests::edit_json(&bundle.join("config.json"), |config| {
        config["process"]["args"] = json!(["sh", "-c", "echo as said"]);
    });
    let args = ["run", "--init", "--bundle", bundle.to_str().unwrap()];
    assert_eq!(holdfast.ok(&args).await, "as said\n");
    holdfast.close().await;
}

#[tokio::test]
async fn a_container_is_stopped_by_its_own_signal_and_time() {
    let holdfast = Holdfast::start().await;
    let script = "trap 'exit 8' HUP; trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let id = name();
    holdfast.run_detached(&["--name", &id, "--stop-signal", "HUP"], &["sh", "-c", script]).await;
    holdfast.said(&id, "ready").await;
    holdfast.ok(&["stop", &id]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "8\n");
    // It is as before after a restart of the container.
    holdfast.ok(&["start", &id]).await;
    assert_eq!(holdfast.inspect(&id).await["stopSignal"], 1);
    holdfast.ok(&["rm", "-f", &id]).await;
    // It ignores TERM, and has no time.
    let id = name();
    holdfast.run_detached(&["--name", &id, "--stop-timeout", "0"], &["sh", "-c", script]).await;
    holdfast.said(&id, "ready").await;
    holdfast.ok(&["stop", &id]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "137\n");
    assert_eq!(holdfast.inspect(&id).await["stopGraceMs"], 0);
    holdfast.close().await;
}

#[tokio::test]
async fn an_id_is_written_to_a_file_that_is_new_and_removed_if_there_is_no_container() {
    let holdfast = Holdfast::start().await;
    let file = holdfast.scratch.path().join("cid");
    let path = file.to_str().unwrap();
    let run = ["run", "--rootfs", "host", "--cidfile", path];
    let id = holdfast.ok(&[&run[..], &["-d", "--", "true"]].concat()).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), id.trim());
    let error = holdfast.fails(125, &[&run[..], &["--", "true"]].concat()).await;
    assert!(error.contains("exists"), "{error}");
    std::fs::remove_file(&file).unwrap();
    holdfast.ok(&[&run[..], &["--", "true"]].concat()).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap().len(), 12);
    std::fs::remove_file(&file).unwrap();
    holdfast.fails(127, &[&run[..], &["--", "no-such-program"]].concat()).await;
    assert!(!file.exists());
    holdfast.close().await;
}

#[tokio::test]
async fn signals_end_the_client_alone_if_they_are_not_forwarded() {
    let holdfast = Holdfast::start().await;
    let (id, bundle) = (name(), holdfast.scratch.bundle());
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let args = ["run", "--name", &id, "--sig-proxy=false", "--bundle", bundle.to_str().unwrap()];
    let mut run = holdfast.begin(&[&args[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(run.line().await, "ready");
    run.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(run.end().await.code, None);
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn what_is_written_to_an_overlay_is_the_containers_own() {
    let holdfast = Holdfast::start().await;
    let rootfs = holdfast.scratch.bundle().join("rootfs");
    let path = rootfs.to_str().unwrap();
    let id = name();
    let script = "echo new > /new; rm /bin/ls && echo removed; test -e /new && echo there";
    let run = ["run", "--name", &id, "--overlay", "--rootfs", path, "--", "sh", "-c", script];
    assert_eq!(holdfast.ok(&run).await, "removed\nthere\n", "{}", runtime_name());
    assert!(!rootfs.join("new").exists() && rootfs.join("bin/ls").exists());
    // The next run of the same container finds it.
    let upper = holdfast.root().join(&id).join(".bundle/upper/new");
    assert_eq!(std::fs::read_to_string(upper).unwrap(), "new\n");
    holdfast.ok(&["rm", &id]).await;
    let error = holdfast.fails(125, &["run", "--overlay", "--rootfs", "host", "--", "true"]).await;
    assert!(error.contains("--overlay"), "{error}");
    holdfast.close().await;
}

#[tokio::test]
async fn an_image_in_place_of_a_root_file_system_is_refused_with_what_to_do() {
    let holdfast = Holdfast::start().await;
    let layout = holdfast.scratch.path().join("layout");
    std::fs::create_dir(&layout).unwrap();
    for file in ["oci-layout", "index.json"] {
        std::fs::write(layout.join(file), "{}").unwrap();
    }
    let path = layout.to_str().unwrap();
    let error = holdfast.fails(125, &["run", "--rootfs", path, "--", "true"]).await;
    assert!(error.contains("umoci unpack"), "{error}");
    assert_eq!(holdfast.json(&["ps", "-a", "--json"]).await, json!([]));
    holdfast.close().await;
}
