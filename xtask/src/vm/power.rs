//! Power cuts: the guest makes, ends and deletes containers on a disk of its own and says what is
//! done; at a moment drawn from the seed the machine is killed; the next boot with the same disk
//! tells what is there, and it must be what was said.
//!
//! What is lost with the machine is what the guest had not written to its disk: all that was not
//! synced. What a real disk loses in its own cache despite a flush is not tried.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;

use super::image;
use super::ledger::Ledger;
use super::machine::{Boot, Host, Machine};

/// How long the load may run until the cut, at most.
const LOAD_WINDOW: Duration = Duration::from_secs(12);
/// The same for a cut while the daemon starts and restores.
const RESTORE_WINDOW: Duration = Duration::from_secs(3);
/// One cut in so many is of that kind.
const RESTORE_EVERY: u64 = 5;
/// For one boot: to come up, to tell what there is, to work until the cut.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// What is wanted.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) cuts: u32,
    pub(super) seed: u64,
    pub(super) runtime: &'static str,
    pub(super) output: PathBuf,
}

/// Cuts the power as often as wanted, writes the results, and says whether all promises were kept.
pub(super) fn run(host: &Host, options: &Options) -> anyhow::Result<bool> {
    let began = Instant::now();
    let empty = host.scratch.join("empty");
    fs::create_dir_all(&empty)?;
    let disk = host.scratch.join("state.ext4");
    image::make_disk(&empty, &disk, "256M")?;

    let mut random = Random(options.seed);
    let mut ledger = Ledger::default();
    let mut cuts = Cuts::default();
    // The boot after the last cut only looks.
    for number in 0..=options.cuts {
        let known = ledger.violations.len();
        let booted = boot(host, options, &disk, number, &mut random, &mut ledger, &mut cuts);
        println!("boot {number}: {}", ledger.summary());
        if let Err(error) = &booted {
            // A daemon that does not start is the worst of all outcomes, and has to be in the results.
            ledger.violations.push(format!("boot {number}: {error:#}"));
        }
        for violation in &ledger.violations[known..] {
            println!("    WRONG: {violation}");
        }
        if booted.is_err() {
            break;
        }
    }
    write_results(options, &ledger, &cuts, began.elapsed())?;
    Ok(ledger.violations.is_empty())
}

/// How often the power was cut, and when.
#[derive(Debug, Default)]
struct Cuts {
    in_load: u32,
    in_restore: u32,
}

/// From power on to the cut, or to the end of the last boot.
fn boot(
    host: &Host,
    options: &Options,
    disk: &Path,
    number: u32,
    random: &mut Random,
    ledger: &mut Ledger,
    cuts: &mut Cuts,
) -> anyhow::Result<()> {
    let last = number == options.cuts;
    let words = format!(
        "holdfast.part=power holdfast.boot={number} holdfast.seed={} holdfast.runtime={} {}",
        options.seed % 1_000_000,
        options.runtime,
        if last { "holdfast.last" } else { "" }
    );
    let init = "/opt/holdfast/guest/init.sh";
    let machine = Machine::boot(host, &Boot { init, words, state: Some(disk), limit: BOOT_LIMIT })?;
    if last {
        return until(&machine, ledger, "DONE");
    }
    if number > 0 && random.below(RESTORE_EVERY) == 0 {
        until(&machine, ledger, "STARTING")?;
        cuts.in_restore += 1;
        return cut(machine, ledger, random.moment(RESTORE_WINDOW));
    }
    until(&machine, ledger, "READY")?;
    cuts.in_load += 1;
    cut(machine, ledger, random.moment(LOAD_WINDOW))
}

fn write_results(
    options: &Options,
    ledger: &Ledger,
    cuts: &Cuts,
    took: Duration,
) -> anyhow::Result<()> {
    let results = json!({
        "what": "cargo xtask vm-test --power-cuts",
        "cuts": options.cuts,
        "cutsDuringLoad": cuts.in_load,
        "cutsDuringRestore": cuts.in_restore,
        "seed": options.seed,
        "commit": crate::commit()?,
        "runtime": options.runtime,
        "hostKernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "hostCores": std::thread::available_parallelism()?.get(),
        "guestKernel": ledger.kernel,
        "guestCores": 2,
        "emulation": "qemu, tcg",
        "seconds": took.as_secs(),
        "outcomes": ledger.outcomes(),
        "problems": ledger.problems,
        "left": ledger.left,
        "violations": ledger.violations,
    });
    if let Some(parent) = options.output.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&options.output, serde_json::to_string_pretty(&results)? + "\n")
        .with_context(|| options.output.display().to_string())?;
    println!("results: {}", options.output.display());
    Ok(())
}

/// Takes down what the guest says, to a line and with it.
fn until(machine: &Machine, ledger: &mut Ledger, end: &str) -> anyhow::Result<()> {
    while let Some(line) = machine.line()? {
        hear(ledger, &line, machine)?;
        if line == end {
            return Ok(());
        }
    }
    bail!("the machine went off before it said {end}; its console:\n{}", machine.console_tail());
}

/// Lets the guest work on for so long, and cuts the power.
fn cut(machine: Machine, ledger: &mut Ledger, after: Duration) -> anyhow::Result<()> {
    let moment = Instant::now() + after;
    while let Some(line) = machine.line_until(moment)? {
        let line = line.with_context(|| {
            format!("the machine went off by itself; its console:\n{}", machine.console_tail())
        })?;
        hear(ledger, &line, &machine)?;
    }
    // What it had said by then counts: it was said after it was done.
    for line in machine.cut()? {
        ledger.hear(&line);
    }
    ledger.power_is_cut();
    Ok(())
}

fn hear(ledger: &mut Ledger, line: &str, machine: &Machine) -> anyhow::Result<()> {
    if let Some(reason) = line.strip_prefix("FAIL ") {
        bail!("{reason}; the console:\n{}", machine.console_tail());
    }
    ledger.hear(line);
    Ok(())
}

/// `splitmix64`: a seed's numbers are the same everywhere and always.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn moment(&mut self, window: Duration) -> Duration {
        let micros = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros))
    }
}
