//! Fields of the OCI runtime specification's config.json: each is applied, as seen in the container, or
//! refused by its name; by the embedded runtime and by runc beside it. docs/oci-runtime.md has the table.
//! Mounts and hooks have files of their own.
//!
//! At revision 8c80469 the embedded runtime ignored in silence: `selinuxLabel`, `resources.unified`, `rdma`,
//! `blockIO.weightDevice`, `disableOOMKiller` and a lone `cpu.burst` on cgroup version 1, a namespace and an
//! rlimit that are there twice, a relative `cwd`. A limit of one process, of ten open files or of 10 MB of
//! addresses failed its own processes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use holdfast_tests::oci::{both, embedded};
use holdfast_tests::skip;
use serde_json::{Value, json};

/// Sets a field by its pointer; objects on the way are made.
fn set(config: &mut Value, pointer: &str, value: Value) {
    let field = pointer[1..].split('/').fold(config, |at, name| &mut at[name]);
    *field = value;
}

fn version_1() -> bool {
    Path::new("/sys/fs/cgroup/memory").is_dir()
}

#[test]
fn a_field_is_seen_in_the_container() {
    for oci in both() {
        for (pointer, value, script, expected) in [
            ("/process/oomScoreAdj", json!(500), "cat /proc/self/oom_score_adj", "500\n"),
            ("/process/user/umask", json!(0o77), "umask", "0077\n"),
            ("/process/user/additionalGids", json!([5, 6]), "id -G", "0 5 6\n"),
            ("/process/cwd", json!("/new/one"), "pwd; stat -c %a /new/one", "/new/one\n755\n"),
            (
                "/linux/sysctl",
                json!({ "net.ipv4.ip_forward": "1" }),
                "cat /proc/sys/net/ipv4/ip_forward",
                "1\n",
            ),
            (
                "/linux/devices",
                json!([{ "path": "/dev/own", "type": "c", "major": 1, "minor": 3, "fileMode": 384,
                         "uid": 3, "gid": 4 }]),
                "stat -c '%F %a %u:%g' /dev/own",
                "character special file 600 3:4\n",
            ),
        ] {
            let _ = fs::remove_dir_all(oci.rootfs().join("new"));
            let made = oci.run(script, |config| set(config, pointer, value));
            assert_eq!(made.said(), expected, "{pointer}, {oci:?}");
        }
    }
}

#[test]
fn fields_that_runc_1_1_does_not_know_are_applied() {
    let oci = embedded();
    for (pointer, value, script, expected) in [
        ("/domainname", json!("dom"), "cat /proc/sys/kernel/domainname", "dom\n"),
        ("/linux/personality", json!({ "domain": "LINUX32" }), "uname -m", "i686\n"),
        (
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 3 }),
            "ionice -p 1",
            "idle\n",
        ),
        (
            "/process/scheduler",
            json!({ "policy": "SCHED_BATCH", "nice": 5 }),
            "cut -d' ' -f19,41 /proc/1/stat",
            "5 3\n",
        ),
    ] {
        if pointer.ends_with("personality") && cfg!(not(target_arch = "x86_64")) {
            continue;
        }
        let made = oci.run(script, |config| set(config, pointer, value));
        assert_eq!(made.said(), expected, "{pointer}");
    }
    let script = "cut -d. -f1 /proc/uptime";
    let before: u64 = oci.run(script, |_| ()).said().trim().parse().expect("a number");
    let made = oci.run(script, |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().expect("an array");
        namespaces.push(json!({ "type": "time" }));
        config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 100_000 } });
    });
    let after: u64 = made.said().trim().parse().expect("a number");
    assert!(after >= before + 100_000, "{before}, {after}");
}

#[test]
fn limits_are_those_of_the_configuration_however_low() {
    for oci in both() {
        for (name, limit, line) in [
            ("RLIMIT_NOFILE", 10_u64, "Max open files"),
            ("RLIMIT_AS", 10_000_000, "Max address space"),
            ("RLIMIT_FSIZE", 1024, "Max file size"),
            ("RLIMIT_NPROC", 2, "Max processes"),
            ("RLIMIT_STACK", 1_048_576, "Max stack size"),
            ("RLIMIT_CORE", 0, "Max core file size"),
            ("RLIMIT_SIGPENDING", 7, "Max pending signals"),
        ] {
            // The runtimes need a few open files until the program is executed.
            let soft = if name == "RLIMIT_NOFILE" { limit } else { limit / 2 };
            let made = oci.run("exec cat /proc/self/limits", |config| {
                config["process"]["rlimits"] =
                    json!([{ "type": name, "soft": soft, "hard": limit }]);
                if name == "RLIMIT_CORE" {
                    // The kernel asks who sets another user's limits.
                    config["process"]["user"] = json!({ "uid": 5, "gid": 6 });
                }
            });
            let said = made.said();
            let found = said
                .lines()
                .find_map(|it| it.strip_prefix(line))
                .unwrap_or_else(|| panic!("{name}, {oci:?}: {said}"));
            let found: Vec<&str> = found.split_whitespace().take(2).collect();
            assert_eq!(found, [soft.to_string(), limit.to_string()], "{name}, {oci:?}");
        }
        let made = oci.run("true", |config| {
            let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX });
            config["process"]["rlimits"] = json!([limit]);
        });
        let reason = made.reason();
        let named = reason.contains("RLIMIT_NOFILE") || oci.is_runc();
        assert!(named && reason.to_lowercase().contains("not permitted"), "{reason}");
    }
}

#[test]
fn a_container_of_one_process_can_be_made() {
    for oci in both() {
        let made = oci.run("sleep 0 & wait; echo no", |config| {
            set(config, "/linux/resources/pids", json!({ "limit": 1 }));
        });
        let said = made.said();
        assert!(said.contains("can't fork") && !said.contains("no\n"), "{said}, {oci:?}");
        let made = oci.run("sleep 0 & wait; echo yes", |config| {
            set(config, "/linux/resources/pids", json!({ "limit": 0 }));
        });
        assert_eq!(made.said(), "yes\n", "{oci:?}");
    }
}

#[test]
fn resources_are_those_of_the_cgroup() {
    if !version_1() {
        return skip("about files of cgroup version 1, and this machine has version 2 alone");
    }
    for oci in both() {
        for (controller, resources, file, expected) in [
            (
                "memory",
                json!({ "memory": { "disableOOMKiller": true } }),
                "memory.oom_control",
                "oom_kill_disable 1",
            ),
            (
                "memory",
                json!({ "memory": { "limit": 50_003_968 } }),
                "memory.limit_in_bytes",
                "50003968",
            ),
            ("cpu", json!({ "cpu": { "shares": 77 } }), "cpu.shares", "77"),
            (
                "cpu",
                json!({ "cpu": { "quota": 50_000, "period": 100_000 } }),
                "cpu.cfs_quota_us",
                "50000",
            ),
            ("cpuset", json!({ "cpu": { "cpus": "0" } }), "cpuset.cpus", "0"),
            ("pids", json!({ "pids": { "limit": 33 } }), "pids.max", "33"),
        ] {
            let script = format!(
                "cat /cgroup$(grep '[:,]{controller}[:,]' /proc/self/cgroup | cut -d: -f3)/{file}"
            );
            let made = oci.run(&script, |config| {
                for (name, value) in resources.as_object().expect("an object") {
                    config["linux"]["resources"][name] = value.clone();
                }
                let source = format!("/sys/fs/cgroup/{controller}");
                let mount = json!({ "destination": "/cgroup", "type": "bind", "source": source,
                                    "options": ["bind", "ro"] });
                config["mounts"].as_array_mut().expect("an array").push(mount);
            });
            let said = made.said();
            assert_eq!(said.lines().next(), Some(expected), "{resources}, {oci:?}");
        }
    }
}

#[test]
fn what_can_not_be_applied_is_refused_by_the_name_of_the_field() {
    let oci = embedded();
    let limit = json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 });
    for (pointer, value, named) in [
        ("/ociVersion", json!("2.0.0"), "ociVersion \"2.0.0\""),
        ("/ociVersion", json!(null), "ociVersion is missing"),
        ("/process/cwd", json!("bin"), "process: cwd must be an absolute path"),
        ("/process/env", json!(["A"]), "process: env: \"A\""),
        ("/process/selinuxLabel", json!("a:b:c"), "process: selinuxLabel"),
        ("/process/oomScoreAdj", json!(5000), "process: oomScoreAdj: 5000"),
        ("/process/rlimits", json!([limit, limit]), "process: rlimits: RLIMIT_CORE"),
        ("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 9 }), "ioPriority"),
        ("/linux/personality", json!({ "domain": "LINUX", "flags": ["A"] }), "personality.flags"),
        ("/linux/netDevices", json!({ "nope0": {} }), "netDevices: there is no nope0"),
        ("/linux/resources/rdma", json!({ "a": { "hcaHandles": 1 } }), "linux.resources: rdma"),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "pid", "path": "/no/such" }]),
            "namespaces: pid: path /no/such: No such file",
        ),
        (
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "mount" }]),
            "namespaces: mount",
        ),
        ("/linux/sysctl", json!({ "net.ipv4.nope": "1" }), "linux.sysctl: net.ipv4.nope"),
        ("/windows", json!({ "layerFolders": ["a"] }), "windows"),
    ] {
        let reason = oci.run("true", |config| set(config, pointer, value)).reason();
        assert!(reason.contains(named), "{pointer}: {reason}");
    }
    if !Path::new("/sys/fs/resctrl/schemata").exists() {
        let rdt = json!({ "l3CacheSchema": "L3:0=f" });
        let reason = oci.run("true", |config| set(config, "/linux/intelRdt", rdt)).reason();
        assert!(reason.contains("intelRdt: no resctrl"), "{reason}");
    }
}

#[test]
fn resources_of_another_version_of_cgroups_are_refused() {
    if !version_1() {
        return skip("about what cgroup version 1 can't do, and this machine has version 2 alone");
    }
    for oci in both() {
        for (field, value) in [
            ("unified", json!({ "memory.high": "100000000" })),
            ("blockIO", json!({ "leafWeight": 500 })),
        ] {
            let pointer = format!("/linux/resources/{field}");
            let reason = oci.run("true", |config| set(config, &pointer, value.clone())).reason();
            let named = ["unified", "leafWeight", "leaf_weight"];
            assert!(named.into_iter().any(|name| reason.contains(name)), "{reason}, {oci:?}");
        }
    }
}

#[test]
fn a_limit_of_memory_that_is_too_small_is_named() {
    for oci in both() {
        let made = oci.run("true", |config| {
            set(config, "/linux/resources/memory", json!({ "limit": 100_000 }));
        });
        let reason = made.reason();
        assert!(reason.contains("memory") && reason.contains("limit"), "{reason}");
        assert!(reason.contains("100000"), "{reason}");
    }
}

#[test]
fn a_masked_link_masks_what_it_leads_to() {
    for oci in both() {
        fs::write(oci.rootfs().join("secret"), "secret").expect("write a file");
        symlink("secret", oci.rootfs().join("link")).expect("make a link");
        let made = oci.run("cat /secret /link", |config| {
            config["linux"]["maskedPaths"] = json!(["/link", "/no/such"]);
        });
        assert_eq!(made.said(), "", "{oci:?}");
    }
}
