//! Boots whose guest makes checks by itself and says a line of each: `PLAN NAME...`, then
//! `PASS NAME`, `FAIL NAME: reason` or `SKIP NAME: reason`, any `NOTE NAME: text`, and `DONE`.

use std::time::{Duration, Instant};

use anyhow::Context;
use comfy_table::{Table, presets};

use super::machine::{Boot, Host, Machine};

/// A boot with checks.
#[derive(Debug)]
pub(super) struct Suite {
    init: &'static str,
    part: &'static str,
    limit: Duration,
}

/// Without an init system: what Holdfast does under this kernel.
pub(super) const SCENARIOS: Suite = Suite {
    init: "/opt/holdfast/guest/init.sh",
    part: "scenarios",
    limit: Duration::from_secs(900),
};

/// Debian's containerd with its own shim and with Holdfast's.
pub(super) const CONTAINERD: Suite = Suite {
    init: "/opt/holdfast/guest/init.sh",
    part: "containerd",
    limit: Duration::from_secs(1800),
};

/// With systemd: what the unit file promises.
pub(super) const SYSTEMD: Suite = Suite {
    init: "/opt/holdfast/guest/systemd-init.sh",
    part: "systemd",
    // Thirty units of the check `sandbox` took five minutes on a busy machine with two processors.
    limit: Duration::from_secs(1200),
};

/// The tests of `tests/tests/rootless.rs` and attacks of `tests/tests/security.rs`, each of which is a check, as users
/// with a systemd of their own.
pub(super) const ROOTLESS: Suite = Suite {
    init: "/opt/holdfast/guest/systemd-init.sh",
    part: "rootless",
    limit: Duration::from_secs(3600),
};

/// The tests of `tests/tests/podman.rs`, each of which is a check.
pub(super) const PODMAN: Suite = Suite {
    init: "/opt/holdfast/guest/systemd-init.sh",
    part: "podman",
    limit: Duration::from_secs(3600),
};

/// The tests of `tests/tests/security.rs`, each of which is a check.
pub(super) const HOSTILE: Suite = Suite {
    init: "/opt/holdfast/guest/init.sh",
    part: "hostile",
    limit: Duration::from_secs(3600),
};

/// What became of one check.
#[derive(Debug)]
struct Check {
    name: String,
    outcome: Option<Outcome>,
    notes: Vec<String>,
    took: Duration,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Pass,
    Skip(String),
    Fail(String),
}

/// Boots, prints the table, and says whether all is well. The words are further ones for the kernel's command
/// line.
pub(super) fn run(host: &Host, suite: &Suite, words: &str) -> anyhow::Result<bool> {
    let began = Instant::now();
    let boot = Boot {
        init: suite.init,
        words: format!("holdfast.part={} {words}", suite.part),
        state: None,
        limit: suite.limit,
    };
    let machine = Machine::boot(host, &boot)?;
    let mut checks: Vec<Check> = Vec::new();
    let mut last = began;
    // A machine that does not come to its end is reported with what it had said before.
    let ended = loop {
        match machine.line() {
            Ok(Some(line)) if line == "DONE" => break Ok(()),
            Ok(Some(line)) => {
                if line.starts_with("PLAN ") {
                    println!("{}: up after {:.1} s", suite.part, began.elapsed().as_secs_f64());
                    last = Instant::now();
                }
                heard(&mut checks, &line, &mut last);
            }
            Ok(None) => break Err(anyhow::anyhow!("the machine went off before it was done")),
            Err(error) => break Err(error),
        }
    };
    println!("{}", table(&checks));
    let right = !checks.is_empty()
        && checks.iter().all(|c| matches!(c.outcome, Some(Outcome::Pass | Outcome::Skip(_))));
    if !right {
        let console = machine.console();
        let kept = crate::target().join("vm").join(format!("{}-console.log", suite.part));
        std::fs::write(&kept, &console)?;
        for check in checks.iter().filter(|c| matches!(c.outcome, Some(Outcome::Fail(_)))) {
            println!("{}", section(&console, &check.name).trim_end());
        }
        println!("all of the console: {}", kept.display());
    }
    ended.map(|()| right).with_context(|| format!("part {}", suite.part))
}

fn heard(checks: &mut Vec<Check>, line: &str, last: &mut Instant) {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    if word == "PLAN" {
        checks.extend(rest.split_whitespace().map(|name| Check {
            name: name.to_owned(),
            outcome: None,
            notes: Vec::new(),
            took: Duration::ZERO,
        }));
        return;
    }
    let (name, text) = rest.split_once(": ").unwrap_or((rest, ""));
    let outcome = match word {
        "PASS" => Some(Outcome::Pass),
        "SKIP" => Some(Outcome::Skip(text.to_owned())),
        "FAIL" => Some(Outcome::Fail(text.to_owned())),
        "NOTE" => None,
        // The kernel, or a program that found the wrong terminal.
        _ => return println!("guest: {line}"),
    };
    let known = checks.iter().position(|check| check.name == name);
    let index = known.unwrap_or_else(|| {
        // Said of something that was not planned: a failure before the first check.
        checks.push(Check {
            name: name.to_owned(),
            outcome: None,
            notes: Vec::new(),
            took: Duration::ZERO,
        });
        checks.len() - 1
    });
    match outcome {
        None => checks[index].notes.push(text.to_owned()),
        some => {
            checks[index].outcome = some;
            checks[index].took = last.elapsed();
            *last = Instant::now();
        }
    }
}

/// What the guest wrote to the console after a check, with its heading.
fn section<'a>(console: &'a str, name: &str) -> &'a str {
    let Some(start) = console.find(&format!("--- {name}\n")) else { return "" };
    let rest = &console[start..];
    rest.find("\n--- ").map_or(rest, |end| &rest[..end])
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table.set_header(["check", "", "s", "remarks"]);
    for check in checks {
        let (outcome, reason) = match &check.outcome {
            Some(Outcome::Pass) => ("ok", None),
            Some(Outcome::Skip(reason)) => ("skipped", Some(reason)),
            Some(Outcome::Fail(reason)) => ("FAILED", Some(reason)),
            None => ("MISSING", None),
        };
        let remarks: Vec<_> = reason.into_iter().chain(&check.notes).map(String::as_str).collect();
        table.add_row([
            check.name.clone(),
            outcome.to_owned(),
            format!("{:.1}", check.took.as_secs_f64()),
            remarks.join("\n"),
        ]);
    }
    table
}
