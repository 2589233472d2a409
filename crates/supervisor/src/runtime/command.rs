//! The command line of the OCI runtime, which runc has established and which crun and youki share.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::process_dir::{PID, PROCESS_JSON, RUNTIME_LOG};
use holdfast_state::seed::SeedState;
use holdfast_state::{ContainerId, Launch, ProcessRecord, StateRoot};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::error::Error;
use crate::os::children::{Spawned, hide_our_own_manager};
use crate::runtime::{checkpoint, programs};

/// How many bytes of each output stream of a runtime command are kept.
const ERROR_LIMIT: u64 = 64 * 1024;

/// The runtime of one container.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: PathBuf,
    root: PathBuf,
    /// The user's additional global arguments, for every command.
    args: Vec<String>,
    /// The working directory of its commands, if it is there: wrappers of a runtime read `config.json` in it.
    bundle: PathBuf,
    spawned: Arc<Spawned>,
}

/// Creates the runtimes of a supervisor.
#[derive(Debug)]
pub(crate) struct Runtimes {
    /// The state root, which contains the state directories of the runtimes.
    pub(crate) root: Arc<StateRoot>,
    /// The register of child processes.
    pub(crate) spawned: Arc<Spawned>,
}

impl Runtimes {
    /// Finds a runtime by name or path.
    pub(crate) fn find(&self, name: &str) -> Result<Runtime, Error> {
        Ok(self.at(programs::find_runtime(name)?))
    }

    /// Returns the runtime of a container of containerd's 2016 shim. Its state stays in that shim's
    /// directory.
    pub(crate) fn of_seed(&self, state: &SeedState) -> Result<Runtime, Error> {
        let program = programs::find_runtime(&state.runtime)?;
        let spawned = self.spawned.clone();
        let (args, bundle) = Default::default();
        Ok(Runtime { program, root: state.runtime_root.clone(), args, bundle, spawned })
    }

    /// Returns the runtime at this path. Runtimes with different names have separate state
    /// directories.
    pub(crate) fn at(&self, program: PathBuf) -> Runtime {
        let name = program.file_name().map_or("runtime".into(), OsStr::to_string_lossy);
        let root = self.root.runtime_root(&name);
        let (args, bundle) = Default::default();
        Runtime { program, root, args, bundle, spawned: self.spawned.clone() }
    }
}

impl Runtime {
    /// Adds these arguments to every command. `--root DIR` among them replaces the state directory.
    pub(crate) fn with_args(mut self, args: &[String]) -> Self {
        let mut rest = args.iter();
        self.args.clear();
        while let Some(arg) = rest.next() {
            let root = match arg.strip_prefix("--root") {
                Some("") => rest.next().map(String::as_str),
                Some(value) => value.strip_prefix('='),
                None => None,
            };
            match root {
                Some(root) => self.root = root.into(),
                None => self.args.push(arg.clone()),
            }
        }
        self
    }

    /// Runs every command in the bundle of its container.
    pub(crate) fn in_bundle(mut self, bundle: &Path) -> Self {
        bundle.clone_into(&mut self.bundle);
        self
    }

    /// Returns that bundle. Empty for a container of containerd's 2016 shim.
    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Returns the first arguments of a command that writes this log. Wrappers of a runtime rely on it that each
    /// command has one.
    fn global(&self, log: &Path) -> Vec<OsString> {
        let mut args = vec![self.program.clone().into(), "--root".into(), self.root.clone().into()];
        // Before the user's arguments, so that these can override them.
        args.extend(["--log".into(), log.into(), "--log-format".into(), "json".into()]);
        args.extend(self.args.iter().map(OsString::from));
        args
    }

    /// Returns the complete command that creates a process; the shim runs it.
    pub(crate) fn launch(
        &self,
        id: &ContainerId,
        record: &ProcessRecord,
        launch: Launch,
    ) -> Result<Vec<OsString>, Error> {
        let dir = Path::new(&record.root);
        let mut args = self.global(&dir.join(RUNTIME_LOG));
        match launch {
            Launch::Create => args.push("create".into()),
            Launch::Run => args.extend(["run".into(), "--detach".into()]),
            Launch::Exec => args.extend([
                "exec".into(),
                "--detach".into(),
                "--process".into(),
                dir.join(PROCESS_JSON).into(),
            ]),
            Launch::Restore => {
                args.extend(["restore".into(), "--detach".into()]);
                args.extend(checkpoint::restore_args(Path::new(&record.checkpoint))?);
            }
        }
        args.extend(["--pid-file".into(), dir.join(PID).into()]);
        if launch != Launch::Exec {
            args.extend(["--bundle".into(), self.bundle.clone().into()]);
            if record.no_pivot_root {
                args.push("--no-pivot".into());
            }
            let keeps = record.holdfast.as_ref().is_some_and(|own| own.no_new_keyring);
            if keeps && launch != Launch::Restore {
                args.push("--no-new-keyring".into());
            }
        }
        args.push(id.as_str().into());
        Ok(args)
    }

    /// Starts a created container.
    pub(crate) async fn start(
        &self,
        id: &ContainerId,
        record: &ProcessRecord,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut args = self.global(&Path::new(&record.root).join(RUNTIME_LOG));
        args.push("start".into());
        self.run("start", args, id, limit).await.map(drop)
    }

    /// Runs a command with options of its own, for example to pause, resume, update or checkpoint a
    /// container.
    pub(crate) async fn command(
        &self,
        verb: &str,
        options: Vec<OsString>,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut args = self.plain();
        args.push(verb.into());
        args.extend(options);
        self.run(verb, args, id, limit).await.map(drop)
    }

    /// Sends a signal to all processes in the cgroup of a container.
    pub(crate) async fn signal_all(
        &self,
        id: &ContainerId,
        signal: i32,
        limit: Duration,
    ) -> Result<(), Error> {
        let mut args = self.plain();
        args.extend(["kill".into(), "--all".into(), id.as_str().into(), signal.to_string().into()]);
        let what = format!("{} kill {id}", self.program.display());
        run(&self.spawned, what, &args, &self.bundle, limit).await.map(drop)
    }

    /// Deletes the runtime's state of a container, and kills what is left of it. Succeeds if the
    /// runtime does not know the container.
    pub(crate) async fn delete(&self, id: &ContainerId, limit: Duration) -> Result<(), Error> {
        if !self.root.join(id.as_str()).exists() {
            return Ok(());
        }
        let mut args = self.plain();
        args.extend(["delete".into(), "--force".into()]);
        let deleted = self.run("delete", args, id, limit).await.map(drop);
        match deleted {
            // The command has failed after it had deleted the container.
            Err(error) if !self.root.join(id.as_str()).exists() => {
                tracing::warn!(container = %id, %error, "the container is deleted; the runtime failed afterwards");
                Ok(())
            }
            deleted => deleted,
        }
    }

    /// Returns the runtime's status of a container: `created`, `running`, `paused` or `stopped`.
    pub(crate) async fn status(&self, id: &ContainerId, limit: Duration) -> Result<String, Error> {
        let mut args = self.plain();
        args.push("state".into());
        let output = self.run("state", args, id, limit).await?;
        let state: serde_json::Value = serde_json::from_slice(&output)
            .map_err(|error| Error::Runtime(format!("state: {error}")))?;
        Ok(state["status"].as_str().unwrap_or_default().to_owned())
    }

    /// Returns the first arguments of a command whose standard error is read.
    fn plain(&self) -> Vec<OsString> {
        self.global(Path::new("/dev/stderr"))
    }

    async fn run(
        &self,
        verb: &str,
        mut args: Vec<OsString>,
        id: &ContainerId,
        limit: Duration,
    ) -> Result<Vec<u8>, Error> {
        args.push(id.as_str().into());
        let what = format!("{} {verb} {id}", self.program.display());
        run(&self.spawned, what, &args, &self.bundle, limit).await
    }
}

/// Runs a runtime command in a directory, if that is there, and returns its output. If it exceeds the time limit, it is killed with
/// all its children that stayed in its process group.
pub(crate) async fn run(
    spawned: &Spawned,
    command: String,
    args: &[OsString],
    cwd: &Path,
    limit: Duration,
) -> Result<Vec<u8>, Error> {
    let start = || {
        let mut command = Command::new(&args[0]);
        if cwd.is_dir() {
            command.current_dir(cwd);
        }
        command.args(&args[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        hide_our_own_manager(command.as_std_mut());
        command.process_group(0).kill_on_drop(true).spawn()
    };
    let started = spawned.enter(start, |child| child.id().unwrap_or_default());
    let mut child = started.map_err(Error::io(format!("run {command}")))?;
    let pid = child.id().unwrap_or_default();
    let group = child.id().map(|pid| Pid::from_raw(pid.cast_signed()));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        let (output, errors, status) = tokio::join!(read(stdout), read(stderr), child.wait());
        Ok::<_, io::Error>((output?, errors?, status?))
    };
    let finished = timeout(limit, work).await;
    if finished.is_ok() {
        spawned.leave(pid);
    }
    let (output, errors, status) = match finished {
        Ok(result) => result.map_err(Error::io(format!("run {command}")))?,
        Err(_elapsed) => {
            if let Some(group) = group {
                // The leader of the group is not reaped yet, so the group's number still belongs to
                // it.
                let _ = killpg(group, Signal::SIGKILL);
            }
            let _ = child.wait().await;
            spawned.leave(pid);
            // Processes that the command left in other process groups may become our children.
            spawned.expect_strangers();
            return Err(Error::RuntimeTimeout { command, after: limit });
        }
    };
    if status.success() {
        return Ok(output);
    }
    let text = String::from_utf8_lossy(&errors);
    let text = holdfast_state::log::first_error(&errors).unwrap_or_else(|| text.trim().to_owned());
    Err(Error::Runtime(if text.is_empty() { format!("{command}: {status}") } else { text }))
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut from = from.take(ERROR_LIMIT);
        from.read_to_end(&mut bytes).await?;
        // The rest is read and dropped: a runtime must not block or die because of the size of its
        // output.
        tokio::io::copy(&mut from.into_inner(), &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}
