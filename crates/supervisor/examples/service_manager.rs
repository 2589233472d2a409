//! A service manager: keeps three services running, and starts each one again when it exits.
//!
//! `service_manager ROOT`: SIGTERM stops all services, the last one first, and deletes them. Any
//! other end of this program leaves them running; the next one picks them up.

use std::io;
use std::time::Duration;

use futures::future::try_join_all;
use holdfast_supervisor::{Container, ContainerInfo, ContainerOptions, Error, Supervisor};
use nix::libc::SIGTERM;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// The names of the services, and their scripts. The first process of a pid namespace gets only the
/// signals that it has a handler for, so those that are to end by SIGTERM set a trap.
const SERVICES: [(&str, &str); 3] = [
    ("database", "trap 'exit 0' TERM; echo ready; while true; do sleep 1; done"),
    ("web", "trap 'exit 0' TERM; echo ready; while true; do sleep 1; done"),
    ("mailer", "sleep 1; exit 3"),
];
/// The label by which a service is recognised. Its value is the name of the service.
const LABEL: &str = "service";
/// The pause before a service is started again. It doubles with each exit, up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The pause is short again after a run of this length.
const STABLE: Duration = Duration::from_secs(10);
/// The time that a service has to end after SIGTERM. Then it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// Returns the container of a service. Starts the service if it has none.
async fn pick_up_or_start(
    supervisor: &Supervisor,
    name: &str,
    script: &str,
) -> Result<Container, Error> {
    if let Some(container) = supervisor.list_with_label(LABEL, Some(name)).pop() {
        let ContainerInfo { run, status, .. } = container.info();
        println!("{name}: picked up in run {run}, {}", status.as_str());
        return Ok(container);
    }
    let options = ContainerOptions::host_rootfs()
        .id(name.parse()?)
        .label(LABEL, name)
        .args(["sh", "-c", script]);
    let container = supervisor.run(options).await?;
    println!("{name}: run {} started", container.info().run);
    Ok(container)
}

/// Starts a service again each time it exits, until `ending` is cancelled.
async fn keep_running(container: &Container, ending: &CancellationToken) -> Result<(), Error> {
    let name = container.id();
    let mut pause = FIRST_PAUSE;
    while let Some(exit) = ending.run_until_cancelled(container.exit()).await {
        let status = exit?.status;
        // The times are stored, so this is also known of a run that began under an earlier process of
        // this program.
        if container.info().ran_for().is_some_and(|length| length >= STABLE) {
            pause = FIRST_PAUSE;
        }
        println!("{name}: exited with {status}, again in {pause:?}");
        loop {
            if ending.run_until_cancelled(sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
            // The start is not cancelled here: its result says whether there is a run to wait for.
            match container.start().await {
                Ok(()) => break,
                Err(error) => println!("{name}: not started, again in {pause:?}: {error}"),
            }
        }
        println!("{name}: run {} started", container.info().run);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: service_manager ROOT");
    let root = std::env::args_os().nth(1).ok_or_else(usage)?;
    // Before the first service is started, so that no SIGTERM ends this program without a stop.
    let mut terminate = signal(SignalKind::terminate())?;
    let shim = std::env::current_exe()?.with_file_name("../holdfast-shim");
    let supervisor = Supervisor::builder(root).shim(shim).open().await?;

    let mut services = Vec::new();
    for (name, script) in SERVICES {
        services.push(pick_up_or_start(&supervisor, name, script).await?);
    }
    let ending = CancellationToken::new();
    let kept = try_join_all(services.iter().map(|service| keep_running(service, &ending)));
    let terminated = async {
        terminate.recv().await;
        ending.cancel();
        Ok(())
    };
    tokio::try_join!(kept, terminated)?;

    for service in services.iter().rev() {
        let exit = service.stop(SIGTERM, GRACE).await?;
        println!("{}: stopped, exit {}", service.id(), exit.status);
    }
    for service in &services {
        service.delete().await?;
    }
    supervisor.shutdown().await;
    Ok(())
}
