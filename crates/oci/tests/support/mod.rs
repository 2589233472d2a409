//! A bundle of busybox, and the runtime's command line.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// One test's container: its bundle, its id, the runtime's state. Dropped, it is deleted by force.
pub(crate) struct Fixture {
    dir: TempDir,
    pub(crate) id: String,
}

impl Fixture {
    /// A bundle whose program is a shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::program(&["sh", "-c", script])
    }

    pub(crate) fn program(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Containers are orphaned to us, so that we get their exit status.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let dir = tempfile::Builder::new().prefix("holdfast-oci-").tempdir_in("/tmp").unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("oci-{}-{number}", std::process::id());
        let fixture = Self { dir, id };
        make_rootfs(&fixture.bundle().join("rootfs"));
        let config = config(args, &fixture.id);
        fs::write(fixture.bundle().join("config.json"), config.to_string()).unwrap();
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.path("bundle")
    }

    pub(crate) fn edit(self, change: impl FnOnce(&mut Value)) -> Self {
        let path = self.bundle().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
        self
    }

    /// A command of the runtime, without the id.
    pub(crate) fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-oci"));
        command.arg("--root").arg(self.path("root"));
        command.arg("--log").arg(self.path("log.json")).args(["--log-format", "json", verb]);
        command.stdin(Stdio::null());
        command
    }

    /// `create` or `run --detach`, without the id.
    pub(crate) fn make(&self, verb: &str) -> Command {
        let mut command = self.command(verb);
        if verb == "run" {
            command.arg("--detach");
        }
        command.arg("--bundle").arg(self.bundle()).arg("--pid-file").arg(self.path("pid"));
        command
    }

    /// A command that has to succeed; what it printed.
    pub(crate) fn ok(&self, verb: &str, before: &[&str], after: &[&str]) -> String {
        let output = self.output(verb, before, after);
        assert!(output.status.success(), "{verb}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// A command that has to fail; what it said.
    pub(crate) fn fails(&self, verb: &str, before: &[&str], after: &[&str]) -> String {
        let output = self.output(verb, before, after);
        assert_eq!(output.status.code(), Some(1), "{verb}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn output(&self, verb: &str, before: &[&str], after: &[&str]) -> Output {
        self.command(verb).args(before).arg(&self.id).args(after).output().unwrap()
    }

    /// Makes the container with its output in a file; its pid.
    pub(crate) fn launch(&self, verb: &str) -> Pid {
        self.launch_with(self.make(verb))
    }

    pub(crate) fn launch_with(&self, mut command: Command) -> Pid {
        let out = fs::File::create(self.path("out")).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out).arg(&self.id);
        let status = command.status().unwrap();
        assert!(status.success(), "{command:?}: {}\n{}", self.log(), self.out());
        self.pid()
    }

    /// Makes the container with its output in a pipe, and reads a line of it.
    pub(crate) fn launch_to_line(&self, verb: &str) -> (Pid, String) {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = self.make(verb);
        let status = command.stdout(writer).arg(&self.id).status().unwrap();
        assert!(status.success(), "{command:?}: {}", self.log());
        drop(command);
        let mut line = Vec::new();
        let mut byte = [0];
        while reader.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        (self.pid(), String::from_utf8(line).unwrap())
    }

    /// Starts a further process; its pid.
    pub(crate) fn exec(&self, args: &[&str]) -> Result<Pid, String> {
        self.exec_with(args, false, |_| {})
    }

    pub(crate) fn exec_with(
        &self,
        args: &[&str],
        terminal: bool,
        change: impl FnOnce(&mut Command),
    ) -> Result<Pid, String> {
        let mut process = process(args);
        process["terminal"] = json!(terminal);
        // What Holdfast adds to its process.json.
        process["holdfast"] = json!({ "schema": 1 });
        fs::write(self.path("process.json"), process.to_string()).unwrap();
        let pid_file = self.path("exec-pid");
        _ = fs::remove_file(&pid_file);
        let out = fs::File::create(self.path("exec-out")).unwrap();
        let mut command = self.command("exec");
        command.arg("--detach").arg("--process").arg(self.path("process.json"));
        command.arg("--pid-file").arg(&pid_file).stdout(out.try_clone().unwrap()).stderr(out);
        change(&mut command);
        let status = command.arg(&self.id).status().unwrap();
        if status.success() {
            Ok(read_pid(&pid_file))
        } else {
            assert!(!pid_file.exists(), "a pid file of a process that is not there");
            Err(fs::read_to_string(self.path("exec-out")).unwrap())
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        read_pid(&self.path("pid"))
    }

    pub(crate) fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.ok("state", &[], &[])).unwrap();
        assert_eq!((&state["id"], &state["ociVersion"]), (&json!(self.id), &json!("1.0.2")));
        assert_eq!(state["bundle"], json!(self.bundle()));
        state["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log.json")).unwrap_or_default()
    }

    /// The messages of all errors in the log.
    pub(crate) fn errors(&self) -> Vec<String> {
        let text = self.log();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let errors = lines.filter(|line| line["level"] == "error" && line["time"].is_string());
        errors.map(|line| line["msg"].as_str().unwrap().to_owned()).collect()
    }

    /// The container's cgroups in all hierarchies.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut ahead = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(dir) = ahead.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.file_name() == self.id.as_str() {
                        found.push(entry.path());
                    }
                    ahead.push(entry.path());
                }
            }
        }
        found
    }

    /// The runtime's own processes that work on the container, zombies excepted.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&*self.path("root").to_string_lossy()) {
                found.push(line);
            }
        }
        found
    }

    /// Deletes the container, which must leave nothing.
    pub(crate) fn delete(&self, flags: &[&str]) {
        self.ok("delete", flags, &[]);
        self.assert_nothing_left();
    }

    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        let left: Vec<_> = fs::read_dir(self.path("root")).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        _ = self.command("delete").arg("--force").arg(&self.id).status();
    }
}

fn read_pid(path: &Path) -> Pid {
    Pid::from_raw(fs::read_to_string(path).unwrap().parse().unwrap())
}

/// Waits for a container's process; its exit code, or 128 and the signal that ended it.
pub(crate) fn wait(pid: Pid) -> i32 {
    match waitpid(pid, None).unwrap() {
        WaitStatus::Exited(_, code) => code,
        WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
        other => panic!("{other:?}"),
    }
}

fn make_rootfs(rootfs: &Path) {
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin).unwrap();
    // A user namespace's root has to pass.
    for dir in [rootfs.parent().unwrap().parent().unwrap(), rootfs.parent().unwrap(), rootfs] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.iter().find(|path| path.is_file()).expect("busybox-static is installed");
    // By a child: what this process has open for writing, any child that another thread forks at that moment
    // has as well until its exec, and nothing can be executed as long ("Text file busy").
    let installed = Command::new("install").arg(busybox).arg(bin.join("busybox")).status().unwrap();
    assert!(installed.success(), "install busybox: {installed}");
    let applets =
        ["sh", "ls", "sleep", "cat", "echo", "true", "id", "grep", "mkdir", "tty", "kill"];
    for applet in applets {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    // Mount points, which an unprivileged root could not make.
    for dir in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir(rootfs.join(dir)).unwrap();
    }
}

fn process(args: &[&str]) -> Value {
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin", "MARK=42"],
        "cwd": "/",
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_SYS_ADMIN"],
            "effective": ["CAP_KILL", "CAP_SYS_ADMIN"],
            "permitted": ["CAP_KILL", "CAP_SYS_ADMIN"],
        },
        "noNewPrivileges": true,
    })
}

fn config(args: &[&str], id: &str) -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "process": process(args),
        "root": { "path": "rootfs", "readonly": false },
        "hostname": id,
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            {
                "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "mode=755", "size=65536k"],
            },
            {
                "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}
