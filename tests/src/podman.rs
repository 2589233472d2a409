//! A podman of a test's own, with conmon or with Holdfast's monitor.
//!
//! What these machines need: the host's network, limits that are not raised. systemd makes the cgroups where it runs.
//! A user who is not root has cgroups only there.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;
use tokio::process::Command;

use crate::runtime::in_path;
use crate::{Proc, Ran, binary, busybox_bundle, processes, ran, skip, soon};

/// The monitor that podman comes with, by which Holdfast's is judged.
pub const CONMON: &str = "conmon";
/// Holdfast's.
pub const HOLDFAST: &str = "holdfast-conmon";

/// The image of busybox.
pub const IMAGE: &str = "busybox";
/// What a container needs here. Where systemd runs, its log is in the journal, if nothing else is said.
const NEEDED: [&str; 8] = [
    "--network",
    "host",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1000:1000",
    "--log-driver",
    "k8s-file",
];

/// Makes three modules of tests, one for each behaviour and either monitor, and with Holdfast's as a user.
#[macro_export]
macro_rules! with_both_monitors {
    ($($behaviour:ident,)*) => {
        $crate::tests_with!(conmon, $crate::podman::CONMON, $($behaviour,)*);
        $crate::tests_with!(holdfast, $crate::podman::HOLDFAST, $($behaviour,)*);
        mod holdfast_as_user {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                if $crate::user::User::WithRanges.runs_this() {
                    super::with($crate::podman::HOLDFAST, super::$behaviour).await;
                }
            })*
        }
    };
}

/// podman, with a store of its own. Dropped, its containers are removed.
#[derive(Debug)]
pub struct Podman {
    directory: TempDir,
    monitor: PathBuf,
    is_holdfast: bool,
    /// Whether systemd makes the cgroups.
    by_systemd: bool,
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
        let directory = directory.expect("make a directory");
        let by_systemd = Path::new("/run/systemd/system").is_dir();
        let podman = Self { directory, monitor, is_holdfast, by_systemd };
        // What a user who has not logged in lacks.
        fs::DirBuilder::new().mode(0o700).create(podman.runtime_dir()).expect("make a directory");
        let bundle = busybox_bundle(&podman.directory.path().join("bundle"));
        let archive = podman.directory.path().join("image.tar");
        let rootfs = bundle.join("rootfs");
        fs::create_dir(rootfs.join("tmp")).expect("make a directory");
        let mut tar = Command::new("tar");
        // An image is root's: what a user could not map, the user could not remove.
        tar.args(["--owner", "0", "--group", "0", "-C"]).arg(&rootfs);
        tar.arg("-cf").arg(&archive).arg(".");
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

    /// Whether its containers have cgroups.
    #[must_use]
    pub fn has_cgroups(&self) -> bool {
        geteuid().is_root() || self.by_systemd
    }

    /// A directory of the test's own.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    fn runtime_dir(&self) -> PathBuf {
        self.directory.path().join("runtime")
    }

    fn options(&self) -> Vec<String> {
        let dir = |name: &str| self.directory.path().join(name).display().to_string();
        let manager = if self.by_systemd { "systemd" } else { "cgroupfs" };
        let fixed = ["--storage-driver", "vfs", "--runtime", "runc", "--events-backend", "file"];
        let mut options: Vec<_> = fixed.map(str::to_owned).into();
        options.extend(["--cgroup-manager", manager, "--root"].map(str::to_owned));
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
        fs::write(self.configuration(), text).expect("write a configuration");
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
        if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
            command.env("XDG_RUNTIME_DIR", self.runtime_dir());
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
        self.leave_namespace();
        for process in processes::mentioning(self.directory.path()) {
            process.ended().await;
        }
    }

    /// Ends the process that keeps a user's namespace from one command to the next.
    fn leave_namespace(&self) {
        let path = self.directory.path().join("tmp/pause.pid");
        let pid = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        if let Some(process) = pid.filter(|pid| *pid > 1).and_then(Proc::of) {
            process.signal(Signal::SIGKILL);
        }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let mut command = self.command(&["rm", "--all", "--force", "--time", "0"]).into_std();
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        self.leave_namespace();
        for process in processes::mentioning(self.directory.path()) {
            process.signal(Signal::SIGKILL);
        }
    }
}
