//! Files that are executed after they were written.
//!
//! Nothing can be executed while somebody has it open for writing: execve(2) fails with "Text file busy"
//! (`ETXTBSY`). Tests are threads of one process, and a child that another thread starts holds a copy of each
//! descriptor of that process from its fork to its exec, close-on-exec or not. So a test that writes an
//! executable itself, has closed it and then starts it fails now and then. Here a child writes the
//! file, and its descriptor is in no other process.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Copies a file to `to` and makes it executable by everybody. A file that is there already is replaced.
///
/// # Panics
///
/// If that fails.
pub fn copied(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    install(from.as_ref(), to.as_ref(), "");
}

/// Writes a script, with its `#!` line, to `path` and makes it executable by everybody. A file that is there
/// already is replaced.
///
/// # Panics
///
/// If that fails.
pub fn script(path: impl AsRef<Path>, text: &str) {
    assert!(text.starts_with("#!"), "a script without an interpreter: {text:?}");
    install(Path::new("/dev/stdin"), path.as_ref(), text);
}

fn install(from: &Path, to: &Path, input: &str) {
    let mut command = Command::new("install");
    command.args(["--mode=755", "--no-target-directory"]).arg("--").arg(from).arg(to);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a piped input");
    stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    drop(stdin);
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    /// How many threads start other programs all the time.
    const OTHERS: usize = 4;

    /// As `fs::copy` and `fs::write` do it, this ends with "Text file busy" within 30 rounds.
    #[test]
    fn what_was_written_can_be_executed_while_other_threads_start_programs() {
        let dir = tempfile::tempdir().expect("make a directory");
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..OTHERS {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        Command::new("true").status().expect("start a program");
                    }
                });
            }
            // It is joined before they are told to end, so they end even if it panics.
            let rounds = scope.spawn(|| (0..150).for_each(|_| write_and_execute(dir.path())));
            let outcome = rounds.join();
            over.store(true, Ordering::Relaxed);
            outcome.expect("each program and script was executed");
        });
    }

    fn write_and_execute(dir: &Path) {
        let [program, text] = ["program", "script"].map(|name| dir.join(name));
        copied("/bin/true", &program);
        script(&text, "#!/bin/sh\nexit 0\n");
        for path in [program, text] {
            let status = Command::new(path).status().expect("execute what was written");
            assert!(status.success(), "{status}");
        }
    }
}
