//! Where files are for which nobody names a place: in the system's directories for root, and in those of the
//! XDG Base Directory Specification for any other user.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// The state root of root's daemon.
const ROOT: &str = "/run/holdfast";
/// The definitions of root's daemon.
const DEFINITIONS: &str = "/var/lib/holdfast/definitions";
/// The configuration file of root's daemon.
const CONFIG: &str = "/etc/holdfast/config.toml";

/// Returns the state root. It must not outlive a reboot.
pub(crate) fn root() -> anyhow::Result<PathBuf> {
    if is_root() {
        return Ok(ROOT.into());
    }
    let dir = directory("XDG_RUNTIME_DIR").with_context(|| {
        let uid = nix::unistd::geteuid();
        format!(
            "XDG_RUNTIME_DIR is not set, so there is no state directory for user {uid}: set it, as in \
             XDG_RUNTIME_DIR=/run/user/{uid}, to a directory of this user's; or name the state directory with \
             --root DIR or HOLDFAST_ROOT"
        )
    })?;
    Ok(dir.join("holdfast"))
}

/// Returns where the definitions of containers are kept that outlive a reboot, if this is the default state
/// root. The daemon of another root would make the same containers again.
pub(crate) fn definitions(root: &Path) -> Option<PathBuf> {
    if !self::root().is_ok_and(|default| default == root) {
        return None;
    }
    if is_root() {
        return Some(DEFINITIONS.into());
    }
    let state =
        directory("XDG_STATE_HOME").or_else(|| Some(directory("HOME")?.join(".local/state")))?;
    Some(state.join("holdfast/definitions"))
}

/// Returns the configuration file that is read if it is there.
pub(crate) fn config() -> Option<PathBuf> {
    if is_root() {
        return Some(CONFIG.into());
    }
    let config =
        directory("XDG_CONFIG_HOME").or_else(|| Some(directory("HOME")?.join(".config")))?;
    Some(config.join("holdfast/config.toml"))
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Returns the directory that a variable of the environment names. The specification has a relative path
/// ignored.
fn directory(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
