//! The short form of `cargo xtask torture`; the long ones are in docs/reliability.md.

use std::process::Command;

use holdfast_tests::binary;

/// As many as two loaded cores manage in two minutes without optimization.
const EXITS: &str = "2000";

#[test]
fn no_status_is_lost_or_wrong_while_daemon_and_shims_are_killed_at_random() {
    let seed = "2026";
    let args = ["--exits", EXITS, "--seed", seed];
    let output = Command::new(binary("torture")).args(args).output().expect("start torture");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}
