//! Processes of the host, and those that enter the container.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use holdfast_sys::{PidFd, probe};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::report::Report;

/// Stays until it is killed, or for as long as an attack lasts.
pub(crate) fn stay() -> ExitCode {
    std::thread::sleep(super::LIMIT);
    ExitCode::SUCCESS
}

/// `processes PID…`
pub(crate) fn foreign(args: &[&str], report: &mut Report) -> io::Result<()> {
    for pid in args {
        let number: i32 = super::parsed(pid)?;
        let process = Pid::from_raw(number);
        for file in ["mem", "environ", "maps", "cmdline", "stack"] {
            let open = File::open(format!("/proc/{pid}/{file}")).and_then(|mut file| {
                let mut byte = [0];
                file.read(&mut byte)
            });
            report.must_fail(format!("read {file} of {pid}"), open);
        }
        for dir in ["root", "cwd", "fd", "ns", "task"] {
            let list = fs::read_dir(format!("/proc/{pid}/{dir}"));
            report.must_fail(format!("list {dir} of {pid}"), list.map(drop));
        }
        let adjust = File::options().write(true).open(format!("/proc/{pid}/oom_score_adj"));
        report.must_fail(format!("open oom_score_adj of {pid}"), adjust);
        let mut byte = [0_u8];
        let remote = [RemoteIoVec { base: 0x40_0000, len: 1 }];
        let done = process_vm_readv(process, &mut [IoSliceMut::new(&mut byte)], &remote);
        report.must_fail(format!("read the memory of {pid}"), done);
        report.must_fail(format!("change a limit of {pid}"), probe::limit_of(number));
        let handle = report.must_fail(format!("open {pid} as a pidfd"), PidFd::open(number));
        if let Some(handle) = handle {
            let copy = handle.copy_fd(0);
            report.must_fail(format!("copy a descriptor of {pid}"), copy);
        }
        let traced = ptrace::seize(process, Options::empty());
        report.must_fail(format!("trace {pid}"), traced);
        report.must_fail(format!("stop {pid}"), kill(process, Signal::SIGSTOP));
        report.must_fail(format!("kill {pid}"), kill(process, Signal::SIGKILL));
    }
    // Its parent is outside, and must not be named.
    let stat = fs::read_to_string("/proc/1/stat").unwrap_or_default();
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
    if std::process::id() == 1 && parent != Some("0") {
        report.broke(format!("its parent is {parent:?}"));
    }
    Ok(())
}

/// The processes that there are, without this one.
fn others() -> Vec<i32> {
    let own = std::process::id().cast_signed();
    let all = holdfast_sys::proc::all().unwrap_or_default();
    all.into_iter().filter(|pid| *pid != own).collect()
}

fn file_of(path: impl AsRef<std::path::Path>) -> Option<(u64, u64)> {
    fs::metadata(path).map(|it| (it.st_dev(), it.st_ino())).ok()
}

/// Programs of the container's own root file system.
fn own_programs() -> Vec<(u64, u64)> {
    let own = ["/proc/self/exe", "/bin/busybox", "/bin/sh", "/bin/hostile"];
    own.into_iter().filter_map(file_of).collect()
}

fn until(milliseconds: &str) -> io::Result<Instant> {
    Ok(Instant::now() + Duration::from_millis(super::parsed(milliseconds)?))
}

/// `executables MILLISECONDS [PID…]`: with numbers, the programs of those processes only.
pub(crate) fn executables(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [milliseconds, pids @ ..] = args else { return Err(io::Error::other("how long")) };
    let pids = pids.iter().map(|pid| super::parsed(pid)).collect::<io::Result<Vec<i32>>>()?;
    let (end, own) = (until(milliseconds)?, own_programs());
    let mut seen: HashSet<(u64, u64)> = own.into_iter().collect();
    let mut found: Vec<(File, String)> = Vec::new();
    let mut attempts: u64 = 0;
    println!("begins");
    while Instant::now() < end {
        for pid in if pids.is_empty() { others() } else { pids.clone() } {
            let path = format!("/proc/{pid}/exe");
            let handle = File::options().read(true).custom_flags(libc::O_PATH).open(&path);
            let Ok(handle) = handle else { continue };
            let Ok(it) = handle.metadata() else { continue };
            if seen.insert((it.st_dev(), it.st_ino())) {
                let name = fs::read_link(&path).unwrap_or_default();
                found.push((handle, name.display().to_string()));
            }
        }
        // While it runs it is busy; once it does something else it may be written.
        for (handle, name) in &found {
            attempts += 1;
            let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
            if File::options().write(true).open(path).is_ok() {
                report.broke(format!("{name} can be written"));
                return Ok(());
            }
        }
    }
    let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
    report.saw(format!("foreign programs: {names:?}; tried to write {attempts} times"));
    Ok(())
}

/// `intruder MILLISECONDS`: attacks each process that appears, for so long and until there was one.
pub(crate) fn intruder(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [milliseconds] = args else { return Err(io::Error::other("how long")) };
    let (end, own) = (until(milliseconds)?, own_programs());
    let known: HashSet<i32> = others().into_iter().collect();
    let (mut met, mut traced, mut refused) = (HashSet::new(), HashSet::new(), 0_u64);
    println!("begins");
    while Instant::now() < end || met.is_empty() {
        for pid in others().into_iter().filter(|pid| !known.contains(pid)) {
            met.insert(pid);
            let process = Pid::from_raw(pid);
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                take(&entry.path(), pid, report);
            }
            for dir in ["cwd", "root"] {
                take_directory(&format!("/proc/{pid}/{dir}"), pid, report);
            }
            if traced.contains(&pid) {
                continue;
            }
            if ptrace::seize(process, Options::empty()).is_err() {
                refused += 1;
                continue;
            }
            traced.insert(pid);
            // Stopped, it does not become another program between the question and the answer.
            if ptrace::interrupt(process).is_ok() && waitpid(process, None).is_ok() {
                let program = file_of(format!("/proc/{pid}/exe"));
                if program.is_some_and(|program| !own.contains(&program)) {
                    let name = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                    report.broke(format!("{pid} is traced while it runs {}", name.display()));
                }
                let _ = ptrace::detach(process, None);
            }
        }
    }
    report.saw(format!(
        "met {} processes, traced {} as what they have become, refused {refused} times",
        met.len(),
        traced.len()
    ));
    Ok(())
}

/// A descriptor of another process: pipes and devices are what a container gets.
fn take(path: &std::path::Path, pid: i32, report: &mut Report) {
    let Ok(what) = fs::read_link(path) else { return };
    let handle = File::options().read(true).custom_flags(libc::O_PATH).open(path);
    let Ok(handle) = handle else { return };
    let Ok(metadata) = handle.metadata() else { return };
    if metadata.is_dir() || metadata.is_file() {
        report.broke(format!("{pid} gave {}", what.display()));
    }
}

/// A directory of another process that is not in this root.
fn take_directory(path: &str, pid: i32, report: &mut Report) {
    let handle = File::options().read(true).custom_flags(libc::O_PATH).open(path);
    let Ok(handle) = handle.map(OwnedFd::from) else { return };
    let found = file_of(format!("/proc/self/fd/{}", handle.as_raw_fd()));
    if found.is_some() && found != file_of("/") {
        report.broke(format!("{path} of {pid} is another directory"));
    }
}

/// `sockets NAME PORT`
pub(crate) fn sockets(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [name, port] = args else { return Err(io::Error::other("a name and a port")) };
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
    report.must_fail("connect to the abstract socket", UnixStream::connect_addr(&address));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, super::parsed(port)?));
    report.must_fail("connect to the port", TcpStream::connect(address));
    Ok(())
}

/// `limits PID`
pub(crate) fn limits(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [pid] = args else { return Err(io::Error::other("the number of a process")) };
    let kinds = [
        ("nofile", Resource::RLIMIT_NOFILE),
        ("nproc", Resource::RLIMIT_NPROC),
        ("memlock", Resource::RLIMIT_MEMLOCK),
        ("core", Resource::RLIMIT_CORE),
        ("msgqueue", Resource::RLIMIT_MSGQUEUE),
        ("rtprio", Resource::RLIMIT_RTPRIO),
        ("nice", Resource::RLIMIT_NICE),
        ("sigpending", Resource::RLIMIT_SIGPENDING),
    ];
    for (name, kind) in kinds {
        let (soft, hard) = getrlimit(kind)?;
        if hard == nix::sys::resource::rlim_t::MAX {
            report.saw(format!("{name} is unlimited"));
            continue;
        }
        report.must_fail(format!("raise {name}"), setrlimit(kind, soft, hard + 1));
    }
    report.must_fail("change a limit of the host's process", probe::limit_of(super::parsed(pid)?));
    for process in ["self", "1", pid] {
        let path = format!("/proc/{process}/oom_score_adj");
        let now = fs::read_to_string(&path).unwrap_or_else(|_| "0".to_owned());
        let lower = now.trim().parse::<i32>().unwrap_or(0) - 1;
        let done = fs::write(&path, lower.max(-1000).to_string());
        report.must_fail(format!("lower {path}"), done);
        report.must_fail(format!("write -1000 to {path}"), fs::write(&path, "-1000"));
    }
    Ok(())
}
