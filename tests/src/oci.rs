//! Containers made by an OCI runtime that is called directly, with a bundle and nothing between.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{binary, busybox_bundle, edit_json, runtime::in_path};

/// How long a command, or a container, may take.
const LIMIT: Duration = Duration::from_secs(60);

/// The embedded runtime, and runc where it is installed, to be held beside it.
#[must_use]
pub fn both() -> Vec<Oci> {
    [binary("holdfast-oci")].into_iter().chain(in_path("runc")).map(Oci::new).collect()
}

/// The embedded runtime.
#[must_use]
pub fn embedded() -> Oci {
    Oci::new(binary("holdfast-oci"))
}

/// A runtime with a bundle of busybox and a directory for its state.
#[derive(Debug)]
pub struct Oci {
    runtime: PathBuf,
    directory: TempDir,
    /// A process in whose mount namespace containers are made.
    host: Option<u32>,
    count: AtomicU32,
}

/// What came of a container.
#[derive(Debug, Default)]
pub struct Made {
    /// Why it could not be made, if it could not.
    pub refused: Option<String>,
    /// Why it could not be started.
    pub not_started: Option<String>,
    /// What its program wrote.
    pub output: String,
    /// What `delete` wrote.
    pub deleted: String,
}

impl Made {
    /// What the program wrote.
    ///
    /// # Panics
    ///
    /// If there was none.
    #[track_caller]
    #[must_use]
    pub fn said(self) -> String {
        assert_eq!(self.refused, None, "it is made");
        assert_eq!(self.not_started, None, "it is started");
        self.output
    }

    /// Why the container was not made.
    ///
    /// # Panics
    ///
    /// If it was.
    #[track_caller]
    #[must_use]
    pub fn reason(self) -> String {
        self.refused.unwrap_or_else(|| panic!("it was made, and wrote {:?}", self.output))
    }
}

impl Oci {
    /// Makes the bundle.
    ///
    /// # Panics
    ///
    /// If that fails.
    #[must_use]
    pub fn new(runtime: PathBuf) -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-test-oci-").tempdir_in("/tmp");
        let directory = directory.expect("make a directory");
        busybox_bundle(&directory.path().join("bundle"));
        Self { runtime, directory, host: None, count: AtomicU32::new(0) }
    }

    /// Has containers be made in the mount namespace of this process.
    #[must_use]
    pub fn seen_by(mut self, host: u32) -> Self {
        self.host = Some(host);
        self
    }

    /// Whether it is runc.
    #[must_use]
    pub fn is_runc(&self) -> bool {
        self.runtime.ends_with("runc")
    }

    /// The directory of this test.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("bundle/rootfs")
    }

    /// Makes a container of a changed configuration that executes a shell's script, waits until it has
    /// ended, and deletes it.
    ///
    /// # Panics
    ///
    /// If the container or the runtime does not end.
    pub fn run(&self, script: &str, change: impl FnOnce(&mut Value)) -> Made {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let id = format!("oci-{}-{number}", self.path().file_name().expect("a name").display());
        let bundle = self.path().join("bundle");
        let config = bundle.join("config.json");
        let original = fs::read(&config).expect("read the configuration");
        edit_json(&config, |config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(["sh", "-c", script]);
            config["root"]["readonly"] = json!(false);
            change(config);
        });
        let output = self.path().join(format!("output-{number}"));
        let mut made = Made::default();
        let create = ["create", "--bundle", bundle.to_str().expect("UTF-8"), &id];
        made.refused = failed(&self.call(&create, Some(&output)));
        fs::write(&config, original).expect("write the configuration");
        if made.refused.is_none() {
            made.not_started = failed(&self.call(&["start", &id], None));
            self.wait(&id);
        } else {
            let text = fs::read_to_string(&output).unwrap_or_default();
            made.refused = made.refused.map(|reason| format!("{reason}{text}"));
        }
        let deleted = self.call(&["delete", "--force", &id], None);
        made.deleted = String::from_utf8_lossy(&deleted.stderr).into_owned();
        made.output = fs::read_to_string(&output).unwrap_or_default();
        let left = self.call(&["state", &id], None);
        assert!(!left.status.success(), "nothing is left of {id}");
        made
    }

    fn wait(&self, id: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let state = self.call(&["state", id], None);
            let state: Value = serde_json::from_slice(&state.stdout).unwrap_or_default();
            if state["status"] == "stopped" || state.is_null() {
                return;
            }
            assert!(Instant::now() < deadline, "{id} ends: {state}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Calls the runtime; a container's output goes to a file.
    fn call(&self, args: &[&str], output: Option<&Path>) -> Output {
        let mut command = match self.host {
            Some(host) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{host}/ns/mnt")).arg("--").arg(&self.runtime);
                command
            }
            None => Command::new(&self.runtime),
        };
        command.arg("--root").arg(self.path().join("state")).args(args).stdin(Stdio::null());
        let file = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            Stdio::from(file.expect("make a file for output"))
        };
        if let Some(path) = output {
            command.stdout(file(path)).stderr(file(path));
        }
        command.output().expect("execute the runtime")
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        // What a test that failed has left.
        for entry in fs::read_dir(self.path().join("state")).into_iter().flatten().flatten() {
            let id = entry.file_name();
            eprintln!("left over, deleted: container {}", id.display());
            let _ = self.call(&["delete", "--force", &id.to_string_lossy()], None);
        }
    }
}

/// Why a command failed, if it did.
fn failed(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(text)
}

/// The mounts that a container's own mountinfo lists: each line's mount point, options, and optional
/// fields.
#[must_use]
pub fn mounts(mountinfo: &str) -> Vec<(String, String, String)> {
    let fields = |line: &str| {
        let (mount, _) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(4).map(str::to_owned);
        let (point, options) = (fields.next()?, fields.next()?);
        Some((point, options, fields.collect::<Vec<_>>().join(" ")))
    };
    mountinfo.lines().filter_map(fields).collect()
}
