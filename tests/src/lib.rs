//! What the system's tests stand on: a state root of their own, the workspace's executables, a
//! bundle, and a look at what is left when a test believes that nothing is.
//!
//! | module | what |
//! |---|---|
//! | `scratch` | a directory a test: state root, bundle, gates |
//! | `bundle` | a bundle of busybox |
//! | `executable` | files that are executed after they were written |
//! | `runtime` | the OCI runtime under test, and how a test is skipped |
//! | `processes` | processes by what they mention, held by pid and start time |
//! | `journal` | the journal of a state root, as its files have it |
//! | `listen` | reading output and events to their end, never for ever |
//! | `tracer` | a process followed from system call to system call, killed or failed at one |
//! | `life` | a container's whole life, and what must hold wherever it was cut short |
//! | `crash` | crash points: such a life, cut short at each system call that changes the world |
//! | `oci` | containers of a runtime that is called directly |
//! | `pty` | a command under a terminal |
//! | `daemon` | the real daemon, to be killed and started again, and the command line to it |
//! | `victim` | a process in a cgroup of its own, for containers to attack |
//! | `torture` | a thousand exits while everyone else dies: `cargo xtask torture` |

pub mod bundle;
pub mod crash;
pub mod daemon;
pub mod executable;
pub mod journal;
pub mod life;
pub mod listen;
pub mod numbered;
pub mod oci;
pub mod processes;
pub mod pty;
pub mod runtime;
pub mod scratch;
pub mod torture;
pub mod tracer;
pub mod victim;

pub use bundle::busybox_bundle;
pub use daemon::{Daemon, Holdfast, Ran, Running, ran};
pub use listen::{Output, events_until, eventually, read_all, said, soon, status};
pub use processes::Proc;
pub use pty::Pty;
pub use runtime::{is_runtime, rounds, runtime, runtime_name, shim_group, skip};
pub use scratch::{Gate, Scratch, cgroups_of, edit_json, unique_id};

use std::path::PathBuf;

/// An executable of this workspace: `holdfast`, `holdfast-shim`, `holdfast-oci`, `fake-runtime`.
///
/// # Panics
///
/// If it has not been built: `cargo test` alone builds no other package's executables.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    // A test lies in target/PROFILE/deps, a program of ours in target/PROFILE.
    let folder = test.parent().expect("a program lies in a folder");
    let folder = folder.parent().filter(|_| folder.ends_with("deps")).unwrap_or(folder);
    let beside = folder.join(name);
    assert!(
        beside.is_file(),
        "{} is not built; run `cargo xtask test`, or `cargo build --workspace` first",
        beside.display()
    );
    beside
}
