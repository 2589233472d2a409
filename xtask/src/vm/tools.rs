//! The emulator. If it is not installed, Debian's packages of it are unpacked beside the image
//! rather than installed: on a machine with another release of qemu's tools apt would remove those.

use std::path::{Path, PathBuf};
use std::process::Command;

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
        setup::unpack(PACKAGE, &root)?;
    }
    Ok(Qemu { program, unpacked: Some(root) })
}
