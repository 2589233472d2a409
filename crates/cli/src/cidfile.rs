//! `--cidfile`: the id of a container in a file, for scripts.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use holdfast_daemon::api::ContainerId;

/// A new file for an id. It is removed again if there is no container.
#[derive(Debug)]
pub(crate) struct CidFile {
    path: PathBuf,
    file: File,
    filled: bool,
}

impl CidFile {
    /// Creates it before the container: if that fails, nothing has to be undone.
    pub(crate) fn create(path: PathBuf) -> anyhow::Result<Self> {
        let file =
            File::create_new(&path).with_context(|| format!("--cidfile {}", path.display()))?;
        Ok(Self { path, file, filled: false })
    }

    /// Writes the id of the container, which is there now.
    pub(crate) fn fill(mut self, id: &ContainerId) -> anyhow::Result<()> {
        self.filled = true;
        self.file
            .write_all(id.as_str().as_bytes())
            .with_context(|| format!("--cidfile {}; the id is {id}", self.path.display()))
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if !self.filled {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
