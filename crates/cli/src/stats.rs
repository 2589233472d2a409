//! `stats`: what containers use, from two looks at them.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::bail;
use comfy_table::{Table, presets};
use holdfast_daemon::api::{ContainerId, Stats, StatsOf};
use serde_json::{Value, json};

use crate::args::StatsArgs;
use crate::client::Client;
use crate::find;
use crate::show;
use crate::streams;

/// The time between two looks, by which a share of the processors is computed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same if there is only one table.
const SHORT_INTERVAL: Duration = Duration::from_millis(250);
/// Takes a terminal's cursor to its first place, and clears what follows.
const CLEAR: &str = "\x1b[H\x1b[J";

/// The width of all columns but the id, at the most.
const OTHERS: usize = 68;
/// An id is not cut shorter than this, which is the length of those that Holdfast chooses.
const SHORTEST_ID: usize = 12;

/// What containers used at a moment.
struct Look {
    at: Instant,
    stats: BTreeMap<String, Stats>,
}

/// Shows what containers use: again and again on a terminal, else once.
pub(crate) async fn stats(client: &Client, args: StatsArgs) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for id in &args.ids {
        ids.push(find::container(client, id).await?);
    }
    let mut before = look(client, &ids, true).await?;
    if args.json {
        return before.stats.iter().try_for_each(|(id, stats)| {
            let mut value = serde_json::to_value(stats)?;
            value["id"] = id.as_str().into();
            show::json(&value)
        });
    }
    if args.no_stream || !std::io::stdout().is_terminal() {
        tokio::time::sleep(SHORT_INTERVAL).await;
        let now = look(client, &ids, false).await?;
        return match &args.format {
            None => Ok(streams::write(table(&before, &now, room()).as_bytes())?),
            Some(format) => format.print_all(&rows(&before, &now)?),
        };
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = look(client, &ids, false).await?;
        if now.stats.is_empty() && !ids.is_empty() {
            bail!("none of these containers runs any more");
        }
        match &args.format {
            // In one write, so that it does not flicker.
            None => streams::write(format!("{CLEAR}{}", table(&before, &now, room())).as_bytes())?,
            Some(format) => format.print_all(&rows(&before, &now)?)?,
        }
        before = now;
    }
}

/// Asks for what these containers use, or all. One that does not run is an error the first time, and
/// left out later.
async fn look(client: &Client, ids: &[ContainerId], is_first: bool) -> anyhow::Result<Look> {
    let mut stats = BTreeMap::new();
    if ids.is_empty() || !is_first {
        let all: Vec<StatsOf> = client.again(async || client.get("/stats").await).await?;
        stats.extend(all.into_iter().map(|of| (of.id.to_string(), of.stats)));
        stats.retain(|id, _| ids.is_empty() || ids.iter().any(|wanted| wanted.as_str() == id));
    } else {
        for id in ids {
            let path = format!("/containers/{id}/stats");
            stats.insert(id.to_string(), client.again(async || client.get(&path).await).await?);
        }
    }
    Ok(Look { at: Instant::now(), stats })
}

/// Programs that read the table find whole ids in it.
fn room() -> usize {
    let terminal = std::io::stdout().is_terminal().then(crate::terminal::size);
    terminal.map_or(usize::MAX, |size| usize::from(size.width))
}

/// Both looks at a container.
struct Row<'a> {
    id: &'a str,
    stats: &'a Stats,
    before: Option<&'a Stats>,
    between: Duration,
}

fn pairs<'a>(before: &'a Look, now: &'a Look) -> impl Iterator<Item = Row<'a>> {
    let between = now.at.duration_since(before.at);
    now.stats.iter().map(move |(id, stats)| Row {
        id,
        stats,
        before: before.stats.get(id),
        between,
    })
}

impl Row<'_> {
    /// The share of one processor: 150 % are one and a half.
    fn cpu(&self) -> String {
        let used =
            self.before.and_then(|before| self.stats.cpu_nanos?.checked_sub(before.cpu_nanos?));
        match used {
            Some(nanos) => {
                percent(Duration::from_nanos(nanos).as_secs_f64() / self.between.as_secs_f64())
            }
            None => "-".to_owned(),
        }
    }

    fn memory(&self) -> Option<u64> {
        self.stats.memory_working_set_bytes.or(self.stats.memory_bytes)
    }

    /// The limit, or the memory of the machine.
    fn most_memory(&self) -> Option<u64> {
        self.stats.memory_limit_bytes.or_else(machine_memory)
    }

    fn memory_share(&self) -> String {
        match (self.memory(), self.most_memory()) {
            (Some(used), Some(most)) if most > 0 => percent(float(used) / float(most)),
            _ => "-".to_owned(),
        }
    }

    fn memory_usage(&self) -> String {
        format!("{} / {}", bytes(self.memory()), bytes(self.most_memory()))
    }

    fn network_io(&self) -> String {
        let Stats { network_received_bytes: received, network_sent_bytes: sent, .. } = *self.stats;
        format!("{} / {}", bytes(received), bytes(sent))
    }

    fn block_io(&self) -> String {
        format!("{} / {}", bytes(self.stats.io_read_bytes), bytes(self.stats.io_write_bytes))
    }

    fn pids(&self) -> String {
        self.stats.pids.map_or_else(|| "-".to_owned(), |pids| pids.to_string())
    }
}

/// Ids are cut so that the table fits `room` columns.
fn table(before: &Look, now: &Look, room: usize) -> String {
    let longest_id = room.saturating_sub(OTHERS).max(SHORTEST_ID);
    let mut table = Table::new();
    let header = ["ID", "CPU %", "MEM / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    table.load_preset(presets::NOTHING).set_header(header);
    // All of them fit 80 columns with one space between.
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    for row in pairs(before, now) {
        table.add_row([
            show::shortened(row.id, longest_id),
            row.cpu(),
            row.memory_usage(),
            row.memory_share(),
            row.network_io(),
            row.block_io(),
            row.pids(),
        ]);
    }
    table.trim_fmt() + "\n"
}

/// The rows as `--format` has them: docker's names, and all that was measured.
fn rows(before: &Look, now: &Look) -> anyhow::Result<Vec<Value>> {
    let rows = pairs(before, now).map(|row| {
        let mut value = serde_json::to_value(row.stats)?;
        for (name, text) in [
            ("ID", row.id.to_owned()),
            ("Name", row.id.to_owned()),
            ("CPUPerc", row.cpu()),
            ("MemUsage", row.memory_usage()),
            ("MemPerc", row.memory_share()),
            ("PIDs", row.pids()),
            ("NetIO", row.network_io()),
            ("BlockIO", row.block_io()),
        ] {
            value[name] = json!(text);
        }
        Ok(value)
    });
    rows.collect()
}

fn percent(share: f64) -> String {
    let digits = if share < 1.0 { 2 } else { 1 };
    format!("{:.digits$}%", share * 100.0)
}

/// Exact enough for three digits.
#[expect(clippy::cast_precision_loss, reason = "only a few digits are shown")]
fn float(number: u64) -> f64 {
    number as f64
}

/// A size with three digits or so.
pub(crate) fn bytes(size: Option<u64>) -> String {
    let Some(size) = size else { return "-".to_owned() };
    let mut value = float(size);
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            let digits = usize::from(value < 10.0 && unit != "B");
            return format!("{value:.digits$}{unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1}TiB")
}

fn machine_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (size, said) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.0KiB"),
            (64 << 20, "64MiB"),
            (1536 << 20, "1.5GiB"),
            (5 << 50, "5120.0TiB"),
        ] {
            assert_eq!(bytes(Some(size)), said);
        }
        assert_eq!(bytes(None), "-");
    }

    #[test]
    fn a_share_is_that_of_one_processor_and_the_table_fits_80_columns() {
        let stats = |cpu: u64| -> Stats {
            serde_json::from_value(json!({
                "cpuNanos": cpu, "memoryBytes": 8 << 20, "memoryLimitBytes": 64 << 20, "pids": 2048,
                "ioReadBytes": 999 << 20, "ioWriteBytes": 999 << 20,
                "networkReceivedBytes": 999 << 20, "networkSentBytes": 999 << 20,
            }))
            .unwrap()
        };
        let at = Instant::now();
        let look = |after, cpu| Look {
            at: at + Duration::from_secs(after),
            stats: BTreeMap::from([("0123456789-a-long-name".to_owned(), stats(cpu))]),
        };
        let table = table(&look(0, 1_000_000_000), &look(2, 4_000_000_000), 80);
        assert!(table.contains("150.0%") && table.contains("8.0MiB / 64MiB"), "{table}");
        assert!(table.contains("12.50%"), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }
}
