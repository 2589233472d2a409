//! The command line: everything the shim needs to know, so that it reads no configuration.
//!
//! By hand, and borrowed from where the kernel put it: a library would copy each argument, and every
//! shim would keep that memory.

use std::ffi::OsStr;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use holdfast_state::LogSpec;
use holdfast_state::shim_options::{
    ADOPT, CLOSER, CWD, GROUP, IDENTIFY, MOVED, PROTOCOL, PROTOCOL_OPTION, SEAT, SPARE, VERSION,
};

/// `holdfast-shim --dir DIR [OPTION…] -- RUNTIME ARG…`, or `holdfast-shim --dir DIR --adopt [OPTION…]`,
/// or `holdfast-shim --group PATH`, or with one of `--spare`, `--closer` and `--version`
#[derive(Debug)]
pub(crate) struct Args<'a> {
    /// The process's directory.
    pub(crate) dir: &'a Path,
    /// Whether to take over a process whose shim died, instead of starting one.
    pub(crate) adopt: bool,
    /// As `adopt`, of one whose shim, which this is, has handed it over and left nothing half done.
    pub(crate) moved: Option<i32>,
    /// Whether to hand the process over to a group once it is started.
    pub(crate) seat: bool,
    /// Whether to be the shim of a group. For those who look at it: its place in the state root.
    pub(crate) group: Option<&'a OsStr>,
    /// Whether to wait for a start, of which we are told then.
    pub(crate) spare: bool,
    /// Whether only to close descriptors.
    pub(crate) closer: bool,
    /// Whether only to tell our version.
    pub(crate) version: bool,
    /// How long the runtime may take. At its end all that it started is killed.
    pub(crate) timeout: Option<Duration>,
    /// Where output goes; nowhere unless it is said.
    pub(crate) log: Vec<LogSpec>,
    /// Who owns the stdio, as the host counts: a container's user may reopen `/dev/stdout`.
    pub(crate) owner: Option<(u32, u32)>,
    /// The soft limit of open files for the runtime and the container, where ours is another.
    pub(crate) nofile: Option<u64>,
    /// The working directory of the runtime.
    pub(crate) cwd: Option<&'a Path>,
    /// Whether the process has a terminal. Then the runtime's command gets `--console-socket PATH`
    /// before its last argument.
    pub(crate) terminal: bool,
    /// FIFOs, given to the container as they are, or joined to its terminal.
    pub(crate) stdin: Option<&'a Path>,
    pub(crate) stdout: Option<&'a Path>,
    pub(crate) stderr: Option<&'a Path>,
    /// The runtime's command, complete.
    pub(crate) runtime: Vec<&'a OsStr>,
}

/// The protocol of the supervisor.
static PROTOCOL_SPOKEN: AtomicU32 = AtomicU32::new(0);

/// The protocol in which the supervisor is answered. That holds for a whole process: those of a group have
/// the same supervisor.
pub(crate) fn protocol() -> u32 {
    PROTOCOL_SPOKEN.load(Ordering::Relaxed)
}

fn speak(protocol: u32) -> Result<(), String> {
    if protocol > PROTOCOL {
        return Err(format!(
            "the supervisor speaks protocol {protocol}, and this holdfast-shim ({}) only {PROTOCOL}: install the shim of the supervisor's release",
            env!("CARGO_PKG_VERSION")
        ));
    }
    PROTOCOL_SPOKEN.store(protocol, Ordering::Relaxed);
    Ok(())
}

const USAGE: &str = "usage: holdfast-shim --dir DIR [OPTION…] -- RUNTIME ARG… (started by the supervisor, not by hand)";

/// Parses what follows the program's name.
pub(crate) fn parse<'a>(
    mut words: impl Iterator<Item = &'a OsStr> + Clone,
) -> Result<Args<'a>, String> {
    let mut args = Args {
        dir: Path::new(""),
        adopt: false,
        moved: None,
        seat: false,
        group: None,
        spare: false,
        closer: false,
        version: false,
        timeout: None,
        log: Vec::new(),
        owner: None,
        nofile: None,
        cwd: None,
        terminal: false,
        stdin: None,
        stdout: None,
        stderr: None,
        runtime: Vec::new(),
    };
    while let Some(word) = words.next() {
        let name = word.to_str().unwrap_or_default();
        match name {
            ADOPT => args.adopt = true,
            SEAT => args.seat = true,
            SPARE => args.spare = true,
            CLOSER => args.closer = true,
            VERSION => args.version = true,
            IDENTIFY => speak(1)?,
            "--terminal" => args.terminal = true,
            "--" => {
                // At once: each size that it grew through would stay with the allocator.
                args.runtime = Vec::with_capacity(words.clone().count());
                args.runtime.extend(words);
                break;
            }
            _ => {
                let value = words.next().ok_or(USAGE)?;
                match name {
                    PROTOCOL_OPTION => speak(parsed(name, value)?)?,
                    "--dir" => args.dir = Path::new(value),
                    MOVED => {
                        (args.adopt, args.moved) = (true, Some(parsed(name, value)?));
                    }
                    GROUP => args.group = Some(value),
                    "--timeout-ms" => {
                        args.timeout = Some(Duration::from_millis(parsed(name, value)?));
                    }
                    "--log" => {
                        // There is one, mostly, where room for four would be made.
                        args.log.reserve_exact(1);
                        args.log.push(parsed(name, value)?);
                    }
                    "--owner" => {
                        let (uid, gid) = value
                            .to_str()
                            .and_then(|ids| ids.split_once(':'))
                            .ok_or("--owner takes UID:GID")?;
                        args.owner =
                            Some((parsed(name, uid.as_ref())?, parsed(name, gid.as_ref())?));
                    }
                    "--nofile" => args.nofile = Some(parsed(name, value)?),
                    CWD => args.cwd = Some(Path::new(value)),
                    "--stdin" => args.stdin = Some(Path::new(value)),
                    "--stdout" => args.stdout = Some(Path::new(value)),
                    "--stderr" => args.stderr = Some(Path::new(value)),
                    _ => return Err(format!("{}: no option. {USAGE}", word.display())),
                }
            }
        }
    }
    let one = args.dir != Path::new("") && (args.adopt || !args.runtime.is_empty());
    let kinds = [one, args.group.is_some(), args.spare, args.closer, args.version];
    if kinds.into_iter().filter(|kind| *kind).count() == 1 {
        Ok(args)
    } else {
        Err(USAGE.to_owned())
    }
}

/// The value of an option.
fn parsed<T: FromStr<Err: ToString>>(name: &str, value: &OsStr) -> Result<T, String> {
    let text = value.to_str().ok_or_else(|| format!("{name}: not UTF-8"))?;
    text.parse().map_err(|error: T::Err| format!("{name} {text}: {}", error.to_string()))
}
