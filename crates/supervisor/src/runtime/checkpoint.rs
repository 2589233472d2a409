//! Checkpoints. The options of a checkpoint are stored beside its images, in the format of
//! containerd's 2016 shim, so that the restore passes the same options to CRIU.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use holdfast_state::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The file beside the images that stores the options.
const CONFIG: &str = "config.json";
/// The directory in which CRIU works and writes its logs.
const WORK: &str = "criu.work";

/// The options of a checkpoint (criu(8)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointOptions {
    pub(crate) path: PathBuf,
    pub(crate) work_path: Option<PathBuf>,
    config: Config,
}

/// The `config.json` of a checkpoint, as containerd's 2016 shim wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    created: Option<Timestamp>,
    name: String,
    tcp: bool,
    unix_sockets: bool,
    shell: bool,
    exit: bool,
    #[serde(rename = "emptyNS")]
    empty_ns: Vec<String>,
}

impl CheckpointOptions {
    /// Writes the checkpoint to this directory, which is created if necessary. By default the
    /// container ends with the checkpoint.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let config = Config { exit: true, ..Config::default() };
        Self { path: directory.into(), work_path: None, config }
    }

    /// Sets the directory in which CRIU works and writes its logs. The default is `criu.work` in
    /// the directory of the checkpoint.
    #[must_use]
    pub fn work_path(mut self, directory: impl Into<PathBuf>) -> Self {
        self.work_path = Some(directory.into());
        self
    }

    /// Keeps the container running after the checkpoint.
    #[must_use]
    pub fn leave_running(mut self) -> Self {
        self.config.exit = false;
        self
    }

    /// Includes established TCP connections.
    #[must_use]
    pub fn tcp_established(mut self) -> Self {
        self.config.tcp = true;
        self
    }

    /// Allows Unix sockets whose other end is outside the container.
    #[must_use]
    pub fn unix_sockets(mut self) -> Self {
        self.config.unix_sockets = true;
        self
    }

    /// Allows a session or terminal that was inherited from outside the container.
    #[must_use]
    pub fn shell_job(mut self) -> Self {
        self.config.shell = true;
        self
    }

    /// Omits the content of a namespace of this type, for example `network`.
    #[must_use]
    pub fn empty_namespace(mut self, kind: impl Into<String>) -> Self {
        self.config.empty_ns.push(kind.into());
        self
    }

    /// Returns the options of the runtime's `checkpoint` command.
    pub(crate) fn args(&self) -> Vec<OsString> {
        let work = self.work_path.clone().unwrap_or_else(|| self.path.join(WORK));
        let mut args = self.config.args(&self.path, &work);
        if !self.config.exit {
            args.push("--leave-running".into());
        }
        args
    }

    /// Creates the directory, before the runtime is called.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        let failed = |cause| Error::Io { attempt: format!("make {}", self.path.display()), cause };
        fs::create_dir_all(&self.path).map_err(failed)
    }

    /// Stores the options, once the images are written.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let path = self.path.join(CONFIG);
        let config = Config { created: Some(Timestamp::now()), ..self.config.clone() };
        serde_json::to_vec(&config)
            .map_err(Into::into)
            .and_then(|content| fs::write(&path, content))
            .map_err(Error::io(format!("write {}", path.display())))
    }
}

impl Config {
    fn args(&self, images: &Path, work: &Path) -> Vec<OsString> {
        let mut args: Vec<OsString> =
            vec!["--image-path".into(), images.into(), "--work-path".into(), work.into()];
        let flags = [
            (self.shell, "--shell-job"),
            (self.tcp, "--tcp-established"),
            (self.unix_sockets, "--ext-unix-sk"),
        ];
        args.extend(flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| flag.into()));
        for kind in &self.empty_ns {
            args.extend(["--empty-ns".into(), kind.into()]);
        }
        args
    }
}

/// Returns the absolute path of a checkpoint's directory.
pub(crate) fn find(path: &Path) -> Result<PathBuf, Error> {
    let bad = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
    let path = path.canonicalize().map_err(|error| bad(error.to_string()))?;
    if path.is_dir() { Ok(path) } else { Err(bad("not a directory".to_owned())) }
}

/// Returns the options of the runtime's `restore` command. Images without a `config.json`, which
/// were written by hand, are restored without any option.
pub(crate) fn restore_args(images: &Path) -> Result<Vec<OsString>, Error> {
    let bad = |reason: String| Error::Checkpoint { path: images.to_owned(), reason };
    let config = match fs::read(images.join(CONFIG)) {
        Ok(content) => {
            serde_json::from_slice(&content).map_err(|error| bad(format!("{CONFIG}: {error}")))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Config::default(),
        Err(error) => return Err(bad(format!("{CONFIG}: {error}"))),
    };
    Ok(config.args(images, &images.join(WORK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_told_what_the_checkpoint_was_told() {
        let temp = tempfile::tempdir().unwrap();
        let options = CheckpointOptions::new(temp.path())
            .tcp_established()
            .shell_job()
            .empty_namespace("network")
            .leave_running();
        assert_eq!(options.args().last().unwrap(), "--leave-running");
        options.prepare().unwrap();
        assert_eq!(restore_args(temp.path()).unwrap().len(), 4);
        options.save().unwrap();
        let flags = &restore_args(temp.path()).unwrap()[4..];
        assert_eq!(flags, ["--shell-job", "--tcp-established", "--empty-ns", "network"]);
        fs::write(temp.path().join(CONFIG), r#"{"created":"x","tcp":true,"unixSockets":true}"#)
            .unwrap();
        assert_eq!(restore_args(temp.path()).unwrap()[4..], ["--tcp-established", "--ext-unix-sk"]);
        fs::write(temp.path().join(CONFIG), "{").unwrap();
        assert!(restore_args(temp.path()).is_err());
    }
}
