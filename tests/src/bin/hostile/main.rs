//! What a container may try: one attack per subcommand. It is linked statically, so that it runs in any
//! root file system. `hostile help` lists them.
//!
//! The attacks of [`ATTACKS`] print one line each, `held: …` or `broken: …`, with what they have tried and
//! what came of it, and exit with 0 or 1. Whoever runs one looks at the victim from outside as well. No
//! attack harms a machine on which it succeeds: it names its victims or makes them itself, and what would
//! change the machine is opened or asked for and not done. Sizes are bounded, and so is the time
//! ([`LIMIT`]).
//!
//! | module | attacks |
//! |---|---|
//! | `cgroups` | cgroups of others, and the own limits |
//! | `files` | devices, paths of the host, descriptors, mounts, what of `/proc` and `/sys` changes the host |
//! | `kernel` | keys, namespaces, kernel interfaces |
//! | `processes` | processes of the host, and those that enter the container |
//! | `floods` | too much of everything |
//! | `speech` | terminals, outputs, titles |
//! | `mischief` | whatever a process may do to its own standard descriptors |

mod cgroups;
mod files;
mod floods;
mod kernel;
mod mischief;
mod processes;
mod report;
mod speech;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, splice};

use report::Report;

/// How long `mischief-until` pauses after a few acts. It runs beside many others, and writes logs.
const PAUSE: Duration = Duration::from_millis(40);

/// How long an attack may take. A flood of memory or of processes must not outlive its test.
const LIMIT: Duration = Duration::from_secs(50);

/// What an attack does with its arguments.
type Act = fn(&[&str], &mut Report) -> io::Result<()>;

/// The attacks: name, arguments, what is tried, and the function that does it.
const ATTACKS: &[(&str, &str, &str, Act)] = &[
    ("devices", "b:MAJOR:MINOR…", "make these devices and open them", files::devices),
    (
        "cgroups",
        "NAME",
        "reach the cgroup NAME, and kill, join or limit who is in it",
        cgroups::foreign,
    ),
    ("cgroup-limits", "", "lift the limits of the own cgroup", cgroups::own_limits),
    ("keys", "NAME", "find, read, link and change the host's key NAME", kernel::keys),
    (
        "namespaces",
        "",
        "make namespaces of each kind, and join those of others",
        kernel::namespaces,
    ),
    ("interfaces", "", "use interfaces of the kernel that no container needs", kernel::interfaces),
    ("messages", "", "read the messages of the kernel", kernel::messages),
    ("mounts", "", "mount, make read-only mounts writable, uncover what is masked", files::mounts),
    ("settings", "", "open for writing what of /proc and /sys changes the host", files::settings),
    ("secrets", "", "read what of /proc and /sys tells about the host", files::secrets),
    (
        "handles",
        "PATH",
        "open the root of the file system below by its number, and PATH in it",
        files::handles,
    ),
    ("paths", "PATH", "reach the host's file PATH from here, upwards and by chroot", files::paths),
    (
        "descriptors",
        "",
        "find descriptors that are not its own, and change what the own ones refer to",
        files::descriptors,
    ),
    (
        "processes",
        "PID…",
        "trace, read, stop and kill these processes of the host",
        processes::foreign,
    ),
    (
        "executables",
        "MILLISECONDS [PID…]",
        "open for writing the programs that run in the container",
        processes::executables,
    ),
    (
        "intruder",
        "MILLISECONDS",
        "get hold of processes while they enter the container",
        processes::intruder,
    ),
    (
        "sockets",
        "NAME PORT",
        "connect to the abstract socket NAME and the TCP port PORT of the host",
        processes::sockets,
    ),
    (
        "limits",
        "PID",
        "raise its own resource limits, change those of PID, and lower its badness for the OOM killer",
        processes::limits,
    ),
    (
        "terminal",
        "PATH…",
        "type into its standard descriptors and into each PATH",
        speech::terminal,
    ),
    ("output", "", "make a set-user-id file of its outputs, and make them large", speech::output),
    ("titles", "", "have escape sequences in a name and arguments, and stay", speech::titles),
    ("escapes", "", "write escape sequences", speech::escapes),
    ("flood-processes", "NUMBER", "have so many processes", floods::processes),
    ("flood-memory", "MIB", "have so much memory", floods::memory),
    ("flood-disk", "MIB DIR…", "write so much in each directory", floods::disk),
    ("flood-inodes", "NUMBER DIR…", "have so many empty files in each directory", floods::inodes),
    ("flood-log", "MIB", "write so much in short lines", floods::log),
];

/// Does the attack of this name; `None` if there is none.
fn attack(name: &str, args: &[&str]) -> Option<io::Result<ExitCode>> {
    let (_, _, _, act) = ATTACKS.iter().find(|attack| attack.0 == name)?;
    holdfast_sys::probe::end_after(LIMIT);
    let mut report = Report::default();
    Some(act(args, &mut report).map(|()| report.print()))
}

fn help() -> ExitCode {
    let mut text = String::from("usage: hostile ATTACK [ARGUMENT…]\n\n");
    for (name, args, what, _) in ATTACKS {
        text += &format!("  {name} {args}\n      {what}\n");
    }
    text += "  lock FD…\n      hold the lock of each of these pipes for ever\n  \
             mischief SEED MILLISECONDS CODE\n      do at random whatever a process may do to its \
             standard descriptors, and exit with CODE\n  \
             mischief-until SEED GATE\n      do the same, less often, until a line can be read from \
             the FIFO GATE; that line is its exit code\n";
    // Its standard output may be gone.
    let _ = io::Write::write_all(&mut io::stdout(), text.as_bytes());
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["help" | "--help"] => Ok(help()),
        // A child of an attack's own.
        ["stay", ..] => Ok(processes::stay()),
        ["other-interface", kind] => Ok(kernel::other_interface(kind)),
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
        [name, args @ ..] => attack(name, args).unwrap_or_else(|| {
            Err(io::Error::other(format!("no attack: {name}; see `hostile help`")))
        }),
        [] => Ok(help()),
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
