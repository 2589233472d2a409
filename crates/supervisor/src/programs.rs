//! Where the programs are that Holdfast starts: its own, and the OCI runtimes.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The name that stands for whichever runtime is there.
pub(crate) const AUTO: &str = "auto";
/// The runtime that comes with Holdfast.
const EMBEDDED: &str = "holdfast-oci";

/// Which runtime `auto` means on this machine at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeChoice {
    /// Its executable; `None` if there is none at all.
    pub program: Option<PathBuf>,
    /// Why this one.
    pub reason: String,
}

/// An executable by path, or by name in `PATH`; for `auto` the first of runc, crun and our own.
pub(crate) fn find_runtime(name: &str) -> Result<PathBuf, Error> {
    let missing = |looked: String| Error::NotInstalled { name: name.to_owned(), looked };
    if name == AUTO {
        let choice = choose_runtime();
        return choice.program.ok_or_else(|| Error::NotInstalled {
            name: "an OCI runtime (runc, crun or holdfast-oci)".to_owned(),
            looked: choice.reason,
        });
    }
    if name.contains('/') {
        let path = Path::new(name).canonicalize().map_err(|_| missing(name.to_owned()))?;
        return if is_executable(&path) { Ok(path) } else { Err(missing(name.to_owned())) };
    }
    if name == EMBEDDED {
        return find_own(EMBEDDED, None);
    }
    search_path(name).ok_or_else(|| missing("PATH".to_owned()))
}

/// What `auto` means now.
pub(crate) fn choose_runtime() -> RuntimeChoice {
    for name in ["runc", "crun"] {
        if let Some(program) = search_path(name) {
            let reason = match name {
                "runc" => "runc is in PATH".to_owned(),
                _ => "crun is in PATH, and runc is not".to_owned(),
            };
            return RuntimeChoice { program: Some(program), reason };
        }
    }
    match find_own(EMBEDDED, None) {
        Ok(program) => RuntimeChoice {
            program: Some(program),
            reason: "neither runc nor crun is in PATH; this one comes with Holdfast".to_owned(),
        },
        Err(error) => RuntimeChoice {
            program: None,
            reason: format!("neither runc nor crun is in PATH, and {error}"),
        },
    }
}

/// An executable of ours: what the caller said, else beside the running one, in libexec, in `PATH`.
pub(crate) fn find_own(name: &str, given: Option<&Path>) -> Result<PathBuf, Error> {
    let missing = |looked: String| Error::NotInstalled { name: name.to_owned(), looked };
    if let Some(path) = given {
        // Made absolute: it is started later, when the working directory may be another.
        let absolute = path.canonicalize().ok().filter(|path| is_executable(path));
        return absolute.ok_or_else(|| missing(path.display().to_string()));
    }
    let mut looked = Vec::new();
    if let Ok(executable) = std::env::current_exe()
        && let Some(dir) = executable.parent()
    {
        for place in [dir.to_owned(), dir.join("../libexec"), dir.join("../libexec/holdfast")] {
            let path = place.join(name);
            if is_executable(&path) {
                return Ok(path);
            }
            looked.push(place.display().to_string());
        }
    }
    looked.push("PATH".to_owned());
    search_path(name).ok_or_else(|| missing(looked.join(", ")))
}

/// The first executable of this name in `PATH`.
fn search_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

/// Whether this process may execute the file.
fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}
