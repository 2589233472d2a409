//! The descendants of a process, as the kernel has them: children, their children, and so on. A
//! process whose parent has ended belongs to another parent, and is none.

use std::collections::HashSet;
use std::fs;
use std::io;

use holdfast_sys::PidFd;
use holdfast_sys::proc::Stat;
use nix::libc::{SIGKILL, SIGSTOP};

/// More passes would only follow a process that forks faster than we can stop its children.
const MOST_PASSES: usize = 16;

/// Returns the pids of a process and of its descendants, parents before their children.
pub(crate) fn of(pid: i32) -> Vec<i32> {
    let (mut all, mut known) = (vec![pid], HashSet::from([pid]));
    let mut next = 0;
    while let Some(&parent) = all.get(next) {
        next += 1;
        for child in children(parent) {
            if known.insert(child) {
                all.push(child);
            }
        }
    }
    all
}

/// Sends SIGKILL to a process and to its descendants. They are stopped first: a process that runs
/// could have more children meanwhile, and the children of a killed one would no longer be found.
pub(crate) fn kill(pid: i32, process: &PidFd) -> io::Result<()> {
    process.send_signal(SIGSTOP)?;
    let (mut held, mut known) = (Vec::new(), HashSet::from([pid]));
    for _ in 0..MOST_PASSES {
        let new: Vec<_> = of(pid).into_iter().filter(|child| known.insert(*child)).collect();
        if new.is_empty() {
            break;
        }
        for child in new {
            let Ok(pidfd) = PidFd::open(child) else { continue };
            // Read after the process was opened: it is this process that is a descendant.
            if Stat::read(child).is_ok_and(|stat| known.contains(&stat.ppid)) {
                // It may end at any moment, which is what is wanted.
                let _ = pidfd.send_signal(SIGSTOP);
                held.push(pidfd);
            }
        }
    }
    for descendant in &held {
        let _ = descendant.send_signal(SIGKILL);
    }
    process.send_signal(SIGKILL)
}

/// Returns the children of all threads of a process; none if it has ended.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn a_process_and_all_that_it_has_begun_are_killed() {
        let script = "(sh -c 'sleep 1000 & echo; wait') & sleep 1000 & wait";
        let mut shell =
            Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let pid = shell.id().cast_signed();
        // The grandchild is there.
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let all = loop {
            let all = of(pid);
            if all.len() >= 4 {
                break all;
            }
            std::thread::yield_now();
        };
        assert_eq!(all[0], pid);
        let held: Vec<_> = all.iter().map(|pid| PidFd::open(*pid).unwrap()).collect();
        kill(pid, &held[0]).unwrap();
        assert_eq!(shell.wait().unwrap().signal(), Some(SIGKILL));
        for process in &held[1..] {
            assert!(process.ends_by(Instant::now() + Duration::from_secs(60)).unwrap());
        }
        assert_eq!(of(pid), [pid], "a process that has ended has none");
    }
}
