//! A bundle of busybox, with the configuration that `runc spec` writes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::executable;

/// Makes an OCI bundle whose root file system is busybox, and returns its path.
///
/// # Panics
///
/// If busybox is not installed.
pub fn busybox_bundle(dir: &Path) -> PathBuf {
    let bin = dir.join("rootfs/bin");
    fs::create_dir_all(&bin).expect("make a root file system");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.iter().find(|path| path.is_file()).expect("busybox-static is installed");
    executable::copied(busybox, bin.join("busybox"));
    for applet in run(Command::new(busybox).arg("--list")).lines().filter(|a| *a != "busybox") {
        symlink("busybox", bin.join(applet)).expect("link an applet");
    }
    let config = runc_spec().to_string();
    fs::write(dir.join("config.json"), config).expect("write a configuration");
    dir.to_owned()
}

/// What runc 1.1.5's `spec` writes, so that bundles can be had without runc. A test compares them.
fn runc_spec() -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": "1.0.2-dev",
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
                "ambient": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "runc",
        "mounts": mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" },
                { "type": "network" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
            ],
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ],
        },
    })
}

fn mounts() -> Value {
    let mount = |to: &str, kind: &str, from: &str, options: &[&str]| {
        let mut mount = json!({ "destination": to, "type": kind, "source": from });
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &shm),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ])
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{runtime, skip};

    #[test]
    fn the_configuration_is_the_one_of_runc_spec() {
        let Some(runc) = runtime::in_path("runc") else {
            return skip("about runc, which is not in PATH");
        };
        let version = run(Command::new(&runc).arg("--version"));
        if !version.starts_with("runc version 1.1.") {
            return skip("about runc 1.1, and another one is in PATH");
        }
        let dir = tempfile::tempdir().expect("make a directory");
        run(Command::new(runc).arg("spec").arg("--bundle").arg(dir.path()));
        let spec = fs::read(dir.path().join("config.json")).expect("read a configuration");
        let spec: Value = serde_json::from_slice(&spec).expect("parse a configuration");
        let mut own = runc_spec();
        // It adds this one where the host has cgroups of version 2 alone.
        let cgroup = json!({ "type": "cgroup" });
        if spec["linux"]["namespaces"].as_array().is_some_and(|all| all.contains(&cgroup)) {
            own["linux"]["namespaces"].as_array_mut().expect("an array").push(cgroup);
        }
        assert_eq!(own, spec);
    }
}
