//! An OCI runtime on [libcontainer](https://docs.rs/libcontainer) (youki's library) that speaks the
//! part of runc's command line that Holdfast uses. With it a machine needs no other runtime.
//!
//! | module | what |
//! |---|---|
//! | `args` | the command line |
//! | `create`, `exec`, `delete`, `control`, `observe` | the commands |
//! | `record` | what is kept of a container, and what state it is in |
//! | `spec` | the bundle's configuration, made such that libcontainer does as runc would |
//! | `check` | what of it can't be applied |
//! | `options`, `mounts`, `peers`, `copy_up` | mounts: what libcontainer leaves undone |
//! | `inside`, `mountinfo` | paths and mounts as a container sees them |
//! | `limits` | limits that a container gets once it is made |
//! | `explain` | the field by which a container could not be made |
//! | `rootless` | who is root: that of the container's user namespace, if not the machine's |
//! | `scope` | the cgroup that the user's systemd makes then |
//! | `program` | the last steps inside the container |
//! | `confine`, `seccomp` | what its process gives up: capabilities, and system calls by the profile |
//! | `cgroup`, `hierarchy` | a container's cgroups, and which hierarchies there are |
//! | `devices` | which devices a container may open |
//! | `hooks`, `stdio`, `sealed` | parts that libcontainer lacks, or does otherwise |
//! | `log` | where errors go |
//!
//! # What it can't do, where runc can
//!
//! docs/oci-runtime.md has a table of the specification's fields, with what runc does and what this
//! runtime does. What this runtime can't apply it refuses, by the name of the field. So it does with:
//!
//! - `exec` by root into a container with a user namespace; an attached `run` or `exec`; checkpoint and
//!   restore.

mod args;
mod cgroup;
mod check;
mod confine;
mod control;
mod copy_up;
mod create;
mod delete;
mod devices;
mod exec;
mod explain;
mod hierarchy;
mod hooks;
mod inside;
mod limits;
mod log;
mod mountinfo;
mod mounts;
mod observe;
mod options;
mod peers;
mod program;
mod record;
mod rootless;
mod scope;
mod sealed;
mod seccomp;
mod spec;
mod stdio;

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use nix::sys::signal::SigSet;

use args::{Cli, Global, Verb};
use hierarchy::Visit;
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
        match rootless::is_root() {
            true => sealed::ensure()?,
            false => rootless::become_root_for(global, verb)?,
        }
    }
    match verb {
        Verb::Create(args) => create::create(global, log, args).map(Visit::stay),
        Verb::Run(args) if args.detach => create::run(global, log, &args.create),
        Verb::Run(_) => bail!("run: only --detach is supported"),
        Verb::Start(args) => create::start(global, &args.id),
        Verb::Exec(args) => exec::exec(global, log, args),
        Verb::State(args) => observe::state(global, &args.id),
        Verb::Kill(args) => delete::kill(global, args),
        Verb::Delete(args) => {
            let force = if args.force { delete::Force::Yes } else { delete::Force::No };
            delete::delete(global, log, &args.id, force)
        }
        Verb::Pause(args) => control::pause(global, &args.id),
        Verb::Resume(args) => control::resume(global, &args.id),
        Verb::Update(args) => control::update(global, args),
        Verb::Ps(args) => observe::ps(global, &args.id, args.format),
        Verb::Events(args) => observe::stats(global, &args.id),
        Verb::Features => observe::features(),
        Verb::Hook(args) => hooks::execute(args),
        Verb::Mounts(args) => mounts::execute(args),
        Verb::UserNamespace => mounts::user_namespace(),
        Verb::MapIds(args) => rootless::map_ids(args),
        Verb::Remove(args) => rootless::remove(args),
        Verb::Checkpoint(_) => {
            bail!("checkpoint: not supported by the embedded runtime; use runc or crun with CRIU")
        }
        Verb::Restore(_) => {
            bail!("restore: not supported by the embedded runtime; use runc or crun with CRIU")
        }
    }
}
