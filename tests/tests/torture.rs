//! The short form of `cargo xtask torture`; the long ones are in docs/reliability.md.

use std::process::Command;

use holdfast_tests::binary;
use holdfast_tests::user::User;

/// As many as two loaded cores manage in two minutes without optimization.
const EXITS: &str = "2000";
/// The same way, and with the work of user namespaces in it.
const EXITS_WITHOUT_ROOT: &str = "300";

fn tortures(program: &str, args: &[&str]) {
    let output = Command::new(binary(program)).args(args).output().expect("start torture");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}

#[test]
fn no_status_is_lost_or_wrong_while_daemon_and_shims_are_killed_at_random() {
    tortures("torture", &["--exits", EXITS, "--seed", "2026"]);
}

#[test]
fn nor_is_one_of_a_user_without_roots_rights() {
    if User::WithRanges.runs_this() {
        tortures("torture", &["--exits", EXITS_WITHOUT_ROOT, "--seed", "2026"]);
    }
}

#[test]
fn each_restart_is_counted_once_while_daemon_and_shims_are_killed_at_random() {
    tortures("torture-policies", &["--rounds", "1", "--seed", "2026"]);
}
