//! What it costs a service to embed the library: crates, the time of a build from nothing, and the
//! memory of the example `embed` while it hosts its three containers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::memory::Memory;
use super::{Scratch, build, compare, save};
use crate::setup;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Another revision to measure too, as git names it
    #[arg(long, value_name = "REV")]
    before: Option<String>,
}

/// What is built.
struct Variant {
    name: String,
    tree: PathBuf,
    /// Options of cargo.
    features: &'static [&'static str],
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let programs = build()?;
    let own = |name: &str, features| Variant {
        name: name.to_owned(),
        tree: crate::workspace().to_owned(),
        features,
    };
    let mut variants =
        vec![own("default features", &[]), own("no features", &["--no-default-features"])];
    if let Some(revision) = &options.before {
        let tree = compare::tree_of(revision)?;
        variants.push(Variant { name: revision.clone(), tree, features: &[] });
    }
    let mut found = Vec::new();
    for variant in &variants {
        let measured = measure(variant, &programs.dir)?;
        println!("{}: {measured}", variant.name);
        found.push(measured);
    }
    let mut command = "cargo xtask bench embedding".to_owned();
    if let Some(revision) = &options.before {
        command += &format!(" --before {revision}");
    }
    save("embedding.json", &command, &json!(found))
}

fn measure(variant: &Variant, programs: &Path) -> anyhow::Result<Value> {
    let cargo = |verb: &str, target: &Path| {
        let mut cargo = crate::cargo();
        cargo.current_dir(&variant.tree).env("CARGO_TARGET_DIR", target);
        cargo.args([verb, "--locked", "--package", "holdfast-supervisor"]).args(variant.features);
        cargo
    };
    let target = crate::target().join("embedding");
    let tree = ["--edges", "normal", "--prefix", "none"];
    let crates = setup::output(cargo("tree", &target).args(tree))?;
    // A crate that is needed twice is marked at its second place.
    let crates: BTreeSet<_> = crates.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    let _ = fs::remove_dir_all(&target);
    let began = Instant::now();
    crate::run(cargo("build", &target).args(["--quiet", "--release", "--lib"]))?;
    let seconds = began.elapsed().as_secs_f64();
    crate::run(cargo("build", &target).args(["--quiet", "--release", "--example", "embed"]))?;
    let Memory { pss, uss, .. } = memory(&target.join("release/examples/embed"), programs)?;
    fs::remove_dir_all(&target)?;
    Ok(json!({
        "variant": variant.name,
        "crates": crates.len(),
        "releaseBuildSeconds": seconds,
        "embedPssKiB": pss,
        "embedUssKiB": uss,
    }))
}

/// Returns the memory of the example when all of its containers are there.
fn memory(example: &Path, programs: &Path) -> anyhow::Result<Memory> {
    let scratch = Scratch::new()?;
    // It looks for the shim in the directory above its own.
    let dir = scratch.0.join("programs/examples");
    fs::create_dir_all(&dir)?;
    let program = dir.join("embed");
    fs::copy(example, &program)?;
    fs::copy(programs.join("holdfast-shim"), scratch.0.join("programs/holdfast-shim"))?;
    let start = || {
        let mut command = Command::new(&program);
        command.arg(scratch.0.join("root")).stdout(Stdio::piped()).spawn()
    };
    let mut child = start().context("the example cannot be started")?;
    let measured = measured(&mut child);
    child.kill()?;
    child.wait()?;
    // Its containers end by themselves, and another instance clears them away.
    let ended = start()?.wait_with_output()?;
    ensure!(ended.status.success(), "the example failed: {}", ended.status);
    measured
}

fn measured(child: &mut Child) -> anyhow::Result<Memory> {
    let output = child.stdout.take().context("no output")?;
    let lines = BufReader::new(output).lines();
    // The end of the first container: all have long been started.
    for line in lines {
        if line?.contains("quick: ended") {
            return Memory::of(child.id());
        }
    }
    anyhow::bail!("the example ended too soon")
}
