//! The example of a service that hosts containers itself, run as its users would run it.

use std::path::{Path, PathBuf};

use holdfast_tests::{Holdfast, Running, binary, eventually, runtime};
use nix::sys::signal::Signal;
use tokio::process::Command;

fn embed(root: &Path) -> Running {
    let mut command = Command::new(binary("examples/embed"));
    // It takes what `auto` finds: the runtime under test, else Holdfast's own.
    let own = binary("holdfast");
    let path = [runtime(), &own].map(|program| program.parent().expect("a file's directory"));
    command.env("PATH", std::env::join_paths(path).expect("a PATH"));
    command.arg(root).kill_on_drop(true);
    Running::of(command)
}

#[tokio::test]
async fn the_embed_example_picks_its_containers_up_after_it_was_killed() {
    // The state root, and a look at what is left; the daemon here is the example.
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let mut first = embed(&root);
    let line = first.line().await;
    assert!(line.starts_with("0 containers restored in "), "{line}");
    let mut begun = [first.line().await, first.line().await, first.line().await];
    begun.sort();
    assert_eq!(begun, ["failing: started", "quick: started", "slow: started"]);
    // They are, once that is in the journal.
    let started = |id: &str| holdfast_tests::journal::has(&root, id, "started");
    eventually("all three to run", || ["slow", "failing"].into_iter().all(started)).await;
    let end = holdfast.end_of_shim("failing");
    assert_eq!(first.line().await, "quick: ended with 0 (known by Shim)");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end().await.code, None);
    // It ends with nobody there but its shim.
    end.come().await;

    let mut second = embed(&root);
    let mut said = Vec::new();
    while let Some(line) = second.next_line().await {
        said.push(line);
    }
    let ended = second.end().await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{said:?}");
    // The quick one was being deleted when the first was killed: it may be found or be made anew.
    let restored = &said[0];
    let two_or_three = restored.starts_with("2 containers") || restored.starts_with("3 containers");
    assert!(two_or_three && restored.contains(" restored in "), "{said:?}");
    for line in [
        "failing: picked up, stopped",
        "failing: ended with 42 (known by Shim)",
        "slow: picked up, running",
        "slow: ended with 3 (known by Shim)",
        "quick: ended with 0 (known by Shim)",
    ] {
        assert!(said.iter().any(|said| said == line), "{line:?} is not in {said:#?}");
    }
    assert_eq!(holdfast.leftovers(), [""; 0]);
}

#[test]
fn the_embed_example_is_under_sixty_lines() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/supervisor/examples/embed.rs");
    let lines = std::fs::read_to_string(path).unwrap().lines().count();
    assert!(lines < 60, "{lines} lines");
}
