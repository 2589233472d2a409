//! The standard streams of a process: FIFOs, or URIs, as containerd names them.

use std::path::{Path, PathBuf};

use holdfast_supervisor::{LogDriver, LogSpec, Logging, Stdin, Stdio, TerminalSize};

use crate::failure::{Answer, invalid};

/// What a request says of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) stdin: &'a str,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
    pub(crate) terminal: bool,
}

/// How output gets into a FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Nobody: the process has the FIFO itself. Its reader gets the end of file when the last process that
    /// has it open has closed it.
    Direct,
    /// The shim: its reader also gets the end of file when the process is deleted, whoever still has the
    /// output open.
    Relayed,
}

/// A place for output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere.
    Nowhere,
    /// A FIFO.
    Fifo(PathBuf),
    /// A file, to which it is appended.
    File(PathBuf),
    /// A program, with its arguments.
    Program(PathBuf, Vec<String>),
}

impl Place {
    pub(crate) fn parse(text: &str) -> Answer<Self> {
        if text.is_empty() {
            return Ok(Self::Nowhere);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Fifo(text.into()));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = decoded(path)?;
        if !path.starts_with('/') {
            return Err(invalid(format!("{text:?}: the path is not absolute")));
        }
        match scheme {
            "fifo" => Ok(Self::Fifo(path.into())),
            "file" => Ok(Self::File(path.into())),
            "binary" => {
                let mut arguments = Vec::new();
                for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    arguments.push(decoded(name)?);
                    if !value.is_empty() {
                        arguments.push(decoded(value)?);
                    }
                }
                Ok(Self::Program(path.into(), arguments))
            }
            other => Err(invalid(format!("{text:?}: there is no log driver {other:?}"))),
        }
    }

    fn log(&self) -> Option<LogSpec> {
        let (driver, path) = match self {
            Self::Fifo(path) => (LogDriver::Fifo, path),
            Self::File(path) => (LogDriver::File, path),
            Self::Nowhere | Self::Program(..) => return None,
        };
        let mut spec = LogSpec::new(driver);
        spec.path = Some(path.clone());
        // containerd's users rotate it themselves.
        spec.max_size = Some(0).filter(|_| driver == LogDriver::File);
        Some(spec)
    }
}

/// A part of a URI, its escapes undone.
fn decoded(text: &str) -> Answer<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else {
                    return Err(invalid(format!("{text:?} is no part of a URI")));
                };
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(0));
                rest = after;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid(format!("{text:?} is not UTF-8")))
}

/// The streams for the library. Where output goes to a program, `program` has the two FIFOs that it reads.
pub(crate) fn options(
    wanted: Wanted<'_>,
    size: TerminalSize,
    way: Way,
    program: Option<&[PathBuf; 2]>,
) -> Answer<Stdio> {
    let mut stdio = Stdio::new();
    stdio = match Place::parse(wanted.stdin)? {
        Place::Nowhere => stdio,
        Place::Fifo(path) => stdio.stdin(Stdin::Fifo(path)),
        _ => return Err(invalid(format!("{:?} can't be an input", wanted.stdin))),
    };
    let [mut stdout, mut stderr] = [Place::parse(wanted.stdout)?, Place::parse(wanted.stderr)?];
    if let Some([out, err]) = program {
        (stdout, stderr) = (Place::Fifo(out.clone()), Place::Fifo(err.clone()));
    }
    if wanted.terminal {
        stdio = stdio.terminal(size);
        return match stdout {
            Place::Fifo(path) => Ok(nowhere(stdio)?.stdout_fifo(path)),
            place => logged(stdio, place.log().into_iter().collect()),
        };
    }
    let specs: Vec<_> = match (&stdout, &stderr) {
        (Place::Fifo(_), Place::Fifo(_)) if way == Way::Direct => Vec::new(),
        (Place::Fifo(_), Place::Nowhere) | (Place::Nowhere, Place::Fifo(_)) => Vec::new(),
        (Place::Fifo(out), Place::Fifo(err)) => {
            let mut spec = LogSpec::new(LogDriver::Fifo);
            (spec.path, spec.stderr) =
                (Some(out.clone()), Some(err.clone()).filter(|err| err != out));
            spec.relay = true;
            vec![spec]
        }
        (Place::File(out), Place::File(err)) => {
            make_parents([out, err])?;
            let mut spec = stdout.log().unwrap_or_default();
            spec.stderr = Some(err.clone()).filter(|err| err != out);
            vec![spec]
        }
        (Place::Nowhere, Place::Nowhere) => Vec::new(),
        _ => {
            let text = format!("{:?} and {:?} can't be together", wanted.stdout, wanted.stderr);
            return Err(invalid(text));
        }
    };
    if !specs.is_empty() {
        return logged(stdio, specs);
    }
    stdio = nowhere(stdio)?;
    if let Place::Fifo(path) = stdout {
        stdio = stdio.stdout_fifo(path);
    }
    if let Place::Fifo(path) = stderr {
        stdio = stdio.stderr_fifo(path);
    }
    Ok(stdio)
}

fn make_parents<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Answer<()> {
    for parent in paths.into_iter().filter_map(|path| path.parent()) {
        std::fs::create_dir_all(parent)
            .map_err(|error| invalid(format!("{}: {error}", parent.display())))?;
    }
    Ok(())
}

fn nowhere(stdio: Stdio) -> Answer<Stdio> {
    logged(stdio, vec![LogSpec::new(LogDriver::None)])
}

fn logged(stdio: Stdio, mut specs: Vec<LogSpec>) -> Answer<Stdio> {
    if specs.is_empty() {
        specs.push(LogSpec::new(LogDriver::None));
    }
    let logging = Logging::new(specs).map_err(|error| invalid(error.to_string()))?;
    Ok(stdio.log(logging))
}

/// The program that a process's output goes to, if it is one.
pub(crate) fn program(stdout: &str) -> Answer<Option<(PathBuf, Vec<String>)>> {
    Ok(match Place::parse(stdout)? {
        Place::Program(path, arguments) => Some((path, arguments)),
        _ => None,
    })
}

/// The initial size of a terminal: `consoleSize` of the process's configuration, or 0 by 0.
pub(crate) fn terminal_size(size: Option<&serde_json::Value>) -> TerminalSize {
    let of = |name: &str| {
        let number = size.and_then(|size| size[name].as_u64());
        number.and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
    };
    TerminalSize { width: of("width"), height: of("height") }
}

/// The configuration of a bundle, or an empty one: whoever makes the container says what is wrong with it.
pub(crate) fn configuration(bundle: &Path) -> serde_json::Value {
    let read = std::fs::read(bundle.join("config.json")).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_fifos_or_uris() {
        let fifo = Place::Fifo("/run/fifo/1".into());
        assert_eq!(Place::parse("/run/fifo/1").unwrap(), fifo);
        assert_eq!(Place::parse("fifo:///run/fifo/1").unwrap(), fifo);
        assert_eq!(Place::parse("").unwrap(), Place::Nowhere);
        assert_eq!(Place::parse("file:///a%20b.log").unwrap(), Place::File("/a b.log".into()));
        let program =
            Place::Program("/bin/logger".into(), vec!["--tag".into(), "a+b".into(), "-x".into()]);
        assert_eq!(Place::parse("binary:///bin/logger?--tag=a%2Bb&-x=").unwrap(), program);
        for bad in ["npipe:///x", "file://relative", "binary:///x?%zz=1"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        let wanted = Wanted { stdin: "file:///x", stdout: "", stderr: "", terminal: false };
        let size = TerminalSize { width: 0, height: 0 };
        assert!(options(wanted, size, Way::Direct, None).is_err());
        let wanted = Wanted { stdin: "", stdout: "file:///x", stderr: "/fifo", terminal: false };
        assert!(options(wanted, size, Way::Direct, None).is_err());
    }
}
