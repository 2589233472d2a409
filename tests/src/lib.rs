//! What the system's tests stand on: a state root of their own, the workspace's executables, a
//! bundle, and a look at what is left when a test believes that nothing is.
//!
//! | module | what |
//! |---|---|
//! | `scratch` | a directory a test: state root, bundle, gates |
//! | `bundle` | a bundle of busybox |
//! | `runtime` | the OCI runtime under test, and how a test is skipped |
//! | `processes` | processes by what they mention, held by pid and start time |
//! | `listen` | reading output and events to their end, never for ever |
//! | `daemon` | the real daemon, to be killed and started again, and the command line to it |

pub mod bundle;
pub mod daemon;
pub mod listen;
pub mod processes;
pub mod runtime;
pub mod scratch;

pub use bundle::busybox_bundle;
pub use daemon::{Daemon, Holdfast, Ran, Running, ran};
pub use listen::{Output, events_until, eventually, read_all, said, soon, status};
pub use processes::Proc;
pub use runtime::{is_runtime, runtime, runtime_name, skip};
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
    // target/debug/deps/library-0123 → target/debug
    let beside = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join(name);
    assert!(
        beside.is_file(),
        "{} is not built; run `cargo xtask test`, or `cargo build --workspace` first",
        beside.display()
    );
    beside
}
