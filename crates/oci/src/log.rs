//! Where errors go: to the `--log` file as runc writes it, and to the standard error.
//!
//! libcontainer tells a child's failure to its parent in a few words ("failed to prepare rootfs")
//! and the reason only through `tracing`. So the error events are kept in a file that all
//! processes of one command share, and the command's own error takes its reason from there.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use holdfast_sys::PidFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::args::{Global, LogFormat};
use crate::explain::Reason;

/// The log of one command.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<File>,
    format: LogFormat,
    /// What libcontainer's processes said of their errors; without a name, gone with us.
    details: Option<File>,
}

impl Log {
    /// Opens the log and has libcontainer's events written to it.
    pub(crate) fn open(global: &Global) -> anyhow::Result<Self> {
        let file = global.log.as_deref().map(open_append).transpose()?;
        let details = memfd_create("errors", MFdFlags::MFD_CLOEXEC).ok().map(File::from);
        let events = Events {
            command: PidFd::open(i32::try_from(std::process::id())?).ok(),
            alone: file.as_ref().map(File::try_clone).transpose()?,
            format: global.log_format,
            log: match &file {
                Some(file) if global.debug => Some((file.try_clone()?, global.log_format)),
                _ => None,
            },
            details: details.as_ref().map(File::try_clone).transpose()?,
        };
        tracing::subscriber::set_global_default(events)?;
        Ok(Self { file, format: global.log_format, details })
    }

    /// The file, for a process that outlives this one as such.
    pub(crate) fn file(&self) -> Option<File> {
        self.file.as_ref()?.try_clone().ok()
    }

    /// Says why the command failed.
    pub(crate) fn error(&mut self, error: &anyhow::Error) {
        let mut text = chain(error);
        let whole = error.chain().any(|cause| cause.is::<Reason>());
        let detail = self.first_detail().filter(|detail| !whole && !text.contains(detail));
        if let Some(detail) = detail {
            _ = write!(text, ": {detail}");
        }
        if let Some(file) = &mut self.file {
            _ = file.write_all(line("error", &text, self.format).as_bytes());
        }
        // The standard error may be a container's or closed, and there is nobody else to tell.
        _ = writeln!(io::stderr(), "holdfast-oci: {text}");
    }

    /// Says what went wrong without failing the command.
    pub(crate) fn warn(&self, error: &anyhow::Error) {
        let text = chain(error);
        if let Some(mut file) = self.file() {
            _ = file.write_all(line("warning", &text, self.format).as_bytes());
        }
        _ = writeln!(io::stderr(), "holdfast-oci: {text}");
    }

    /// The first event is nearest to the cause; later ones are its consequences.
    fn first_detail(&mut self) -> Option<String> {
        let details = self.details.as_mut()?;
        let mut text = String::new();
        details.seek(SeekFrom::Start(0)).ok()?;
        details.read_to_string(&mut text).ok()?;
        text.lines().next().map(without_noise)
    }
}

fn open_append(path: &Path) -> anyhow::Result<File> {
    File::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| anyhow::anyhow!("open log {}: {error}", path.display()))
}

/// A line of the log, line feed included.
pub(crate) fn line(level: &str, text: &str, format: LogFormat) -> String {
    let time = holdfast_state::Timestamp::now();
    match format {
        LogFormat::Json => format!("{}\n", json!({ "level": level, "msg": text, "time": time })),
        LogFormat::Text => format!("time=\"{time}\" level={level} msg={text:?}\n"),
    }
}

/// What libcontainer puts before the reasons that its processes give each other.
const NOISE: [&str; 5] = [
    "failed to create container: ",
    "exec process failed with error ",
    "error in executing process : ",
    "intermediate process error ",
    "failed to initialize container process: ",
];

fn without_noise(text: &str) -> String {
    // It reads its pipe in threes and pads what comes with zeros.
    NOISE.iter().fold(text.replace('\0', ""), |text, noise| text.replace(noise, ""))
}

/// An error with all its causes. Some errors repeat their cause in their own text already.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = without_noise(&cause.to_string());
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            _ = write!(text, ": {cause}");
        }
    }
    text
}

/// libcontainer's events: errors are kept, and with `--debug` all are logged, none as an error.
/// Readers of the log take the first error for the reason, and that one is ours to name.
struct Events {
    /// The command, which a container's process outlives: then nobody else reports its errors.
    command: Option<PidFd>,
    alone: Option<File>,
    format: LogFormat,
    log: Option<(File, LogFormat)>,
    details: Option<File>,
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && (self.log.is_some() || *metadata.level() == Level::ERROR)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.log.is_some() { LevelFilter::DEBUG } else { LevelFilter::ERROR })
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let text = format!("{}{}", text.message, text.fields).replace('\n', " ");
        let level = *event.metadata().level();
        let is_alone = self.command.as_ref().is_some_and(|command| !command.is_alive());
        if level == Level::ERROR && is_alone {
            if let Some(mut log) = self.alone.as_ref() {
                let text = without_noise(&text);
                _ = log.write_all(line("error", &text, self.format).as_bytes());
            }
            _ = writeln!(io::stderr(), "holdfast-oci: {text}");
            return;
        }
        if let (Level::ERROR, Some(mut details)) = (level, self.details.as_ref()) {
            // One write: the processes of the command share the file and its position.
            _ = details.write_all(format!("{text}\n").as_bytes());
        }
        if let Some((mut file, format)) = self.log.as_ref().map(|(file, format)| (file, *format)) {
            let level = if level <= Level::WARN { "warning" } else { "debug" };
            _ = file.write_all(line(level, &text, format).as_bytes());
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as text: its message, then its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_cause_that_is_already_told_is_not_told_twice() {
        let error = Err::<(), _>(io::Error::other("no space")).context("write: no space");
        let error = error.context("create").unwrap_err();
        assert_eq!(chain(&error), "create: write: no space");
    }

    #[test]
    fn the_reason_is_told_and_not_the_way_it_came() {
        let error = anyhow::anyhow!(
            "failed to create container: exec process failed with error error in executing \
             process : exec: \"a\": permission denied\0\0"
        );
        assert_eq!(chain(&error), "exec: \"a\": permission denied");
    }

    #[test]
    fn lines_are_as_runc_writes_them() {
        let json = line("error", "a \"b\"", LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&value["level"], &value["msg"]), (&json!("error"), &json!("a \"b\"")));
        assert!(value["time"].is_string());
        assert!(line("error", "a", LogFormat::Text).ends_with(" level=error msg=\"a\"\n"));
    }
}
