//! The emulator. If it is not installed, Debian's packages of it are unpacked beside the image
//! rather than installed: on a machine with another release of qemu's tools apt would remove those.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::setup;

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";

/// How to start the emulator.
#[derive(Debug, Clone)]
pub(super) struct Qemu {
    program: PathBuf,
    /// Where it was unpacked, if it is not the system's.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// A command that dies with us, so that no machine is left if we are killed.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig=KILL").arg(&self.program);
        if let Some(root) = &self.unpacked {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
            let paths = libraries.map(|dir| root.join(dir).display().to_string());
            command.env("LD_LIBRARY_PATH", paths.join(":"));
            for firmware in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(firmware));
            }
        }
        command
    }
}

/// Finds the emulator, or unpacks it below `home`.
pub(super) fn qemu(home: &Path) -> anyhow::Result<Qemu> {
    if setup::is_installed(PROGRAM) {
        return Ok(Qemu { program: PROGRAM.into(), unpacked: None });
    }
    let root = home.join("tools");
    let program = root.join("usr/bin").join(PROGRAM);
    if !program.is_file() {
        unpack(home, &root)?;
    }
    Ok(Qemu { program, unpacked: Some(root) })
}

fn unpack(home: &Path, root: &Path) -> anyhow::Result<()> {
    println!("unpacking Debian packages into {}: {PACKAGE} and what it needs", root.display());
    let partial = home.join("tools.partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let archives = partial.join("archives");
    fs::create_dir_all(archives.join("partial"))?;
    setup::update_lists();
    let mut download = Command::new("apt-get");
    download
        .args(["install", "--download-only", "--yes", "--quiet", "--no-install-recommends"])
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", archives.display()))
        .arg(PACKAGE);
    setup::output(&mut download)?;
    let mut unpacked = 0;
    for entry in fs::read_dir(&archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            setup::output(Command::new("dpkg").arg("-x").arg(&path).arg(partial.join("root")))?;
            unpacked += 1;
        }
    }
    ensure!(unpacked > 0, "apt-get downloaded no package for {PACKAGE}");
    fs::rename(partial.join("root"), root)
        .with_context(|| format!("{} cannot be put in place", root.display()))?;
    Ok(fs::remove_dir_all(partial)?)
}
