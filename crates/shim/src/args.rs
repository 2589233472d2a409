//! The command line: everything the shim needs to know, so that it reads no configuration.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use holdfast_state::LogSpec;
use lexopt::{Arg, Parser, ValueExt};

/// `holdfast-shim --dir DIR [OPTION…] -- RUNTIME ARG…`, or `holdfast-shim --dir DIR --adopt [OPTION…]`
#[derive(Debug)]
pub(crate) struct Args {
    /// The process's directory.
    pub(crate) dir: PathBuf,
    /// Whether to take over a process whose shim died, instead of starting one.
    pub(crate) adopt: bool,
    /// How long the runtime may take. At its end all that it started is killed.
    pub(crate) timeout: Option<Duration>,
    /// Where output goes; nowhere unless it is said.
    pub(crate) log: Vec<LogSpec>,
    /// Who owns the stdio, as the host counts: a container's user may reopen `/dev/stdout`.
    pub(crate) owner: Option<(u32, u32)>,
    /// The soft limit of open files for the runtime and the container, where ours is another.
    pub(crate) nofile: Option<u64>,
    /// Whether the process has a terminal. Then the runtime's command gets `--console-socket PATH`
    /// before its last argument.
    pub(crate) terminal: bool,
    /// FIFOs, given to the container as they are, or joined to its terminal.
    pub(crate) stdin: Option<PathBuf>,
    pub(crate) stdout: Option<PathBuf>,
    pub(crate) stderr: Option<PathBuf>,
    /// The runtime's command, complete.
    pub(crate) runtime: Vec<OsString>,
}

pub(crate) fn parse() -> Result<Args, lexopt::Error> {
    let mut args = Args {
        dir: PathBuf::new(),
        adopt: false,
        timeout: None,
        log: Vec::new(),
        owner: None,
        nofile: None,
        terminal: false,
        stdin: None,
        stdout: None,
        stderr: None,
        runtime: Vec::new(),
    };
    let mut parser = Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Arg::Long("dir") => args.dir = parser.value()?.into(),
            Arg::Long("adopt") => args.adopt = true,
            Arg::Long("timeout-ms") => {
                args.timeout = Some(Duration::from_millis(parser.value()?.parse()?))
            }
            Arg::Long("log") => args.log.push(parser.value()?.parse()?),
            Arg::Long("owner") => {
                let value = parser.value()?.string()?;
                let ids = value.split_once(':').ok_or("--owner takes UID:GID")?;
                args.owner = Some((
                    ids.0.parse().map_err(|_| "--owner: uid")?,
                    ids.1.parse().map_err(|_| "--owner: gid")?,
                ));
            }
            Arg::Long("nofile") => args.nofile = Some(parser.value()?.parse()?),
            Arg::Long("terminal") => args.terminal = true,
            Arg::Long("stdin") => args.stdin = Some(parser.value()?.into()),
            Arg::Long("stdout") => args.stdout = Some(parser.value()?.into()),
            Arg::Long("stderr") => args.stderr = Some(parser.value()?.into()),
            Arg::Value(program) => {
                args.runtime = std::iter::once(program).chain(parser.raw_args()?).collect();
            }
            other => return Err(other.unexpected()),
        }
    }
    if args.dir.as_os_str().is_empty() || (args.runtime.is_empty() && !args.adopt) {
        return Err("usage: holdfast-shim --dir DIR [OPTION…] -- RUNTIME ARG… (started by the supervisor, not by hand)".into());
    }
    Ok(args)
}
