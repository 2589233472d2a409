//! The message by which a supervisor hands the descriptors of a dead shim to the one that adopts:
//! one byte a descriptor, in the order in which they go along with it (`SCM_RIGHTS`).

/// The pidfd of the process.
pub const PROCESS: u8 = b'p';
/// The reading end of its standard output.
pub const STDOUT: u8 = b'o';
/// The reading end of its standard error.
pub const STDERR: u8 = b'e';
/// The master of its terminal.
pub const TERMINAL: u8 = b't';
