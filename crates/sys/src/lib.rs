//! The few kernel calls that `nix` lacks, behind safe functions.
//!
//! This is the one crate of Holdfast with `unsafe`; each block says why it is sound.
//!
//! | module | kernel interface |
//! |---|---|
//! | [`pidfd`] | `pidfd_open(2)`, `pidfd_send_signal(2)`, `pidfd_getfd(2)`, `PIDFD_GET_INFO` |
//! | [`pidfs`] | handles of processes that can be written down |
//! | [`ending`] | how a process ended, by whoever knows |
//! | [`bpf`] | `bpf(2)`: which devices a cgroup may open |
//! | [`capabilities`] | `capset(2)` |
//! | [`kernel`] | the release |
//! | [`keyring`] | `keyctl(2)` |
//! | [`memory`] | `malloc_trim(3)` |
//! | [`mount`] | `open_tree(2)`, `mount_setattr(2)`, `move_mount(2)`, `fsconfig(2)` |
//! | [`wait`] | `waitid(2)` with `WNOWAIT`, statuses kept as the kernel gave them |
//! | `probe` | what a container must be refused; only with the feature `probe`, for tests |
//! | [`mountinfo`] | `/proc/PID/mountinfo` |
//! | [`proc`] | `/proc/PID/stat`, the boot id, children |
//! | [`random`] | `getrandom(2)` |
//! | [`command_line`] | `PR_SET_MM_MAP` |
//! | [`fd`] | `close_range(2)`, `FIONREAD`, `epoll_ctl(2)` by number |
//! | [`fd_passing`] | `SCM_RIGHTS` |
//! | [`resource`] | `prlimit(2)` |
//! | [`seccomp`] | `seccomp(2)` |
//! | [`spawn`] | what a child begins with; `fork(2)` |
//! | [`start`] | a `main` of one's own |
//! | [`stray`] | signals that are sent by mistake |
//! | [`terminal`] | the size of a terminal, and its other side |
//! | [`zone`] | localtime(3) |
//! | `reactor` | the same descriptors in Tokio's reactor; only with the feature `tokio` |
#![allow(unsafe_code)]

pub mod bpf;
pub mod capabilities;
pub mod command_line;
pub mod ending;
pub mod fd;
pub mod fd_passing;
pub mod kernel;
pub mod keyring;
pub mod memory;
pub mod mount;
pub mod mountinfo;
pub mod network;
pub mod oom;
pub mod pidfd;
pub mod pidfs;
#[cfg(feature = "probe")]
pub mod probe;
pub mod proc;
pub mod random;
#[cfg(feature = "tokio")]
pub mod reactor;
pub mod resource;
pub mod seccomp;
pub mod spawn;
pub mod start;
pub mod stray;
pub mod terminal;
pub mod wait;
pub mod zone;

pub use pidfd::PidFd;
pub use wait::Termination;
