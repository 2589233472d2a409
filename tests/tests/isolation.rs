//! What a container may not reach of its host: devices, and the cgroups of others. Each test is an attack
//! from inside, once in the configuration that `--rootfs host` makes and once in a bundle that has no
//! device rules, and once by the embedded runtime and once by runc beside it.
//!
//! Each was made by hand at revision 91d2b83 before it was prevented. With holdfast-oci, on a machine
//! with cgroups of both versions, the output was:
//!
//! ```text
//! b 7 0 < OPENED          c 1 11 >> OPENED          c 4 0 <> OPENED
//! 9:name=systemd:/   5:devices:/holdfast/d1ba31820138.9d9c   0::/
//! VICTIM KILLED           max.descendants 7
//! ```
//!
//! With runc it was what these tests expect.

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use holdfast_tests::runtime::in_path;
use holdfast_tests::victim::Victim;
use holdfast_tests::{Holdfast, binary, cgroups_of, edit_json, eventually, skip, unique_id};
use serde_json::json;

/// The runtimes that are attacked.
fn runtimes() -> Vec<PathBuf> {
    [binary("holdfast-oci")].into_iter().chain(in_path("runc")).collect()
}

/// A daemon with a runtime, and what of `run` makes the containers that are attacked.
struct Attack {
    holdfast: Holdfast,
    name: String,
    kinds: [Vec<String>; 2],
}

impl Attack {
    async fn on(runtime: &Path) -> Self {
        let mut holdfast = Holdfast::without_daemon();
        holdfast
            .start_daemon_by(|command| {
                command.arg("--runtime").arg(runtime);
            })
            .await;
        let bundle = holdfast.scratch.bundle();
        edit_json(&bundle.join("config.json"), |config| {
            config["linux"]["resources"] = json!({});
            config["process"]["rlimits"] = json!([]);
            for set in ["bounding", "effective", "permitted"] {
                let set = config["process"]["capabilities"][set].as_array_mut();
                // To make devices; to be root in a user namespace of one's own.
                let added = [json!("CAP_MKNOD"), json!("CAP_SETFCAP")];
                set.expect("an array").extend(added);
            }
            // The host's unshare(1): that of busybox knows no cgroup namespaces.
            for dir in ["/usr", "/lib", "/lib64"].into_iter().filter(|dir| Path::new(dir).is_dir())
            {
                config["mounts"].as_array_mut().expect("an array").push(json!({
                    "destination": dir, "type": "bind", "source": dir, "options": ["rbind", "ro"],
                }));
            }
        });
        let bundle = bundle.to_str().expect("a path in UTF-8");
        // The seccomp profile would refuse what the attacks begin with; so they are made without it.
        let unconfined = ["--security-opt", "seccomp=unconfined"];
        let host = [&["--rootfs", "host"], unconfined.as_slice()].concat();
        let kinds = [host, vec!["--bundle", bundle]];
        let kinds = kinds.map(|kind| kind.into_iter().map(str::to_owned).collect());
        Self { holdfast, name: runtime.display().to_string(), kinds }
    }

    /// `run` with these options and this script, by a kind of container.
    async fn run(&self, kind: &[String], options: &[&str], script: &str) -> String {
        let kind: Vec<&str> = kind.iter().map(String::as_str).collect();
        let args = [&["run"], options, &kind, &["--", "sh", "-c", script]].concat();
        self.holdfast.ok(&args).await
    }

    async fn close(self) {
        // With `--rm` the answer comes before the deletion.
        self.holdfast.nothing_left().await;
        self.holdfast.close().await;
    }
}

/// A shell's function that makes a device and opens it for reading, for writing and for both.
const TRY: &str = r#"
cd /dev
try() {
    mknod probe "$@" || echo "$* not made"
    for how in '<' '>>' '<>'; do
        if why=$( (eval "true $how probe") 2>&1 ); then why=opened; fi
        echo "$* $how: ${why##*: }"
    done
    rm -f probe
}
"#;

/// The block devices of this machine, the disk of `/` and loop and ram devices among them whether they
/// are there or not: `b 8 0`.
fn disks() -> Vec<String> {
    let root = fs::metadata("/").expect("look at /").st_dev();
    let (major, minor) = (nix::sys::stat::major(root), nix::sys::stat::minor(root));
    let mut disks = vec![format!("b {major} {minor}"), "b 7 0".to_owned(), "b 1 0".to_owned()];
    for entry in fs::read_dir("/sys/dev/block").into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().expect("two numbers");
        disks.push(format!("b {}", name.replace(':', " ")));
    }
    disks.retain(|disk| !disk.starts_with("b 0 "));
    disks.sort();
    disks.dedup();
    disks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_opens_no_device_of_the_host() {
    // Of memory, of ports, of the kernel's messages, of a terminal of the machine.
    let characters = ["c 1 1", "c 1 4", "c 1 11", "c 4 0"].map(str::to_owned);
    let foreign: Vec<String> = disks().into_iter().chain(characters).collect();
    // null, zero, full, random, urandom; tty, which it has not, but might open.
    let own = ["c 1 3", "c 1 5", "c 1 7", "c 1 8", "c 1 9", "c 5 0"];
    let all = foreign.iter().map(String::as_str).chain(own);
    let script: String = all.map(|device| format!("try {device}\n")).collect();
    for runtime in runtimes() {
        let attack = Attack::on(&runtime).await;
        for kind in &attack.kinds {
            let options = ["--rm", "--cap-add", "MKNOD"];
            let out = attack.run(kind, &options, &format!("{TRY}{script}")).await;
            let context = format!("{} {kind:?}:\n{out}", attack.name);
            for device in &foreign {
                for how in ["<", ">>", "<>"] {
                    let refused = format!("{device} {how}: Operation not permitted\n");
                    assert!(out.contains(&refused), "{device} {how}: {context}");
                }
            }
            for device in own {
                for how in ["<", ">>", "<>"] {
                    let gets =
                        if device == "c 5 0" { "No such device or address" } else { "opened" };
                    let allowed = format!("{device} {how}: {gets}\n");
                    assert!(out.contains(&allowed), "{device} {how}: {context}");
                }
            }
        }
        attack.close().await;
    }
}

/// The cgroups of a process by hierarchy, as the host sees them.
fn cgroups(pid: &str) -> BTreeMap<String, PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("read a process's cgroups");
    let line = |line: &str| {
        let (_, rest) = line.split_once(':').expect("a number");
        let (name, path) = rest.split_once(':').expect("a name");
        (name.to_owned(), PathBuf::from(path))
    };
    text.lines().map(line).collect()
}

/// The processes that are in the same pid namespace as this one.
fn with_the_pid_namespace_of(pid: i64) -> Vec<String> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(&pid.to_string()).expect("the container runs");
    let all = holdfast_sys::proc::all().expect("list the processes").into_iter();
    let all = all.map(|pid| pid.to_string());
    all.filter(|pid| namespace(pid).as_ref() == Some(&wanted)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_of_a_container_is_in_a_cgroup_of_its_own_in_every_hierarchy() {
    const WAITS: &str = "echo ready; sleep 100000 & wait";
    for runtime in runtimes() {
        let attack = Attack::on(&runtime).await;
        let daemon = attack.holdfast.daemon().process().pid.to_string();
        let hosts = [cgroups("self"), cgroups(&daemon)];
        // That of the bundle has no cgroup namespace.
        for kind in &attack.kinds {
            let id = attack.run(kind, &["--detach"], WAITS).await.trim().to_owned();
            attack.holdfast.said(&id, "ready").await;
            let mut exec = attack.holdfast.begin(&["exec", &id, "--", "sh", "-c", WAITS]);
            assert_eq!(exec.line().await, "ready");
            let pid = attack.holdfast.inspect(&id).await["pid"].as_i64().expect("a pid");
            // The shells say so before they have begun what they wait for.
            let all = || with_the_pid_namespace_of(pid);
            eventually("both to wait for a child", || all().len() == 4).await;
            for process in &all() {
                for (name, path) in cgroups(process) {
                    let above = |host: &BTreeMap<String, PathBuf>| host[&name].starts_with(&path);
                    assert!(
                        !hosts.iter().any(above),
                        "{} {kind:?}: process {process} is in {name}:{}",
                        attack.name,
                        path.display()
                    );
                }
            }
            attack.holdfast.ok(&["delete", "--force", &id]).await;
        }
        attack.close().await;
    }
}

/// A script that mounts each hierarchy in a user and a cgroup namespace of its own and does this there.
/// It says of each that is mounted.
fn mounts_all(deed: &str) -> String {
    let mounts: String = cgroups("self")
        .keys()
        .enumerate()
        .map(|(number, name)| {
            let kind = match name.as_str() {
                "" => "cgroup2".to_owned(),
                name if name.starts_with("name=") => format!("cgroup -o none,{name}"),
                name => format!("cgroup -o {name}"),
            };
            format!("mkdir h{number}; mount -t {kind} none h{number} && (cd h{number}; echo mounted; {deed})\n")
        })
        .collect();
    format!("cd /dev; /usr/bin/unshare -UCm --map-root-user sh -c '{mounts}:' 2>&1")
}

/// Whether this machine lets a container make the attack.
fn can_unshare() -> bool {
    let unshare =
        Command::new("/usr/bin/unshare").args(["-UCm", "--map-root-user", "true"]).output();
    unshare.is_ok_and(|output| output.status.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_can_mount_of_cgroups_is_its_own() {
    if !can_unshare() {
        return skip("there is no unshare(1), or nobody may make user namespaces");
    }
    for runtime in runtimes() {
        let attack = Attack::on(&runtime).await;
        for kind in &attack.kinds {
            let mut victim = Victim::new();
            // A process of another pid namespace has the number 0.
            let deed = format!(
                "grep -qx 0 cgroup.procs && echo foreign; cd {} || exit; echo seen;
                 echo 1 > cgroup.kill; echo 7 > cgroup.max.descendants; echo $$ > cgroup.procs",
                victim.name()
            );
            let out = attack.run(kind, &["--rm"], &mounts_all(&deed)).await;
            let context = format!("{} {kind:?}:\n{out}", attack.name);
            assert!(out.contains("mounted\n"), "the attack was not made: {context}");
            assert!(!out.contains("foreign\n") && !out.contains("seen\n"), "{context}");
            assert!(victim.is_unharmed(), "{context}");
            // The same from an exec.
            let id = attack.run(kind, &["--detach"], "sleep 100000").await.trim().to_owned();
            let script = mounts_all(&deed);
            let out = attack.holdfast.ok(&["exec", &id, "--", "sh", "-c", &script]).await;
            assert!(out.contains("mounted\n"), "{out}");
            assert!(!out.contains("foreign\n") && !out.contains("seen\n"), "exec: {context}{out}");
            assert!(victim.is_unharmed(), "exec: {context}{out}");
            attack.holdfast.ok(&["delete", "--force", &id]).await;
        }
        attack.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_removes_what_a_container_made_of_its_cgroups() {
    if !can_unshare() {
        return skip("there is no unshare(1), or nobody may make user namespaces");
    }
    // A cgroup of threads can't be asked for its processes.
    let deed = "mkdir -p nested/deeper threads; echo threaded > threads/cgroup.type; echo made";
    let script = format!("{}; echo ready; sleep 100000 & wait", mounts_all(deed));
    // runc 1.1 leaves nested ones.
    let attack = Attack::on(&binary("holdfast-oci")).await;
    for kind in &attack.kinds {
        let id = unique_id("nested");
        let (name, options) = (id.as_str(), ["--detach", "--name", id.as_str()]);
        attack.run(kind, &options, &script).await;
        attack.holdfast.said(name, "ready").await;
        let out = attack.holdfast.ok(&["logs", name]).await;
        assert!(out.contains("made\n"), "{out}");
        let hierarchies = cgroups("self").len();
        assert_eq!(cgroups_of(&id).len(), hierarchies, "{:?}", cgroups_of(&id));
        attack.holdfast.ok(&["delete", "--force", name]).await;
        assert_eq!(cgroups_of(&id), [] as [PathBuf; 0], "{kind:?}: {out}");
    }
    attack.close().await;
}
