//! A test as a real user of this machine that is not root.
//!
//! The test starts its own executable again, as that user and for this test alone, and tells what came of
//! that. So all that it stands on (state roots, bundles, supervisors in its own process) is the user's.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::skip;

/// Says to a test that it is that user's.
const VARIABLE: &str = "HOLDFAST_TEST_USER";

/// Which user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// One with ranges in `/etc/subuid` and `/etc/subgid`, and newuidmap(1) to map them.
    WithRanges,
    /// One without, whose containers have the id 0 alone.
    WithOneId,
}

impl User {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WithRanges => "holdfast-ranges",
            Self::WithOneId => "holdfast-one-id",
        }
    }

    /// Makes the running test this user's. Where this returns `false`, it has run and there is nothing left to
    /// do, or it can't be run here and has been skipped.
    ///
    /// # Panics
    ///
    /// If the test has failed as the user.
    #[must_use]
    pub fn runs_this(self) -> bool {
        if std::env::var(VARIABLE).is_ok_and(|name| name == self.name()) {
            return true;
        }
        if let Err(reason) = self.ready() {
            skip(&reason);
            return false;
        }
        let thread = std::thread::current();
        let test = thread.name().expect("libtest names the thread of a test");
        let program = std::env::current_exe().expect("the path of the running test");
        let mut command = self.command(&program);
        command.args([test, "--exact", "--nocapture"]);
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "as {}: {}\n{stdout}\n{stderr}",
            self.name(),
            output.status
        );
        assert!(stdout.contains("1 passed"), "as {}: no test {test}:\n{stdout}", self.name());
        if let Some(line) = stderr.lines().find_map(|line| line.strip_prefix("skipped: ")) {
            // The name of the test is said by `skip`.
            skip(line.strip_prefix(&format!("{test}: ")).unwrap_or(line));
        }
        false
    }

    /// Makes the user, if there is none yet, or says why it can do nothing here.
    ///
    /// # Errors
    ///
    /// The reason.
    pub fn ready(self) -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("it takes root to become another user".to_owned());
        }
        // One after the other: of two tests that make the same user one would fail, and be skipped.
        let lock = File::open("/etc").and_then(|etc| etc.lock().map(|()| etc));
        let _lock = lock.map_err(|error| format!("lock /etc: {error}"))?;
        let name = self.name();
        if Command::new("id").arg(name).output().is_ok_and(|output| !output.status.success()) {
            let mut command = Command::new("useradd");
            // A user of the system gets no ranges.
            command.args(["--system", "--create-home", "--user-group", "--shell", "/bin/sh", name]);
            succeed(&mut command)?;
        }
        if self == Self::WithRanges {
            let ranges = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
            if !ranges.lines().any(|line| line.starts_with(&format!("{name}:"))) {
                let range = "700000000-700065535";
                let mut command = Command::new("usermod");
                command.args(["--add-subuids", range, "--add-subgids", range, name]);
                succeed(&mut command)?;
            }
            if crate::in_path("newuidmap").is_none() {
                return Err(
                    "newuidmap is not installed: Debian has it in the package uidmap".to_owned()
                );
            }
        }
        let mut unshare = self.command(Path::new("unshare"));
        succeed(unshare.args(["--user", "--map-root-user", "--mount", "true"]))
            .map_err(|error| format!("users may make no user namespaces: {error}"))?;
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut readable = self.command(Path::new("test"));
        succeed(readable.arg("-x").arg(&program))
            .map_err(|_| format!("users may not execute {}", program.display()))
    }

    /// A command of this user's, with little more of an environment than a login gives.
    #[must_use]
    pub fn command(self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        let name = self.name();
        command.args(["--reuid", name, "--regid", name, "--init-groups", "--"]).arg(program);
        let kept = [
            "HOLDFAST_TEST_RUNTIME",
            "HOLDFAST_TEST_SHIM_GROUP",
            "HOLDFAST_TEST_ROUNDS",
            "RUST_BACKTRACE",
        ];
        let kept = kept.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
        let kept: Vec<_> = kept.collect();
        command.env_clear().envs(kept).env(VARIABLE, name);
        // As root's has it: Debian's runc is in a directory that a user's does not name.
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", format!("/home/{name}")).current_dir("/");
        command
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A directory that only this user may use, as `XDG_RUNTIME_DIR` is.
///
/// # Panics
///
/// If it can't be made.
#[must_use]
pub fn runtime_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("holdfast-run-").tempdir_in("/tmp");
    let dir = dir.expect("make a directory");
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(dir.path(), mode).expect("set the mode of a directory");
    dir
}
