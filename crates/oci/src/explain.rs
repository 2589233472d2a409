//! Names the field by which a container could not be made, where libcontainer says but "syscall".
//!
//! It looks after the failure, so that a container that can be made costs nothing more.

use std::path::Path;
use std::{fmt, fs};

use anyhow::Context;
use holdfast_sys::mount::Draft;
use nix::errno::Errno;
use serde_json::Value;

use crate::options;

/// A reason that needs no words of libcontainer's beside it.
#[derive(Debug)]
pub(crate) struct Reason(pub(crate) String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// Returns the reason, if the configuration shows one.
pub(crate) fn failure(config: &Value, error: &anyhow::Error) -> Option<Reason> {
    let text = format!("{error:#}");
    let mounts = config["mounts"].as_array().into_iter().flatten();
    mounts
        .filter_map(|mount| self::mount(mount).err())
        .next()
        .or_else(|| sysctl(&config["linux"]["sysctl"], &text))
        .or_else(|| scheduler(&config["process"]["scheduler"], &text))
        .or_else(|| memory(&config["linux"]["resources"]["memory"], &text))
        .map(|error| Reason(format!("{error:#}")))
}

/// Asks the kernel for a mount's source, type and options.
fn mount(mount: &Value) -> anyhow::Result<()> {
    let to = mount["destination"].as_str().unwrap_or_default();
    if options::is_bind(mount) {
        let source = mount["source"].as_str().unwrap_or_default();
        return fs::metadata(source)
            .map(drop)
            .with_context(|| format!("mount {to}: source {source}"));
    }
    let kind = mount["type"].as_str().unwrap_or_default();
    if kind.starts_with("cgroup") {
        return Ok(());
    }
    let mut draft = match Draft::new(kind) {
        // Not ours to ask; or a kernel that has no such call, and libcontainer would not have got far.
        Err(error) if error.raw_os_error() != Some(Errno::ENODEV as i32) => return Ok(()),
        draft => draft.with_context(|| format!("mount {to}: type {kind:?}"))?,
    };
    let all = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for option in all.filter(|option| !options::is_flag(option)) {
        draft.option(option).with_context(|| format!("mount {to}: option {option:?}"))?;
    }
    Ok(())
}

fn sysctl(all: &Value, text: &str) -> Option<anyhow::Error> {
    let missing = |name: &str| !Path::new("/proc/sys").join(name.replace('.', "/")).exists();
    let names = all.as_object().filter(|_| text.contains("procfs"))?.keys();
    let name = names.into_iter().find(|name| missing(name))?;
    Some(anyhow::anyhow!("linux.sysctl: {name}: this kernel has none of this name"))
}

fn scheduler(scheduler: &Value, text: &str) -> Option<anyhow::Error> {
    let (_, number) = text.split_once("sched_setattr error: ")?;
    let number: String = number.chars().take_while(char::is_ascii_digit).collect();
    let errno = Errno::from_raw(number.parse().ok()?);
    let policy = scheduler["policy"].as_str().unwrap_or_default();
    Some(anyhow::anyhow!("process.scheduler: {policy}: {}", errno.desc()))
}

fn memory(memory: &Value, text: &str) -> Option<anyhow::Error> {
    let limit = memory["limit"].as_i64().filter(|_| text.contains("BrokenChannel"))?;
    Some(anyhow::anyhow!(
        "a process that makes the container was killed; linux.resources.memory.limit {limit} may be \
         too small"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn explained(config: Value, text: &str) -> String {
        let error = anyhow::anyhow!(text.to_owned());
        failure(&config, &error).map(|reason| format!("{reason}")).unwrap_or_default()
    }

    #[test]
    fn the_field_is_named() {
        let mounts = json!([{ "destination": "/a", "type": "bind", "source": "/no/such" }]);
        let text = explained(json!({ "mounts": mounts }), "failed to prepare rootfs");
        assert!(text.starts_with("mount /a: source /no/such: No such file"), "{text}");
        let text = explained(
            json!({ "process": { "scheduler": { "policy": "SCHED_FIFO" } } }),
            "call exec sched_setattr error: 1",
        );
        assert_eq!(text, "process.scheduler: SCHED_FIFO: Operation not permitted");
        let sysctl = json!({ "linux": { "sysctl": { "net.nope": "1" } } });
        let text = explained(sysctl, "open subpath in procfs failed");
        assert!(text.starts_with("linux.sysctl: net.nope: "), "{text}");
        assert_eq!(explained(json!({}), "failed to do it"), "");
    }
}
