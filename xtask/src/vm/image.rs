//! The disks. The base (kernel, initramfs, root disk) is made once for each recipe, since apt needs
//! minutes for it; the payload (what is tested, and the guest's scripts) is made for each run.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::{dist, setup};

/// Debian's release: that of the host, whose executables run in the machine as they are.
const SUITE: &str = "bookworm";
/// The package whose dependency is the newest kernel of its kind.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What is in the root file system besides what Debian can't do without.
const PACKAGES: [&str; 20] = [
    "runc",
    "containerd",
    "crun",
    "criu",
    "systemd",
    "systemd-sysv",
    "busybox-static",
    "kmod",
    "procps",
    "iproute2",
    // CRIU locks the network of what it dumps by it.
    "iptables",
    "strace",
    "jq",
    // A user with a systemd of its own, and ranges of ids.
    "dbus",
    "dbus-user-session",
    "libpam-systemd",
    "uidmap",
    "podman",
    "conmon",
    // The first process of podman's option --init.
    "catatonit",
];
/// Our own programs, in the payload.
pub(super) const PROGRAMS: [&str; 9] = [
    "holdfast",
    "holdfast-conmon",
    "holdfast-shim",
    "holdfast-init",
    "holdfast-oci",
    "holdfast-containerd",
    "containerd-shim-holdfast-v2",
    "fake-runtime",
    "hostile",
];
/// What the kernel must be given before it sees its disks; modprobe knows what they need.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
const INITRAMFS_INIT: &str = include_str!("guest/initramfs-init.sh");
/// Sparse: it takes the room of what is in it.
const ROOT_SIZE: &str = "2G";
/// Raised when the steps below change so that an image made before is not what they would make.
const RECIPE: u32 = 1;

/// What a machine boots from. Never written to.
#[derive(Debug, Clone)]
pub(super) struct Base {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) disk: PathBuf,
}

impl Base {
    fn at(home: &Path) -> Self {
        let at = |name| home.join(name);
        Self { kernel: at("vmlinuz"), initramfs: at("initramfs"), disk: at("root.ext4") }
    }
}

/// Returns the base, which is made if it is not there as the recipe has it.
pub(super) fn base(home: &Path) -> anyhow::Result<Base> {
    let mut hasher = DefaultHasher::new();
    (SUITE, KERNEL, PACKAGES, DISK_MODULES, INITRAMFS_INIT, ROOT_SIZE, RECIPE).hash(&mut hasher);
    let name = format!("base-{:016x}", hasher.finish());
    let done = home.join(&name);
    if done.is_dir() {
        return Ok(Base::at(&done));
    }
    ensure!(setup::is_root(), "root is needed to make the machine's image");
    println!("making the machine's image: Debian {SUITE} with {}", PACKAGES.join(", "));
    fs::create_dir_all(home)?;
    for entry in fs::read_dir(home)? {
        let path = entry?.path();
        // Of another recipe, or of a run that was ended while it made one.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("base-")) {
            fs::remove_dir_all(path)?;
        }
    }
    let partial = home.join(format!("{name}.partial"));
    fs::create_dir(&partial)?;
    make_base(&partial)?;
    fs::rename(&partial, &done)?;
    Ok(Base::at(&done))
}

fn make_base(dir: &Path) -> anyhow::Result<()> {
    let base = Base::at(dir);
    let root = dir.join("root");
    setup::update_lists();
    setup::output(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", "--quiet", "--dpkgopt=force-unsafe-io"])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg(SUITE)
            .arg(&root),
    )?;
    let version = kernel(dir, &root, &base.kernel)?;
    fs::create_dir_all(root.join("opt/holdfast"))?;
    initramfs(dir, &root, &version, &base.initramfs)?;
    make_disk(&root, &base.disk, ROOT_SIZE)?;
    fs::remove_dir_all(root)?;
    Ok(())
}

/// Unpacks Debian's kernel without installing it, puts its modules into the root, and returns its
/// version.
fn kernel(dir: &Path, root: &Path, kernel: &Path) -> anyhow::Result<String> {
    let depends = setup::output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .with_context(|| format!("apt knows no kernel behind {KERNEL}"))?;
    let version = package.strip_prefix("linux-image-").unwrap_or(package).to_owned();
    let unpacked = dir.join("kernel");
    fs::create_dir(&unpacked)?;
    setup::output(
        Command::new("apt-get").args(["download", "--quiet", package]).current_dir(&unpacked),
    )?;
    let archive = fs::read_dir(&unpacked)?.next().context("apt-get downloaded nothing")??.path();
    setup::output(Command::new("dpkg").arg("-x").arg(archive).arg(&unpacked))?;
    fs::copy(unpacked.join(format!("boot/vmlinuz-{version}")), kernel)?;
    let modules = root.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    fs::rename(unpacked.join("lib/modules").join(&version), modules.join(&version))?;
    fs::remove_dir_all(unpacked)?;
    setup::output(Command::new("chroot").arg(root).args(["depmod", &version]))?;
    Ok(version)
}

/// A static busybox, the modules in the order of their dependencies, and the script.
fn initramfs(dir: &Path, root: &Path, version: &str, initramfs: &Path) -> anyhow::Result<()> {
    let tree = dir.join("initramfs.d");
    fs::create_dir_all(tree.join("bin"))?;
    fs::create_dir_all(tree.join("modules"))?;
    fs::copy(root.join("bin/busybox"), tree.join("bin/busybox"))?;
    fs::write(tree.join("init"), INITRAMFS_INIT)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let mut copied: Vec<String> = Vec::new();
    for module in DISK_MODULES {
        // Prints `insmod PATH`, the module itself last.
        let mut modprobe = Command::new("chroot");
        modprobe.arg(root).args(["modprobe", "-S", version, "--show-depends", module]);
        for line in setup::output(&mut modprobe)?.lines() {
            let Some(path) = line.trim().strip_prefix("insmod /") else { continue };
            let name = path.rsplit('/').next().unwrap_or(path);
            if !copied.iter().any(|copied| copied == name) {
                let numbered = format!("modules/{:02}-{name}", copied.len());
                fs::copy(root.join(path), tree.join(numbered))?;
                copied.push(name.to_owned());
            }
        }
    }
    ensure!(copied.len() > DISK_MODULES.len(), "modprobe names no modules for the disks");
    let find = Command::new("find").arg(".").current_dir(&tree).stdout(Stdio::piped()).spawn()?;
    let mut cpio = Command::new(tree.join("bin/busybox"));
    cpio.args(["cpio", "-o", "-H", "newc"])
        .current_dir(&tree)
        .stdin(find.stdout.context("no standard output")?)
        .stdout(fs::File::create(initramfs)?)
        .stderr(Stdio::null());
    crate::run(&mut cpio)?;
    Ok(fs::remove_dir_all(tree)?)
}

/// Makes the disk with what is tested, and with these tests.
pub(super) fn payload(scratch: &Path, tests: &[(&str, PathBuf)]) -> anyhow::Result<PathBuf> {
    let tree = scratch.join("payload");
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    for name in PROGRAMS {
        fs::copy(crate::executables("release").join(name), bin.join(name))?;
    }
    for (name, path) in tests {
        // A test finds the programs beside itself. Not by its own name: podman is one of Debian's programs.
        fs::copy(path, bin.join(format!("test-{name}")))?;
    }
    let workspace = crate::workspace();
    for unit in ["holdfast.service", "holdfast.socket"] {
        fs::copy(workspace.join("dist").join(unit), tree.join(unit))?;
    }
    let package = dist::package_of(&crate::executables("release"), &scratch.join("package"))?;
    fs::rename(package, tree.join("holdfast.deb"))?;
    let guest = tree.join("guest");
    fs::create_dir(&guest)?;
    for entry in fs::read_dir(workspace.join("xtask/src/vm/guest"))? {
        let from = entry?.path();
        let to = guest.join(from.file_name().unwrap_or_default());
        fs::copy(from, &to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    }
    let disk = scratch.join("payload.ext4");
    make_disk(&tree, &disk, "512M")?;
    Ok(disk)
}

/// Makes an ext4 file system with what a directory holds.
pub(super) fn make_disk(from: &Path, disk: &Path, size: &str) -> anyhow::Result<()> {
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-d"]).arg(from).arg(disk).arg(size);
    setup::output(&mut mke2fs).map(drop)
}
