//! One process followed from system call to system call, and killed or failed at those that a test
//! chooses; see `src/bin/tracer`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::stat::Mode;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::watch;

use crate::{Scratch, binary, executable, soon};

/// What is done at a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The process dies of SIGKILL, and the call is not made.
    Kill,
    /// It fails by this error number, and is not made.
    Fail(i32),
    /// It writes no more than this.
    Short(u64),
}

/// Which calls, and what is done at them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The whole key of a call, or its end after a `*`, or its beginning before one.
    pub key: String,
    /// The first time that counts, from 1.
    pub from: u32,
    /// The last.
    pub to: u32,
    /// Where this exists, the rule holds no longer.
    pub until: Option<PathBuf>,
    /// What is done.
    pub deed: Deed,
}

impl Rule {
    /// Does this at one call.
    #[must_use]
    pub fn once(point: &Point, deed: Deed) -> Self {
        Self { key: point.key.clone(), from: point.time, to: point.time, until: None, deed }
    }

    /// Does this at every such call.
    #[must_use]
    pub fn always(key: &str, deed: Deed) -> Self {
        Self { key: key.to_owned(), from: 1, to: u32::MAX, until: None, deed }
    }

    /// Until a path exists.
    #[must_use]
    pub fn until(self, path: PathBuf) -> Self {
        Self { until: Some(path), ..self }
    }

    /// Whether it is about this call.
    #[must_use]
    pub fn applies(&self, key: &str, time: u32) -> bool {
        let matches = match (self.key.strip_prefix('*'), self.key.strip_suffix('*')) {
            (Some(end), _) => key.ends_with(end),
            (None, Some(beginning)) => key.starts_with(beginning),
            (None, None) => self.key == key,
        };
        matches
            && (self.from..=self.to).contains(&time)
            && !self.until.as_ref().is_some_and(|path| path.exists())
    }

    fn to_json(&self) -> Value {
        let (deed, number) = match self.deed {
            Deed::Kill => ("kill", 0),
            Deed::Fail(errno) => ("fail", i64::from(errno)),
            Deed::Short(length) => ("short", i64::try_from(length).unwrap_or(i64::MAX)),
        };
        json!([self.key, self.from, self.to, self.until, deed, number])
    }

    /// Reads what was written by `to_json`.
    #[must_use]
    pub fn from_json(value: &Value) -> Option<Self> {
        let number = value[5].as_i64()?;
        Some(Self {
            key: value[0].as_str()?.to_owned(),
            from: u32::try_from(value[1].as_u64()?).ok()?,
            to: u32::try_from(value[2].as_u64()?).ok()?,
            until: value[3].as_str().map(PathBuf::from),
            deed: match value[4].as_str()? {
                "kill" => Deed::Kill,
                "fail" => Deed::Fail(i32::try_from(number).ok()?),
                "short" => Deed::Short(u64::try_from(number).ok()?),
                _ => return None,
            },
        })
    }
}

/// A system call by what it is and the how manieth of its kind it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Point {
    /// The call, and on what.
    pub key: String,
    /// The how manieth, from 1.
    pub time: u32,
}

impl Point {
    /// The call's name.
    #[must_use]
    pub fn call(&self) -> &str {
        self.key.split(' ').next().unwrap_or_default()
    }
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} #{}", self.key, self.time)
    }
}

/// What the tracer tells, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A call that changes the world is about to be made.
    Call(Point),
    /// A rule was followed at it.
    Done(Point),
    /// The process has ended.
    Ended(String),
}

impl Report {
    /// As a line, without its end.
    #[must_use]
    pub fn to_line(&self) -> String {
        match self {
            Self::Call(point) => format!("call\t{}\t{}", point.time, point.key),
            Self::Done(point) => format!("done\t{}\t{}", point.time, point.key),
            Self::Ended(how) => format!("ended\t0\t{how}"),
        }
    }

    /// Reads such a line.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '\t');
        let (what, time, text) = (parts.next()?, parts.next()?, parts.next()?.to_owned());
        let point = Point { key: text.clone(), time: time.parse().ok()? };
        match what {
            "call" => Some(Self::Call(point)),
            "done" => Some(Self::Done(point)),
            "ended" => Some(Self::Ended(text)),
            _ => None,
        }
    }
}

/// What a tracer is to do.
#[derive(Debug, Clone)]
pub struct Order {
    /// The FIFO by which it learns whom to follow.
    pub hello: PathBuf,
    /// The FIFO by which it lets that process go on.
    pub go: PathBuf,
    /// Calls count that have to do with paths below it.
    pub base: PathBuf,
    /// A container's id, which stands as `ID` in what is told.
    pub id: String,
    /// What to do.
    pub rules: Vec<Rule>,
}

impl Order {
    /// Reads what was written by `to_json`.
    pub fn read(from: impl std::io::Read) -> Result<Self, Box<dyn std::error::Error>> {
        let value: Value = serde_json::from_reader(from)?;
        let text = |name: &str| value[name].as_str().ok_or_else(|| format!("{name} is missing"));
        let rules = value["rules"].as_array().ok_or("rules are missing")?;
        Ok(Self {
            hello: text("hello")?.into(),
            go: text("go")?.into(),
            base: text("base")?.into(),
            id: text("id")?.to_owned(),
            rules: rules.iter().map(Rule::from_json).collect::<Option<_>>().ok_or("no rule")?,
        })
    }

    fn to_json(&self) -> Value {
        let rules: Vec<_> = self.rules.iter().map(Rule::to_json).collect();
        json!({ "hello": self.hello, "go": self.go, "base": self.base, "id": self.id, "rules": rules })
    }
}

/// What has been told so far.
#[derive(Debug, Default)]
struct Seen {
    calls: Vec<Point>,
    done: Vec<Point>,
}

/// A tracer that waits for its process, or follows it.
#[derive(Debug)]
pub struct Tracer {
    _child: Child,
    program: PathBuf,
    seen: Arc<Mutex<Seen>>,
    ended: watch::Receiver<Option<String>>,
}

impl Tracer {
    /// Prepares to follow `real`: in its place [`program`](Self::program) is to be started. Of several
    /// processes that are started so, the first is followed whose arguments hold `which`. Calls count
    /// that have to do with paths below the state root.
    ///
    /// # Panics
    ///
    /// If the scratch directory can't be written to.
    pub async fn new(
        scratch: &Scratch,
        id: &str,
        real: &Path,
        which: &str,
        rules: &[Rule],
    ) -> Self {
        Self::below(scratch.path(), scratch.root(), id, real, which, rules).await
    }

    /// The same with a directory for the tracer's files, and one below which paths count.
    ///
    /// # Panics
    ///
    /// If the directory can't be written to.
    pub async fn below(
        directory: &Path,
        base: PathBuf,
        id: &str,
        real: &Path,
        which: &str,
        rules: &[Rule],
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = directory.join(format!("tracer-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir).expect("make a directory for a tracer");
        let [hello, go, program, taken] = ["hello", "go", "program", "taken"].map(|n| dir.join(n));
        for fifo in [&hello, &go] {
            nix::unistd::mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("make a FIFO");
        }
        // The number of a shell's process stays that of the program that it becomes. No descriptor
        // is left open over that.
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *'{which}'*)\n  if mkdir '{}' 2>/dev/null; then\n    \
             echo $$ > '{}'\n    read -r _ < '{}'\n  fi;;\nesac\nexec '{}' \"$@\"\n",
            taken.display(),
            hello.display(),
            go.display(),
            real.display(),
        );
        executable::script(&program, &script);
        let mut child = Command::new(binary("tracer"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("start the tracer");
        let order = Order { hello, go, base, id: id.to_owned(), rules: rules.to_vec() };
        let mut stdin = child.stdin.take().expect("its standard input");
        let text = order.to_json().to_string();
        stdin.write_all(text.as_bytes()).await.expect("tell the tracer what to do");
        drop(stdin);
        let lines = BufReader::new(child.stdout.take().expect("its standard output")).lines();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (sender, ended) = watch::channel(None);
        tokio::spawn(keep(lines, seen.clone(), sender));
        Self { _child: child, program, seen, ended }
    }

    /// What is to be started.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Point> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).calls.clone()
    }

    /// Those at which something was done.
    #[must_use]
    pub fn done(&self) -> Vec<Point> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).done.clone()
    }

    /// Whether something was done: then a process that was to be killed is dead, or as good as.
    #[must_use]
    pub fn has_done(&self) -> bool {
        !self.done().is_empty()
    }

    /// Waits for the end of the process, or of the tracer.
    pub async fn ended(&mut self) -> String {
        let ended = self.ended.wait_for(Option::is_some);
        match soon("the end of a traced process", ended).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "not followed".to_owned(),
        }
    }
}

async fn keep(
    mut lines: Lines<BufReader<ChildStdout>>,
    seen: Arc<Mutex<Seen>>,
    ended: watch::Sender<Option<String>>,
) {
    while let Ok(Some(line)) = lines.next_line().await {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match Report::parse(&line) {
            Some(Report::Call(point)) => seen.calls.push(point),
            Some(Report::Done(point)) => seen.done.push(point),
            Some(Report::Ended(how)) => _ = ended.send(Some(how)),
            None => eprintln!("tracer: {line}"),
        }
    }
}
