//! This tree beside another revision, in turns: whether a change has made anything faster or slower.
//! Only Holdfast takes part, and nothing is saved.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::{Args, Subcommand};

use super::{Column, Programs, Samples, build, churn, logs, scale, start};
use crate::setup;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The revision with which this tree is compared, as git names it
    #[arg(value_name = "REV")]
    revision: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// How fast output gets into a log
    Logs(logs::Options),
    /// How long a container takes from its start to its status
    Start(start::Options),
    /// How many short containers come and go in a second
    Churn(churn::Options),
    /// How long the restore of a thousand containers takes, and their adoption
    Scale {
        /// How often each takes its turn
        #[arg(long, value_name = "N", default_value_t = 5)]
        rounds: usize,
    },
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let programs = [build()?, build_revision(&options.revision)?];
    let (unit, columns) = match &options.what {
        What::Logs(options) => ("MB/s", logs::speeds(options, &programs)?),
        What::Start(options) => ("ms", start::measure(options, &programs)?),
        What::Churn(options) => ("containers/s", churn::rates(options, &programs)?),
        What::Scale { rounds } => ("ms", scale_of(*rounds, programs)?),
    };
    println!("{unit:<48} {:>9} {:>9} {:>9}", "median", "quarter", "3 quarters");
    for pair in columns.chunks_exact(2) {
        for Column { way, samples } in pair {
            print_line(way, samples, 1);
        }
        print_line("  the first to the second, turn by turn", &ratios(pair), 3);
    }
    Ok(())
}

/// A thousand containers of each. The program that measures is this tree's.
fn scale_of(rounds: usize, [ours, theirs]: [Programs; 2]) -> anyhow::Result<Vec<Column>> {
    let dir = crate::target().join("compare/programs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir)?;
    for own in ["holdfast", "holdfast-shim"] {
        fs::copy(theirs.dir.join(own), dir.join(own))?;
    }
    for measuring in ["bench-library", "fake-runtime", "idler", "stamper", "writer"] {
        fs::copy(ours.dir.join(measuring), dir.join(measuring))?;
    }
    let theirs = Programs { name: theirs.name, dir };
    let column = |what: &str, programs: &Programs| Column {
        way: format!("{}, {what}", programs.name),
        samples: Samples::default(),
    };
    let programs = [ours, theirs];
    let mut columns: Vec<_> = ["restore", "adoption"]
        .iter()
        .flat_map(|what| programs.iter().map(|programs| column(what, programs)))
        .collect();
    for round in 0..rounds {
        for place in super::turns(round, programs.len()) {
            let [restore, adoption] = scale::restore_and_adoption(&programs[place].dir)?;
            columns[place].samples.0.push(restore);
            columns[programs.len() + place].samples.0.push(adoption);
        }
    }
    Ok(columns)
}

fn print_line(what: &str, samples: &Samples, digits: usize) {
    let (low, high) = (samples.quantile(0.25), samples.quantile(0.75));
    println!("{what:<48} {:>9.digits$} {low:>9.digits$} {high:>9.digits$}", samples.median());
}

/// Of each turn and the one beside it, so that a machine that is slow for a while is slow for both.
fn ratios(pair: &[Column]) -> Samples {
    let turns = pair[0].samples.0.iter().zip(&pair[1].samples.0);
    Samples(turns.map(|(ours, theirs)| ours / theirs).collect())
}

/// The programs of a revision, built like ours, in a working tree of git's below `target`. Both stay
/// there, so that the next revision has less to build.
pub(super) fn build_revision(revision: &str) -> anyhow::Result<Programs> {
    let id = id_of(revision)?;
    let tree = tree_at(&id)?;
    println!("building {id} (release)");
    let target = crate::target().join("compare/target");
    // Whatever programs it has. Of the same toolchain as ours.
    crate::run(
        crate::build()
            .args(["--release", "--locked", "--bins"])
            .args(["--workspace", "--exclude", "xtask"])
            .current_dir(&tree)
            .env("CARGO_TARGET_DIR", &target),
    )?;
    Ok(Programs { name: format!("holdfast {id}"), dir: target.join("release") })
}

fn id_of(revision: &str) -> anyhow::Result<String> {
    let commit = format!("{revision}^{{commit}}");
    let id = setup::output(crate::git().args(["rev-parse", "--short", "--verify", &commit]))?;
    Ok(id.trim().to_owned())
}

/// Returns a working tree below `target` with a revision checked out.
pub(super) fn tree_of(revision: &str) -> anyhow::Result<PathBuf> {
    tree_at(&id_of(revision)?)
}

/// Does the same for the id of a commit.
fn tree_at(id: &str) -> anyhow::Result<PathBuf> {
    let tree = crate::target().join("compare/tree");
    check_out(&tree, id)?;
    Ok(tree)
}

fn check_out(tree: &Path, id: &str) -> anyhow::Result<()> {
    if tree.join(".git").exists() {
        let changes =
            setup::output(crate::git().current_dir(tree).args(["status", "--porcelain"]))?;
        ensure!(changes.is_empty(), "{} has changes of its own: {changes}", tree.display());
        return crate::run(
            crate::git().current_dir(tree).args(["checkout", "--quiet", "--detach", id]),
        );
    }
    // By force: git may remember one that `cargo clean` has removed.
    crate::run(
        crate::git().args(["worktree", "add", "--quiet", "--force", "--detach"]).arg(tree).arg(id),
    )
}
