//! Seccomp profiles: what a container's programs get for their system calls, the same with runc and
//! with the embedded runtime.

use std::fmt::Write;

use holdfast_supervisor::{ContainerOptions, ExecOptions, ExitStatus, Supervisor};
use holdfast_tests::{Scratch, binary, soon};
use serde_json::{Value, json};

/// System calls that change nothing, with their arguments: a name for the reader, and what Perl does. Perl
/// is on every Debian machine.
#[cfg(target_arch = "x86_64")]
const CALLS: [(&str, &str); 13] = [
    ("getpgrp", "111"),
    ("getuid", "102"),
    ("umask", "95, 022"),
    ("getpriority 0", "140, 0, 0"),
    ("getpriority 1", "140, 1, 0"),
    ("getpriority 1 of 4294967296", "140, 1, 4294967296"),
    ("personality ask", "135, 0xffffffff"),
    ("socket 38", "41, 38, 5, 0"),
    ("sched_yield", "24"),
    ("futex_waitv", "449, 0, 0, 0, 0, 0"),
    ("cachestat of nothing", "451, -1, 0, 0, 0"),
    ("a number of no call", "2000"),
    ("a number below zero", "-1"),
];

/// A script that makes each call and prints whether it was refused, and by which error.
fn script() -> String {
    let mut script = String::from("$| = 1;");
    for (name, call) in CALLS {
        // Perl takes numbers above 2^31 as they are.
        _ = write!(
            script,
            "$! = 0; $r = syscall({call}); print '{name}: ', $r == -1 ? $! + 0 : 'done', \"\\n\";"
        );
    }
    script
}

fn rule(names: &[&str], action: &str, rest: Value) -> Value {
    let mut rule = json!({ "names": names, "action": action });
    for (name, value) in rest.as_object().into_iter().flatten() {
        rule[name] = value.clone();
    }
    rule
}

fn argument(index: u32, operator: &str, value: u64, value_two: u64) -> Value {
    json!({ "index": index, "op": format!("SCMP_CMP_{operator}"), "value": value, "valueTwo": value_two })
}

/// A profile that allows all but what its rules say.
fn all_but(rules: &[Value]) -> Value {
    json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules })
}

fn profiles() -> Vec<(&'static str, Value)> {
    let errno = |names: &[&str], errno: u32, args: Value| {
        rule(names, "SCMP_ACT_ERRNO", json!({ "errnoRet": errno, "args": args }))
    };
    let one = |argument: Value| json!([argument]);
    let priority = |operator, value, two| {
        all_but(&[errno(&["getpriority"], 71, one(argument(0, operator, value, two)))])
    };
    vec![
        ("nothing is refused", all_but(&[])),
        (
            "names that exist and one that does not",
            all_but(&[
                errno(&["getpgrp", "no_such_call", "umask"], 99, json!([])),
                rule(&["sched_yield"], "SCMP_ACT_ERRNO", json!({})),
            ]),
        ),
        ("equal", priority("EQ", 1, 0)),
        ("not equal", priority("NE", 1, 0)),
        ("less", priority("LT", 1, 0)),
        ("less or equal", priority("LE", 0, 0)),
        ("greater", priority("GT", 0, 0)),
        ("greater or equal", priority("GE", 1, 0)),
        ("masked", priority("MASKED_EQ", 3, 1)),
        (
            "64 bits",
            all_but(&[errno(&["getpriority"], 72, one(argument(1, "GT", 0xffff_ffff, 0)))]),
        ),
        (
            "both arguments",
            all_but(&[errno(
                &["getpriority"],
                73,
                json!([argument(0, "EQ", 1, 0), argument(1, "EQ", 0, 0),]),
            )]),
        ),
        (
            "the same argument twice",
            all_but(&[errno(
                &["getpriority"],
                74,
                json!([argument(0, "EQ", 0, 0), argument(0, "EQ", 1, 0),]),
            )]),
        ),
        ("32-bit programs too", {
            let mut profile = all_but(&[errno(&["socket", "getuid"], 75, json!([]))]);
            profile["architectures"] = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
            profile
        }),
    ]
}

/// The names that a profile allows, whatever the arguments are.
fn allowed(profile: &Value) -> Vec<String> {
    let rules = profile["syscalls"].as_array().expect("rules").iter();
    let rules = rules.filter(|rule| rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].is_null());
    let names = rules.flat_map(|rule| rule["names"].as_array().expect("names"));
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

/// An allowlist of those but a few; what else there is is refused.
fn allowlist(names: &[String], without: &[&str], errno: Option<u32>) -> Value {
    let names: Vec<&String> = names.iter().filter(|it| !without.contains(&it.as_str())).collect();
    let others = ["clone", "personality", "socket"];
    let mut profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            { "names": names, "action": "SCMP_ACT_ALLOW" },
            { "names": others, "action": "SCMP_ACT_ALLOW" },
        ],
    });
    if let Some(errno) = errno {
        profile["defaultErrnoRet"] = json!(errno);
    }
    profile
}

async fn printed(supervisor: &Supervisor, options: ContainerOptions) -> String {
    let container = supervisor.run(options).await.expect("run");
    let output = soon("the output", container.output()).await.expect("its output");
    container.delete().await.expect("delete");
    let (out, errors) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
    format!("{:?}\n{}{errors}", output.exit.status, String::from_utf8_lossy(&out))
}

/// The embedded runtime.
fn embedded() -> String {
    binary("holdfast-oci").display().to_string()
}

fn perl() -> ContainerOptions {
    ContainerOptions::host_rootfs().args(["perl", "-e", &script()])
}

#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_means_the_same_with_both_runtimes() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let created = supervisor.create(perl()).await.expect("create");
    let config = std::fs::read(created.info().bundle.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    created.delete().await.unwrap();
    let default = &config["linux"]["seccomp"];
    let names = allowed(default);
    let mut profiles = profiles();
    profiles.push(("the default", default.clone()));
    let without = ["getpgrp", "getpriority", "umask"];
    profiles.push(("what is allowed, else 1", allowlist(&names, &without, None)));
    profiles.push(("what is allowed, else 13", allowlist(&names, &without, Some(13))));
    // Newer calls are unknown to it: they don't exist, whatever the default is.
    let new = [
        "cachestat",
        "listmount",
        "statmount",
        "mseal",
        "map_shadow_stack",
        "uretprobe",
        "uprobe",
        "futex_wait",
        "futex_wake",
        "futex_requeue",
        "fchmodat2",
        "file_getattr",
        "file_setattr",
        "getxattrat",
        "setxattrat",
        "listxattrat",
        "removexattrat",
        "lsm_get_self_attr",
        "lsm_list_modules",
    ];
    profiles.push(("an old list", allowlist(&names, &new, None)));
    for (name, profile) in profiles {
        for no_new_privileges in [true, false] {
            let options = || perl().seccomp(profile.clone()).no_new_privileges(no_new_privileges);
            let runc = printed(&supervisor, options().runtime("runc")).await;
            let ours = printed(&supervisor, options().runtime(embedded())).await;
            assert!(runc.contains("getpgrp: "), "{name}: {runc}");
            assert_eq!(ours, runc, "{name}, no new privileges: {no_new_privileges}");
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_holds_for_an_exec_and_ends_what_it_kills() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    let kill = all_but(&[rule(&["umask"], "SCMP_ACT_KILL_PROCESS", json!({}))]);
    for runtime in ["runc".to_owned(), embedded()] {
        let mut kill = kill.clone();
        if runtime != "runc" {
            // Not yet supported by this runc.
            kill["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]);
        }
        for user in [0, 1000] {
            let options =
                ContainerOptions::host_rootfs().args(["sleep", "100000"]).runtime(&runtime);
            let user = holdfast_supervisor::User { uid: user, gid: user, ..Default::default() };
            let options = options.seccomp(kill.clone()).no_new_privileges(user.uid == 0).user(user);
            let container = supervisor.run(options).await.unwrap();
            let exec = ExecOptions::new(["sh", "-c", "umask 077; echo not reached"]);
            let exec = container.exec(exec).await.unwrap();
            let exit = soon("its end", exec.wait()).await.unwrap();
            assert_eq!(exit, ExitStatus::Signal(31), "{runtime}");
            container.delete_forced().await.unwrap();
        }
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_capabilities_in_its_configuration_a_container_has_none() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for runtime in ["runc".to_owned(), embedded()] {
        let options = scratch.script("grep Cap /proc/self/status").runtime(&runtime);
        let container = supervisor
            .run_with(options, |spec| {
                if let Some(process) = spec.process_mut() {
                    process.set_capabilities(None);
                }
            })
            .await
            .unwrap();
        let output = soon("the output", container.output()).await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().all(|line| line.ends_with("0000000000000000")), "{runtime}: {text}");
    }
    scratch.close(supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_that_is_none_is_refused() {
    let scratch = Scratch::new();
    let supervisor = scratch.open().await;
    for (profile, reason) in [
        (json!({ "archMap": [], "defaultAction": "SCMP_ACT_ALLOW" }), "docker"),
        (json!({ "syscalls": [] }), "defaultAction"),
    ] {
        let error = supervisor.run(scratch.script("true").seccomp(profile)).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
    let unsupported = json!({ "defaultAction": "SCMP_ACT_NOTIFY" });
    let options = scratch.script("true").seccomp(unsupported).runtime(embedded());
    let error = supervisor.run(options).await.unwrap_err();
    assert!(error.to_string().contains("SCMP_ACT_NOTIFY is not supported"), "{error}");
    scratch.close(supervisor).await;
}
