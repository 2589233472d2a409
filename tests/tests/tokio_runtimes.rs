//! The supervisor's tasks live on the runtime where it was opened, whoever calls from where.

use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use holdfast_supervisor::{
    Container, Error, EventKind, EventStream, ExecOptions, ExitStatus, Stdin, Stdio, Supervisor,
};
use holdfast_tests::{Output, Proc, Scratch, read_all};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Runs work on a thread of its own and waits for it, not for ever.
fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    result.recv_timeout(Duration::from_secs(60)).expect("an answer within a minute")
}

/// The simplest executor that is not Tokio's.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A supervisor that was opened on this runtime.
fn open(runtime: &Runtime, scratch: &Scratch) -> Supervisor {
    runtime.block_on(scratch.builder().open()).expect("open a supervisor")
}

/// A container's life, from its start to its deletion.
async fn life(scratch: &Scratch, supervisor: &Supervisor) {
    let options = scratch.script("read line; echo got $line; exit 6");
    let options = options.stdio(Stdio::default().stdin(Stdin::Pipe));
    let container = supervisor.run(options).await.expect("run");
    let exec = container.exec(ExecOptions::new(["sh", "-c", "exit 9"])).await.expect("exec");
    assert_eq!(exec.wait().await.expect("its exit"), ExitStatus::Code(9));
    assert!(!container.processes().await.expect("its processes").is_empty());
    container.stdin().expect("its input").write_all(b"it\n").await.expect("write");
    assert_eq!(container.wait().await.expect("its exit"), ExitStatus::Code(6));
    let mut reader = container.logs().expect("its output");
    let mut output = Vec::new();
    while let Some(chunk) = reader.follow().await.expect("read") {
        output.extend_from_slice(&chunk.bytes);
    }
    assert_eq!(output, b"got it\n");
    container.delete().await.expect("delete");
}

/// At 91d2b83 `run` hung without a timer, and `stdin` panicked outside of Tokio.
#[test]
fn callers_may_have_a_runtime_without_drivers_or_none_of_tokios() {
    let scratch = Arc::new(Scratch::new());
    let own = runtime();
    let supervisor = open(&own, &scratch);
    {
        let (scratch, supervisor) = (scratch.clone(), supervisor.clone());
        elsewhere(move || {
            let plain = Builder::new_current_thread().build().expect("a runtime without drivers");
            plain.block_on(life(&scratch, &supervisor));
        });
    }
    {
        let (scratch, supervisor) = (scratch.clone(), supervisor.clone());
        elsewhere(move || block_on(life(&scratch, &supervisor)));
    }
    let scratch = Arc::into_inner(scratch).expect("nobody else has it");
    own.block_on(scratch.close(supervisor));
}

/// At 91d2b83 a wait hung for ever.
#[test]
fn when_the_runtime_of_the_supervisor_is_gone_every_call_says_so_and_containers_run_on() {
    let scratch = Arc::new(Scratch::new());
    let own = runtime();
    let supervisor = open(&own, &scratch);
    let gate = scratch.gate();
    let container = own.block_on(supervisor.run(scratch.script(&gate.script("echo ready"))));
    let container: Container = container.expect("run");
    let pid = container.info().pid.expect("it runs");
    let mut events: EventStream = supervisor.events();
    let waiting = {
        let container = container.clone();
        std::thread::spawn(move || block_on(container.wait()))
    };
    // In the background, its threads could still hold the state root when the next one opens it.
    own.shutdown_timeout(Duration::from_secs(60));
    let closed = |what: &str, result: Result<(), Error>| {
        assert!(matches!(result, Err(Error::Closed)), "{what}: {result:?}");
    };
    closed("a wait that was there", elsewhere(|| waiting.join().expect("no panic")).map(drop));
    let calls = {
        let (scratch, supervisor, container) =
            (scratch.clone(), supervisor.clone(), container.clone());
        elsewhere(move || {
            runtime().block_on(async move {
                let mut reader = container.logs().expect("its log is there");
                while let Ok(Some(_)) = reader.follow().await {}
                // They end. `run` may have returned before the listeners heard of the start.
                while let Some(event) = events.next().await {
                    let event = event.expect("an event");
                    let of_start =
                        matches!(event.kind, EventKind::Created { .. } | EventKind::Started);
                    assert!(of_start, "{event:?}");
                }
                [
                    ("run", supervisor.run(scratch.options(["true"])).await.map(drop)),
                    ("exec", container.exec(ExecOptions::new(["true"])).await.map(drop)),
                    ("wait", container.wait().await.map(drop)),
                    ("pause", container.pause().await),
                    ("delete", container.delete().await),
                ]
            })
        })
    };
    for (what, result) in calls {
        closed(what, result);
    }
    assert!(Proc::of(pid).is_some_and(|process| process.lives()), "it runs on");
    // The next one takes it up where this one has left it.
    let id = container.id().clone();
    drop((supervisor, container));
    let next = runtime();
    let supervisor = open(&next, &scratch);
    gate.open(8);
    next.block_on(async {
        let container = supervisor.get(&id).expect("it is there");
        assert_eq!(container.wait().await.expect("its exit"), ExitStatus::Code(8));
        let output = read_all(container.logs().expect("a log")).await;
        assert_eq!(output, Output::of("ready\nafter\n"));
        Arc::into_inner(scratch).expect("nobody else has it").close(supervisor).await;
    });
}
