//! Pods through containerd's CRI plugin, as the kubelet has them: with the runtime that containerd comes
//! with, and with Holdfast. Each behaviour is a test with either.

use std::time::{Duration, Instant};

use holdfast_tests::containerd::{Containerd, HOLDFAST};
use holdfast_tests::cri::{ContainerState, Cri, Executed, Pod, PodState, Refused, Template};
use holdfast_tests::{Gate, Proc, eventually, side_by_side, soon, tests_with};
use nix::sys::signal::Signal;

side_by_side! {
    a_pod_of_two_containers_has_one_front,
    the_logs_of_both_streams_are_complete,
    a_command_in_a_container_has_a_code_and_streams,
    a_command_that_takes_too_long_is_killed,
    a_container_that_handles_sigterm_stops_by_itself,
    a_container_that_ignores_sigterm_is_killed_after_the_grace,
    a_status_says_how_a_container_ended,
    a_container_that_ran_out_of_memory_says_so,
    a_container_uses_memory_and_processor_time,
    a_container_that_has_ended_is_followed_by_another,
    a_program_that_is_not_there_is_refused,
    a_pod_outlives_containerd,
}

tests_with! {
    killed, super::HOLDFAST,
    a_supervisor_that_is_killed_in_the_middle_of_a_step_does_not_show,
    a_container_that_ends_without_a_supervisor_keeps_its_status_and_log,
    a_container_that_ends_without_a_shim_keeps_its_status_and_log,
    a_container_that_ends_without_supervisor_and_containerd_keeps_its_status,
}

/// The program of the shim of a pod's containers.
const SHIM: &str = "holdfast-shim";
/// What gRPC calls a limit in time that is over.
const DEADLINE_EXCEEDED: u32 = 4;
/// A script that runs until it is killed.
const STAYS: &str = "sleep 100000";
/// A script that ends at SIGTERM, with 3.
const HANDLES: &str = "trap 'exit 3' TERM; echo ready; sleep 100000 & wait";

async fn with(runtime: &'static str, behaviour: impl AsyncFnOnce(&mut Containerd)) {
    if let Some(mut containerd) = Containerd::start_for_pods(runtime).await {
        behaviour(&mut containerd).await;
        let cri = containerd.cri().await;
        assert_eq!(cri.pods().await, Ok(Vec::new()), "left over");
        let root = containerd.holdfast_root();
        let is_empty = || std::fs::read_dir(&root).map_or(0, Iterator::count) == 0;
        eventually("nothing to be left of the supervisor", is_empty).await;
        containerd.close().await;
    }
}

fn template<'a>(name: &'a str, script: &'a str) -> Template<'a> {
    Template { name, attempt: 0, script, memory: 0 }
}

/// A script that says `before`, says `away` behind the first gate, and ends behind the second.
///
/// Nothing is said right before the end: containerd 1.6.20 closes its end of the FIFO when it hears of the
/// exit, whether or not all was read.
fn talks(gates: &[Gate; 2], code: u8) -> String {
    format!("{}; {}; exit {code}", gates[0].wait("echo before"), gates[1].wait("echo away"))
}

fn gates(containerd: &Containerd) -> [Gate; 2] {
    [containerd.gate(), containerd.gate()]
}

/// What `talks` says.
const TALK: &str = "before\naway\n";

/// Starts a pod without containers.
async fn pod(containerd: &Containerd, cri: &Cri) -> Pod {
    let pod = cri.run_pod("pod").await.expect("start a pod");
    containerd.remember(&pod.id);
    pod
}

/// Starts a container and returns its id.
async fn run(cri: &Cri, pod: &Pod, of: &Template<'_>) -> String {
    let id = cri.create(pod, of).await.expect("create a container");
    cri.start(&id).await.expect("start a container");
    id
}

/// Stops and removes a pod, as the kubelet does.
async fn remove(cri: &Cri, pod: &Pod) {
    cri.stop_pod(pod).await.expect("stop a pod");
    assert_eq!(cri.pod_state(pod).await, Ok(PodState::NotReady));
    cri.remove_pod(pod).await.expect("remove a pod");
}

async fn says(cri: &Cri, pod: &Pod, of: &Template<'_>, line: &str) {
    let said = || cri.log(pod, of, "stdout").lines().any(|one| one == line);
    eventually(&format!("{line:?} in a log"), said).await;
}

/// The state, exit code and reason of a container that has ended or will.
async fn end(cri: &Cri, id: &str) -> (i32, String) {
    let status = cri.ended(id).await;
    // When it was started is the time at which containerd had the answer, which a short one does not see.
    assert!(0 < status.started_at && 0 < status.finished_at, "{status:?}");
    (status.exit_code, status.reason)
}

fn ended(code: i32, reason: &str) -> (i32, String) {
    (code, reason.to_owned())
}

fn came_to(code: i32, stdout: &str, stderr: &str) -> Result<Executed, Refused> {
    Ok(Executed { code, stdout: stdout.to_owned(), stderr: stderr.to_owned() })
}

/// The one shim that containerd has for the pod.
fn front(containerd: &Containerd) -> Proc {
    let mut all = containerd.shims();
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

/// The shims of Holdfast's supervisor, without those that start a process: they hand it over, and
/// end a little later.
fn shims(containerd: &Containerd) -> Vec<Proc> {
    let mut all = containerd.programs(SHIM);
    all.retain(|shim| shim.lives() && !shim.command().contains(" --seat "));
    all
}

/// The one shim of the containers of a pod.
fn shim(containerd: &Containerd) -> Proc {
    let mut all = shims(containerd);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

async fn kill(process: Proc) {
    process.signal(Signal::SIGKILL);
    process.ended().await;
}

async fn a_pod_of_two_containers_has_one_front(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let before = front(containerd);
    let one = run(&cri, &pod, &template("one", STAYS)).await;
    let two = cri.create(&pod, &template("two", STAYS)).await.expect("create a container");
    assert_eq!(cri.status(&two).await.expect("a status").state(), ContainerState::Created);
    cri.start(&two).await.expect("start a container");
    assert_eq!(cri.pod_state(&pod).await, Ok(PodState::Ready));
    for id in [&one, &two] {
        assert_eq!(cri.status(id).await.expect("a status").state(), ContainerState::Running);
    }
    assert_eq!(front(containerd), before);
    if containerd.runtime() == HOLDFAST {
        let _ = shim(containerd);
        let _ = containerd.supervisor().await;
    }
    cri.stop_pod(&pod).await.expect("stop a pod");
    for id in [&one, &two] {
        assert_eq!(end(&cri, id).await, ended(137, "Error"));
    }
    cri.remove(&one).await.expect("remove a container");
    assert_eq!(cri.containers(&pod).await, Ok(vec![(two, ContainerState::Exited)]));
    remove(&cri, &pod).await;
}

async fn the_logs_of_both_streams_are_complete(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let gate = containerd.gate();
    let writes = "seq 20000; seq 1 2000 >&2; head -c 100000 /dev/zero | tr '\\0' x; echo; echo end";
    let script = format!("{}; exit 3", gate.wait(writes));
    let talks = template("talks", &script);
    let id = run(&cri, &pod, &talks).await;
    says(&cri, &pod, &talks, "end").await;
    let last = || cri.log(&pod, &talks, "stderr").ends_with("\n2000\n");
    eventually("the end of standard error", last).await;
    gate.open(0);
    assert_eq!(end(&cri, &id).await, ended(3, "Error"));
    let numbers = |last: u32| -> String { (1..=last).map(|it| format!("{it}\n")).collect() };
    let stdout = numbers(20_000) + &"x".repeat(100_000) + "\nend\n";
    let logged = cri.log(&pod, &talks, "stdout");
    assert_eq!(logged.len(), stdout.len());
    assert!(logged == stdout, "each byte of standard output");
    assert!(cri.log(&pod, &talks, "stderr") == numbers(2000), "each byte of standard error");
    remove(&cri, &pod).await;
}

async fn a_command_in_a_container_has_a_code_and_streams(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let id = run(&cri, &pod, &template("stays", STAYS)).await;
    assert_eq!(cri.exec(&id, "echo out; echo err >&2; exit 3").await, came_to(3, "out\n", "err\n"));
    assert_eq!(cri.exec(&id, "kill -KILL $$").await, came_to(137, "", ""));
    let much = cri.exec(&id, "head -c 1000000 /dev/zero | tr '\\0' x").await;
    assert!(much == came_to(0, &"x".repeat(1_000_000), ""), "all of a megabyte");
    assert_eq!(cri.status(&id).await.expect("a status").state(), ContainerState::Running);
    remove(&cri, &pod).await;
}

async fn a_command_that_takes_too_long_is_killed(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let id = run(&cri, &pod, &template("stays", STAYS)).await;
    let refused = cri.exec_within(&id, "sleep 99999", 1).await.expect_err("it takes too long");
    assert_eq!(refused.code, DEADLINE_EXCEEDED, "{refused:?}");
    assert_eq!(containerd.processes(&id).await.len(), 1, "the container's own");
    assert_eq!(cri.exec_within(&id, "echo here", 0).await, came_to(0, "here\n", ""));
    remove(&cri, &pod).await;
}

async fn a_container_that_handles_sigterm_stops_by_itself(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let gate = containerd.gate();
    let script = format!(
        "trap '{}; exit 3' TERM; echo ready; sleep 100000 & wait",
        gate.wait("echo caught")
    );
    let handles = template("handles", &script);
    let id = run(&cri, &pod, &handles).await;
    says(&cri, &pod, &handles, "ready").await;
    let letting = async {
        says(&cri, &pod, &handles, "caught").await;
        gate.open(0);
    };
    let (stopped, ()) = tokio::join!(cri.stop(&id, 1000), letting);
    stopped.expect("stop a container");
    assert_eq!(end(&cri, &id).await, ended(3, "Error"));
    assert_eq!(cri.log(&pod, &handles, "stdout"), "ready\ncaught\n");
    cri.stop(&id, 1000).await.expect("stop one that has ended");
    remove(&cri, &pod).await;
}

async fn a_container_that_ignores_sigterm_is_killed_after_the_grace(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let ignores = template("ignores", "trap '' TERM; echo ready; sleep 100000");
    let id = run(&cri, &pod, &ignores).await;
    says(&cri, &pod, &ignores, "ready").await;
    let start = Instant::now();
    cri.stop(&id, 1).await.expect("stop a container");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(end(&cri, &id).await, ended(137, "Error"));
    remove(&cri, &pod).await;
}

async fn a_status_says_how_a_container_ended(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    for (name, script, code, reason) in [
        ("zero", "true", 0, "Completed"),
        ("some", "exit 42", 42, "Error"),
        ("most", "exit 255", 255, "Error"),
    ] {
        let id = run(&cri, &pod, &template(name, script)).await;
        assert_eq!(end(&cri, &id).await, ended(code, reason));
    }
    assert_eq!(cri.pod_state(&pod).await, Ok(PodState::Ready));
    remove(&cri, &pod).await;
}

async fn a_container_that_ran_out_of_memory_says_so(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let grows = "x=x; while true; do x=$x$x; done";
    // It lives on: containerd's own shim may miss what happens right before the end.
    let gate = containerd.gate();
    let script = format!("{}; exit 137", gate.wait(&format!("sh -c '{grows}'")));
    let id = run(&cri, &pod, &Template { memory: 16 << 20, ..template("lives", &script) }).await;
    let reason = async || cri.status(&id).await.expect("a status").reason;
    soon("the reason", async { while reason().await != "OOMKilled" {} }).await;
    gate.open(0);
    assert_eq!(end(&cri, &id).await, ended(137, "OOMKilled"));
    if containerd.runtime() == HOLDFAST {
        let id = run(&cri, &pod, &Template { memory: 16 << 20, ..template("grows", grows) }).await;
        assert_eq!(end(&cri, &id).await, ended(137, "OOMKilled"));
    }
    remove(&cri, &pod).await;
}

async fn a_container_uses_memory_and_processor_time(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let works = "head -c 1000000 /dev/urandom | sha256sum > /dev/null; echo done; sleep 100000";
    let works = template("works", works);
    let id = run(&cri, &pod, &works).await;
    says(&cri, &pod, &works, "done").await;
    let stats = cri.stats(&id).await.expect("statistics");
    assert!(stats.memory > 0 && stats.processor > 0, "{stats:?}");
    remove(&cri, &pod).await;
}

async fn a_container_that_has_ended_is_followed_by_another(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let before = front(containerd);
    let first = template("same", "echo first; exit 1");
    let old = run(&cri, &pod, &first).await;
    assert_eq!(end(&cri, &old).await, ended(1, "Error"));
    let second = Template { attempt: 1, ..template("same", "echo second; sleep 100000") };
    let new = run(&cri, &pod, &second).await;
    says(&cri, &pod, &second, "second").await;
    let mut listed = cri.containers(&pod).await.expect("a list");
    let mut expected =
        vec![(old.clone(), ContainerState::Exited), (new.clone(), ContainerState::Running)];
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(front(containerd), before);
    cri.remove(&old).await.expect("remove a container");
    assert_eq!(cri.exec(&new, "echo here").await, came_to(0, "here\n", ""));
    remove(&cri, &pod).await;
}

async fn a_program_that_is_not_there_is_refused(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let id = run(&cri, &pod, &template("stays", STAYS)).await;
    let none = cri.create_of(&pod, &template("none", ""), &["/no/such"]).await;
    let none = none.expect("create a container");
    let refused = cri.start(&none).await.expect_err("it is not there");
    assert!(refused.message.contains("/no/such"), "{refused:?}");
    let status = cri.status(&none).await.expect("a status");
    assert_eq!((status.state(), status.exit_code), (ContainerState::Exited, 128), "{status:?}");
    assert_eq!(status.reason, "StartError");
    assert_eq!(cri.exec(&id, "echo here").await, came_to(0, "here\n", ""));
    remove(&cri, &pod).await;
}

async fn a_pod_outlives_containerd(containerd: &mut Containerd) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let before = front(containerd);
    let [ending_at, staying_at] = [gates(containerd), gates(containerd)];
    let scripts = [talks(&ending_at, 6), talks(&staying_at, 7)];
    let [ends, stays] = [template("ends", &scripts[0]), template("stays", &scripts[1])];
    let (ending, staying) = (run(&cri, &pod, &ends).await, run(&cri, &pod, &stays).await);
    says(&cri, &pod, &ends, "before").await;
    // What containerd has read of a FIFO and not yet written is lost with it.
    says(&cri, &pod, &stays, "before").await;
    let init = containerd.task(&ending).await.expect("a task").pid;
    let init = Proc::of(init).expect("a process");
    containerd.kill();
    ending_at.iter().chain(&staying_at[..1]).for_each(|gate| gate.open(0));
    init.gone().await;
    containerd.restart().await;
    let cri = containerd.cri().await;
    assert_eq!(front(containerd), before);
    assert_eq!(cri.pod_state(&pod).await, Ok(PodState::Ready));
    assert_eq!(end(&cri, &ending).await, ended(6, "Error"));
    if containerd.runtime() == HOLDFAST {
        // Where nobody lets containerd open a FIFO that has no writer any more, what was said last is lost.
        says(&cri, &pod, &ends, "away").await;
    }
    assert_eq!(cri.status(&staying).await.expect("a status").state(), ContainerState::Running);
    assert_eq!(cri.exec(&staying, "echo here").await, came_to(0, "here\n", ""));
    says(&cri, &pod, &stays, "away").await;
    staying_at[1].open(0);
    assert_eq!(end(&cri, &staying).await, ended(7, "Error"));
    assert_eq!(cri.log(&pod, &stays, "stdout"), TALK);
    remove(&cri, &pod).await;
}

/// The moments in a step at which the supervisor is killed, from its beginning.
const MOMENTS: [u64; 6] = [0, 2, 5, 15, 40, 100];

async fn a_supervisor_that_is_killed_in_the_middle_of_a_step_does_not_show(
    containerd: &mut Containerd,
) {
    let cri = containerd.cri().await;
    for (round, moment) in (0..).zip(MOMENTS) {
        let moment = Duration::from_millis(moment);
        // Starts one, for the first step.
        let anchor = cri.run_pod(&format!("anchor-{round}")).await.expect("start a pod");
        containerd.remember(&anchor.id);
        let during = Interrupted { containerd, moment };
        let name = format!("pod-{round}");
        let pod = during.step("start a pod", cri.run_pod(&name)).await;
        containerd.remember(&pod.id);
        let handles = template("handles", HANDLES);
        let id = during.step("create a container", cri.create(&pod, &handles)).await;
        during.step("start a container", cri.start(&id)).await;
        says(&cri, &pod, &handles, "ready").await;
        let exec = cri.exec(&id, "echo out; echo err >&2; sleep 0.05; exit 3");
        let exec = during.step("execute a command", exec).await;
        assert_eq!(Ok(exec), came_to(3, "out\n", "err\n"), "at {moment:?}");
        let stats = during.step("ask for statistics", cri.stats(&id)).await;
        assert!(stats.memory > 0, "{stats:?} at {moment:?}");
        during.step("stop a container", cri.stop(&id, 1000)).await;
        assert_eq!(end(&cri, &id).await, ended(3, "Error"), "at {moment:?}");
        assert_eq!(cri.log(&pod, &handles, "stdout"), "ready\n", "at {moment:?}");
        during.step("remove a container", cri.remove(&id)).await;
        during.step("stop a pod", cri.stop_pod(&pod)).await;
        during.step("remove a pod", cri.remove_pod(&pod)).await;
        remove(&cri, &anchor).await;
    }
}

/// Steps in whose middle the supervisor is killed.
struct Interrupted<'a> {
    containerd: &'a Containerd,
    moment: Duration,
}

impl Interrupted<'_> {
    async fn step<T>(&self, what: &str, step: impl Future<Output = Result<T, Refused>>) -> T {
        let killing = async {
            tokio::time::sleep(self.moment).await;
            kill(self.supervisor().await).await;
        };
        let (done, ()) = tokio::join!(soon(what, step), killing);
        done.unwrap_or_else(|error| panic!("{what}, killed after {:?}: {error:?}", self.moment))
    }

    /// The supervisor, which may be on its way still.
    async fn supervisor(&self) -> Proc {
        soon("one supervisor", async {
            loop {
                let mut all = self.containerd.supervisors();
                if let (Some(one), true) = (all.pop(), all.is_empty()) {
                    return one;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
    }
}

async fn a_container_that_ends_without_a_supervisor_keeps_its_status_and_log(
    containerd: &mut Containerd,
) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let gates = gates(containerd);
    let script = talks(&gates, 5);
    let talks = template("talks", &script);
    let id = run(&cri, &pod, &talks).await;
    says(&cri, &pod, &talks, "before").await;
    let init = containerd.task(&id).await.expect("a task").pid;
    let init = Proc::of(init).expect("a process");
    // Stopped, it can't be replaced before the container has ended.
    let supervisor = containerd.supervisor().await;
    supervisor.signal(Signal::SIGSTOP);
    supervisor.reaches('T').await;
    gates[0].open(0);
    says(&cri, &pod, &talks, "away").await;
    gates[1].open(0);
    init.ended().await;
    kill(supervisor).await;
    assert_eq!(end(&cri, &id).await, ended(5, "Error"));
    assert_eq!(cri.log(&pod, &talks, "stdout"), TALK);
    remove(&cri, &pod).await;
}

async fn a_container_that_ends_without_a_shim_keeps_its_status_and_log(
    containerd: &mut Containerd,
) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let all = [gates(containerd), gates(containerd)];
    let scripts = [talks(&all[0], 5), talks(&all[1], 6)];
    let templates = [template("zero", &scripts[0]), template("one", &scripts[1])];
    let mut ids = Vec::new();
    for template in &templates {
        ids.push(run(&cri, &pod, template).await);
        says(&cri, &pod, template, "before").await;
    }
    // One may end while there is no shim, the other does while there is another one.
    all[0][0].open(0);
    says(&cri, &pod, &templates[0], "away").await;
    kill(shim(containerd)).await;
    all[0][1].open(0);
    assert_eq!(end(&cri, &ids[0]).await, ended(5, "Error"));
    eventually("another shim", || shims(containerd).len() == 1).await;
    assert_eq!(cri.exec(&ids[1], "echo here").await, came_to(0, "here\n", ""));
    all[1][0].open(0);
    says(&cri, &pod, &templates[1], "away").await;
    all[1][1].open(0);
    assert_eq!(end(&cri, &ids[1]).await, ended(6, "Error"));
    for template in &templates {
        assert_eq!(cri.log(&pod, template, "stdout"), TALK, "{template:?}");
    }
    assert_eq!(cri.pod_state(&pod).await, Ok(PodState::Ready));
    remove(&cri, &pod).await;
}

async fn a_container_that_ends_without_supervisor_and_containerd_keeps_its_status(
    containerd: &mut Containerd,
) {
    let cri = containerd.cri().await;
    let pod = pod(containerd, &cri).await;
    let [ending_at, talking_at] = [gates(containerd), gates(containerd)];
    let scripts = [talks(&ending_at, 5), talks(&talking_at, 6)];
    let [ends, talks] = [template("ends", &scripts[0]), template("talks", &scripts[1])];
    let (ending, talking) = (run(&cri, &pod, &ends).await, run(&cri, &pod, &talks).await);
    says(&cri, &pod, &ends, "before").await;
    says(&cri, &pod, &talks, "before").await;
    let init = containerd.task(&ending).await.expect("a task").pid;
    let init = Proc::of(init).expect("a process");
    containerd.kill();
    kill(containerd.supervisor().await).await;
    ending_at.iter().chain(&talking_at[..1]).for_each(|gate| gate.open(0));
    init.ended().await;
    containerd.restart().await;
    let cri = containerd.cri().await;
    assert_eq!(end(&cri, &ending).await, ended(5, "Error"));
    says(&cri, &pod, &ends, "away").await;
    says(&cri, &pod, &talks, "away").await;
    talking_at[1].open(0);
    assert_eq!(end(&cri, &talking).await, ended(6, "Error"));
    assert_eq!(cri.log(&pod, &talks, "stdout"), TALK);
    remove(&cri, &pod).await;
}
