//! A CI runner: runs the steps of a job, each in a container of its own.
//!
//! `ci_runner ROOT FILE [SECONDS]`: each line of FILE is a shell command. All steps share the
//! directory `ROOT-workspace`, as /workspace. SECONDS is the time limit of a step. The first step
//! that fails ends the job; its exit code is that of the runner.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures::StreamExt;
use holdfast_supervisor::{
    Container, ContainerOptions, ExitRecord, LogLines, Mark, Network, OutputStream, Supervisor,
};
use nix::libc::SIGTERM;

/// The time that a step has to end after SIGTERM. Then it gets SIGKILL.
const GRACE: Duration = Duration::from_secs(10);
/// The exit code of a step that was stopped, as timeout(1) has it.
const STOPPED: u8 = 124;

/// Prints the output line by line, as it is written, until its end.
async fn print(number: usize, mut lines: LogLines) -> std::io::Result<()> {
    while let Some(line) = lines.next().await {
        let line = line?;
        let kind = match (line.mark, line.stream) {
            (Mark::Notice, _) => "holdfast",
            (_, OutputStream::Stdout) => "out",
            (_, OutputStream::Stderr) => "err",
        };
        println!("{number} {kind}: {}", String::from_utf8_lossy(&line.bytes));
    }
    Ok(())
}

/// Waits for the end of the step, and stops it after the time limit or on control-C. Returns how it
/// ended, and why it was stopped.
async fn ended(
    container: &Container,
    limit: Duration,
) -> std::io::Result<(ExitRecord, Option<&'static str>)> {
    let reason = tokio::select! {
        exit = container.exit() => return Ok((exit?, None)),
        () = tokio::time::sleep(limit) => "over the time limit",
        interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| "interrupted")?,
    };
    Ok((container.stop(SIGTERM, GRACE).await?, Some(reason)))
}

/// Runs one step, and returns its exit code.
async fn step(
    supervisor: &Supervisor,
    workspace: &Path,
    number: usize,
    command: &str,
    limit: Duration,
) -> std::io::Result<u8> {
    println!("step {number}: {command}");
    let began = Instant::now();
    let options = ContainerOptions::host_rootfs()
        .args(["sh", "-c", command])
        // Steps download what they need.
        .network(Network::Host)
        .env("CI=true")
        .memory_limit(512 << 20)
        .pids_limit(256)
        .bind(workspace, "/workspace")
        .cwd("/workspace");
    // The reader is there before the step begins, so it misses no output.
    let (container, output) = supervisor.run_attached(options).await?;
    let done = tokio::try_join!(print(number, output.into_lines()), ended(&container, limit));
    let oom_killed = container.info().oom_killed;
    // Forced: if the output could not be read, the step may still run.
    container.delete_forced().await?;

    let ((), (exit, stopped)) = done?;
    let memory = if oom_killed { ", out of memory" } else { "" };
    let stopped_by = stopped.map(|reason| format!(", stopped: {reason}")).unwrap_or_default();
    println!("step {number}: exit {}{memory}{stopped_by}, {:.1?}", exit.status, began.elapsed());
    Ok(if stopped.is_some() { STOPPED } else { exit.status.as_number() })
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(root), Some(file)) = (args.next(), args.next()) else {
        return Err("usage: ci_runner ROOT FILE [SECONDS]".into());
    };
    let seconds = args.next().map_or(Some(600), |text| text.to_str()?.parse().ok());
    let limit = Duration::from_secs(seconds.ok_or("SECONDS is a whole number")?);
    let job = std::fs::read_to_string(file)?;

    let mut workspace: OsString = std::path::absolute(&root)?.into();
    workspace.push("-workspace");
    std::fs::create_dir_all(&workspace)?;
    let shim = std::env::current_exe()?.with_file_name("../holdfast-shim");
    let supervisor = Supervisor::builder(root).shim(shim).open().await?;
    // A runner that was killed leaves its step running. This job begins from its first step.
    for container in supervisor.list() {
        println!("left over, deleted: {}", container.id());
        container.delete_forced().await?;
    }

    let mut code = 0;
    for (index, command) in job.lines().filter(|line| !line.trim().is_empty()).enumerate() {
        code = step(&supervisor, workspace.as_ref(), index + 1, command, limit).await?;
        if code != 0 {
            break;
        }
    }
    supervisor.shutdown().await;
    Ok(code.into())
}
