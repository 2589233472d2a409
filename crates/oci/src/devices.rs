//! Which devices a container may open or make.
//!
//! runc's order holds: everything is denied, then the bundle's rules apply, then a few devices are
//! allowed that no program can do without. On cgroup version 1 libcgroups writes the rules, which
//! [`complete`] puts in order; on version 2 the kernel wants a program instead, which is made here.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, bail};
use holdfast_sys::bpf::{Instruction, attach_device_program};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use serde_json::{Value, json};

// As the kernel numbers them, in the halves of a request's first word (`linux/bpf.h`).
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// What is allowed whatever the bundle says, as libcgroups has it on version 1: to make any device,
/// which is not to open it, and to use null, zero, full, random, urandom, tty, console, ptmx, the
/// terminals of devpts, and tun.
const ALWAYS: [(i32, Option<i32>, Option<i32>, i32); 12] = [
    (CHARACTER, Some(1), Some(3), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(5), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(7), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(8), MKNOD | READ | WRITE),
    (CHARACTER, Some(1), Some(9), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(0), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(1), MKNOD | READ | WRITE),
    (CHARACTER, Some(5), Some(2), MKNOD | READ | WRITE),
    (CHARACTER, Some(136), None, MKNOD | READ | WRITE),
    (CHARACTER, Some(10), Some(200), MKNOD | READ | WRITE),
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
];

/// Puts the rules of a configuration in order: the first one denies everything, and no other says
/// more than it means.
pub(crate) fn complete(config: &mut Value) -> anyhow::Result<()> {
    let resources = &mut config["linux"]["resources"];
    if resources.is_null() {
        *resources = json!({});
    }
    let mut rules = vec![json!({ "allow": false, "type": "a", "access": "rwm" })];
    for rule in resources["devices"].as_array().into_iter().flatten() {
        rules.extend(exact(rule));
    }
    if !resources.is_object() {
        bail!("config.json: linux.resources is not an object");
    }
    resources["devices"] = json!(rules);
    Ok(())
}

/// A rule in the kernel's words. It takes every rule for all types to be for all devices and all
/// access, whatever else that says: `a 10:200 r` would open all.
fn exact(rule: &Value) -> Vec<Value> {
    let mut rule = rule.clone();
    for number in ["major", "minor"] {
        if rule[number].as_i64().is_some_and(|number| number < 0) {
            rule[number] = Value::Null;
        }
    }
    let allow = rule["allow"] == true;
    let access = rule["access"].as_str().unwrap_or_default().to_owned();
    if access.is_empty() {
        if allow {
            return Vec::new();
        }
        rule["access"] = json!("rwm");
    }
    let any = rule["type"].is_null() || rule["type"] == "a";
    let whole = "rwm".chars().all(|c| access.contains(c)) || access.is_empty();
    let everything = whole && rule["major"].is_null() && rule["minor"].is_null();
    if !any || everything {
        return vec![rule];
    }
    ["c", "b"]
        .map(|kind| {
            rule["type"] = json!(kind);
            rule.clone()
        })
        .into()
}

/// Has a cgroup of version 2 enforce the rules of a configuration.
pub(crate) fn enforce(rules: &[LinuxDeviceCgroup], cgroup: &Path) -> anyhow::Result<()> {
    let program = program(rules).context("device rules")?;
    let dir = File::open(cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    match attach_device_program(&dir, &program) {
        // Nobody there may make a device or mount a file system with one, whatever the cgroup says.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_rootless()? => Ok(()),
        done => done.with_context(|| {
            format!(
                "attach the device rules to {}, which takes CONFIG_CGROUP_BPF",
                cgroup.display()
            )
        }),
    }
}

/// Whether this process is in another user namespace than the machine's first, or isn't root.
fn is_rootless() -> io::Result<bool> {
    /// `PROC_USER_INIT_INO` of the kernel.
    const FIRST: u64 = 0xeffffffd;
    let namespace = std::fs::metadata("/proc/self/ns/user")?.ino();
    Ok(namespace != FIRST || !nix::unistd::geteuid().is_root())
}

// What an instruction does: a class, and what is done to which kind of operand.
const LOAD_WORD: u8 = 0x61;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP_IF_ANY: u8 = 0x45;
const JUMP: u8 = 0x05;
const EXIT: u8 = 0x95;

// The registers that it uses. The request comes in the first.
const RESULT: u8 = 0;
const REQUEST: u8 = 1;
const KIND: u8 = 2;
/// The rights that are asked for and no rule has granted yet.
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program for a list of rules, of which the last one counts that says something of a device and
/// a right. A request for several rights at once is granted if each of them is.
fn program(rules: &[LinuxDeviceCgroup]) -> anyhow::Result<Vec<Instruction>> {
    let op = |code, target, immediate| Instruction::new(code, target, 0, 0, immediate);
    let load = |target, from| Instruction::new(LOAD_WORD, target, REQUEST, from, 0);
    let mut program = vec![
        load(KIND, 0),
        op(AND, KIND, 0xffff),
        load(LEFT, 0),
        op(SHIFT_RIGHT, LEFT, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for (kind, major, minor, access) in ALWAYS.into_iter().rev() {
        program.extend(one(true, kind, major, minor, access));
    }
    for rule in rules.iter().rev() {
        let kinds = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => &[CHARACTER, BLOCK][..],
            LinuxDeviceType::C => &[CHARACTER],
            LinuxDeviceType::B => &[BLOCK],
            kind => bail!("{rule}: there are no rules for devices of type {}", kind.as_str()),
        };
        let number = |number: Option<i64>| number.map(i32::try_from).transpose();
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        let (Ok(major), Ok(minor)) = (major, minor) else { bail!("{rule}: no such device") };
        let mut access = 0;
        for right in rule.access().as_deref().unwrap_or_default().chars() {
            access |= match right {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => bail!("{rule}: access {right:?} is none of r, w and m"),
            };
        }
        for kind in kinds {
            program.extend(one(rule.allow(), *kind, major, minor, access));
        }
    }
    program.extend([op(SET, RESULT, 0), op(EXIT, 0, 0)]);
    Ok(program)
}

/// The part of the program for one rule.
fn one(
    allow: bool,
    kind: i32,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
) -> Vec<Instruction> {
    let op = |code, target, offset, immediate| Instruction::new(code, target, 0, offset, immediate);
    let decide = [op(SET, RESULT, 0, allow.into()), op(EXIT, 0, 0, 0)];
    let mut part = Vec::new();
    if allow {
        // Granted: done if nothing is left to ask for.
        part.push(op(AND, LEFT, 0, !access & (MKNOD | READ | WRITE)));
        part.push(op(JUMP_IF_NOT, LEFT, 2, 0));
    } else {
        // Refused if one of what is left is denied.
        part.push(op(JUMP_IF_ANY, LEFT, 1, access));
        part.push(op(JUMP, 0, 2, 0));
    }
    part.extend(decide);
    let conditions = [(MINOR, minor), (MAJOR, major), (KIND, Some(kind))];
    for (register, value) in conditions.into_iter().filter_map(|(r, value)| Some((r, value?))) {
        let beyond = i16::try_from(part.len()).unwrap_or(i16::MAX);
        part.insert(0, op(JUMP_IF_NOT, register, beyond, value));
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    /// What a configuration's rules become.
    fn rules(devices: &Value) -> Vec<LinuxDeviceCgroup> {
        let mut config = json!({ "linux": { "resources": { "devices": devices } } });
        complete(&mut config).unwrap();
        serde_json::from_value(config["linux"]["resources"]["devices"].clone()).unwrap()
    }

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], request: [i32; 3]) -> i64 {
        let mut registers = [0_i64; 6];
        let mut at = 0;
        loop {
            let instruction = program[at];
            let immediate = i64::from(instruction.immediate);
            let target = usize::from(instruction.target());
            let value = registers[target];
            at += 1;
            let jumps = match instruction.code {
                LOAD_WORD => {
                    assert_eq!(instruction.source(), REQUEST);
                    registers[target] =
                        request[usize::try_from(instruction.offset / 4).unwrap()].into();
                    false
                }
                SET => {
                    registers[target] = immediate;
                    false
                }
                AND => {
                    registers[target] &= immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[target] >>= immediate;
                    false
                }
                JUMP_IF_NOT => value != immediate,
                JUMP_IF_ANY => value & immediate != 0,
                JUMP => true,
                EXIT => return registers[usize::from(RESULT)],
                code => panic!("{code:#x}"),
            };
            if jumps {
                at += usize::try_from(instruction.offset).unwrap();
            }
        }
    }

    /// Whether the rules let a device be used: `c 1:3 rw`.
    fn allows(rules: &[LinuxDeviceCgroup], request: &str) -> bool {
        let words: Vec<&str> = request.split([' ', ':']).collect();
        let access = words[3].chars().map(|right| match right {
            'r' => READ,
            'w' => WRITE,
            _ => MKNOD,
        });
        let kind = if words[0] == "c" { CHARACTER } else { BLOCK };
        let request = [
            access.sum::<i32>() << 16 | kind,
            words[1].parse().unwrap(),
            words[2].parse().unwrap(),
        ];
        run(&program(rules).unwrap(), request) == 1
    }

    #[test]
    fn without_rules_only_what_every_program_needs_is_allowed() {
        for devices in [json!(null), json!([]), json!([{ "allow": false, "access": "rwm" }])] {
            let rules = rules(&devices);
            for device in
                ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0", "5:1", "5:2", "136:7", "10:200"]
            {
                assert!(allows(&rules, &format!("c {device} rw")), "{device}");
            }
            assert!(allows(&rules, "c 1:1 m") && allows(&rules, "b 8:0 m"));
            for request in ["b 8:0 r", "b 8:0 w", "b 1:3 rw", "c 1:1 r", "c 1:11 r", "b 8:0 rm"] {
                assert!(!allows(&rules, request), "{request}");
            }
        }
    }

    #[test]
    fn the_last_rule_counts_for_each_right_by_itself() {
        let rules = rules(&json!([
            { "allow": true, "type": "b", "major": 8, "access": "rw" },
            { "allow": false, "type": "b", "major": 8, "minor": 1, "access": "w" },
            { "allow": true, "type": "c", "major": 10, "minor": 1, "access": "r" },
            { "allow": true, "type": "c", "major": 10, "minor": 1, "access": "w" },
        ]));
        for request in ["b 8:0 rw", "b 8:1 r", "c 10:1 rw"] {
            assert!(allows(&rules, request), "{request}");
        }
        for request in ["b 8:1 w", "b 8:1 rw", "c 10:2 r", "b 9:0 r"] {
            assert!(!allows(&rules, request), "{request}");
        }
    }

    #[test]
    fn a_rule_for_everything_allows_everything() {
        let privileged = rules(&json!([{ "allow": true, "access": "rwm" }]));
        for request in ["b 8:0 rwm", "c 1:1 rwm"] {
            assert!(allows(&privileged, request), "{request}");
        }
        let taken_back = rules(&json!([
            { "allow": true, "access": "rwm" },
            { "allow": false, "type": "b", "access": "rwm" },
        ]));
        assert!(allows(&taken_back, "c 1:1 rw") && !allows(&taken_back, "b 8:0 r"));
    }

    #[test]
    fn a_rule_for_all_types_says_no_more_than_it_means() {
        let narrow = rules(&json!([
            { "allow": true, "type": "a", "major": 8, "minor": 0, "access": "r" },
            { "allow": true, "major": 9, "minor": -1, "access": "rwm" },
            { "allow": true },
        ]));
        let lines: Vec<String> = narrow.iter().map(ToString::to_string).collect();
        let expected = ["a *:* rwm", "c 8:0 r", "b 8:0 r", "c 9:* rwm", "b 9:* rwm"];
        assert_eq!(lines, expected);
        assert!(allows(&narrow, "b 8:0 r") && allows(&narrow, "c 9:1 rw"));
        assert!(!allows(&narrow, "b 8:0 w") && !allows(&narrow, "b 8:1 r"));
    }

    #[test]
    fn a_rule_that_can_not_be_enforced_is_an_error() {
        for rule in [
            json!({ "allow": true, "type": "p", "access": "r" }),
            json!({ "allow": true, "type": "c", "access": "x" }),
            json!({ "allow": true, "type": "c", "major": 1_u64 << 40, "access": "r" }),
        ] {
            assert!(program(&rules(&json!([rule]))).is_err(), "{rule}");
        }
    }

    /// A cgroup of version 2 for a test, if this may make one.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Option<Self> {
            let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
            let mount = mounts.iter().find(|mount| mount.join("cgroup.controllers").exists())?;
            let dir = mount.join(format!("holdfast-devices-{}", std::process::id()));
            fs::create_dir(&dir).ok()?;
            Some(Self(dir))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir(&self.0).unwrap();
        }
    }

    #[test]
    fn the_kernel_takes_the_program_and_obeys_it() {
        let Some(cgroup) = Scratch::new() else {
            return eprintln!("NOT RUN: it takes root and a cgroup of version 2");
        };
        let rules = rules(&json!([
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
        ]));
        enforce(&rules, &cgroup.0).unwrap();
        // kmsg may be read and not written to; zero is free as ever.
        let script = format!(
            "echo 0 > {}/cgroup.procs || exit 1
             true < /dev/zero && echo zero
             true < /dev/kmsg && echo read kmsg
             true >> /dev/kmsg && echo write kmsg
             true <> /dev/kmsg && echo open kmsg
             :",
            cgroup.0.display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        let (out, error) = (output.stdout, String::from_utf8(output.stderr).unwrap());
        assert_eq!(String::from_utf8(out).unwrap(), "zero\nread kmsg\n", "{error}");
        assert_eq!(error.matches("Operation not permitted").count(), 2, "{error}");
    }
}
