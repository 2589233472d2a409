//! Whatever becomes of the files of one container: the others are taken up again, and of that one
//! nothing is claimed that is not so.
//!
//! Each case damages one entry, opens the supervisor, looks, and puts everything back.

// All of this file is a test, its helpers too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Child;

use holdfast_supervisor::{
    Container, ContainerId, ContainerOptions, Cursor, Error, Event, EventKind, ExecOptions,
    ExitStatus, OrphanPolicy, Problem, Status, Supervisor,
};
use holdfast_tests::processes::shim_of;
use holdfast_tests::{Proc, Scratch, binary, edit_json, journal, soon, status};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

/// How much memory all of a test may take: far below the file of 1 GiB.
const MEMORY_KIB: u64 = 128 * 1024;
const GIB: u64 = 1 << 30;

/// A container of the fake runtime, which runs these arguments on the host.
fn fake(scratch: &Scratch, id: &str, args: &[&str]) -> ContainerOptions {
    let runtime = binary("fake-runtime");
    let options = scratch.options(args.iter().copied()).id(id.parse().expect("an id"));
    options.runtime(runtime.to_str().expect("a path in UTF-8"))
}

/// Somebody else's process.
struct Bystander(Child);

impl Bystander {
    fn new() -> Self {
        let mut command = std::process::Command::new("sleep");
        Self(command.arg("100000").spawn().expect("start a bystander"))
    }

    fn assert_spared(&mut self, case: &str) {
        assert!(self.0.try_wait().expect("look").is_none(), "{case}: a bystander was killed");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What an entry is replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Fifo,
    LinkToFile,
    LinkToNothing,
    LinkToItself,
    Socket,
    Huge,
    Unreadable,
    Gone,
}

const KINDS: [Kind; 9] = [
    Kind::Directory,
    Kind::Fifo,
    Kind::LinkToFile,
    Kind::LinkToNothing,
    Kind::LinkToItself,
    Kind::Socket,
    Kind::Huge,
    Kind::Unreadable,
    Kind::Gone,
];

impl Kind {
    fn put(self, path: &Path) {
        match self {
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::Fifo => nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
            Self::LinkToFile => symlink("/etc/passwd", path).unwrap(),
            Self::LinkToNothing => symlink("/no/such/file", path).unwrap(),
            Self::LinkToItself => symlink(path.file_name().unwrap(), path).unwrap(),
            Self::Socket => drop(UnixListener::bind(path).unwrap()),
            Self::Huge => File::create(path).unwrap().set_len(GIB).unwrap(),
            Self::Unreadable => {
                fs::write(path, "?").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
            }
            Self::Gone => {}
        }
    }

    /// Whether what was put there still is there. A FIFO that was gone may be made anew.
    fn is_at(self, path: &Path) -> bool {
        let Ok(metadata) = path.symlink_metadata() else { return self == Self::Gone };
        let kind = metadata.file_type();
        match self {
            Self::Directory => kind.is_dir(),
            Self::Fifo => kind.is_fifo(),
            Self::LinkToFile | Self::LinkToNothing | Self::LinkToItself => kind.is_symlink(),
            Self::Socket => kind.is_socket(),
            Self::Huge => metadata.len() >= GIB,
            Self::Unreadable => metadata.permissions().mode() & 0o777 == 0,
            Self::Gone => true,
        }
    }
}

/// A state root with containers, none of which has a supervisor at the moment.
struct Field {
    scratch: Scratch,
    bystander: Bystander,
    /// Each live process, `live/init` and `live/more`, and its number.
    live: BTreeMap<&'static str, i32>,
    opened: u32,
}

/// What is expected of an exited container.
const ENDED: ExitStatus = ExitStatus::Code(1);
const OTHER_ENDED: ExitStatus = ExitStatus::Code(7);

impl Field {
    async fn new() -> Self {
        let scratch = Scratch::new();
        let supervisor = scratch.open().await;
        let sleep = ["sleep", "100000"];
        let mut live = BTreeMap::new();
        for (id, name) in [("live", "live/init"), ("other", "other/init")] {
            let container = supervisor.run(fake(&scratch, id, &sleep)).await.unwrap();
            live.insert(name, container.info().pid.unwrap());
            if id == "live" {
                let exec = ExecOptions::new(sleep).id("more".parse().unwrap());
                container.exec(exec).await.unwrap();
                live.insert("live/more", container.info().execs[0].pid.unwrap());
            }
        }
        for (id, script, expected) in
            [("ended", "echo out; exit 1", ENDED), ("otherended", "exit 7", OTHER_ENDED)]
        {
            let options = fake(&scratch, id, &["sh", "-c", script]);
            let container = supervisor.run(options).await.unwrap();
            assert_eq!(status(&container).await, expected);
            shim_gone(&scratch, id).await;
        }
        soon("the shutdown", supervisor.shutdown()).await;
        Self { scratch, bystander: Bystander::new(), live, opened: 0 }
    }

    fn root(&self) -> PathBuf {
        self.scratch.root().canonicalize().unwrap()
    }

    /// Damages `entry` of `container`, opens the supervisor, looks, and puts everything back.
    /// `intact` says whether the damaged entry is what it was made, or that with more at its end.
    async fn case(
        &mut self,
        container: &str,
        entry: &str,
        what: &str,
        damage: impl Fn(&Path),
        intact: impl Fn(&Path) -> bool,
    ) {
        let case = format!("{container}/{entry} {what}");
        let dir = self.root().join(container);
        let runtime = self.root().join(".runtime");
        let (before, runtime_before) = (contents(&dir), contents(&runtime));
        let kept = self.scratch.path().join("kept");
        // Moved, not copied: the shim goes on with the very same FIFOs.
        let was_there = fs::rename(dir.join(entry), &kept).is_ok();
        damage(&dir.join(entry));

        let supervisor = soon(&case, self.scratch.builder().open()).await;
        let supervisor = supervisor.unwrap_or_else(|error| panic!("{case}: {error}"));
        self.opened += 1;
        self.look(&supervisor, container, &case).await;
        soon(&case, supervisor.shutdown()).await;
        self.bystander.assert_spared(&case);
        for (name, pid) in &self.live {
            assert!(Proc::of(*pid).is_some_and(|p| p.lives()), "{case}: {name} was killed");
        }

        self.put_back(container, &case);
        assert!(dir.is_dir(), "{case}: the directory is gone");
        assert!(intact(&dir.join(entry)), "{case}: it was changed");
        remove(&dir.join(entry));
        if was_there {
            fs::rename(&kept, dir.join(entry)).unwrap();
        }
        rewrite(&dir, &before);
        rewrite(&runtime, &runtime_before);
    }

    /// As [`case`](Self::case), with other content in a file.
    async fn case_of(&mut self, container: &str, entry: &str, what: &str, content: &[u8]) {
        let put = |path: &Path| fs::write(path, content).unwrap();
        let intact = |path: &Path| fs::read(path).unwrap().starts_with(content);
        self.case(container, entry, what, put, intact).await;
    }

    /// Every process but those of the damaged container is as it was; of those nothing is wrong.
    async fn look(&self, supervisor: &Supervisor, damaged: &str, case: &str) {
        let problems = &supervisor.restore_report().problems;
        let told = |path: &str| {
            let (place, aside) = (self.root().join(path), self.root().join(".broken"));
            problems.iter().any(|Problem { path, reason, .. }| {
                !reason.is_empty() && (path.starts_with(&place) || path.starts_with(&aside))
            })
        };
        let expected = BTreeMap::from([
            ("live", None),
            ("other", None),
            ("ended", Some(ENDED)),
            ("otherended", Some(OTHER_ENDED)),
        ]);
        for (name, end) in expected {
            let container = supervisor.get(&name.parse::<ContainerId>().unwrap());
            let Ok(container) = container else {
                assert!(name == damaged && told(name), "{case}: {name} is lost: {problems:?}");
                continue;
            };
            let info = container.info();
            match end {
                None => {
                    assert_eq!(info.status, Status::Running, "{case}: {name}: {info:?}");
                    let pid = self.live[format!("{name}/init").as_str()];
                    let right = info.pid == Some(pid) || (info.pid.is_none() && name == damaged);
                    assert!(right, "{case}: {name} is not process {:?}", info.pid);
                }
                Some(end) => {
                    let status = info.exit.as_ref().map(|exit| exit.status);
                    let unknown = matches!(status, Some(ExitStatus::Unknown(_)));
                    let right = status == Some(end) || (unknown && name == damaged);
                    assert!(right, "{case}: {name}: {status:?}");
                    assert_eq!(info.pid, None, "{case}: {name}");
                }
            }
            if name == "live" {
                match info.execs.as_slice() {
                    [exec] => {
                        assert_eq!(exec.status, Status::Running, "{case}: {exec:?}");
                        let pid = exec.pid.is_none_or(|pid| pid == self.live["live/more"]);
                        assert!(pid, "{case}: the exec is not process {:?}", exec.pid);
                    }
                    _ => assert!(damaged == "live" && told("live/more"), "{case}: no exec"),
                }
            }
            if name == damaged
                && let Ok(mut logs) = container.logs()
            {
                while let Ok(Some(_)) = soon(case, logs.next()).await {}
            }
        }
    }

    /// What was set aside goes back to its place; that it is all there shows when it is compared.
    fn put_back(&self, container: &str, case: &str) {
        let broken = self.root().join(".broken");
        for place in names(&broken) {
            let place = broken.join(place);
            let reason = fs::read_to_string(place.join("reason")).unwrap();
            assert!(reason.trim().len() > 10, "{case}: set aside for no reason");
            for name in names(&place) {
                let from = place.join(&name);
                match name.as_str() {
                    "reason" => {}
                    ".runtime" => {
                        for runtime in names(&from) {
                            let to = self.root().join(".runtime").join(&runtime).join(container);
                            fs::rename(from.join(&runtime).join(container), to).unwrap();
                        }
                    }
                    _ if name == container => {
                        fs::rename(from, self.root().join(container)).unwrap()
                    }
                    // A directory in the place of a file counts as an exec without a record.
                    _ => {
                        let to = self.root().join(container).join(&name);
                        remove(&to);
                        fs::rename(from, to).unwrap();
                    }
                }
            }
        }
        remove(&broken);
    }

    async fn close(self) {
        let supervisor = self.scratch.open().await;
        let report = supervisor.restore_report();
        assert_eq!((report.containers, report.problems.as_slice()), (4, [].as_slice()));
        println!("opened {} times; peak memory {} KiB", self.opened, peak_kib());
        assert!(peak_kib() < MEMORY_KIB, "peak memory: {} KiB", peak_kib());
        self.scratch.close(supervisor).await;
    }
}

/// The shim of a container that has exited ends by itself.
async fn shim_gone(scratch: &Scratch, id: &str) {
    let dir = scratch.root().join(id).join("init");
    let dir = format!("--dir {} ", dir.display());
    holdfast_tests::eventually("the end of a shim", || {
        let shims = holdfast_tests::processes::shims(&scratch.root());
        !shims.iter().any(|shim| shim.command().contains(&dir))
    })
    .await;
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Err(_) => {}
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
    }
}

/// The regular files below a directory, and `None` for everything else.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut all = BTreeMap::new();
    for name in names(dir) {
        let path = dir.join(name);
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_dir() {
            all.extend(contents(&path));
        }
        all.insert(path.clone(), kind.is_file().then(|| fs::read(&path).unwrap()));
    }
    all
}

/// Undoes what was written and made below a directory.
fn rewrite(dir: &Path, before: &BTreeMap<PathBuf, Option<Vec<u8>>>) {
    let now = contents(dir);
    for path in now.keys().filter(|path| !before.contains_key(*path)) {
        remove(path);
    }
    for (path, content) in before {
        assert!(path.symlink_metadata().is_ok(), "{} was destroyed", path.display());
        if let Some(content) = content
            && now.get(path) != Some(&Some(content.clone()))
        {
            // In place: a shim may hold it open.
            fs::write(path, content).unwrap();
        }
    }
}

/// The most memory that this process has had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const FILES: [&str; 11] = [
    "process.json",
    "pid",
    "exit",
    "control",
    "exitStatus",
    "exit.json",
    "output.log",
    "shim-log.json",
    "log.json",
    "stdin",
    "terminal.sock",
];

/// All entries of the containers, whether they are there or not.
fn entries() -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for (container, process) in [("live", "init"), ("live", "more"), ("ended", "init")] {
        all.extend(FILES.map(|file| (container, format!("{process}/{file}"))));
    }
    for container in ["live", "ended"] {
        all.extend(
            [".bundle", "state.json", "init", ".resources.json"]
                .map(|entry| (container, entry.to_owned())),
        );
    }
    all.push(("live", "more".to_owned()));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_is_something_else_or_gone_harms_nobody() {
    let mut field = Field::new().await;
    for (container, entry) in entries() {
        for kind in KINDS {
            let (put, intact) = (|path: &Path| kind.put(path), |path: &Path| kind.is_at(path));
            field.case(container, &entry, &format!("{kind:?}"), put, intact).await;
        }
    }
    field.close().await;
}

impl Field {
    /// As [`case`](Self::case), with damage to the journal, of which no status depends.
    async fn journal_case(&mut self, what: &str, damage: impl Fn(&Path)) {
        let (journal, kept) = (self.root().join(".journal"), self.scratch.path().join("kept"));
        let content: Vec<_> = names(&journal)
            .into_iter()
            .map(|it| (fs::read(journal.join(&it)).unwrap(), it))
            .collect();
        fs::rename(&journal, &kept).unwrap();
        fs::create_dir(&journal).unwrap();
        for (content, name) in &content {
            fs::write(journal.join(name), content).unwrap();
        }
        damage(&journal);
        let supervisor = soon(what, self.scratch.builder().open()).await;
        let supervisor = supervisor.unwrap_or_else(|error| panic!("{what}: {error}"));
        self.opened += 1;
        self.look(&supervisor, "the journal", what).await;
        // Whatever it was, there is one that tells what comes.
        let mut all = supervisor.events_since(Cursor::BEGINNING);
        let exec = ExecOptions::new(["true"]).id("check".parse().unwrap()).auto_remove();
        let live = supervisor.get(&"live".parse().unwrap()).unwrap();
        soon(what, live.exec(exec).await.unwrap().wait()).await.unwrap();
        let is_it = |event: &Event| {
            event.process.as_str() == "check" && matches!(event.kind, EventKind::Exited { .. })
        };
        while !soon(what, all.next()).await.expect(what).is_ok_and(|event| is_it(&event)) {}
        holdfast_tests::eventually(what, || live.process(&"check".parse().unwrap()).is_none())
            .await;
        soon(what, supervisor.shutdown()).await;
        remove(&journal);
        remove(&self.root().join(".broken"));
        fs::rename(&kept, &journal).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_damaged_in_any_way_costs_no_status() {
    let mut field = Field::new().await;
    let segment = journal::segments(&field.root()).pop().unwrap();
    let (name, content) = (segment.file_name().unwrap().to_owned(), fs::read(&segment).unwrap());
    for kind in KINDS {
        let in_its_place = |path: PathBuf| {
            remove(&path);
            kind.put(&path);
        };
        field
            .journal_case(&format!("its segment a {kind:?}"), |it| in_its_place(it.join(&name)))
            .await;
        field.journal_case(&format!("a {kind:?}"), |it| in_its_place(it.to_owned())).await;
        field
            .journal_case(&format!("its room a {kind:?}"), |it| in_its_place(it.join(".next")))
            .await;
    }
    for length in (0..content.len()).step_by(11) {
        let cut = |journal: &Path| fs::write(journal.join(&name), &content[..length]).unwrap();
        field.journal_case(&format!("cut to {length} bytes"), cut).await;
    }
    for place in (0..content.len()).step_by(13) {
        let mut flipped = content.clone();
        flipped[place] ^= 1 << (place % 8);
        let flip = |journal: &Path| fs::write(journal.join(&name), &flipped).unwrap();
        field.journal_case(&format!("with byte {place} flipped"), flip).await;
    }
    field.close().await;
}

/// The regular files that are there.
fn regular(field: &Field) -> Vec<(&'static str, String, Vec<u8>)> {
    let read = |(container, entry): (&'static str, String)| {
        let path = field.root().join(container).join(&entry);
        let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        is_file.then(|| (container, entry, fs::read(path).unwrap()))
    };
    entries().into_iter().filter_map(read).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_cut_short_at_any_length_harms_nobody() {
    let mut field = Field::new().await;
    for (container, entry, content) in regular(&field) {
        for length in 0..content.len() {
            let what = format!("cut to {length} bytes");
            field.case_of(container, &entry, &what, &content[..length]).await;
        }
    }
    field.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_any_byte_flipped_harms_nobody() {
    let mut field = Field::new().await;
    for (container, entry, content) in regular(&field) {
        for place in 0..content.len() {
            // Every bit of the few bytes of a number, one of each byte of a text.
            let bits = if content.len() < 16 { 0..8 } else { place % 8..place % 8 + 1 };
            for bit in bits {
                let mut flipped = content.clone();
                flipped[place] ^= 1 << bit;
                let what = format!("with bit {bit} of byte {place} flipped");
                field.case_of(container, &entry, &what, &flipped).await;
            }
        }
    }
    field.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pid_file_that_names_another_process_does_not_make_it_the_containers() {
    for (journal, shim) in [(true, true), (true, false), (false, true), (false, false)] {
        let case = format!("journal there: {journal}, shim there: {shim}");
        let scratch = Scratch::new();
        let mut bystander = Bystander::new();
        let supervisor = scratch.open().await;
        let options = fake(&scratch, "c", &["sleep", "100000"]).on_orphan(OrphanPolicy::Kill);
        let container = supervisor.run(options).await.unwrap();
        let process = Proc::of(container.info().pid.unwrap()).unwrap();
        let holder = shim_of(&scratch.root(), "c", "init");
        drop(container);
        soon("the shutdown", supervisor.shutdown()).await;
        if !shim {
            holder.signal(Signal::SIGKILL);
            holder.ended().await;
        }
        if !journal {
            journal::forget(&scratch.root(), "c");
        }
        fs::write(scratch.root().join("c/init/pid"), bystander.0.id().to_string()).unwrap();

        let supervisor = scratch.open().await;
        let container = supervisor.get(&"c".parse().unwrap()).unwrap();
        // Where the kernel has handles, the record's own says who it is, whatever else is told.
        let known = journal || supervisor.abilities().process_handles;
        match (known, shim) {
            (true, true) => {
                assert_eq!(container.info().pid, Some(process.pid), "{case}");
                container.signal(9).unwrap();
                assert_eq!(status(&container).await, ExitStatus::Signal(9), "{case}");
            }
            // Its policy kills it, and nobody else.
            (true, false) => assert_eq!(status(&container).await, ExitStatus::Signal(9), "{case}"),
            // Nobody knows its number, but its shim knows it.
            (false, true) => {
                assert_eq!(
                    (container.info().status, container.info().pid),
                    (Status::Running, None)
                );
                assert!(matches!(container.signal(9), Err(Error::WrongState { .. })), "{case}");
                process.signal(Signal::SIGKILL);
                assert_eq!(status(&container).await, ExitStatus::Signal(9), "{case}");
            }
            (false, false) => {
                let status = status(&container).await;
                assert!(matches!(status, ExitStatus::Unknown(_)), "{case}: {status}");
                assert!(process.lives(), "{case}");
            }
        }
        bystander.assert_spared(&case);
        scratch.close(supervisor).await;
        bystander.assert_spared(&case);
    }
}

async fn open_with(scratch: &Scratch) -> (Supervisor, Vec<Problem>) {
    let supervisor = scratch.open().await;
    let problems = supervisor.restore_report().problems.clone();
    (supervisor, problems)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_set_aside_once_nothing_of_it_runs_and_told_until_it_is_removed() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let id: ContainerId = "c".parse().unwrap();
    let container = supervisor.run(fake(&scratch, "c", &["sleep", "100000"])).await.unwrap();
    let process = Proc::of(container.info().pid.unwrap()).unwrap();
    drop(container);
    soon("the shutdown", supervisor.shutdown()).await;
    let root = scratch.root().canonicalize().unwrap();
    let record = root.join("c/init/process.json");
    fs::write(&record, "{\"torn").unwrap();

    // It runs: it is left where it is, and its id is taken.
    let (supervisor, problems) = open_with(&scratch).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].path, root.join("c"));
    let pid = format!("process {}, which may be its init, runs", process.pid);
    assert!(problems[0].reason.contains(&pid), "{}", problems[0].reason);
    let taken = supervisor.run(fake(&scratch, "c", &["true"])).await.unwrap_err();
    assert!(matches!(taken, Error::Exists(_)), "{taken}");
    assert!(process.lives());
    soon("the shutdown", supervisor.shutdown()).await;

    // It has ended: its id is free.
    process.signal(Signal::SIGKILL);
    process.gone().await;
    shim_gone(&scratch, "c").await;
    for _ in 0..3 {
        let (supervisor, problems) = open_with(&scratch).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        let aside = root.join(".broken/c-1");
        assert_eq!(problems[0].path, aside);
        assert!(problems[0].reason.starts_with("set aside: process.json: not a process record"));
        assert_eq!(fs::read_to_string(aside.join("c/init/process.json")).unwrap(), "{\"torn");
        // What was recorded of its end is kept with it.
        assert_eq!(fs::read_to_string(aside.join("c/init/exitStatus")).unwrap(), "137");
        let again = supervisor.run(fake(&scratch, "c", &["sh", "-c", "exit 4"])).await.unwrap();
        assert_eq!(status(&again).await, ExitStatus::Code(4));
        soon("the delete", again.delete()).await.unwrap();
        assert!(supervisor.get(&id).is_err());
        soon("the shutdown", supervisor.shutdown()).await;
    }
    fs::remove_dir_all(root.join(".broken/c-1")).unwrap();
    let (supervisor, problems) = open_with(&scratch).await;
    assert_eq!(problems, []);
    fs::remove_dir(root.join(".broken")).unwrap();
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_newer_build_is_refused_by_its_number_and_left_byte_for_byte() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let live = supervisor.run(fake(&scratch, "live", &["sleep", "100000"])).await.unwrap();
    let exec = ExecOptions::new(["sleep", "100000"]).id("more".parse().unwrap());
    live.exec(exec).await.unwrap();
    let ended = supervisor.run(fake(&scratch, "ended", &["sh", "-c", "exit 5"])).await.unwrap();
    assert_eq!(status(&ended).await, ExitStatus::Code(5));
    shim_gone(&scratch, "ended").await;
    drop((live, ended));
    soon("the shutdown", supervisor.shutdown()).await;
    let root = scratch.root().canonicalize().unwrap();
    let records = ["ended/init", "live/more"].map(|dir| root.join(dir).join("process.json"));
    for record in &records {
        edit_json(record, |record| {
            record["holdfast"]["schema"] = 7.into();
            record["holdfast"]["launch"] = "by-a-way-yet-unknown".into();
        });
    }
    let records_in = |root: &Path| {
        let mut all = contents(root);
        let of_the_supervisor = [".lock", ".journal"].map(|name| root.join(name));
        all.retain(|path, _| !of_the_supervisor.iter().any(|it| path.starts_with(it)));
        all
    };
    let before = records_in(&root);
    for _ in 0..2 {
        let (supervisor, problems) = open_with(&scratch).await;
        let reasons: Vec<_> = problems.iter().map(|problem| &problem.reason).collect();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.contains("schema 7")), "{reasons:?}");
        assert_eq!(supervisor.restore_report().containers, 1);
        soon("the shutdown", supervisor.shutdown()).await;
        assert!(records_in(&root) == before, "a record was changed");
    }
    for record in &records {
        edit_json(record, |record| {
            record["holdfast"]["schema"] = 1.into();
            record["holdfast"]["launch"] = "run".into();
        });
    }
    let supervisor = scratch.open().await;
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_started_container_whose_journal_is_lost_is_not_taken_for_one_that_waits() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for id in ["started", "waits"] {
        let container = supervisor.create(fake(&scratch, id, &["sleep", "100000"])).await.unwrap();
        if id == "started" {
            container.start().await.unwrap();
        }
    }
    soon("the shutdown", supervisor.shutdown()).await;
    for id in ["started", "waits"] {
        journal::forget(&scratch.root(), id);
    }
    let supervisor = scratch.open().await;
    let get = |id: &str| -> Container { supervisor.get(&id.parse().unwrap()).unwrap() };
    holdfast_tests::eventually("the runtime's word", || {
        get("started").info().status == Status::Running
    })
    .await;
    let refused = soon("the delete", get("started").delete()).await.unwrap_err();
    assert!(matches!(refused, Error::WrongState { .. }), "{refused}");
    // Refused until the runtime has said that it was not started, of which nothing tells.
    soon("the start", async {
        while get("waits").start().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    scratch.close(supervisor).await;
}
