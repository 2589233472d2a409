//! Writes numbered lines to its standard output (`holdfast_tests::numbered`), and how it went into a
//! file: `writer LINES REPORT`. The report is the longest time that a write took, in milliseconds.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let lines = args.next().and_then(|arg| arg.to_str()?.parse().ok()).expect("how many lines");
    let report = PathBuf::from(args.next().expect("where to report"));
    // Not through std's own, which looks at every line.
    let mut stdout = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let longest = holdfast_tests::numbered::write(lines, &mut stdout)?;
    stdout.flush()?;
    std::fs::write(report, longest.as_millis().to_string())
}
