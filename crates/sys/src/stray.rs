//! Signals that somebody sends by mistake, or the kernel at a limit.

use nix::sys::signal::Signal;

/// Those that end a process unless it wants them, and mean nothing to Holdfast's. SIGPIPE is ignored by
/// every Rust program.
pub const SIGNALS: [Signal; 11] = [
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
];
