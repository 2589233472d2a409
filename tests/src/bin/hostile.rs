//! What a container may try: one attack a subcommand. It is linked statically, so that it runs in any
//! root file system.
//!
//! | command | what it does |
//! |---|---|
//! | `lock FD…` | holds the lock of each of these pipes for ever |
//! | `mischief SEED MILLISECONDS CODE` | does at random whatever a process may do to its standard output and error, and exits with this code |

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FlockArg, OFlag, SpliceFFlags, fcntl, splice, tee, vmsplice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{ftruncate, pipe2, read};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let numbers: Vec<u64> = args.filter_map(|number| number.parse().ok()).collect();
    let done = match (command.as_deref(), numbers.as_slice()) {
        (Some("lock"), fds) => {
            fds.iter().map(|fd| standard(*fd)).collect::<io::Result<_>>().and_then(lock)
        }
        (Some("mischief"), [seed, length, code]) => {
            // It may come to wait for itself; the time goes on.
            let seed = *seed;
            std::thread::spawn(move || mischief(seed));
            std::thread::sleep(Duration::from_millis(*length));
            return ExitCode::from(u8::try_from(*code).unwrap_or(u8::MAX));
        }
        other => Err(io::Error::other(format!("no attack: {other:?}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hostile: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A copy of one of the standard descriptors.
fn standard(number: u64) -> io::Result<OwnedFd> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fd: BorrowedFd<'_> = match number {
        0 => stdin.as_fd(),
        1 => stdout.as_fd(),
        2 => stderr.as_fd(),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    fd.try_clone_to_owned()
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

/// Numbers that look random and are the same for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What fails here fails: the attacker does not mind.
fn mischief(seed: u64) -> ! {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let outputs = [1, 2].map(|number| standard(number).expect("a standard descriptor"));
    let (own_reader, own_writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a pipe");
    let mut copies: Vec<File> = Vec::new();
    let mut page = vec![b'p'; 8192];
    let now = SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        let output = &outputs[usize::try_from(dice.below(2)).unwrap_or_default()];
        let path = format!("/proc/self/fd/{}", output.as_raw_fd());
        match dice.below(16) {
            0..=3 => {
                let line =
                    format!("{}\n", "x".repeat(usize::try_from(dice.below(3000)).unwrap_or(1)));
                write_now(output, line.as_bytes());
            }
            // As `cat <&1` does.
            4 | 5 => _ = has(output, PollFlags::POLLIN) && read(output, &mut [0; 4096]).is_ok(),
            6 => _ = tee(output, &own_writer, 65536, now),
            7 => _ = splice(output, None, &own_writer, None, 65536, now),
            8 => _ = splice(&own_reader, None, output, None, 65536, now),
            9 => {
                // A gift that is changed afterwards.
                _ = vmsplice(output, &[IoSlice::new(&page)], now | SpliceFFlags::SPLICE_F_GIFT);
                page.fill(b'q');
            }
            10 => {
                let size = 4096 << dice.below(8);
                _ = fcntl(output, FcntlArg::F_SETPIPE_SZ(size));
            }
            11 => {
                let some = [OFlag::O_NONBLOCK, OFlag::O_DIRECT, OFlag::O_ASYNC, OFlag::O_APPEND];
                let flags = some.into_iter().filter(|_| dice.below(2) == 0).collect();
                _ = fcntl(output, FcntlArg::F_SETFL(flags));
            }
            12 => {
                _ = fchmod(
                    output,
                    Mode::from_bits_truncate(u32::try_from(dice.below(0o1000)).unwrap_or(0)),
                );
                _ = ftruncate(output, 1 << 40);
            }
            13 => {
                let (reads, writes) = (dice.below(2) == 0, dice.below(2) == 0);
                copies.extend(File::options().read(reads).write(writes).open(&path));
            }
            14 => copies.truncate(usize::try_from(dice.below(8)).unwrap_or_default()),
            _ => {
                if let Ok(file) = output.try_clone().map(File::from) {
                    _ = nix::fcntl::Flock::lock(file, FlockArg::LockExclusiveNonblock);
                }
            }
        }
    }
}

fn has(fd: &OwnedFd, events: PollFlags) -> bool {
    let mut set = [PollFd::new(fd.as_fd(), events)];
    poll(&mut set, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

/// Waits for nobody: its shim may have to wait for us.
fn write_now(output: &OwnedFd, bytes: &[u8]) {
    if has(output, PollFlags::POLLOUT) {
        let _ = nix::unistd::write(output, &bytes[..bytes.len().min(4096)]);
    }
}
