//! Finds the executables that Holdfast starts: its own, and the OCI runtimes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_state::shim_options;
use nix::unistd::{AccessFlags, access};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::os::children::Spawned;
use crate::runtime::command;

/// The name that selects an installed runtime automatically.
pub(crate) const AUTO: &str = "auto";
/// The runtime that is part of Holdfast.
pub(crate) const EMBEDDED: &str = "holdfast-oci";

/// The runtime that `auto` selects on this machine at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct RuntimeChoice {
    /// The path of its executable; `None` if there is no runtime.
    pub program: Option<PathBuf>,
    /// Why this runtime was selected.
    pub reason: String,
}

/// Finds a runtime by path, or by name in `PATH`; for `auto`, the first of runc, crun and
/// `holdfast-oci`.
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

/// Returns the runtime that `auto` selects now.
pub(crate) fn choose_runtime() -> RuntimeChoice {
    choose(search_path, || find_own(EMBEDDED, None))
}

/// Prefers runc to crun, and both to the embedded runtime: users know the runtime that they have
/// installed.
fn choose(
    search: impl Fn(&str) -> Option<PathBuf>,
    own: impl FnOnce() -> Result<PathBuf, Error>,
) -> RuntimeChoice {
    for (name, reason) in
        [("runc", "runc is in PATH"), ("crun", "crun is in PATH, and runc is not")]
    {
        if let Some(program) = search(name) {
            return RuntimeChoice { program: Some(program), reason: reason.to_owned() };
        }
    }
    match own() {
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

/// Finds an executable of Holdfast: the given path, else in the directory of the running
/// executable, in libexec, and in `PATH`.
pub(crate) fn find_own(name: &str, given: Option<&Path>) -> Result<PathBuf, Error> {
    let missing = |looked: String| Error::NotInstalled { name: name.to_owned(), looked };
    if let Some(path) = given {
        // Made absolute, because it is started later, when the working directory may be another
        // one.
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

/// How long a shim may take to report its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Checks that a shim understands this library.
pub(crate) async fn check_shim(spawned: &Spawned, shim: &Path) -> Result<(), Error> {
    let args = [shim.into(), shim_options::VERSION.into()];
    let text = format!("{} {}", shim.display(), shim_options::VERSION);
    let answer = match command::run(spawned, text, &args, Path::new(""), VERSION_LIMIT).await {
        Ok(answer) => String::from_utf8_lossy(&answer).trim().to_owned(),
        // The shims of earlier builds do not know this option.
        Err(Error::Runtime(_)) => "a release that does not report its version".to_owned(),
        Err(error) => return Err(error),
    };
    let found = answer.chars().take(100).collect();
    let protocol = answer.rsplit_once(" protocol ").and_then(|(_, number)| number.parse().ok());
    match protocol {
        Some(shim_options::PROTOCOL..) => Ok(()),
        Some(0_u32..) | None => {
            let needed = shim_options::PROTOCOL;
            Err(Error::ShimVersion { path: shim.to_owned(), found, needed })
        }
    }
}

/// Returns the first executable of this name in `PATH`.
fn search_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

/// Returns whether this process may execute the file.
fn is_executable(path: &Path) -> bool {
    path.is_file() && access(path, AccessFlags::X_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the choice, and its reason, when these runtimes are in `PATH`.
    fn with(there: &[&str], own: Option<&str>) -> (Option<String>, String) {
        let search = |name: &str| there.contains(&name).then(|| Path::new("/path").join(name));
        let missing = || Error::NotInstalled { name: EMBEDDED.into(), looked: "/here".into() };
        let choice = choose(search, || own.map(PathBuf::from).ok_or_else(missing));
        (choice.program.map(|program| program.display().to_string()), choice.reason)
    }

    #[test]
    fn auto_is_runc_else_crun_else_our_own_and_says_why() {
        let own = Some("/lib/holdfast-oci");
        let (program, reason) = with(&["crun", "runc", "youki"], own);
        assert_eq!(program.as_deref(), Some("/path/runc"));
        assert_eq!(reason, "runc is in PATH");
        let (program, reason) = with(&["crun", "youki"], own);
        assert_eq!(program.as_deref(), Some("/path/crun"));
        assert_eq!(reason, "crun is in PATH, and runc is not");
        let (program, reason) = with(&["youki"], own);
        assert_eq!(program.as_deref(), own);
        assert_eq!(reason, "neither runc nor crun is in PATH; this one comes with Holdfast");
    }

    #[test]
    fn where_there_is_none_at_all_it_is_said_which_were_looked_for_and_where() {
        let (program, reason) = with(&[], None);
        assert_eq!(program, None);
        assert!(
            reason.starts_with("neither runc nor crun is in PATH, and holdfast-oci"),
            "{reason}"
        );
        assert!(reason.contains("/here"), "{reason}");
    }
}
