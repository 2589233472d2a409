//! What cannot be done: each has its own clear error, a code that says so, and changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use holdfast_tests::{Holdfast, Ran, ran, unique_id};
use nix::sys::signal::Signal;
use tokio::process::Command;

/// A daemon with one container that runs, against which bad input is thrown.
struct Victim {
    holdfast: Holdfast,
    id: String,
    bundle: String,
}

impl Victim {
    async fn new() -> Self {
        let holdfast = Holdfast::start().await;
        let id = unique_id("good").to_string();
        holdfast.run_detached(&["--name", &id], &["sleep", "100000"]).await;
        let bundle = holdfast.scratch.bundle().to_str().expect("a path in UTF-8").to_owned();
        Self { holdfast, id, bundle }
    }

    /// A command fails by this code, and everything is as it was.
    async fn refuses(&self, code: i32, args: &[&str]) -> String {
        let before = (self.holdfast.listing(), self.holdfast.inspect(&self.id).await);
        let message = self.holdfast.fails(code, args).await;
        assert!(!message.contains("panicked"), "{message}");
        let after = (self.holdfast.listing(), self.holdfast.inspect(&self.id).await);
        assert_eq!(before, after, "changed by {args:?}");
        assert_eq!(after.1["status"], "running");
        message
    }

    async fn close(self) {
        self.holdfast.close().await;
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// The exit code of what makes no sense as typed: 2, but where that could be a container's own.
fn misuse(args: &[&str]) -> i32 {
    if matches!(args[0], "run" | "exec") { 125 } else { 2 }
}

#[tokio::test]
async fn an_unknown_id_is_said_by_every_command_that_takes_one() {
    let victim = Victim::new().await;
    for args in [
        ["start", "nobody"].as_slice(),
        &["inspect", "nobody"],
        &["inspect", "--json", "nobody"],
        &["wait", "nobody"],
        &["wait", "--json", "nobody"],
        &["kill", "nobody"],
        &["kill", "-s", "TERM", "nobody"],
        &["logs", "nobody"],
        &["logs", "-f", "nobody"],
        &["delete", "nobody"],
        &["delete", "-f", "nobody"],
    ] {
        let message = victim.refuses(1, args).await;
        assert_eq!(message, "holdfast: no such container: nobody\n", "{args:?}");
    }
    for args in [["exec", "nobody", "true"].as_slice(), &["exec", "-d", "nobody", "true"]] {
        let message = victim.refuses(125, args).await;
        assert_eq!(message, "holdfast: no such container: nobody\n", "{args:?}");
    }
    // Each unknown one is named, and the known one is not passed over for them.
    let both = victim.holdfast.run(&["inspect", "--json", "nobody", &victim.id, "none"]).await;
    assert_eq!(both.code, Some(1));
    assert!(both.stdout.contains(&victim.id), "{both:?}");
    let each = "holdfast: no such container: nobody\nholdfast: no such container: none\n";
    assert_eq!(both.stderr, each);
    victim.close().await;
}

#[tokio::test]
async fn a_taken_id_is_refused() {
    let victim = Victim::new().await;
    let source = ["--name", &victim.id, "--bundle", &victim.bundle, "--", "true"];
    for (code, command) in [
        (125, ["run"].as_slice()),
        (125, &["run", "--rm"]),
        (125, &["run", "-d"]),
        (1, &["create"]),
    ] {
        let message = victim.refuses(code, &[command, &source].concat()).await;
        let id = &victim.id;
        let expected = format!(
            "holdfast: container {id} exists already; delete it first, or choose another id\n"
        );
        assert_eq!(message, expected, "{command:?}");
    }
    victim.close().await;
}

#[tokio::test]
async fn what_cannot_be_an_id_is_refused_by_every_command_that_takes_one() {
    let victim = Victim::new().await;
    let long = "x".repeat(129);
    // With what would be another request, were it pasted into the path of one.
    let other_request = format!("{}/wait", victim.id);
    let other_query = format!("{}?force=true", victim.id);
    for id in ["a/b", "..", ".", "../x", "/", "", ".hidden", "a b", "a%2Fb", "a\nb", "ä", &long]
        .into_iter()
        .chain([other_request.as_str(), &other_query])
    {
        for args in [
            ["run", "--name", id, "--bundle", &victim.bundle].as_slice(),
            &["run", "-d", "--name", id, "--bundle", &victim.bundle],
            &["create", "--name", id, "--rootfs", "host"],
            &["start", id],
            &["exec", id, "true"],
            &["inspect", id],
            &["wait", id],
            &["kill", id],
            &["logs", id],
            &["delete", id],
            &["delete", "-f", id],
            // After a good one, which must not be touched for it either.
            &["delete", "-f", &victim.id, id],
        ] {
            let message = victim.refuses(misuse(args), args).await;
            let rule = "an id has 1 to 128 of the characters a-z A-Z 0-9 _ . -";
            assert!(
                message.contains("invalid id") && message.contains(rule),
                "{args:?}: {message}"
            );
        }
    }
    victim.close().await;
}

#[tokio::test]
async fn a_bundle_that_is_none_is_refused_and_named() {
    let victim = Victim::new().await;
    let dir = victim.holdfast.scratch.path().join("bad");
    let config = dir.join("config.json");
    let refused = async |reason: &str| {
        let bundle = text(&dir);
        for (code, command) in [(125, ["run"].as_slice()), (125, &["run", "-d"]), (1, &["create"])]
        {
            let args = [command, &["--name", "never", "--bundle", bundle]].concat();
            let message = victim.refuses(code, &args).await;
            let expected = format!("holdfast: bundle {bundle}: {reason}");
            assert!(message.starts_with(&expected), "{message:?} is not {expected:?}");
        }
    };
    refused("No such file or directory").await;
    fs::create_dir(&dir).unwrap();
    refused("config.json: No such file or directory").await;
    fs::create_dir(&config).unwrap();
    refused("config.json: not a regular file").await;
    fs::remove_dir(&config).unwrap();
    for (content, reason) in [
        ("", "config.json: not JSON"),
        ("\0\u{1}garbage", "config.json: not JSON"),
        ("{\"ociVersion\": \"1.0.2\"", "config.json: not JSON"),
        ("[]", "config.json: not an OCI configuration"),
        ("null", "config.json: not an OCI configuration"),
        ("7", "config.json: not an OCI configuration"),
        ("{}", "config.json: not an OCI configuration: no ociVersion"),
        ("{\"ociVersion\": \"1.0.2\"}", "config.json: not an OCI configuration: no root.path"),
        (
            "{\"ociVersion\": \"1.0.2\", \"root\": {\"path\": \"rootfs\"}}",
            "config.json: not an OCI configuration: no process.args",
        ),
    ] {
        fs::write(&config, content).unwrap();
        refused(reason).await;
    }
    fs::write(&config, vec![0xff; 1000]).unwrap();
    refused("config.json: not JSON").await;
    victim.close().await;
}

#[tokio::test]
async fn a_root_file_system_or_runtime_that_is_not_there_is_refused_and_named() {
    let victim = Victim::new().await;
    let nowhere = victim.holdfast.scratch.path().join("nowhere");
    let nowhere = text(&nowhere);
    let message = victim.refuses(125, &["run", "--rootfs", nowhere, "--", "true"]).await;
    assert!(message.starts_with(&format!("holdfast: root file system {nowhere}: ")), "{message}");
    let file = format!("{}/config.json", victim.bundle);
    let message = victim.refuses(125, &["run", "--rootfs", &file, "--", "true"]).await;
    let expected = format!("holdfast: root file system {file}: not a directory\n");
    assert_eq!(message, expected);
    for runtime in ["no-such-runtime", "/no/such/runtime"] {
        let args = ["run", "--runtime", runtime, "--bundle", &victim.bundle, "--", "true"];
        let message = victim.refuses(125, &args).await;
        let expected = format!("holdfast: {runtime}: not installed on system");
        assert!(message.starts_with(&expected), "{message}");
    }
    victim.close().await;
}

#[tokio::test]
async fn an_unknown_signal_or_a_bad_duration_is_refused_before_anything_is_done() {
    let victim = Victim::new().await;
    for signal in ["NOPE", "0", "65", "-1", "", "SIG", "99999999999999999999", "RTMIN+31"] {
        let signal = format!("--signal={signal}");
        let message = victim.refuses(2, &["kill", &signal, &victim.id]).await;
        assert!(message.contains("signal") && message.contains("as in TERM"), "{message}");
    }
    for duration in ["2", "", "soon", "-1s", "0s", "1.5.5s", "2 parsecs", "0.1ms"] {
        let timeout = format!("--timeout={duration}");
        for args in [
            ["run", "--name", "never", &timeout, "--rootfs", "host", "--", "true"].as_slice(),
            &["create", "--name", "never", &timeout, "--rootfs", "host", "--", "true"],
            &["exec", &timeout, &victim.id, "true"],
        ] {
            let message = victim.refuses(misuse(args), args).await;
            assert!(message.contains("'--timeout"), "{message}");
            let told = message.contains("as in 2s") || message.contains("at least 1ms");
            assert!(told, "{message}");
        }
    }
    victim.close().await;
}

#[tokio::test]
async fn without_a_daemon_every_command_says_how_to_start_one() {
    let holdfast = Holdfast::without_daemon();
    let bundle = holdfast.scratch.bundle();
    let socket = holdfast.root().join("holdfast.sock");
    for (code, args) in [
        (1, ["ps"].as_slice()),
        (1, &["ps", "--all", "--json"]),
        (1, &["info"]),
        (1, &["start", "x"]),
        (1, &["inspect", "x"]),
        (1, &["wait", "x"]),
        (1, &["kill", "x"]),
        (1, &["logs", "x"]),
        (1, &["events"]),
        (1, &["delete", "x"]),
        (1, &["create", "--bundle", text(&bundle)]),
        (125, &["run", "--bundle", text(&bundle)]),
        (125, &["run", "-d", "--bundle", text(&bundle)]),
        (125, &["exec", "x", "true"]),
    ] {
        let message = holdfast.fails(code, args).await;
        let expected = format!("holdfast: no daemon answers at {}; ", socket.display());
        assert!(message.starts_with(&expected), "{args:?}: {message}");
        assert!(message.contains("start one with `holdfast daemon`"), "{args:?}: {message}");
    }
    assert!(!holdfast.root().exists(), "a command that could do nothing has made the state root");
}

#[tokio::test]
async fn a_state_root_that_another_daemon_holds_is_refused_and_its_holder_named() {
    let victim = Victim::new().await;
    let root = victim.holdfast.root();
    let holder = format!(
        "holdfast: state root {} is in use by process {}: one daemon a root; ",
        root.display(),
        victim.holdfast.daemon().process().pid
    );
    let elsewhere = victim.holdfast.scratch.path().join("elsewhere.sock");
    for args in [["daemon"].as_slice(), &["--address", text(&elsewhere), "daemon"]] {
        let message = victim.refuses(1, args).await;
        // The log of a daemon comes before its last words.
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.starts_with(&holder), "{message}");
    }
    assert!(!elsewhere.exists());
    victim.close().await;
}

#[tokio::test]
async fn an_address_at_which_another_daemon_answers_is_refused() {
    let victim = Victim::new().await;
    let (root, socket) = (
        victim.holdfast.scratch.path().join("other"),
        victim.holdfast.root().join("holdfast.sock"),
    );
    let args = ["--root", text(&root), "--address", text(&socket), "daemon"];
    let before = victim.holdfast.listing();
    let message = daemon_fails(&args).await;
    let expected = format!("holdfast: socket {}: another daemon answers there\n", socket.display());
    assert!(message.ends_with(&expected), "{message}");
    assert_eq!(before, victim.holdfast.listing());
    victim.close().await;
}

#[tokio::test]
async fn something_else_than_a_socket_at_the_address_is_refused_and_left() {
    let holdfast = Holdfast::without_daemon();
    let address = holdfast.scratch.path().join("address");
    let root = holdfast.root();
    let args = ["--root", text(&root), "--address", text(&address), "daemon"];
    let refused = async || {
        let message = daemon_fails(&args).await;
        let place = address.display();
        let expected = format!("holdfast: socket {place}: there is something else than a socket\n");
        assert!(message.ends_with(&expected), "{message}");
    };
    fs::write(&address, "precious").unwrap();
    refused().await;
    assert_eq!(fs::read_to_string(&address).unwrap(), "precious");
    fs::remove_file(&address).unwrap();
    // A link to nowhere is not followed.
    std::os::unix::fs::symlink("nowhere", &address).unwrap();
    refused().await;
    assert_eq!(fs::read_link(&address).unwrap(), Path::new("nowhere"));
    fs::remove_file(&address).unwrap();
    fs::create_dir(&address).unwrap();
    refused().await;
    fs::remove_dir(&address).unwrap();
    let away = holdfast.scratch.path().join("no/such/dir/holdfast.sock");
    let args = ["--root", text(&root), "--address", text(&away), "daemon"];
    let message = daemon_fails(&args).await;
    let expected = format!("holdfast: socket {}: No such file or directory", away.display());
    assert!(message.contains(&expected), "{message}");
}

#[tokio::test]
async fn a_socket_that_nobody_answers_is_replaced_and_works_again() {
    let mut holdfast = Holdfast::start().await;
    let id = holdfast.run_detached(&[], &["sleep", "100000"]).await;
    let socket = holdfast.root().join("holdfast.sock");
    holdfast.kill_daemon().await;
    assert!(socket.exists(), "a killed daemon cannot have removed it");
    let message = holdfast.fails(1, &["ps"]).await;
    assert!(message.contains("start one with `holdfast daemon`"), "{message}");
    holdfast.start_daemon().await;
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    // One of a stranger's, too.
    assert_eq!(holdfast.take_daemon().end(Signal::SIGTERM).await.code(), Some(0));
    assert!(!socket.exists(), "it goes with a daemon that ends in order");
    drop(UnixListener::bind(&socket).unwrap());
    holdfast.start_daemon().await;
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn a_state_root_that_cannot_be_made_is_said() {
    let holdfast = Holdfast::without_daemon();
    let file = holdfast.scratch.path().join("file");
    fs::write(&file, "precious").unwrap();
    for root in [file.as_path(), &file.join("below"), Path::new("/proc/no/such/place")] {
        let message = daemon_fails(&["--root", text(root), "daemon"]).await;
        let expected = format!("holdfast: state root {}: ", root.display());
        assert!(message.starts_with(&expected), "{message}");
        assert_eq!(message.matches("os error").count(), 1, "{message}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn a_daemon_whose_shim_is_not_there_says_so() {
    let holdfast = Holdfast::without_daemon();
    let root = holdfast.root();
    let message = daemon_fails(&["--root", text(&root), "daemon", "--shim", "/no/such/shim"]).await;
    let expected = "holdfast: holdfast-shim: not installed on system (looked in /no/such/shim)\n";
    assert_eq!(message, expected);
    assert!(!root.exists());
}

/// What a daemon says that cannot start.
async fn daemon_fails(args: &[&str]) -> String {
    let mut command = Command::new(holdfast_tests::binary("holdfast"));
    command.args(args).kill_on_drop(true);
    let Ran { code, stdout, stderr } = ran(command).await;
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}: {stderr}");
    stderr
}
