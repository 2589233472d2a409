//! `top`: the processes in a container, as the daemon knows them, or as ps(1) shows them.

use std::io::ErrorKind;

use anyhow::{Context, bail};
use holdfast_daemon::api::{ContainerId, ProcessEntry};
use tokio::process::Command;

use crate::client::Client;
use crate::find;
use crate::show;
use crate::streams::{self, harmless};

/// Lists them. With options of ps(1), ps lists them.
pub(crate) async fn top(
    client: &Client,
    id: &ContainerId,
    options: &[String],
    as_json: bool,
) -> anyhow::Result<()> {
    let path = format!("/containers/{}/top", find::container(client, id).await?);
    let processes: Vec<ProcessEntry> = client.again(async || client.get(&path).await).await?;
    if options.is_empty() {
        return show::processes(&processes, as_json);
    }
    let pids: Vec<String> = processes.iter().map(|process| process.pid.to_string()).collect();
    let mut table = String::new();
    for line in ps(options, &pids).await? {
        table += &harmless(&line);
        table.push('\n');
    }
    Ok(streams::write(table.as_bytes())?)
}

/// The header of ps(1), and its lines of these processes.
async fn ps(options: &[String], pids: &[String]) -> anyhow::Result<Vec<String>> {
    let run = async |more: &[&str]| {
        let output = Command::new("ps").args(options).args(more).output().await;
        output.map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                anyhow::anyhow!("options of top need ps(1), which is not in PATH")
            }
            _ => anyhow::Error::new(error).context("start ps"),
        })
    };
    let lines = |output: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(output).lines().map(str::to_owned).collect()
    };
    // The options may select processes themselves, as `-ef` and `aux` do. ps refuses that together with -q.
    let selected = run(&["-q", &pids.join(",")]).await?;
    if selected.status.success() {
        return Ok(lines(&selected.stdout));
    }
    let all = run(&[]).await?;
    if !all.status.success() {
        let words = options.join(" ");
        bail!("ps {words}: {}", String::from_utf8_lossy(&all.stderr).trim());
    }
    of_processes(lines(&all.stdout), pids)
}

/// The header, and the lines whose number below `PID` is one of these.
fn of_processes(mut lines: Vec<String>, pids: &[String]) -> anyhow::Result<Vec<String>> {
    let header = lines.first().context("ps printed nothing")?;
    // ps aligns this column to the right.
    let end = words(header).find_map(|(end, word)| (word == "PID").then_some(end));
    let end =
        end.context("these options of ps have no column PID, so nothing tells whose line it is")?;
    let mut is_first = true;
    lines.retain(|line| {
        std::mem::take(&mut is_first)
            || words(line).any(|(at, word)| at == end && pids.iter().any(|pid| pid == word))
    });
    Ok(lines)
}

/// The words of a line, each with the place where it ends, in characters.
fn words(line: &str) -> impl Iterator<Item = (usize, &str)> {
    line.split_whitespace().map(move |word| {
        let end = word.as_ptr().addr() - line.as_ptr().addr() + word.len();
        (line[..end].chars().count(), word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_belongs_to_the_number_below_pid() {
        let table = "COMMAND                         PID  PPID\n\
                     écho 12                          12     1\n\
                     sleep 12                        120    12\n\
                     sh -c 12                          7     1";
        let of = |pids: &[&str]| {
            let pids: Vec<_> = pids.iter().map(|&pid| pid.to_owned()).collect();
            of_processes(table.lines().map(str::to_owned).collect(), &pids).unwrap()
        };
        assert_eq!(of(&["12"]).len(), 2);
        assert!(of(&["12"])[1].starts_with("écho"));
        assert_eq!(of(&["120", "7"]).len(), 3);
        assert_eq!(of(&["1"]).len(), 1);
        of_processes(vec!["COMMAND".to_owned()], &[]).unwrap_err();
    }
}
