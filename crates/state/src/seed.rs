//! `state.json`: what the seed kept of a container beside its processes. Read, never written.

use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use crate::ContainerDir;

const NAME: &str = "state.json";
const LIMIT: u64 = 1024 * 1024;

/// The part of it that Holdfast needs; the rest is in the records of the processes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeedState {
    /// The bundle.
    #[serde(default)]
    pub bundle: PathBuf,
    /// The runtime, by name or path.
    pub runtime: String,
    /// Where the runtime keeps its state.
    pub runtime_root: PathBuf,
}

impl SeedState {
    /// Reads it; `None` if the seed left none.
    pub fn load(container: &ContainerDir) -> io::Result<Option<Self>> {
        match container.directory().read(NAME, LIMIT) {
            Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
