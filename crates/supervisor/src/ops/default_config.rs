//! The OCI configuration of a container that has no bundle of its own.

use std::io;
use std::path::Path;

use holdfast_state::ContainerId;
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::ops::layout::random_hex;

/// The search path for programs in the container.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities of the container's root user: podman's default set.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// The largest number of processes and threads of a container, so that one that forks without end
/// leaves room for others: podman's default.
const MOST_PIDS: u32 = 2048;

/// The largest number of files in a tmpfs of 64 MiB: one for each page. Empty files take none of its size,
/// but a kibibyte of the host's memory each.
pub(crate) const TMPFS_FILES: &str = "nr_inodes=16384";

/// Files that tell about the host or change it. The container sees them as empty.
const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];

/// Files that the container can read, and not write.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Returns the soft and the hard limit of open files for the container's programs. The hard limit
/// is that of this process. The soft limit is `soft`, or else that of this process, and at most the
/// hard limit.
pub(crate) fn nofile(soft: Option<u64>) -> io::Result<(u64, u64)> {
    let (own, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok((soft.unwrap_or(own).min(hard), hard))
}

/// Returns the name of a container's cgroup. The random part makes it unlikely that this is the cgroup of an
/// earlier container, which a crash may have left.
pub(crate) fn unique_name(id: &ContainerId) -> String {
    format!("{id}.{}", random_hex(4))
}

/// Returns the default configuration: a read-only root; private mount, pid, ipc, uts and network
/// namespaces, and a private cgroup namespace where the kernel supports it; a cgroup of its own, which
/// allows the usual devices only.
pub(crate) fn default_config(
    id: &ContainerId,
    args: &[String],
    rootfs: &Path,
    further_mounts: Vec<Value>,
    (soft, hard): (u64, u64),
) -> Value {
    let args = if args.is_empty() { json!(["sh"]) } else { json!(args) };
    let mut mounts = mounts();
    mounts.extend(further_mounts);
    let hostname: String = id.as_str().chars().take(63).collect();
    let cgroup = format!("/holdfast/{}", unique_name(id));
    let mut namespaces = vec!["mount", "pid", "ipc", "uts", "network"];
    if Path::new("/proc/self/ns/cgroup").exists() {
        namespaces.push("cgroup");
    }
    let namespaces: Vec<_> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": true },
        "hostname": hostname,
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": [PATH, "HOME=/root"],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                // A program that another user runs gets none of them automatically.
                "inheritable": [],
                "ambient": [],
            },
            "noNewPrivileges": true,
            // The limit is set here because a runtime may have raised its own before it starts the
            // program.
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }],
        },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "cgroupsPath": cgroup,
            "resources": {
                // The runtime adds the usual devices after this rule, as the specification says.
                "devices": [{ "allow": false, "access": "rwm" }],
                "pids": { "limit": MOST_PIDS },
            },
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts() -> Vec<Value> {
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k", TMPFS_FILES],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k", TMPFS_FILES],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
    ]
}

/// Returns a mount with this destination, type, source and options.
pub(crate) fn mount(
    to: impl AsRef<Path>,
    kind: &str,
    from: impl AsRef<Path>,
    options: &[&str],
) -> Value {
    json!({
        "destination": to.as_ref(),
        "type": kind,
        "source": from.as_ref(),
        "options": options,
    })
}
