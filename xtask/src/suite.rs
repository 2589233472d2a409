//! One run of cargo's tests: under what circumstances, and what came of each test.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// The runtime that comes with Holdfast.
pub(crate) const EMBEDDED: &str = "holdfast-oci";

/// What the system's tests find on the machine.
#[derive(Debug, Default)]
pub(crate) struct Circumstances {
    runtime: Option<String>,
    without_runc: Option<(OsString, TempDir)>,
    in_a_group: bool,
}

impl Circumstances {
    /// The machine as it is, with this runtime, by name or path, where not another is named.
    pub(crate) fn with_runtime(runtime: Option<&str>) -> anyhow::Result<Self> {
        let runtime = match runtime {
            Some("embedded") => Some(EMBEDDED.to_owned()),
            // The tests stand in a directory of their own.
            Some(path) if path.contains('/') => {
                let absolute = Path::new(path).canonicalize().with_context(|| path.to_owned())?;
                Some(absolute.into_os_string().into_string().ok().context("a path in UTF-8")?)
            }
            other => other.map(str::to_owned),
        };
        Ok(Self { runtime, without_runc: None, in_a_group: false })
    }

    /// Hides runc. It is not uninstalled: others may use it, and what is in no directory of `PATH`
    /// is not there for Holdfast and its tests. So a directory that has it is replaced by one of
    /// links to everything else in it.
    pub(crate) fn hide_runc(mut self) -> anyhow::Result<Self> {
        let links = tempfile::Builder::new().prefix("holdfast-path-").tempdir()?;
        let mut path = Vec::new();
        for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
            if !dir.join("runc").exists() {
                path.push(dir);
                continue;
            }
            let instead = links.path().join(path.len().to_string());
            link_all_but(&dir, &instead, "runc").with_context(|| dir.display().to_string())?;
            path.push(instead);
        }
        self.without_runc = Some((std::env::join_paths(path)?, links));
        Ok(self)
    }

    /// Has all containers share a shim that are not told otherwise.
    pub(crate) fn in_a_group(mut self) -> Self {
        self.in_a_group = true;
        self
    }

    fn apply(&self, command: &mut Command) {
        // What a person's shell says is not what was asked for here.
        command.env_remove("HOLDFAST_TEST_RUNTIME").env_remove("HOLDFAST_TEST_SHIM_GROUP");
        // A panic names its line; sixty frames of a runtime below it hide what it says.
        command.env("RUST_BACKTRACE", "0");
        if self.in_a_group {
            command.env("HOLDFAST_TEST_SHIM_GROUP", "all");
        }
        if let Some(runtime) = &self.runtime {
            command.env("HOLDFAST_TEST_RUNTIME", runtime);
        }
        if let Some((path, _links)) = &self.without_runc {
            command.env("PATH", path);
        }
    }
}

fn link_all_but(dir: &Path, instead: &Path, hidden: &str) -> std::io::Result<()> {
    fs::create_dir(instead)?;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name != hidden {
            symlink(dir.join(&name), instead.join(&name))?;
        }
    }
    Ok(())
}

/// What came of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    /// It did not test anything, for this reason.
    Skipped(String),
}

impl Outcome {
    pub(crate) fn is_failed(&self) -> bool {
        *self == Self::Failed
    }
}

/// A test and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) test: String,
    pub(crate) outcome: Outcome,
    /// What it printed, as far as that was shown: its end, if that is long.
    pub(crate) said: String,
}

impl Finished {
    /// Reads what libtest says of a test. It knows no reason for an ignored one but the attribute's.
    fn of(line: &str) -> Option<Self> {
        let (test, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
        let outcome = match result {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            _ => {
                let reason = result.strip_prefix("ignored")?.trim_start_matches(", ");
                Outcome::Skipped(if reason.is_empty() { "ignored" } else { reason }.to_owned())
            }
        };
        // `test a_name - should panic ... ok`
        let test = test.split(" - ").next().unwrap_or(test);
        Some(Self { test: test.to_owned(), outcome, said: String::new() })
    }
}

/// How many tests passed, failed, and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Count {
    pub(crate) fn add(&mut self, tests: &[Finished]) {
        for test in tests {
            match test.outcome {
                Outcome::Passed => self.passed += 1,
                Outcome::Failed => self.failed += 1,
                Outcome::Skipped(_) => self.skipped += 1,
            }
        }
    }
}

/// Builds what the system's tests start, which `cargo test` alone does not build.
pub(crate) fn build() -> anyhow::Result<()> {
    crate::run(crate::cargo().args(["build", "--workspace", "--bins", "--examples"]))
}

/// Runs cargo's tests, shows what they print, and tells what came of each.
pub(crate) fn run(what: &[&str], circumstances: &Circumstances) -> anyhow::Result<Vec<Finished>> {
    // By a file and not by their output, which libtest captures, or writes its own lines into.
    let scratch = tempfile::tempdir()?;
    let skipped = scratch.path().join("skipped");
    let mut command = crate::cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(what);
    circumstances.apply(&mut command);
    let mut child = command
        .env("HOLDFAST_TEST_SKIPPED", &skipped)
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test cannot be started")?;
    let mut finished = Vec::new();
    let mut speaker: Option<String> = None;
    for line in BufReader::new(child.stdout.take().context("no output")?).lines() {
        let line = line?;
        println!("{line}");
        finished.extend(Finished::of(&line));
        speaker =
            match line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
                Some(test) => Some(test.to_owned()),
                None if line == "failures:" => None,
                None => speaker,
            };
        note(&mut finished, speaker.as_deref(), &line);
    }
    let status = child.wait()?;
    mark_skipped(&mut finished, &skipped)?;
    if !status.success() && !finished.iter().any(|test| test.outcome == Outcome::Failed) {
        bail!("cargo test failed: {status}");
    }
    Ok(finished)
}

/// Keeps the end of what a test that failed has printed.
fn note(finished: &mut [Finished], speaker: Option<&str>, line: &str) {
    /// In bytes. A torture's whole story is longer, and its verdict stands at the end.
    const MOST: usize = 8 * 1024;
    let Some(test) = speaker else { return };
    let Some(found) = finished.iter_mut().rev().find(|finished| finished.test == test) else {
        return;
    };
    found.said.push_str(line);
    found.said.push('\n');
    if found.said.len() > 2 * MOST {
        let end = found.said.ceil_char_boundary(found.said.len() - MOST);
        found.said.drain(..end);
    }
}

/// Takes back the `ok` of tests that tested nothing.
fn mark_skipped(finished: &mut [Finished], list: &Path) -> anyhow::Result<()> {
    if !list.exists() {
        return Ok(());
    }
    for line in fs::read_to_string(list)?.lines() {
        let (test, reason) = line.split_once('\t').context("a skipped test and why")?;
        let found = finished
            .iter_mut()
            .find(|finished| finished.test == test && finished.outcome == Outcome::Passed);
        let found = found.with_context(|| format!("{test} was skipped, and did not pass"))?;
        found.outcome = Outcome::Skipped(reason.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(test: &str, outcome: Outcome) -> Finished {
        Finished { test: test.to_owned(), outcome, said: String::new() }
    }

    #[test]
    fn the_end_of_what_a_failed_test_said_is_kept() {
        let mut all = [finished("a", Outcome::Failed), finished("b", Outcome::Failed)];
        note(&mut all, None, "running");
        note(&mut all, Some("b"), "first");
        for _ in 0..1000 {
            note(&mut all, Some("b"), "é and more of it, line after line");
        }
        note(&mut all, Some("b"), "the verdict");
        assert_eq!(all[0].said, "");
        assert!(all[1].said.ends_with("line after line\nthe verdict\n"));
        assert!(all[1].said.len() < 20_000 && !all[1].said.contains("first"));
    }

    #[test]
    fn what_libtest_says_of_a_test_is_understood() {
        let of = |line| Finished::of(line).map(|finished| (finished.test, finished.outcome));
        assert_eq!(of("test a::b ... ok"), Some(("a::b".into(), Outcome::Passed)));
        assert_eq!(of("test b - should panic ... ok"), Some(("b".into(), Outcome::Passed)));
        assert_eq!(of("test c ... FAILED"), Some(("c".into(), Outcome::Failed)));
        let ignored = |reason: &str| Outcome::Skipped(reason.into());
        assert_eq!(of("test d ... ignored"), Some(("d".into(), ignored("ignored"))));
        assert_eq!(of("test e ... ignored, a bug"), Some(("e".into(), ignored("a bug"))));
        assert_eq!(of("test result: ok. 9 passed; 2 failed; 1 ignored"), None);
        assert_eq!(of("running 3 tests"), None);
    }

    #[test]
    fn a_test_that_says_so_is_skipped_and_not_passed() {
        let mut all = [finished("a", Outcome::Passed), finished("b", Outcome::Passed)];
        let list = tempfile::NamedTempFile::new().unwrap();
        fs::write(&list, "b\tno runc\n").unwrap();
        mark_skipped(&mut all, list.path()).unwrap();
        let skipped = finished("b", Outcome::Skipped("no runc".into()));
        assert_eq!(all, [finished("a", Outcome::Passed), skipped]);
        let mut count = Count::default();
        count.add(&all);
        assert_eq!(count, Count { passed: 1, failed: 0, skipped: 1 });
    }

    #[test]
    fn only_runc_is_hidden() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["runc", "runc-like", "sh"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let instead = dir.path().join("instead");
        link_all_but(dir.path(), &instead, "runc").unwrap();
        assert!(!instead.join("runc").exists());
        assert!(instead.join("runc-like").exists() && instead.join("sh").exists());
    }
}
