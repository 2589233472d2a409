//! A container that costs next to nothing: `idler GATE CODE [STAMPS]` waits at a FIFO for one byte, or
//! for the end of whoever holds it, and exits with the code. With STAMPS it adds the monotonic clock's
//! nanoseconds to that file as its very last act, eight bytes in the machine's order.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use nix::time::{ClockId, clock_gettime};

fn main() -> Result<ExitCode, Error> {
    let mut args = std::env::args_os().skip(1);
    let missing = || Error::other("idler GATE CODE [STAMPS]");
    let gate = PathBuf::from(args.next().ok_or_else(missing)?);
    let code =
        args.next().and_then(|code| code.to_str()?.parse::<u8>().ok()).ok_or_else(missing)?;
    let stamps = args.next().map(|path| File::options().append(true).create(true).open(path));
    let stamps = stamps.transpose()?;
    let _ = File::open(gate)?.read(&mut [0])?;
    if let Some(mut stamps) = stamps {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let nanoseconds = now.tv_sec() * 1_000_000_000 + now.tv_nsec();
        stamps.write_all(&nanoseconds.to_ne_bytes())?;
    }
    Ok(ExitCode::from(code))
}
