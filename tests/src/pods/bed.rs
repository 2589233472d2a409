//! A containerd of the run's own, which is killed and started again, and `ctr` to it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use holdfast_ttrpc::place;
use nix::sys::signal::Signal;

use super::tap::Tap;
use crate::{Proc, executable, processes};

/// Holdfast's runtime.
const RUNTIME: &str = "io.containerd.holdfast.v2";
/// The program that containerd calls.
pub(crate) const SHIM: &str = "containerd-shim-holdfast-v2";
/// What a package installs for containerd.
const PROGRAMS: [&str; 3] = [SHIM, place::SUPERVISOR, "holdfast-shim"];
/// How long a command may take. What is stopped goes on after two seconds at the most.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// The pause between two looks at something that nothing tells of.
const PAUSE: Duration = Duration::from_millis(20);

/// containerd, and all that a run has.
pub(crate) struct Bed {
    pub(crate) dir: PathBuf,
    pub(crate) namespace: String,
    pub(crate) tap: Tap,
    /// Where each build has its programs.
    builds: Vec<PathBuf>,
    /// How many times another build was installed.
    replaced: AtomicUsize,
    containerd: Mutex<Option<Child>>,
    /// The groups that there were, of which the sockets of fronts have their names.
    groups: Mutex<BTreeSet<String>>,
    /// Odd while containerd does not answer: counted up when it is killed, and when it is back.
    outages: AtomicU64,
}

/// What `ctr` said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code. `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// containerd was down at some time meanwhile.
    pub(crate) cut: bool,
    pub(crate) began: Instant,
}

impl Said {
    /// Whether `ctr` itself has failed, and not what it has run.
    pub(crate) fn has_failed(&self) -> bool {
        self.code.is_none() || self.stderr.contains("ctr: ")
    }

    /// Whether it failed because something is not there.
    pub(crate) fn found_nothing(&self) -> bool {
        self.has_failed() && self.stderr.contains("not found")
    }
}

impl Bed {
    /// Starts a containerd in this directory, with the programs of the first of the builds.
    pub(crate) fn begin(dir: &Path, builds: &[PathBuf]) -> io::Result<Self> {
        for name in ["bin", "programs", "share", "out", "specs"] {
            fs::create_dir(dir.join(name))?;
        }
        crate::busybox_bundle(&dir.join("bundle"));
        let socket = dir.join("c.sock");
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
            dir.join("root"),
            dir.join("state"),
        );
        fs::write(dir.join("config.toml"), config)?;
        // Events go through the tap. containerd gives its own address to the shims that it starts.
        let tap = dir.join("tap.sock");
        let wrapper = dir.join("bin").join(SHIM);
        let real = dir.join("programs").join(SHIM);
        let script = format!(
            "#!/bin/sh\nexport TTRPC_ADDRESS={}\nexec {} \"$@\"\n",
            tap.display(),
            real.display()
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
        let bed = Self {
            tap: Tap::begin(&tap, &dir.join("c.sock.ttrpc"))?,
            dir: dir.to_owned(),
            namespace: format!("pods-{}", std::process::id()),
            builds: builds.to_owned(),
            replaced: AtomicUsize::new(0),
            containerd: Mutex::default(),
            groups: Mutex::default(),
            outages: AtomicU64::new(1),
        };
        bed.install(&bed.builds[0])?;
        bed.start_containerd()?;
        Ok(bed)
    }

    /// Whether there is more than one build.
    pub(crate) fn has_builds(&self) -> bool {
        self.builds.len() > 1
    }

    /// Installs the programs of the next build in place of the installed ones.
    pub(crate) fn replace_programs(&self) -> io::Result<()> {
        let number = self.replaced.fetch_add(1, Ordering::Relaxed) + 1;
        self.install(&self.builds[number % self.builds.len()])
    }

    /// As a package manager does it: a program is there at each moment, the old one or the new one.
    fn install(&self, build: &Path) -> io::Result<()> {
        for name in PROGRAMS {
            let path = self.dir.join("programs").join(name);
            let new = path.with_extension("new");
            executable::copied(build.join(name), &new);
            fs::rename(new, path)?;
        }
        Ok(())
    }

    fn address(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// The path of the socket of a pod's front.
    pub(crate) fn front_socket(&self, group: &str) -> PathBuf {
        let address = self.address().display().to_string();
        place::front_socket(Path::new(place::SOCKETS), &address, &self.namespace, group)
    }

    /// The groups that there were.
    pub(crate) fn groups(&self) -> BTreeSet<String> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where Holdfast has everything.
    pub(crate) fn holdfast(&self) -> PathBuf {
        self.dir.join("holdfast")
    }

    fn spawn(&self) -> io::Result<Child> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let first = [self.dir.join("bin"), self.dir.join("programs")];
        let path = first.into_iter().chain(std::env::split_paths(&path));
        let log =
            File::options().create(true).append(true).open(self.dir.join("containerd.log"))?;
        Command::new("containerd")
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .env("PATH", std::env::join_paths(path).map_err(io::Error::other)?)
            .env(place::BASE_VARIABLE, self.holdfast())
            // It also looks for shims in its working directory, before all others.
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
    }

    /// Starts containerd and waits until it answers.
    pub(crate) fn start_containerd(&self) -> io::Result<()> {
        let child = self.spawn()?;
        *self.containerd.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let end = Instant::now() + LIMIT;
        while self.ctr(&["version"]).has_failed() {
            if Instant::now() > end {
                return Err(io::Error::other("containerd does not answer"));
            }
            thread::sleep(PAUSE);
        }
        self.outages.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Kills containerd.
    pub(crate) fn kill_containerd(&self) -> io::Result<()> {
        let child = self.containerd.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut child) = child else { return Ok(()) };
        self.outages.fetch_add(1, Ordering::SeqCst);
        child.kill()?;
        child.wait().map(drop)
    }

    /// The process of containerd, if it runs.
    pub(crate) fn containerd(&self) -> Option<Proc> {
        let child = self.containerd.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_ref().and_then(|child| Proc::of(child.id().cast_signed()))
    }

    /// A command of `ctr`.
    pub(crate) fn ctr_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        self.arguments(&mut command, args);
        command
    }

    fn arguments(&self, command: &mut Command, args: &[&str]) {
        command.arg("--address").arg(self.address());
        command.args(["--namespace", &self.namespace]).args(args).stdin(Stdio::null());
    }

    /// Runs `ctr` to its end.
    pub(crate) fn ctr(&self, args: &[&str]) -> Said {
        let (before, began) = (self.outages.load(Ordering::SeqCst), Instant::now());
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", &LIMIT.as_secs().to_string(), "ctr"]);
        self.arguments(&mut command, args);
        let output = command.output();
        let is_cut = || before != self.outages.load(Ordering::SeqCst) || before % 2 == 1;
        match output {
            Ok(output) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let hangs = began.elapsed() >= LIMIT;
                let code = output.status.code().filter(|_| !hangs);
                let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
                Said { code, stdout, stderr, cut: is_cut(), began }
            }
            Err(error) => {
                let (stdout, stderr) = (String::new(), format!("ctr: not started: {error}"));
                Said { code: None, stdout, stderr, cut: false, began }
            }
        }
    }

    /// Waits until containerd answers.
    pub(crate) fn wait_until_up(&self) {
        let end = Instant::now() + LIMIT;
        while self.outages.load(Ordering::SeqCst) % 2 == 1 && Instant::now() < end {
            thread::sleep(PAUSE);
        }
    }

    /// The status of a task as `ctr` lists it, and its pid.
    pub(crate) fn task(&self, id: &str) -> Result<Option<(i32, String)>, String> {
        let end = Instant::now() + LIMIT;
        loop {
            let said = self.ctr(&["task", "list"]);
            if !said.has_failed() {
                return Ok(said.stdout.lines().find_map(|line| {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    let [name, pid, status] = fields[..] else { return None };
                    (name == id).then(|| (pid.parse().unwrap_or(0), status.to_owned()))
                }));
            }
            if !said.cut || Instant::now() > end {
                return Err(format!("the tasks can't be listed: {said:?}"));
            }
            self.wait_until_up();
        }
    }

    /// Writes the configuration of a container, and returns how to make it.
    pub(crate) fn create(&self, id: &str, group: &str, script: &str) -> io::Result<Vec<String>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned());
        let read = fs::read(self.dir.join("bundle/config.json"))?;
        let mut spec: serde_json::Value = serde_json::from_slice(&read)?;
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = serde_json::json!(["sh", "-c", script]);
        spec["annotations"] = serde_json::json!({ "io.containerd.runc.v2.group": group });
        spec["root"]["path"] = self.dir.join("bundle/rootfs").display().to_string().into();
        spec["root"]["readonly"] = false.into();
        let share = serde_json::json!({
            "destination": "/share", "type": "bind",
            "source": self.dir.join("share"), "options": ["rbind", "rw"]
        });
        if let Some(mounts) = spec["mounts"].as_array_mut() {
            mounts.push(share);
        }
        let path = self.dir.join("specs").join(id);
        fs::write(&path, spec.to_string())?;
        let path = path.display().to_string();
        let words = ["container", "create", "--runtime", RUNTIME, "--config", &path, id];
        Ok(words.map(str::to_owned).to_vec())
    }

    /// The supervisors: one, but for a moment.
    pub(crate) fn supervisors(&self) -> Vec<Proc> {
        self.programs(place::SUPERVISOR)
    }

    /// The container shims.
    pub(crate) fn shims(&self) -> Vec<Proc> {
        self.programs("holdfast-shim")
    }

    /// The fronts.
    pub(crate) fn fronts(&self) -> Vec<Proc> {
        self.programs(SHIM)
    }

    fn programs(&self, name: &str) -> Vec<Proc> {
        let program = self.dir.join("programs").join(name);
        let replaced = PathBuf::from(format!("{} (deleted)", program.display()));
        let is_one = |process: &Proc| {
            let exe = fs::read_link(format!("/proc/{}/exe", process.pid));
            exe.is_ok_and(|exe| exe == program || exe == replaced)
        };
        let mut found = processes::mentioning(&self.dir);
        found.retain(is_one);
        found.sort_by_key(|process| process.pid);
        found
    }

    /// Kills all that is still there.
    pub(crate) fn end(self) {
        let _ = self.kill_containerd();
        // The end of a shim leaves its container an orphan, so one round is not enough.
        for _ in 0..5 {
            for process in processes::mentioning(&self.dir) {
                process.signal(Signal::SIGKILL);
            }
            thread::sleep(PAUSE);
        }
    }
}
