//! Terminals, outputs and titles: what others show of a container.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use holdfast_sys::probe;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::ftruncate;

use super::report::Report;

/// What a terminal would act on: it sets its title, moves up, clears the line, is asked for its state.
const SEQUENCES: &str =
    "\x1b]0;owned\x07\x1b[2A\x1b[2K\x1b[6n\x1b]52;c;b3duZWQ=\x07\u{9b}2K\u{202e}";

fn standard() -> io::Result<Vec<(String, File)>> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let all: [BorrowedFd<'_>; 3] =
        [&stdin as &dyn AsFd, &stdout, &stderr].map(|descriptor| descriptor.as_fd());
    let copy = |(number, fd): (usize, BorrowedFd<'_>)| {
        Ok((number.to_string(), File::from(fd.try_clone_to_owned()?)))
    };
    all.into_iter().enumerate().map(copy).collect()
}

/// `terminal PATH…`
pub(crate) fn terminal(paths: &[&str], report: &mut Report) -> io::Result<()> {
    let own = fs::metadata("/dev/pts").map(|it| it.st_dev()).ok();
    let mut all = standard()?;
    for &path in paths {
        let file = File::options().read(true).write(true).open(path);
        if let Some(file) = report.may_fail(format!("open {path}"), file) {
            all.push((path.to_owned(), file));
        }
    }
    for (name, file) in &all {
        // Its own terminal is its own affair: what is typed there comes back to it.
        let is_own = file.metadata().is_ok_and(|it| Some(it.st_dev()) == own) || name == "/dev/tty";
        for byte in *b"typed\n" {
            let done = probe::type_into(file, byte);
            match is_own {
                true => _ = report.may_fail(format!("type into {name}, its own"), done),
                false => _ = report.must_fail(format!("type into {name}"), done),
            }
        }
        report.must_fail(format!("ask the console by {name}"), probe::ask_console(file));
    }
    Ok(())
}

/// `output`
pub(crate) fn output(_: &[&str], report: &mut Report) -> io::Result<()> {
    for (name, file) in standard()?.into_iter().skip(1) {
        let is_file = file.metadata()?.is_file();
        // A pipe takes a mode, and nobody can execute it.
        let done = fchmod(&file, Mode::from_bits_truncate(0o4755));
        match is_file {
            true => _ = report.must_fail(format!("chmod 4755 {name}"), done),
            false => _ = report.may_fail(format!("chmod 4755 {name}, which is no file"), done),
        }
        report.must_fail(format!("make {name} 1 TiB long"), ftruncate(&file, 1 << 40));
        let again = File::options().write(true).open(format!("/proc/self/fd/{name}"));
        if let Ok(again) = again {
            report.must_fail(format!("make {name} long, opened again"), ftruncate(again, 1 << 40));
        }
    }
    Ok(())
}

/// `titles`
pub(crate) fn titles(_: &[&str], report: &mut Report) -> io::Result<()> {
    nix::sys::prctl::set_name(c"\x1b[2A\nforged")?;
    let mut child = Command::new("/proc/self/exe")
        .arg0(format!("{SEQUENCES}\nforged 1 root"))
        .args(["stay", SEQUENCES, "\r1 forged"])
        .spawn()?;
    report.saw("says so for as long as it may");
    println!("ready");
    child.wait()?;
    Ok(())
}

/// `escapes`
pub(crate) fn escapes(_: &[&str], report: &mut Report) -> io::Result<()> {
    for output in [&mut io::stdout() as &mut dyn Write, &mut io::stderr()] {
        // In one write: a shim may read in between.
        output.write_all(format!("before{SEQUENCES}after\n").as_bytes())?;
    }
    report.saw("written");
    Ok(())
}
