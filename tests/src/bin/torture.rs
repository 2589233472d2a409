//! `cargo xtask torture`, the program: see [`holdfast_tests::torture`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use holdfast_tests::outcome::Trial;
use holdfast_tests::torture::{self, plan::Seeds};

struct Options {
    seeds: Seeds,
    output: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let seeds = Seeds { seed: 1, exits: 2_000, runc_share: 5, hostile_share: 12 };
    let mut options = Options { seeds, output: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} takes a value"))?;
        let wrong = |error: std::num::ParseIntError| format!("{name} {value}: {error}");
        match name.as_str() {
            "--exits" => options.seeds.exits = value.parse().map_err(wrong)?,
            "--seed" => options.seeds.seed = value.parse().map_err(wrong)?,
            "--runc-share" => options.seeds.runc_share = value.parse().map_err(wrong)?,
            "--hostile-share" => options.seeds.hostile_share = value.parse().map_err(wrong)?,
            "--output" => options.output = Some(value.into()),
            _ => {
                return Err(format!(
                    "there are --exits, --seed, --runc-share, --hostile-share, --output; not {name}"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let Options { seeds, output } = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("torture: {error}");
            return ExitCode::from(2);
        }
    };
    let again = format!(
        "cargo xtask torture --exits {} --seed {} --runc-share {} --hostile-share {}",
        seeds.exits, seeds.seed, seeds.runc_share, seeds.hostile_share
    );
    println!("seed {}: {again}", seeds.seed);
    let own = std::env::current_exe().expect("the path of this program");
    let programs = own.parent().expect("a program lies in a directory");
    let began = Instant::now();
    let outcome = torture::run(seeds, programs, |report| {
        println!("{} of {} exits, {:.0?}", report.exits(), seeds.exits, began.elapsed());
    });
    let took = began.elapsed();
    let report = &outcome.report;
    let trial =
        Trial { program: "torture", again: &again, seed: seeds.seed, output: output.as_deref() };
    let json = report.json(seeds, took);
    let done = format!("{} exits", report.exits());
    outcome.tell(trial, took, &done, &report.table(), json)
}
