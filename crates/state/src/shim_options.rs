//! Options of a shim's command line that its supervisor, its group and itself have to agree on.

/// The option by which a shim is that of a group, whose place follows. The socket where it takes
/// messages is its standard input.
pub const GROUP: &str = "--group";
/// The option by which a shim hands the process over to a group once that is started. The socket
/// for that is its standard input.
pub const SEAT: &str = "--seat";
/// The option by which a shim waits for a start of which it is told by its standard input.
pub const SPARE: &str = "--spare";
/// The option of a process that only closes the descriptors that come by its standard input, and says
/// so by one byte a message.
pub const CLOSER: &str = "--closer";
/// The option by which a shim takes over a process whose shim has died.
pub const ADOPT: &str = "--adopt";
/// As `--adopt`, for a process whose shim, the pid that follows, has handed it over and left nothing half
/// done.
pub const MOVED: &str = "--moved";
/// The option by which a shim tells with each descriptor what it is ([`ShimFd`](crate::announce::ShimFd)). A
/// supervisor that gives it understands that.
pub const IDENTIFY: &str = "--identify";
