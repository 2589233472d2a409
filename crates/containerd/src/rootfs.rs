//! The root file system of a task: what containerd wants mounted on the bundle's `rootfs`.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_sys::mountinfo;
use holdfast_ttrpc::types::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The longest options that mount(2) takes: one page, and its last byte is zero.
const MOST: usize = 4095;

/// Where a bundle has its root file system.
pub(crate) fn of(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Mounts these, one over the other, after everything that an earlier attempt has left.
pub(crate) fn make(mounts: &[Mount], bundle: &Path) -> io::Result<()> {
    let rootfs = of(bundle);
    clear(bundle)?;
    for wanted in mounts {
        std::fs::create_dir_all(&rootfs)?;
        let target = match wanted.target.trim_start_matches('/') {
            "" => rootfs.clone(),
            below if Path::new(below).components().all(is_plain) => rootfs.join(below),
            _ => return Err(refused(wanted, "its target leaves the root file system")),
        };
        if let Err(error) = make_one(wanted, &target) {
            let _ = clear(bundle);
            let text = format!("mount {} on {}: {error}", wanted.source, target.display());
            return Err(io::Error::new(error.kind(), text));
        }
    }
    Ok(())
}

fn is_plain(part: std::path::Component<'_>) -> bool {
    matches!(part, std::path::Component::Normal(_))
}

fn refused(mount: &Mount, reason: &str) -> io::Error {
    let text = format!("mount {:?} of type {:?}: {reason}", mount.source, mount.kind);
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Unmounts all that is on the root file system of a bundle. It is no error if nothing is.
pub(crate) fn clear(bundle: &Path) -> io::Result<()> {
    let rootfs = of(bundle);
    // The mount table has no links in its paths.
    let rootfs = rootfs.canonicalize().unwrap_or(rootfs);
    let points = mountinfo::of("self")?.into_iter().map(|mount| mount.point);
    let mut points: Vec<_> = points.filter(|point| point.starts_with(&rootfs)).collect();
    // The last one is on top.
    while let Some(point) = points.pop() {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Somebody else was faster.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => {
                return Err(io::Error::other(format!("unmount {}: {error}", point.display())));
            }
        }
    }
    Ok(())
}

/// The options of a mount: flags, propagation, and what is left for the file system.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    set: u64,
    propagation: u64,
    data: Vec<String>,
}

/// The names of mount(8). Those that take something back are last.
const FLAGS: [(&str, MsFlags); 13] = [
    ("ro", MsFlags::MS_RDONLY),
    ("nosuid", MsFlags::MS_NOSUID),
    ("nodev", MsFlags::MS_NODEV),
    ("noexec", MsFlags::MS_NOEXEC),
    ("sync", MsFlags::MS_SYNCHRONOUS),
    ("dirsync", MsFlags::MS_DIRSYNC),
    ("remount", MsFlags::MS_REMOUNT),
    ("mand", MsFlags::MS_MANDLOCK),
    ("noatime", MsFlags::MS_NOATIME),
    ("nodiratime", MsFlags::MS_NODIRATIME),
    ("relatime", MsFlags::MS_RELATIME),
    ("strictatime", MsFlags::MS_STRICTATIME),
    ("bind", MsFlags::MS_BIND),
];

const UNSET: [(&str, MsFlags); 8] = [
    ("rw", MsFlags::MS_RDONLY),
    ("suid", MsFlags::MS_NOSUID),
    ("dev", MsFlags::MS_NODEV),
    ("exec", MsFlags::MS_NOEXEC),
    ("async", MsFlags::MS_SYNCHRONOUS),
    ("nomand", MsFlags::MS_MANDLOCK),
    ("atime", MsFlags::MS_NOATIME),
    ("diratime", MsFlags::MS_NODIRATIME),
];

const PROPAGATION: [(&str, MsFlags, bool); 8] = [
    ("private", MsFlags::MS_PRIVATE, false),
    ("rprivate", MsFlags::MS_PRIVATE, true),
    ("shared", MsFlags::MS_SHARED, false),
    ("rshared", MsFlags::MS_SHARED, true),
    ("slave", MsFlags::MS_SLAVE, false),
    ("rslave", MsFlags::MS_SLAVE, true),
    ("unbindable", MsFlags::MS_UNBINDABLE, false),
    ("runbindable", MsFlags::MS_UNBINDABLE, true),
];

fn parse(options: &[String]) -> Options {
    let mut parsed = Options::default();
    for option in options {
        if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| name == option) {
            parsed.set |= flag.bits();
        } else if let Some((_, flag)) = UNSET.iter().find(|(name, _)| name == option) {
            parsed.set &= !flag.bits();
        } else if let Some((_, flag, deep)) = PROPAGATION.iter().find(|(name, ..)| name == option) {
            let deep = if *deep { MsFlags::MS_REC.bits() } else { 0 };
            parsed.propagation |= flag.bits() | deep;
        } else if option == "rbind" {
            parsed.set |= (MsFlags::MS_BIND | MsFlags::MS_REC).bits();
        } else if !["defaults", "loop", ""].contains(&option.as_str()) {
            parsed.data.push(option.clone());
        }
    }
    parsed
}

fn make_one(wanted: &Mount, target: &Path) -> io::Result<()> {
    if wanted.options.iter().any(|option| option == "loop") {
        return Err(refused(wanted, "loop devices are not set up"));
    }
    let options = parse(&wanted.options);
    let mut data = options.data.join(",");
    let mut set = MsFlags::from_bits_retain(options.set);
    let mut base = None;
    if data.len() > MOST && wanted.kind == "overlay" {
        let (directory, shorter) = shorten(&options.data);
        (base, data) = (directory, shorter);
    }
    if data.len() > MOST {
        return Err(refused(wanted, "its options are longer than a page"));
    }
    let is_bind = wanted.kind == "bind" || set.contains(MsFlags::MS_BIND);
    if is_bind {
        set |= MsFlags::MS_BIND;
    }
    // A bind mount takes its flags only when it is mounted anew.
    let later =
        if is_bind { set & !(MsFlags::MS_BIND | MsFlags::MS_REC) } else { MsFlags::empty() };
    let first = if is_bind { set & (MsFlags::MS_BIND | MsFlags::MS_REC) } else { set };
    let (kind, source) = (wanted.kind.clone(), wanted.source.clone());
    let path = target.to_owned();
    let call = move || {
        let data = Some(data.as_str()).filter(|data| !data.is_empty() && !is_bind);
        mount(Some(source.as_str()), &path, Some(kind.as_str()), first, data)
    };
    match base {
        None => call()?,
        Some(directory) => in_directory(&directory, call)?,
    }
    if !later.is_empty() {
        let again = later | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, target, None::<&str>, again, None::<&str>)?;
    }
    if options.propagation != 0 {
        let flags = MsFlags::from_bits_retain(options.propagation);
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

/// The lower directories of an overlay relative to the one that they share, as there may be more than fit
/// into a page.
fn shorten(data: &[String]) -> (Option<PathBuf>, String) {
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="));
    let layers: Vec<_> = lower.into_iter().flat_map(|dirs| dirs.split(':')).collect();
    let common = layers.iter().copied().reduce(|one, other| {
        let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        let end = one.floor_char_boundary(same);
        &one[..end]
    });
    let Some(end) = common.and_then(|common| common.rfind('/')).filter(|end| *end > 0) else {
        return (None, data.join(","));
    };
    let directory = &layers[0][..end];
    let relative: Vec<_> = layers.iter().map(|layer| &layer[end + 1..]).collect();
    let options = data.iter().map(|option| match option.strip_prefix("lowerdir=") {
        Some(_) => format!("lowerdir={}", relative.join(":")),
        None => option.clone(),
    });
    (Some(directory.into()), options.collect::<Vec<_>>().join(","))
}

/// Calls something in another working directory, which only a thread of its own has.
fn in_directory(directory: &Path, call: impl FnOnce() -> nix::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(directory)?;
            call()
        });
        thread
            .join()
            .map_err(|_| io::Error::other("the thread of a mount panicked"))?
            .map_err(io::Error::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_propagation_and_the_rest() {
        let options = ["ro", "nosuid", "rw", "rbind", "rslave", "size=1m", "defaults"];
        let parsed = parse(&options.map(String::from));
        assert_eq!(parsed.set, (MsFlags::MS_NOSUID | MsFlags::MS_BIND | MsFlags::MS_REC).bits());
        assert_eq!(parsed.propagation, (MsFlags::MS_SLAVE | MsFlags::MS_REC).bits());
        assert_eq!(parsed.data, ["size=1m"]);
    }

    #[test]
    fn many_layers_are_named_from_the_directory_that_they_share() {
        let layers = ["/var/s/10/fs", "/var/s/11/fs", "/var/s/2/fs"].join(":");
        let data = [format!("lowerdir={layers}"), "upperdir=/u".to_owned()];
        let (directory, data) = shorten(&data);
        assert_eq!(directory, Some("/var/s".into()));
        assert_eq!(data, "lowerdir=10/fs:11/fs:2/fs,upperdir=/u");
    }

    #[test]
    fn a_target_outside_the_root_file_system_is_refused() {
        let bundle = Path::new("/nowhere");
        let target = "/../../etc".to_owned();
        let mount = Mount { kind: "bind".into(), source: "/".into(), target, options: vec![] };
        // Refused before anything is made.
        let error = make(&[mount], bundle).unwrap_err();
        assert!(
            matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied),
            "{error}"
        );
    }
}
