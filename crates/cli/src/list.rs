//! `ps`: which containers are shown, in which order and how; and `prune`.

use std::cmp::Reverse;
use std::io::IsTerminal;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::bail;
use comfy_table::{Table, presets};
use holdfast_daemon::api::{
    ContainerId, ContainerInfo, ContainerView, ExitStatus, Health, HealthStatus, Info, Status,
};
use serde_json::Value;

use crate::args::{PruneArgs, PsArgs};
use crate::bulk;
use crate::client::{Client, RequestError};
use crate::show;
use crate::streams::{self, complain, harmless, print};

/// The width of a table that is not for a terminal.
const WIDTH: usize = 80;
/// A command is not cut shorter than this.
const SHORTEST: usize = 12;

/// What a container has to be to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    Id(String),
    Name(String),
    Label(String, Option<String>),
    Status(Status),
    Health(Option<HealthStatus>),
    Exited(u8),
    /// Created before this moment.
    Until(SystemTime),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = "it is id=, name=, label=, status=, health=, exited= or until=";
        let (key, value) = text.split_once('=').ok_or(known)?;
        Ok(match key {
            "id" => Self::Id(value.to_owned()),
            "name" => Self::Name(value.to_owned()),
            "label" => {
                let (name, value) = match value.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (value, None),
                };
                Self::Label(name.to_owned(), value)
            }
            "status" => Self::Status(match value {
                "creating" => Status::Creating,
                "created" => Status::Created,
                "running" => Status::Running,
                "paused" => Status::Paused,
                "stopped" | "exited" => Status::Stopped,
                _ => return Err("there are created, running, paused and exited".to_owned()),
            }),
            "health" => Self::Health(match value {
                "starting" => Some(HealthStatus::Starting),
                "healthy" => Some(HealthStatus::Healthy),
                "unhealthy" => Some(HealthStatus::Unhealthy),
                "none" => None,
                _ => return Err("there are starting, healthy, unhealthy and none".to_owned()),
            }),
            "exited" => Self::Exited(value.parse().map_err(|_| "an exit status is 0 to 255")?),
            "until" => Self::Until(crate::args::values::parse_time(value)?),
            _ => return Err(known.to_owned()),
        })
    }
}

impl Filter {
    fn passes(&self, container: &ContainerInfo) -> bool {
        match self {
            Self::Id(begin) => container.id.as_str().starts_with(begin),
            Self::Name(part) => container.id.as_str().contains(part),
            Self::Label(name, value) => {
                let found = container.labels.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
            Self::Status(status) => container.status == *status,
            Self::Health(health) => Health::of(container).map(|it| it.status) == *health,
            Self::Exited(status) => container.exit_status == Some(*status),
            Self::Until(time) => created(container).is_some_and(|created| created < *time),
        }
    }

    /// Whether several of these stand for one or the other, as a container has but one of them.
    fn is_choice(&self) -> bool {
        !matches!(self, Self::Label(..) | Self::Until(_))
    }
}

/// Whether a container passes: each kind of filter, and of a kind of which it has but one, any.
fn passes(filters: &[Filter], container: &ContainerInfo) -> bool {
    filters.iter().all(|filter| {
        let same = std::mem::discriminant(filter);
        let alike = || filters.iter().filter(|other| std::mem::discriminant(*other) == same);
        match filter.is_choice() {
            true => alike().any(|filter| filter.passes(container)),
            false => filter.passes(container),
        }
    })
}

/// The order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// The newest first.
    Created,
    /// By id.
    Id,
    /// Those that run first.
    Status,
    /// By the command.
    Command,
}

impl FromStr for Order {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "created" => Ok(Self::Created),
            "id" | "name" => Ok(Self::Id),
            "status" => Ok(Self::Status),
            "command" => Ok(Self::Command),
            _ => Err("it is created, id, status or command"),
        }
    }
}

/// Lists containers.
pub(crate) async fn ps(client: &Client, args: PsArgs) -> anyhow::Result<()> {
    let info: Info = client.get("/info").await?;
    let query = serde_urlencoded::to_string([("label", &args.label)])?;
    // What a view has beyond that is made of it.
    let mut containers: Vec<ContainerInfo> = client.get(&format!("/containers?{query}")).await?;
    for problem in info.problems {
        complain(format_args!("not restored: {}: {}", problem.path.display(), problem.reason));
    }
    let asks_for_ended = args
        .filter
        .iter()
        .any(|filter| matches!(filter, Filter::Exited(_) | Filter::Status(Status::Stopped)));
    let last = if args.latest { Some(1) } else { args.last };
    let all = args.all || last.is_some() || asks_for_ended;
    containers.retain(|it| (all || it.status != Status::Stopped) && passes(&args.filter, it));
    if let Some(last) = last {
        sort(&mut containers, Order::Created);
        containers.truncate(last);
    }
    sort(&mut containers, args.sort);
    if args.quiet {
        return Ok(containers.iter().try_for_each(|container| print(&container.id))?);
    }
    if args.json {
        let views: Vec<_> = containers.into_iter().map(ContainerView::from).collect();
        return show::json(&views);
    }
    match args.format {
        Some(format) => {
            let rows: Result<Vec<_>, _> = containers.into_iter().map(fields).collect();
            format.print_all(&rows?)
        }
        None => table(&containers, args.no_trunc),
    }
}

fn sort(containers: &mut [ContainerInfo], order: Order) {
    // The times are all in one form, so they are ordered as texts are.
    let created = |it: &ContainerInfo| Reverse(it.created.as_ref().map(ToString::to_string));
    match order {
        Order::Created => containers.sort_by_cached_key(created),
        Order::Id => {
            containers.sort_by(|one, other| one.id.as_str().cmp(other.id.as_str()));
        }
        Order::Status => containers.sort_by_cached_key(|it| {
            let place = match it.status {
                Status::Running => 0,
                Status::Paused => 1,
                Status::Creating | Status::Created => 2,
                _ => 3,
            };
            (place, created(it))
        }),
        Order::Command => containers.sort_by_cached_key(command),
    }
}

/// A container as `--format` has it: its fields, and docker's names of them.
fn fields(container: ContainerInfo) -> anyhow::Result<Value> {
    let view = ContainerView::from(container);
    let mut value = serde_json::to_value(&view)?;
    let container = &view.info;
    let labels = container.labels.iter().map(|(name, value)| format!("{name}={value}"));
    value["ID"] = container.id.as_str().into();
    value["Names"] = container.id.as_str().into();
    value["Command"] = command(container).into();
    value["CreatedAt"] = serde_json::to_value(&container.created)?;
    value["RunningFor"] = ago(created(container)).into();
    value["Status"] = status(container).into();
    value["State"] = container.status.as_str().into();
    value["Labels"] = labels.collect::<Vec<_>>().join(",").into();
    Ok(value)
}

fn created(container: &ContainerInfo) -> Option<SystemTime> {
    SystemTime::try_from(container.created.as_ref()?).ok()
}

fn command(container: &ContainerInfo) -> String {
    harmless(&container.args.join(" "))
}

/// The state of a container and since when, as docker says it.
fn status(container: &ContainerInfo) -> String {
    match (container.status, &container.exit) {
        (Status::Running | Status::Paused, _) => {
            let up = container.ran_for().map(span).unwrap_or_default();
            let more = match (container.status, Health::of(container).map(|it| it.status)) {
                (Status::Paused, _) => " (paused)",
                (_, None) => "",
                (_, Some(HealthStatus::Starting)) => " (health: starting)",
                (_, Some(HealthStatus::Healthy)) => " (healthy)",
                (_, Some(HealthStatus::Unhealthy)) => " (unhealthy)",
            };
            format!("Up {up}{more}")
        }
        (Status::Stopped, Some(exit)) => {
            let status = match exit.status {
                ExitStatus::Unknown(_) => "unknown".to_owned(),
                status => status.as_number().to_string(),
            };
            format!("Exited ({status}) {}", ago(SystemTime::try_from(&exit.time).ok()))
        }
        (Status::Stopped, None) => "Exited".to_owned(),
        (Status::Created, _) => "Created".to_owned(),
        (other, _) => other.as_str().to_owned(),
    }
}

fn ago(time: Option<SystemTime>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    format!("{} ago", span(time.elapsed().unwrap_or_default()))
}

/// A time in its largest unit.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

fn table(containers: &[ContainerInfo], whole: bool) -> anyhow::Result<()> {
    let rows: Vec<[String; 4]> = containers
        .iter()
        .map(|it| [it.id.to_string(), command(it), ago(created(it)), status(it)])
        .collect();
    let width = |column: usize, header: &str| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default().max(header.len())
    };
    let terminal = std::io::stdout().is_terminal().then(crate::terminal::size);
    let room = terminal.map_or(WIDTH, |size| usize::from(size.width));
    // Each column has a blank on either side.
    let others = width(2, "CREATED") + width(3, "STATUS") + 8;
    // Programs that read this table find whole ids in it.
    let most_of_id = match terminal {
        Some(_) if !whole => room.saturating_sub(others + SHORTEST).max(SHORTEST),
        _ => usize::MAX,
    };
    let id_width = width(0, "ID").min(most_of_id);
    let most = match whole {
        true => usize::MAX,
        false => room.saturating_sub(others + id_width).max(SHORTEST),
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["ID", "COMMAND", "CREATED", "STATUS"]);
    for [id, command, created, status] in rows {
        let id = show::shortened(&id, most_of_id);
        table.add_row([id, show::shortened(&command, most), created, status]);
    }
    Ok(print(table.trim_fmt())?)
}

/// Deletes all containers that have ended.
pub(crate) async fn prune(client: &Client, args: PruneArgs) -> anyhow::Result<()> {
    if !args.force && !is_confirmed("This deletes all containers that have ended. Go on? [y/N] ") {
        bail!("nothing is deleted: that was not confirmed by y, and --force is not given");
    }
    let mut containers: Vec<ContainerInfo> = client.get("/containers").await?;
    containers.retain(|it| it.status == Status::Stopped && passes(&args.filter, it));
    bulk::each(&containers, async |container| delete(client, &container.id).await).await
}

/// Deletes a container that has ended, and returns its id; `None` if somebody else has, or has started it again.
async fn delete(client: &Client, id: &ContainerId) -> anyhow::Result<Option<String>> {
    match client.delete(&format!("/containers/{id}?force=false")).await {
        Ok(()) => Ok(Some(id.to_string())),
        Err(error) if RequestError::is_not_found(&error) => Ok(None),
        Err(error) if RequestError::is_wrong_state(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks on our standard error, as the answer is not part of the output.
fn is_confirmed(question: &str) -> bool {
    streams::write_errors(question.as_bytes());
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    if !answer.ends_with('\n') {
        // What is said next begins a line.
        streams::write_errors(b"\n");
    }
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_their_largest_unit() {
        for (seconds, said) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (3599, "59 minutes"),
            (3600, "1 hour"),
            (172_799, "47 hours"),
            (172_800, "2 days"),
            (1_209_600, "2 weeks"),
            (5_184_000, "2 months"),
            (63_072_000, "2 years"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), said);
        }
    }

    #[test]
    fn filters_are_written_as_docker_has_them() {
        assert_eq!("label=a=b".parse(), Ok(Filter::Label("a".into(), Some("b".into()))));
        assert_eq!("label=a".parse(), Ok(Filter::Label("a".into(), None)));
        assert_eq!("status=exited".parse(), Ok(Filter::Status(Status::Stopped)));
        assert_eq!("exited=137".parse(), Ok(Filter::Exited(137)));
        for text in
            ["", "label", "status=gone", "health=ill", "exited=256", "image=x", "until=yesterday"]
        {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }
}
