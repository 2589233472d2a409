//! Gives a process to a shim, which starts or adopts it: a new shim, a spare one, or that of a
//! group.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_state::handoff::{FdName, Message};
use holdfast_state::process_dir::SHIM_LOG;
use holdfast_state::{GroupName, ProcessDir, ProcessRecord, shim_options};
use holdfast_sys::fd_passing;

use crate::shim::{Shims, protocol};

/// What a shim begins with: its command line, which is still to be completed, its descriptors, and
/// the reader of its announcements.
pub(crate) struct ShimEnds {
    /// The arguments of the shim.
    pub(crate) words: Vec<OsString>,
    pub(crate) group: Option<GroupName>,
    announcements: File,
    log: File,
    reader: File,
}

impl ShimEnds {
    /// Opens the descriptors, and assembles the arguments that all shims have in common.
    pub(crate) fn open(dir: &ProcessDir, record: &ProcessRecord) -> io::Result<Self> {
        // The reader is opened first, because open(2) of the writer fails without one. The writer
        // is opened before there is a shim, so that from the first moment on its death reads as the
        // end of file.
        let reader = dir.exit_reader()?;
        let announcements = dir.exit_writer()?;
        let log = dir.directory().append(SHIM_LOG)?;
        let mut words: Vec<OsString> = vec!["--dir".into(), dir.path().into()];
        let policies = record.holdfast.as_ref();
        for spec in policies.map(|policies| policies.log.clone()).unwrap_or_default().specs() {
            words.extend(["--log".into(), spec.to_string().into()]);
        }
        let owner = record.stdio_owner();
        words.extend(["--owner".into(), format!("{}:{}", owner.0, owner.1).into()]);
        if record.oci.get("terminal").is_some_and(|terminal| *terminal == true) {
            words.push("--terminal".into());
        }
        let paths = [&record.stdin, &record.stdout, &record.stderr];
        for (option, path) in ["--stdin", "--stdout", "--stderr"].into_iter().zip(paths) {
            if !path.is_empty() {
                words.extend([option.into(), path.into()]);
            }
        }
        let group = policies.and_then(|policies| policies.shim_group.clone());
        Ok(Self { words, group, announcements, log, reader })
    }

    /// Selects a shim of the process's own instead of its group.
    pub(crate) fn leave_group(&mut self) {
        self.group = None;
    }

    /// Spawns the shim, or asks the group: to start a process, or to adopt the one that left the
    /// descriptors in `adoptee`. `patience` is how long the group may take to make room for the
    /// request.
    ///
    /// Returns the reader of the announcements, and the shim if it is our child.
    pub(crate) fn begin(
        mut self,
        shims: &Arc<Shims>,
        patience: Duration,
        adoptee: Option<Vec<(FdName, BorrowedFd<'_>)>>,
    ) -> io::Result<(File, Option<Child>)> {
        // The shim of a group has this option on its own command line. Here it follows `--dir` and
        // its value.
        if self.group.is_none() {
            self.words.splice(2..2, protocol());
        }
        let adopt = adoptee.as_ref().map(|_| OsStr::new(shim_options::ADOPT));
        let words = adopt.into_iter().chain(self.words.iter().map(|word| &**word));
        let own = [(FdName::Exit, self.announcements.as_fd()), (FdName::Log, self.log.as_fd())];
        if let Some(group) = &self.group {
            let fds = adoptee.into_iter().flatten().chain(own);
            shims.ask_group(group, &Message::new(fds, words)?, patience)?;
            return Ok((self.reader, None));
        }
        if adoptee.is_none()
            && let Some(shim) = shims.spares.employ(words.clone(), own)
        {
            return Ok((self.reader, Some(shim)));
        }
        let mut command = shims.command();
        command.args(words).stdin(Stdio::null());
        if let Some(fds) = adoptee {
            let (ours, theirs) = fd_passing::pair()?;
            Message::new(fds, [])?.send(&ours)?;
            command.stdin(theirs);
        }
        command.stdout(self.announcements).stderr(self.log);
        Ok((self.reader, Some(shims.spawned.spawn(&mut command)?)))
    }
}
