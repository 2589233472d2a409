//! `cargo xtask torture --podman`, the program: see [`holdfast_tests::monitors`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use holdfast_tests::monitors::{self, Seeds};
use holdfast_tests::outcome::Trial;

fn options() -> Result<(Seeds, Option<PathBuf>), String> {
    let (mut seeds, mut output) = (Seeds { seed: 1, containers: 100 }, None);
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("{name} takes a value"))?;
        let wrong = |error: std::num::ParseIntError| format!("{name} {value}: {error}");
        match name.as_str() {
            "--seed" => seeds.seed = value.parse().map_err(wrong)?,
            "--containers" => seeds.containers = value.parse().map_err(wrong)?,
            "--output" => output = Some(value.into()),
            _ => return Err(format!("there are --seed, --containers, --output; not {name}")),
        }
    }
    Ok((seeds, output))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let (seeds, output) = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("torture-podman: {error}");
            return ExitCode::from(2);
        }
    };
    let again = format!("cargo xtask torture --podman {} --seed {}", seeds.containers, seeds.seed);
    println!("seed {}: {again}", seeds.seed);
    let began = Instant::now();
    let run = monitors::run(seeds, |report| {
        let done = report.count("containers");
        println!("{done} of {} containers, {:.0?}", seeds.containers, began.elapsed());
    });
    let Some(outcome) = run.await else { return ExitCode::FAILURE };
    let took = began.elapsed();
    let report = &outcome.report;
    let trial = Trial {
        program: "torture-podman",
        again: &again,
        seed: seeds.seed,
        output: output.as_deref(),
    };
    let json = report.json(seeds, took);
    let done = format!("{} containers", report.count("containers"));
    let told = outcome.tell(trial, took, &done, &report.table(), json);
    if outcome.violations.is_empty() { told } else { ExitCode::FAILURE }
}
