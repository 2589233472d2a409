//! Which runtime `auto` is, and that `holdfast info` says which and why.

use std::fs;
use std::os::unix::fs::symlink;

use holdfast_tests::{Holdfast, binary, runtime};
use serde_json::json;

/// A daemon in whose `PATH` the runtime under test stands under these names, and nothing else.
async fn with_runtimes(names: &[&str]) -> Holdfast {
    let mut holdfast = Holdfast::without_daemon();
    let path = holdfast.scratch.path().join("path");
    fs::create_dir(&path).expect("make a directory");
    for name in names {
        symlink(runtime(), path.join(name)).expect("link a runtime");
    }
    let auto = |command: &mut tokio::process::Command| {
        command.env("PATH", path).args(["--runtime", "auto"]);
    };
    holdfast.start_daemon_by(auto).await;
    holdfast
}

/// What `info` says, and what a container gets that names no runtime.
async fn runs_with(holdfast: Holdfast, program: &str, reason: &str) {
    let info = holdfast.json(&["info", "--json"]).await;
    assert_eq!(info["runtime"], json!({ "program": program, "reason": reason }));
    let said = holdfast.ok(&["info"]).await;
    assert!(said.contains(&format!("runtime   {program} ({reason})\n")), "{said}");
    let id = holdfast.run_detached(&[], &["sh", "-c", "exit 7"]).await;
    assert_eq!(holdfast.ok(&["wait", &id]).await, "7\n");
    assert_eq!(holdfast.inspect(&id).await["runtime"], program);
    holdfast.close().await;
}

#[tokio::test]
async fn auto_is_runc_where_it_is_in_path() {
    let holdfast = with_runtimes(&["crun", "runc"]).await;
    let runc = holdfast.scratch.path().join("path/runc").display().to_string();
    runs_with(holdfast, &runc, "runc is in PATH").await;
}

#[tokio::test]
async fn auto_is_crun_where_runc_is_not_in_path() {
    let holdfast = with_runtimes(&["crun"]).await;
    let crun = holdfast.scratch.path().join("path/crun").display().to_string();
    runs_with(holdfast, &crun, "crun is in PATH, and runc is not").await;
}

#[tokio::test]
async fn auto_is_holdfasts_own_where_there_is_no_other() {
    let holdfast = with_runtimes(&[]).await;
    let own = binary("holdfast-oci").display().to_string();
    let reason = "neither runc nor crun is in PATH; this one comes with Holdfast";
    runs_with(holdfast, &own, reason).await;
}

#[tokio::test]
async fn a_runtime_that_was_asked_for_is_no_choice() {
    let mut holdfast = Holdfast::without_daemon();
    let asked = holdfast_tests::runtime_name();
    holdfast.start_daemon_by(|command| _ = command.args(["--runtime", asked])).await;
    let info = holdfast.json(&["info", "--json"]).await;
    let reason = "asked for when the supervisor was opened";
    assert_eq!(info["runtime"], json!({ "program": asked, "reason": reason }));
    holdfast.close().await;
}
