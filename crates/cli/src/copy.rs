//! `cp`: files into a container, and out of it.
//!
//! This is done here and not in the daemon. Client and daemon are on the same machine, and both are root;
//! so the bytes go one way instead of two, and what a container does to its files meanwhile (a tree that
//! has no end, a file that grows) costs this process alone.
//!
//! Every path in the container is resolved by the kernel below the container's root (openat2(2),
//! `RESOLVE_IN_ROOT`), so its links lead nowhere else. Within a tree each step is one name below an open
//! directory, and no link is followed: a container that swaps a directory for a link gains nothing. A
//! file is opened for reading or writing only after it is known to be a regular one.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use holdfast_daemon::api::{ContainerId, ContainerInfo, Details};
use holdfast_sys::proc::Stat;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat};

use crate::args::CopyArgs;
use crate::client::Client;
use crate::find;
use crate::streams::complain;

/// The deepest tree that is copied: each level holds descriptors.
const DEEPEST: usize = 200;

/// A path here, or in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Here(PathBuf),
    Inside(ContainerId, PathBuf),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            // A path with a colon is written `./a:b`.
            Some((id, path)) if !id.starts_with(['/', '.']) => {
                let id = id.parse().map_err(|error| format!("{error}"))?;
                Ok(Self::Inside(id, if path.is_empty() { "/".into() } else { path.into() }))
            }
            _ if text == "-" => {
                Err("tar streams are not copied; use `holdfast exec ID tar …`".to_owned())
            }
            _ if text.is_empty() => Err("there is no path".to_owned()),
            _ => Ok(Self::Here(text.into())),
        }
    }
}

/// A place where paths are looked up, and how.
struct Side {
    root: OwnedFd,
    resolve: ResolveFlag,
}

impl Side {
    fn here() -> anyhow::Result<Self> {
        Ok(Self { root: open_root(Path::new("/"))?, resolve: ResolveFlag::empty() })
    }

    fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(self.resolve);
        openat2(&self.root, path, how)
    }
}

fn open_root(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).with_context(|| format!("open {}", path.display()))
}

/// Whom copied files belong to.
#[derive(Debug, Clone, Copy)]
enum Owner {
    /// This user and group.
    Ids(Uid, Gid),
    /// Those of the source.
    Same,
}

/// Copies files.
pub(crate) async fn copy(client: &Client, args: &CopyArgs) -> anyhow::Result<()> {
    let here = |path: &Path| crate::current_dir().map(|dir| dir.join(path));
    let (from, from_path, to, to_path, root) = match (&args.from, &args.to) {
        (Location::Inside(id, from), Location::Here(to)) => {
            let (side, _) = container(client, id).await?;
            let own = (Uid::effective(), Gid::effective());
            (side, from.clone(), Side::here()?, here(to)?, own)
        }
        (Location::Here(from), Location::Inside(id, to)) => {
            let (side, root) = container(client, id).await?;
            (Side::here()?, here(from)?, side, to.clone(), root)
        }
        _ => bail!("one of SRC and DEST is in a container, as in web:/etc/hosts"),
    };
    let owner = if args.archive { Owner::Same } else { Owner::Ids(root.0, root.1) };
    let follow = if args.follow_link { OFlag::empty() } else { OFlag::O_NOFOLLOW };
    let source = from
        .open(&from_path, OFlag::O_PATH | follow)
        .with_context(|| format!("open {}", from_path.display()))?;
    let (directory, name) = destination(&from_path, &source, &to, &to_path)?;
    match kind(&fstat(&source)?) {
        SFlag::S_IFDIR => {
            let into = match name {
                Some(name) => make_directory(directory.as_fd(), &name)?,
                None => Target::There(reopen(&directory, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?),
            };
            copy_directory(&from_path, &source, &into, owner, 0)
        }
        SFlag::S_IFREG => {
            let name = name.ok_or_else(|| anyhow!("{} is a directory", to_path.display()))?;
            copy_file(&from_path, &source, directory.as_fd(), &name, owner)
        }
        SFlag::S_IFLNK => {
            let name = name.ok_or_else(|| anyhow!("{} is a directory", to_path.display()))?;
            let target = readlinkat(&source, "")?;
            copy_link(Path::new(&target), directory.as_fd(), &name)
        }
        _ => bail!("{} is neither a file nor a directory nor a link", from_path.display()),
    }
}

/// The root of a container, and whom new files in it belong to.
async fn container(client: &Client, id: &ContainerId) -> anyhow::Result<(Side, (Uid, Gid))> {
    let id = find::container(client, id).await?;
    let info: ContainerInfo = client.get(&format!("/containers/{id}")).await?;
    let details: Details = client.get(&format!("/containers/{id}/details")).await?;
    let root = match info.pid {
        Some(pid) => {
            let root = open_root(Path::new(&format!("/proc/{pid}/root")))?;
            // The number was not given to another process before the root was opened.
            let started = Stat::read(pid).map(|stat| stat.start_time).unwrap_or_default();
            if details.record["startTime"] != started.as_str() {
                bail!("container {id} has just ended; try again");
            }
            root
        }
        None => {
            let mounts = details.config["mounts"].as_array().into_iter().flatten();
            if mounts.into_iter().any(|mount| mount["destination"] == "/") {
                bail!(
                    "the root of container {id} is an overlay, which is there while it runs only"
                );
            }
            let root = details.config["root"]["path"].as_str();
            let root = root.with_context(|| format!("container {id} has no configuration"))?;
            open_root(&info.bundle.join(root))?
        }
    };
    let number = |name: &str| {
        let number = details.record[name].as_u64().and_then(|number| u32::try_from(number).ok());
        number.unwrap_or_default()
    };
    let owner = (Uid::from_raw(number("rootUID")), Gid::from_raw(number("rootGID")));
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    Ok((Side { root, resolve }, owner))
}

/// Where the copy goes, as `cp` and docker decide it: a directory, and the name in it. Without a name the
/// content of a directory goes into a directory.
fn destination(
    from_path: &Path,
    source: &OwnedFd,
    to: &Side,
    to_path: &Path,
) -> anyhow::Result<(OwnedFd, Option<PathBuf>)> {
    let shown = to_path.display();
    let is_directory = kind(&fstat(source)?) == SFlag::S_IFDIR;
    let bytes = from_path.as_os_str().as_bytes();
    let is_content =
        is_directory && (bytes.ends_with(b"/.") || bytes == b"." || from_path == Path::new("/"));
    let wants_directory = to_path.as_os_str().as_bytes().ends_with(b"/");
    match to.open(to_path, OFlag::O_PATH) {
        Ok(found) if kind(&fstat(&found)?) == SFlag::S_IFDIR => {
            let name = from_path.file_name().filter(|_| !is_content).map(PathBuf::from);
            Ok((found, name))
        }
        Ok(_) if is_directory || wants_directory => bail!("{shown} is not a directory"),
        Ok(_) => parent(to, to_path),
        Err(Errno::ENOENT) if wants_directory && !is_directory => {
            bail!("{shown} is not there, and should be a directory")
        }
        Err(Errno::ENOENT) => parent(to, to_path),
        Err(error) => Err(error).with_context(|| format!("open {shown}")),
    }
}

fn parent(to: &Side, path: &Path) -> anyhow::Result<(OwnedFd, Option<PathBuf>)> {
    let shown = path.display();
    let name = path.file_name().with_context(|| format!("{shown} has no name"))?;
    let parent = path.parent().unwrap_or(Path::new("."));
    let directory = to
        .open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY)
        .with_context(|| format!("open {}", parent.display()))?;
    Ok((directory, Some(name.into())))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Opens what a descriptor stands for.
fn reopen(fd: &OwnedFd, flags: OFlag) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
}

fn copy_directory(
    path: &Path,
    source: &OwnedFd,
    into: &Target,
    owner: Owner,
    depth: usize,
) -> anyhow::Result<()> {
    if depth > DEEPEST {
        bail!("{} is more than {DEEPEST} levels deep", path.display());
    }
    let about = || path.display().to_string();
    let readable = reopen(source, OFlag::O_RDONLY | OFlag::O_DIRECTORY).with_context(about)?;
    let mut entries = Dir::from_fd(readable).with_context(about)?;
    for entry in entries.iter() {
        let entry = entry.with_context(about)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(path, source, name, into.as_fd(), owner, depth)?;
    }
    match into {
        Target::New(into) => settle(source, into.as_fd(), owner).with_context(about),
        Target::There(_) => Ok(()),
    }
}

fn copy_entry(
    path: &Path,
    from: &OwnedFd,
    name: &CStr,
    into: BorrowedFd<'_>,
    owner: Owner,
    depth: usize,
) -> anyhow::Result<()> {
    let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let path = path.join(name);
    let about = || path.display().to_string();
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let source = match openat(from, name, flags, Mode::empty()) {
        Ok(source) => source,
        // It was removed meanwhile.
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error).with_context(about),
    };
    match kind(&fstat(&source).with_context(about)?) {
        SFlag::S_IFDIR => {
            let into = make_directory(into, name)?;
            copy_directory(&path, &source, &into, owner, depth + 1)
        }
        SFlag::S_IFREG => copy_file(&path, &source, into, name, owner),
        SFlag::S_IFLNK => {
            let target = readlinkat(&source, "").with_context(about)?;
            copy_link(Path::new(&target), into, name)?;
            if let Owner::Ids(uid, gid) = owner {
                fchownat(into, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
                    .with_context(about)?;
            }
            Ok(())
        }
        _ => {
            complain(format_args!("{}: not copied: a device, FIFO or socket", path.display()));
            Ok(())
        }
    }
}

fn copy_file(
    path: &Path,
    source: &OwnedFd,
    into: BorrowedFd<'_>,
    name: &Path,
    owner: Owner,
) -> anyhow::Result<()> {
    let about = || path.display().to_string();
    let mut from = File::from(reopen(source, OFlag::O_RDONLY).with_context(about)?);
    let mut to =
        File::from(create(into, name).with_context(|| format!("create {}", name.display()))?);
    io::copy(&mut from, &mut to).with_context(about)?;
    settle(source, to.as_fd(), owner).with_context(about)
}

/// Creates a file, or empties one that is there.
fn create(into: BorrowedFd<'_>, name: &Path) -> io::Result<OwnedFd> {
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    match openat(into, name, new, Mode::S_IRUSR | Mode::S_IWUSR) {
        Err(Errno::EEXIST) => {}
        created => return Ok(created?),
    }
    let there =
        openat(into, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    match kind(&fstat(&there)?) {
        SFlag::S_IFREG => Ok(reopen(&there, OFlag::O_WRONLY | OFlag::O_TRUNC)?),
        _ => Err(io::Error::other("there is something else of that name, not a regular file")),
    }
}

/// A directory to which files are copied.
enum Target {
    /// It gets owner, mode and times of its source.
    New(OwnedFd),
    /// It was there before, and stays as it is.
    There(OwnedFd),
}

impl Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (Self::New(fd) | Self::There(fd)) = self;
        fd.as_fd()
    }
}

fn make_directory(into: BorrowedFd<'_>, name: &Path) -> anyhow::Result<Target> {
    let about = || format!("create the directory {}", name.display());
    let made = mkdirat(into, name, Mode::S_IRWXU);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = || openat(into, name, flags, Mode::empty()).with_context(about);
    match made {
        Ok(()) => open().map(Target::New),
        Err(Errno::EEXIST) => open().map(Target::There),
        Err(error) => Err(error).with_context(about),
    }
}

fn copy_link(target: &Path, into: BorrowedFd<'_>, name: &Path) -> anyhow::Result<()> {
    let about = || format!("create the link {}", name.display());
    match symlinkat(target, into, name) {
        Err(Errno::EEXIST) => {}
        made => return made.with_context(about),
    }
    let there = fstatat(into, name, AtFlags::AT_SYMLINK_NOFOLLOW).with_context(about)?;
    if kind(&there) != SFlag::S_IFLNK {
        bail!("{}: there is something else of that name", name.display());
    }
    unlinkat(into, name, UnlinkatFlags::NoRemoveDir).with_context(about)?;
    symlinkat(target, into, name).with_context(about)
}

/// Gives a copy its owner, mode and times. The bits by which a program gets the rights of its owner are
/// left out: on the host, they would be those of another one's program.
fn settle(source: &OwnedFd, copy: BorrowedFd<'_>, owner: Owner) -> nix::Result<()> {
    let stat = fstat(source)?;
    let (uid, gid) = match owner {
        Owner::Ids(uid, gid) => (uid, gid),
        Owner::Same => (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)),
    };
    fchown(copy, Some(uid), Some(gid))?;
    let bits = Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO | Mode::S_ISVTX;
    fchmod(copy, Mode::from_bits_truncate(stat.st_mode) & bits)?;
    let time = |seconds, nanos| TimeSpec::new(seconds, nanos);
    futimens(
        copy,
        &time(stat.st_atime, stat.st_atime_nsec),
        &time(stat.st_mtime, stat.st_mtime_nsec),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_an_id_leads_into_a_container() {
        let inside = |id: &str, path: &str| Location::Inside(id.parse().unwrap(), path.into());
        for (text, location) in [
            ("web:/etc/hosts", inside("web", "/etc/hosts")),
            ("web:", inside("web", "/")),
            ("web:a:b", inside("web", "a:b")),
            ("./a:b", Location::Here("./a:b".into())),
            ("/a:b", Location::Here("/a:b".into())),
            ("conf", Location::Here("conf".into())),
        ] {
            assert_eq!(text.parse(), Ok(location), "{text}");
        }
        for text in ["-", "", "a b:/x"] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
