//! `cargo xtask torture --containerd`, the program: see [`holdfast_tests::pods`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use holdfast_tests::outcome::Trial;
use holdfast_tests::pods::{self, plan::Seeds};

struct Options {
    seeds: Seeds,
    /// Where another build has its programs.
    other: Option<PathBuf>,
    output: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let seeds = Seeds { seed: 1, cycles: 100, fronts: 10 };
    let mut options = Options { seeds, other: None, output: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} takes a value"))?;
        let wrong = |error: std::num::ParseIntError| format!("{name} {value}: {error}");
        match name.as_str() {
            "--seed" => options.seeds.seed = value.parse().map_err(wrong)?,
            "--cycles" => options.seeds.cycles = value.parse().map_err(wrong)?,
            "--fronts" => options.seeds.fronts = value.parse().map_err(wrong)?,
            "--other" => options.other = Some(value.into()),
            "--output" => options.output = Some(value.into()),
            _ => {
                return Err(format!(
                    "there are --seed, --cycles, --fronts, --other, --output; not {name}"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let Options { seeds, other, output } = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("torture-containerd: {error}");
            return ExitCode::from(2);
        }
    };
    let again = format!(
        "cargo xtask torture --containerd --cycles {} --fronts {} --seed {}",
        seeds.cycles, seeds.fronts, seeds.seed
    );
    println!("seed {}: {again}", seeds.seed);
    let own = std::env::current_exe().expect("the path of this program");
    let programs = own.parent().expect("a program lies in a directory").to_owned();
    let builds: Vec<PathBuf> = std::iter::once(programs).chain(other).collect();
    let began = Instant::now();
    let outcome = pods::run(seeds, &builds, |report| {
        println!("{} of {} pods, {:.0?}", report.pods(), seeds.cycles, began.elapsed());
    });
    let took = began.elapsed();
    let report = &outcome.report;
    let trial = Trial {
        program: "torture-containerd",
        again: &again,
        seed: seeds.seed,
        output: output.as_deref(),
    };
    let json = report.json(seeds, took);
    let done = format!("{} pods", report.pods());
    outcome.tell(trial, took, &done, &report.table(), json)
}
