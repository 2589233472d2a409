//! Hooks as the OCI runtime specification has them: their order, what they read, and what comes after one
//! that fails or hangs, by the embedded runtime and by runc beside it. docs/oci-runtime.md has the table.
//!
//! At revision 8c80469 no poststop hook of the embedded runtime ran after a failed `create`, a failed
//! poststop hook was not reported, hooks of `create` were told another bundle, and a path that is not
//! absolute was looked for in `PATH`.

use std::fs;
use std::time::{Duration, Instant};

use holdfast_tests::oci::{Made, Oci, both, embedded};
use serde_json::{Value, json};

const MOMENTS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook by a shell's script.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// What the hooks of a container wrote, a word for each and the state that it read.
fn notes(oci: &Oci) -> Vec<(String, Value)> {
    let text = fs::read_to_string(oci.path().join("notes")).expect("read the notes");
    let note = |line: &str| {
        let (name, state) = line.split_once(' ').unwrap_or((line, ""));
        (name.to_owned(), serde_json::from_str(state).unwrap_or_default())
    };
    text.lines().map(note).collect()
}

/// Runs a container with two hooks for each moment, the first of which takes a note of its state. In one
/// moment the first does something else afterwards.
fn with_hooks(oci: &Oci, moment: &str, after: &str) -> Made {
    let file = oci.path().join("notes");
    fs::write(&file, "").expect("make a file");
    let file = file.to_str().expect("UTF-8");
    oci.run("echo ran", |config| {
        for name in MOMENTS {
            let file = if name == "startContainer" { "/notes" } else { file };
            let after = if name == moment { after } else { "" };
            config["hooks"][name] = json!([
                hook(&format!("state=$(cat); echo {name} $state >> {file}; {after}")),
                hook(&format!("echo {name}-2 >> {file}")),
            ]);
        }
        config["annotations"] = json!({ "a.b": "c" });
        let mount =
            json!({ "destination": "/notes", "type": "bind", "source": file, "options": ["bind"] });
        config["mounts"].as_array_mut().expect("an array").push(mount);
    })
}

fn names(notes: &[(String, Value)]) -> Vec<&str> {
    notes.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn hooks_run_in_order_and_read_the_state() {
    for oci in both() {
        assert_eq!(with_hooks(&oci, "", "").said(), "ran\n");
        let mut notes = notes(&oci);
        // The program and the poststart hooks run at the same time.
        let place = |name: &str, notes: &[(String, Value)]| {
            notes.iter().position(|(it, _)| it == name).unwrap_or_else(|| panic!("{name} ran"))
        };
        for pair in [["createContainer-2", "poststart"], ["poststart-2", "poststop"]] {
            let [before, after] = pair.map(|name| place(name, &notes));
            assert!(before < after, "{notes:?}, {oci:?}");
        }
        notes.sort_by_key(|(name, _)| {
            MOMENTS.iter().position(|it| name.trim_end_matches("-2") == *it)
        });
        let all = MOMENTS.iter().flat_map(|name| [(*name).to_owned(), format!("{name}-2")]);
        assert_eq!(names(&notes), all.collect::<Vec<_>>(), "{oci:?}");
        for (name, state) in notes.iter().filter(|(name, _)| !name.ends_with("-2")) {
            let status = match name.as_str() {
                // Its poststart hooks run before the program.
                "poststart" if oci.is_runc() => "created",
                "poststart" => "running",
                "poststop" => "stopped",
                "startContainer" if oci.is_runc() => "created",
                _ => "creating",
            };
            assert_eq!(state["status"], status, "{name}, {oci:?}");
            // libcontainer gives hooks in the container its own words.
            if name == "startContainer" && !oci.is_runc() {
                continue;
            }
            assert_eq!(state["bundle"], json!(oci.path().join("bundle")), "{name}, {oci:?}");
            assert_eq!(state["annotations"]["a.b"], "c", "{name}, {oci:?}");
            // Inside the container, runc gives the number that the process has there.
            let inside = ["createContainer", "startContainer"].contains(&name.as_str());
            let least = if oci.is_runc() && inside { 1 } else { 2 };
            let alive = state["pid"].as_i64().is_some_and(|pid| pid >= least);
            assert_eq!(alive, name != "poststop", "{name}: {state}, {oci:?}");
        }
    }
}

#[test]
fn after_a_hook_that_fails_the_rest_is_left_out_and_poststop_hooks_run() {
    for oci in both() {
        for (number, moment) in MOMENTS[..3].iter().enumerate() {
            let reason = with_hooks(&oci, moment, "exit 3").reason();
            assert!(reason.contains("hook") && reason.contains('3'), "{reason}");
            let before = MOMENTS[..number].iter();
            let before = before.flat_map(|name| [(*name).to_owned(), format!("{name}-2")]);
            let last = [(*moment).to_owned(), "poststop".to_owned(), "poststop-2".to_owned()];
            let expected: Vec<String> = before.chain(last).collect();
            assert_eq!(names(&notes(&oci)), expected, "{moment}, {oci:?}");
        }
        // Within the container, once `create` has ended.
        let made = with_hooks(&oci, "startContainer", "exit 3");
        let said = made.said();
        assert!(said.contains("hook") && !said.contains("ran"), "{said}, {oci:?}");
        let notes = notes(&oci);
        assert!(!names(&notes).contains(&"startContainer-2"), "{notes:?}, {oci:?}");
        assert_eq!(names(&notes)[notes.len() - 2..], ["poststop", "poststop-2"], "{oci:?}");
    }
}

#[test]
fn a_container_whose_poststart_hook_fails_is_stopped() {
    // runc 1.1 runs these hooks at `create`, and fails that.
    let oci = embedded();
    let file = oci.path().join("notes");
    fs::write(&file, "").expect("make a file");
    let made = oci.run("exec sleep 100000", |config| {
        config["hooks"]["poststart"] = json!([hook("exit 3")]);
        config["hooks"]["poststop"] = json!([hook(&format!("echo poststop > {}", file.display()))]);
    });
    assert_eq!(made.refused, None);
    let reason = made.not_started.expect("start fails");
    assert!(reason.contains("poststart") && reason.contains('3'), "{reason}");
    assert_eq!(fs::read_to_string(&file).expect("read it"), "poststop\n");
}

#[test]
fn after_a_poststop_hook_that_fails_the_others_run() {
    // runc 1.1 leaves out the others.
    let oci = embedded();
    let made = with_hooks(&oci, "poststop", "exit 3");
    assert!(made.deleted.contains("poststop hook /bin/sh"), "{}", made.deleted);
    assert!(made.deleted.contains('3'), "{}", made.deleted);
    assert_eq!(made.said(), "ran\n");
    let notes = notes(&oci);
    assert_eq!(names(&notes)[notes.len() - 2..], ["poststop", "poststop-2"]);
}

#[test]
fn a_hook_that_hangs_is_killed_once_and_the_container_is_gone() {
    let oci = embedded();
    let file = oci.path().join("notes");
    let note = |name: &str| format!("echo {name} >> {}", file.display());
    let begun = Instant::now();
    let made = oci.run("echo ran", |config| {
        let mut hangs = hook(&format!("{}; exec sleep 100000", note("hangs")));
        hangs["timeout"] = json!(1);
        config["hooks"]["poststop"] = json!([hangs, hook(&note("next"))]);
    });
    assert!(made.deleted.contains("poststop hook"), "{}", made.deleted);
    assert_eq!(made.said(), "ran\n");
    assert_eq!(fs::read_to_string(&file).expect("read it"), "hangs\nnext\n");
    // One that says no time of its own is given ten seconds.
    fs::write(&file, "").expect("write it");
    let made = oci.run("echo ran", |config| {
        let hangs = hook(&format!("{}; exec sleep 100000", note("hangs")));
        config["hooks"]["poststop"] = json!([hangs, hook(&note("next"))]);
    });
    assert_eq!(made.said(), "ran\n");
    assert_eq!(fs::read_to_string(&file).expect("read it"), "hangs\nnext\n");
    // While a container is made it fails that.
    let made = oci.run("echo ran", |config| {
        let mut hangs = hook("exec sleep 100000");
        hangs["timeout"] = json!(1);
        config["hooks"]["createRuntime"] = json!([hangs]);
    });
    let reason = made.reason();
    assert!(reason.contains("hook"), "{reason}");
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn a_hook_that_can_not_be_one_is_refused_by_its_place() {
    let oci = embedded();
    for (hook, named) in [
        (json!({ "path": "true" }), "hooks.createRuntime[0].path: \"true\" is not absolute"),
        (json!({ "path": "/bin/true", "timeout": 0 }), "hooks.createRuntime[0].timeout: 0"),
        (json!({ "path": "/no/such" }), "execute hook /no/such: No such file"),
    ] {
        let made = oci.run("true", |config| config["hooks"]["createRuntime"] = json!([hook]));
        let reason = made.reason();
        assert!(reason.contains(named), "{reason}");
    }
}
