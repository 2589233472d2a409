//! Containers that exit with a known status at a random moment, while the daemon and the shims are
//! killed, stopped and continued at random. At the end every status must be there, once, and right
//! wherever the promise table of docs/reliability.md says so, and nothing must be left. Some of the containers
//! attack their own input and output meanwhile. They lose that at the most: their output is not looked at,
//! and everything else is judged as for the others.
//!
//! | module | what |
//! |---|---|
//! | `plan` | what a seed stands for: containers, ends, the order of all that happens |
//! | `programs` | the daemon, the command line, shims and their signals |
//! | `actor` | one container of the plan, and the row of the table that holds for it |
//! | `consumer` | one who follows the events, and is killed as well |
//! | `controller` | carries the plan out |
//! | `reckoning` | compares, deletes, and looks at what is left |
//! | `report` | counts, table, JSON |
//! | `policies` | a torture of its own: restart policies and health checks |

mod actor;
mod consumer;
mod controller;
pub mod plan;
pub mod policies;
mod programs;
mod reckoning;
mod report;

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use serde_json::Value;
use tempfile::TempDir;

use crate::outcome::Outcome;
use crate::{executable, runtime};

pub use report::Report;

use actor::Actor;
use consumer::{Consumer, Ledger};
use controller::Controller;
use plan::{Batch, Seeds};
use programs::{Cli, Daemon, Paths};
use reckoning::Abilities;

/// Something that is not as it should be.
#[derive(Debug)]
pub(crate) struct Trouble {
    /// Whose it is, if it is one container's.
    actor: Option<usize>,
    what: String,
}

impl Trouble {
    fn new(what: String) -> Self {
        Self { actor: None, what }
    }

    fn of(actor: usize, what: String) -> Self {
        Self { actor: Some(actor), what }
    }
}

/// Carries out a plan, and says after each batch how far it is. Ends at the first batch that shows
/// something wrong.
///
/// # Panics
///
/// If the machine does not let it begin.
pub fn run(seeds: Seeds, programs: &Path, mut progress: impl FnMut(&Report)) -> Outcome<Report> {
    let (scratch, paths) = prepare(programs);
    let bundle = crate::busybox_bundle(&paths.bundle());
    executable::copied(programs.join("hostile"), bundle.join("rootfs/bin/hostile"));
    fs::create_dir(bundle.join("rootfs/gates")).expect("make a directory for gates");

    let mut report = Report::default();
    let mut violations = Vec::new();
    let mut ledger = Ledger::default();
    for (number, batch) in seeds.batches().enumerate() {
        violations = one_batch(&paths, &mut report, &mut ledger, number, &batch);
        if !violations.is_empty() {
            break;
        }
        progress(&report);
    }
    let kept = (!violations.is_empty()).then(|| {
        clear(&paths);
        scratch.keep()
    });
    Outcome { report, violations, kept }
}

/// Makes a directory for a run, and of this process one that can judge.
fn prepare(programs: &Path) -> (TempDir, Paths) {
    // Orphans come to this process instead of a pid 1 of whom we know nothing, and a signal that
    // dumps core dumps none.
    nix::sys::prctl::set_child_subreaper(true).expect("become a subreaper");
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("set a limit");
    let scratch = tempfile::Builder::new().prefix("holdfast-torture-").tempdir_in("/tmp");
    let scratch = scratch.expect("make a directory");
    let paths = Paths {
        scratch: scratch.path().to_owned(),
        root: scratch.path().join("root"),
        programs: programs.to_owned(),
    };
    (scratch, paths)
}

/// Nothing of a run that failed may stay at work; its files stay.
fn clear(paths: &Paths) {
    let name = runtime().file_name().expect("an executable has a name");
    let state = paths.root.join(".runtime").join(name);
    for entry in fs::read_dir(&state).into_iter().flatten().flatten() {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(&state).args(["delete", "--force"]).arg(entry.file_name());
        let _ = command.status();
    }
    // The end of a shim leaves its container an orphan, so one round is not enough.
    for _ in 0..5 {
        for process in crate::processes::mentioning(&paths.scratch) {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn one_batch(
    paths: &Paths,
    report: &mut Report,
    ledger: &mut Ledger,
    number: usize,
    batch: &Batch,
) -> Vec<String> {
    let name = format!("torture-{}-{number}", std::process::id());
    let begun = Daemon::begin(paths).and_then(|daemon| {
        daemon.listens()?;
        warm_up(paths, &format!("{name}-warm"))?;
        let info = Cli::begin(paths, &["info", "--json"])?.end()?;
        let info: Value = serde_json::from_str(&info.stdout).unwrap_or_default();
        let tells_endings = info["abilities"]["tellsEndings"] == true;
        Ok((daemon, Abilities { tells_endings }))
    });
    let (daemon, kernel) = match begun {
        Ok(begun) => begun,
        Err(trouble) => return vec![trouble.what],
    };
    let mut descriptors = daemon.descriptors();
    // Those are opened with the first follower of an output, and kept: one instance, held twice.
    descriptors.extend(["anon_inode:inotify".to_owned(), "anon_inode:inotify".to_owned()]);
    let consumer = Consumer::begin(paths, std::mem::take(ledger), number as u64);
    let mut controller = Controller::new(paths, report, daemon, &name, batch);
    let carried_out = controller.carry_out(&batch.ops).and_then(|()| controller.quiet_down());
    let mut troubles: Vec<Trouble> = carried_out.err().into_iter().collect();
    if troubles.is_empty() {
        troubles = controller.reckon(kernel, &descriptors, consumer, ledger);
    }
    if troubles.is_empty()
        && let Some(daemon) = controller.daemon.take()
    {
        troubles.extend(daemon.close().err());
    }
    troubles.into_iter().map(|trouble| explain(&controller, trouble)).collect()
}

/// A container's whole life, before the daemon's descriptors are counted: what it opens once and
/// keeps is open then.
fn warm_up(paths: &Paths, id: &str) -> Result<(), Trouble> {
    let bundle = paths.bundle().display().to_string();
    let run = ["run", "--detach", "--name", id, "--bundle", &bundle, "--", "sh", "-c", "exit 0"];
    for args in [&run[..], &["wait", id], &["delete", id]] {
        let said = Cli::begin(paths, args)?.end()?;
        if said.code != Some(0) {
            return Err(Trouble::new(format!("holdfast {}: {said:?}", args.join(" "))));
        }
    }
    Ok(())
}

/// All that is known of what went wrong.
fn explain(controller: &Controller<'_>, trouble: Trouble) -> String {
    let Some(number) = trouble.actor else { return trouble.what };
    let actor: &Actor = &controller.actors[number];
    let mut text = format!("container {number}, {}: {}\n", actor.id, trouble.what);
    text += &format!("{actor:#?}\n");
    for line in controller.history_of(number) {
        text += &format!("{line}\n");
    }
    let container = controller.paths.root.join(&actor.id);
    let files = ["process.json", "pid", "exit.json", "exitStatus", "shim-log.json", "log.json"];
    let files = files.map(|name| format!("init/{name}"));
    for name in files.iter() {
        if let Ok(content) = fs::read_to_string(container.join(name)) {
            text += &format!("--- {name}\n{}\n", content.trim_end());
        }
    }
    text
}
