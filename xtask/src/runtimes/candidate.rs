//! The runtimes that are tried: where each is, or why it can't be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{bail, ensure};
use serde_json::json;

use crate::setup;
use crate::suite::EMBEDDED;

/// The version of youki whose library the embedded runtime is built on.
const YOUKI: &str = "0.7.0";

/// Finds or makes a runtime's executable.
type Find = fn() -> anyhow::Result<PathBuf>;

/// A runtime.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) name: &'static str,
    /// Its executable, or why it is not run.
    pub(super) program: Result<PathBuf, String>,
    /// What it says of itself; empty if it is not there.
    pub(super) version: String,
}

impl Candidate {
    /// All, or those that were asked for. Whether each works on this machine is tried.
    pub(super) fn all(long: bool, only: &[String]) -> anyhow::Result<Vec<Self>> {
        let known: [(&str, bool, Find); 4] = [
            ("runc", true, runc),
            ("embedded", true, embedded),
            ("youki", long, youki),
            ("crun", long, crun),
        ];
        if let Some(name) = only.iter().find(|name| known.iter().all(|(known, ..)| known != name)) {
            bail!("no such runtime: {name}; there are runc, embedded, youki and crun");
        }
        let chosen = known.into_iter().filter(|(name, by_default, _)| {
            if only.is_empty() { *by_default } else { only.iter().any(|one| one == name) }
        });
        Ok(chosen.map(|(name, _, find)| Self::of(name, find())).collect())
    }

    fn of(name: &'static str, found: anyhow::Result<PathBuf>) -> Self {
        let program = match found {
            Ok(program) => program,
            Err(error) => {
                let reason = format!("{error:#}");
                return Self { name, program: Err(last_line(&reason)), version: String::new() };
            }
        };
        let version = setup::output(Command::new(&program).arg("--version"));
        let version = version.map(|text| text.lines().next().unwrap_or_default().to_owned());
        let works = version.and_then(|version| probe(&program).map(|()| version));
        match works {
            Ok(version) => Self { name, program: Ok(program), version },
            Err(error) => {
                let version = setup::output(Command::new(&program).arg("--version"));
                let version = version.unwrap_or_default().lines().next().unwrap_or_default().into();
                Self { name, program: Err(last_line(&format!("{error:#}"))), version }
            }
        }
    }
}

fn last_line(text: &str) -> String {
    text.trim().lines().last().unwrap_or_default().to_owned()
}

fn runc() -> anyhow::Result<PathBuf> {
    setup::in_path("runc").ok_or_else(|| anyhow::anyhow!("runc is not in PATH"))
}

fn embedded() -> anyhow::Result<PathBuf> {
    Ok(crate::executables("debug").join(EMBEDDED))
}

/// Built without seccomp, as the embedded one: libseccomp's headers are not on every machine.
fn youki() -> anyhow::Result<PathBuf> {
    let root = crate::target().join("tools");
    let program = root.join("bin/youki");
    if !program.is_file() {
        println!("building youki {YOUKI} into {}", root.display());
        crate::run(
            crate::cargo()
                .args(["install", "youki", "--version", YOUKI, "--locked", "--quiet"])
                .args(["--no-default-features", "--features", "v1,v2,systemd", "--root"])
                .arg(&root),
        )?;
    }
    Ok(program)
}

/// Unpacked rather than installed: installed, it would be what `auto` means where runc is not.
fn crun() -> anyhow::Result<PathBuf> {
    if let Some(program) = setup::in_path("crun") {
        return Ok(program);
    }
    let root = crate::target().join("tools/crun");
    if !root.exists() {
        fs::create_dir_all(crate::target().join("tools"))?;
        setup::unpack("crun", &root)?;
    }
    // It finds the libraries that came with it.
    let program = root.join("crun");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={0}/usr/lib/x86_64-linux-gnu:{0}/lib/x86_64-linux-gnu \
         exec {0}/usr/bin/crun \"$@\"\n",
        root.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

/// Has it run a container that does nothing.
fn probe(program: &Path) -> anyhow::Result<()> {
    let scratch = tempfile::Builder::new().prefix("holdfast-probe-").tempdir()?;
    let (bundle, root) = (scratch.path().join("bundle"), scratch.path().join("root"));
    for dir in ["rootfs/proc", "rootfs/dev", "rootfs/bin"] {
        fs::create_dir_all(bundle.join(dir))?;
    }
    let busybox = setup::in_path("busybox").ok_or_else(|| anyhow::anyhow!("no busybox"))?;
    fs::copy(busybox, bundle.join("rootfs/bin/busybox"))?;
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/busybox", "true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
        ],
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
    });
    fs::write(bundle.join("config.json"), config.to_string())?;
    let id = format!("holdfast-probe-{}", std::process::id());
    let errors = scratch.path().join("errors");
    let command = |args: &[&str]| {
        let mut command = Command::new(program);
        command.arg("--root").arg(&root).args(args).stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    // Its standard error is a file: the container has it too, and may hold a pipe open.
    let status = command(&["run", "--detach", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .stderr(fs::File::create(&errors)?)
        .status()?;
    let _ = command(&["delete", "--force", &id]).stderr(Stdio::null()).status();
    let said = fs::read_to_string(&errors)?;
    ensure!(status.success(), "{}", said.trim());
    Ok(())
}
