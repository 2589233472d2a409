//! What a container may try: one attack per subcommand. It is linked statically, so that it runs in any
//! root file system.
//!
//! | command | what it does |
//! |---|---|
//! | `lock FD…` | holds the lock of each of these pipes for ever |
//! | `mischief SEED MILLISECONDS CODE` | does at random whatever a process may do to its standard descriptors, and exits with this code |
//! | `mischief-until SEED GATE` | does the same, less often, until it can read a line from the FIFO `GATE`; that line is its exit code |

mod mischief;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, splice};

/// How long `mischief-until` pauses after a few acts. It runs beside many others, and writes logs.
const PAUSE: Duration = Duration::from_millis(40);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["lock", numbers @ ..] => pipes(numbers).and_then(lock).map(|()| ExitCode::SUCCESS),
        ["mischief", seed, length, code] => parsed(seed).and_then(|seed| {
            mischief::begin(seed, Duration::ZERO)?;
            std::thread::sleep(Duration::from_millis(parsed(length)?));
            Ok(ExitCode::from(parsed::<u8>(code)?))
        }),
        ["mischief-until", seed, gate] => parsed(seed).and_then(|seed| {
            let mut gate = BufReader::new(File::open(gate)?);
            mischief::begin(seed, PAUSE)?;
            let mut code = String::new();
            gate.read_line(&mut code)?;
            Ok(ExitCode::from(parsed::<u8>(code.trim())?))
        }),
        other => Err(io::Error::other(format!("no attack: {other:?}"))),
    };
    done.unwrap_or_else(|error| {
        // Its standard error may be gone by now.
        let _ = io::Write::write_all(&mut io::stderr(), format!("hostile: {error}\n").as_bytes());
        ExitCode::FAILURE
    })
}

fn parsed<T: FromStr>(word: &str) -> io::Result<T> {
    word.parse().map_err(|_| io::Error::other(format!("not a number that fits: {word:?}")))
}

fn pipes(numbers: &[&str]) -> io::Result<Vec<OwnedFd>> {
    numbers.iter().map(|number| standard(parsed(number)?)).collect()
}

/// One of the standard descriptors, opened anew for reading and writing: an input is open for reading only.
fn standard(number: i32) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{number}");
    Ok(File::options().read(true).write(true).open(path)?.into())
}

/// splice(2) takes the pipe's lock, and then waits for a socket that says nothing.
fn lock(pipes: Vec<OwnedFd>) -> io::Result<()> {
    std::thread::scope(|scope| {
        for pipe in &pipes {
            scope.spawn(move || {
                let (silent, _other) = UnixStream::pair().expect("a pair of sockets");
                splice(&silent, None, pipe, None, 4096, SpliceFFlags::empty())
            });
        }
    });
    Ok(())
}
