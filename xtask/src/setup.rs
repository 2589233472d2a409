//! The programs that a command needs. What is missing is installed from Debian's packages, and
//! said so; what is there is left as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure as ensure_that};

/// A program and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

/// The OCI runtime.
pub(crate) const RUNC: Program = Program { name: "runc", package: "runc" };
/// The content of a root file system for tests.
pub(crate) const BUSYBOX: Program = Program { name: "busybox", package: "busybox-static" };
/// A peer, for which Holdfast has a monitor; its package brings no monitor of its own.
pub(crate) const PODMAN: Program = Program { name: "podman", package: "podman" };
/// The first process of podman's containers with `--init`.
pub(crate) const CATATONIT: Program = Program { name: "catatonit", package: "catatonit" };
/// A peer: the monitor of podman's containers.
pub(crate) const CONMON: Program = Program { name: "conmon", package: "conmon" };
/// Another peer, which Holdfast has a shim for; its package brings `ctr` and its own shim.
pub(crate) const CONTAINERD: Program = Program { name: "containerd", package: "containerd" };
/// Makes a Debian package.
pub(crate) const DPKG_DEB: Program = Program { name: "dpkg-deb", package: "dpkg" };
/// Lists processes.
pub(crate) const PS: Program = Program { name: "ps", package: "procps" };
/// Maps the ids of users that are not root.
pub(crate) const UIDMAP: Program = Program { name: "newuidmap", package: "uidmap" };
/// Counts system calls.
pub(crate) const STRACE: Program = Program { name: "strace", package: "strace" };

/// A browser.
pub(crate) const CHROMIUM: Program = Program { name: "chromium", package: "chromium" };
/// Controls the browser.
pub(crate) const CHROMEDRIVER: Program =
    Program { name: "chromedriver", package: "chromium-driver" };

/// Makes a root file system of Debian.
pub(crate) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };
/// Makes a file system from a directory.
pub(crate) const MKE2FS: Program = Program { name: "mke2fs", package: "e2fsprogs" };
/// Starts a program that dies with its parent.
pub(crate) const SETPRIV: Program = Program { name: "setpriv", package: "util-linux" };

/// Makes sure that the programs are there.
pub(crate) fn ensure(programs: &[Program]) -> anyhow::Result<()> {
    let missing: Vec<_> = programs.iter().filter(|program| !is_installed(program.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    println!("installing Debian packages: {}", packages.join(" "));
    if !is_root() {
        bail!(
            "root is needed for that; install them yourself: apt-get install {}",
            packages.join(" ")
        );
    }
    let apt = |args: &[&str]| {
        Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .output()
            .context("apt-get cannot be started; is this Debian?")
    };
    update_lists();
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(&packages);
    let output = apt(&install)?;
    if !output.status.success() {
        bail!("apt-get {} failed:\n{}", install.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    for program in missing {
        if !is_installed(program.name) {
            bail!(
                "package {} is installed, but {} is still not in PATH",
                program.package,
                program.name
            );
        }
    }
    Ok(())
}

/// Unpacks a Debian package and what it needs into a directory, and installs nothing.
pub(crate) fn unpack(package: &str, into: &Path) -> anyhow::Result<()> {
    println!("unpacking Debian packages into {}: {package} and what it needs", into.display());
    let partial = into.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let archives = partial.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    update_lists();
    let mut download = Command::new("apt-get");
    download
        .args(["install", "--download-only", "--yes", "--quiet", "--no-install-recommends"])
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", archives.display()))
        .arg(package);
    output(&mut download)?;
    let mut unpacked = 0;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            output(Command::new("dpkg").arg("-x").arg(&path).arg(partial.join("root")))?;
            unpacked += 1;
        }
    }
    ensure_that!(unpacked > 0, "apt-get downloaded no package for {package}");
    fs::rename(partial.join("root"), into)
        .with_context(|| format!("{} cannot be put in place", into.display()))?;
    Ok(fs::remove_dir_all(partial)?)
}

/// Has apt read its lists anew. Those of a fresh machine may be missing or old; a failure of this
/// alone means nothing.
pub(crate) fn update_lists() {
    let _ = Command::new("apt-get").arg("update").output();
}

/// Runs a program to its end and returns its standard output; a failure has all that it said.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        bail!(
            "{program} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program is in `PATH`.
pub(crate) fn is_installed(program: &str) -> bool {
    in_path(program).is_some()
}

/// The first program of this name in `PATH`.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Whether we may install packages and make device files.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}
