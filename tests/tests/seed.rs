//! A state root that the seed has left is taken up: tests/fixtures holds what it wrote.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use holdfast_supervisor::{
    Container, ContainerId, Cursor, Error, EventKind, ExecOptions, ExitStatus, Status, Supervisor,
    UnknownReason,
};
use holdfast_tests::listen::in_words;
use holdfast_tests::{
    Gate, Holdfast, Output, Proc, Scratch, edit_json, events_until, read_all, runtime,
    runtime_name, soon, status, unique_id,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const SIGKILL: i32 = 9;
/// The seed named execs by a temporary directory.
const EXEC: &str = "482910573";

/// A container as the seed left it.
struct Left {
    id: ContainerId,
    dir: PathBuf,
}

impl Left {
    /// Puts a fixture into a state root that no supervisor holds.
    fn by_the_seed(scratch: &Scratch, fixture: &str) -> Self {
        let id = unique_id("seed");
        let dir = scratch.root().join(id.as_str());
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
        let text = |path: PathBuf| path.into_os_string().into_string().expect("UTF-8");
        let values = [
            // The seed's was always runc; what is tried here is the one under test.
            ("\"runtime\":\"runc\"", format!("\"runtime\":{}", json!(runtime_name()))),
            ("@DIR@", text(dir.clone())),
            ("@BUNDLE@", text(scratch.bundle())),
            ("@RUNTIME_ROOT@", text(scratch.path().join("runtime"))),
            ("@FIFOS@", text(scratch.path().to_owned())),
        ];
        for file in ["state.json", "init/process.json", "482910573/process.json"] {
            let Ok(mut content) = fs::read_to_string(fixture.join(file)) else { continue };
            for (name, value) in &values {
                content = content.replace(name, value);
            }
            fs::create_dir_all(dir.join(file).parent().expect("a directory")).expect("make it");
            fs::write(dir.join(file), content).expect("write a fixture");
        }
        Self { id, dir }
    }

    fn init(&self) -> PathBuf {
        self.dir.join("init")
    }

    fn record(&self) -> Value {
        let content = fs::read(self.init().join("process.json")).expect("read a record");
        serde_json::from_slice(&content).expect("a record in JSON")
    }

    /// Says that a process runs there.
    fn runs(&self, process: &str, pid: i32) {
        let dir = self.dir.join(process);
        fs::write(dir.join("pid"), pid.to_string()).expect("write a pid");
        let start_time = Proc::of(pid).expect("it lives").identity();
        let start_time = start_time.split_once('@').expect("a start time").1;
        edit_json(&dir.join("process.json"), |record| {
            if record["startTime"] != "" {
                record["startTime"] = json!(start_time);
            }
        });
    }

    fn taken_up(&self, supervisor: &Supervisor) -> Container {
        let report = supervisor.restore_report();
        assert_eq!(report.problems, [], "restored");
        supervisor.get(&self.id).expect("the container is known")
    }
}

/// What stands in for the seed's shim: it holds the exit FIFO, is the parent of the process, and
/// writes its status down as the seed did.
async fn shim(dir: &Path, script: &str) -> Child {
    let shim = "mkfifo exit control; exec 9<>exit; sh -c \"$1\" 9>&- > /dev/null & printf %s $! > pid; \
                echo ready; wait $!; printf %s $? > exitStatus";
    let mut command = Command::new("sh");
    command.args(["-c", shim, "shim", script]).current_dir(dir).env("HELD", dir);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("start a shim");
    let stdout = BufReader::new(child.stdout.take().expect("its output"));
    let ready = soon("a shim", stdout.lines().next_line()).await.expect("read its output");
    assert_eq!(ready.as_deref(), Some("ready"));
    child
}

fn pid_in(dir: &Path) -> i32 {
    fs::read_to_string(dir.join("pid")).expect("a pid").parse().expect("a number")
}

/// A script for the host that waits at a gate.
fn on_host(scratch: &Scratch, gate: &Gate) -> String {
    let rootfs = scratch.bundle().join("rootfs");
    gate.script("true").replace("/gates/", &format!("{}/gates/", rootfs.display()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_and_its_exec_whose_shims_live_are_watched_to_their_exact_ends() {
    for fixture in ["seed-2016", "seed-early"] {
        let scratch = Scratch::new();
        let left = Left::by_the_seed(&scratch, fixture);
        let (gate, exec_gate) = (scratch.gate(), scratch.gate());
        let mut shims = vec![shim(&left.init(), &on_host(&scratch, &gate)).await];
        left.runs("init", pid_in(&left.init()));
        let exec_dir = left.dir.join(EXEC);
        if exec_dir.exists() {
            shims.push(shim(&exec_dir, &on_host(&scratch, &exec_gate)).await);
            left.runs(EXEC, pid_in(&exec_dir));
        }
        let record = left.record();

        let supervisor = scratch.open().await;
        let container = left.taken_up(&supervisor);
        let info = container.info();
        assert_eq!((info.status, info.restored), (Status::Running, true));
        assert_eq!(info.pid, Some(pid_in(&left.init())));
        assert_eq!(info.execs.len(), shims.len() - 1);
        if let Some(exec) = container.process(&EXEC.parse().unwrap()) {
            exec_gate.open(11);
            assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(11));
        }
        assert_eq!(container.info().status, Status::Running);
        gate.open(42);
        assert_eq!(status(&container).await, ExitStatus::Code(42));
        assert_eq!(fs::read_to_string(left.init().join("exitStatus")).unwrap(), "42");
        for (name, value) in record.as_object().unwrap() {
            assert_eq!(&left.record()[name], value, "{name}");
        }
        for mut shim in shims {
            soon("the end of a shim", shim.wait()).await.unwrap();
        }
        drop(container);
        scratch.close(supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_container_whose_shim_is_dead_runs_on_and_is_worked_with_where_its_runtime_had_it() {
    for fixture in ["seed-2016", "seed-early"] {
        let scratch = Scratch::new();
        let left = Left::by_the_seed(&scratch, fixture);
        let _ = fs::remove_dir_all(left.dir.join(EXEC));
        let gate = scratch.gate();
        edit_json(&scratch.bundle().join("config.json"), |config| {
            config["process"]["terminal"] = json!(false);
            config["process"]["args"] = json!(["sh", "-c", gate.script("true")]);
        });
        let mut run = Command::new(runtime());
        run.arg("--root").arg(scratch.path().join("runtime")).args(["run", "--detach"]);
        run.arg("--bundle").arg(scratch.bundle()).arg("--pid-file").arg(left.init().join("pid"));
        run.arg(left.id.as_str()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(soon("the runtime", run.status()).await.unwrap().success());
        left.runs("init", pid_in(&left.init()));
        // Neither FIFO is there: the seed's were on another boot's tmpfs, or were removed.
        assert!(!left.init().join("exit").exists() && !left.init().join("control").exists());

        let supervisor = scratch.open().await;
        let container = left.taken_up(&supervisor);
        assert_eq!(container.info().status, Status::Running);
        for name in ["exit", "control"] {
            let kind = left.init().join(name).metadata().unwrap().file_type();
            assert!(kind.is_fifo(), "{name} was not made");
        }
        // Its capabilities are a list, which no runtime of today reads, and it still runs.
        let exec = ExecOptions::new(["sh", "-c", "echo inside; exit 9"]);
        let (exec, log) = container.exec_attached(exec).await.unwrap();
        assert_eq!(soon("the exec", exec.wait()).await.unwrap(), ExitStatus::Code(9));
        assert_eq!(read_all(log).await, Output::of("inside\n"));
        container.pause().await.unwrap();
        container.resume().await.unwrap();
        gate.open(17);
        assert_eq!(status(&container).await, ExitStatus::Code(17));
        soon("the delete", container.delete()).await.unwrap();
        assert!(!scratch.path().join("runtime").join(left.id.as_str()).exists());
        assert_eq!(scratch.leftovers(), [""; 0]);
        drop((container, exec));
        scratch.close(supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_under_the_number_is_neither_watched_nor_signalled() {
    let scratch = Scratch::new();
    let mut stranger = Command::new("sleep").arg("100000").kill_on_drop(true).spawn().unwrap();
    let pid = stranger.id().unwrap().cast_signed();
    let left = Left::by_the_seed(&scratch, "seed-2016");
    fs::remove_dir_all(left.dir.join(EXEC)).unwrap();
    left.runs("init", pid);
    edit_json(&left.init().join("process.json"), |record| record["startTime"] = json!("7"));
    let supervisor = scratch.open().await;
    let container = left.taken_up(&supervisor);
    assert_eq!(status(&container).await, ExitStatus::Unknown(UnknownReason::ExitedUnwatched));
    assert_eq!((container.info().exit_status, container.info().pid), (Some(255), None));
    assert!(matches!(container.signal(SIGKILL), Err(Error::WrongState { .. })));
    assert_eq!(fs::read_to_string(left.init().join("exitStatus")).unwrap(), "255");
    soon("the delete", container.delete_forced()).await.unwrap();
    assert!(stranger.try_wait().unwrap().is_none(), "another's process was killed");
    stranger.kill().await.unwrap();
    drop(container);
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_file_of_the_seeds_is_read_and_what_is_none_is_255() {
    let unknown = ExitStatus::Unknown;
    let recorded = unknown(UnknownReason::RecordedAsUnknown);
    let unwatched = unknown(UnknownReason::ExitedUnwatched);
    // The file, what it means, and what the seed's readers find there afterwards.
    let cases = [
        (Some("0"), ExitStatus::Code(0), "0"),
        (Some("42"), ExitStatus::Code(42), "42"),
        (Some("255"), recorded, "255"),
        (Some("%!u(uint32=137)"), ExitStatus::Code(137), "%!u(uint32=137)"),
        (Some("%!u(uint32=255)"), recorded, "%!u(uint32=255)"),
        (Some(""), unwatched, "255"),
        (None, unwatched, "255"),
        (Some("x"), unknown(UnknownReason::UnreadableRecord), "x"),
    ];
    let scratch = Scratch::new();
    let mut gone = Command::new("true").spawn().unwrap();
    let pid = gone.id().unwrap();
    gone.wait().await.unwrap();
    let left: Vec<_> = cases
        .iter()
        .map(|(content, _, _)| {
            let left = Left::by_the_seed(&scratch, "seed-early");
            fs::write(left.init().join("pid"), pid.to_string()).unwrap();
            if let Some(content) = content {
                fs::write(left.init().join("exitStatus"), content).unwrap();
            }
            left
        })
        .collect();
    // Twice: what was found out is written down, and found again.
    for _ in 0..2 {
        let supervisor = scratch.open().await;
        for (left, (content, expected, after)) in left.iter().zip(cases) {
            let container = left.taken_up(&supervisor);
            assert_eq!(status(&container).await, expected, "{content:?}");
            assert_eq!(container.info().exit_status, Some(expected.as_number()), "{content:?}");
            let file = fs::read_to_string(left.init().join("exitStatus")).unwrap();
            assert_eq!(file, after, "{content:?}");
        }
        soon("the shutdown", supervisor.shutdown()).await;
    }
    let supervisor = scratch.open().await;
    // Told once each, of which the journals know.
    let mut events = supervisor.events_since(Cursor::BEGINNING);
    for container in supervisor.list() {
        soon("the delete", container.delete()).await.unwrap();
    }
    let mut left = cases.len();
    let told = events_until(&mut events, |event| {
        left -= usize::from(event.kind == EventKind::Deleted);
        left == 0
    });
    let told: Vec<_> = told.await.iter().map(in_words).collect();
    let exits = told.iter().filter(|words| words.starts_with("init exited")).count();
    assert_eq!(exits, cases.len(), "{told:?}");
    scratch.close(supervisor).await;
}

#[tokio::test]
async fn the_command_line_shows_them_and_255_for_what_nobody_knows() {
    let mut holdfast = Holdfast::without_daemon();
    let gone = Left::by_the_seed(&holdfast.scratch, "seed-early");
    fs::write(gone.init().join("pid"), i32::MAX.to_string()).unwrap();
    let ended = Left::by_the_seed(&holdfast.scratch, "seed-early");
    fs::write(ended.init().join("pid"), "1").unwrap();
    fs::write(ended.init().join("exitStatus"), "%!u(uint32=137)").unwrap();
    holdfast.start_daemon().await;
    let id = gone.id.as_str();
    assert_eq!(holdfast.inspect(id).await["exitStatus"], 255);
    let text = "unknown: exited while shim and daemon were dead\n";
    assert_eq!(holdfast.ok(&["wait", id]).await, text);
    assert_eq!(holdfast.inspect(ended.id.as_str()).await["exitStatus"], 137);
    assert_eq!(holdfast.ok(&["wait", ended.id.as_str()]).await, "137\n");
    holdfast.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_of_the_seeds_cannot_be_taken_up_is_named_and_all_else_is() {
    let scratch = Scratch::new();
    let never = Left::by_the_seed(&scratch, "seed-early");
    let bad_pid = Left::by_the_seed(&scratch, "seed-early");
    fs::write(bad_pid.init().join("pid"), "12x").unwrap();
    let no_runtime = Left::by_the_seed(&scratch, "seed-early");
    edit_json(&no_runtime.dir.join("state.json"), |state| state["runtime"] = json!("no-runtime"));
    let good = Left::by_the_seed(&scratch, "seed-early");
    fs::write(good.init().join("exitStatus"), "3").unwrap();
    fs::write(good.init().join("pid"), "1").unwrap();
    let supervisor = scratch.open().await;
    let report = supervisor.restore_report();
    for (left, reason) in [
        (&never, "never started"),
        (&bad_pid, "process pid is invalid: \"12x\""),
        (&no_runtime, "no-runtime: not installed on system"),
    ] {
        let problem = report.problems.iter().find(|problem| problem.reason.contains(reason));
        let path = &problem.unwrap_or_else(|| panic!("{reason} is not told of")).path;
        // What is damaged is set aside; what is only not to be had now stays where it is.
        let kept = if path.starts_with(scratch.root().join(".broken")) {
            path.join(left.id.as_str())
        } else {
            left.dir.clone()
        };
        assert!(kept.join("state.json").exists(), "{reason}: {}", kept.display());
    }
    assert_eq!((report.containers, report.problems.len()), (1, 3));
    assert_eq!(status(&supervisor.get(&good.id).unwrap()).await, ExitStatus::Code(3));
    soon("the shutdown", supervisor.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_of_a_record_survive_its_rewriting() {
    let scratch = Scratch::new();
    // The record is written before the start, and again with the start time.
    edit_json(&scratch.bundle().join("config.json"), |config| {
        config["process"]["ofALaterYear"] = json!({ "deep": [1, "x"] });
    });
    let supervisor = scratch.open().await;
    let container = supervisor.run(scratch.options(["sleep", "100000"])).await.unwrap();
    let path = scratch.root().join(container.id().as_str()).join("init/process.json");
    let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert_eq!(record["ofALaterYear"], json!({ "deep": [1, "x"] }));
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    assert_eq!(record["startTime"], process.identity().split_once('@').unwrap().1);
    process.signal(Signal::SIGKILL);
    assert_eq!(status(&container).await, ExitStatus::Signal(SIGKILL));
    scratch.close(supervisor).await;
}

#[test]
fn every_test_that_the_table_of_the_seed_names_is_there() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(workspace.join("docs/dev/seed.md")).unwrap();
    let mut named = 0;
    for (file, test) in table.split('`').filter_map(|word| word.split_once(".rs::")) {
        let folder = if file.contains('/') { "" } else { "tests/tests" };
        let source = workspace.join(folder).join(format!("{file}.rs"));
        let source = fs::read_to_string(&source).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{file}.rs has no test {test}");
        named += 1;
    }
    assert!(named > 50, "only {named} tests were found in it");
}
