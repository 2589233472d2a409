//! The front's own log: the FIFO `log` in the bundle, which containerd reads. It is our standard error.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use holdfast_state::Timestamp;
use nix::fcntl::OFlag;

/// Opens the log. Without one, nothing is logged.
///
/// It is open for reading too, and never blocks: as long as containerd is away, lines go to the FIFO until
/// that is full, and are lost from then on.
pub(crate) fn open(bundle: &Path) -> io::Result<()> {
    let path = bundle.join("log");
    if !path.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other(format!("{} is not a FIFO", path.display())));
    }
    let flags = OFlag::O_NONBLOCK.bits();
    let file = File::options().read(true).write(true).custom_flags(flags).open(path)?;
    Ok(nix::unistd::dup2_stderr(&file)?)
}

/// Writes a line in the form of containerd's own log.
pub(crate) fn log(level: &str, message: &str) {
    let line = format!("time=\"{}\" level={level} msg={message:?}\n", Timestamp::now());
    // Not by `eprint`, which panics if it fails. In one piece: lines of several fronts do not mix.
    let _ = io::stderr().write_all(line.as_bytes());
}
