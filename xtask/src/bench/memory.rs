//! What an idle container takes: of the process that watches it, what it has for itself (USS), its
//! share (PSS) and all that it sees (RSS); its descriptors; and what the kernel has for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::peers::{self, Conmon, Containerd, Daemon};
use super::{Samples, Scratch, build, plots, save};
use crate::setup::{self, BUSYBOX, CONMON, RUNC};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many containers Holdfast has with its fake runtime
    #[arg(long, value_name = "N", default_value_t = 1000)]
    containers: usize,
    /// How many Holdfast has with runc, and conmon has
    #[arg(long, value_name = "N", default_value_t = 50)]
    conmon: usize,
    /// How many containerd has
    #[arg(long, value_name = "N", default_value_t = 20)]
    containerd: usize,
}

/// What runs in each container.
const SLEEP: [&str; 2] = ["sleep", "1000000"];

/// Of all processes of one kind, in KiB; and how many descriptors each has open.
#[derive(Debug, Default)]
struct Processes {
    uss: Samples,
    pss: Samples,
    rss: Samples,
    descriptors: Samples,
}

/// What the kernel says of itself in `/proc/meminfo`, in KiB. Of a difference, for each container.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    page_tables: f64,
    stacks: f64,
    slab: f64,
}

/// One line of the table.
struct Row {
    way: String,
    processes: Processes,
    /// With the container's own process. `None` where that has been counted in another row.
    kernel: Option<Kernel>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    setup::ensure(&[RUNC, BUSYBOX, CONMON])?;
    let programs = build()?;
    let scratch = Scratch::new()?;
    let data = scratch.0.join("data");
    fs::create_dir(&data)?;
    let bench = Bench { bundle: peers::bundle(&scratch.0, &data, &SLEEP)?, dir: scratch.0.clone() };
    // What the kernel keeps for whatever is started first counts for nobody.
    bench.plain(10)?;
    let mut rows = vec![bench.plain(options.containers)?];
    for (runtime, count) in [("fake-runtime", options.containers), ("runc", options.conmon)] {
        let daemon = Daemon::start(&programs, &scratch.0.join(runtime))?;
        rows.extend(bench.holdfast(&daemon, runtime, count)?);
    }
    rows.push(bench.conmon(options.conmon)?);
    if Containerd::is_installed() {
        let containerd = Containerd::start(&scratch.0)?;
        rows.extend(bench.containerd(&containerd, options.containerd)?);
    } else {
        println!("not measured: containerd (not installed)");
    }
    print(&rows);
    let command = format!(
        "cargo xtask bench memory --containers {} --conmon {} --containerd {}",
        options.containers, options.conmon, options.containerd
    );
    save("memory.json", &command, &rows.iter().map(to_json).collect())?;
    plots::memory()
}

struct Bench {
    bundle: PathBuf,
    dir: PathBuf,
}

impl Bench {
    /// The same program with nobody to watch it, to be subtracted.
    fn plain(&self, count: usize) -> anyhow::Result<Row> {
        let before = Kernel::now()?;
        let mut children = Children(Vec::new());
        for _ in 0..count {
            let mut command = Command::new(SLEEP[0]);
            children.0.push(command.arg(SLEEP[1]).stdin(Stdio::null()).spawn()?);
        }
        let pids: Vec<u32> = children.0.iter().map(Child::id).collect();
        row("sleep alone".to_owned(), &pids, Some((before, count)))
    }

    fn holdfast(&self, daemon: &Daemon, runtime: &str, count: usize) -> anyhow::Result<[Row; 2]> {
        let path = daemon.programs.runtime(runtime);
        let bundle = self.bundle.display().to_string();
        let ids: Vec<String> = (0..count).map(|n| format!("memory{n}")).collect();
        let before = Kernel::now()?;
        let measure = || {
            for id in &ids {
                let args = ["run", "-d", "--name", id, "--runtime", &path, "--bundle", &bundle];
                daemon.ok(&args)?;
            }
            let shim = |id: &String| Ok(u32::try_from(daemon.shim(id)?)?);
            let shims = ids.iter().map(shim).collect::<anyhow::Result<Vec<u32>>>()?;
            let shims = row(format!("holdfast-shim, {runtime}"), &shims, Some((before, count)))?;
            let name = format!("holdfast daemon of {count}, {runtime}");
            Ok([shims, row(name, &[daemon.pid()], None)?])
        };
        let rows = measure();
        // All, also after a failure: else they would run on.
        let mut deleted = Ok(());
        for some in ids.chunks(100) {
            let mut args = vec!["delete", "--force"];
            args.extend(some.iter().map(String::as_str));
            deleted = deleted.and(daemon.ok(&args).map(drop));
        }
        both(rows, deleted)
    }

    fn conmon(&self, count: usize) -> anyhow::Result<Row> {
        let log = format!("k8s-file:{}", self.dir.join("log").display());
        let before = Kernel::now()?;
        let mut all = Vec::new();
        let mut measure = || {
            for n in 0..count {
                all.push(Conmon::start(&self.dir, &self.bundle, &format!("memory{n}"), &log)?);
            }
            let pids = all.iter().map(|conmon| Ok(u32::try_from(conmon.pid)?));
            let pids = pids.collect::<anyhow::Result<Vec<u32>>>()?;
            row("conmon, runc".to_owned(), &pids, Some((before, count)))
        };
        let row = measure();
        let mut deleted = Ok(());
        for conmon in all {
            deleted = deleted.and(conmon.kill());
        }
        both(row, deleted)
    }

    fn containerd(&self, containerd: &Containerd, count: usize) -> anyhow::Result<[Row; 2]> {
        let ids: Vec<String> = (0..count).map(|n| format!("memory{n}")).collect();
        let before = Kernel::now()?;
        let measure = || {
            for id in &ids {
                setup::output(containerd.run(&self.bundle, &["--detach"]).arg(id))?;
            }
            let shims: Vec<u32> = peers::processes(&self.dir)
                .into_iter()
                .filter(|pid| peers::is_program(*pid, "containerd-shim-runc-v2"))
                .collect();
            ensure!(shims.len() == count, "{} shims of {count} containers", shims.len());
            let shims = row("containerd-shim-runc-v2".to_owned(), &shims, Some((before, count)))?;
            let daemon = row(format!("containerd of {count}"), &[containerd.pid()], None)?;
            Ok([shims, daemon])
        };
        let rows = measure();
        let mut deleted = Ok(());
        for id in &ids {
            deleted = deleted.and(containerd.delete(id));
        }
        both(rows, deleted)
    }
}

/// What was measured, unless that or what came after it failed.
pub(super) fn both<T>(measured: anyhow::Result<T>, after: anyhow::Result<()>) -> anyhow::Result<T> {
    let measured = measured?;
    after.map(|()| measured)
}

/// Ended when dropped.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

/// Looks at processes that have come to rest. With what the kernel had before, and how many
/// containers there are since.
fn row(way: String, pids: &[u32], since: Option<(Kernel, usize)>) -> anyhow::Result<Row> {
    std::thread::sleep(Duration::from_secs(1));
    let kernel = match since {
        Some((before, count)) => Some(Kernel::now()?.since(before, count)),
        None => None,
    };
    let mut processes = Processes::default();
    for pid in pids {
        let memory = Memory::of(*pid)?;
        processes.uss.0.push(memory.uss);
        processes.pss.0.push(memory.pss);
        processes.rss.0.push(memory.rss);
        #[allow(clippy::cast_precision_loss)]
        processes.descriptors.0.push(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64);
    }
    Ok(Row { way, processes, kernel })
}

/// The memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) uss: f64,
    pub(super) pss: f64,
    rss: f64,
}

impl Memory {
    /// Reads it from `/proc/PID/smaps_rollup`.
    pub(super) fn of(pid: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let all = figures(Path::new(&path))?;
        let figure = |name| figure(&all, name).with_context(|| format!("no {name} in {path}"));
        let uss = figure("Private_Clean")? + figure("Private_Dirty")?;
        Ok(Self { uss, pss: figure("Pss")?, rss: figure("Rss")? })
    }
}

impl Kernel {
    fn now() -> anyhow::Result<Self> {
        let all = figures(Path::new("/proc/meminfo"))?;
        let figure =
            |name| figure(&all, name).with_context(|| format!("no {name} in /proc/meminfo"));
        Ok(Self {
            page_tables: figure("PageTables")?,
            stacks: figure("KernelStack")?,
            slab: figure("Slab")?,
        })
    }

    #[allow(clippy::cast_precision_loss)]
    fn since(self, before: Self, count: usize) -> Self {
        let each = |now: f64, before: f64| (now - before) / count as f64;
        Self {
            page_tables: each(self.page_tables, before.page_tables),
            stacks: each(self.stacks, before.stacks),
            slab: each(self.slab, before.slab),
        }
    }
}

/// The lines `Name:  123 kB` of a file of the kernel's.
fn figures(path: &Path) -> anyhow::Result<Vec<(String, f64)>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let figure = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), kib))
    };
    Ok(text.lines().filter_map(figure).collect())
}

/// Returns the one of this name.
fn figure(all: &[(String, f64)], name: &str) -> Option<f64> {
    all.iter().find(|(other, _)| other == name).map(|(_, kib)| *kib)
}

fn print(rows: &[Row]) {
    println!("{:<36} {:>6}  median and max, KiB", "", "");
    println!(
        "{:<36} {:>6} {:>13} {:>13} {:>13} {:>11}  kernel, KiB a container",
        "", "", "USS", "PSS", "RSS", "descriptors"
    );
    for Row { way, processes, kernel } in rows {
        let pair =
            |samples: &Samples| format!("{:.0} {:.0}", samples.median(), samples.quantile(1.0));
        let kernel = kernel.map_or_else(String::new, |kernel| {
            format!(
                "page tables {:.0}, stacks {:.0}, slab {:.0}",
                kernel.page_tables, kernel.stacks, kernel.slab
            )
        });
        println!(
            "{way:<36} {:>6} {:>13} {:>13} {:>13} {:>11}  {kernel}",
            processes.uss.0.len(),
            pair(&processes.uss),
            pair(&processes.pss),
            pair(&processes.rss),
            pair(&processes.descriptors),
        );
    }
    println!("More than 3 descriptors of sleep's are handed down by whoever started this command.");
}

fn to_json(Row { way, processes, kernel }: &Row) -> Value {
    // A thousand samples that are alike say no more than these.
    let summary = |samples: &Samples| {
        json!({
            "median": samples.median(), "min": samples.quantile(0.0), "max": samples.quantile(1.0)
        })
    };
    let kernel = kernel.map(|kernel| {
        json!({ "pageTables": kernel.page_tables, "stacks": kernel.stacks, "slab": kernel.slab })
    });
    json!({
        "way": way,
        "instances": processes.uss.0.len(),
        "ussKiB": summary(&processes.uss),
        "pssKiB": summary(&processes.pss),
        "rssKiB": summary(&processes.rss),
        "descriptors": summary(&processes.descriptors),
        "kernelKiBAContainer": kernel,
    })
}
