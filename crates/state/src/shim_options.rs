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
/// The option by which the supervisors of earlier builds say that they speak protocol 1.
pub const IDENTIFY: &str = "--identify";
/// The option by which a supervisor says which protocol it speaks, a number that follows. A shim then
/// speaks that one. It refuses a newer one than its own.
///
/// | protocol | what is new |
/// |---|---|
/// | 0 | |
/// | 1 | a descriptor is announced with what it is ([`ShimFd`](crate::announce::ShimFd)) |
/// | 2 | an exit is announced with [`ExitDetails`](crate::announce::ExitDetails) |
/// | 3 | a start is marked ([`note_shim`](crate::ProcessDir::note_shim)) |
/// | 4 | [`CWD`]; the socket of a group has the number in its name |
pub const PROTOCOL_OPTION: &str = "--protocol";
/// The newest protocol of this build.
pub const PROTOCOL: u32 = 4;
/// The option with the working directory of the runtime: the bundle, as containerd and conmon have it. One that is
/// not there is none.
pub const CWD: &str = "--cwd";
/// The option by which a shim prints its name, its version and its newest protocol, and ends:
/// `holdfast-shim 0.1.0 protocol 2`.
pub const VERSION: &str = "--version";
