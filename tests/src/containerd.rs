//! A containerd of a test's own, and `ctr` to it.
//!
//! Everything that it has is in one directory, but for what containerd 1.6 and its shim have at fixed
//! places: the sockets of shims, and the state of runc. The namespace is a test's own, so these are too,
//! and so are the cgroups. The CRI plugin has one namespace for all; there the configuration names
//! another place for runc's state, and each pod the cgroup above its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Blocking, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_ttrpc::place;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::runtime::in_path;
use crate::{
    Cri, Daemon, Gate, Proc, Ran, binary, busybox_bundle, eventually, processes, ran, skip, soon,
    unique_id,
};

/// Makes a module of tests, one for each behaviour, which `with` of the test file calls with a runtime.
#[macro_export]
macro_rules! tests_with {
    ($module:ident, $runtime:expr, $($behaviour:ident,)*) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $behaviour() {
                    super::with($runtime, super::$behaviour).await;
                }
            )*
        }
    };
}

/// Makes such a module for the runtime that containerd comes with, and one for Holdfast's.
#[macro_export]
macro_rules! side_by_side {
    ($($behaviour:ident,)*) => {
        $crate::tests_with!(runc, $crate::containerd::RUNC, $($behaviour,)*);
        $crate::tests_with!(holdfast, $crate::containerd::HOLDFAST, $($behaviour,)*);
    };
}

/// The runtime that containerd comes with, by which Holdfast's is judged.
pub const RUNC: &str = "io.containerd.runc.v2";
/// Holdfast's.
pub const HOLDFAST: &str = "io.containerd.holdfast.v2";

/// The image of busybox.
pub(crate) const IMAGE: &str = "holdfast.test/busybox:latest";
/// The name of the runtime in the configuration of the CRI plugin.
const HANDLER: &str = "tested";
/// Where a container sees the directory that it shares with the test.
pub(crate) const SHARE: &str = "/share";
/// Where containerd's own shim has the state of runc, unless it is told otherwise.
const RUNC_STATE: &str = "/run/containerd/runc";
/// The namespace of the CRI plugin.
const CRI_NAMESPACE: &str = "k8s.io";
/// Where the hierarchies of cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long anything of a container may last after the container was deleted.
const PATIENCE: Duration = Duration::from_secs(20);

/// Containerd, with one runtime. Dropped, it is killed, and what is left of its containers.
#[derive(Debug)]
pub struct Containerd {
    directory: TempDir,
    runtime: &'static str,
    face: Face,
    /// The namespace of containers, or the cgroup above those of pods: no other test has it.
    unique: String,
    snapshotter: &'static str,
    daemon: Option<Daemon>,
    /// Containers that were made. The names of their shims' sockets come from these.
    ids: Mutex<BTreeSet<String>>,
    gates: AtomicU32,
}

/// By what a test has containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    Ctr,
    Cri,
}

/// A line of `ctr task ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The process id of the first process.
    pub pid: i32,
    /// As in `RUNNING`.
    pub status: String,
}

impl Containerd {
    /// Starts it with an image of busybox. None where this can't be tested, which is said.
    ///
    /// # Panics
    ///
    /// If that fails, or if a program of ours is not built.
    pub async fn start(runtime: &'static str) -> Option<Self> {
        Self::with(runtime, Face::Ctr).await
    }

    /// The same with the CRI plugin, for pods.
    ///
    /// # Panics
    ///
    /// If that fails, or if a program of ours is not built.
    pub async fn start_for_pods(runtime: &'static str) -> Option<Self> {
        let mut containerd = Self::with(runtime, Face::Cri).await?;
        // It learns of the images that there are when it starts.
        containerd.restart().await;
        Some(containerd)
    }

    async fn with(runtime: &'static str, face: Face) -> Option<Self> {
        if in_path("runc").is_none() && runtime == RUNC {
            skip("about runc, which is not in PATH");
            return None;
        }
        if in_path("runc").is_none() && in_path("containerd").is_none() {
            skip("Debian has no containerd without runc");
            return None;
        }
        if runtime == HOLDFAST {
            for program in ["containerd-shim-holdfast-v2", place::SUPERVISOR] {
                let _ = binary(program);
            }
        }
        let directory = tempfile::Builder::new().prefix("holdfast-test-").tempdir_in("/tmp");
        let directory = directory.expect("make a directory");
        // A container in a user namespace of its own goes through it.
        let all = fs::Permissions::from_mode(0o711);
        fs::set_permissions(directory.path(), all).expect("open a directory for others");
        fs::create_dir(directory.path().join("share")).expect("make a directory");
        let below = statfs(directory.path()).expect("ask for the file system").filesystem_type();
        let mut containerd = Self {
            directory,
            runtime,
            face,
            unique: unique_id("containerd").to_string(),
            // An overlay can't be in another one.
            snapshotter: if below == OVERLAYFS_SUPER_MAGIC { "native" } else { "overlayfs" },
            daemon: None,
            ids: Mutex::default(),
            gates: AtomicU32::new(0),
        };
        containerd.configure();
        containerd.restart().await;
        let image = containerd.image();
        let import = ["image", "import", "--snapshotter", containerd.snapshotter];
        containerd.done(&[&import[..], &[text(&image)]].concat()).await;
        Some(containerd)
    }

    fn configure(&self) {
        // What is not of use here, and may load kernel modules.
        let off = ["aufs", "btrfs", "devmapper", "zfs"];
        let mut off = off.map(|name| format!("io.containerd.snapshotter.v1.{name}")).to_vec();
        if self.face == Face::Ctr {
            off.push("io.containerd.grpc.v1.cri".to_owned());
        }
        let mut config = format!(
            "version = 2\nroot = {root:?}\nstate = {state:?}\ndisabled_plugins = {off:?}\n\
             [grpc]\naddress = {address:?}\n[ttrpc]\naddress = \"{address}.ttrpc\"\n",
            root = text(&self.path().join("root")),
            state = text(&self.path().join("state")),
            address = self.address(),
        );
        if self.face == Face::Cri {
            config += &self.cri_config();
        }
        fs::write(self.path().join("config.toml"), config).expect("write a configuration");
    }

    /// The configuration of the CRI plugin. Pods have the host's network, so no CNI plugin is needed.
    fn cri_config(&self) -> String {
        let none = self.path().join("cni");
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {IMAGE:?}\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {none:?}\nconf_dir = {none:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = {snapshotter:?}\n\
             default_runtime_name = {HANDLER:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{HANDLER}]\n\
             runtime_type = {runtime:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{HANDLER}.options]\n\
             Root = {root:?}\n",
            none = text(&none),
            snapshotter = self.snapshotter,
            runtime = self.runtime,
            root = text(&self.runc_root()),
        )
    }

    /// A client of the CRI plugin, once that answers.
    pub async fn cri(&self) -> Cri {
        let cri = Cri::new(Path::new(&self.address()), self.path(), HANDLER, &self.unique);
        cri.ready().await;
        cri
    }

    /// Kills it, if it runs, and starts it.
    ///
    /// # Panics
    ///
    /// If it does not come to listen.
    pub async fn restart(&mut self) {
        self.kill();
        let beside = binary("holdfast-shim");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [PathBuf::from(beside.parent().expect("a program lies in a folder"))]
            .into_iter()
            .chain(std::env::split_paths(&path));
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.path().join("config.toml"));
        command.env("PATH", std::env::join_paths(path).expect("a search path"));
        command.env(place::BASE_VARIABLE, self.holdfast_root());
        let daemon = Daemon::until(command, "successfully booted").await;
        self.daemon = Some(daemon.unwrap_or_else(|said| panic!("containerd has ended:\n{said}")));
    }

    /// Kills it. Its containers go on.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// The directory of this test.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The bundle of a container.
    #[must_use]
    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self.path().join("state/io.containerd.runtime.v2.task");
        tasks.join(self.namespace()).join(id)
    }

    /// The directory of everything that Holdfast keeps.
    #[must_use]
    pub fn holdfast_root(&self) -> PathBuf {
        self.path().join("holdfast")
    }

    /// The runtime of all containers.
    #[must_use]
    pub fn runtime(&self) -> &'static str {
        self.runtime
    }

    /// A root file system of busybox.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("bundle/rootfs")
    }

    fn address(&self) -> String {
        text(&self.path().join("c.sock")).to_owned()
    }

    /// Makes an archive of the image as `docker save` writes it.
    fn image(&self) -> PathBuf {
        busybox_bundle(&self.path().join("bundle"));
        let dir = self.path().join("image");
        fs::create_dir(&dir).expect("make a directory");
        let tar = |from: &Path, to: &Path, what: &[&str]| {
            succeeds(Blocking::new("tar").arg("-C").arg(from).arg("-cf").arg(to).args(what));
        };
        tar(&self.rootfs(), &dir.join("layer.tar"), &["."]);
        let sum = succeeds(Blocking::new("sha256sum").arg(dir.join("layer.tar")));
        let sum = sum.split(' ').next().expect("a checksum");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            // As the pause of a pod.
            "config": { "Env": ["PATH=/bin"], "Cmd": ["sleep", "100000"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{sum}")] },
        });
        let manifest =
            json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
        fs::write(dir.join("config.json"), config.to_string()).expect("write a configuration");
        fs::write(dir.join("manifest.json"), manifest.to_string()).expect("write a manifest");
        let image = self.path().join("image.tar");
        tar(&dir, &image, &["config.json", "manifest.json", "layer.tar"]);
        image
    }

    /// A gate that a container finds in the directory that it shares with the test.
    #[must_use]
    pub fn gate(&self) -> Gate {
        let name = format!("gate-{}", self.gates.fetch_add(1, Ordering::Relaxed));
        Gate::at(self.share().join(&name), format!("{SHARE}/{name}"))
    }

    /// The directory that containers see as `/share`.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.path().join("share")
    }

    /// A command of `ctr`.
    #[must_use]
    pub fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--address", &self.address(), "--namespace", self.namespace()]).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// `ctr run` of a container of the image.
    #[must_use]
    pub fn run(&self, options: &[&str], id: &str, args: &[&str]) -> Command {
        let mut command = self.run_of(options);
        command.args([IMAGE, id]).args(args);
        self.remember(id);
        command
    }

    /// `ctr run` of a container whose root file system is a directory.
    #[must_use]
    pub fn run_directory(&self, rootfs: &Path, id: &str, args: &[&str]) -> Command {
        let mut command = self.run_of(&["--rm", "--rootfs"]);
        command.arg(rootfs).arg(id).args(args);
        self.remember(id);
        command
    }

    fn run_of(&self, options: &[&str]) -> Command {
        let mut command = self.ctr(&["run", "--runtime", self.runtime]);
        command.args(["--snapshotter", self.snapshotter]).arg("--fifo-dir").arg(self.fifos());
        let share = format!("type=bind,src={},dst={SHARE},options=rbind:rw", text(&self.share()));
        command.args(["--mount", &share]).args(options);
        command
    }

    /// Takes note of a container or pod, so that the socket of its shim is looked for at the end.
    pub fn remember(&self, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
    }

    /// The options of `ctr run` by which containers share a shim.
    #[must_use]
    pub fn pod(&self, name: &str) -> [String; 2] {
        // The shim's socket is named after it.
        self.remember(name);
        ["--annotation".to_owned(), format!("io.containerd.runc.v2.group={name}")]
    }

    /// `ctr task exec`.
    #[must_use]
    pub fn exec(&self, options: &[&str], id: &str, exec: &str, args: &[&str]) -> Command {
        let mut command = self.ctr(&["task", "exec", "--exec-id", exec]);
        command.arg("--fifo-dir").arg(self.fifos()).args(options).arg(id).args(args);
        command
    }

    fn fifos(&self) -> PathBuf {
        self.path().join("fifos")
    }

    /// Runs a container in the background, which executes a shell's script.
    pub async fn run_detached(&self, id: &str, script: &str) {
        succeeded(ran(self.run(&["--detach"], id, &["sh", "-c", script])).await);
    }

    /// Runs a command of `ctr`, which must succeed, and returns what it wrote.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn done(&self, args: &[&str]) -> String {
        succeeded(ran(self.ctr(args)).await).stdout
    }

    /// Deletes a task, maybe with an option, and returns the exit code of its process.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub async fn delete_task(&self, options: &[&str], id: &str) -> i32 {
        let delete = [&["task", "delete"], options, &[id]].concat();
        let ran = succeeded(ran(self.ctr(&delete)).await);
        // It says nothing of a code of 0.
        let code = ran.stderr.split_once("non-zero exit code ").map_or("0", |(_, rest)| rest);
        let code = code.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        code.parse().unwrap_or_else(|_| panic!("an exit code in {ran:?}"))
    }

    /// Waits until a task has ended, deletes it and its container, and returns its exit code.
    pub async fn ended(&self, id: &str) -> i32 {
        self.reaches(id, "STOPPED").await;
        let code = self.delete_task(&[], id).await;
        self.done(&["container", "delete", id]).await;
        code
    }

    /// Kills a task's processes, and deletes it and its container.
    pub async fn remove(&self, id: &str) {
        self.delete_task(&["--force"], id).await;
        self.done(&["container", "delete", id]).await;
    }

    /// The task of a container, if there is one.
    pub async fn task(&self, id: &str) -> Option<Task> {
        let list = self.done(&["task", "list"]).await;
        list.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let named = fields.next() == Some(id);
            let (pid, status) = (fields.next()?, fields.next()?);
            named.then(|| Task {
                pid: pid.parse().expect("a process id"),
                status: status.to_owned(),
            })
        })
    }

    /// Waits until a task has this status. Nothing tells of all of them, so this looks again and again.
    pub async fn reaches(&self, id: &str, status: &str) {
        soon(&format!("{id} to be {status}"), async {
            while self.task(id).await.is_none_or(|task| task.status != status) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// The processes of a task, and the execs that they are of, if any.
    pub async fn processes(&self, id: &str) -> Vec<(i32, Option<String>)> {
        let list = self.done(&["task", "ps", id]).await;
        let process = |line: &str| {
            let (pid, info) = line.split_once(' ')?;
            // As 1.6 and as 1.7 shows it.
            let names = ["ExecID:", "exec_id:\""];
            let exec = names.into_iter().find_map(|name| info.split_once(name)).map(|it| it.1);
            let exec = exec.and_then(|it| it.split([',', ' ', '}', '"']).next().map(str::to_owned));
            Some((pid.parse().ok()?, exec))
        };
        list.lines().filter_map(process).collect()
    }

    /// The shims that containerd has for containers.
    #[must_use]
    pub fn shims(&self) -> Vec<Proc> {
        self.programs("containerd-shim-")
    }

    /// Holdfast's supervisor behind them. For a moment there may be another one, which ends when it finds
    /// that this one serves.
    ///
    /// # Panics
    ///
    /// If there is none, or more than one for long.
    pub async fn supervisor(&self) -> Proc {
        eventually("one supervisor", || self.supervisors().len() == 1).await;
        self.supervisors().remove(0)
    }

    /// All that there are: one more while it is killed and replaced, and none in between.
    #[must_use]
    pub fn supervisors(&self) -> Vec<Proc> {
        let mut all = self.programs(place::SUPERVISOR);
        // A child that it has forked looks the same until it executes its program.
        let pids: Vec<_> = all.iter().map(|one| one.pid).collect();
        all.retain(|one| one.parent().is_some_and(|parent| !pids.contains(&parent)));
        all
    }

    /// The processes of this test whose program's name begins so.
    #[must_use]
    pub fn programs(&self, name: &str) -> Vec<Proc> {
        let mut all = processes::mentioning(self.path());
        all.retain(|process| program(process).starts_with(name));
        all
    }

    /// Listens to events from now on.
    pub async fn events(&self) -> Events {
        let mut child = self.ctr(&["events"]).stdout(Stdio::piped()).spawn().expect("start ctr");
        let lines = BufReader::new(child.stdout.take().expect("a piped output")).lines();
        let mut events = Events { lines, _child: child };
        // Nothing tells that it listens but an event that it hears.
        let mut count = 0;
        let mut heard = Box::pin(events.lines.next_line());
        soon("ctr to hear an event", async {
            loop {
                count += 1;
                let label = format!("count={count}");
                self.done(&["namespaces", "label", self.namespace(), &label]).await;
                let pause = Duration::from_millis(50);
                if tokio::time::timeout(pause, &mut heard).await.is_ok() {
                    return;
                }
            }
        })
        .await;
        drop(heard);
        events
    }

    /// Ends a test: all containers were deleted, and nothing is left of them.
    ///
    /// # Panics
    ///
    /// If something is.
    pub async fn close(mut self) {
        assert_eq!(self.done(&["container", "list", "--quiet"]).await, "", "left over");
        self.nothing_is_left().await;
        // It calls shims until its end, of containers that are gone.
        self.kill();
        self.nothing_is_left().await;
    }

    /// Shims end a little later than the call that tells them to.
    async fn nothing_is_left(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.leftovers().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.leftovers(), [""; 0], "left over after all containers were deleted");
    }

    /// Everything that must not be there when no container is.
    fn leftovers(&self) -> Vec<String> {
        let daemon = self.daemon.as_ref().map(|daemon| daemon.process().pid);
        let expected = |process: &Proc| Some(process.pid) == daemon || is_supervisor(process);
        let mut left: Vec<String> = processes::mentioning(self.path())
            .iter()
            .filter(|process| !expected(process))
            .map(ToString::to_string)
            .collect();
        let paths = self.mounts().into_iter().chain(entries(&self.runc_state()));
        let paths = paths.chain(self.cgroups().into_iter().flat_map(|dir| directories(&dir)));
        let sockets = self.sockets().into_iter().filter(|socket| socket.exists());
        left.extend(paths.chain(sockets).map(|path| path.display().to_string()));
        left
    }

    fn namespace(&self) -> &str {
        match self.face {
            Face::Ctr => &self.unique,
            Face::Cri => CRI_NAMESPACE,
        }
    }

    fn runc_root(&self) -> PathBuf {
        match self.face {
            Face::Ctr => PathBuf::from(RUNC_STATE),
            Face::Cri => self.path().join("runc"),
        }
    }

    fn runc_state(&self) -> PathBuf {
        self.runc_root().join(self.namespace())
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |id| {
            let address = self.address();
            place::front_socket(Path::new(place::SOCKETS), &address, self.namespace(), id)
        };
        ids.iter().map(|id| place(id)).collect()
    }

    /// The cgroups above those of the containers, in all hierarchies.
    fn cgroups(&self) -> Vec<PathBuf> {
        let root = PathBuf::from(CGROUPS);
        let all = [root.clone()].into_iter().chain(directories(&root));
        all.map(|dir| dir.join(&self.unique)).filter(|dir| dir.is_dir()).collect()
    }

    /// Mount points in the directory of this test, the innermost first.
    fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
        let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut points: Vec<_> = points.filter(|point| point.starts_with(self.path())).collect();
        points.sort();
        points.reverse();
        points
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            for supervisor in entries(&self.holdfast_root()) {
                let log = fs::read_to_string(supervisor.join("supervisor.log")).unwrap_or_default();
                eprintln!("the supervisor said:\n{log}");
            }
        }
        // A shim's end leaves its container an orphan, so one round is not enough.
        let mut left = Vec::new();
        for _ in 0..5 {
            for process in processes::mentioning(self.path()) {
                process.signal(Signal::SIGKILL);
                // Of one that is dying already, the command line may be cut off.
                if !left.iter().any(|one: &Proc| one.pid == process.pid) {
                    left.push(process);
                }
            }
        }
        left.retain(|process| !is_supervisor(process));
        for state in entries(&self.runc_state()) {
            let mut command = Blocking::new("runc");
            command.arg("--root").arg(self.runc_state()).args(["delete", "--force"]);
            let _ = command.arg(state.file_name().expect("a name")).output();
        }
        let _ = fs::remove_dir(self.runc_state());
        for mount in self.mounts() {
            let _ = umount2(&mount, MntFlags::MNT_DETACH);
        }
        for dir in self.cgroups() {
            remove_cgroup(&dir);
        }
        for socket in self.sockets() {
            let _ = fs::remove_file(socket);
        }
        assert!(
            left.is_empty() || std::thread::panicking(),
            "processes left over at the end of the test: {left:?}"
        );
    }
}

/// Whether a process is Holdfast's supervisor, which stays without containers. Where it is just ending, its command
/// line may be cut off.
fn is_supervisor(process: &Proc) -> bool {
    let program = program(process);
    !program.is_empty() && place::SUPERVISOR.starts_with(program)
}

/// The name of a process's program.
fn program(process: &Proc) -> &str {
    let path = process.command().split(' ').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

fn remove_cgroup(dir: &Path) {
    for below in directories(dir) {
        remove_cgroup(&below);
    }
    let _ = fs::remove_dir(dir);
}

/// Events of tasks, as `ctr events` shows them.
#[derive(Debug)]
pub struct Events {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// An event of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// As in `/tasks/exit`.
    pub topic: String,
    /// The message.
    pub content: Value,
}

impl Events {
    /// Returns the events up to and with the one of this topic about this process: an exec's id, or the
    /// container's.
    ///
    /// # Panics
    ///
    /// If it does not come.
    pub async fn until(&mut self, topic: &str, process: &str) -> Vec<Event> {
        let mut all = Vec::new();
        loop {
            let line = soon(&format!("{topic} after {all:?}"), self.lines.next_line()).await;
            let line = line.expect("read events").expect("ctr has ended");
            // Date, time, zone and its name, namespace.
            let mut fields = line.splitn(7, ' ').skip(5);
            let (Some(found), Some(content)) = (fields.next(), fields.next()) else {
                panic!("an event in {line:?}");
            };
            if !found.starts_with("/tasks/") {
                continue;
            }
            let content: Value = serde_json::from_str(content).expect("an event in JSON");
            let event = Event { topic: found.to_owned(), content };
            let last = event.topic == topic && event.process() == process;
            all.push(event);
            if last {
                return all;
            }
        }
    }
}

impl Event {
    /// The process that it is about: an exec's id, or the container's.
    #[must_use]
    pub fn process(&self) -> &str {
        let names = ["exec_id", "id", "container_id"];
        let name = names.iter().find_map(|name| self.content[*name].as_str());
        name.unwrap_or_default()
    }

    /// The exit code, of an event that has one.
    #[must_use]
    pub fn exit_code(&self) -> i64 {
        // Not shown if it is 0.
        self.content["exit_status"].as_i64().unwrap_or(0)
    }
}

/// Runs a program to its end and returns what it wrote.
fn succeeds(command: &mut Blocking) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What came of a command, which must have succeeded.
///
/// # Panics
///
/// If it has not.
#[track_caller]
pub fn succeeded(ran: Ran) -> Ran {
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn directories(dir: &Path) -> Vec<PathBuf> {
    entries(dir).into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect()
}
