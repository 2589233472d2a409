//! The build script of the programs that are started often: links them statically, and to a fixed
//! address. So nothing has to be found, mapped and relocated when one starts, and a thousand shims
//! share every page but those they write to.
//!
//! `-C target-feature=+crt-static` would do the same for the whole workspace, but only for a build
//! with `--target`, which puts programs where nobody looks for them. What it does is done here:
//! the directory that the linker searches first has static libraries by the names that the standard
//! library asks for. Where the system has none, a program is linked as usual.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// What the standard library is linked with.
const LIBRARIES: [&str; 6] = ["c", "m", "rt", "pthread", "util", "dl"];

fn main() -> io::Result<()> {
    // And when this script changes, but not when any other file of a package does.
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    let variable = |name| env::var(name).unwrap_or_default();
    let native = variable("HOST") == variable("TARGET");
    let gnu = variable("CARGO_CFG_TARGET_ENV") == "gnu";
    let already = variable("CARGO_CFG_TARGET_FEATURE").contains("crt-static");
    if !native || !gnu || already {
        return Ok(());
    }
    let dir = PathBuf::from(variable("OUT_DIR")).join("static");
    if !collect(&dir)? {
        println!("cargo::warning=there is no static C library, so a dynamic one is used");
        return Ok(());
    }
    // Only for programs: tests are linked as usual and must not find these. One program of the tests runs
    // in containers whose root file system has no libraries.
    let programs =
        if variable("CARGO_PKG_NAME") == "holdfast-tests" { "bin=hostile" } else { "bins" };
    println!("cargo::rustc-link-arg-{programs}=-L{}", dir.display());
    println!("cargo::rustc-link-arg-{programs}=-static");
    println!("cargo::rustc-link-arg-{programs}=-no-pie");
    // Rust's own linker, which is used for this target unless it is told otherwise, can lay data out
    // as wanted. A part that is read-only after the start would take a page of its own.
    let told = variable("CARGO_ENCODED_RUSTFLAGS").contains("link")
        || env::var_os("RUSTC_LINKER").is_some();
    let order = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("written-at-start");
    if variable("TARGET") == "x86_64-unknown-linux-gnu" && !told && order.exists() {
        println!("cargo::rerun-if-changed={}", order.display());
        println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={}", order.display());
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,norelro");
    }
    Ok(())
}

/// Puts the static libraries together; false if one is missing.
fn collect(dir: &Path) -> io::Result<bool> {
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    for library in LIBRARIES {
        let name = format!("lib{library}.a");
        let Some(path) = installed(&name)? else { return Ok(false) };
        symlink(path, dir.join(name))?;
    }
    // The unwinder, which is in another library when it is linked statically.
    let Some(unwinder) = installed("libgcc_eh.a")? else { return Ok(false) };
    symlink(unwinder, dir.join("libgcc_s.a"))?;
    Ok(true)
}

/// Where the compiler finds a library.
fn installed(name: &str) -> io::Result<Option<PathBuf>> {
    let output = Command::new("cc").arg(format!("-print-file-name={name}")).output()?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    Ok((path.is_absolute() && path.is_file()).then_some(path))
}
