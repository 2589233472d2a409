//! The last steps of a container's process before it becomes the container's program.
//!
//! They run inside the container with its user and capabilities. libcontainer's own executor would
//! leave SIGPIPE ignored, as Rust programs have it, word its errors otherwise than runc, and look
//! for users with getpwuid(3), which loads libraries of the container's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Context;
use holdfast_sys::PidFd;
use holdfast_sys::spawn::end_by_sigpipe;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::fcntl::{AT_FDCWD, AtFlags, FcntlArg, OFlag, fcntl};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, execve, faccessat};
use oci_spec::runtime::{Process, Spec};

use crate::args::LogFormat;
use crate::confine::Confinement;
use crate::spec::NO_HOME;
use crate::{hierarchy, log};

/// Executes the program that the configuration names.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Where an execve(2) that fails is reported: by then the command may have ended long ago.
    log: Option<(Rc<File>, LogFormat)>,
    /// The environment, between the two steps that libcontainer makes of it.
    env: Rc<RefCell<HashMap<String, String>>>,
    kind: Kind,
    /// The command that this process comes of.
    command: Rc<PidFd>,
    /// The cgroups that it has yet to enter, opened by the command, whose rights count there.
    cgroups: Rc<[File]>,
    confinement: Rc<Confinement>,
}

/// Which process of the container it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of `create`, which ends while this waits for `start`.
    First,
    /// Of `exec`, which sees this through.
    Further,
}

impl Program {
    pub(crate) fn new(
        kind: Kind,
        confinement: Confinement,
        log: Option<File>,
        format: LogFormat,
    ) -> anyhow::Result<Self> {
        let command = Rc::new(PidFd::open(i32::try_from(std::process::id())?)?);
        let log = log.map(|file| (Rc::new(file), format));
        let (cgroups, confinement) = (Rc::from([]), Rc::new(confinement));
        Ok(Self { log, env: Rc::default(), kind, command, cgroups, confinement })
    }

    /// Has the process enter these cgroups. That of `exec` does so by itself: it finds the container's
    /// cgroup namespace made, and a command that visited a running container's cgroups could be
    /// suspended and killed by it.
    pub(crate) fn in_cgroups(mut self, dirs: &[PathBuf]) -> anyhow::Result<Self> {
        let open = |dir: &PathBuf| {
            hierarchy::open(dir).with_context(|| format!("open cgroup {}", dir.display()))
        };
        self.cgroups = dirs.iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(self)
    }

    /// libcontainer's processes don't notice that the command was killed, and would wait for a
    /// start that never comes. In this order, so that its end is noticed whenever it comes.
    fn depend_on_command(&self) -> Result<(), String> {
        if self.kind == Kind::Further {
            set_pdeathsig(Signal::SIGKILL).map_err(|error| format!("set_pdeathsig: {error}"))?;
        }
        if self.command.is_alive() { Ok(()) } else { Err("the command was killed".to_owned()) }
    }
}

impl Executor for Program {
    /// Finds the program while `create` still waits, so that a missing one fails it.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let invalid = ExecutorValidationError::ArgValidationError;
        let process = spec.process().as_ref().ok_or_else(|| invalid("no process".to_owned()))?;
        self.depend_on_command().map_err(invalid)?;
        for mut cgroup in self.cgroups.iter() {
            let entered = cgroup.write_all(b"0");
            entered.map_err(|error| invalid(format!("enter the container's cgroup: {error}")))?;
        }
        let dropped = self.confinement.drop_capabilities();
        dropped.map_err(|error| invalid(format!("{error:#}")))?;
        reopen_null().map_err(|error| invalid(format!("reopen /dev/null: {error}")))?;
        size_terminal(process).map_err(|error| invalid(format!("size the terminal: {error}")))?;
        find(process).map(drop).map_err(invalid)
    }

    fn setup_envs(&self, mut env: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        if env.get("HOME").is_some_and(|home| home == NO_HOME) {
            let home = home_of(nix::unistd::getuid().as_raw()).unwrap_or_else(|| "/".to_owned());
            env.insert("HOME".to_owned(), home);
        }
        // A variable without a name can't be passed on.
        env.remove("");
        *self.env.borrow_mut() = env;
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let path = find(process).map_err(ExecutorError::Other)?;
        let args = process.args().as_ref().ok_or(ExecutorError::InvalidArg)?;
        set_pdeathsig(None).map_err(|error| ExecutorError::Other(error.to_string()))?;
        let failed = |error: std::io::Error| {
            format!("exec {:?}: {}", path.display().to_string(), describe(&error))
        };
        let words = || -> Result<_, std::ffi::NulError> {
            let args = args.iter().map(|arg| CString::new(arg.as_str()));
            let env = self.env.borrow();
            let env = env.iter().map(|(name, value)| CString::new(format!("{name}={value}")));
            let path = CString::new(path.as_os_str().as_bytes())?;
            Ok((path, args.collect::<Result<Vec<_>, _>>()?, env.collect::<Result<Vec<_>, _>>()?))
        };
        let text = match words() {
            Err(error) => failed(error.into()),
            Ok((path, args, env)) => {
                end_by_sigpipe();
                match self.confinement.seal() {
                    Err(error) => format!("{error:#}"),
                    Ok(()) => match execve(&path, &args, &env) {
                        Err(error) => failed(error.into()),
                    },
                }
            }
        };
        if let Some((file, format)) = &self.log {
            _ = (&**file).write_all(log::line("error", &text, *format).as_bytes());
        }
        Err(ExecutorError::Other(text))
    }
}

/// The program's path, or why there is none, in runc's words.
fn find(process: &Process) -> Result<PathBuf, String> {
    let name = process.args().as_ref().and_then(|args| args.first()).ok_or("no arguments")?;
    if name.contains('/') {
        let path = PathBuf::from(name);
        let metadata = std::fs::metadata(&path)
            .map_err(|error| format!("exec: {name:?}: stat {name}: {}", describe(&error)))?;
        if metadata.is_dir() {
            return Err(format!("exec: {name:?}: is a directory"));
        }
        return if is_executable(&path) {
            Ok(path)
        } else {
            Err(format!("exec: {name:?}: permission denied"))
        };
    }
    let env = process.env().as_deref().unwrap_or_default();
    let search = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    search
        .unwrap_or_default()
        .split(':')
        .map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name))
        .find(|path| path.is_file() && is_executable(path))
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn is_executable(path: &Path) -> bool {
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}

/// An error as Go's library words it, whose texts callers look for.
fn describe(error: &std::io::Error) -> String {
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(errno) => errno.desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// The home directory as the container's own /etc/passwd has it.
fn home_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let home = fields.get(5).filter(|home| !home.is_empty())?;
        (fields.get(2)?.parse() == Ok(uid)).then(|| (*home).to_owned())
    })
}

/// Gives a new terminal the size that the configuration asks for, which libcontainer ignores. Before
/// anyone is told of the process: afterwards its size is its caller's affair.
fn size_terminal(process: &Process) -> std::io::Result<()> {
    let Some(size) = process.console_size().filter(|_| process.terminal() == Some(true)) else {
        return Ok(());
    };
    let side = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
    holdfast_sys::terminal::resize(std::io::stdin(), side(size.width()), side(size.height()))
}

/// libcontainer replaces the host's /dev/null by the container's, open for reading only, on the
/// standard output and error too; a program could not write to those.
fn reopen_null() -> std::io::Result<()> {
    let is_null = |file: &File| -> std::io::Result<bool> {
        let metadata = file.metadata()?;
        let null = nix::sys::stat::makedev(1, 3);
        let reads = fcntl(file, FcntlArg::F_GETFL)? & OFlag::O_ACCMODE.bits() == 0;
        Ok(metadata.file_type().is_char_device() && metadata.rdev() == null && reads)
    };
    let open = || File::options().read(true).write(true).open("/dev/null");
    let dup = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    use std::os::fd::AsFd;
    if dup(std::io::stdout().as_fd()).is_ok_and(|file| is_null(&file).unwrap_or(false)) {
        nix::unistd::dup2_stdout(open()?)?;
    }
    if dup(std::io::stderr().as_fd()).is_ok_and(|file| is_null(&file).unwrap_or(false)) {
        nix::unistd::dup2_stderr(open()?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::ProcessBuilder;

    fn find_one(name: &str, env: &[&str]) -> Result<PathBuf, String> {
        let env: Vec<String> = env.iter().map(ToString::to_string).collect();
        find(&ProcessBuilder::default().args([name.to_owned()]).env(env).build().unwrap())
    }

    #[test]
    fn a_missing_program_is_named_as_runc_names_it() {
        let missing = find_one("nope-nope", &["PATH=/bin"]).unwrap_err();
        assert_eq!(missing, "exec: \"nope-nope\": executable file not found in $PATH");
        let missing = find_one("/nope", &[]).unwrap_err();
        assert_eq!(missing, "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(find_one("/", &[]).unwrap_err(), "exec: \"/\": is a directory");
        let denied = find_one("/etc/passwd", &[]).unwrap_err();
        assert_eq!(denied, "exec: \"/etc/passwd\": permission denied");
    }

    #[test]
    fn the_last_path_counts() {
        assert!(find_one("sh", &["PATH=/nope", "PATH=/nope:/bin"]).is_ok());
        assert!(find_one("sh", &["PATH=/bin", "PATH=/nope"]).is_err());
    }
}
