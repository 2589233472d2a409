//! Seccomp profiles, compiled to the kernel's filters.
//!
//! The filter is one program of the classic BPF machine. For each architecture it finds the verdict on a
//! system call's number by a binary search over ranges of numbers with the same verdict.
//!
//! What a profile means is what runc and libseccomp make of it:
//!
//! - A name that no architecture of the profile has is passed over.
//! - The machine's own architecture always counts. One that is not listed ends the process.
//! - A rule without conditions wins over all others for that system call. Of the rest the first that
//!   holds counts.
//! - Two conditions of a rule on the same argument are alternatives; on different ones, both must hold.
//! - Where the default is a refusal, a system call with a higher number than all that the profile names
//!   is answered with `ENOSYS`: it is newer than the profile, and a program does without it.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use holdfast_sys::seccomp::{self, Instruction};
use nix::errno::Errno;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator,
};
use serde_json::{Value, json};

/// A profile as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    program: Vec<Instruction>,
    flags: u32,
}

impl Filter {
    /// Filters the calling thread, and what it executes.
    pub(crate) fn load(&self) -> std::io::Result<()> {
        seccomp::load(&self.program, self.flags)
    }
}

/// What `features` says of it.
pub(crate) fn features() -> Value {
    let archs: &[&str] = if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    let flags =
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
            "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
        ],
        "archs": archs,
        "knownFlags": flags,
        "supportedFlags": flags,
    })
}

/// What the kernel does with a system call: a value of `linux/seccomp.h`.
type Verdict = u32;

const KILL_PROCESS: Verdict = 0x8000_0000;
const KILL_THREAD: Verdict = 0;
const TRAP: Verdict = 0x0003_0000;
const ERRNO: Verdict = 0x0005_0000;
const TRACE: Verdict = 0x7ff0_0000;
const LOG: Verdict = 0x7ffc_0000;
const ALLOW: Verdict = 0x7fff_0000;

const NO_SUCH_CALL: Verdict = ERRNO | Errno::ENOSYS as u32;

/// The largest error number that the kernel returns.
const MOST_ERRNO: u32 = 4095;

/// The longest program that the kernel takes.
const MOST_INSTRUCTIONS: usize = 4096;

/// The bit that tells a call of x32 from one of x86-64, which is the same architecture to the kernel.
const X32: u32 = 0x4000_0000;

/// Compiles a profile.
pub(crate) fn compile(profile: &LinuxSeccomp) -> anyhow::Result<Filter> {
    if profile.listener_path().is_some() {
        bail!(
            "linux.seccomp.listenerPath is not supported by the embedded runtime; use runc or crun"
        );
    }
    let machines = machines(profile);
    // It begins with the comparisons of the architecture, two instructions for each, and what any other gets.
    let mut program = vec![load(ARCHITECTURE)];
    let mut at = 2 * machines.len() + 2;
    let mut blocks = Vec::new();
    for machine in &machines {
        let block = block(machine, profile)?;
        program.push(test(EQUAL, machine.token, 0, 1));
        program.push(skip(at - program.len() - 1)?);
        at += block.len();
        blocks.push(block);
    }
    program.push(give(KILL_PROCESS));
    program.extend(blocks.into_iter().flatten());
    ensure!(
        program.len() <= MOST_INSTRUCTIONS,
        "linux.seccomp: the profile takes {} instructions, and the kernel {MOST_INSTRUCTIONS}",
        program.len()
    );
    Ok(Filter { program, flags: flags(profile)? })
}

fn flags(profile: &LinuxSeccomp) -> anyhow::Result<u32> {
    let mut flags = 0;
    for flag in profile.flags().as_deref().unwrap_or_default() {
        flags |= match flag {
            Flag::SeccompFilterFlagLog => seccomp::LOG,
            Flag::SeccompFilterFlagSpecAllow => seccomp::SPEC_ALLOW,
            // There is one thread yet.
            Flag::SeccompFilterFlagTsync => 0,
            Flag::SeccompFilterFlagWaitKillableRecv => bail!(
                "linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is of use with \
                 SCMP_ACT_NOTIFY alone, which is not supported by the embedded runtime"
            ),
        };
    }
    Ok(flags)
}

fn verdict(action: Action, errno: Option<u32>) -> anyhow::Result<Verdict> {
    let takes_errno = matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    ensure!(takes_errno || errno.is_none(), "{action} takes no error number");
    let errno = errno.unwrap_or(Errno::EPERM as u32);
    ensure!(errno <= MOST_ERRNO, "the error number {errno} is above {MOST_ERRNO}");
    Ok(match action {
        Action::ScmpActKill | Action::ScmpActKillThread => KILL_THREAD,
        Action::ScmpActKillProcess => KILL_PROCESS,
        Action::ScmpActTrap => TRAP,
        Action::ScmpActErrno => ERRNO | errno,
        Action::ScmpActTrace => TRACE | errno,
        Action::ScmpActLog => LOG,
        Action::ScmpActAllow => ALLOW,
        Action::ScmpActNotify => {
            bail!("SCMP_ACT_NOTIFY is not supported by the embedded runtime; use runc or crun")
        }
    })
}

/// Whether a system call goes on by itself. A tracer is expected to know new ones.
fn permits(action: Action) -> bool {
    matches!(action, Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace)
}

/// An architecture whose programs this machine runs.
#[derive(Debug)]
struct Machine {
    /// `AUDIT_ARCH_*` of `linux/audit.h`, by which the kernel tells them apart.
    token: u32,
    /// A system call's number by its name.
    number: fn(&str) -> Option<i32>,
    /// Whether one system call may stand for many, named by its first argument.
    has_multiplexers: bool,
    /// What a call of x32 gets, where the kernel gives those the same token.
    x32: Option<Verdict>,
}

/// The machine's own architecture, and those of the profile that it runs as well. It runs no others, so
/// that these need no rules.
#[cfg(target_arch = "x86_64")]
fn machines(profile: &LinuxSeccomp) -> Vec<Machine> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    // Most kernels have none of x32, or have it switched off, and answer so.
    let x32 = if listed.contains(&Arch::ScmpArchX32) { NO_SUCH_CALL } else { KILL_PROCESS };
    let mut machines = vec![Machine {
        token: 0xc000_003e,
        number: |name| name.parse().ok().map(|call: syscalls::x86_64::Sysno| call.id()),
        has_multiplexers: false,
        x32: Some(x32),
    }];
    if listed.contains(&Arch::ScmpArchX86) {
        machines.push(Machine {
            token: 0x4000_0003,
            number: |name| name.parse().ok().map(|call: syscalls::x86::Sysno| call.id()),
            has_multiplexers: true,
            x32: None,
        });
    }
    machines
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
fn machines(profile: &LinuxSeccomp) -> Vec<Machine> {
    let listed = profile.architectures().as_deref().unwrap_or_default();
    let mut machines = vec![Machine {
        token: 0xc000_00b7,
        number: |name| name.parse().ok().map(|call: syscalls::aarch64::Sysno| call.id()),
        has_multiplexers: false,
        x32: None,
    }];
    if listed.contains(&Arch::ScmpArchArm) {
        machines.push(Machine {
            token: 0x4000_0028,
            number: |name| name.parse().ok().map(|call: syscalls::arm::Sysno| call.id()),
            has_multiplexers: false,
            x32: None,
        });
    }
    machines
}

/// What the profile says of one system call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rules {
    /// In their order; each holds if all of its conditions do.
    conditional: Vec<(Vec<LinuxSeccompArg>, Verdict)>,
    /// What holds whatever the arguments are.
    always: Option<Verdict>,
}

/// The rules of all system calls that the profile names, by number.
fn rules(machine: &Machine, profile: &LinuxSeccomp) -> anyhow::Result<BTreeMap<u32, Rules>> {
    let mut rules: BTreeMap<u32, Rules> = BTreeMap::new();
    let number = |name: &str| (machine.number)(name).and_then(|number| u32::try_from(number).ok());
    for rule in profile.syscalls().as_deref().unwrap_or_default() {
        let about = || format!("linux.seccomp.syscalls, {}", rule.names().join(" "));
        let verdict = verdict(rule.action(), rule.errno_ret()).with_context(about)?;
        let arguments = rule.args().as_deref().unwrap_or_default();
        for argument in arguments {
            let index = argument.index();
            ensure!(index < 6, "{}: there is no argument {index}, the last is 5", about());
        }
        for name in rule.names() {
            if let Some(number) = number(name) {
                rules.entry(number).or_default().add(arguments, verdict);
            }
            let multiplexed = machine.has_multiplexers.then(|| multiplexer(name)).flatten();
            if let Some((number, condition)) =
                multiplexed.and_then(|(by, it)| Some((number(by)?, it)))
            {
                // Its own arguments are in memory, where no filter sees them: what is allowed for some is
                // not allowed, what is refused for some is refused.
                if arguments.is_empty() || !permits(rule.action()) {
                    rules.entry(number).or_default().add(&[condition], verdict);
                }
            }
        }
    }
    Ok(rules)
}

impl Rules {
    fn add(&mut self, arguments: &[LinuxSeccompArg], verdict: Verdict) {
        let twice = |one: &LinuxSeccompArg| {
            arguments.iter().filter(|other| other.index() == one.index()).count() > 1
        };
        if arguments.is_empty() {
            self.always.get_or_insert(verdict);
        } else if arguments.iter().any(twice) {
            // runc's reading of a profile that says the same argument twice.
            self.conditional.extend(arguments.iter().map(|one| (vec![*one], verdict)));
        } else {
            self.conditional.push((arguments.to_vec(), verdict));
        }
    }
}

/// The system call of 32-bit x86 that stands for this one too, and for what value of its first argument.
fn multiplexer(name: &str) -> Option<(&'static str, LinuxSeccompArg)> {
    // The values are those of `linux/net.h` and `linux/ipc.h`. ipc(2) takes a version in the upper half.
    let by = |call, mask, value: u64| {
        let condition = LinuxSeccompArgBuilder::default()
            .index(0_usize)
            .op(Operator::ScmpCmpMaskedEq)
            .value(mask)
            .value_two(value)
            .build();
        Some((call, condition.ok()?))
    };
    let socket = SOCKET_CALLS.iter().zip(1_u64..).find(|(call, _)| **call == name);
    let ipc = IPC_CALLS.iter().find(|(call, _)| *call == name);
    match (socket, ipc) {
        (Some((_, value)), _) => by("socketcall", u64::MAX, value),
        (_, Some((_, value))) => by("ipc", 0xffff, *value),
        _ => None,
    }
}

/// In the order of their numbers, from 1.
const SOCKET_CALLS: [&str; 20] = [
    "socket",
    "bind",
    "connect",
    "listen",
    "accept",
    "getsockname",
    "getpeername",
    "socketpair",
    "send",
    "recv",
    "sendto",
    "recvfrom",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "sendmsg",
    "recvmsg",
    "accept4",
    "recvmmsg",
    "sendmmsg",
];

const IPC_CALLS: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// The instructions for one architecture.
fn block(machine: &Machine, profile: &LinuxSeccomp) -> anyhow::Result<Vec<Instruction>> {
    let default = verdict(profile.default_action(), profile.default_errno_ret())
        .context("linux.seccomp.defaultAction")?;
    let rules = rules(machine, profile)?;
    let newer = if permits(profile.default_action()) { default } else { NO_SUCH_CALL };
    let simple = |verdict| Rules { always: Some(verdict), ..Rules::default() };
    // From which number on which rules hold.
    let mut ranges: Vec<(u32, Rules)> = vec![(0, simple(default))];
    let mut begin = |from: u32, rules: Rules| match ranges.last_mut() {
        Some((last, before)) if *last == from => *before = rules,
        Some((_, before)) if *before == rules => {}
        _ => ranges.push((from, rules)),
    };
    let highest = rules.last_key_value().map(|(number, _)| *number);
    for (number, mut rules) in rules {
        if rules.always.is_some() {
            rules.conditional.clear();
        }
        rules.always.get_or_insert(default);
        begin(number, rules);
        begin(number + 1, simple(default));
    }
    if let Some(highest) = highest {
        begin(highest + 1, simple(newer));
    }
    if let Some(verdict) = machine.x32 {
        begin(X32, simple(verdict));
        // A tracer's way to have no system call made.
        begin(u32::MAX, simple(default));
    }
    Ok([vec![load(NUMBER)], search(&ranges)?].concat())
}

/// The instructions that find the range of the number that was loaded, and give its verdict.
fn search(ranges: &[(u32, Rules)]) -> anyhow::Result<Vec<Instruction>> {
    if let [(_, rules)] = ranges {
        return decide(rules);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let below = search(low)?;
    let mut code = match u8::try_from(below.len()) {
        Ok(length) => vec![test(NOT_BELOW, high[0].0, length, 0)],
        Err(_) => vec![test(NOT_BELOW, high[0].0, 0, 1), skip(below.len())?],
    };
    code.extend(below);
    code.extend(search(high)?);
    Ok(code)
}

/// The instructions that look at the arguments, where rules have conditions, and give a verdict.
fn decide(rules: &Rules) -> anyhow::Result<Vec<Instruction>> {
    let mut code = Vec::new();
    for (conditions, verdict) in &rules.conditional {
        // From the last to the first, so that each knows how far it is to the next rule.
        let mut rule = vec![give(*verdict)];
        for condition in conditions.iter().rev() {
            let mut tested = compare(condition, u8::try_from(rule.len())?)?;
            tested.append(&mut rule);
            rule = tested;
        }
        code.append(&mut rule);
    }
    code.push(give(rules.always.context("a system call without a verdict")?));
    Ok(code)
}

/// The instructions that go on after them if an argument is as the condition says, and else pass over
/// `rest` more.
///
/// The machine compares 32 bits, without a sign: first the upper half, then the lower one.
fn compare(condition: &LinuxSeccompArg, rest: u8) -> anyhow::Result<Vec<Instruction>> {
    let [low, high] = halves(condition.value());
    let [low_at, high_at] = argument(condition.index())?;
    Ok(match condition.op() {
        Operator::ScmpCmpEq => vec![
            load(high_at),
            test(EQUAL, high, 0, rest + 2),
            load(low_at),
            test(EQUAL, low, 0, rest),
        ],
        Operator::ScmpCmpNe => {
            vec![load(high_at), test(EQUAL, high, 0, 2), load(low_at), test(EQUAL, low, rest, 0)]
        }
        Operator::ScmpCmpGt | Operator::ScmpCmpGe => {
            let code = if condition.op() == Operator::ScmpCmpGt { ABOVE } else { NOT_BELOW };
            vec![
                load(high_at),
                test(ABOVE, high, 3, 0),
                test(EQUAL, high, 0, rest + 2),
                load(low_at),
                test(code, low, 0, rest),
            ]
        }
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            let code = if condition.op() == Operator::ScmpCmpLt { NOT_BELOW } else { ABOVE };
            vec![
                load(high_at),
                test(ABOVE, high, rest + 3, 0),
                test(EQUAL, high, 0, 2),
                load(low_at),
                test(code, low, rest, 0),
            ]
        }
        Operator::ScmpCmpMaskedEq => {
            let [low_datum, high_datum] = halves(condition.value_two().unwrap_or_default());
            vec![
                load(high_at),
                and(high),
                test(EQUAL, high_datum, 0, rest + 3),
                load(low_at),
                and(low),
                test(EQUAL, low_datum, 0, rest),
            ]
        }
    })
}

/// The lower and the upper half.
#[allow(clippy::cast_possible_truncation)]
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

// Where a system call's number, architecture and arguments are in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Where the lower and the upper half of an argument are. Both architectures have the lower one first.
fn argument(index: usize) -> anyhow::Result<[u32; 2]> {
    let at = ARGUMENTS + 8 * u32::try_from(index)?;
    Ok([at, at + 4])
}

// Codes of instructions, from `linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const ALWAYS: u16 = 0x05;
const EQUAL: u16 = 0x15;
const ABOVE: u16 = 0x25;
const NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;

fn load(at: u32) -> Instruction {
    Instruction { code: LOAD, jump_true: 0, jump_false: 0, operand: at }
}

fn and(mask: u32) -> Instruction {
    Instruction { code: AND, jump_true: 0, jump_false: 0, operand: mask }
}

fn give(verdict: Verdict) -> Instruction {
    Instruction { code: RETURN, jump_true: 0, jump_false: 0, operand: verdict }
}

/// Passes over so many instructions.
fn skip(count: usize) -> anyhow::Result<Instruction> {
    let operand = u32::try_from(count)?;
    Ok(Instruction { code: ALWAYS, jump_true: 0, jump_false: 0, operand })
}

/// Passes over so many instructions if the comparison holds, and so many if it does not.
fn test(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NATIVE: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };

    /// What the kernel's machine makes of a system call.
    fn run(filter: &Filter, architecture: u32, number: u32, arguments: [u64; 6]) -> Verdict {
        let word = |at: u32| match at {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => {
                let at = at - ARGUMENTS;
                halves(arguments[at as usize / 8])[at as usize % 8 / 4]
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, operand } = filter.program[at];
            at += 1;
            let holds = match code {
                RETURN => return operand,
                LOAD => {
                    accumulator = word(operand);
                    continue;
                }
                AND => {
                    accumulator &= operand;
                    continue;
                }
                ALWAYS => {
                    at += operand as usize;
                    continue;
                }
                EQUAL => accumulator == operand,
                ABOVE => accumulator > operand,
                NOT_BELOW => accumulator >= operand,
                _ => panic!("code {code:#x}"),
            };
            at += usize::from(if holds { jump_true } else { jump_false });
        }
    }

    fn profile(profile: Value) -> LinuxSeccomp {
        serde_json::from_value(profile).unwrap()
    }

    fn compiled(value: Value) -> Filter {
        compile(&profile(value)).unwrap()
    }

    fn native(name: &str) -> u32 {
        name.parse::<syscalls::Sysno>().unwrap().id().try_into().unwrap()
    }

    #[test]
    fn what_is_not_allowed_is_refused_and_what_is_newer_does_not_exist() {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                { "names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 },
            ],
        }));
        let verdict = |number| run(&filter, NATIVE, number, [0; 6]);
        assert_eq!(verdict(native("read")), ALLOW);
        assert_eq!(verdict(native("write")), ALLOW);
        assert_eq!(verdict(native("close")), ERRNO | 1);
        assert_eq!(verdict(native("openat2")), ERRNO | 13);
        assert_eq!(verdict(native("openat2") + 1), NO_SUCH_CALL);
        assert_eq!(run(&filter, 0x4000_0003, 1, [0; 6]), KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        {
            assert_eq!(verdict(X32), KILL_PROCESS);
            assert_eq!(verdict(u32::MAX), ERRNO | 1);
        }
    }

    #[test]
    fn a_default_that_permits_has_no_end() {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS" }],
        }));
        assert_eq!(run(&filter, NATIVE, 10_000, [0; 6]), ALLOW);
        assert_eq!(run(&filter, NATIVE, native("mount"), [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn a_rule_without_conditions_wins_and_else_the_first_that_holds() {
        let rule = |value: u64, action: &str| {
            json!({
                "names": ["personality"], "action": action,
                "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }],
            })
        };
        let rules = [rule(1, "SCMP_ACT_ERRNO"), rule(1, "SCMP_ACT_KILL"), rule(2, "SCMP_ACT_LOG")];
        let filter = compiled(json!({ "defaultAction": "SCMP_ACT_TRAP", "syscalls": rules }));
        let verdict = |filter: &Filter, value| {
            run(filter, NATIVE, native("personality"), [value, 0, 0, 0, 0, 0])
        };
        assert_eq!(verdict(&filter, 1), ERRNO | 1);
        assert_eq!(verdict(&filter, 2), LOG);
        assert_eq!(verdict(&filter, 3), TRAP);
        let mut rules = rules.to_vec();
        rules.push(json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW" }));
        let filter = compiled(json!({ "defaultAction": "SCMP_ACT_TRAP", "syscalls": rules }));
        assert_eq!(verdict(&filter, 1), ALLOW);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn what_is_refused_to_32_bit_programs_is_refused_by_socketcall_too() {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                { "names": ["socket", "shmget"], "action": "SCMP_ACT_ERRNO" },
                { "names": ["bind"], "action": "SCMP_ACT_ERRNO",
                  "args": [{ "index": 0, "value": 7, "op": "SCMP_CMP_EQ" }] },
            ],
        }));
        let x86 = |number, first| run(&filter, 0x4000_0003, number, [first, 0, 0, 0, 0, 0]);
        let (socketcall, ipc, socket) = (102, 117, 359);
        assert_eq!(x86(socket, 0), ERRNO | 1);
        assert_eq!(x86(socketcall, 1), ERRNO | 1);
        assert_eq!(x86(socketcall, 2), ERRNO | 1);
        assert_eq!(x86(socketcall, 3), ALLOW);
        assert_eq!(x86(ipc, 23), ERRNO | 1);
        assert_eq!(x86(ipc, 23 | 1 << 16), ERRNO | 1);
        assert_eq!(x86(ipc, 24), ALLOW);
        assert_eq!(run(&filter, NATIVE, X32 | 1, [0; 6]), NO_SUCH_CALL);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = |value: Value| format!("{:#}", compile(&profile(value)).unwrap_err());
        let rule =
            |rule: Value| error(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
        let notify = rule(json!({ "names": ["read"], "action": "SCMP_ACT_NOTIFY" }));
        assert!(notify.contains("syscalls, read: SCMP_ACT_NOTIFY"), "{notify}");
        let errno = rule(json!({ "names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000 }));
        assert!(errno.contains("70000"), "{errno}");
        let errno = rule(json!({ "names": ["a"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1 }));
        assert!(errno.contains("SCMP_ACT_ALLOW takes no error number"), "{errno}");
        let argument = json!([{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }]);
        let index = rule(json!({ "names": ["a"], "action": "SCMP_ACT_KILL", "args": argument }));
        assert!(index.contains("no argument 6"), "{index}");
        let listener = error(json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a" }));
        assert!(listener.contains("listenerPath"), "{listener}");
    }

    #[test]
    fn a_program_that_the_kernel_would_not_take_is_refused() {
        let condition = |value: u64| {
            json!({ "names": ["read"], "action": "SCMP_ACT_LOG", "args": [
                { "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
        };
        let rules: Vec<Value> = (0..1000).map(condition).collect();
        let all = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules });
        assert!(compile(&profile(all)).unwrap_err().to_string().contains("4096"));
    }

    /// A value that is near another: where comparisons of halves go wrong.
    fn value() -> impl Strategy<Value = u64> {
        let half =
            || prop_oneof![Just(0_u64), Just(1), Just(2), Just(0xffff_ffff), Just(0x8000_0000)];
        (half(), half()).prop_map(|(high, low)| high << 32 | low)
    }

    fn holds(condition: &LinuxSeccompArg, arguments: &[u64; 6]) -> bool {
        let (argument, value) = (arguments[condition.index()], condition.value());
        match condition.op() {
            Operator::ScmpCmpNe => argument != value,
            Operator::ScmpCmpLt => argument < value,
            Operator::ScmpCmpLe => argument <= value,
            Operator::ScmpCmpEq => argument == value,
            Operator::ScmpCmpGe => argument >= value,
            Operator::ScmpCmpGt => argument > value,
            Operator::ScmpCmpMaskedEq => argument & value == condition.value_two().unwrap_or(0),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_program_says_what_the_rules_say(
            rules in proptest::collection::vec(
                (
                    0_i32..40,
                    0_u32..50,
                    proptest::collection::vec((0_usize..3, 0_usize..7, value(), value()), 0..3),
                ),
                0..60,
            ),
            calls in proptest::collection::vec((0_u32..42, value(), value(), value()), 50),
        ) {
            const OPERATORS: [&str; 7] = [
                "SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE",
                "SCMP_CMP_GT", "SCMP_CMP_MASKED_EQ",
            ];
            let rules: Vec<Value> = rules.iter().map(|(number, errno, conditions)| {
                let name = syscalls::Sysno::from(*number).name();
                let args: Vec<Value> = conditions.iter().map(|(index, operator, value, datum)| json!({
                    "index": index, "op": OPERATORS[*operator], "value": value, "valueTwo": datum,
                })).collect();
                json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args })
            }).collect();
            let profile = profile(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules }));
            let filter = compile(&profile).unwrap();
            for (number, a, b, c) in calls {
                let arguments = [a, b, c, 0, 0, 0];
                let of_it = || profile.syscalls().iter().flatten()
                    .filter(|rule| native(&rule.names()[0]) == number);
                let errno = |rule: &oci_spec::runtime::LinuxSyscall| {
                    ERRNO | rule.errno_ret().unwrap()
                };
                let conditions = |rule: &oci_spec::runtime::LinuxSyscall| {
                    rule.args().clone().unwrap_or_default()
                };
                let expected = of_it()
                    .find(|rule| conditions(rule).is_empty())
                    .or_else(|| of_it().find(|rule| {
                        let conditions = conditions(rule);
                        let twice = conditions.len() == 2 && conditions[0].index() == conditions[1].index();
                        let mut all = conditions.iter();
                        if twice {
                            all.any(|one| holds(one, &arguments))
                        } else {
                            all.all(|one| holds(one, &arguments))
                        }
                    }))
                    .map_or(ALLOW, errno);
                prop_assert_eq!(run(&filter, NATIVE, number, arguments), expected);
            }
        }
    }
}
