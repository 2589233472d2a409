//! Events as they come, over the ends of daemons.

use std::pin::Pin;
use std::str::FromStr;
use std::time::SystemTime;

use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_daemon::api::{Cursor, Event, EventKind, EventLine, Gap};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::args::EventArgs;
use crate::away::{Absence, Away};
use crate::client::Client;
use crate::streams::{complain, harmless, print};

/// Where a stream of events begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// With what happens from now on.
    Now,
    /// With all that is kept.
    Oldest,
    After(Cursor),
    /// With what happened then or later.
    At(SystemTime),
}

impl FromStr for Begin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(cursor) => Ok(Self::After(cursor)),
            Err(_) => crate::args::values::parse_time(text)
                .map(Self::At)
                .map_err(|error| format!("{error}; or give a cursor, JOURNAL:NUMBER")),
        }
    }
}

/// Lines of JSON.
type Lines = Pin<Box<dyn Stream<Item = String>>>;

/// A stream of events that goes on with the next daemon where the last one has ended.
pub(crate) struct Feed<'a> {
    client: &'a Client,
    begin: Begin,
    lines: Option<Lines>,
    absence: Option<Absence>,
}

impl<'a> Feed<'a> {
    pub(crate) fn new(client: &'a Client, begin: Begin) -> Self {
        Self { client, begin, lines: None, absence: None }
    }

    /// Waits until the daemon has begun to send: what happens after that is not missed.
    pub(crate) async fn open(&mut self) -> anyhow::Result<()> {
        while self.lines.is_none() {
            match self.ask(true).await {
                Ok(lines) => (self.lines, self.absence) = (Some(lines), None),
                Err(error) => self.client.come_back(&mut self.absence, error, None).await?,
            }
        }
        Ok(())
    }

    /// Returns the next event or gap, and the line that it came in. Cancel safe.
    pub(crate) async fn next(&mut self) -> anyhow::Result<(EventLine, String)> {
        loop {
            self.open().await?;
            let line = match &mut self.lines {
                Some(lines) => lines.next().await,
                None => None,
            };
            if let Some(item) = self.note(line) {
                return Ok(item);
            }
            self.lines = None;
            let gone = Away::went("the daemon has ended");
            self.client.come_back(&mut self.absence, gone, None).await?;
        }
    }

    /// Returns what has happened since, without waiting for more.
    async fn rest(&mut self) -> anyhow::Result<Vec<(EventLine, String)>> {
        let mut lines = loop {
            match self.ask(false).await {
                Ok(lines) => break lines,
                Err(error) => self.client.come_back(&mut self.absence, error, None).await?,
            }
        };
        let mut rest = Vec::new();
        while let Some(line) = lines.next().await {
            let Some(item) = self.note(Some(line)) else { break };
            rest.push(item);
        }
        Ok(rest)
    }

    async fn ask(&mut self, follow: bool) -> anyhow::Result<Lines> {
        let from = match self.begin {
            Begin::After(cursor) => format!("since={cursor}&"),
            Begin::Oldest | Begin::At(_) => "replay=true&".to_owned(),
            Begin::Now => String::new(),
        };
        let path = format!("/events?{from}follow={follow}");
        let (body, cursor) = self.client.stream_with(&path, "holdfast-cursor").await?;
        if let (Begin::Now, Some(Ok(cursor))) = (self.begin, cursor.map(|cursor| cursor.parse())) {
            self.begin = Begin::After(cursor);
        }
        Ok(lines_of(body))
    }

    /// Parses a line and notes the place after it. `None` if the daemon has ended: one that is killed may
    /// leave the beginning of a line.
    fn note(&mut self, line: Option<String>) -> Option<(EventLine, String)> {
        let line = line?;
        let item = serde_json::from_str(&line).ok()?;
        let (EventLine::Event { cursor, .. } | EventLine::Gap { cursor, .. }) = &item;
        self.begin = Begin::After(*cursor);
        Some((item, line))
    }
}

fn lines_of(body: Incoming) -> Lines {
    let bytes = body.into_data_stream().map_err(std::io::Error::other);
    let lines = FramedRead::new(StreamReader::new(bytes), LinesCodec::new());
    Box::pin(
        lines
            .take_while(|line| std::future::ready(line.is_ok()))
            .filter_map(async |line| line.ok()),
    )
}

/// Which events are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    Container(String),
    Event(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("container", id)) => Ok(Self::Container(id.to_owned())),
            Some(("event", name)) => Ok(Self::Event(name.to_owned())),
            _ => Err("it is container=ID or event=NAME".to_owned()),
        }
    }
}

/// Prints events.
pub(crate) async fn events(client: &Client, args: EventArgs) -> anyhow::Result<()> {
    let begin = match args.since {
        Some(begin) => begin,
        None if args.replay => Begin::Oldest,
        None => Begin::Now,
    };
    let mut feed = Feed::new(client, begin);
    let mut printer = Printer { since: None, args: &args, held: None };
    if let Begin::At(time) = begin {
        printer.since = Some(time);
    }
    let Some(until) = args.until else {
        loop {
            let (item, line) = feed.next().await?;
            printer.print(item, line)?;
        }
    };
    let left = until.duration_since(SystemTime::now()).unwrap_or_default();
    let deadline = tokio::time::sleep(left);
    tokio::pin!(deadline);
    // One that has passed is met at once: what there is comes in the rest.
    loop {
        tokio::select! {
            biased;
            () = &mut deadline => break,
            item = feed.next() => {
                let (item, line) = item?;
                printer.print(item, line)?;
            }
        }
    }
    feed.rest().await?.into_iter().try_for_each(|(item, line)| printer.print(item, line))
}

struct Printer<'a> {
    since: Option<SystemTime>,
    args: &'a EventArgs,
    /// A gap that only counts if something is shown after it.
    held: Option<Gap>,
}

impl Printer<'_> {
    fn print(&mut self, item: EventLine, line: String) -> anyhow::Result<()> {
        let event = match item {
            EventLine::Event { event, .. } => event,
            EventLine::Gap { .. } if self.args.json => return Ok(print(line)?),
            EventLine::Gap { gap, .. } if self.since.is_some() => {
                self.held = Some(gap);
                return Ok(());
            }
            EventLine::Gap { gap, .. } => {
                complain(gap);
                return Ok(());
            }
        };
        if !self.is_in_time(&event) {
            self.held = None;
            return Ok(());
        }
        self.since = None;
        if let Some(gap) = self.held.take() {
            complain(gap);
        }
        let name =
            serde_json::to_value(&event.kind)?["event"].as_str().unwrap_or_default().to_owned();
        if !passes(&self.args.filter, &event, &name) {
            return Ok(());
        }
        if self.args.json {
            return Ok(print(line)?);
        }
        if let Some(format) = &self.args.format {
            return format.print(&fields(&line, &event, &name)?);
        }
        Ok(print(describe(event, &name))?)
    }

    fn is_in_time(&self, event: &Event) -> bool {
        let Ok(time) = SystemTime::try_from(&event.time) else { return true };
        self.since.is_none_or(|since| time >= since)
            && self.args.until.is_none_or(|until| time < until)
    }
}

/// Whether an event is of one of the containers, and of one of the kinds, that were asked for.
fn passes(filters: &[Filter], event: &Event, name: &str) -> bool {
    let any = |is_of_kind: fn(&Filter) -> bool| {
        let mut alike = filters.iter().filter(|filter| is_of_kind(filter)).peekable();
        alike.peek().is_none()
            || alike.any(|filter| match filter {
                Filter::Container(id) => event.container.as_str() == id,
                Filter::Event(kind) => kind == name,
            })
    };
    any(|filter| matches!(filter, Filter::Container(_)))
        && any(|filter| matches!(filter, Filter::Event(_)))
}

/// An event as `--format` has it: its fields, and docker's names of them.
fn fields(line: &str, event: &Event, name: &str) -> anyhow::Result<Value> {
    let mut value: Value = serde_json::from_str(line)?;
    value["ID"] = event.container.as_str().into();
    value["Action"] = name.into();
    value["Status"] = name.into();
    value["Type"] = "container".into();
    Ok(value)
}

fn describe(event: Event, name: &str) -> String {
    let process =
        if event.process.is_init() { String::new() } else { format!("/{}", event.process) };
    let detail = match &event.kind {
        EventKind::Exited { status, .. } => format!(" {status}"),
        EventKind::Created { pid } => format!(" pid {pid}"),
        EventKind::StartFailed { reason } => format!(" {}", harmless(reason)),
        _ => String::new(),
    };
    let (time, container, seq) = (event.time, event.container, event.seq);
    format!("{time} {container}{process} #{seq} {name}{detail}")
}
