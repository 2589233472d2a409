//! `inspect`: all that is known of a container or an exec process, and docker's names of it for `--format`.

use holdfast_daemon::api::{ContainerId, ContainerView, Details, ExitStatus, Status};
use serde_json::{Value, json};

use crate::client::Client;
use crate::each_typed;
use crate::find::{self, Target};
use crate::show;
use crate::template::Format;

/// Prints each container or exec process.
pub(crate) async fn inspect(
    client: &Client,
    ids: &[ContainerId],
    json: bool,
    format: Option<Format>,
) -> anyhow::Result<()> {
    each_typed(ids, async |id| {
        let Target { container, process } = find::target(client, id).await?;
        let view: ContainerView = client.get(&format!("/containers/{container}")).await?;
        let is_template = !matches!(format, None | Some(Format::Json));
        let value = match process {
            None => {
                let path = format!("/containers/{container}/details");
                let details: Details = client.get(&path).await?;
                let mut value = serde_json::to_value(&view)?;
                if is_template {
                    add_docker_names(&mut value, &view, &details.config)?;
                }
                value["config"] = details.config;
                value["record"] = details.record;
                value["runs"] = serde_json::to_value(details.runs)?;
                value
            }
            Some(process) => {
                let exec = view.info.execs.into_iter().find(|exec| exec.id == process);
                let mut value = serde_json::to_value(exec)?;
                value["container"] = container.as_str().into();
                value
            }
        };
        match &format {
            Some(format) => format.print(&value),
            None if json => show::json(&value),
            None => show::pretty_json(&value),
        }
    })
    .await
}

/// Adds what people type after `docker inspect --format`, as far as it means something here. `Config` has the
/// fields of the OCI configuration too, as `config` has.
fn add_docker_names(value: &mut Value, view: &ContainerView, config: &Value) -> anyhow::Result<()> {
    let info = &view.info;
    let running = matches!(info.status, Status::Running | Status::Paused);
    let status = match info.status {
        Status::Stopped => "exited",
        Status::Creating => "created",
        other => other.as_str(),
    };
    let error = match info.exit.as_ref().map(|exit| &exit.status) {
        Some(ExitStatus::Unknown(reason)) => reason.to_string(),
        _ => String::new(),
    };
    let mut state = json!({
        "Status": status,
        "Running": running,
        "Paused": info.status == Status::Paused,
        "Restarting": false,
        "OOMKilled": info.oom_killed,
        "Dead": false,
        "Pid": info.pid.unwrap_or_default(),
        "ExitCode": info.exit_status.unwrap_or_default(),
        "Error": error,
        "StartedAt": info.started,
        "FinishedAt": info.finished(),
    });
    if let Some(health) = &view.health {
        state["Health"] = json!({
            "Status": health.status,
            "FailingStreak": health.failing_streak,
            "Log": health.log,
        });
    }
    let process = &config["process"];
    let mut inside = config.clone();
    inside["Cmd"] = process["args"].clone();
    inside["Env"] = process["env"].clone();
    inside["WorkingDir"] = process["cwd"].clone();
    inside["Tty"] = process["terminal"].as_bool().unwrap_or_default().into();
    inside["User"] = format!("{}:{}", process["user"]["uid"], process["user"]["gid"]).into();
    inside["Labels"] = serde_json::to_value(&info.labels)?;
    value["Name"] = info.id.as_str().into();
    value["Path"] = info.args.first().map(String::as_str).into();
    value["LogPath"] = json!(info.log_paths.first());
    value["RestartCount"] = view.restart.as_ref().map_or(0, |restart| restart.count).into();
    value["State"] = state;
    value["Config"] = inside;
    Ok(())
}
