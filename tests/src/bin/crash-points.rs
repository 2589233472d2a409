//! The long form of the crash points; `cargo xtask crash-points` builds and runs it.
//!
//! `crash-points [--only daemon|shim] [--runtime fake|runc] [--every N] [--runc-every N] [--limit N]
//! [--seed S] [--points KEY] [--faults] [--list] [--out FILE]`. With `--faults` calls fail in place of processes that die.

use std::error::Error;
use std::path::PathBuf;

use holdfast_tests::crash::{self, Summary, Trial};
use holdfast_tests::life::{After, Runtime, Who};
use holdfast_tests::tracer::Deed;
use serde_json::json;

#[derive(Debug)]
struct Options {
    who: Vec<Who>,
    runtimes: Vec<Runtime>,
    every: usize,
    runc_every: usize,
    limit: usize,
    seed: u64,
    points: String,
    list: bool,
    faults: bool,
    out: Option<PathBuf>,
}

fn options() -> Result<Options, Box<dyn Error>> {
    let mut options = Options {
        who: vec![Who::Daemon, Who::InitShim, Who::ExecShim, Who::Group, Who::Adopter],
        runtimes: vec![Runtime::Fake, Runtime::Runc],
        every: 1,
        runc_every: 8,
        limit: usize::MAX,
        seed: 0,
        points: String::new(),
        list: false,
        faults: false,
        out: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => options.list = true,
            "--faults" => options.faults = true,
            _ => {}
        }
        if matches!(arg.as_str(), "--list" | "--faults") {
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} takes a value"))?;
        match (arg.as_str(), value.as_str()) {
            ("--only", "daemon") => options.who = vec![Who::Daemon],
            ("--only", "shim") => {
                options.who = vec![Who::InitShim, Who::ExecShim, Who::Group, Who::Adopter];
            }
            ("--runtime", "fake") => options.runtimes = vec![Runtime::Fake],
            ("--runtime", "runc") => options.runtimes = vec![Runtime::Runc],
            ("--every", number) => options.every = number.parse::<usize>()?.max(1),
            ("--runc-every", number) => options.runc_every = number.parse::<usize>()?.max(1),
            ("--limit", number) => options.limit = number.parse()?,
            ("--seed", number) => options.seed = number.parse()?,
            ("--points", part) => part.clone_into(&mut options.points),
            ("--out", path) => options.out = Some(path.into()),
            _ => return Err(format!("unknown: {arg} {value}").into()),
        }
    }
    Ok(options)
}

fn show(number: usize, trial: &Trial) {
    let word = match (&trial.violations.is_empty(), trial.reached) {
        (true, true) => "ok",
        (true, false) => "not reached",
        (false, _) => "VIOLATED",
    };
    let Trial { who, point, deed, after, found, errors, .. } = trial;
    println!("{who:?} {number} {point} {deed:?} {after:?} → {word}; {found} {errors:?}");
    for violation in &trial.violations {
        println!("    {violation}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    println!("seed {}, every {} points", options.seed, options.every);
    let mut summary = Summary::default();
    let mut learned = Vec::new();
    for &runtime in &options.runtimes {
        for &who in &options.who {
            let points = crash::points(runtime, who).await;
            println!("{who:?}, {runtime:?}: {} points", points.len());
            learned.push(json!({
                "killed": format!("{who:?}"), "runtime": format!("{runtime:?}"), "points": points.len(),
            }));
            let every = match runtime {
                Runtime::Fake => options.every,
                Runtime::Runc => options.every * options.runc_every,
            };
            let chosen = crash::choose(&points, every, options.seed);
            let chosen = chosen.filter(|point| point.to_string().contains(&options.points));
            for (number, point) in chosen.take(options.limit).enumerate() {
                if options.list {
                    println!("{point}");
                    continue;
                }
                let deeds = if options.faults { crash::faults(&point) } else { vec![Deed::Kill] };
                for deed in deeds {
                    for after in [After::Finish, After::Further, After::Force] {
                        // What fails and goes on is looked at as it goes on, and after a restart.
                        if after == After::Force && options.faults {
                            continue;
                        }
                        let trial = crash::trial(runtime, who, point.clone(), deed, after).await;
                        show(number, &trial);
                        summary.add(trial);
                    }
                }
            }
        }
    }
    print!("{}", summary.table());
    if let Some(path) = options.out {
        let mut result = summary.to_json();
        result["kernel"] = json!(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
        result["cores"] = json!(std::thread::available_parallelism()?.get());
        result["seed"] = json!(options.seed);
        result["every"] = json!(options.every);
        result["runcEvery"] = json!(options.every * options.runc_every);
        result["points"] = json!(learned);
        std::fs::write(path, serde_json::to_string_pretty(&result)? + "\n")?;
    }
    match summary.violations().len() {
        0 => Ok(()),
        number => Err(format!("{number} trials were not as they must be").into()),
    }
}
