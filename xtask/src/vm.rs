//! Holdfast in a virtual machine: another kernel (Debian's 6.1: unified cgroups, no pidfs), systemd
//! as pid 1, and power cuts.
//!
//! | module | what |
//! |---|---|
//! | `tools` | qemu, from `PATH` or unpacked beside the image |
//! | `image` | kernel, initramfs and root disk, made once; the payload disk, made for each run |
//! | `machine` | one machine from power on to power off, and what it says |
//! | `checks` | boots whose guest makes checks by itself, and the table of them |
//! | `tests` | tests of `tests/tests`, built for a boot whose guest runs them |
//! | `power` | boots whose power is cut, and what must still be true afterwards |
//! | `ledger` | what the guest said that it had done, against what there is |
//!
//! What runs inside is in `guest/`: shell, since a pid 1 and a list of commands is what it is.
//!
//! The processor is emulated (`-accel tcg`): nested virtualization hangs on the machines that this
//! was written on, and where it works it changes nothing but the time.

mod checks;
mod image;
mod ledger;
mod machine;
mod power;
mod tests;
mod tools;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use clap::{Args, ValueEnum};

use crate::dist;
use crate::setup::{self, DPKG_DEB, MKE2FS, MMDEBSTRAP, SETPRIV};

/// What to run in the machine.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these parts [default: all; with --power-cuts alone only those]
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// In the parts `hostile`, `rootless` and `podman`, run only the tests whose names contain this text
    #[arg(long, value_name = "TEXT")]
    test: Option<String>,
    /// More power cuts
    #[arg(long)]
    long: bool,
    /// How often the power is cut [default: 3, with --long 20]
    #[arg(long, value_name = "N")]
    power_cuts: Option<u32>,
    /// What the moments of the cuts and the load are drawn from; how far the machine has come by
    /// such a moment is its own affair
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The OCI runtime of the load under power cuts
    #[arg(long, value_enum, default_value_t)]
    runtime: LoadRuntime,
    /// Where the power cuts' results go, as JSON [default: bench/results/vm-power-cuts.json where
    /// cuts were asked for, else beside the image]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A kind of boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Straight to the checks, no init system
    Scenarios,
    /// Under Debian's containerd, beside its own shim
    Containerd,
    /// With systemd and dist/holdfast.service
    Systemd,
    /// As users with a systemd of their own, which makes the containers' cgroups
    Rootless,
    /// Under podman, with conmon and with Holdfast's monitor
    Podman,
    /// Attacks from inside containers, under cgroup v2
    Hostile,
    /// The load whose power is cut
    Power,
}

/// What makes the containers of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum LoadRuntime {
    /// runc, whose own files may be torn as well
    #[default]
    Runc,
    /// tests/src/bin/fake-runtime.rs, which isolates nothing
    Fake,
}

impl Options {
    fn parts(&self) -> Vec<Part> {
        if !self.part.is_empty() {
            return self.part.clone();
        }
        match self.power_cuts {
            Some(_) if !self.long => vec![Part::Power],
            _ => Part::value_variants().to_vec(),
        }
    }

    fn cuts(&self) -> u32 {
        self.power_cuts.unwrap_or(if self.long { 20 } else { 3 })
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[MMDEBSTRAP, MKE2FS, SETPRIV, DPKG_DEB])?;
    let programs: Vec<_> = dist::programs().chain(image::PROGRAMS).collect();
    crate::build_release(&programs)?;
    let home = crate::target().join("vm");
    let qemu = tools::qemu(&home)?;
    let base = image::base(&home)?;
    let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(&home)?;
    let parts = options.parts();
    let (hostile, rootless) = (parts.contains(&Part::Hostile), parts.contains(&Part::Rootless));
    let podman = parts.contains(&Part::Podman);
    let needed = [("security", hostile || rootless), ("rootless", rootless), ("podman", podman)];
    let needed = needed.into_iter().filter(|(_, is_needed)| *is_needed);
    let tests: anyhow::Result<Vec<_>> =
        needed.map(|(name, _)| Ok((name, tests::build(name)?))).collect();
    let payload = image::payload(scratch.path(), &tests?)?;
    let host = machine::Host { qemu, base, payload, scratch: scratch.path().to_owned() };

    let mut failed = Vec::new();
    for part in parts {
        let began = Instant::now();
        let outcome = match part {
            Part::Scenarios => checks::run(&host, &checks::SCENARIOS, ""),
            Part::Containerd => checks::run(&host, &checks::CONTAINERD, ""),
            Part::Systemd => checks::run(&host, &checks::SYSTEMD, ""),
            Part::Rootless => checks::run(&host, &checks::ROOTLESS, &tests_wanted(options)),
            Part::Podman => checks::run(&host, &checks::PODMAN, &tests_wanted(options)),
            Part::Hostile => checks::run(&host, &checks::HOSTILE, &tests_wanted(options)),
            Part::Power => power::run(&host, &power_options(options)),
        };
        // One part that breaks off does not keep the others from being tried.
        let right = outcome.unwrap_or_else(|error| {
            println!("{error:#}");
            false
        });
        println!("{part:?}: {:.1} s", began.elapsed().as_secs_f64());
        if !right {
            failed.push(format!("{part:?}"));
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn tests_wanted(options: &Options) -> String {
    options.test.as_ref().map(|text| format!("holdfast.test={text}")).unwrap_or_default()
}

fn power_options(options: &Options) -> power::Options {
    power::Options {
        cuts: options.cuts(),
        seed: options.seed,
        runtime: match options.runtime {
            LoadRuntime::Fake => "fake",
            LoadRuntime::Runc => "runc",
        },
        output: match &options.output {
            Some(output) => output.clone(),
            None if options.long || options.power_cuts.is_some() => {
                crate::workspace().join("bench/results/vm-power-cuts.json")
            }
            None => crate::target().join("vm/power-cuts.json"),
        },
    }
}
