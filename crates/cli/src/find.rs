//! Which container or process is meant by what was typed.
//!
//! An id may be shortened if Holdfast has chosen it: as long as only one begins like that. A name that a
//! person has chosen has to be given in full, so that `rm web` never means `web2`.

use anyhow::bail;
use holdfast_daemon::api::{ContainerId, ContainerInfo, ProcessId};

use crate::client::{Client, RequestError};

/// A process: the first one of a container, or an exec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) container: ContainerId,
    pub(crate) process: Option<ProcessId>,
}

/// The number of digits of the ids that Holdfast chooses: for containers and detached execs, and for
/// execs in the foreground.
const LENGTHS: [usize; 2] = [12, 32];

/// Whether Holdfast may have chosen an id that begins like this.
fn is_digits(id: &str) -> bool {
    id.len() <= LENGTHS[1] && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Finds a container or an exec.
pub(crate) async fn target(client: &Client, typed: &ContainerId) -> anyhow::Result<Target> {
    let itself = Target { container: typed.clone(), process: None };
    if !is_digits(typed.as_str()) {
        return Ok(itself);
    }
    if typed.as_str().len() == LENGTHS[0] {
        let path = format!("/containers/{typed}");
        match client.again(async || client.get::<ContainerInfo>(&path).await).await {
            Ok(_) => return Ok(itself),
            Err(error) if RequestError::is_not_found(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let all = client.again(async || client.get::<Vec<ContainerInfo>>("/containers").await).await?;
    choose(typed, all.iter().flat_map(targets)).map(|found| found.unwrap_or(itself))
}

/// Finds a container.
pub(crate) async fn container(client: &Client, typed: &ContainerId) -> anyhow::Result<ContainerId> {
    let Target { container, process } = target(client, typed).await?;
    match process {
        None => Ok(container),
        Some(process) => {
            bail!(
                "{process} is a process of container {container}, and this command takes containers"
            )
        }
    }
}

fn targets(info: &ContainerInfo) -> impl Iterator<Item = Target> {
    let execs = info.execs.iter().map(|exec| Some(exec.id.clone()));
    std::iter::once(None).chain(execs).map(|process| Target { container: info.id.clone(), process })
}

/// The one that is meant; `None` if there is none like that.
fn choose(
    typed: &ContainerId,
    all: impl Iterator<Item = Target>,
) -> anyhow::Result<Option<Target>> {
    let mut begin_so = Vec::new();
    for target in all {
        let id = target.process.as_ref().map_or(target.container.as_str(), ProcessId::as_str);
        if id == typed.as_str() {
            return Ok(Some(target));
        }
        if id.starts_with(typed.as_str()) && LENGTHS.contains(&id.len()) && is_digits(id) {
            begin_so.push(target);
        }
    }
    if begin_so.len() > 1 {
        let few: Vec<_> = begin_so.iter().take(3).map(ToString::to_string).collect();
        let number = begin_so.len();
        bail!("{typed} is not enough: {number} ids begin so, {} …", few.join(", "));
    }
    Ok(begin_so.pop())
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.process {
            None => write!(f, "container {}", self.container),
            Some(process) => write!(f, "process {process} of container {}", self.container),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(typed: &str, ids: &[(&str, Option<&str>)]) -> Result<Option<String>, String> {
        let all = ids.iter().map(|(container, process)| Target {
            container: container.parse().unwrap(),
            process: process.map(|process| process.parse().unwrap()),
        });
        choose(&typed.parse().unwrap(), all)
            .map(|found| found.map(|target| target.to_string()))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_beginning_is_enough_if_it_is_the_only_one_and_no_name() {
        let ids = [
            ("abc000000001", None),
            ("abc000000002", None),
            ("abd000000003", None),
            ("abd000000003", Some("e0e000000004")),
            ("ab", None),
            ("facade", None),
        ];
        assert_eq!(chosen("abd", &ids), Ok(Some("container abd000000003".to_owned())));
        assert_eq!(chosen("ab", &ids), Ok(Some("container ab".to_owned())));
        let exec = "process e0e000000004 of container abd000000003";
        assert_eq!(chosen("e0", &ids), Ok(Some(exec.to_owned())));
        assert_eq!(chosen("fac", &ids), Ok(None));
        assert_eq!(chosen("9", &ids), Ok(None));
        let error = chosen("abc", &ids).unwrap_err();
        assert!(error.contains("2 ids") && error.contains("abc000000002"), "{error}");
    }
}
