//! Attacks from inside containers: each attack of `tests/src/bin/hostile` by a container of runc and by one
//! of holdfast-oci. docs/security.md has the table.
//!
//! The container is the one that `holdfast run --rootfs DIR` makes. The victims (processes, cgroups,
//! files, keys, sockets) are the test's own, and their state as seen from outside decides, not only what the
//! program says. Where that is possible a test also shows that its attack is real: with a defence
//! taken away the same attack succeeds. The defence is taken away by
//!
//! - a *privileged* container: a bundle with all capabilities, all devices, no cgroup namespace, no
//!   masked or read-only paths and no seccomp profile;
//! - *the host*: the program as it is, outside of a container, with a victim of the test's;
//! - an option: `--security-opt seccomp=unconfined`, `--no-new-keyring`, `--network host`,
//!   `--log file:PATH,direct=yes`.
//!
//! Without root's rights (`without_root`) the same attacks are made by containers of a plain user. There a
//! privileged container is none, so that nothing is shown to be real.
//!
//! `cargo xtask vm-test --part hostile` runs these tests under cgroup v2.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use holdfast_supervisor::TerminalSize;
use holdfast_sys::probe;
use holdfast_tests::processes::{shim_of, unified_cgroup_of};
use holdfast_tests::runtime::in_path;
use holdfast_tests::user::User;
use holdfast_tests::victim::Victim;
use holdfast_tests::{
    Holdfast, Proc, Pty, Ran, binary, cgroups_of, edit_json, eventually, executable, ran,
    shim_group, skip, unique_id,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// The host's capabilities in the order of their numbers, without `CAP_`.
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// No seccomp profile.
const UNCONFINED: [&str; 2] = ["--security-opt", "seccomp=unconfined"];

/// A daemon with the runtime under attack, and what its containers are made of.
struct Ground {
    holdfast: Holdfast,
    runtime: String,
}

impl Ground {
    async fn of(runtime: &Path) -> Self {
        let mut holdfast = Holdfast::without_daemon();
        holdfast
            .start_daemon_by(|command| {
                command.arg("--runtime").arg(runtime);
            })
            .await;
        let ground = Self { holdfast, runtime: runtime.display().to_string() };
        executable::copied(binary("hostile"), ground.rootfs().join("bin/hostile"));
        for dir in ["proc", "sys", "dev", "tmp", "etc"] {
            let _ = fs::create_dir(ground.rootfs().join(dir));
        }
        let bundle = ground.holdfast.scratch.bundle();
        edit_json(&bundle.join("config.json"), |config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["rlimits"] = json!([]);
            config["root"]["path"] = json!(ground.rootfs());
        });
        ground.bundle("plain", |config| {
            let usual = [
                "CHOWN",
                "DAC_OVERRIDE",
                "FOWNER",
                "FSETID",
                "KILL",
                "NET_BIND_SERVICE",
                "SETFCAP",
                "SETGID",
                "SETPCAP",
                "SETUID",
                "SYS_CHROOT",
            ];
            grant(config, &usual.map(str::to_owned));
        });
        ground.bundle("privileged", |config| {
            grant(config, &own_capabilities());
            config["process"]["noNewPrivileges"] = json!(false);
            config["linux"]["maskedPaths"] = json!([]);
            config["linux"]["readonlyPaths"] = json!([]);
            config["linux"]["resources"] =
                json!({ "devices": [{ "allow": true, "access": "rwm" }] });
            let namespaces = config["linux"]["namespaces"].as_array_mut().expect("an array");
            namespaces.retain(|it| it["type"] != "cgroup");
        });
        ground
    }

    /// A bundle with the root file system of all, `runc spec`'s configuration and this change.
    fn bundle(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let dir = self.holdfast.scratch.path().join(name);
        fs::create_dir(&dir).expect("make a bundle");
        let config = dir.join("config.json");
        fs::copy(self.holdfast.scratch.bundle().join("config.json"), &config).expect("copy");
        edit_json(&config, change);
    }

    fn rootfs(&self) -> PathBuf {
        self.holdfast.scratch.bundle().join("rootfs")
    }

    /// A path in the test's directory, on the host.
    fn path(&self, name: &str) -> String {
        self.holdfast.scratch.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// A file of the host that no container may read.
    fn secret(&self) -> String {
        let path = self.path("secret");
        fs::write(&path, "secret").expect("write a file");
        path
    }

    /// `run` with these options and this program.
    async fn run(&self, options: &[&str], words: &[&str]) -> Ran {
        let rootfs = self.path("bundle/rootfs");
        let args = [&["run", "--rootfs", &rootfs], options, &["--"], words].concat();
        self.holdfast.run(&args).await
    }

    /// `run` in the background.
    async fn detached(&self, options: &[&str], words: &[&str]) -> String {
        let ran = self.run(&[&["--detach"], options].concat(), words).await;
        assert_eq!(ran.code, Some(0), "{}: {words:?}: {}", self.runtime, ran.stderr);
        ran.stdout.trim().to_owned()
    }

    /// An attack by a container with these options, which must hold. Returns the line.
    async fn holds(&self, options: &[&str], attack: &[&str]) -> String {
        let words = [&["hostile"], attack].concat();
        let ran = self.run(&[&["--rm"], options].concat(), &words).await;
        self.judge(&format!("{options:?} {attack:?}"), &ran)
    }

    fn judge(&self, what: &str, ran: &Ran) -> String {
        let line = verdict(&ran.stdout);
        let is_held = line.is_some_and(|line| line.starts_with("held: "));
        assert!(is_held, "{}: {what}: {ran:?}", self.runtime);
        line.unwrap_or_default().to_owned()
    }

    /// The same by a bundle of a user's own, with the usual capabilities and no seccomp profile.
    async fn holds_without_a_profile(&self, attack: &[&str]) -> String {
        let ran = self.by_bundle("plain", attack).await;
        self.judge(&format!("without a profile: {attack:?}"), &ran)
    }

    async fn by_bundle(&self, bundle: &str, attack: &[&str]) -> Ran {
        let bundle = self.path(bundle);
        let words = ["run", "--rm", "--bundle", &bundle, "--", "hostile"];
        self.holdfast.run(&[&words, attack].concat()).await
    }

    /// The attack is real: it succeeds in a privileged container, in which `what` of it does.
    async fn succeeds_if_privileged(&self, attack: &[&str], what: &str) {
        let ran = self.by_bundle("privileged", attack).await;
        self.succeeded(attack, what, &ran);
    }

    /// The attack is real: it succeeds in a container with these options, in which `what` of it does.
    async fn succeeds_with(&self, options: &[&str], attack: &[&str], what: &str) {
        let ran = self.run(&[&["--rm"], options].concat(), &[&["hostile"], attack].concat()).await;
        self.succeeded(attack, what, &ran);
    }

    /// The attack is real: it succeeds on the host.
    async fn succeeds_on_the_host(&self, attack: &[&str], what: &str) {
        let mut command = tokio::process::Command::new(binary("hostile"));
        command.args(attack).kill_on_drop(true);
        self.succeeded(attack, what, &ran(command).await);
    }

    fn succeeded(&self, attack: &[&str], what: &str, ran: &Ran) {
        if !geteuid().is_root() {
            // The defences that are taken away are not all that there are.
            return;
        }
        let line = verdict(&ran.stdout).unwrap_or_default();
        let done =
            line.strip_prefix("broken: ").and_then(|rest| rest.split_once("; beside that: "));
        let is_done = done.is_some_and(|(done, _)| done.contains(what));
        assert!(is_done, "{}: the attack is not real: {attack:?} {what:?}: {ran:?}", self.runtime);
    }

    /// The line of an attack in the background, once that has ended.
    async fn line_of(&self, id: &str) -> String {
        self.holdfast.run(&["wait", id]).await;
        let logs = self.holdfast.run(&["logs", id]).await;
        self.judge(&format!("container {id}"), &logs)
    }

    async fn close(self) {
        // With `--rm` the answer comes before the deletion.
        let all = self.holdfast.json(&["ps", "--all", "--json"]).await;
        for container in all.as_array().expect("an array") {
            let id = container["id"].as_str().expect("an id");
            self.holdfast.run(&["delete", "--force", id]).await;
        }
        self.holdfast.nothing_left().await;
        self.holdfast.close().await;
    }
}

/// The line with which an attack ends.
fn verdict(output: &str) -> Option<&str> {
    output.lines().find(|line| line.starts_with("held: ") || line.starts_with("broken: "))
}

fn grant(config: &mut Value, names: &[String]) {
    let names: Vec<String> = names.iter().map(|name| format!("CAP_{name}")).collect();
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = json!(names);
    }
    config["process"]["capabilities"]["ambient"] = json!([]);
}

/// What a runtime can give: what this process may have.
fn own_capabilities() -> Vec<String> {
    let status = fs::read_to_string("/proc/self/status").expect("read the own status");
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).expect("a set");
    let bounding = u64::from_str_radix(bounding.trim(), 16).expect("a number");
    let all = CAPABILITIES.into_iter().enumerate();
    all.filter(|(number, _)| bounding >> number & 1 == 1).map(|(_, name)| name.to_owned()).collect()
}

/// A process of the test's. Dropped, it is killed.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("100000").spawn().expect("start a process"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// It runs, is not stopped, and nobody traces it.
fn is_unharmed(process: &Proc) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid)).unwrap_or_default();
    let untraced = status.lines().any(|line| line == "TracerPid:\t0");
    process.lives() && !matches!(process.state(), Some('T' | 't')) && untraced
}

/// Makes of each attack a test with runc and one with holdfast-oci; of those in the first list also one as a user without
/// root's rights, with both runtimes.
macro_rules! attacks {
    (by_any_user { $($any:ident)* } by_root { $($root:ident)* }) => {
        $(attacks! { $any })* $(attacks! { $root })*

        mod without_root {
            use super::{Ground, User, binary, in_path, skip};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_container_keeps_the_limits_that_the_users_systemd_gives() {
                if !User::WithRanges.runs_this() {
                    return;
                }
                for runtime in in_path("runc").into_iter().chain([binary("holdfast-oci")]) {
                    let ground = Ground::of(&runtime).await;
                    let info = ground.holdfast.json(&["info", "--json"]).await;
                    match info["rootless"]["noCgroups"].as_str() {
                        Some(reason) => skip(reason),
                        None => super::keeps_limits_by_systemd(&ground).await,
                    }
                    ground.close().await;
                }
            }

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $any() {
                if !User::WithRanges.runs_this() {
                    return;
                }
                for runtime in in_path("runc").into_iter().chain([binary("holdfast-oci")]) {
                    let ground = Ground::of(&runtime).await;
                    super::$any(&ground).await;
                    ground.close().await;
                }
            })*
        }
    };
    ($name:ident) => {
        mod $name {
            use super::{Ground, binary, in_path, skip};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_runc() {
                let Some(runc) = in_path("runc") else { return skip("runc is not in PATH") };
                let ground = Ground::of(&runc).await;
                super::$name(&ground).await;
                ground.close().await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn by_holdfast_oci() {
                let ground = Ground::of(&binary("holdfast-oci")).await;
                super::$name(&ground).await;
                ground.close().await;
            }
        }
    };
}

// By root alone: those on the limits of cgroups, for which a user has a test of its own above; and the one on the
// cgroup of a victim, which takes root to be made: see docs/security.md.
attacks! {
    by_any_user {
        a_container_opens_no_device_of_the_host
        a_container_reads_no_key_of_the_host
        a_container_makes_and_joins_no_namespaces
        a_container_uses_no_interface_of_the_kernel_that_it_does_not_need
        a_container_reads_no_kernel_messages
        a_container_mounts_and_uncovers_nothing
        a_container_changes_no_setting_of_the_host
        a_container_reads_no_secret_of_the_host
        a_container_opens_no_file_by_its_number
        a_container_reaches_no_path_of_the_host
        a_container_has_no_foreign_descriptor
        a_container_does_nothing_to_processes_of_the_host
        a_container_does_not_overwrite_the_runtime
        a_container_gets_hold_of_no_process_that_enters_it
        a_container_connects_to_no_socket_of_the_host
        a_container_raises_no_limit_and_no_badness
        a_container_types_into_no_terminal_of_the_host
        a_container_makes_no_set_user_id_file_of_its_log
        a_container_forges_nothing_in_top
        a_container_forges_no_line_of_its_log
        a_container_fills_no_disk
        a_container_makes_no_files_without_end
        a_container_fills_no_disk_by_its_log
        a_root_with_links_at_its_mount_points_changes_nothing_of_the_host
        a_container_that_locks_its_pipes_holds_nobody_up
    }
    by_root {
        a_container_reaches_no_cgroup_of_others
        a_container_keeps_the_limits_of_its_cgroup
        a_container_has_no_more_processes_than_it_may
        a_container_has_no_more_memory_than_it_may
    }
}

async fn a_container_opens_no_device_of_the_host(ground: &Ground) {
    // The kernel's memory, its messages, a terminal; a loop device; all disks.
    let mut devices: Vec<String> = ["c:1:1", "c:1:11", "c:4:0", "b:7:0"].map(str::to_owned).into();
    for entry in fs::read_dir("/sys/dev/block").into_iter().flatten().flatten() {
        devices.push(format!("b:{}", entry.file_name().to_string_lossy()));
    }
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    let attack = [&["devices"], devices.as_slice()].concat();
    ground.holds(&[], &attack).await;
    let line = ground.holds(&["--cap-add", "MKNOD"], &attack).await;
    // In a user namespace nobody can.
    let made = line.contains("make c:1:1 in /dev: done");
    assert_eq!(made, geteuid().is_root(), "the attack was not made: {line}");
    ground.succeeds_if_privileged(&["devices", "c:1:11"], "open c:1:11 for reading").await;
}

async fn a_container_reaches_no_cgroup_of_others(ground: &Ground) {
    let mut victim = Victim::new();
    let name = victim.name().to_owned();
    ground.holds(&[], &["cgroups", &name]).await;
    assert!(victim.is_unharmed());
    let id = ground.detached(&[], &["sleep", "1000"]).await;
    let ran = ground.holdfast.run(&["exec", &id, "--", "hostile", "cgroups", &name]).await;
    ground.judge("an exec", &ran);
    assert!(victim.is_unharmed());
    let _flags = CgroupFlags::now().await;
    ground.succeeds_if_privileged(&["cgroups", &name], &format!("/{name}")).await;
    assert!(!victim.is_unharmed(), "the attack is not real");
}

/// The limits of processes that a container has by its cgroup, seen from outside.
fn limits_of(id: &str) -> Vec<String> {
    let dirs = cgroups_of(&id.parse().expect("an id"));
    let files = dirs.iter().flat_map(|dir| {
        ["pids.max", "memory.max", "memory.limit_in_bytes"].map(|file| dir.join(file))
    });
    let mut all: Vec<_> = files.filter_map(|path| fs::read_to_string(path).ok()).collect();
    all.retain(|limit| limit == "64\n" || limit == "67108864\n");
    all
}

async fn a_container_keeps_the_limits_of_its_cgroup(ground: &Ground) {
    let id = unique_id("limited");
    let options = ["--name", id.as_str(), "--pids-limit", "64", "--memory", "64m"];
    ground.detached(&options, &["sleep", "1000"]).await;
    assert_eq!(limits_of(id.as_str()).len(), 2);
    let ran = ground.holdfast.run(&["exec", id.as_str(), "--", "hostile", "cgroup-limits"]).await;
    assert_eq!(limits_of(id.as_str()).len(), 2, "{}: {ran:?}", ground.runtime);
    ground.judge("an exec", &ran);
    // Where there is no other version than 2, and it is mounted so, the kernel keeps the limits of a
    // namespace's root.
    let options = [UNCONFINED.as_slice(), &["--pids-limit", "64", "--memory", "64m"]].concat();
    let flags = CgroupFlags::now().await;
    if Path::new("/sys/fs/cgroup/cgroup.procs").exists() && flags.options.contains("nsdelegate") {
        ground.holds(&options, &["cgroup-limits"]).await;
    } else {
        ground.succeeds_with(&options, &["cgroup-limits"], "limits of the own cgroup").await;
    }
    ground.succeeds_if_privileged(&["cgroup-limits"], "limits of the own cgroup").await;
}

async fn keeps_limits_by_systemd(ground: &Ground) {
    let limits = ["--pids-limit", "64", "--memory", "64m"];
    let id = ground.detached(&limits, &["sleep", "1000"]).await;
    let pid = ground.holdfast.inspect(&id).await["pid"].clone();
    let cgroup = unified_cgroup_of(&pid);
    let seen = || ["pids.max", "memory.max"].map(|name| fs::read_to_string(cgroup.join(name)).ok());
    let set = ["64\n", "67108864\n"].map(|limit| Some(limit.to_owned()));
    assert_eq!(seen(), set);
    let ran = ground.holdfast.run(&["exec", &id, "--", "hostile", "cgroup-limits"]).await;
    assert_eq!(seen(), set, "{}: {ran:?}", ground.runtime);
    ground.judge("an exec", &ran);
    ground.holds(&limits, &["cgroup-limits"]).await;
    // In namespaces of its own it mounts the hierarchy, and the kernel keeps the limits.
    ground.holds(&[&UNCONFINED, &limits[..]].concat(), &["cgroup-limits"]).await;
}

/// The options of the hierarchy of version 2. Who mounts it again in the first cgroup namespace, as a
/// privileged container may, changes them for all; so they are set again when this is dropped, and
/// only one test at a time has this.
struct CgroupFlags {
    options: String,
    _alone: MutexGuard<'static, ()>,
}

impl CgroupFlags {
    async fn now() -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = ALONE.lock().await;
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        let options = mounts.lines().find_map(|line| {
            let rest = line.split_once(" - cgroup2 ")?.1;
            let all = rest.split(' ').nth(1)?.split(',');
            Some(all.filter(|option| !matches!(*option, "rw" | "ro")).collect::<Vec<_>>().join(","))
        });
        Self { options: options.unwrap_or_default(), _alone: alone }
    }
}

impl Drop for CgroupFlags {
    fn drop(&mut self) {
        let dir = tempfile::tempdir().expect("make a directory");
        let data = Some(self.options.as_str()).filter(|options| !options.is_empty());
        let none = MsFlags::empty();
        if mount(Some("none"), dir.path(), Some("cgroup2"), none, data).is_ok() {
            umount2(dir.path(), MntFlags::MNT_DETACH).expect("unmount");
        }
    }
}

/// A key in root's user keyring. Dropped, it is removed.
struct Key {
    name: std::ffi::CString,
    number: i32,
}

impl Key {
    fn new(name: &str) -> Self {
        let name = std::ffi::CString::new(name).expect("a name");
        let number = probe::add_key(&name, b"a secret of the host", probe::USER_KEYRING);
        Self { name, number: number.expect("add a key") }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let rings = [probe::USER_KEYRING, probe::USER_SESSION_KEYRING, probe::SESSION_KEYRING];
        for ring in rings {
            // Also those of this name that an attack has added.
            if let Ok(found) = probe::search_key(ring, &self.name) {
                let _ = probe::unlink_key(found, ring);
            }
            let _ = probe::unlink_key(self.number, ring);
        }
    }
}

async fn a_container_reads_no_key_of_the_host(ground: &Ground) {
    let name = unique_id("key").to_string();
    let _key = Key::new(&name);
    ground.holds(&[], &["keys", &name]).await;
    let id = ground.detached(&[], &["sleep", "1000"]).await;
    let ran = ground.holdfast.run(&["exec", &id, "--", "hostile", "keys", &name]).await;
    ground.judge("an exec", &ran);
    let open = [UNCONFINED.as_slice(), &["--no-new-keyring"]].concat();
    ground.succeeds_with(&open, &["keys", &name], "read key").await;
}

async fn a_container_makes_and_joins_no_namespaces(ground: &Ground) {
    ground.holds(&[], &["namespaces"]).await;
    ground.succeeds_with(&UNCONFINED, &["namespaces"], "unshare user").await;
}

async fn a_container_uses_no_interface_of_the_kernel_that_it_does_not_need(ground: &Ground) {
    ground.holds(&[], &["interfaces"]).await;
    ground.succeeds_with(&UNCONFINED, &["interfaces"], "io_uring_setup").await;
    ground.succeeds_if_privileged(&["interfaces"], "fsopen").await;
}

async fn a_container_reads_no_kernel_messages(ground: &Ground) {
    ground.holds(&[], &["messages"]).await;
    ground.succeeds_if_privileged(&["messages"], "syslog").await;
}

async fn a_container_mounts_and_uncovers_nothing(ground: &Ground) {
    ground.holds(&[], &["mounts"]).await;
    // Root of a user namespace of its own can mount, and not this.
    ground.holds_without_a_profile(&["mounts"]).await;
    ground.succeeds_if_privileged(&["mounts"], "mount tmpfs").await;
}

async fn a_container_changes_no_setting_of_the_host(ground: &Ground) {
    ground.holds(&[], &["settings"]).await;
    ground.holds_without_a_profile(&["settings"]).await;
    ground.succeeds_if_privileged(&["settings"], "/proc/sys/kernel/core_pattern").await;
}

async fn a_container_reads_no_secret_of_the_host(ground: &Ground) {
    ground.holds(&[], &["secrets"]).await;
    ground.succeeds_if_privileged(&["secrets"], "/proc/interrupts").await;
}

async fn a_container_opens_no_file_by_its_number(ground: &Ground) {
    let secret = ground.secret();
    ground.holds(&[], &["handles", &secret]).await;
    ground.holds_without_a_profile(&["handles", &secret]).await;
    // An ext4 below, whose root has the number 2.
    let kind = nix::sys::statfs::statfs(&ground.rootfs()).expect("look at a file system");
    if kind.filesystem_type() == nix::sys::statfs::EXT4_SUPER_MAGIC {
        ground.succeeds_if_privileged(&["handles", &secret], "number 2").await;
    }
}

/// What a working directory may be by mistake: a descriptor that the runtime has left open.
async fn a_container_reaches_no_path_of_the_host(ground: &Ground) {
    let secret = ground.secret();
    ground.holds(&[], &["paths", &secret]).await;
    let id = ground.detached(&[], &["sleep", "1000"]).await;
    for number in 3..12 {
        let dir = format!("/proc/self/fd/{number}");
        let link = ground.rootfs().join(format!("link{number}"));
        symlink(&dir, &link).expect("make a link");
        for dir in [dir, format!("/link{number}")] {
            let first =
                ground.run(&["--rm", "--workdir", &dir], &["hostile", "paths", &secret]).await;
            let args = ["exec", "--workdir", &dir, &id, "--", "hostile", "paths", &secret];
            let second = ground.holdfast.run(&args).await;
            for ran in [first, second] {
                // Most are no directory, and then nothing runs.
                if !matches!(ran.code, Some(125..=127)) {
                    ground.judge(&dir, &ran);
                }
            }
        }
    }
    ground.succeeds_on_the_host(&["paths", &secret], "has 6 bytes").await;
}

async fn a_container_has_no_foreign_descriptor(ground: &Ground) {
    let sets: [&[&str]; 4] = [&[], &["--interactive"], &["--tty"], &["--interactive", "--tty"]];
    for options in sets {
        let id = ground.detached(options, &["hostile", "descriptors"]).await;
        ground.line_of(&id).await;
    }
    // With its own /dev/null on all three; what it says goes by a file of its own.
    let script = "hostile descriptors > /dev/shm/said; sleep 1000";
    let id = ground.detached(&["--log", "none"], &["sh", "-c", script]).await;
    let args = ["exec", &id, "--", "cat", "/dev/shm/said"];
    let said = || ground.holdfast.run(&args);
    let mut ran = said().await;
    while verdict(&ran.stdout).is_none() {
        ran = said().await;
    }
    // That file is another one than a pipe or a device; so only the other two are judged.
    let line = verdict(&ran.stdout).unwrap_or_default();
    let done = line.split("; beside that: ").next().unwrap_or_default();
    assert!(!done.contains("of 0") && !done.contains("of 2"), "{}: {ran:?}", ground.runtime);
    for options in [&[][..], &["--interactive"]] {
        let args = [&["exec"], options, &[&id, "--", "hostile", "descriptors"]].concat();
        let ran = ground.holdfast.run(&args).await;
        ground.judge(&format!("exec {options:?}"), &ran);
    }
    let before = fs::metadata("/dev/null").expect("look at /dev/null").mode();
    assert_eq!(before & 0o777, 0o666, "somebody has changed /dev/null");
    // A file of the host that its owner has asked for.
    let log = format!("file:{},direct=yes", ground.path("direct"));
    let ran = ground.run(&["--rm", "--log", &log], &["hostile", "descriptors"]).await;
    let line = fs::read_to_string(ground.path("direct")).expect("read a file");
    let ran = Ran { stdout: line, ..ran };
    ground.succeeded(&["descriptors"], "change the mode of 1", &ran);
}

async fn a_container_does_nothing_to_processes_of_the_host(ground: &Ground) {
    let victim = Sleeper::new();
    let id = ground.detached(&[], &["sleep", "1000"]).await;
    let shim = shim_of(&ground.holdfast.root(), &id, "init");
    let daemon = ground.holdfast.daemon().process();
    let all = [Proc::of(victim.pid()).expect("it runs"), shim, daemon];
    let pids: Vec<String> = all.iter().map(|process| process.pid.to_string()).collect();
    let pids: Vec<&str> = pids.iter().map(String::as_str).collect();
    let attack = [&["processes"], pids.as_slice()].concat();
    ground.holds(&[], &attack).await;
    ground.holds_without_a_profile(&attack).await;
    let ran =
        ground.holdfast.run(&[&["exec", &id, "--", "hostile"], attack.as_slice()].concat()).await;
    ground.judge("an exec", &ran);
    for process in &all {
        assert!(is_unharmed(process), "{}: {process}", ground.runtime);
    }
    ground.succeeds_on_the_host(&["processes", pids[0]], "kill").await;
}

/// CVE-2019-5736, with a copy of the runtime as the victim.
async fn a_container_does_not_overwrite_the_runtime(ground: &Ground) {
    let copy = ground.path("runtime-under-attack");
    executable::copied(&ground.runtime, &copy);
    let before = fs::read(&copy).expect("read a program");
    let id = ground.detached(&["--runtime", &copy], &["hostile", "executables", "3000"]).await;
    ground.holdfast.said(&id, "begins").await;
    for program in ["/proc/self/exe", "/link", "true"] {
        let _ = symlink("/proc/self/exe", ground.rootfs().join("link"));
        for _ in 0..3 {
            ground.holdfast.run(&["exec", &id, "--", program, "help"]).await;
        }
    }
    ground.line_of(&id).await;
    for program in ["/proc/self/exe", "/link"] {
        ground.run(&["--rm", "--runtime", &copy], &[program, "help"]).await;
    }
    assert_eq!(fs::read(&copy).expect("read a program"), before, "{}", ground.runtime);
    // A program that runs on the host, and then does not.
    let program = ground.path("sleep");
    executable::copied("/bin/sleep", &program);
    let mut victim = Sleeper(Command::new(&program).arg("1000").spawn().expect("start a process"));
    let mut attack = Command::new(binary("hostile"));
    attack.args(["executables", "20000", &victim.pid().to_string()]);
    let mut attack = attack.stdout(std::process::Stdio::piped()).spawn().expect("start a process");
    let fds = format!("/proc/{}/fd", attack.id());
    let holds_it = || {
        let fds = fs::read_dir(&fds).into_iter().flatten().flatten();
        let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|link| link == Path::new(&program))
    };
    eventually("the attack to have the program", holds_it).await;
    victim.0.kill().expect("kill a process");
    victim.0.wait().expect("wait for a process");
    let mut output = String::new();
    attack.stdout.take().expect("its output").read_to_string(&mut output).expect("read its output");
    attack.wait().expect("wait for a process");
    assert!(output.contains("broken: "), "the attack is not real: {output}");
}

async fn a_container_gets_hold_of_no_process_that_enters_it(ground: &Ground) {
    let id = ground.detached(&[], &["hostile", "intruder", "4000"]).await;
    ground.holdfast.said(&id, "begins").await;
    let intrusion = async {
        // As many as go into the time.
        while ground.holdfast.run(&["exec", &id, "--", "true"]).await.code == Some(0) {}
    };
    let (line, ()) = tokio::join!(ground.line_of(&id), intrusion);
    assert!(!line.contains("met 0 "), "the attack was not made: {line}");
    // With the right to trace them.
    let args = [
        "run",
        "--detach",
        "--bundle",
        &ground.path("privileged"),
        "--",
        "hostile",
        "intruder",
        "6000",
    ];
    let id = ground.holdfast.ok(&args).await.trim().to_owned();
    ground.holdfast.said(&id, "begins").await;
    // One that it holds up for too long may not be the last.
    while ground.holdfast.inspect(&id).await["status"] == "running" {
        ground.holdfast.run(&["exec", "--timeout", "3s", &id, "--", "true"]).await;
    }
    ground.holdfast.run(&["wait", &id]).await;
    let logs = ground.holdfast.run(&["logs", &id]).await;
    ground.succeeded(&["intruder"], "", &logs);
}

async fn a_container_connects_to_no_socket_of_the_host(ground: &Ground) {
    let name = unique_id("socket").to_string();
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _socket = UnixListener::bind_addr(&address).expect("listen");
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port().to_string();
    ground.holds(&[], &["sockets", &name, &port]).await;
    ground.holds_without_a_profile(&["sockets", &name, &port]).await;
    let words = ["hostile", "sockets", &name, &port];
    let ran = ground.run(&["--rm", "--network", "host"], &words).await;
    ground.succeeded(&["sockets"], "connect to the abstract socket, connect to the port", &ran);
}

async fn a_container_raises_no_limit_and_no_badness(ground: &Ground) {
    let victim = Sleeper::new();
    let pid = victim.pid().to_string();
    ground.holds(&["--ulimit", "core=0:0"], &["limits", &pid]).await;
    ground.holds_without_a_profile(&["limits", &pid]).await;
    let badness = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read a file");
    assert_eq!(
        badness.trim(),
        fs::read_to_string("/proc/self/oom_score_adj").expect("read").trim()
    );
    // A machine may keep that from all of its processes.
    if own_capabilities().iter().any(|name| name == "SYS_RESOURCE") {
        ground.succeeds_if_privileged(&["limits", &pid], "lower /proc/self/oom_score_adj").await;
    }
}

/// What a command leaves behind in the terminal that it has: the next one reads what was typed there.
async fn typed_after(command: &str) -> String {
    let script = format!("{command} > /dev/null; echo ready; read -r line; echo \"[$line]\"");
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &script]);
    let mut pty = Pty::start(&shell, TerminalSize { width: 200, height: 24 });
    pty.shows("ready").await;
    pty.types("own\n");
    pty.shows("[").await;
    pty.shows("]").await
}

const TERMINALS: [&str; 7] =
    ["hostile", "terminal", "/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/pts/0"];

async fn a_container_types_into_no_terminal_of_the_host(ground: &Ground) {
    let (program, root) = (binary("holdfast"), ground.holdfast.root());
    let holdfast = format!("{} --root {}", program.display(), root.display());
    let rootfs = ground.path("bundle/rootfs");
    for options in ["", "--interactive", "--tty", "--interactive --tty"] {
        let attack = TERMINALS.join(" ");
        let run = format!("{holdfast} run --rm {options} --rootfs {rootfs} -- {attack}");
        assert_eq!(typed_after(&run).await, "own", "{}: {options}", ground.runtime);
    }
    ground.holds(&[], &TERMINALS[1..]).await;
    let id = ground.detached(&["--tty"], &TERMINALS).await;
    ground.line_of(&id).await;
    // The other paths may be terminals of others.
    let attack = format!("{} terminal /dev/tty", binary("hostile").display());
    assert_eq!(typed_after(&attack).await, "typed", "the attack is not real");
}

async fn a_container_makes_no_set_user_id_file_of_its_log(ground: &Ground) {
    let path = ground.path("log");
    for log in [format!("file:{path}"), format!("cri:{path}"), format!("json-file:{path}")] {
        let ran = ground.run(&["--rm", "--log", &log], &["hostile", "output"]).await;
        assert_eq!(ran.code, Some(0), "{}: {ran:?}", ground.runtime);
        let file = fs::metadata(&path).expect("look at a log");
        assert_eq!(file.permissions().mode() & 0o7111, 0, "{}: {log}", ground.runtime);
        assert!(file.len() < 100_000, "{}: {log}: {}", ground.runtime, file.len());
        fs::remove_file(&path).expect("remove a log");
    }
    ground.holds(&[], &["output"]).await;
    // The owner has asked for it, and is warned of it.
    let log = format!("file:{path},direct=yes");
    ground.run(&["--rm", "--log", &log], &["hostile", "output"]).await;
    let file = fs::metadata(&path).expect("look at a log");
    if geteuid().is_root() {
        // Else its owner has made it, whose rights the container has.
        assert_eq!(file.permissions().mode() & 0o7777, 0o4755, "the attack is not real");
    }
    assert!(file.len() >= 1 << 40, "the attack is not real: {}", file.len());
}

async fn a_container_forges_nothing_in_top(ground: &Ground) {
    let id = ground.detached(&[], &["hostile", "titles"]).await;
    ground.holdfast.said(&id, "ready").await;
    let list = ground.holdfast.json(&["top", "--json", &id]).await;
    assert!(list.to_string().contains("\\u001b"), "the attack was not made: {list}");
    let top = ground.holdfast.ok(&["top", &id]).await;
    assert!(!top.contains(|c: char| c.is_control() && c != '\n'), "{}: {top:?}", ground.runtime);
    assert!(!top.contains(['\u{202e}', '\u{9b}']), "{}: {top:?}", ground.runtime);
    let processes = list.as_array().expect("an array").len();
    assert_eq!(top.lines().count(), processes + 1, "{}: {top:?}", ground.runtime);
    for options in [&["-o", "pid,args"][..], &["aux"], &["-ef"], &["-o", "args,pid"]] {
        let top = ground.holdfast.ok(&[&["top", &id], options].concat()).await;
        assert!(!top.contains(|c: char| c.is_control() && c != '\n'), "{options:?}: {top:?}");
        assert_eq!(top.lines().count(), processes + 1, "{}: {options:?}: {top}", ground.runtime);
    }
    for args in [&["ps", "--all"][..], &["inspect", &id], &["stats", &id], &["events", "--replay"]]
    {
        let said = match args {
            ["events", ..] => ground.holdfast.begin(args).line().await,
            _ => ground.holdfast.ok(args).await,
        };
        assert!(!said.contains('\u{1b}'), "{}: {args:?}: {said:?}", ground.runtime);
    }
}

/// `logs` prints what a container has written, byte for byte, and never more lines than it has written.
async fn a_container_forges_no_line_of_its_log(ground: &Ground) {
    let id = ground.detached(&[], &["hostile", "escapes"]).await;
    ground.holdfast.run(&["wait", &id]).await;
    let log = ground.holdfast.root().join(&id).join("init/output.log");
    let log = fs::read_to_string(log).expect("read a log");
    // Two lines of it, one of each stream, and its verdict.
    assert_eq!(log.lines().count(), 3, "{}: {log:?}", ground.runtime);
    let is_framed = |line: &str| line.contains(" stdout F ") || line.contains(" stderr F ");
    assert!(log.lines().all(is_framed), "{}: {log:?}", ground.runtime);
    let ran = ground.holdfast.run(&["logs", "--timestamps", &id]).await;
    let year = |line: &str| line.starts_with("20") && line.contains("Z ");
    assert!(ran.stdout.lines().chain(ran.stderr.lines()).all(year), "{}: {ran:?}", ground.runtime);
    assert!(ran.stdout.contains("\u{1b}[2K"), "the attack was not made: {ran:?}");
}

async fn a_container_has_no_more_processes_than_it_may(ground: &Ground) {
    let neighbour = ground.detached(&[], &["sleep", "1000"]).await;
    ground.holds(&[], &["flood-processes", "2100"]).await;
    ground.holds(&["--pids-limit", "50"], &["flood-processes", "60"]).await;
    let ran = ground.holdfast.run(&["exec", &neighbour, "--", "echo", "hi"]).await;
    assert_eq!(ran.stdout, "hi\n");
    ground.succeeds_if_privileged(&["flood-processes", "60"], "60 processes").await;
}

async fn a_container_has_no_more_memory_than_it_may(ground: &Ground) {
    let id = ground.detached(&["--memory", "64m"], &["hostile", "flood-memory", "128"]).await;
    assert_eq!(ground.holdfast.ok(&["wait", &id]).await, "137\n", "{}", ground.runtime);
    let info = ground.holdfast.inspect(&id).await;
    assert!(info.to_string().contains("oom"), "{}: {info}", ground.runtime);
    // Without a limit it gets what it asks for.
    let ran = ground.run(&["--rm"], &["hostile", "flood-memory", "128"]).await;
    ground.succeeded(&["flood-memory"], "128 MiB", &ran);
}

async fn a_container_fills_no_disk(ground: &Ground) {
    let attack = ["flood-disk", "80", "/", "/tmp", "/dev", "/dev/shm", "/etc"];
    ground.holds(&[], &attack).await;
    let words = ["hostile", "flood-disk", "80", "/data"];
    let ran = ground.run(&["--rm", "--tmpfs", "/data:16m"], &words).await;
    ground.judge("a tmpfs", &ran);
    let ran =
        ground.run(&["--rm", "--read-only=false"], &["hostile", "flood-disk", "80", "/tmp"]).await;
    ground.succeeded(&["flood-disk"], "/tmp", &ran);
}

async fn a_container_makes_no_files_without_end(ground: &Ground) {
    let attack = ["flood-inodes", "40000", "/", "/tmp", "/dev", "/dev/shm", "/dev/mqueue"];
    ground.holds(&[], &attack).await;
    let words = ["hostile", "flood-inodes", "40000", "/data"];
    let ran = ground.run(&["--rm", "--tmpfs", "/data:16m"], &words).await;
    ground.judge("a tmpfs", &ran);
    ground.succeeds_if_privileged(&["flood-inodes", "40000", "/dev"], "40000 files").await;
}

/// What a directory takes of the disk.
fn size_of(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |path: PathBuf| match path.symlink_metadata() {
        Ok(it) if it.is_dir() => size_of(&path),
        Ok(it) => it.blocks() * 512,
        Err(_) => 0,
    };
    entries.map(|entry| size(entry.path())).sum()
}

async fn a_container_fills_no_disk_by_its_log(ground: &Ground) {
    // Two million lines of one byte, 80 MiB in the format of the log.
    let id = ground.detached(&[], &["hostile", "flood-log", "4"]).await;
    ground.holdfast.run(&["wait", &id]).await;
    let size = size_of(&ground.holdfast.root().join(&id));
    assert!(size > 30 << 20, "the attack was not made: {size}");
    // Five files of ten mebibytes, and what is beside them.
    assert!(size < 52 << 20, "{}: {size}", ground.runtime);
    let log = format!("cri:{},max-size=0", ground.path("unbounded"));
    let id = ground.detached(&["--log", &log], &["hostile", "flood-log", "4"]).await;
    ground.holdfast.run(&["wait", &id]).await;
    let size = fs::metadata(ground.path("unbounded")).expect("look at a log").len();
    assert!(size > 60 << 20, "the attack is not real: {size}");
}

/// All that is in a directory, with its mode.
fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list a directory").flatten();
    let mut all: Vec<_> = entries.map(|entry| entry.path().display().to_string()).collect();
    let it = fs::metadata(dir).expect("look at a directory");
    all.push(format!("{:o} {} {}", it.mode(), it.dev(), it.uid()));
    all.sort();
    all
}

async fn a_root_with_links_at_its_mount_points_changes_nothing_of_the_host(ground: &Ground) {
    let volume = ground.path("volume");
    fs::create_dir(&volume).expect("make a directory");
    let to_volume = |place: &str| ["--volume".to_owned(), format!("{volume}:{place}")];
    let cases = [
        ("proc", None),
        ("sys", None),
        ("dev", None),
        ("mnt", Some(to_volume("/mnt"))),
        ("mnt", Some(to_volume("/mnt/below/it"))),
        ("mnt", Some(["--tmpfs".to_owned(), "/mnt".to_owned()])),
        ("mnt", Some(["--tmpfs".to_owned(), "/mnt/below".to_owned()])),
        ("mnt", Some(["--workdir".to_owned(), "/mnt/work".to_owned()])),
    ];
    let victim = PathBuf::from(ground.path("victim"));
    fs::create_dir(&victim).expect("make a directory");
    let before = listing(&victim);
    for (number, (place, options)) in cases.iter().enumerate() {
        for (kind, target) in [
            ("absolute", victim.clone()),
            (
                "relative",
                Path::new("../../../../../..").join(victim.strip_prefix("/").expect("absolute")),
            ),
        ] {
            let rootfs = PathBuf::from(ground.path(&format!("root-{number}-{kind}")));
            fs::create_dir(&rootfs).expect("make a root");
            for dir in ["bin", "proc", "sys", "dev"].iter().filter(|dir| *dir != place) {
                fs::create_dir(rootfs.join(dir)).expect("make a directory");
            }
            let busybox = ground.rootfs().join("bin/busybox");
            fs::hard_link(busybox, rootfs.join("bin/busybox")).expect("make a link");
            symlink(target, rootfs.join(place)).expect("make a link");
            let options: Vec<&str> = options.iter().flatten().map(String::as_str).collect();
            let path = rootfs.to_str().expect("a path in UTF-8");
            // The volume and the directory to work in must be made where they are not.
            let args = ["run", "--rm", "--read-only=false", "--rootfs", path];
            let args = [&args, options.as_slice(), &["--", "busybox", "true"]].concat();
            let ran = ground.holdfast.run(&args).await;
            let context = format!("{} {kind} {place} {options:?}: {ran:?}", ground.runtime);
            assert_eq!(listing(&victim), before, "{context}");
            let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
            assert!(!mounts.contains(&victim.display().to_string()), "{context}");
            // With a directory there it runs, so it was the link that was refused.
            fs::remove_file(rootfs.join(place)).expect("remove a link");
            let made = fs::create_dir_all(rootfs.join(place).join("work"));
            made.expect("make a directory");
            let ran = ground.holdfast.run(&args).await;
            assert_eq!(ran.code, Some(0), "the attack was not made: {context}: {ran:?}");
        }
    }
}

async fn a_container_that_locks_its_pipes_holds_nobody_up(ground: &Ground) {
    if shim_group().is_some() {
        return skip("the shim of a group waits for a lock that one of its containers holds");
    }
    let id = ground.detached(&[], &["hostile", "lock", "1", "2"]).await;
    let pid = ground.holdfast.inspect(&id).await["pid"].as_i64().expect("a pid");
    let splicing = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let calls = tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        let splice = format!("{} ", nix::libc::SYS_splice);
        calls.filter(|call| call.starts_with(&splice)).count() == 2
    };
    eventually("the locks to be held", splicing).await;
    let said = ground.holdfast.ok(&["exec", &id, "--", "echo", "hi"]).await;
    assert_eq!(said, "hi\n");
    ground.holdfast.ok(&["delete", "--force", &id]).await;
    // Whoever waits for such a lock can't be interrupted: the same, by hand, with a pipe of the test's.
    let (reader, writer) = nix::unistd::pipe().expect("make a pipe");
    let mut attack = Command::new(binary("hostile"));
    attack.args(["lock", "1"]).stdout(writer);
    let mut attack = attack.spawn().expect("start a process");
    drop(reader_waits(&mut attack, reader).await);
    let _ = attack.wait();
}

/// A reader of a pipe that another process locks comes to wait in state D, until that ends.
async fn reader_waits(attack: &mut Child, reader: std::os::fd::OwnedFd) -> File {
    let tasks = format!("/proc/{}/task", attack.id());
    let splice = format!("{} ", nix::libc::SYS_splice);
    let locked = || {
        let tasks = fs::read_dir(&tasks).into_iter().flatten().flatten();
        let mut calls =
            tasks.filter_map(|task| fs::read_to_string(task.path().join("syscall")).ok());
        calls.any(|call| call.starts_with(&splice))
    };
    eventually("the lock to be held", locked).await;
    let mut cat =
        Command::new("cat").stdin(reader.try_clone().expect("a copy")).spawn().expect("start");
    let waits = Proc::of(cat.id().cast_signed()).expect("it runs");
    waits.reaches('D').await;
    Proc::of(attack.id().cast_signed()).expect("it runs").signal(Signal::SIGKILL);
    let _ = cat.kill();
    cat.wait().expect("wait for a process");
    File::from(reader)
}
