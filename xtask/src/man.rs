//! Manual pages and completion scripts, as they are installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::{cargo, executables, run, setup};

/// Where they go to.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A directory laid out as /usr/share or /usr/local/share
    dir: PathBuf,
}

/// Writes `man/man1`, and completions for three shells, below a directory.
pub(crate) fn write(options: &Options) -> anyhow::Result<()> {
    run(cargo().args(["build", "--locked", "--quiet", "--package", "holdfast"]))?;
    write_by(&executables("debug").join("holdfast"), &options.dir)
}

/// Has a program write them.
pub(crate) fn write_by(holdfast: &Path, dir: &Path) -> anyhow::Result<()> {
    let pages = dir.join("man/man1");
    fs::create_dir_all(&pages).with_context(|| format!("create {}", pages.display()))?;
    run(Command::new(holdfast).arg("man").arg(&pages))?;
    println!("{}", pages.display());
    for (shell, place) in [
        ("bash", "bash-completion/completions/holdfast"),
        ("zsh", "zsh/site-functions/_holdfast"),
        ("fish", "fish/vendor_completions.d/holdfast.fish"),
    ] {
        let script = setup::output(Command::new(holdfast).args(["completion", shell]))?;
        let path = dir.join(place);
        let parent = path.parent().unwrap_or(dir);
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
