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
//! | `browser` | a headless Chromium, driven by WebDriver |
//! | `http` | requests to the daemon, one per connection |
//! | `conmon` | a driver of conmon's protocol |
//! | `keeper` | a keeper of monitors |
//! | `containerd` | a containerd of a test's own, and `ctr` to it |
//! | `cri` | a client of containerd's CRI plugin, for pods |
//! | `podman` | a podman of a test's own, with conmon or with Holdfast's monitor |
//! | `user` | a test as a user that is not root |
//! | `victim` | a process in a cgroup of its own, for containers to attack |
//! | `torture` | a thousand exits while everyone else dies: `cargo xtask torture` |
//! | `monitors` | containers of podman while monitors are killed: `cargo xtask torture --podman` |
//! | `pods` | the same of pods under containerd: `cargo xtask torture --containerd` |

pub mod browser;
pub mod bundle;
pub mod conmon;
pub mod containerd;
pub mod crash;
pub mod cri;
pub mod daemon;
pub mod executable;
pub mod http;
pub mod journal;
pub mod keeper;
pub mod life;
pub mod listen;
pub mod monitors;
pub mod numbered;
pub mod oci;
pub mod outcome;
pub mod podman;
pub mod pods;
pub mod processes;
pub mod pty;
pub mod runtime;
pub mod scratch;
pub mod torture;
pub mod tracer;
pub mod user;
pub mod victim;

pub use bundle::busybox_bundle;
pub use containerd::Containerd;
pub use cri::Cri;
pub use daemon::{Daemon, Holdfast, Ran, Running, ran};
pub use listen::{Output, events_until, eventually, read_all, said, soon, status};
pub use processes::Proc;
pub use pty::Pty;
pub use runtime::{in_path, is_runtime, rounds, runtime, runtime_name, shim_group, skip};
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
