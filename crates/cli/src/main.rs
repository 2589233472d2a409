//! `holdfast`: the command line. It talks to the daemon and does nothing to containers itself.
//!
//! | module | what |
//! |---|---|
//! | `args` | what can be typed |
//! | `daemon` | the daemon itself: its flags, its configuration file, its log |
//! | `client` | one request to the daemon |
//! | `find` | which container or process is meant |
//! | `attached` | a process in the foreground: output, signals, exit status |
//! | `follow` | its output, over the ends of daemons |
//! | `away` | the time without a daemon |
//! | `forward` | signals and the end of input, on their way to it |
//! | `detach` | the keys that leave it to itself |
//! | `terminal`, `signals` | what comes from our own terminal |
//! | `list`, `inspect`, `events`, `wait`, `stats`, `top`, `copy` | those commands |
//! | `bulk` | the same for many containers |
//! | `init` | the init of a container |
//! | `images` | what is no root file system |
//! | `show`, `template` | tables and text for people; `--format` |
//! | `streams` | our own standard output and error |

// They panic where nobody reads; `streams` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod attached;
mod away;
mod bulk;
mod cidfile;
mod client;
mod copy;
mod daemon;
mod detach;
mod events;
mod find;
mod follow;
mod forward;
mod images;
mod init;
mod inspect;
mod list;
mod places;
mod show;
mod signals;
mod stats;
mod streams;
mod template;
mod terminal;
mod top;
mod wait;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::CommandFactory;
use holdfast_daemon::api::{
    ContainerId, ContainerInfo, CreateRequest, ExecRequest, ExitRecord, Incarnation, Info,
    KillRequest, Of, Started, WaitQuery,
};
use holdfast_sys::resource;
use nix::sys::signal::Signal;

use crate::args::{Args, Command, ContainerArgs, KillWord};
use crate::cidfile::CidFile;
use crate::client::{Client, RequestError};
use crate::find::Target;
use crate::streams::{OutputError, complain, print};
use crate::wait::TimeIsOver;

/// Holdfast itself failed, as container tools have it; a container's own status is below.
const FAILED: u8 = 125;
/// Nobody reads our standard output any more: 128 and SIGPIPE, as the shell's own tools have it.
const NOBODY_READS: u8 = 128 + 13;

fn main() -> ExitCode {
    let args = match Args::typed() {
        Ok(args) => args,
        Err(error) => return answer(&error),
    };
    let is_daemon = matches!(args.command, Command::Daemon(_));
    let mut builder = if is_daemon {
        // Before there are threads. Without it, the first starts wait.
        let _ = resource::make_room_for_files(resource::FILES_OF_A_DAEMON);
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
        Command::Start { attach, interactive, .. } if attach || interactive => FAILED,
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
    if error.is::<TimeIsOver>() {
        return ExitCode::from(TimeIsOver::EXIT_CODE);
    }
    ExitCode::from(
        error.downcast_ref::<RequestError>().and_then(RequestError::exit_code).unwrap_or(code),
    )
}

async fn perform(args: Args) -> anyhow::Result<ExitCode> {
    if let Command::Daemon(_) = &args.command {
        return daemon::run(args).await;
    }
    let address = args.address(None, || args.root(None))?;
    let client = Client::new(address.clone(), args.patience());
    match args.command {
        // It is above.
        Command::Daemon(_) => {}
        Command::Info { json } => show::info(&client.get("/info").await?, json)?,
        Command::Run { detach: true, container, .. } => create(&client, *container, true).await?,
        Command::Run { detach: false, keys, container } => {
            return attached::run(&client, *container, keys.detach_keys).await;
        }
        Command::Create { container } => create(&client, *container, false).await?,
        Command::Start { attach, interactive, keys, ids } if attach || interactive => {
            let [id] = &ids[..] else { bail!("start attaches to one container") };
            return attached::start(&client, id, interactive, keys.detach_keys).await;
        }
        Command::Start { ids, .. } => {
            each(&client, &ids, async |id| {
                client.post(&format!("/containers/{id}/start"), &()).await
            })
            .await?
        }
        Command::Stop { stop } => {
            let request = stop.request();
            each(&client, &stop.ids, async |id| {
                let path = format!("/containers/{id}/stop");
                client.post::<ExitRecord>(&path, &request).await.map(drop)
            })
            .await?
        }
        Command::Restart { stop } => {
            let request = stop.request();
            each(&client, &stop.ids, async |id| {
                client.post(&format!("/containers/{id}/restart"), &request).await
            })
            .await?
        }
        Command::Exec { exec } if !exec.detach => return attached::exec(&client, *exec).await,
        Command::Exec { exec } => {
            let id = find::container(&client, &exec.id).await?;
            let request = ExecRequest { options: exec.options()?, detach: true };
            let path = format!("/containers/{id}/exec");
            let Started { container, process, .. } = client.post(&path, &request).await?;
            print(&process).map_err(|error| {
                error.runs_on(format!("process {process} of container {container}"))
            })?;
        }
        Command::Ps(ps) => list::ps(&client, ps).await?,
        Command::Inspect { ids, json, format } => {
            inspect::inspect(&client, &ids, json, format).await?;
        }
        Command::Wait(args) => {
            let wait = each_typed(&args.ids, async |id| wait::wait(&client, id, &args).await);
            streams::while_read(wait).await?;
        }
        Command::Kill { signal, words } => kill(&client, signal, words).await?,
        Command::Pause { ids } => {
            each(&client, &ids, async |id| {
                client.post(&format!("/containers/{id}/pause"), &()).await
            })
            .await?
        }
        Command::Resume { ids } => {
            each(&client, &ids, async |id| {
                client.post(&format!("/containers/{id}/resume"), &()).await
            })
            .await?
        }
        Command::Update { resources, id } => {
            let resources = read_json(&resources)?;
            let id = find::container(&client, &id).await?;
            client.post::<()>(&format!("/containers/{id}/update"), &resources).await?;
        }
        Command::Top { json, id, options } => top::top(&client, &id, &options, json).await?,
        Command::Stats(args) => streams::while_read(stats::stats(&client, args)).await?,
        Command::Cp(args) => copy::copy(&client, &args).await?,
        Command::Checkpoint(checkpoint) => {
            let id = find::container(&client, &checkpoint.id).await?;
            let path = format!("/containers/{id}/checkpoint");
            client.post::<()>(&path, &checkpoint.request()?).await?;
        }
        Command::Attach { no_stdin, keys, id } => {
            let id = find::container(&client, &id).await?;
            return attached::attach(&client, &id, no_stdin, keys.detach_keys).await;
        }
        Command::Logs(logs) => {
            streams::while_read(async {
                let Target { container, process } = find::target(&client, &logs.id).await?;
                follow::logs(&client, &container, &logs.query(process)).await
            })
            .await?;
        }
        Command::ReopenLogs { ids } => {
            each_typed(&ids, async |id| {
                let Target { container, process } = find::target(&client, id).await?;
                let path = format!("/containers/{container}/reopen-logs");
                client.post(&path, &Of { process }).await
            })
            .await?
        }
        Command::Events(args) => streams::while_read(events::events(&client, args)).await?,
        Command::Delete { force, ids } => {
            let delete = async |id: &ContainerId| {
                delete(&client, id, force).await.map(|()| Some(id.to_string()))
            };
            bulk::each(&ids, delete).await?
        }
        Command::Prune(args) => list::prune(&client, args).await?,
        Command::Version { json } => version(&client, json).await?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "holdfast", &mut script);
            streams::write(&script)?;
        }
        Command::Man { dir } => clap_mangen::generate_to(Args::command(), dir)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something to each container, says its name as it was typed, and goes on where one fails.
async fn each(
    client: &Client,
    ids: &[ContainerId],
    act: impl AsyncFn(&ContainerId) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    each_typed(ids, async |typed| {
        act(&find::container(client, typed).await?).await?;
        Ok(print(typed)?)
    })
    .await
}

/// Does something with each id as it was typed, and goes on where one fails.
async fn each_typed(
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

async fn kill(client: &Client, signal: Option<i32>, words: Vec<KillWord>) -> anyhow::Result<()> {
    let mut signals = Vec::from_iter(signal);
    let mut ids = Vec::new();
    for word in words {
        match word {
            KillWord::Id(id) => ids.push(id),
            KillWord::Signal(signal) => signals.push(signal),
        }
    }
    if signals.len() > 1 || ids.is_empty() {
        bail!("kill takes one signal, and at least one container or process");
    }
    let signal = signals.pop().unwrap_or(Signal::SIGKILL as i32);
    each_typed(&ids, async |id| {
        let Target { container, process } = find::target(client, id).await?;
        let path = format!("/containers/{container}/kill");
        client.post::<()>(&path, &KillRequest { signal, process }).await?;
        Ok(print(id)?)
    })
    .await
}

async fn delete(client: &Client, id: &ContainerId, force: bool) -> anyhow::Result<()> {
    let Target { container, process } = find::target(client, id).await?;
    match process {
        None => {
            let deleted = client.delete(&format!("/containers/{container}?force={force}")).await;
            deleted.map_err(|error| match force {
                true => error,
                false => RequestError::advise(error, "stop it first, or use --force"),
            })
        }
        Some(process) => {
            client.delete(&format!("/containers/{container}/processes/{process}")).await
        }
    }
}

async fn version(client: &Client, json: bool) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let daemon: anyhow::Result<Info> = client.get("/info").await;
    let there = daemon.as_ref().ok().map(|info| &info.version);
    if json {
        show::json(&serde_json::json!({ "client": own, "daemon": there }))?;
    } else {
        print(format_args!("holdfast  {own}"))?;
        if let Some(version) = there {
            print(format_args!("daemon    {version}"))?;
        }
    }
    daemon.map(drop)
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

async fn create(client: &Client, container: ContainerArgs, start: bool) -> anyhow::Result<()> {
    let cidfile = container.cidfile.clone().map(CidFile::create).transpose()?;
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
    if let Some(cidfile) = cidfile {
        cidfile.fill(&id)?;
    }
    print(&id).map_err(|error| {
        let what = format!("container {id}");
        if start { error.runs_on(what) } else { error.made(what) }
    })?;
    Ok(())
}

/// Whether this incarnation of a container is there, or was. A start that goes on is waited for; fails if it does.
async fn was_made(
    client: &Client,
    id: &ContainerId,
    incarnation: Incarnation,
) -> anyhow::Result<bool> {
    match client.get::<ContainerInfo>(&format!("/containers/{id}?begun=true")).await {
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

/// Where this process stands, for paths that the daemon must understand.
fn current_dir() -> anyhow::Result<std::path::PathBuf> {
    std::env::current_dir().context("the working directory is gone")
}
