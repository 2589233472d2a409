//! System calls that a container must be refused: for programs that attack one from inside, to test it.
//! Nothing else uses them, and no other build has them.
//!
//! Each asks for as little as shows that the kernel would do it: what it gets is dropped, and what would
//! change the machine is asked for with arguments that the kernel refuses after it has looked at the
//! caller's rights.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use libc::{c_long, c_uint};

/// `KEY_SPEC_SESSION_KEYRING`: the keyring that `@s` names in keyctl(1).
pub const SESSION_KEYRING: i32 = -3;
/// `KEY_SPEC_USER_KEYRING`: the keyring that `@u` names, one per user and user namespace.
pub const USER_KEYRING: i32 = -4;
/// `KEY_SPEC_USER_SESSION_KEYRING`: the keyring that `@us` names.
pub const USER_SESSION_KEYRING: i32 = -5;

const KEYCTL_LINK: c_long = 8;
const KEYCTL_UNLINK: c_long = 9;
const KEYCTL_SEARCH: c_long = 10;
const KEYCTL_READ: c_long = 11;
/// The type of keys that hold bytes.
const USER: &CStr = c"user";

/// # Safety
///
/// The arguments are what this call takes; what they point to is valid for it.
unsafe fn call(number: c_long, args: [c_long; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller's promise.
    let done = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn text(text: &CStr) -> c_long {
    text.as_ptr().expose_provenance().cast_signed() as c_long
}

fn place<T>(value: &T) -> c_long {
    std::ptr::from_ref(value).expose_provenance().cast_signed() as c_long
}

fn length(bytes: usize) -> c_long {
    c_long::try_from(bytes).unwrap_or(c_long::MAX)
}

/// Drops the descriptor that a call has returned.
fn descriptor(number: c_long) -> io::Result<OwnedFd> {
    let number = RawFd::try_from(number).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn serial(number: c_long) -> i32 {
    i32::try_from(number).unwrap_or(0)
}

/// Adds a key, or changes the one of this name; returns its serial number (`add_key(2)`).
pub fn add_key(name: &CStr, payload: &[u8], keyring: i32) -> io::Result<i32> {
    let bytes = payload.as_ptr().expose_provenance().cast_signed() as c_long;
    let args = [text(USER), text(name), bytes, length(payload.len()), keyring.into(), 0];
    // SAFETY: two strings, and bytes of the length that is given.
    unsafe { call(libc::SYS_add_key, args) }.map(serial)
}

/// Looks for a key in a keyring and those that are linked to it (`KEYCTL_SEARCH`).
pub fn search_key(keyring: i32, name: &CStr) -> io::Result<i32> {
    let args = [KEYCTL_SEARCH, keyring.into(), text(USER), text(name), 0, 0];
    // SAFETY: two strings.
    unsafe { call(libc::SYS_keyctl, args) }.map(serial)
}

/// Looks for a key in the keyrings of the process (`request_key(2)`). No program is asked to make it.
pub fn request_key(name: &CStr) -> io::Result<i32> {
    // SAFETY: two strings, and no further information.
    unsafe { call(libc::SYS_request_key, [text(USER), text(name), 0, 0, 0, 0]) }.map(serial)
}

/// Reads a key (`KEYCTL_READ`).
pub fn read_key(key: i32) -> io::Result<Vec<u8>> {
    let mut buffer = [0_u8; 256];
    let bytes = buffer.as_mut_ptr().expose_provenance().cast_signed() as c_long;
    let args = [KEYCTL_READ, key.into(), bytes, length(buffer.len()), 0, 0];
    // SAFETY: a buffer of the length that is given.
    let all = unsafe { call(libc::SYS_keyctl, args) }?;
    Ok(buffer[..buffer.len().min(usize::try_from(all).unwrap_or(0))].to_vec())
}

/// Links a key, or a keyring, to a keyring (`KEYCTL_LINK`).
pub fn link_key(key: i32, keyring: i32) -> io::Result<()> {
    let args = [KEYCTL_LINK, key.into(), keyring.into(), 0, 0, 0];
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_keyctl, args) }.map(drop)
}

/// Unlinks a key from a keyring (`KEYCTL_UNLINK`).
pub fn unlink_key(key: i32, keyring: i32) -> io::Result<()> {
    let args = [KEYCTL_UNLINK, key.into(), keyring.into(), 0, 0, 0];
    // SAFETY: numbers only.
    unsafe { call(libc::SYS_keyctl, args) }.map(drop)
}

/// Types a byte into a terminal (`TIOCSTI`).
pub fn type_into(terminal: impl AsFd, byte: u8) -> io::Result<()> {
    // SAFETY: the call reads one byte.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSTI, &raw const byte) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks a virtual console for its selection's state (`TIOCLINUX`, 6): the door to its selection and paste.
pub fn ask_console(terminal: impl AsFd) -> io::Result<()> {
    const TIOCLINUX: libc::Ioctl = 0x541c;
    let mut request = [6_u8, 0, 0, 0];
    // SAFETY: the call reads one byte and writes one.
    let done =
        unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), TIOCLINUX, request.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes an array of one number (`BPF_MAP_CREATE`).
pub fn bpf_map() -> io::Result<OwnedFd> {
    // Type 2 is an array; a key of four bytes, a value of four, one entry.
    let mut attributes = [0_u32; 32];
    attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
    let args = [0, place(&attributes), length(size_of_val(&attributes)), 0, 0, 0];
    // SAFETY: attributes of the size that is given.
    descriptor(unsafe { call(libc::SYS_bpf, args) }?)
}

/// Counts the caller's own page faults (`perf_event_open(2)`).
pub fn perf_event() -> io::Result<OwnedFd> {
    // A software event (type 1), page faults (2), of size 64, without the kernel's (exclude_kernel and
    // exclude_hv, bits 5 and 6).
    let mut attributes = [0_u64; 8];
    attributes[0] = 1 | 64 << 32;
    attributes[1] = 2;
    attributes[5] = 0b110_0000;
    let args = [place(&attributes), 0, -1, -1, 8, 0];
    // SAFETY: attributes of the size that stands in them.
    descriptor(unsafe { call(libc::SYS_perf_event_open, args) }?)
}

/// Makes a ring of one entry (`io_uring_setup(2)`).
pub fn io_uring() -> io::Result<OwnedFd> {
    let parameters = [0_u64; 32];
    // SAFETY: the parameters take 120 bytes; these are more, and all zero.
    descriptor(unsafe { call(libc::SYS_io_uring_setup, [1, place(&parameters), 0, 0, 0, 0]) }?)
}

/// Asks for the faults of the caller's own memory (`userfaultfd(2)`, `UFFD_USER_MODE_ONLY`).
pub fn user_faults() -> io::Result<OwnedFd> {
    // SAFETY: numbers only.
    descriptor(unsafe { call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0, 0]) }?)
}

/// Makes a socket of this family (`socket(2)`), of the kind that it has: `AF_ALG` has sequences of packets,
/// `AF_VSOCK` streams.
pub fn socket(family: i32) -> io::Result<OwnedFd> {
    let kind = if family == libc::AF_ALG { libc::SOCK_SEQPACKET } else { libc::SOCK_STREAM };
    // SAFETY: numbers only.
    descriptor(unsafe { call(libc::SYS_socket, [family.into(), kind.into(), 0, 0, 0, 0]) }?)
}

/// Begins to configure a tmpfs that is mounted nowhere (`fsopen(2)`).
pub fn file_system() -> io::Result<OwnedFd> {
    // SAFETY: a string.
    descriptor(unsafe { call(libc::SYS_fsopen, [text(c"tmpfs"), 1, 0, 0, 0, 0]) }?)
}

/// Clones the mount of `/` (`open_tree(2)`).
pub fn mount_clone() -> io::Result<OwnedFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let args = [libc::AT_FDCWD.into(), text(c"/"), flags.into(), 0, 0, 0];
    // SAFETY: a string.
    descriptor(unsafe { call(libc::SYS_open_tree, args) }?)
}

/// Calls of the machine's administrator, with arguments that no kernel accepts: each is refused, and the
/// error says whether the caller had the right. `EPERM` and `ENOSYS` mean that it had not.
#[must_use]
pub fn administration() -> Vec<(&'static str, io::Error)> {
    let flags = c_long::from(c_uint::MAX);
    let calls: [(&str, c_long, [c_long; 6]); 8] = [
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0, flags, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0, 0, 0, 0]),
        ("finit_module", libc::SYS_finit_module, [-1, 0, 0, 0, 0, 0]),
        ("delete_module", libc::SYS_delete_module, [0, 0, 0, 0, 0, 0]),
        ("acct", libc::SYS_acct, [text(c"/no/such/file"), 0, 0, 0, 0, 0]),
        ("swapon", libc::SYS_swapon, [text(c"/no/such/file"), 0, 0, 0, 0, 0]),
        ("swapoff", libc::SYS_swapoff, [text(c"/no/such/file"), 0, 0, 0, 0, 0]),
        // The first of its magic numbers is wrong.
        ("reboot", libc::SYS_reboot, [1, 1, 0, 0, 0, 0]),
    ];
    let outcome = |(name, number, args)| {
        // SAFETY: strings, numbers and null pointers, which the kernel checks.
        let outcome = unsafe { call(number, args) };
        (name, outcome.err().unwrap_or_else(|| io::Error::other("done")))
    };
    calls.into_iter().map(outcome).collect()
}

/// Reads the kernel's messages (`syslog(2)`) and returns how many bytes there were.
pub fn kernel_messages() -> io::Result<usize> {
    const READ_ALL: c_long = 3;
    let mut buffer = vec![0_u8; 4096];
    let bytes = buffer.as_mut_ptr().expose_provenance().cast_signed() as c_long;
    // SAFETY: a buffer of the length that is given.
    let all = unsafe { call(libc::SYS_syslog, [READ_ALL, bytes, 4096, 0, 0, 0]) }?;
    Ok(usize::try_from(all).unwrap_or(0))
}

/// Opens the file with this number in a file system, past all paths (`open_by_handle_at(2)`): 2 is the root
/// of an ext4.
pub fn open_by_number(mount: impl AsFd, number: u32) -> io::Result<OwnedFd> {
    // The length and the kind of the handle (FILEID_INO32_GEN), the number, no generation.
    let handle = [8_u32, 1, number, 0];
    let flags = libc::O_RDONLY | libc::O_CLOEXEC;
    let args = [mount.as_fd().as_raw_fd().into(), place(&handle), flags.into(), 0, 0, 0];
    // SAFETY: a handle of the length that stands in it.
    descriptor(unsafe { call(libc::SYS_open_by_handle_at, args) }?)
}

/// Makes a child with these namespaces of its own, by clone(2). The child ends at once.
pub fn clone_with(namespaces: i32) -> io::Result<()> {
    let flags = c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without a stack and without shared memory this is fork(2).
    let child = unsafe { call(libc::SYS_clone, [flags, 0, 0, 0, 0, 0]) }?;
    end_or_wait(child)
}

/// The same by clone3(2).
pub fn clone3_with(namespaces: i32) -> io::Result<()> {
    let mut arguments = [0_u64; 8];
    arguments[0] = u64::from(namespaces.cast_unsigned());
    arguments[4] = u64::from(libc::SIGCHLD.cast_unsigned());
    let args = [place(&arguments), length(size_of_val(&arguments)), 0, 0, 0, 0];
    // SAFETY: arguments of the size that is given; it is fork(2), as above.
    let child = unsafe { call(libc::SYS_clone3, args) }?;
    end_or_wait(child)
}

fn end_or_wait(child: c_long) -> io::Result<()> {
    if child == 0 {
        // SAFETY: it ends the child, which has run nothing of the parent's.
        unsafe { libc::_exit(0) }
    }
    let mut status = 0;
    // SAFETY: it waits for a child of ours.
    let done = unsafe { libc::waitpid(serial(child), &raw mut status, libc::__WALL) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Changes a limit of another process (`prlimit(2)`): its open files, to what it has.
pub fn limit_of(pid: i32) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let kind = libc::RLIMIT_NOFILE;
    // SAFETY: one limit is written.
    let asked = unsafe { libc::prlimit(pid, kind, std::ptr::null(), &raw mut limit) };
    // SAFETY: one limit is read.
    let done = asked == 0
        && unsafe { libc::prlimit(pid, kind, &raw const limit, std::ptr::null_mut()) } == 0;
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a system call as a 32-bit program does, by its numbers (`int 0x80`). A kernel without 32-bit programs
/// ends the caller by SIGSEGV.
#[cfg(target_arch = "x86_64")]
pub fn call_as_32_bit(number: u32, [a, b, c]: [u32; 3]) -> io::Result<u32> {
    let result: u64;
    // SAFETY: callers pass numbers only, so that the kernel writes to no memory of this process. The
    // compiler keeps rbx for itself.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {a}",
            "int 0x80",
            "xchg rbx, {a}",
            a = inout(reg) u64::from(a) => _,
            inlateout("rax") u64::from(number) => result,
            in("rcx") u64::from(b),
            in("rdx") u64::from(c),
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    // The upper half is not a 32-bit program's.
    let result = i32::try_from(result.cast_signed()).unwrap_or(-libc::EOVERFLOW);
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result.cast_unsigned()) }
}

/// Makes a socket as 32-bit programs do: by socket(2), or by socketcall(2), whose arguments are in memory. See
/// [`call_as_32_bit`].
#[cfg(target_arch = "x86_64")]
pub fn socket_as_32_bit(family: u32, by_socketcall: bool) -> io::Result<OwnedFd> {
    const SOCKET: u32 = 359;
    const SOCKETCALL: u32 = 102;
    const SYS_SOCKET: u32 = 1;
    let kind = if family == libc::AF_ALG.cast_unsigned() { 5 } else { 1 };
    if !by_socketcall {
        let number = call_as_32_bit(SOCKET, [family, kind, 0])?;
        return descriptor(number.into());
    }
    // Below 4 GiB, where such a program's memory is.
    let length = 4096;
    // SAFETY: new memory, which nothing else has.
    let place = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is a page of ours.
    unsafe { place.cast::<[u32; 3]>().write([family, kind, 0]) };
    let address = u32::try_from(place.expose_provenance()).map_err(io::Error::other);
    let done = address.and_then(|address| call_as_32_bit(SOCKETCALL, [SYS_SOCKET, address, 0]));
    // SAFETY: nothing refers to it any more.
    unsafe { libc::munmap(place, length) };
    descriptor(done?.into())
}

/// Makes a system call by the numbers of the x32 interface: those of 64-bit programs, with one bit more.
#[cfg(target_arch = "x86_64")]
pub fn call_as_x32(number: c_long, argument: c_long) -> io::Result<()> {
    const X32_BIT: c_long = 0x4000_0000;
    // SAFETY: callers pass numbers only.
    unsafe { call(number | X32_BIT, [argument, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Ends this program by SIGALRM after a time, whatever it hangs in: no attack outlives its test.
pub fn end_after(limit: Duration) {
    let seconds = c_uint::try_from(limit.as_secs().max(1)).unwrap_or(c_uint::MAX);
    // SAFETY: it only sets the process's alarm clock.
    unsafe { libc::alarm(seconds) };
}
