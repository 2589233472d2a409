//! What a container's process gives up before it becomes the container's program: capabilities, and the
//! system calls that a seccomp profile refuses.
//!
//! libcontainer could do the first, but not the second after it. It would also leave a process without
//! `capabilities` in its configuration all that root has, where runc leaves it none.

use anyhow::{Context, bail};
use caps::{CapSet, Capability};
use holdfast_sys::capabilities::Sets;
use holdfast_sys::keyring;
use nix::errno::Errno;
use oci_spec::runtime::Spec;
use serde_json::Value;

use crate::record::Record;
use crate::seccomp::{self, Filter};

/// What one process gives up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Confinement {
    bounding: u64,
    ambient: Vec<Capability>,
    sets: Sets,
    filter: Option<Filter>,
    no_new_privileges: bool,
}

impl Confinement {
    /// What these capabilities and the rest of the configuration say of it.
    pub(crate) fn new(capabilities: &Value, spec: &Spec) -> anyhow::Result<Self> {
        let set = |name: &str| known(&capabilities[name]);
        let bits = |name: &str| set(name).iter().fold(0, |bits, one| bits | one.bitmask());
        let sets = Sets {
            effective: bits("effective"),
            permitted: bits("permitted"),
            inheritable: bits("inheritable"),
        };
        let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let process = spec.process().as_ref();
        Ok(Self {
            bounding: bits("bounding"),
            ambient: set("ambient"),
            sets,
            filter: profile.map(seccomp::compile).transpose()?,
            no_new_privileges: process.is_some_and(|it| it.no_new_privileges() == Some(true)),
        })
    }

    /// Without `noNewPrivileges` a filter takes a right that the program may not have.
    fn right_to_filter(&self) -> u64 {
        let needed = self.filter.is_some() && !self.no_new_privileges;
        if needed { Capability::CAP_SYS_ADMIN.bitmask() } else { 0 }
    }

    /// Gives up the capabilities, except for what [`seal`](Self::seal) takes.
    pub(crate) fn drop_capabilities(&self) -> anyhow::Result<()> {
        let held = caps::read(None, CapSet::Bounding).context("read the bounding set")?;
        for one in held.into_iter().filter(|one| self.bounding & one.bitmask() == 0) {
            caps::drop(None, CapSet::Bounding, one)
                .with_context(|| format!("drop {one} from the bounding set"))?;
        }
        let right = self.right_to_filter();
        let sets = Sets {
            effective: self.sets.effective | right,
            permitted: self.sets.permitted | right,
            ..self.sets
        };
        sets.apply().context(
            "set process.capabilities: one is asked for that this runtime itself lacks, or that is \
             effective and not permitted, or inheritable and not bounding",
        )?;
        caps::clear(None, CapSet::Ambient).context("clear the ambient set")?;
        for one in &self.ambient {
            // As runc does: one that is not permitted and inheritable can't be ambient, and is left out.
            if let Err(error) = caps::raise(None, CapSet::Ambient, *one) {
                tracing::warn!("add {one} to the ambient set: {error}");
            }
        }
        Ok(())
    }

    /// Refuses system calls from here on. The next thing is execve(2): the fewer system calls are made
    /// in between, the fewer a profile has to allow.
    pub(crate) fn seal(&self) -> anyhow::Result<()> {
        let Some(filter) = &self.filter else { return Ok(()) };
        filter.load().context("load the seccomp filter")?;
        let right = self.right_to_filter();
        if right & self.sets.permitted & self.sets.effective != right {
            self.sets.apply().context(
                "set process.capabilities: the seccomp profile must allow capset(2) where \
                 process.noNewPrivileges is not set",
            )?;
        }
        Ok(())
    }
}

/// Takes the capabilities out of an OCI process, so that libcontainer does nothing about them.
pub(crate) fn take_capabilities(process: &mut Value) -> Value {
    let capabilities = process.as_object_mut().and_then(|all| all.remove("capabilities"));
    capabilities.unwrap_or_default()
}

/// Gives this command, and so the process that comes of it, a session keyring of its own: the caller's may
/// hold the keys of whoever started the daemon. The command's user pays for it, not the container's.
pub(crate) fn enter_keyring(record: &Record) -> anyhow::Result<()> {
    if record.no_new_keyring {
        return Ok(());
    }
    let Err(error) = keyring::new_session() else { return Ok(()) };
    match error.raw_os_error().map(Errno::from_raw) {
        // A kernel without keys has none to hide.
        Some(Errno::ENOSYS) => Ok(()),
        Some(Errno::EDQUOT) => bail!(
            "make a session keyring: this user has as many keys as /proc/sys/kernel/keys/maxkeys (for root \
             root_maxkeys) allows; raise that, or create the container with --no-new-keyring"
        ),
        _ => Err(error).context("make a session keyring; --no-new-keyring does without"),
    }
}

/// The capabilities of a list that exist; as runc does, others are left out with a warning.
fn known(names: &Value) -> Vec<Capability> {
    let names = names.as_array().into_iter().flatten().filter_map(Value::as_str);
    names
        .filter_map(|name| {
            let capability = name.parse::<Capability>().ok();
            if capability.is_none() {
                tracing::warn!("process.capabilities: there is no {name}");
            }
            capability
        })
        .collect()
}
