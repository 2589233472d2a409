//! What is left when no pod is: a process, a mount, a cgroup, a directory, a FIFO, a socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use holdfast_ttrpc::place;

use super::bed::Bed;
use crate::processes;

/// How long what was begun may take to end. A front waits for a minute for a container that was to come
/// when containerd was killed, and ends half a minute later.
const PATIENCE: Duration = Duration::from_secs(120);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long nobody may have anything left: a process that starts another is seen in between as well.
const QUIET: usize = 3;

/// What is left once nothing changes any more.
pub(crate) fn after_a_while(bed: &Bed) -> Vec<String> {
    let end = Instant::now() + PATIENCE;
    let mut quiet = 0;
    loop {
        let left = left(bed);
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        if quiet == QUIET || Instant::now() > end {
            return left;
        }
        thread::sleep(PAUSE);
    }
}

fn left(bed: &Bed) -> Vec<String> {
    let containerd = bed.containerd().map(|process| process.pid);
    let supervisors = bed.supervisors();
    let ready = supervisors.iter().flat_map(|one| processes::companions(one.pid));
    let mut expected: Vec<i32> = ready.map(|process| process.pid).chain(containerd).collect();
    // A second one is one too many.
    expected.extend(supervisors.first().map(|process| process.pid));
    let mut left: Vec<String> = processes::mentioning(&bed.dir)
        .iter()
        .filter(|process| !expected.contains(&process.pid))
        .map(ToString::to_string)
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    left.extend(points.filter(|point| Path::new(point).starts_with(&bed.dir)).map(str::to_owned));
    let state = bed.dir.join("state/io.containerd.runtime.v2.task").join(&bed.namespace);
    let mut paths = entries(&state);
    // containerd hides a bundle before it removes it, and never looks at one again that it was killed over.
    paths.retain(|path| path.file_name().is_none_or(|name| name.as_encoded_bytes()[0] != b'.'));
    paths.extend(cgroups(&bed.namespace));
    paths.extend(bed.groups().iter().map(|group| bed.front_socket(group)).filter(|it| it.exists()));
    for directory in entries(&bed.holdfast()) {
        paths.extend(of_supervisor(&directory, &bed.namespace));
    }
    left.extend(paths.into_iter().map(|path| path.display().to_string()));
    left
}

/// What a supervisor has of containers: it keeps these directories, but not what is in them.
fn of_supervisor(directory: &Path, namespace: &str) -> Vec<PathBuf> {
    let mut left = entries(&place::cleanups(directory));
    for kind in ["execs", "logs"] {
        left.extend(entries(&directory.join(kind).join(namespace)));
    }
    let root = place::root(directory, namespace);
    // Hidden ones are the library's own, but for those of containers that are being removed.
    left.extend(entries(&root).into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        !name.starts_with('.') || name.starts_with(".gone-")
    }));
    left.extend(entries(&root.join(".runtime")).iter().flat_map(|state| entries(state)));
    left
}

/// How many files there are of groups whose shim was killed under another supervisor than the one that
/// had started it: the next supervisor removes them.
pub(crate) fn files_of_groups(bed: &Bed) -> usize {
    let directories = entries(&bed.holdfast());
    let groups = directories.iter().map(|dir| place::root(dir, &bed.namespace).join(".groups"));
    groups.map(|groups| entries(&groups).len()).sum()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The cgroups of containers, whose ids all begin with the namespace.
fn cgroups(prefix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut ahead = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = ahead.pop() {
        for path in entries(&dir).into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(prefix) {
                found.push(path.clone());
            }
            ahead.push(path);
        }
    }
    found
}
