//! `cargo xtask torture --policies`, the program: see [`holdfast_tests::torture::policies`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use holdfast_tests::outcome::Trial;
use holdfast_tests::torture::policies;

struct Options {
    seed: u64,
    rounds: usize,
    output: Option<PathBuf>,
}

fn options() -> Result<Options, String> {
    let mut options = Options { seed: 1, rounds: 1, output: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} takes a value"))?;
        let wrong = |error: std::num::ParseIntError| format!("{name} {value}: {error}");
        match name.as_str() {
            "--seed" => options.seed = value.parse().map_err(wrong)?,
            "--rounds" => options.rounds = value.parse().map_err(wrong)?,
            "--output" => options.output = Some(value.into()),
            _ => return Err(format!("there are --seed, --rounds, --output; not {name}")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let Options { seed, rounds, output } = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("torture-policies: {error}");
            return ExitCode::from(2);
        }
    };
    let again = format!("cargo xtask torture --policies --rounds {rounds} --seed {seed}");
    println!("seed {seed}: {again}");
    let own = std::env::current_exe().expect("the path of this program");
    let programs = own.parent().expect("a program lies in a directory");
    let began = Instant::now();
    let mut done = 0;
    let outcome = policies::run(seed, rounds, programs, |report| {
        done += 1;
        println!(
            "{done} of {rounds} rounds, {} restarts, {:.0?}",
            report.restarts(),
            began.elapsed()
        );
    });
    let took = began.elapsed();
    let report = &outcome.report;
    let trial =
        Trial { program: "torture-policies", again: &again, seed, output: output.as_deref() };
    let json = report.json(rounds, took);
    let done = format!("{} restarts", report.restarts());
    outcome.tell(trial, took, &done, &report.table(), json)
}
