//! A service that hosts three containers in its own process.
//!
//! `cargo run --example embed -p holdfast-supervisor` starts them. Kill it with any signal, wait,
//! and run it again: it restores those that still run, and reports the exit of those that ended
//! meanwhile.

use futures::future::join_all;
use holdfast_supervisor::{Container, ContainerOptions, Error, Supervisor};

const JOBS: [(&str, &str); 3] =
    [("quick", "sleep 2; exit 0"), ("slow", "sleep 20; exit 3"), ("failing", "sleep 5; exit 42")];

async fn pick_up_or_start(
    supervisor: &Supervisor,
    name: &str,
    script: &str,
) -> Result<Container, Error> {
    let id = name.parse()?;
    match supervisor.get(&id) {
        Ok(container) => {
            println!("{name}: picked up, {}", container.info().status.as_str());
            Ok(container)
        }
        Err(Error::NotFound(_)) => {
            println!("{name}: started");
            supervisor.run(ContainerOptions::host_rootfs().id(id).args(["sh", "-c", script])).await
        }
        Err(error) => Err(error),
    }
}

async fn serve(supervisor: &Supervisor, name: &str, script: &str) -> Result<(), Error> {
    let container = pick_up_or_start(supervisor, name, script).await?;
    let exit = container.exit().await?;
    println!("{name}: ended with {} (known by {:?})", exit.status, exit.evidence);
    container.delete().await
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).unwrap_or_else(|| "/run/holdfast-embed".to_owned());
    let shim = std::env::current_exe()?.with_file_name("../holdfast-shim");
    let supervisor = Supervisor::builder(root).shim(shim).open().await?;
    println!(
        "{} containers restored in {:?}",
        supervisor.restore_report().containers,
        supervisor.restore_report().elapsed
    );

    for result in join_all(JOBS.map(|(name, script)| serve(&supervisor, name, script))).await {
        result?;
    }
    supervisor.shutdown().await;
    Ok(())
}
