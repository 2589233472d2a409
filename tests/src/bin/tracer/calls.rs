//! Which system calls change the world, and on what. For x86-64, as are the machines of this project.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::unistd::Pid;

pub(crate) type Regs = libc::user_regs_struct;

/// A system call that changes the world.
#[derive(Debug)]
pub(crate) struct Call {
    name: &'static str,
    /// On what, with nothing in it that differs from one run to the next.
    what: String,
}

impl Call {
    /// The name by which it is known.
    pub(crate) fn key(&self) -> String {
        format!("{} {}", self.name, self.what).trim().to_owned()
    }

    /// Whether it starts a process.
    pub(crate) fn spawns(&self) -> bool {
        self.name == "spawn"
    }

    /// `None` if it changes nothing outside of the process, or nothing below `base`.
    pub(crate) fn decode(
        leader: Pid,
        thread: Pid,
        regs: &Regs,
        (base, id): (&Path, &str),
    ) -> Option<Self> {
        let of = Process { leader, thread, base, id };
        let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8];
        let number = i64::try_from(regs.orig_rax).ok()?;
        let call = |name, what: Option<String>| Some(Self { name, what: what? });
        let bare = |name| Some(Self { name, what: String::new() });
        let two = |from: Option<String>, to: Option<String>| Some(format!("{} → {}", from?, to?));
        match number {
            libc::SYS_openat if changes(args[2]) => call("openat", of.at(args[0], args[1])),
            libc::SYS_open if changes(args[1]) => call("open", of.path(args[0])),
            libc::SYS_write => call("write", of.target(args[0])),
            libc::SYS_writev => call("writev", of.target(args[0])),
            libc::SYS_pwrite64 => call("pwrite64", of.target(args[0])),
            libc::SYS_sendto => call("sendto", of.target(args[0])),
            libc::SYS_sendmsg => call("sendmsg", of.target(args[0])),
            libc::SYS_fsync => call("fsync", of.fd(args[0])),
            libc::SYS_fdatasync => call("fdatasync", of.fd(args[0])),
            libc::SYS_ftruncate => call("ftruncate", of.fd(args[0])),
            libc::SYS_flock => call("flock", of.fd(args[0])),
            libc::SYS_fchmod => call("fchmod", of.fd(args[0])),
            libc::SYS_fchown => call("fchown", of.target(args[0])),
            libc::SYS_rename => call("rename", two(of.path(args[0]), of.path(args[1]))),
            libc::SYS_renameat | libc::SYS_renameat2 => {
                call("rename", two(of.at(args[0], args[1]), of.at(args[2], args[3])))
            }
            libc::SYS_linkat => call("link", two(of.at(args[0], args[1]), of.at(args[2], args[3]))),
            libc::SYS_unlink => call("unlink", of.path(args[0])),
            libc::SYS_unlinkat => call("unlink", of.at(args[0], args[1])),
            libc::SYS_rmdir => call("rmdir", of.path(args[0])),
            libc::SYS_mkdir => call("mkdir", of.path(args[0])),
            libc::SYS_mkdirat => call("mkdir", of.at(args[0], args[1])),
            libc::SYS_mknod => call("mknod", of.path(args[0])),
            libc::SYS_mknodat => call("mknod", of.at(args[0], args[1])),
            libc::SYS_chmod => call("chmod", of.path(args[0])),
            libc::SYS_fchmodat => call("chmod", of.at(args[0], args[1])),
            libc::SYS_fchownat => call("chown", of.at(args[0], args[1])),
            libc::SYS_symlinkat => call("symlink", of.at(args[1], args[2])),
            libc::SYS_bind => bare("bind"),
            libc::SYS_listen => bare("listen"),
            libc::SYS_mount => call("mount", of.path(args[1])),
            libc::SYS_umount2 => call("umount", of.path(args[0])),
            libc::SYS_kill => bare("kill"),
            libc::SYS_pidfd_send_signal if args[1] != 0 => {
                call("pidfd_send_signal", Some(format!("signal {}", args[1])))
            }
            libc::SYS_clone if !is_thread(args[0]) => bare("spawn"),
            libc::SYS_clone3 if !is_thread(of.word(args[0])?) => bare("spawn"),
            libc::SYS_vfork | libc::SYS_fork => bare("spawn"),
            libc::SYS_waitid if args[3] & word(libc::WNOWAIT) == 0 => bare("reap"),
            libc::SYS_wait4 => bare("reap"),
            libc::SYS_setsid => bare("setsid"),
            libc::SYS_prctl if args[0] == word(libc::PR_SET_CHILD_SUBREAPER) => bare("subreaper"),
            libc::SYS_exit_group => bare("exit"),
            _ => None,
        }
    }
}

/// As if it had never been asked for.
pub(crate) fn without_call(mut regs: Regs) -> Regs {
    regs.orig_rax = u64::MAX;
    regs
}

/// On the way out: it has failed.
pub(crate) fn with_error(mut regs: Regs, errno: i32) -> Regs {
    regs.rax = i64::from(-errno).cast_unsigned();
    regs
}

/// Of `write` and its kind: no more than this.
pub(crate) fn with_length(mut regs: Regs, length: u64) -> Regs {
    regs.rdx = regs.rdx.min(length);
    regs
}

fn word(number: i32) -> u64 {
    u64::from(number.cast_unsigned())
}

fn changes(flags: u64) -> bool {
    flags & word(libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY | libc::O_RDWR) != 0
}

fn is_thread(flags: u64) -> bool {
    flags & word(libc::CLONE_THREAD) != 0
}

struct Process<'a> {
    leader: Pid,
    thread: Pid,
    base: &'a Path,
    id: &'a str,
}

impl Process<'_> {
    /// A path relative to a directory's descriptor.
    fn at(&self, dir: u64, path: u64) -> Option<String> {
        let path = PathBuf::from(self.text(path)?);
        let whole = if path.is_absolute() {
            path
        } else if low(dir) == libc::AT_FDCWD {
            std::fs::read_link(format!("/proc/{}/cwd", self.leader)).ok()?.join(path)
        } else {
            self.link(dir)?.join(path)
        };
        self.named(&whole)
    }

    fn path(&self, path: u64) -> Option<String> {
        self.at(u64::from(libc::AT_FDCWD.cast_unsigned()), path)
    }

    /// An open file.
    fn fd(&self, fd: u64) -> Option<String> {
        self.named(&self.link(fd)?)
    }

    /// Where something is written to: a file, or a connection to a client.
    fn target(&self, fd: u64) -> Option<String> {
        let link = self.link(fd)?;
        match link.to_str()?.split_once(':') {
            Some(("socket", _)) => Some("client".to_owned()),
            Some(_) => None,
            None => self.named(&link),
        }
    }

    fn link(&self, fd: u64) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/fd/{}", self.thread, low(fd))).ok()
    }

    /// The part of a path below the base, without what differs from one run to the next.
    fn named(&self, path: &Path) -> Option<String> {
        let below = match path.strip_prefix(self.base) {
            Ok(below) => below.to_str()?.to_owned(),
            Err(_) if path.starts_with("/sys/fs/cgroup") => "cgroup".to_owned(),
            Err(_) => return None,
        };
        let own = self.leader.to_string();
        let names = below.split('/').map(|name| {
            let is_random = name.len() == 12 && name.bytes().all(|b| b.is_ascii_hexdigit());
            match name {
                _ if name == self.id => "ID".to_owned(),
                _ if is_random => "RANDOM".to_owned(),
                name => name.replace(&own, "PID"),
            }
        });
        Some(names.collect::<Vec<_>>().join("/"))
    }

    fn memory(&self) -> Option<File> {
        File::open(format!("/proc/{}/mem", self.thread)).ok()
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory()?.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn text(&self, address: u64) -> Option<String> {
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        let length = self.memory()?.read_at(&mut bytes, address).ok()?;
        let end = bytes[..length].iter().position(|&b| b == 0)?;
        bytes.truncate(end);
        String::from_utf8(bytes).ok()
    }
}

/// A descriptor is an `int`, and only the low half of its register counts.
fn low(fd: u64) -> i32 {
    let bytes = fd.to_ne_bytes();
    i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
