//! `holdfast`: the command line. It talks to the daemon and does nothing to containers itself.
//!
//! | module | what |
//! |---|---|
//! | `args` | what can be typed |
//! | `client` | one request to the daemon |
//! | `attached` | a process in the foreground: output, signals, exit status |
//! | `follow` | its output, over the ends of daemons |
//! | `away` | the time without a daemon |
//! | `detach` | the keys that leave it to itself |
//! | `terminal`, `signals` | what comes from our own terminal |
//! | `show` | tables and text for people |
//! | `streams` | our own standard output and error |

// They panic where nobody reads; `streams` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod attached;
mod away;
mod client;
mod detach;
mod follow;
mod show;
mod signals;
mod streams;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use holdfast_daemon::api::{
    ContainerId, ContainerInfo, CreateRequest, ExecOptions, ExecRequest, ExitRecord, Incarnation,
    KillRequest, Of, Started, StatsOf, Status, WaitQuery,
};

use crate::args::{Args, Command, ContainerArgs};
use crate::client::{Client, RequestError};
use crate::streams::{OutputError, complain, print};

/// Holdfast itself failed, as container tools have it; a container's own status is below.
const FAILED: u8 = 125;
/// Nobody reads our standard output any more: 128 and SIGPIPE, as the shell's own tools have it.
const NOBODY_READS: u8 = 128 + 13;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return answer(&error),
    };
    let is_daemon = matches!(args.command, Command::Daemon { .. });
    let mut builder = if is_daemon {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into(), 1),
    };
    // The status of `run`, `exec` and `attach` belongs to the container, so their own failures are apart.
    let own_failure = match args.command {
        Command::Run { .. } | Command::Exec { .. } | Command::Attach { .. } => FAILED,
        _ => 1,
    };
    let code = match runtime.block_on(perform(args)) {
        Ok(code) => code,
        Err(error) => fail(&error, own_failure),
    };
    // Not dropped: a thread of the runtime may be reading from or writing to a terminal.
    runtime.shutdown_background();
    code
}

/// Prints what was asked of the command line itself, or what is wrong with it.
fn answer(error: &clap::Error) -> ExitCode {
    // Any other code could be the container's own.
    let (own_failure, misuse) =
        if Args::is_for_a_container(std::env::args_os()) { (FAILED, FAILED) } else { (1, 2) };
    if error.use_stderr() {
        // Its own printing fails as a value, too, and knows about colours.
        let _ = error.print();
        return ExitCode::from(misuse);
    }
    let text = error.render();
    let coloured = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
    let text = if coloured { text.ansi().to_string() } else { text.to_string() };
    match streams::write(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.into(), own_failure),
    }
}

fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    if let Some(output) = error.downcast_ref::<OutputError>() {
        if output.is_worth_telling() {
            complain(output);
        }
        return ExitCode::from(if output.is_reader_gone() { NOBODY_READS } else { code });
    }
    complain(format_args!("{error:#}"));
    ExitCode::from(
        error.downcast_ref::<RequestError>().and_then(RequestError::exit_code).unwrap_or(code),
    )
}

async fn perform(args: Args) -> anyhow::Result<ExitCode> {
    let root = args.root()?;
    let address = args.address(&root);
    let client = Client::new(address.clone(), args.patience());
    match args.command {
        Command::Daemon { runtime, shim, shim_group, spare_shims, log_max_size, log_max_files } => {
            init_log();
            let config = holdfast_daemon::Config {
                root,
                address,
                runtime,
                shim,
                shim_group,
                spare_shims,
                log_max_size,
                log_max_files,
            };
            // As a text: it says its causes itself, and `fail` would say them again.
            holdfast_daemon::serve(config).await.map_err(|error| anyhow!("{error}"))?;
        }
        Command::Info { json } => show::info(&client.get("/info").await?, json)?,
        Command::Run { detach: true, container, .. } => create(&client, container, true).await?,
        Command::Run { detach: false, keys, container } => {
            let (name, is_removed) = (container.name.clone(), container.rm);
            let options = container.options()?;
            return attached::run(&client, name, options, is_removed, keys.detach_keys).await;
        }
        Command::Create { container } => create(&client, container, false).await?,
        Command::Start { ids } => {
            each(&ids, async |id| client.post(&format!("/containers/{id}/start"), &()).await)
                .await?
        }
        Command::Stop { stop } => {
            let request = stop.request();
            each(&stop.ids, async |id| {
                let path = format!("/containers/{id}/stop");
                client.post::<ExitRecord>(&path, &request).await.map(drop)
            })
            .await?
        }
        Command::Restart { stop } => {
            let request = stop.request();
            each(&stop.ids, async |id| {
                client.post(&format!("/containers/{id}/restart"), &request).await
            })
            .await?
        }
        Command::Exec { detach, timeout, env, workdir, user, keys, stdio, id, args } => {
            let mut options = ExecOptions::new(args).envs(env).stdio(stdio.request()?);
            if let Some(directory) = workdir {
                options = options.cwd(directory);
            }
            if let Some(user) = user {
                options = options.user(user);
            }
            if let Some(timeout) = timeout {
                options = options.start_timeout(timeout);
            }
            let path = format!("/containers/{id}/exec");
            if !detach {
                return attached::exec(&client, &id, options, keys.detach_keys).await;
            }
            let request = ExecRequest { options, detach };
            let Started { container, process, .. } = client.post(&path, &request).await?;
            print(&process).map_err(|error| {
                error.runs_on(format!("process {process} of container {container}"))
            })?;
        }
        Command::Ps { all, label, json } => ps(&client, all, label, json).await?,
        Command::Inspect { ids, json } => inspect(&client, &ids, json).await?,
        Command::Wait { ids, json } => {
            streams::while_read(each(&ids, async |id| show::exit(&wait(&client, id).await?, json)))
                .await?;
        }
        Command::Kill { signal, ids } => {
            let request = KillRequest { signal, process: None };
            each(&ids, async |id| client.post(&format!("/containers/{id}/kill"), &request).await)
                .await?;
        }
        Command::Pause { ids } => {
            each(&ids, async |id| client.post(&format!("/containers/{id}/pause"), &()).await)
                .await?
        }
        Command::Resume { ids } => {
            each(&ids, async |id| client.post(&format!("/containers/{id}/resume"), &()).await)
                .await?
        }
        Command::Update { resources, id } => {
            let resources = read_json(&resources)?;
            client.post::<()>(&format!("/containers/{id}/update"), &resources).await?;
        }
        Command::Top { json, id } => {
            let path = format!("/containers/{id}/top");
            show::processes(&client.again(async || client.get::<Vec<_>>(&path).await).await?, json)?
        }
        Command::Stats { json, ids } => stats(&client, ids, json).await?,
        Command::Checkpoint(checkpoint) => {
            let path = format!("/containers/{}/checkpoint", checkpoint.id);
            client.post::<()>(&path, &checkpoint.request()?).await?;
        }
        Command::Attach { no_stdin, keys, id } => {
            return attached::attach(&client, &id, no_stdin, keys.detach_keys).await;
        }
        Command::Logs(logs) => {
            streams::while_read(follow::logs(&client, &logs.id, &logs.query())).await?;
        }
        Command::ReopenLogs { ids } => {
            let of = Of::default();
            each(&ids, async |id| client.post(&format!("/containers/{id}/reopen-logs"), &of).await)
                .await?
        }
        Command::Events { replay, since, json } => {
            streams::while_read(show::events(&client, replay, since, json)).await?;
        }
        Command::Delete { force, ids } => {
            each(&ids, async |id| client.delete(&format!("/containers/{id}?force={force}")).await)
                .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something to each, and goes on where one fails.
async fn each(
    ids: &[ContainerId],
    act: impl AsyncFn(&ContainerId) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut failed = None;
    for id in ids {
        let Err(error) = act(id).await else { continue };
        // The next one would fail by that, too.
        let is_last = error.is::<OutputError>();
        if let Some(earlier) = failed.replace(error) {
            complain(format_args!("{earlier:#}"));
        }
        if is_last {
            break;
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Waits for the end of a container, by its incarnation and run: another may have its name when the
/// next daemon is asked.
async fn wait(client: &Client, id: &ContainerId) -> anyhow::Result<ExitRecord> {
    let path = format!("/containers/{id}");
    let which = client.again(async || match client.get::<ContainerInfo>(&path).await {
        // It may have been removed; its exit is known all the same.
        Err(error) if RequestError::is_not_found(&error) => Ok(WaitQuery::default()),
        info => info.map(|info| WaitQuery {
            incarnation: info.incarnation,
            run: Some(info.run),
            ..WaitQuery::default()
        }),
    });
    let query = serde_urlencoded::to_string(which.await?)?;
    let path = format!("/containers/{id}/wait?{query}");
    client.again(async || client.get(&path).await).await
}

/// A JSON file, or our standard input.
fn read_json(path: &std::path::Path) -> anyhow::Result<serde_json::Value> {
    let shown = path.display();
    let content = if path == std::path::Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("standard input")?
    } else {
        std::fs::read_to_string(path).with_context(|| format!("{shown}"))?
    };
    serde_json::from_str(&content).with_context(|| format!("{shown}: not JSON"))
}

async fn stats(client: &Client, ids: Vec<ContainerId>, json: bool) -> anyhow::Result<()> {
    let mut rows: Vec<StatsOf> = Vec::new();
    if ids.is_empty() {
        rows = client.again(async || client.get("/stats").await).await?;
    }
    for id in ids {
        let path = format!("/containers/{id}/stats");
        let stats = client.again(async || client.get(&path).await).await?;
        rows.push(StatsOf { id, stats });
    }
    show::stats(&rows, json)
}

async fn create(client: &Client, container: ContainerArgs, start: bool) -> anyhow::Result<()> {
    let (options, id, incarnation) = follow::named(container.name.clone(), container.options()?)?;
    let request = CreateRequest { options, start };
    let mut absence = None;
    loop {
        // The daemon before may have made it, and died before it could say so.
        let made = match absence {
            Some(_) => was_made(client, &id, incarnation).await,
            None => Ok(false),
        };
        let made = match made {
            Ok(false) => client.post::<ContainerInfo>("/containers", &request).await.map(drop),
            made => made.map(drop),
        };
        match made {
            Ok(()) => break,
            Err(error) => client.come_back(&mut absence, error, None).await?,
        }
    }
    print(&id).map_err(|error| {
        let what = format!("container {id}");
        if start { error.runs_on(what) } else { error.made(what) }
    })?;
    Ok(())
}

/// Whether this incarnation of a container is there, or was. Fails if its start has.
async fn was_made(
    client: &Client,
    id: &ContainerId,
    incarnation: Incarnation,
) -> anyhow::Result<bool> {
    match client.get::<ContainerInfo>(&format!("/containers/{id}")).await {
        Ok(info) if info.incarnation == Some(incarnation) => return Ok(true),
        Ok(_) => {}
        Err(error) if RequestError::is_not_found(&error) => {}
        Err(error) => return Err(error),
    }
    let query = WaitQuery { incarnation: Some(incarnation), ..WaitQuery::default() };
    let path = format!("/containers/{id}/wait?{}", serde_urlencoded::to_string(query)?);
    match client.get::<ExitRecord>(&path).await {
        Err(error) if RequestError::is_not_found(&error) => Ok(false),
        ended => ended.map(|_| true),
    }
}

async fn ps(client: &Client, all: bool, label: Option<String>, json: bool) -> anyhow::Result<()> {
    let info: holdfast_daemon::api::Info = client.get("/info").await?;
    let query = serde_urlencoded::to_string([("label", label)])?;
    let mut containers: Vec<ContainerInfo> = client.get(&format!("/containers?{query}")).await?;
    if !all {
        containers.retain(|container| container.status != Status::Stopped);
    }
    for problem in info.problems {
        complain(format_args!("not restored: {}: {}", problem.path.display(), problem.reason));
    }
    if json { show::json(&containers) } else { show::containers(&containers) }
}

async fn inspect(client: &Client, ids: &[ContainerId], json: bool) -> anyhow::Result<()> {
    each(ids, async |id| {
        let container: ContainerInfo = client.get(&format!("/containers/{id}")).await?;
        if json { show::json(&container) } else { show::pretty_json(&container) }
    })
    .await
}

fn init_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG")
        .unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| streams::Log)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// Where this process stands, for paths that the daemon must understand.
fn current_dir() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_dir().context("the working directory is gone")
}
