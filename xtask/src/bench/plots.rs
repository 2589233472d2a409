//! Which pictures there are: `docs/plots/*.svg`, from `bench/results/*.json`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;

use super::plot::{self, Bar};

/// Draws all of them, but for those of which there is no result.
pub(super) fn all() -> anyhow::Result<()> {
    if_there("start.json", start)?;
    if_there("churn.json", churn)?;
    if_there("memory.json", memory)?;
    if_there("scale.json", scale)?;
    if_there("library.json", library)
}

fn if_there(result: &str, draw: fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if results().join(result).exists() {
        return draw();
    }
    println!("not drawn: there is no bench/results/{result}");
    Ok(())
}

pub(super) fn start() -> anyhow::Result<()> {
    let found = read("start.json")?;
    let bars = found.iter().map(|row| bar(name(row), &row["ms"])).collect::<Result<Vec<_>, _>>()?;
    plot::bars(&drawn("start.svg"), "From the command to the exit code of `true`", "ms", &bars)
}

/// How the rate grows with the workers; and, as bars, each at its best.
pub(super) fn churn() -> anyhow::Result<()> {
    let found = read("churn.json")?;
    let mut curves: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    let mut best: Vec<Bar> = Vec::new();
    for row in &found {
        let workers = row["workers"].as_f64().context("no workers")?;
        let bar = bar(name(row), &row["containersASecond"])?;
        let point = (workers, bar.1);
        match curves.iter_mut().zip(&mut best).find(|(curve, _)| curve.0 == bar.0) {
            Some((curve, best)) => {
                curve.1.push(point);
                if bar.1 > best.1 {
                    *best = bar;
                }
            }
            None => {
                curves.push((bar.0.clone(), vec![point]));
                best.push(bar);
            }
        }
    }
    let title = "Short containers, from made to deleted";
    let (workers, rate) = ("at a time", "containers a second");
    plot::lines(&drawn("churn-workers.svg"), title, workers, rate, &curves)?;
    plot::bars(&drawn("churn.svg"), &format!("{title}: the best of all"), rate, &best)
}

pub(super) fn memory() -> anyhow::Result<()> {
    let found = read("memory.json")?;
    let mut bars = Vec::new();
    for row in found.iter().filter(|row| row["instances"] != 1) {
        bars.push(bar(format!("{}: PSS", name(row)), &row["pssKiB"])?);
        bars.push(bar(format!("{}: USS", name(row)), &row["ussKiB"])?);
    }
    let title = "Memory of the process that watches an idle container";
    plot::bars(&drawn("memory.svg"), title, "KiB", &bars)
}

/// How restore, exits and memory of the daemon grow with the containers; also where they are in a
/// group, and real ones.
pub(super) fn scale() -> anyhow::Result<()> {
    let mut points = vec![("a shim each", read_points("scale.json")?)];
    let others = [("one shim for all", "scale-group.json"), ("runc's", "scale-runc.json")];
    for (way, result) in others {
        if results().join(result).exists() {
            points.push((way, read_points(result)?));
        }
    }
    type Figure = fn(&Value) -> Option<f64>;
    let pictures: [(&str, &str, &str, Figure); 3] = [
        ("scale-restore.svg", "From the start of a daemon to its answer to `ps`", "ms", |point| {
            point["restore"]["milliseconds"].as_f64()
        }),
        ("scale-exits.svg", "All exit at once, until the last is told", "s", |point| {
            point["exits"]["lastHeardAfterSeconds"].as_f64()
        }),
        ("scale-memory.svg", "Memory of the idle daemon", "PSS, MiB", |point| {
            Some(point["memory"]["made"]["pssKiB"].as_f64()? / 1024.0)
        }),
    ];
    for (file, title, unit, figure) in pictures {
        let curve = |(way, points): &(&str, Vec<Value>)| {
            let point = |point: &Value| Some((point["containers"].as_f64()?, figure(point)?));
            ((*way).to_owned(), points.iter().filter_map(point).collect())
        };
        let curves: Vec<_> = points.iter().map(curve).collect();
        plot::lines(&drawn(file), title, "containers", unit, &curves)?;
    }
    Ok(())
}

/// What the library adds, with few and with many containers idle.
pub(super) fn library() -> anyhow::Result<()> {
    let mut bars = Vec::new();
    for point in read_points("library.json")? {
        let idle = &point["idle"];
        let own = point["ownShareOfRun"].as_f64().context("no own share in library.json")?;
        bars.push((format!("its share of `run`, {idle} idle"), own, own, own));
        bars.push(bar(format!("exit to future, {idle} idle"), &point["exitToFuture"])?);
    }
    plot::bars(&drawn("library.svg"), "What the library adds", "µs", &bars)
}

fn read_points(result: &str) -> anyhow::Result<Vec<Value>> {
    let Value::Array(points) = found(result)?["points"].take() else {
        anyhow::bail!("{result} holds no points")
    };
    Ok(points)
}

fn name(row: &Value) -> String {
    row["way"].as_str().unwrap_or("?").to_owned()
}

/// From the samples' median and extremes.
fn bar(name: String, samples: &Value) -> anyhow::Result<Bar> {
    let figure = |what: &str| {
        samples[what].as_f64().with_context(|| format!("no {what} of {name} in the result"))
    };
    let (median, low, high) = (figure("median")?, figure("min")?, figure("max")?);
    Ok((name, median, low, high))
}

fn read(result: &str) -> anyhow::Result<Vec<Value>> {
    let Value::Array(found) = found(result)? else { anyhow::bail!("{result} holds no list") };
    Ok(found)
}

fn found(result: &str) -> anyhow::Result<Value> {
    let path = results().join(result);
    let text = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut result: Value = serde_json::from_slice(&text)?;
    Ok(result["found"].take())
}

fn results() -> PathBuf {
    crate::workspace().join("bench/results")
}

fn drawn(name: &str) -> PathBuf {
    crate::workspace().join("docs/plots").join(name)
}
