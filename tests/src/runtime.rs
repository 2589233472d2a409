//! The OCI runtime under test, and the tests that are about another one.
//!
//! `HOLDFAST_TEST_RUNTIME` chooses it, by name or path; `holdfast-oci` is the workspace's own. If it
//! is not set, it is what `auto` gives here.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use holdfast_supervisor::GroupName;

use crate::binary;

/// Chooses the runtime of all system tests.
pub const CHOICE: &str = "HOLDFAST_TEST_RUNTIME";
/// Names the file in which `cargo xtask` finds the tests that were skipped.
const SKIPPED: &str = "HOLDFAST_TEST_SKIPPED";
/// The runtime that comes with Holdfast.
const EMBEDDED: &str = "holdfast-oci";

/// The executable of the runtime under test.
///
/// # Panics
///
/// If the chosen one is not there.
#[must_use]
pub fn runtime() -> &'static Path {
    static RUNTIME: OnceLock<PathBuf> = OnceLock::new();
    RUNTIME.get_or_init(|| match chosen().as_deref() {
        // As the library's `auto`. It looks for our own one beside the running executable, which is
        // a test's here, and in another directory.
        None => ["runc", "crun"].into_iter().find_map(in_path).unwrap_or_else(|| binary(EMBEDDED)),
        Some(EMBEDDED) => binary(EMBEDDED),
        Some(path) if path.contains('/') => Path::new(path)
            .canonicalize()
            .unwrap_or_else(|error| panic!("{CHOICE}={path}: {error}")),
        Some(name) => in_path(name).unwrap_or_else(|| panic!("{CHOICE}={name}: not in PATH")),
    })
}

/// What `HOLDFAST_TEST_RUNTIME` says; `None` if that is `auto`.
pub(crate) fn chosen() -> Option<String> {
    std::env::var(CHOICE).ok().filter(|name| !name.is_empty() && name != "auto")
}

/// The group in which all containers of the system tests are, if `HOLDFAST_TEST_SHIM_GROUP` names one:
/// then they share a shim, and else each process has one of its own.
///
/// # Panics
///
/// If that is no name.
#[must_use]
pub fn shim_group() -> Option<GroupName> {
    let name = std::env::var("HOLDFAST_TEST_SHIM_GROUP").ok().filter(|name| !name.is_empty())?;
    Some(name.parse().expect("HOLDFAST_TEST_SHIM_GROUP is the name of a group"))
}

/// The runtime under test as an argument.
///
/// # Panics
///
/// If its path is not UTF-8.
#[must_use]
pub fn runtime_name() -> &'static str {
    runtime().to_str().expect("a path in UTF-8")
}

/// Whether this is the runtime under test.
#[must_use]
pub fn is_runtime(name: &str) -> bool {
    runtime().file_name() == Some(OsStr::new(name))
}

/// The first executable of this name in `PATH`.
#[must_use]
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Says that the running test ends here, having tested nothing, and why. libtest has no word for
/// that and will call it `ok`; `cargo xtask test` counts it as skipped.
///
/// # Panics
///
/// If the file that `cargo xtask test` asked for can't be written.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // One write each, so that lines of tests that run at the same time don't mix; and past the
    // capture of libtest, which would swallow it.
    let _ = io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes());
    if let Some(path) = std::env::var_os(SKIPPED) {
        let file = File::options().append(true).create(true).open(path);
        let line = format!("{test}\t{reason}\n");
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("tell of a skipped test");
    }
}

/// How often a test tries what may fail now and then: `HOLDFAST_TEST_ROUNDS`, for a long run, or as often
/// as it says itself.
///
/// # Panics
///
/// If the variable is not a number.
#[must_use]
pub fn rounds(usual: usize) -> usize {
    match std::env::var("HOLDFAST_TEST_ROUNDS") {
        Ok(text) if !text.is_empty() => text.parse().expect("HOLDFAST_TEST_ROUNDS is a number"),
        _ => usual,
    }
}
