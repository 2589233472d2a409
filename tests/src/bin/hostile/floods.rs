//! Too much of everything. What is made is bounded by the arguments, and removed at the end.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::Builder;

use super::report::Report;

const MIB: usize = 1 << 20;
/// How many of the processes are processes. The others are threads, which count alike and are cheaper.
const PROCESSES: usize = 50;

/// `flood-processes NUMBER`
pub(crate) fn processes(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [number] = args else { return Err(io::Error::other("a number")) };
    let number: usize = super::parsed(number)?;
    let mut children: Vec<Child> = Vec::new();
    let mut refusal = None;
    while children.len() < number.min(PROCESSES) && refusal.is_none() {
        let mut command = Command::new("/proc/self/exe");
        match command.arg("stay").stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => children.push(child),
            Err(error) => refusal = Some(error),
        }
    }
    let mut threads = Vec::new();
    let mut had = children.len();
    while had < number && refusal.is_none() {
        let (release, wait) = mpsc::channel::<()>();
        match Builder::new().stack_size(16 << 10).spawn(move || wait.recv()) {
            Ok(thread) => threads.push((release, thread)),
            Err(error) => refusal = Some(error),
        }
        had = children.len() + threads.len();
    }
    for (release, thread) in threads {
        drop(release);
        let _ = thread.join();
    }
    for mut child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
    match refusal {
        Some(error) => report.saw(format!("{had} processes, then {error}")),
        None => report.broke(format!("{had} processes")),
    }
    Ok(())
}

/// `flood-memory MIB`
pub(crate) fn memory(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [number] = args else { return Err(io::Error::other("how much")) };
    let number: usize = super::parsed(number)?;
    let mut all = Vec::new();
    println!("begins");
    while all.len() < number {
        let mut piece = Vec::new();
        if let Err(error) = piece.try_reserve_exact(MIB) {
            report.saw(format!("{} MiB, then {error}", all.len()));
            return Ok(());
        }
        piece.resize(MIB, 1_u8);
        all.push(piece);
    }
    report.broke(format!("{} MiB of memory", all.len()));
    Ok(())
}

/// `flood-disk MIB DIR…`
pub(crate) fn disk(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [number, dirs @ ..] = args else { return Err(io::Error::other("how much")) };
    let number: usize = super::parsed(number)?;
    let piece = vec![1_u8; MIB];
    for dir in dirs {
        let path = Path::new(dir).join("flood");
        let mut written = 0;
        let done = File::create(&path).and_then(|mut file| {
            while written < number {
                file.write_all(&piece)?;
                written += 1;
            }
            Ok(())
        });
        let _ = fs::remove_file(path);
        report.must_fail(format!("write {written} MiB and more to {dir}"), done);
    }
    Ok(())
}

/// `flood-inodes NUMBER DIR…`
pub(crate) fn inodes(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [number, dirs @ ..] = args else { return Err(io::Error::other("a number")) };
    let number: usize = super::parsed(number)?;
    for dir in dirs {
        let dir = Path::new(dir).join("flood");
        let mut made = 0;
        let done = fs::create_dir(&dir).and_then(|()| {
            while made < number {
                File::create(dir.join(made.to_string()))?;
                made += 1;
            }
            Ok(())
        });
        let _ = fs::remove_dir_all(&dir);
        report.must_fail(format!("make {made} files and more in {}", dir.display()), done);
    }
    Ok(())
}

/// `flood-log MIB`
pub(crate) fn log(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [number] = args else { return Err(io::Error::other("how much")) };
    let number: usize = super::parsed(number)?;
    let piece = b"y\n".repeat(MIB / 2);
    let mut output = io::stdout().lock();
    for _ in 0..number {
        output.write_all(&piece)?;
    }
    report.saw("written");
    Ok(())
}
