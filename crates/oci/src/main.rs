//! An OCI runtime on [libcontainer](https://docs.rs/libcontainer) (youki's library) that speaks the
//! part of runc's command line that Holdfast uses. With it a machine needs no other runtime.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `create`, `exec`, `delete`, `control`, `observe` | the commands |
//! | `record` | what is kept of a container, and what state it is in |
//! | `spec` | the bundle's configuration, made such that libcontainer does as runc would |
//! | `program` | the last steps inside the container |
//! | `confine`, `seccomp` | what its process gives up: capabilities, and system calls by the profile |
//! | `cgroup`, `hierarchy` | a container's cgroups, and which hierarchies there are |
//! | `devices` | which devices a container may open |
//! | `hooks`, `stdio`, `sealed` | parts that libcontainer lacks, or does otherwise |
//! | `log` | where errors go |
//!
//! # What it can't do, where runc can
//!
//! - Seccomp: `SCMP_ACT_NOTIFY` and `listenerPath` are refused. Calls of x32 get `ENOSYS` where the profile
//!   lists `SCMP_ARCH_X32`.
//! - `exec` into a container with a user namespace is refused: libcontainer would leave the process
//!   in the host's.
//! - A cgroup hierarchy that is mounted nowhere this runtime can see it can't be joined: a container
//!   shares its caller's cgroup there.
//! - Without root's rights in the first user namespace device rules are not enforced on cgroup
//!   version 2. The kernel then refuses to make devices, whatever the rules say; a device of the host
//!   that the bundle mounts into the container is guarded by its file's permissions alone.
//! - `exec` into a container that has suspended itself, by its own cgroup of version 2, waits until
//!   the container goes on or the command is killed.
//! - Checkpoint and restore; SELinux labels; `process.cwd` must exist; no attached `run` or `exec`.
//! - Hooks that run during `create` are told our copy of the bundle (the same configuration, with
//!   absolute paths) instead of the bundle; later ones, the bundle.

mod args;
mod cgroup;
mod confine;
mod control;
mod create;
mod delete;
mod devices;
mod exec;
mod hierarchy;
mod hooks;
mod log;
mod observe;
mod program;
mod record;
mod sealed;
mod seccomp;
mod spec;
mod stdio;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use nix::sys::signal::SigSet;

use args::{Cli, Global, Verb};
use log::Log;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A supervisor that reads its signals from a descriptor blocks them, and neither a hook nor a
    // container must inherit that.
    _ = SigSet::empty().thread_set_mask();
    let mut log = match Log::open(&cli.global) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("holdfast-oci: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    match act(&cli.global, &log, &cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.error(&error);
            ExitCode::FAILURE
        }
    }
}

fn act(global: &Global, log: &Log, verb: &Verb) -> anyhow::Result<()> {
    if matches!(verb, Verb::Create(_) | Verb::Run(_) | Verb::Exec(_)) {
        sealed::ensure()?;
    }
    match verb {
        Verb::Create(args) => create::create(global, log, args),
        Verb::Run(args) if args.detach => create::run(global, log, &args.create),
        Verb::Run(_) => bail!("run: only --detach is supported"),
        Verb::Start(args) => create::start(global, &args.id),
        Verb::Exec(args) => exec::exec(global, log, args),
        Verb::State(args) => observe::state(global, &args.id),
        Verb::Kill(args) => delete::kill(global, args),
        Verb::Delete(args) => {
            let force = if args.force { delete::Force::Yes } else { delete::Force::No };
            delete::delete(global, &args.id, force)
        }
        Verb::Pause(args) => control::pause(global, &args.id),
        Verb::Resume(args) => control::resume(global, &args.id),
        Verb::Update(args) => control::update(global, args),
        Verb::Ps(args) => observe::ps(global, &args.id, args.format),
        Verb::Events(args) => observe::stats(global, &args.id),
        Verb::Features => observe::features(),
        Verb::Hook(args) => hooks::execute(args),
        Verb::Checkpoint(_) => {
            bail!("checkpoint: not supported by the embedded runtime; use runc or crun with CRIU")
        }
        Verb::Restore(_) => {
            bail!("restore: not supported by the embedded runtime; use runc or crun with CRIU")
        }
    }
}
