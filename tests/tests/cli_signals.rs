//! Signals and Ctrl-C in the foreground, while something is in their way.

use std::process::Stdio;

use holdfast_tests::{Holdfast, Proc, eventually, unique_id};
use nix::sys::signal::Signal;

fn name() -> String {
    unique_id("signals").to_string()
}

fn run<'a>(holdfast: &Holdfast, id: &'a str, script: &'a str) -> Vec<String> {
    let bundle = holdfast.scratch.bundle();
    let bundle = bundle.to_str().expect("a path in UTF-8");
    let words = ["run", "--name", id, "--bundle", bundle, "--", "sh", "-c", script];
    words.map(str::to_owned).into()
}

fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_third_interrupt_leaves_a_container_that_does_not_end() {
    let holdfast = Holdfast::start().await;
    let id = name();
    let script = "trap 'echo again' INT; echo ready; while :; do sleep 0.1; done";
    let args = run(&holdfast, &id, script);
    let mut running = holdfast.begin(&words(&args));
    assert_eq!(running.line().await, "ready");
    for _ in 0..2 {
        running.signal(Signal::SIGINT);
        assert_eq!(running.line().await, "again");
    }
    let client = running.process();
    // More than one, should those before be so long ago that they do not count any more.
    eventually("the end of the client", || {
        client.signal(Signal::SIGINT);
        !client.lives()
    })
    .await;
    let ran = running.end().await;
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert!(ran.stderr.contains("a third Ctrl-C leaves it"), "{ran:?}");
    assert!(ran.stderr.contains(&format!("left container {id} to itself")), "{ran:?}");
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn interrupts_end_the_client_while_the_daemon_does_not_answer() {
    let holdfast = Holdfast::start().await;
    let id = name();
    let args = run(&holdfast, &id, "echo ready; while :; do sleep 0.1; done");
    let mut running = holdfast.begin(&words(&args));
    assert_eq!(running.line().await, "ready");
    holdfast.daemon().signal(Signal::SIGSTOP);
    let client = running.process();
    // Two of them may come as one if they are close together.
    eventually("the end of the client", || {
        client.signal(Signal::SIGINT);
        !client.lives()
    })
    .await;
    let ran = running.end().await;
    holdfast.daemon().signal(Signal::SIGCONT);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    assert_eq!(holdfast.inspect(&id).await["status"], "running");
    holdfast.close().await;
}

#[tokio::test]
async fn a_signal_gets_through_while_standard_output_is_blocked() {
    let holdfast = Holdfast::start().await;
    let id = name();
    let script = "trap 'exit 9' TERM; while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done";
    let args = run(&holdfast, &id, script);
    let mut command = holdfast.command(&words(&args));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let pid: i32 = child.id().unwrap().try_into().unwrap();
    let client = Proc::of(pid).unwrap();
    // Nobody reads.
    eventually("the client to be blocked", || {
        let place = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        place.contains("pipe_write")
    })
    .await;
    client.signal(Signal::SIGTERM);
    assert_eq!(holdfast.ok(&["wait", &id]).await, "9\n");
    drop(child.stdout.take());
    child.wait().await.unwrap();
    holdfast.close().await;
}
