//! Containers that cost next to nothing and end when they are told to.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use holdfast_state::{LogSpec, Logging};
use holdfast_supervisor::{ContainerId, ContainerOptions, Stdio};
use holdfast_tests::{binary, busybox_bundle, edit_json, runtime::in_path};
use nix::sys::stat::Mode;
use serde_json::json;

use crate::Outcome;

/// The fake runtime: processes on the host, with no isolation whatever.
pub(crate) const FAKE: &str = "fake";

/// A FIFO at which containers wait for a byte each. It stands in the bundle's root file system, and
/// opens by itself when this process dies.
pub(crate) struct Gate {
    path: PathBuf,
    inside: String,
    fifo: File,
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Gate {
    /// Lets this many through.
    pub(crate) fn open(&self, many: usize) -> Outcome<()> {
        Ok((&self.fifo).write_all(&vec![b'\n'; many])?)
    }
}

/// Of which kind all containers of a run are.
pub(crate) struct Kind {
    pub(crate) runtime: String,
    pub(crate) bundle: PathBuf,
    /// Where their output goes.
    pub(crate) log: LogSpec,
    fake: bool,
}

impl Kind {
    pub(crate) fn new(runtime: &str, log: &LogSpec, directory: &Path) -> Outcome<Self> {
        let bundle = busybox_bundle(&directory.join("bundle"));
        fs::create_dir(bundle.join("rootfs/gates"))?;
        edit_json(&bundle.join("config.json"), |config| {
            config["process"]["terminal"] = json!(false);
        });
        let program = match real_runtime(runtime) {
            Some(program) => program,
            None if runtime == FAKE => binary("fake-runtime"),
            None => return Err(format!("there is no runtime {runtime}").into()),
        };
        let runtime_path = program.to_str().ok_or("a path that is not UTF-8")?.to_owned();
        Ok(Self { runtime: runtime_path, bundle, log: log.clone(), fake: runtime == FAKE })
    }

    pub(crate) fn gate(&self, name: &str) -> Outcome<Gate> {
        let path = self.bundle.join("rootfs/gates").join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        let fifo = File::options().read(true).write(true).open(&path)?;
        Ok(Gate { path, inside: format!("/gates/{name}"), fifo })
    }

    /// What a container runs that waits at the gate and exits with the code; one of the fake runtime's
    /// adds the time of that to the stamps.
    pub(crate) fn args(&self, gate: &Gate, code: u8, stamps: &Path) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        if self.fake {
            vec![text(&binary("idler")), text(&gate.path), code.to_string(), text(stamps)]
        } else {
            let script = format!("read -r _ < {}; exit {code}", gate.inside);
            ["sh".to_owned(), "-c".to_owned(), script].into()
        }
    }

    /// The container of this number, for the library.
    pub(crate) fn options(
        &self,
        gate: &Gate,
        number: usize,
        stamps: &Path,
    ) -> Outcome<(ContainerOptions, u8)> {
        let (id, code) = numbered(number)?;
        let args = self.args(gate, code, stamps);
        let stdio = Stdio::new().log(Logging::new(vec![self.log.clone()])?);
        Ok((ContainerOptions::bundle(&self.bundle).id(id).args(args).stdio(stdio), code))
    }

    /// Whether its containers write stamps.
    pub(crate) fn stamps(&self) -> bool {
        self.fake
    }
}

/// The executable of a runtime that is not the fake one.
pub(crate) fn real_runtime(name: &str) -> Option<PathBuf> {
    match name {
        FAKE => None,
        "embedded" => Some(binary("holdfast-oci")),
        path if path.contains('/') => Path::new(path).canonicalize().ok(),
        name => in_path(name),
    }
}

/// The id of a container and the code with which it exits. Of this run: cgroups are the machine's.
pub(crate) fn numbered(number: usize) -> Outcome<(ContainerId, u8)> {
    let id = format!("bench-{}-{number:05}", std::process::id()).parse()?;
    Ok((id, u8::try_from(number % 251)?))
}

/// What runtimes still know of, below each state root of a directory.
pub(crate) fn runtime_state(directory: &Path) -> Vec<(PathBuf, String)> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    let states = entries(directory).flat_map(|root| entries(&root.path().join(".runtime")));
    states
        .flat_map(|state| {
            let state = state.path();
            let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
            let ids: Vec<String> = entries(&state).map(name).collect();
            ids.into_iter().map(move |id| (state.clone(), id))
        })
        .collect()
}
