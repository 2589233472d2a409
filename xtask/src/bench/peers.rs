//! Holdfast and its peers, each started the way its users do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::Programs;
use crate::setup;

/// A bundle of busybox for these arguments, with a directory of the host at `/data`.
pub(super) fn bundle(dir: &Path, data: &Path, args: &[&str]) -> anyhow::Result<PathBuf> {
    let (bundle, bin) = (dir.join("bundle"), dir.join("bundle/rootfs/bin"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(bundle.join("rootfs/data"))?;
    fs::copy(which("busybox")?, bin.join("busybox"))?;
    for name in ["sh", "dd", "true", "cat", "sleep"] {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    setup::output(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
    config["process"]["args"] = json!(args);
    config["process"]["terminal"] = json!(false);
    // containerd makes a bundle of its own, to which a relative path would be relative.
    config["root"]["path"] = json!(bundle.join("rootfs"));
    let mount = json!({
        "destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"]
    });
    config["mounts"].as_array_mut().context("mounts")?.push(mount);
    fs::write(path, serde_json::to_vec(&config)?)?;
    Ok(bundle)
}

/// Where a program is.
pub(super) fn which(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not in PATH"))
}

/// Returns whether there is no directory of a container in this one. Hidden directories are not
/// containers', but for those that Holdfast is removing. A directory that is not there is empty.
pub(super) fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().all(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        let hidden = name.starts_with(b".") && !name.starts_with(b".gone-");
        hidden || !entry.file_type().is_ok_and(|kind| kind.is_dir())
    })
}

/// The processes whose command line names this directory.
pub(super) fn processes(dir: &Path) -> Vec<u32> {
    let dir = dir.display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&dir) {
            found.push(pid);
        }
    }
    found
}

/// Returns the cgroups, of all hierarchies, that `wanted` accepts by their names.
pub(super) fn cgroups(wanted: impl Fn(&str) -> bool) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut below = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str().is_some_and(&wanted) {
                found.insert(entry.path());
            }
            below.push(entry.path());
        }
    }
    found
}

/// Waits until something holds.
pub(super) fn until(what: &str, mut holds: impl FnMut() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        ensure!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// With as little environment as a service manager gives: cargo's is handed down to every process that
/// is started, and fills pages of it.
fn as_a_service(command: &mut Command) -> &mut Command {
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
}

/// A daemon of ours, ended when dropped.
pub(super) struct Daemon {
    pub(super) root: PathBuf,
    pub(super) programs: Programs,
    child: Child,
}

impl Daemon {
    pub(super) fn start(programs: &Programs, root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root)?;
        let log = File::create(root.with_extension("daemon.log"))?;
        let child = as_a_service(&mut Command::new(programs.dir.join("holdfast")))
            .arg("--root")
            .arg(root)
            .arg("daemon")
            .stdout(log.try_clone()?)
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()?;
        let daemon = Self { root: root.to_owned(), programs: programs.clone(), child };
        let socket = root.join("holdfast.sock");
        until("the daemon", || UnixStream::connect(&socket).is_ok())?;
        Ok(daemon)
    }

    /// One for each set of programs.
    pub(super) fn start_all(programs: &[Programs], dir: &Path) -> anyhow::Result<Vec<Self>> {
        let start = |(place, programs)| Self::start(programs, &dir.join(format!("root{place}")));
        programs.iter().enumerate().map(start).collect()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.programs.dir.join("holdfast"));
        command.arg("--root").arg(&self.root).args(args).stdin(Stdio::null());
        command
    }

    pub(super) fn ok(&self, args: &[&str]) -> anyhow::Result<String> {
        setup::output(&mut self.command(args))
    }

    /// Where there are directories of containers: its own, and each runtime's.
    pub(super) fn states(&self) -> Vec<PathBuf> {
        let runtimes = fs::read_dir(self.root.join(".runtime")).into_iter().flatten().flatten();
        let mut all: Vec<PathBuf> = runtimes.map(|entry| entry.path()).collect();
        all.push(self.root.clone());
        all
    }

    /// The shim of a container's first process.
    pub(super) fn shim(&self, id: &str) -> anyhow::Result<i32> {
        let record = fs::read(self.root.join(id).join("init/process.json"))?;
        let record: Value = serde_json::from_slice(&record)?;
        let pid = record["holdfast"]["shim"]["pid"].as_i64().context("no shim in the record")?;
        Ok(i32::try_from(pid)?)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// conmon, driven by hand as podman does: it makes the container, and runc starts it.
pub(super) struct Conmon {
    dir: PathBuf,
    pub(super) id: String,
    pub(super) pid: i32,
}

impl Conmon {
    pub(super) fn start(dir: &Path, bundle: &Path, id: &str, log: &str) -> anyhow::Result<Self> {
        Self::start_with(Path::new("conmon"), dir, bundle, id, log)
    }

    /// As [`start`](Self::start), with this program in conmon's place.
    pub(super) fn start_with(
        program: &Path,
        dir: &Path,
        bundle: &Path,
        id: &str,
        log: &str,
    ) -> anyhow::Result<Self> {
        let dir = dir.join(id);
        fs::create_dir_all(dir.join("exits"))?;
        let file = |name: &str| dir.join(name);
        let mut command = Command::new(program);
        as_a_service(&mut command);
        command
            .args(["--api-version", "1", "-c", id, "-u", id, "-n", id, "-r"])
            .arg(which("runc")?);
        command.arg("--runtime-arg").arg(format!("--root={}", file("runc").display()));
        command.arg("-b").arg(bundle).arg("-p").arg(file("pid")).arg("-l").arg(log);
        command.arg("--conmon-pidfile").arg(file("conmon.pid"));
        command.arg("--exit-dir").arg(file("exits"));
        command.arg("--socket-dir-path").arg(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(file("stderr"))?);
        let status = command.status().context("conmon cannot be started")?;
        ensure!(status.success(), "conmon: {status}");
        until("conmon to make a container", || {
            fs::read_to_string(file("pid")).is_ok_and(|text| !text.trim().is_empty())
        })?;
        until("runc to have made it", || {
            let state =
                Command::new("runc").arg("--root").arg(file("runc")).args(["state", id]).output();
            state.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("\"created\""))
        })?;
        setup::output(Command::new("runc").arg("--root").arg(file("runc")).args(["start", id]))?;
        let pid = fs::read_to_string(file("conmon.pid"))?.trim().parse()?;
        Ok(Self { dir, id: id.to_owned(), pid })
    }

    /// Where runc keeps the container.
    pub(super) fn runtime(&self) -> PathBuf {
        self.dir.join("runc")
    }

    /// What conmon writes when the container has ended.
    pub(super) fn exit_file(&self) -> PathBuf {
        self.dir.join("exits").join(&self.id)
    }

    /// Kills the container, and removes it.
    pub(super) fn kill(self) -> anyhow::Result<()> {
        let root = self.dir.join("runc");
        setup::output(
            Command::new("runc").arg("--root").arg(root).args(["kill", &self.id, "KILL"]),
        )?;
        self.end()
    }

    /// Waits for the container's end, and removes it.
    pub(super) fn end(self) -> anyhow::Result<()> {
        let exit = self.exit_file();
        until("an exit file", || exit.exists())?;
        let root = self.dir.join("runc");
        setup::output(
            Command::new("runc").arg("--root").arg(root).args(["delete", "-f", &self.id]),
        )?;
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

/// A containerd of our own, without the plugin for Kubernetes; ended when dropped. Its shims keep
/// their sockets and runc's state below `/run/containerd` whatever it is told, so it has a namespace
/// of its own there.
pub(super) struct Containerd {
    dir: PathBuf,
    namespace: String,
    /// Where Holdfast's shim is, if it is used.
    programs: Option<PathBuf>,
    child: Child,
}

impl Containerd {
    /// What one needs for it.
    pub(super) fn is_installed() -> bool {
        ["containerd", "containerd-shim-runc-v2", "ctr"].into_iter().all(setup::is_installed)
    }

    pub(super) fn start(dir: &Path) -> anyhow::Result<Self> {
        Self::with_programs(dir, None)
    }

    /// As [`start`](Self::start); it finds Holdfast's shim in this directory.
    pub(super) fn with_programs(dir: &Path, programs: Option<&Path>) -> anyhow::Result<Self> {
        let dir = dir.join("containerd");
        fs::create_dir_all(&dir)?;
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            dir.join("root"),
            dir.join("state"),
            dir.join("sock"),
        );
        fs::write(dir.join("config.toml"), config)?;
        let child = Self::spawn(&dir, programs)?;
        let namespace = format!("holdfast-bench-{}", std::process::id());
        let containerd = Self { dir, namespace, programs: programs.map(Path::to_owned), child };
        until("containerd", || {
            containerd.ctr(&["version"]).output().is_ok_and(|output| output.status.success())
        })?;
        Ok(containerd)
    }

    fn spawn(dir: &Path, programs: Option<&Path>) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let mut command = Command::new("containerd");
        as_a_service(&mut command);
        if let Some(programs) = programs {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let all = [programs.to_owned()].into_iter().chain(std::env::split_paths(&path));
            command.env("PATH", std::env::join_paths(all)?);
            command.env("HOLDFAST_CONTAINERD_ROOT", dir.join("holdfast"));
        }
        command
            .arg("--config")
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("containerd cannot be started")
    }

    /// Kills it and starts it again. Returns before it listens.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = Self::spawn(&self.dir, self.programs.as_deref())?;
        Ok(())
    }

    /// The processes that have to do with it, but not containerd itself.
    pub(super) fn processes(&self) -> Vec<u32> {
        processes(&self.dir).into_iter().filter(|pid| *pid != self.pid()).collect()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn ctr(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.join("sock")).arg("--namespace");
        command.arg(&self.namespace).args(args).stdin(Stdio::null());
        command
    }

    /// Kills a container and removes it.
    pub(super) fn delete(&self, id: &str) -> anyhow::Result<()> {
        setup::output(&mut self.ctr(&["task", "delete", "--force", id]))?;
        setup::output(&mut self.ctr(&["container", "delete", id]))?;
        Ok(())
    }

    /// Where there are directories of containers: its own, and runc's.
    pub(super) fn states(&self) -> Vec<PathBuf> {
        let own = self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace);
        vec![own, Path::new("/run/containerd/runc").join(&self.namespace)]
    }

    /// What it needs to run a container with runc, but for the options and the id.
    pub(super) fn run(&self, bundle: &Path, options: &[&str]) -> Command {
        self.run_by("io.containerd.runc.v2", &bundle.join("config.json"), options)
    }

    /// As [`run`](Self::run), with another runtime, and a configuration instead of a bundle.
    pub(super) fn run_by(&self, runtime: &str, config: &Path, options: &[&str]) -> Command {
        let mut command = self.ctr(&["run", "--runtime", runtime]);
        command.args(options).arg("--config").arg(config);
        command
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let end = |pid: u32| Command::new("kill").arg(pid.to_string()).status();
        let _ = end(self.pid());
        let _ = self.child.wait();
        // Holdfast's supervisor stays for a while without containers.
        let supervisors = || {
            let named = |pid: &u32| is_program(*pid, "holdfast-containerd");
            self.processes().into_iter().filter(named).collect::<Vec<_>>()
        };
        for pid in supervisors() {
            let _ = end(pid);
        }
        let _ = until("the supervisor to end", || supervisors().is_empty());
        // Empty by then, so only a directory goes.
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.namespace));
    }
}

/// Returns whether a process executes a program of this name.
pub(super) fn is_program(pid: u32, name: &str) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|path| path.file_name().is_some_and(|file| file == name))
}

/// A FIFO at which a container waits.
pub(super) struct Gate(File);

impl Gate {
    pub(super) fn new(path: &Path) -> anyhow::Result<Self> {
        let made = Command::new("mkfifo").arg(path).status()?;
        ensure!(made.success(), "mkfifo {}: {made}", path.display());
        Ok(Self(File::options().read(true).write(true).open(path)?))
    }

    pub(super) fn open(&mut self) -> anyhow::Result<()> {
        Ok(self.0.write_all(b"\n")?)
    }
}

/// How much processor time a process has had, in seconds: its own, and the kernel's for it.
pub(super) fn cpu(pid: i32) -> anyhow::Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let Some((_, rest)) = stat.rsplit_once(')') else { bail!("no stat of {pid}") };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Fields 14 and 15 of proc_pid_stat(5); the first here is field 3. In hundredths of a second.
    Ok((fields[11].parse::<f64>()? / 100.0, fields[12].parse::<f64>()? / 100.0))
}
