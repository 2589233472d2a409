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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StateRoot;

    #[test]
    fn what_the_seed_kept_is_read_and_anything_else_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let root = StateRoot::open(temp.path()).unwrap();
        let container = root.stage_container().unwrap().publish(&"c".parse().unwrap()).unwrap();
        assert_eq!(SeedState::load(&container).unwrap(), None);
        let load = |content: &str| {
            std::fs::write(temp.path().join("c").join(NAME), content).unwrap();
            SeedState::load(&container)
        };
        let state = SeedState {
            bundle: "/b".into(),
            runtime: "runc".to_owned(),
            runtime_root: "/run/runc".into(),
        };
        let content = r#"{"root":"/c","bundle":"/b","runtime":"runc","runtimeArgs":null,"runtimeRoot":"/run/runc","shim":"containerd-shim","noPivotRoot":false,"timeout":15000000000}"#;
        assert_eq!(load(content).unwrap().as_ref(), Some(&state));
        let arguments = format!("[\"{}\"]", "x".repeat(100_000));
        assert_eq!(load(&content.replace("null", &arguments)).unwrap(), Some(state));
        for damaged in ["", "{}", &content[..content.len() - 1]] {
            assert!(load(damaged).is_err(), "{damaged:?}");
        }
        let large = " ".repeat(usize::try_from(LIMIT).unwrap());
        assert_eq!(load(&(large + content)).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::remove_file(temp.path().join("c").join(NAME)).unwrap();
        std::fs::create_dir(temp.path().join("c").join(NAME)).unwrap();
        assert!(SeedState::load(&container).is_err());
    }
}
