//! Fronts, between a containerd and a supervisor that are both played by the tests.

#![allow(clippy::unwrap_used)]

mod rig;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::{Duration, Instant};

use holdfast_state::{Evidence, ExitRecord, ExitStatus, ProcessDir};
use holdfast_ttrpc::frame::{AGAIN, HEADER, MOST};
use holdfast_ttrpc::front::{CLEANUP, Cleanup, Hello, STREAM};
use holdfast_ttrpc::rpc::{Code, Failure, Response};
use holdfast_ttrpc::task::{
    CreateTaskResponse, DeleteResponse, PidsResponse, StartResponse, StateResponse, WaitResponse,
};
use holdfast_ttrpc::types::{Empty, RuntimeInfo, Status};
use holdfast_ttrpc::{Frame, Kind, Message, place};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rig::{Peer, Rig, id, method, request};

#[test]
fn start_prints_the_address_of_a_front_and_nothing_on_standard_error() {
    let rig = Rig::new();
    let output = rig.start("a", Some("pod"));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
    let result = Rig::result(&output);
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    assert_eq!(fs::read_to_string(rig.bundle("a").join("address")).unwrap(), result.address);
    let socket = place::front_socket(&rig.sockets(), &rig.address(), "ns", "pod");
    assert_eq!(result.address, format!("unix://{}", socket.display()));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(rig.sockets()).unwrap().permissions().mode() & 0o777, 0o700);

    assert_eq!(rig.client("pod").connect("a"), None, "it was not made yet");
    let pid = rig.client("pod").pid();
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let words: Vec<_> = words.split_terminator('\0').collect();
    assert!(words[0].ends_with("/containerd-shim-holdfast-v2"), "{words:?}");
    assert_eq!(words[1..], ["-namespace", "ns", "-id", "a", "-address", &rig.address()]);
    let score = |of: &str| -> i32 {
        let score = fs::read_to_string(format!("/proc/{of}/oom_score_adj")).unwrap();
        score.trim().parse().unwrap()
    };
    assert_eq!(score(&pid.to_string()), (score("self") + 1).min(1000));
    let stdio = [0, 1].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap());
    assert_eq!(stdio.map(|path| path.display().to_string()), ["/dev/null", "/dev/null"]);

    // Another container of the pod.
    assert_eq!(Rig::result(&rig.start("b", Some("pod"))), result);
    assert_eq!(rig.client("pod").pid(), pid);
    // And one that is in none.
    assert_ne!(Rig::result(&rig.start("c", None)).address, result.address);
    assert_ne!(rig.client("c").pid(), pid);
}

#[test]
fn containerd_1_6_gets_a_plain_address() {
    let rig = Rig::new();
    // Nothing says where the socket is to be, so it is where containerd has those of all shims.
    let output = rig.start_plain("a");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let socket = place::front_socket(place::SOCKETS.as_ref(), &rig.address(), "ns", "a");
    let address = format!("unix://{}", socket.display());
    assert_eq!(String::from_utf8_lossy(&output.stdout), address);
    assert_eq!(fs::read_to_string(rig.bundle("a").join("address")).unwrap(), address);
    let pid = Peer::connect_to(&socket).pid();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    rig.wait_until_gone(pid);
    assert!(!socket.exists());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_no_socket() {
    let rig = Rig::new();
    let output = rig.start_in_empty_bundle("a");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("config.json") && text.lines().count() == 1, "{text}");
    // The cgroup is not there.
    let output = rig.start_in_cgroup("b", "/holdfast-is-not-there");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cgroup"), "{output:?}");
    assert_eq!(fs::read_dir(rig.sockets()).unwrap().count(), 0);
}

#[test]
fn starts_of_one_group_at_once_give_one_front() {
    for round in 0..10 {
        let rig = Rig::new();
        // One that nobody listens on, as a front leaves it that was killed.
        let socket = place::front_socket(&rig.sockets(), &rig.address(), "ns", "pod");
        fs::create_dir_all(rig.sockets()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let ids = ["a", "b", "c", "d", "e"];
        let started = ids.map(|id| rig.spawn_start(id, Some("pod")));
        let outputs: Vec<Output> =
            started.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        for output in &outputs {
            assert!(output.status.success() && output.stderr.is_empty(), "{round}: {output:?}");
            assert_eq!(Rig::result(output), Rig::result(&outputs[0]));
        }
        let pid = rig.client("pod").pid();
        assert_eq!(rig.fronts(), [pid], "round {round}");
    }
}

#[test]
fn a_call_and_its_answer_pass_unchanged() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let call = Frame {
        stream: 7,
        kind: Kind::Request,
        flags: 1,
        message: request("Stats", &id("a", "")).into(),
    };
    client.send(&call);
    let mut peer = supervisor.accept();
    let hello = peer.next();
    assert_eq!((hello.stream, method(&hello).as_str()), (STREAM, "Hello"));
    let hello = Hello::decode(rig::payload(&hello).as_slice()).unwrap();
    assert_eq!((hello.namespace.as_str(), hello.group.as_str()), ("ns", "pod"));
    assert_eq!(hello.ttrpc_address, "/events.sock");
    assert_eq!(peer.next(), call);
    let answer = Frame {
        stream: 7,
        kind: Kind::Response,
        flags: 0,
        message: Response::of(&id("x", "y")).encode_to_vec().into(),
    };
    peer.send(&answer);
    assert_eq!(client.next(), answer);

    // Each connection of containerd has its own.
    let mut second = rig.client("pod");
    second.ask(1, "Stats", &id("a", ""));
    let mut other = supervisor.accept();
    let named = Hello::decode(rig::payload(&other.next()).as_slice()).unwrap();
    assert_ne!(named.connection, hello.connection);
    assert_eq!(other.next().stream, 1);
}

#[test]
fn a_supervisor_that_dies_with_calls_unanswered_is_asked_again_when_it_is_back() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    client.ask(1, "Create", &rig.create("a"));
    client.ask(3, "Stats", &id("a", ""));
    let mut peer = supervisor.accept();
    let hello = peer.next();
    assert_eq!([peer.next().stream, peer.next().stream], [1, 3]);
    peer.reply(3, &Response::of(&Empty {}));
    assert_eq!(client.next().stream, 3);
    supervisor.dies(peer);

    client.ask(5, "Stats", &id("a", ""));
    let mut supervisor = rig.supervisor();
    let mut peer = supervisor.accept();
    assert_eq!(peer.next(), hello, "the connection has the same name");
    let (create, stats) = (peer.next(), peer.next());
    assert_eq!((create.stream, create.flags, method(&create).as_str()), (1, AGAIN, "Create"));
    assert_eq!((stats.stream, stats.flags), (5, 0), "nobody has got that before");
    peer.reply(1, &Response::of(&CreateTaskResponse { pid: 42 }));
    assert_eq!(client.response(1), Response::of(&CreateTaskResponse { pid: 42 }));
}

#[test]
fn state_and_pids_are_answered_within_a_second_while_the_supervisor_is_silent() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let mut peer = rig.create_container(&mut client, &mut supervisor, "a", 42);
    client.ask(3, "Start", &id("a", ""));
    assert_eq!(peer.next().stream, 3);
    peer.reply(3, &Response::of(&StartResponse { pid: 42 }));
    client.response(3);

    let begun = Instant::now();
    client.ask(5, "State", &id("a", ""));
    client.ask(7, "Pids", &id("a", ""));
    client.ask(9, "State", &id("unknown", ""));
    client.ask(11, "Wait", &id("a", ""));
    let state = StateResponse::decode(client.response(5).payload.as_slice()).unwrap();
    assert_eq!((state.pid, state.status(), state.bundle), (42, Status::Running, "/b".to_owned()));
    let pids = PidsResponse::decode(client.response(7).payload.as_slice()).unwrap();
    assert_eq!(pids.processes.iter().map(|one| one.pid).collect::<Vec<_>>(), [42]);
    assert_eq!(client.response(9).status.unwrap().code, Code::NotFound as i32);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1), "the supervisor had {took:?}");
    assert!(took < Duration::from_secs(3), "it took {took:?}");

    // What comes late is dropped, and what only the supervisor can answer is waited for.
    assert_eq!([(); 4].map(|()| peer.next().stream), [5, 7, 9, 11]);
    for stream in [5, 7, 9] {
        peer.reply(stream, &Failure::new(Code::Internal, "late").into());
    }
    let wait = Response::of(&WaitResponse { exit_status: 3, exited_at: None });
    peer.reply(11, &wait);
    assert_eq!(client.response(11), wait);
}

#[test]
fn a_shutdown_ends_a_front_only_when_its_last_container_is_deleted() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let pid = client.pid();
    let mut peer = rig.create_container(&mut client, &mut supervisor, "a", 42);
    client.ask(3, "Shutdown", &id("a", ""));
    assert!(client.response(3).is_ok());
    assert_eq!(client.pid(), pid, "it is still there");
    client.ask(5, "Delete", &id("a", ""));
    assert_eq!(peer.next().stream, 5);
    peer.reply(5, &Response::of(&DeleteResponse::default()));
    client.response(5);
    client.ask(7, "Shutdown", &id("a", ""));
    assert!(client.response(7).is_ok());
    client.expect_end();
    rig.wait_until_gone(pid);
    assert_eq!(fs::read_dir(rig.sockets()).unwrap().count(), 0);
}

#[test]
fn containers_stay_known_when_containerd_comes_back() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let pid = client.pid();
    let mut peer = rig.create_container(&mut client, &mut supervisor, "a", 42);
    client.ask(3, "Wait", &id("a", ""));
    assert_eq!(peer.next().stream, 3);
    drop(client);
    peer.expect_end();

    let mut client = rig.client("pod");
    assert_eq!(client.connect("a"), Some((pid, 42)));
    client.ask(5, "Shutdown", &id("a", ""));
    client.response(5);
    assert_eq!(client.pid(), pid, "it has a container");
}

#[test]
fn a_front_with_a_container_does_not_end_by_sigterm() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let pid = client.pid();
    let _peer = rig.create_container(&mut client, &mut supervisor, "a", 42);
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
    // The signal is taken in the turn of the first answer at the latest.
    assert_eq!([client.pid(), client.pid()], [pid, pid]);
}

#[test]
fn a_creation_is_heard_of_when_containerd_has_gone_meanwhile() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    client.ask(1, "Create", &rig.create("a"));
    let mut peer = supervisor.accept();
    assert_eq!([peer.next().stream, peer.next().stream], [STREAM, 1]);
    drop(client);
    peer.reply(1, &Response::of(&CreateTaskResponse { pid: 42 }));
    peer.expect_end();
    assert_eq!(rig.client("pod").connect("a").map(|pids| pids.1), Some(42));
}

#[test]
fn a_call_that_is_too_long_is_refused_and_the_next_one_passes() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let long =
        Frame { stream: 1, kind: Kind::Request, flags: 0, message: vec![0; MOST + HEADER].into() };
    client.send(&long);
    assert_eq!(client.response(1).status.unwrap().code, Code::ResourceExhausted as i32);
    client.ask(3, "Stats", &id("a", ""));
    let mut peer = supervisor.accept();
    assert_eq!([peer.next().stream, peer.next().stream], [STREAM, 3]);
}

#[test]
fn answers_that_containerd_does_not_read_fill_no_memory_and_delay_nobody() {
    const CALLS: u32 = 64;
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let pid = client.pid();
    (0..CALLS).for_each(|number| client.ask(2 * number + 1, "Stats", &id("a", "")));
    let mut peer = supervisor.accept();
    peer.next();
    let answering = std::thread::spawn(move || {
        for _ in 0..CALLS {
            let stream = peer.next().stream;
            peer.reply(stream, &Response { status: None, payload: vec![7; 1024 * 1024] });
        }
    });
    // The front has read what it wants to.
    assert!(rig.most_memory_while_growing(pid) < 16 * 1024, "KiB");
    let mut other = rig.client("pod");
    assert_eq!(other.pid(), pid);
    for number in 0..CALLS {
        assert_eq!(client.response(2 * number + 1).payload.len(), 1024 * 1024);
    }
    answering.join().unwrap();
}

#[test]
fn delete_without_a_supervisor_tells_what_is_recorded_and_leaves_a_note() {
    let rig = Rig::new();
    let init = place::root(&rig.directory(), "ns").join("a/init");
    fs::create_dir_all(&init).unwrap();
    fs::write(init.join("pid"), "42").unwrap();
    let exit = ExitRecord::now(ExitStatus::Code(3), Evidence::None);
    ProcessDir::open(&init).unwrap().record_exit(&exit).unwrap();
    for (name, pid, status) in [("a", 42, 3), ("b", 0, 137)] {
        let begun = Instant::now();
        let output = rig.delete(name);
        assert!(output.status.success(), "{output:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        let response = DeleteResponse::decode(output.stdout.as_slice()).unwrap();
        assert_eq!((response.pid, response.exit_status), (pid, status));
        assert!(response.exited_at.is_some());
        let note = fs::read(place::cleanup(&rig.directory(), "ns", name)).unwrap();
        let note = Cleanup::decode(note.as_slice()).unwrap();
        assert_eq!((note.namespace.as_str(), note.id.as_str()), ("ns", name));
        assert_eq!(note.bundle, rig.bundle(name).display().to_string());
    }
}

#[test]
fn delete_has_the_supervisor_clean_up_and_the_front_forget() {
    let rig = Rig::new();
    let mut supervisor = rig.supervisor();
    rig.start("a", Some("pod"));
    let mut client = rig.client("pod");
    let _peer = rig.create_container(&mut client, &mut supervisor, "a", 42);
    let deleting = rig.spawn_delete("a");
    let mut peer = supervisor.accept();
    assert_eq!(method(&peer.next()), "Hello");
    let call = peer.next();
    assert_eq!((call.stream, method(&call).as_str()), (STREAM, CLEANUP));
    let cleanup = Cleanup::decode(rig::payload(&call).as_slice()).unwrap();
    assert_eq!((cleanup.namespace.as_str(), cleanup.id.as_str()), ("ns", "a"));
    let answer = DeleteResponse { pid: 42, exit_status: 9, exited_at: None };
    peer.reply(STREAM, &Response::of(&answer));
    let output = deleting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.stdout, answer.encode_to_vec());
    assert!(!place::cleanups(&rig.directory()).exists());
    // The supervisor told the front on another connection, before `delete` ended.
    client.wait_until_unknown("a");
}

#[test]
fn delete_removes_the_socket_of_a_front_that_was_killed() {
    let rig = Rig::new();
    rig.start("a", Some("pod"));
    let pid = rig.client("pod").pid();
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    rig.wait_until_gone(pid);
    assert_eq!(fs::read_dir(rig.sockets()).unwrap().count(), 1);
    assert!(rig.delete("a").status.success());
    assert_eq!(fs::read_dir(rig.sockets()).unwrap().count(), 0);
}

#[test]
fn a_supervisor_is_started_when_none_listens() {
    let rig = Rig::new();
    let started = rig.supervisor_that_only_says_how_it_is_started();
    let output = rig.delete_with(&started, "a");
    assert!(String::from_utf8_lossy(&output.stderr).contains("exit status: 3): see"), "{output:?}");
    let said = fs::read_to_string(rig.directory().join("supervisor.log")).unwrap();
    let dir = rig.directory().display().to_string();
    assert!(
        said.contains(&format!("ARGS --directory {dir} --address {} CWD /\n", rig.address())),
        "{said}"
    );
    assert!(said.contains("HOLDFAST_CONTAINERD_ROOT="), "{said}");
    assert!(said.contains("TTRPC_ADDRESS=") && !said.contains("UNRELATED="), "{said}");
}

#[test]
fn the_version_and_the_features_of_the_runtime_are_told() {
    let rig = Rig::new();
    let output = rig.run(&["-v"], b"");
    let version = format!("containerd-shim-holdfast-v2 {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), version);
    let runtime = rig.runtime_with_features(r#"{"ociVersionMin":"1.0.0"}"#);
    let options = Rig::options(|options| options.binary_name = runtime);
    let output = rig.run(&["-info"], &options.encode_to_vec());
    let info = RuntimeInfo::decode(output.stdout.as_slice()).unwrap();
    assert_eq!(info.name, "io.containerd.holdfast.v2");
    assert_eq!(info.options, Some(options));
    let features = info.features.unwrap();
    assert_eq!(
        features.type_url,
        "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    );
    assert_eq!(features.value, b"{\"ociVersionMin\":\"1.0.0\"}\n");
}
