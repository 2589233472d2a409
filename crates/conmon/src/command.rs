//! The runtime's command line, and how it is started.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::{fs, io};

use holdfast_sys::spawn;

use crate::args::Args;
use crate::report;

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
/// The score of a process that the OOM killer is to leave alone.
const NEVER: &str = "-1000";

/// Returns the arguments of the runtime, by which it creates or restores a container, or starts an exec.
fn words<'a>(args: &Args<'a>, pid_file: &'a Path, console: Option<&'a Path>) -> Vec<&'a OsStr> {
    let mut words = Vec::new();
    let word = OsStr::new;
    if args.systemd_cgroup && !args.exec {
        words.push(word("--systemd-cgroup"));
    }
    words.extend(&args.runtime_args);
    let pid_file = pid_file.as_os_str();
    if args.exec {
        let spec = args.exec_process_spec.unwrap_or_default();
        let exec = [word("exec"), word("--pid-file"), pid_file, word("--process"), spec];
        words.extend(exec);
        words.push(word("--detach"));
    } else {
        let bundle = args.bundle.unwrap_or_default();
        let command = word(if args.restore.is_some() { "restore" } else { "create" });
        words.extend([command, word("--bundle"), bundle, word("--pid-file"), pid_file]);
        words.extend(args.no_pivot.then_some(word("--no-pivot")));
        words.extend(args.no_new_keyring.then_some(word("--no-new-keyring")));
        if let Some(image) = args.restore {
            words.extend([word("--detach"), word("--image-path"), image]);
            words.extend([word("--work-path"), bundle]);
        }
    }
    words.extend(&args.runtime_opts);
    if let Some(console) = console {
        words.extend([word("--console-socket"), console.as_os_str()]);
    }
    words.push(word(args.id()));
    words
}

/// Starts the runtime and returns its pid. The kernel kills it if the monitor dies.
pub(crate) fn start(
    args: &Args<'_>,
    pid_file: &Path,
    console: Option<&Path>,
    [stdin, stdout, stderr]: [Stdio; 3],
) -> io::Result<i32> {
    let mut command = Command::new(args.runtime.unwrap_or_default());
    command.args(words(args, pid_file, console)).stdin(stdin).stdout(stdout).stderr(stderr);
    spawn::die_with_us(spawn::like_a_runtime(&mut command));
    if names_us(args)? {
        spawn::name_own_pid(&mut command, c"LISTEN_PID");
    }
    let child = command.spawn().map_err(|error| {
        let runtime = command.get_program().display();
        io::Error::new(error.kind(), format!("{runtime} cannot be started: {error}"))
    })?;
    Ok(child.id().cast_signed())
}

/// Returns whether `LISTEN_PID` (sd_listen_fds(3)) is to be set to the runtime's pid.
fn names_us(args: &Args<'_>) -> io::Result<bool> {
    let Some(text) = std::env::var_os("LISTEN_PID") else { return Ok(false) };
    let pid = text.to_str().and_then(|text| text.parse::<u32>().ok()).filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| io::Error::other(format!("Invalid LISTEN_PID {text:?}")))?;
    Ok(args.replace_listen_pid || pid == std::process::id())
}

/// The `oom_score_adj` that this process began with.
pub(crate) struct OomScore(Option<String>);

impl OomScore {
    /// Exempts this process from the OOM killer, if it has the privilege. Children inherit this, so it is called
    /// after the runtime was started.
    pub(crate) fn never() -> Self {
        let before = fs::read_to_string(OOM_SCORE).ok();
        if let Err(error) = write(NEVER) {
            report::report(report::Level::Debug, &format!("{OOM_SCORE}: {error}"));
        }
        Self(before)
    }

    /// The same for who takes over, given what the first one began with.
    pub(crate) fn never_after(before: Option<String>) -> Self {
        Self::never();
        Self(before)
    }

    /// Returns what this process began with.
    pub(crate) fn before(&self) -> Option<&str> {
        self.0.as_deref().map(str::trim)
    }

    /// Sets the old value again, before another child is started.
    pub(crate) fn restore(&self) {
        if let Some(before) = &self.0 {
            let _ = write(before.trim());
        }
    }
}

fn write(score: &str) -> io::Result<()> {
    io::Write::write_all(&mut File::options().write(true).open(OOM_SCORE)?, score.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str], console: Option<&str>) -> String {
        let args = crate::args::parse(words.iter().map(|word| OsStr::new(*word))).unwrap();
        let words = super::words(&args, Path::new("P"), console.map(Path::new));
        words.join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn the_words_of_a_runtime_are_in_conmons_order() {
        let shared = ["-cID", "-bB", "-s", "--runtime-arg", "--log", "--runtime-opt", "--x"];
        let with = |more: &[&'static str]| [&shared[..], more].concat();
        for (words, console, expected) in [
            (with(&[]), None, "--systemd-cgroup --log create --bundle B --pid-file P --x ID"),
            (
                with(&["--no-pivot", "--no-new-keyring"]),
                Some("C"),
                "--systemd-cgroup --log create --bundle B --pid-file P --no-pivot --no-new-keyring --x --console-socket C ID",
            ),
            (
                with(&["--restore", "R"]),
                None,
                "--systemd-cgroup --log restore --bundle B --pid-file P --detach --image-path R --work-path B --x ID",
            ),
            (
                with(&["-e", "--exec-process-spec", "S"]),
                Some("C"),
                "--log exec --pid-file P --process S --detach --x --console-socket C ID",
            ),
        ] {
            assert_eq!(line(&words, console), expected);
        }
    }
}
