//! The programs that a command needs. What is missing is installed from Debian's packages, and
//! said so; what is there is left as it is.

use std::process::Command;

use anyhow::{Context, bail};

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
/// Counts system calls.
pub(crate) const STRACE: Program = Program { name: "strace", package: "strace" };

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
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Whether we may install packages and make device files.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}
