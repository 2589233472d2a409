//! A podman of a test's own, with conmon or with Holdfast's monitor.
//!
//! What these machines need: the host's network, limits that are not raised, cgroups without systemd.

use std::path::PathBuf;
use std::process::{Command as Blocking, Stdio};

use tempfile::TempDir;
use tokio::process::Command;

use crate::runtime::in_path;
use crate::{Ran, binary, busybox_bundle, processes, ran, skip, soon};

/// The monitor that podman comes with, by which Holdfast's is judged.
pub const CONMON: &str = "conmon";
/// Holdfast's.
pub const HOLDFAST: &str = "holdfast-conmon";

/// The image of busybox.
pub const IMAGE: &str = "busybox";
/// What a container needs here.
const NEEDED: [&str; 6] =
    ["--network", "host", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"];

/// Makes two modules of tests, one for each behaviour and either monitor.
#[macro_export]
macro_rules! with_both_monitors {
    ($($behaviour:ident,)*) => {
        $crate::tests_with!(conmon, $crate::podman::CONMON, $($behaviour,)*);
        $crate::tests_with!(holdfast, $crate::podman::HOLDFAST, $($behaviour,)*);
    };
}

/// podman, with a store of its own. Dropped, its containers are removed.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
    monitor: PathBuf,
    is_holdfast: bool,
}

impl Podman {
    /// With an image of busybox. `None` where this can't be tested, which is said.
    ///
    /// # Panics
    ///
    /// If the image can't be imported.
    pub async fn start(monitor: &str) -> Option<Self> {
        let is_holdfast = monitor == HOLDFAST;
        let monitor = if is_holdfast { Some(binary(HOLDFAST)) } else { in_path(monitor) };
        let (Some(monitor), Some(_), Some(_)) = (monitor, in_path("podman"), in_path("runc"))
        else {
            skip("podman, conmon or runc is not in PATH");
            return None;
        };
        let directory = tempfile::Builder::new().prefix("holdfast-test-podman-").tempdir_in("/tmp");
        let podman = Self { directory: directory.expect("make a directory"), monitor, is_holdfast };
        let bundle = busybox_bundle(&podman.directory.path().join("bundle"));
        let archive = podman.directory.path().join("image.tar");
        let rootfs = bundle.join("rootfs");
        std::fs::create_dir(rootfs.join("tmp")).expect("make a directory");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&rootfs).arg("-cf").arg(&archive).arg(".");
        podman.done(tar).await;
        let mut import = podman.command(&["import"]);
        import.arg(archive).arg(IMAGE);
        podman.done(import).await;
        Some(podman)
    }

    /// Whether its monitor is Holdfast's.
    #[must_use]
    pub fn is_holdfast(&self) -> bool {
        self.is_holdfast
    }

    /// A directory of the test's own.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    fn options(&self) -> Vec<String> {
        let dir = |name: &str| self.directory.path().join(name).display().to_string();
        let mut options: Vec<_> = [
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            "cgroupfs",
            "--runtime",
            "runc",
            "--events-backend",
            "file",
            "--root",
        ]
        .map(str::to_owned)
        .into();
        options.extend([
            dir("root"),
            "--runroot".into(),
            dir("run"),
            "--tmpdir".into(),
            dir("tmp"),
        ]);
        options.extend(["--conmon".into(), self.monitor.display().to_string()]);
        options
    }

    /// Has podman read this in the place of its `containers.conf`.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    pub fn configure(&self, text: &str) {
        std::fs::write(self.configuration(), text).expect("write a configuration");
    }

    fn configuration(&self) -> PathBuf {
        self.directory.path().join("containers.conf")
    }

    /// `podman` with these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("podman");
        if self.configuration().exists() {
            command.env("CONTAINERS_CONF", self.configuration());
        }
        command.args(self.options()).args(args).kill_on_drop(true);
        command
    }

    /// `podman run` or `create`, of the image.
    #[must_use]
    pub fn container(&self, action: &str, options: &[&str], args: &[&str]) -> Command {
        let mut command = self.command(&[action]);
        command.args(NEEDED).args(options).arg(IMAGE).args(args);
        command
    }

    /// `podman run` of a shell's script.
    #[must_use]
    pub fn script(&self, options: &[&str], script: &str) -> Command {
        self.container("run", options, &["sh", "-c", script])
    }

    /// Runs a command to its end, and returns its standard output without the line feed at its end.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn done(&self, command: Command) -> String {
        let text = format!("{command:?}");
        let Ran { code, stdout, stderr } = soon(&text, ran(command)).await;
        assert_eq!(code, Some(0), "{text}: {stdout}{stderr}");
        stdout.trim_end_matches('\n').to_owned()
    }

    /// `podman` with these arguments, to its end.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn does(&self, args: &[&str]) -> String {
        self.done(self.command(args)).await
    }

    /// Waits until this is all that a container has said.
    pub async fn has_said(&self, name: &str, text: &str) {
        soon(text, async { while ran(self.command(&["logs", name])).await.stdout != text {} })
            .await;
    }

    /// Ends a test: removes all containers, and finds no process left.
    ///
    /// # Panics
    ///
    /// If one is left.
    pub async fn close(self) {
        self.does(&["rm", "--all", "--force", "--time", "0"]).await;
        for process in processes::mentioning(self.directory.path()) {
            process.ended().await;
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut command = Blocking::new("podman");
        command.args(self.options()).args(["rm", "--all", "--force", "--time", "0"]);
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        for process in processes::mentioning(self.directory.path()) {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}
