//! The daemon and the shims, killed at some of the system calls by which they change the world.
//! `cargo xtask crash-points` tries all of them.

use std::time::{Duration, Instant};

use holdfast_tests::crash::{self, Summary};
use holdfast_tests::life::{After, Runtime, Who};
use holdfast_tests::tracer::{Deed, Point};

/// How many points a test tries, at the most.
const TRIALS: usize = 24;
/// No trial is begun after this; on a loaded machine it may be fewer.
const ENOUGH: Duration = Duration::from_secs(50);

async fn some_points(victims: &[Who]) {
    let (began, seed) = (Instant::now(), crash::seed());
    println!("HOLDFAST_SEED={seed}");
    let mut points = Vec::new();
    for &who in victims {
        let all = crash::points(Runtime::Fake, who).await;
        points.extend(all.into_iter().map(|point| (who, point)));
    }
    let every = points.len().div_ceil(TRIALS);
    let first = usize::try_from(seed).unwrap_or_default();
    let afters = [After::Finish, After::Further, After::Force];
    let chosen = points.into_iter().skip(first % every).step_by(every);
    let mut summary = Summary::default();
    for (number, (who, point)) in chosen.enumerate() {
        if began.elapsed() > ENOUGH {
            break;
        }
        let after = afters[(first + number) % afters.len()];
        summary.add(crash::trial(Runtime::Fake, who, point, Deed::Kill, after).await);
    }
    println!("{}", summary.table());
    assert!(summary.violations().is_empty(), "seed {seed}: {:#?}", summary.violations());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_at_any_step_loses_nothing_and_leaves_nothing() {
    some_points(&[Who::Daemon]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_at_any_step_loses_no_status_and_leaves_nothing() {
    some_points(&[Who::InitShim, Who::ExecShim]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_handed_a_process_and_is_killed_at_any_step_loses_no_status_and_leaves_nothing() {
    some_points(&[Who::Group, Who::Adopter]).await;
}

async fn leaves_nothing(who: Who, key: &str) {
    // Whether the runtime or the clean-up is faster is a race, so one trial says little.
    for _ in 0..5 {
        let point = Point { key: key.to_owned(), time: 1 };
        let trial = crash::trial(Runtime::Fake, who, point, Deed::Kill, After::Force).await;
        assert!(trial.violations.is_empty(), "{trial:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_while_its_runtime_creates_leaves_no_container_of_the_runtime() {
    leaves_nothing(Who::InitShim, "spawned").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_before_it_announced_its_exec_leaves_no_process() {
    leaves_nothing(Who::ExecShim, "write ID/RANDOM/exit").await;
}
