//! The seccomp profile of a container that has no bundle of its own: which system calls its programs may
//! make.
//!
//! It is a list of what is allowed. A call that is on no list is answered with `ENOSYS`, as by a kernel
//! without it, so that a program does without: clone3(2) is such a call, as its flags are in memory,
//! where no filter can look at them, and so are those of io_uring(7). What a program asks for to change
//! the host is refused with `EPERM`, unless the container has the capability that the kernel demands too.

use nix::errno::Errno;
use serde_json::{Value, json};

/// What programs need, and the kernel guards well.
const ALLOWED: &str = "
    read write readv writev pread64 pwrite64 preadv preadv2 pwritev pwritev2 lseek _llseek
    open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl fcntl64 flock ioctl
    fsync fdatasync sync syncfs sync_file_range arm_sync_file_range readahead cachestat
    fadvise64 fadvise64_64 arm_fadvise64_64 fallocate truncate truncate64 ftruncate ftruncate64
    sendfile sendfile64 copy_file_range splice tee vmsplice

    stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx statfs statfs64 fstatfs
    fstatfs64 statmount listmount access faccessat faccessat2 readlink readlinkat getcwd getdents
    getdents64 readdir name_to_handle_at
    chdir fchdir chroot mkdir mkdirat rmdir link linkat symlink symlinkat unlink unlinkat rename
    renameat renameat2 mknod mknodat umask chmod fchmod fchmodat fchmodat2 chown chown32 fchown
    fchown32 fchownat lchown lchown32 utime utimes utimensat utimensat_time64 futimesat
    getxattr getxattrat lgetxattr fgetxattr setxattr setxattrat lsetxattr fsetxattr listxattr
    listxattrat llistxattr flistxattr removexattr removexattrat lremovexattr fremovexattr
    file_getattr file_setattr
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark

    poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2
    signalfd signalfd4 io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents
    io_pgetevents_time64

    brk mmap mmap2 munmap mremap mprotect madvise msync mincore mlock mlock2 mlockall munlock
    munlockall remap_file_pages membarrier memfd_create memfd_secret mseal map_shadow_stack
    pkey_alloc pkey_free pkey_mprotect process_mrelease

    fork vfork execve execveat exit exit_group wait4 waitid waitpid kill tkill tgkill
    pidfd_open pidfd_send_signal getpid getppid gettid getpgid getpgrp setpgid getsid setsid
    set_tid_address set_thread_area get_thread_area arch_prctl modify_ldt set_robust_list
    get_robust_list rseq restart_syscall prctl seccomp landlock_create_ruleset landlock_add_rule
    landlock_restrict_self lsm_get_self_attr lsm_list_modules ptrace process_vm_readv
    process_vm_writev uprobe uretprobe set_tls cacheflush breakpoint

    rt_sigaction rt_sigprocmask rt_sigpending rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn sigaction sigprocmask sigpending sigsuspend
    sigreturn signal sigaltstack pause alarm

    futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue nanosleep clock_nanosleep
    clock_nanosleep_time64 clock_gettime clock_gettime64 clock_getres clock_getres_time64
    gettimeofday time times adjtimex clock_adjtime clock_adjtime64 getitimer setitimer timer_create
    timer_delete timer_settime timer_settime64 timer_gettime timer_gettime64 timer_getoverrun
    timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64

    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam
    sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max
    sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64 getpriority
    setpriority nice ioprio_get ioprio_set getcpu getrlimit ugetrlimit setrlimit prlimit64 getrusage
    sysinfo uname olduname getrandom

    getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32
    getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32
    setregid setregid32 setresuid setresuid32 setresgid setresgid32 setgroups setgroups32 setfsuid
    setfsuid32 setfsgid setfsgid32 capget capset

    socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt
    setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64

    ipc semget semop semctl semtimedop semtimedop_time64 shmget shmat shmdt shmctl msgget msgsnd
    msgrcv msgctl mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend mq_timedsend_time64
    mq_timedreceive mq_timedreceive_time64
";

/// What changes the host, or shows what is not the container's; and the capability with which it is
/// allowed all the same. Without a name there is none: the kernel keeps no container apart from others
/// there.
const REFUSED: [(&str, &str); 14] = [
    // libseccomp makes a rule for socket(2) one for socketcall(2) too, in which it can't look at the family;
    // so that has a rule of its own.
    (
        "",
        "add_key keyctl request_key userfaultfd kexec_load kexec_file_load swapon swapoff socketcall",
    ),
    (
        "CAP_SYS_ADMIN",
        "mount umount umount2 pivot_root mount_setattr move_mount open_tree open_tree_attr fsopen fspick \
         fsconfig fsmount setns unshare sethostname setdomainname quotactl quotactl_fd fanotify_init \
         lookup_dcookie",
    ),
    ("CAP_BPF", "bpf"),
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ("CAP_PERFMON", "perf_event_open"),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
    (
        "CAP_SYS_NICE",
        "get_mempolicy set_mempolicy set_mempolicy_home_node mbind migrate_pages move_pages",
    ),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYSLOG", "syslog"),
];

/// The machine's own architecture, and that of the 32-bit programs that it runs.
const ARCHITECTURES: &[&str] = if cfg!(target_arch = "aarch64") {
    &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
} else {
    &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
};

/// The flags of clone(2) that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const CLONE_NEWUSER: u64 = 0x1000_0000;

/// The only changes of personality(2) that are allowed: `UNAME26` and `PER_LINUX32`. The others turn
/// protections off.
const PERSONALITIES: u64 = 0x0002_0008;
/// It asks, and changes nothing.
const ASK_PERSONALITY: u64 = 0xffff_ffff;

/// The kernel's cryptography: attackable, and of no use to most.
const AF_ALG: u64 = 38;
/// Talks to the machine that this virtual machine runs on.
const AF_VSOCK: u64 = 40;

/// Returns the profile for a container whose programs may have these capabilities.
pub(crate) fn default_seccomp(capabilities: &Value) -> Value {
    let has =
        |name: &str| capabilities.as_array().is_some_and(|all| all.iter().any(|it| it == name));
    // It stood for what has had capabilities of its own since.
    let grants = |name: &str| {
        has(name)
            || matches!(name, "CAP_BPF" | "CAP_PERFMON" | "CAP_SYSLOG") && has("CAP_SYS_ADMIN")
    };
    let mut allowed: Vec<&str> = ALLOWED.split_whitespace().collect();
    let mut refused = Vec::new();
    for (capability, names) in REFUSED {
        let list = if grants(capability) { &mut allowed } else { &mut refused };
        list.extend(names.split_whitespace());
    }
    let mut rules = vec![];
    if has("CAP_SYS_ADMIN") {
        allowed.extend(["clone", "clone3"]);
    } else {
        rules.push(allow_if("clone", condition(0, "MASKED_EQ", NEW_NAMESPACES, 0)));
        let new_user = condition(0, "MASKED_EQ", CLONE_NEWUSER, CLONE_NEWUSER);
        rules.push(refuse_if("clone", new_user, Errno::EPERM));
    }
    rules.push(allow_if("personality", condition(0, "MASKED_EQ", !PERSONALITIES, 0)));
    rules.push(allow_if("personality", condition(0, "EQ", ASK_PERSONALITY, 0)));
    // Each rule has one condition: two on the same argument would be alternatives. 32-bit programs that make
    // sockets by socketcall(2) can't, as no filter sees the kind that they ask for.
    for (operator, value) in [("LT", AF_ALG), ("EQ", AF_ALG + 1), ("GT", AF_VSOCK)] {
        rules.push(allow_if("socket", condition(0, operator, value, 0)));
    }
    rules.push(json!({ "names": allowed, "action": "SCMP_ACT_ALLOW" }));
    rules.push(
        json!({ "names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": Errno::EPERM as u32 }),
    );
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": Errno::ENOSYS as u32,
        "architectures": ARCHITECTURES,
        "syscalls": rules,
    })
}

/// A condition on an argument. For `MASKED_EQ` the value is the mask.
fn condition(index: u32, operator: &str, value: u64, value_two: u64) -> Value {
    let operator = format!("SCMP_CMP_{operator}");
    json!({ "index": index, "value": value, "valueTwo": value_two, "op": operator })
}

fn allow_if(name: &str, condition: Value) -> Value {
    json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition] })
}

fn refuse_if(name: &str, condition: Value, errno: Errno) -> Value {
    json!({
        "names": [name],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": errno as u32,
        "args": [condition],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(profile: &Value, action: &str) -> BTreeSet<String> {
        let rules = profile["syscalls"].as_array().unwrap().iter();
        let rules = rules.filter(|rule| rule["action"] == action && rule["args"].is_null());
        rules
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn each_system_call_is_on_one_list() {
        let all: Vec<&str> = ALLOWED
            .split_whitespace()
            .chain(REFUSED.iter().flat_map(|(_, names)| names.split_whitespace()))
            .chain(["clone", "clone3", "personality", "socket"])
            .collect();
        let mut once = BTreeSet::new();
        for name in all {
            assert!(once.insert(name), "{name} is there twice");
        }
    }

    #[test]
    fn a_capability_allows_what_it_is_for() {
        let none = default_seccomp(&json!([]));
        for name in ["mount", "unshare", "bpf", "keyctl"] {
            assert!(names(&none, "SCMP_ACT_ERRNO").contains(name), "{name}");
            assert!(!names(&none, "SCMP_ACT_ALLOW").contains(name), "{name}");
        }
        assert!(!names(&none, "SCMP_ACT_ALLOW").contains("clone"));
        let admin = default_seccomp(&json!(["CAP_SYS_ADMIN"]));
        for name in ["mount", "unshare", "bpf", "clone", "clone3"] {
            assert!(names(&admin, "SCMP_ACT_ALLOW").contains(name), "{name}");
            assert!(!names(&admin, "SCMP_ACT_ERRNO").contains(name), "{name}");
        }
        for profile in [none, admin] {
            assert!(names(&profile, "SCMP_ACT_ERRNO").contains("keyctl"));
            assert!(!names(&profile, "SCMP_ACT_ALLOW").contains("io_uring_setup"));
        }
    }
}
