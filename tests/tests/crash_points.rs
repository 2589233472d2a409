//! The daemon and the shims, killed at some of the system calls by which they change the world.
//! `cargo xtask crash-points` tries all of them.

use std::time::{Duration, Instant};

use holdfast_tests::crash::{self, Summary};
use holdfast_tests::life::{After, Runtime, Who};
use holdfast_tests::tracer::Deed;

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
        points
            .extend(all.into_iter().filter(|point| !crash::is_known(who, point)).map(|p| (who, p)));
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
