//! Devices, paths of the host, descriptors, mounts, and what of `/proc` and `/sys` is the host's.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use holdfast_sys::probe;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, fchmod, makedev, mknod};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, chroot, getgid, getuid, pivot_root};

use super::cgroups;
use super::report::Report;

/// How far up a path is tried: no test's directory is so deep.
const DEPTH: usize = 16;
/// The most settings that are tried.
const MOST_SETTINGS: usize = 5000;

/// `devices b:MAJOR:MINOR…`
pub(crate) fn devices(args: &[&str], report: &mut Report) -> io::Result<()> {
    for device in args {
        let words: Vec<&str> = device.split(':').collect();
        let [kind, major, minor] = words.as_slice() else {
            return Err(io::Error::other(format!("not a device: {device}")));
        };
        let kind = if *kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
        let number = makedev(super::parsed(major)?, super::parsed(minor)?);
        for dir in ["/dev", "/dev/shm", "/tmp"] {
            let path = Path::new(dir).join("attack");
            let made = mknod(&path, kind, Mode::S_IRUSR | Mode::S_IWUSR, number);
            if report.may_fail(format!("make {device} in {dir}"), made).is_none() {
                continue;
            }
            for (how, reads, writes) in [("reading", true, false), ("writing", false, true)] {
                let mut options = File::options();
                options.read(reads).write(writes).custom_flags(libc::O_NONBLOCK);
                report.must_fail(format!("open {device} for {how}"), options.open(&path));
            }
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// `paths PATH`
pub(crate) fn paths(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [path] = args else { return Err(io::Error::other("a path of the host")) };
    let path = path.trim_start_matches('/');
    let mut starts = vec![PathBuf::from("."), PathBuf::from("/")];
    for process in ["self", "1"] {
        starts.extend(["cwd", "root"].map(|it| PathBuf::from(format!("/proc/{process}/{it}"))));
        let fds = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        starts.extend(fds.map(|fd| fd.path()));
    }
    for start in starts {
        let mut at = start.clone();
        for _ in 0..DEPTH {
            let text = fs::read(at.join(path));
            if let Ok(text) = text {
                report.broke(format!("{} has {} bytes", at.join(path).display(), text.len()));
            }
            at.push("..");
        }
        report.saw(format!("upwards from {}", start.display()));
    }
    // Out of a chroot(2) that this has made itself: the working directory stays outside.
    let jail =
        ["/dev/shm/jail", "/tmp/jail"].into_iter().find(|dir| fs::create_dir_all(dir).is_ok());
    if let Some(jail) = jail
        && report.may_fail("chroot", chroot(jail)).is_some()
    {
        (0..DEPTH).for_each(|_| _ = chdir(".."));
        report.must_fail("reach it out of a chroot", fs::read(path));
        let _ = chroot(".");
        report.must_fail("reach it by another chroot", fs::read(Path::new("/").join(path)));
    }
    Ok(())
}

/// `handles PATH`
pub(crate) fn handles(args: &[&str], report: &mut Report) -> io::Result<()> {
    let [path] = args else { return Err(io::Error::other("a path of the host")) };
    for place in ["/", "/dev", "/sys", "/proc", "/etc/hosts"] {
        let Ok(file) = File::open(place) else { continue };
        let root = probe::open_by_number(&file, 2);
        let root = report.must_fail(format!("open number 2 of the file system of {place}"), root);
        let Some(root) = root else { continue };
        let below = format!("/proc/self/fd/{}/{}", root.as_raw_fd(), path.trim_start_matches('/'));
        report.must_fail("read the host's file", fs::read(below));
    }
    Ok(())
}

/// `descriptors`
pub(crate) fn descriptors(_: &[&str], report: &mut Report) -> io::Result<()> {
    let numbers: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    // The directory's own is closed by now.
    for number in numbers.into_iter().filter(|number| *number > 2) {
        if let Ok(what) = fs::read_link(format!("/proc/self/fd/{number}")) {
            report.broke(format!("{number} is {}", what.display()));
        }
    }
    let own = ["/dev", "/dev/pts"].map(|dir| fs::metadata(dir).map(|it| it.st_dev()).ok());
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let standard: [BorrowedFd<'_>; 3] =
        [&stdin as &dyn AsFd, &stdout, &stderr].map(|fd| fd.as_fd());
    for (number, fd) in standard.into_iter().enumerate() {
        let file = File::from(fd.try_clone_to_owned()?);
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let what = fs::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        let what = what.display();
        if kind.is_fifo() {
            report.saw(format!("{number} is {what}"));
        } else if kind.is_char_device() && own.contains(&Some(metadata.st_dev())) {
            report.saw(format!("{number} is the container's {what}"));
        } else {
            // To what it is already: whoever may do that may do anything.
            let mode = Mode::from_bits_truncate(metadata.st_mode() & 0o7777);
            report.must_fail(format!("change the mode of {number}, the host's {what}"), {
                fchmod(&file, mode)
            });
        }
    }
    Ok(())
}

/// `mounts`
pub(crate) fn mounts(_: &[&str], report: &mut Report) -> io::Result<()> {
    let none: Option<&str> = None;
    let at = "/dev/shm";
    let plain = [("tmpfs", "tmpfs"), ("proc", "proc"), ("sysfs", "sysfs"), ("none", "devpts")];
    for (source, kind) in plain {
        let done = mount(Some(source), at, Some(kind), MsFlags::empty(), none);
        report.must_fail(format!("mount {kind}"), done);
    }
    let done = mount(Some("/"), at, none, MsFlags::MS_BIND, none);
    report.must_fail("bind /", done);
    report.must_fail("pivot_root", pivot_root(at, at));
    uncover("", report);
    let (uid, gid) = (getuid(), getgid());
    let made = unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .and_then(|()| {
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
        });
    if report.may_fail("unshare user and mount namespaces", made).is_some() {
        uncover("as root of a user namespace, ", report);
        let done = mount(Some("proc"), at, Some("proc"), MsFlags::empty(), none);
        report.must_fail("as root of a user namespace, mount proc", done);
        let done = mount(Some("sysfs"), at, Some("sysfs"), MsFlags::empty(), none);
        report.must_fail("as root of a user namespace, mount sysfs", done);
    }
    Ok(())
}

/// Makes writable what is mounted read-only, and takes away what covers something.
fn uncover(how: &str, report: &mut Report) {
    let none: Option<&str> = None;
    for (path, kind) in cgroups::mounts() {
        let shown = path.display();
        if is_read_only(&path) {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
            let done = mount(none, &path, none, flags, none);
            report.must_fail(format!("{how}make {shown} ({kind}) writable"), done);
        }
        let is_mask = path.starts_with("/proc") && path != Path::new("/proc")
            || path.starts_with("/sys")
                && !path.starts_with("/sys/fs/cgroup")
                && path != Path::new("/sys");
        if is_mask {
            let done = umount2(&path, MntFlags::MNT_DETACH);
            report.must_fail(format!("{how}unmount {shown}"), done);
        }
    }
}

fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY))
}

/// Files that change the host. They are opened and not written to.
const SETTINGS: [&str; 19] = [
    "/proc/sysrq-trigger",
    "/proc/mtrr",
    "/proc/kcore",
    "/proc/acpi/wakeup",
    "/proc/irq/default_smp_affinity",
    "/proc/bus/pci/00/00.0",
    "/proc/fs/nfsd/threads",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/panic",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/vm/overcommit_memory",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/profiling",
    "/sys/power/state",
    "/sys/module/kernel/parameters/panic",
    "/sys/firmware/efi/vars/new_var",
    "/sys/class/net/lo/mtu",
];

/// Whether it is the container's own `/dev/null`, by which a runtime masks files.
fn is_own_null(file: &File) -> bool {
    let found = |metadata: fs::Metadata| (metadata.st_dev(), metadata.st_ino());
    let null = fs::metadata("/dev/null").ok().filter(|it| it.file_type().is_char_device());
    null.is_some_and(|null| file.metadata().is_ok_and(|it| found(it) == found(null)))
}

/// `settings`
pub(crate) fn settings(_: &[&str], report: &mut Report) -> io::Result<()> {
    let mut ahead = vec![PathBuf::from("/proc/sys")];
    let mut all: Vec<PathBuf> = SETTINGS.map(PathBuf::from).into();
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten().take(MOST_SETTINGS) {
            let kind = entry.file_type();
            if kind.as_ref().is_ok_and(std::fs::FileType::is_dir) {
                ahead.push(entry.path());
            } else if kind.is_ok_and(|kind| kind.is_file()) && all.len() < MOST_SETTINGS {
                all.push(entry.path());
            }
        }
    }
    let mut refused = 0;
    for path in &all {
        match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
            Ok(file) if is_own_null(&file) => report.saw(format!("{} is masked", path.display())),
            Ok(_) => report.broke(format!("{} can be written", path.display())),
            Err(error) if SETTINGS.iter().any(|setting| Path::new(setting) == path) => {
                report.must_fail(path.display(), Err::<(), _>(error));
            }
            Err(_) => refused += 1,
        }
    }
    report.saw(format!("{refused} other files below /proc/sys refused"));
    Ok(())
}

/// Files that tell about the host, as far as podman masks them too.
const SECRETS: [&str; 11] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi/scsi",
    "/proc/interrupts",
    "/proc/acpi/wakeup",
    "/proc/asound/cards",
    "/sys/firmware/memmap/0/start",
    "/sys/devices/virtual/powercap/dtpm/uevent",
];

/// `secrets`
pub(crate) fn secrets(_: &[&str], report: &mut Report) -> io::Result<()> {
    for path in SECRETS {
        let mut byte = [0];
        let read = File::open(path).and_then(|mut file| file.read(&mut byte));
        match read {
            Ok(1) => report.broke(format!("{path} can be read")),
            Ok(_) => report.saw(format!("{path} is empty")),
            Err(error) => _ = report.must_fail(path, Err::<(), _>(error)),
        }
    }
    for dir in ["/sys/firmware", "/sys/dev/block", "/proc/acpi", "/proc/scsi"] {
        let names = fs::read_dir(dir).into_iter().flatten().count();
        if names > 0 {
            report.broke(format!("{dir} has {names} entries"));
        }
        report.saw(format!("{dir} has {names} entries"));
    }
    Ok(())
}
