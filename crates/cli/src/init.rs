//! `--init`: `holdfast-init` as the first process of a container. It is mounted into the container, and comes
//! before the program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

/// Where it is in the container: every runtime makes `/dev`.
pub(crate) const PLACE: &str = "/dev/init";
const NAME: &str = "holdfast-init";

/// Finds the program: beside this one, in libexec, in PATH.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let beside = own.parent().unwrap_or(Path::new("/"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = [beside.to_owned(), beside.join("../libexec/holdfast")];
    let found = places.into_iter().chain(std::env::split_paths(&path)).find_map(|directory| {
        let program = directory.join(NAME);
        program.is_file().then_some(program)
    });
    match found {
        // A mount has to be of the file itself.
        Some(program) => program.canonicalize().with_context(|| program.display().to_string()),
        None => bail!("--init needs {NAME}, which is neither beside this program nor in PATH"),
    }
}

/// Returns what a bundle runs.
pub(crate) fn args_of(bundle: &Path) -> anyhow::Result<Vec<String>> {
    let path = bundle.join("config.json");
    let about = || path.display().to_string();
    let content = fs::read(&path).with_context(about)?;
    let mut config: Value = serde_json::from_slice(&content).with_context(about)?;
    serde_json::from_value(config["process"]["args"].take()).with_context(about)
}
