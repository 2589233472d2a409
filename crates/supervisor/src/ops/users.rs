//! Users and groups by name, from `/etc/passwd` and `/etc/group` of a container.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

use crate::model::config::User;
use crate::model::process::Process;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 4 * 1024 * 1024;

/// Looks up `USER[:GROUP]` below a directory.
pub(crate) fn look_up_below(root: &Path, names: &str) -> Result<User, String> {
    let root = open_root(root)?;
    look_up(&root, names)
}

/// Looks up `USER[:GROUP]` in a container that runs.
pub(crate) fn look_up_in_container(init: &Process, names: &str) -> Result<User, String> {
    let not_running = || "the container does not run".to_owned();
    let pid = init.pid().ok_or_else(not_running)?;
    let root = open_root(Path::new(&format!("/proc/{pid}/root")))?;
    // It is still there, so that its number was not another one's when the root was opened.
    init.signal(0).ok_or_else(not_running)?.map_err(|error| error.to_string())?;
    look_up(&root, names)
}

fn open_root(path: &Path) -> Result<OwnedFd, String> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).map_err(|error| format!("{}: {error}", path.display()))
}

fn look_up(root: impl AsFd, names: &str) -> Result<User, String> {
    let (user, group) = match names.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (names, None),
    };
    let passwd = read(&root, "etc/passwd")?;
    let groups = read(&root, "etc/group")?;
    let mut found = find_user(&passwd, &groups, user)?;
    if let Some(group) = group {
        found = User { gid: find_group(&groups, group)?, additional_gids: Vec::new(), ..found };
    }
    Ok(found)
}

/// Reads a file of the container, whose links lead nowhere else. One that is missing is empty.
fn read(root: impl AsFd, path: &str) -> Result<String, String> {
    let failed = |error: &dyn std::fmt::Display| format!("/{path} of the container: {error}");
    let how = OpenHow::new()
        // A FIFO in its place would be waited for.
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file: File = match openat2(root, path, how) {
        Ok(file) => file.into(),
        Err(nix::errno::Errno::ENOENT) => return Ok(String::new()),
        Err(error) => return Err(failed(&error)),
    };
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if !metadata.is_file() || metadata.len() > LIMIT {
        return Err(failed(&"not a regular file of a usual size"));
    }
    let mut content = Vec::new();
    file.take(LIMIT).read_to_end(&mut content).map_err(|error| failed(&error))?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// Finds a user, by name or number, with its groups. A number need not be listed.
fn find_user(passwd: &str, groups: &str, user: &str) -> Result<User, String> {
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let [name, _, uid, gid, ..] = fields[..] else { return None };
        (name == user || uid == user).then_some(())?;
        Some((name, User { uid: uid.parse().ok()?, gid: gid.parse().ok()?, ..User::default() }))
    });
    match entry {
        Some((name, found)) => Ok(User { additional_gids: further_groups(groups, name), ..found }),
        None => match user.parse() {
            Ok(uid) => Ok(User { uid, ..User::default() }),
            Err(_) => Err(format!("there is no user {user:?} in the container's /etc/passwd")),
        },
    }
}

fn find_group(groups: &str, group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let entry = groups.lines().map(|line| line.split(':')).find_map(|mut fields| {
        (fields.next()? == group).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    entry.ok_or_else(|| format!("there is no group {group:?} in the container's /etc/group"))
}

/// Returns the groups that list a user as their member.
fn further_groups(groups: &str, user: &str) -> Vec<u32> {
    let of = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let [_, _, gid, members] = fields[..] else { return None };
        members.split(',').any(|member| member == user).then(|| gid.parse().ok()).flatten()
    };
    groups.lines().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:web,root\nweb:x:34:\nbroken\nlog:x:5:webmaster\n";

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUP).unwrap();
        root
    }

    #[test]
    fn names_and_numbers_are_looked_up() {
        let root = root();
        for (names, uid, gid, further) in [
            ("root", 0, 0, vec![4]),
            ("web", 33, 34, vec![4]),
            ("33", 33, 34, vec![4]),
            ("web:adm", 33, 4, vec![]),
            ("web:7", 33, 7, vec![]),
            ("1000", 1000, 0, vec![]),
            ("1000:adm", 1000, 4, vec![]),
        ] {
            let user = look_up_below(root.path(), names).unwrap();
            assert_eq!(user, User { uid, gid, additional_gids: further }, "{names}");
        }
        for names in ["nobody", "web:none", ""] {
            assert!(look_up_below(root.path(), names).is_err(), "{names}");
        }
    }

    #[test]
    fn a_link_leads_nowhere_else_and_a_fifo_is_not_waited_for() {
        let root = root();
        let passwd = root.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/etc/hosts/../../../../etc/real", &passwd).unwrap();
        assert!(look_up_below(root.path(), "web").is_err());
        std::fs::remove_file(&passwd).unwrap();
        std::os::unix::fs::symlink("/etc/real", &passwd).unwrap();
        std::fs::write(root.path().join("etc/real"), PASSWD).unwrap();
        assert_eq!(look_up_below(root.path(), "web").unwrap().uid, 33);
        std::fs::remove_file(&passwd).unwrap();
        nix::unistd::mkfifo(&passwd, Mode::S_IRWXU).unwrap();
        let error = look_up_below(root.path(), "web").unwrap_err();
        assert!(error.contains("not a regular file"), "{error}");
    }
}
