//! Keys, namespaces and kernel interfaces.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::process::{Command, ExitCode};

use holdfast_sys::probe;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};

use super::report::Report;

/// The most keys of `/proc/keys` that are tried.
const MOST_KEYS: usize = 2000;

/// `keys NAME`: the host has a key of this name in root's user keyring.
pub(crate) fn keys(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [name] = args else { return Err(io::Error::other("the name of a key")) };
    let name = CString::new(*name)?;
    let rings = [
        ("@s", probe::SESSION_KEYRING),
        ("@u", probe::USER_KEYRING),
        ("@us", probe::USER_SESSION_KEYRING),
    ];
    let (session, user) = (probe::SESSION_KEYRING, probe::USER_KEYRING);
    if let Some(key) = report.may_fail("request the key", probe::request_key(&name)) {
        read(key, report);
    }
    // A session keyring that is the host's must be left as it was found.
    let was_linked = probe::search_key(session, &name).is_ok();
    for pass in ["", "after linking, "] {
        for (what, ring) in rings {
            let found = probe::search_key(ring, &name);
            if let Some(key) = report.may_fail(format!("{pass}find it in {what}"), found) {
                read(key, report);
                let changed = probe::add_key(&name, b"changed", ring);
                report.must_fail(format!("{pass}change it in {what}"), changed);
            }
        }
        // What is possessed may be read: so it is linked to what one possesses.
        report.may_fail("link @u to @s", probe::link_key(user, session));
    }
    if !was_linked {
        let _ = probe::unlink_key(user, session);
    }
    // By number, those that are shown.
    let shown = fs::read_to_string("/proc/keys").unwrap_or_default();
    let numbers = shown.lines().filter(|line| line.contains(&*name.to_string_lossy()));
    for number in numbers.take(MOST_KEYS) {
        report.broke("/proc/keys shows it");
        let number = number.split(' ').next().and_then(|hex| i32::from_str_radix(hex, 16).ok());
        number.into_iter().for_each(|key| read(key, report));
    }
    report.saw(format!("/proc/keys has {} lines", shown.lines().count()));
    Ok(())
}

fn read(key: i32, report: &mut Report) {
    report.must_fail(format!("read key {key}"), probe::read_key(key));
}

const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("mount", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("network", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("user", CloneFlags::CLONE_NEWUSER),
];

/// `namespaces`.
pub(crate) fn namespaces(_: &[&str], report: &mut Report) -> io::Result<()> {
    // The time namespace, which nix lacks.
    let time = CloneFlags::from_bits_retain(0x80);
    let all = NAMESPACES.into_iter().take(6).chain([("time", time)]);
    for (kind, flag) in all {
        report.must_fail(format!("unshare {kind}"), unshare(flag));
    }
    for (kind, flag) in NAMESPACES {
        let flags = flag.bits();
        report.must_fail(format!("clone {kind}"), probe::clone_with(flags));
        report.must_fail(format!("clone with user and {kind}"), {
            probe::clone_with(flags | libc::CLONE_NEWUSER)
        });
        report.must_fail(format!("clone3 {kind}"), probe::clone3_with(flags));
        report.must_fail(format!("clone3 with user and {kind}"), {
            probe::clone3_with(flags | libc::CLONE_NEWUSER)
        });
    }
    // Joining its own is no gain: but whoever may, may join another's.
    for (kind, file) in [("mount", "mnt"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        let namespace = File::open(format!("/proc/1/ns/{file}"));
        if let Some(namespace) = report.may_fail(format!("open the {kind} namespace"), namespace) {
            let joined = setns(namespace, CloneFlags::empty());
            report.must_fail(format!("join the {kind} namespace"), joined);
        }
    }
    for what in ["unshare-32-bit", "unshare-x32"] {
        by_other_interface(what, report);
    }
    // Last: with it everything else is another question.
    report.must_fail("unshare user", unshare(CloneFlags::CLONE_NEWUSER));
    Ok(())
}

/// Does by the system calls of other programs than this what `what` names, and succeeds if that does.
pub(crate) fn other_interface(what: &str) -> ExitCode {
    #[cfg(target_arch = "x86_64")]
    {
        // The numbers of 32-bit programs.
        const UNSHARE: u32 = 310;
        const ADD_KEY: u32 = 286;
        let flag = libc::CLONE_NEWUSER;
        let (alg, vsock) = (libc::AF_ALG.cast_unsigned(), libc::AF_VSOCK.cast_unsigned());
        let done = match what {
            "unshare-x32" => probe::call_as_x32(libc::SYS_unshare, flag.into()),
            "unshare-32-bit" => {
                probe::call_as_32_bit(UNSHARE, [flag.cast_unsigned(), 0, 0]).map(drop)
            }
            // Its arguments are bad: who is let through is told so.
            "add-key-32-bit" => match probe::call_as_32_bit(ADD_KEY, [0, 0, 0]) {
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
                other => other.map(drop),
            },
            "alg-32-bit" => probe::socket_as_32_bit(alg, false).map(drop),
            "vsock-32-bit" => probe::socket_as_32_bit(vsock, false).map(drop),
            "alg-socketcall" => probe::socket_as_32_bit(alg, true).map(drop),
            "vsock-socketcall" => probe::socket_as_32_bit(vsock, true).map(drop),
            other => Err(io::Error::other(other.to_owned())),
        };
        if done.is_ok() {
            return ExitCode::SUCCESS;
        }
    }
    let _ = what;
    ExitCode::FAILURE
}

/// Whether that succeeds. A kernel that has no such programs ends who tries.
fn by_other_interface(what: &str, report: &mut Report) {
    let status = Command::new("/proc/self/exe").args(["other-interface", what]).status();
    let done = status.and_then(|status| {
        if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
    });
    report.must_fail(what, done);
}

/// `interfaces`.
pub(crate) fn interfaces(_: &[&str], report: &mut Report) -> io::Result<()> {
    report.must_fail("bpf", probe::bpf_map());
    report.must_fail("perf_event_open", probe::perf_event());
    report.must_fail("io_uring_setup", probe::io_uring());
    report.must_fail("userfaultfd", probe::user_faults());
    report.must_fail("fsopen", probe::file_system());
    report.must_fail("open_tree", probe::mount_clone());
    report.must_fail("a socket of the kernel's cryptography", probe::socket(libc::AF_ALG));
    report.must_fail("a socket to the machine below", probe::socket(libc::AF_VSOCK));
    for what in
        ["add-key-32-bit", "alg-32-bit", "vsock-32-bit", "alg-socketcall", "vsock-socketcall"]
    {
        by_other_interface(what, report);
    }
    for (name, error) in probe::administration() {
        let refused = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::EPERM | Errno::ENOSYS | Errno::EACCES)
        );
        if refused {
            report.saw(format!("{name}: {error}"));
        } else {
            report.broke(format!("{name}: {error}"));
        }
    }
    Ok(())
}

/// `messages`.
pub(crate) fn messages(_: &[&str], report: &mut Report) -> io::Result<()> {
    report.must_fail("syslog", probe::kernel_messages());
    report.must_fail("open /dev/kmsg", File::open("/dev/kmsg"));
    Ok(())
}
