//! A shim begins: with a process to start, or with one to adopt.

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

use crate::shim::Shims;

/// What a shim is to be begun with, still to be completed, and the reader of what it will announce.
pub(crate) struct ShimEnds {
    /// Its command line.
    pub(crate) words: Vec<OsString>,
    pub(crate) group: Option<GroupName>,
    announcements: File,
    log: File,
    reader: File,
}

impl ShimEnds {
    /// What the command lines of all shims have in common.
    pub(crate) fn open(dir: &ProcessDir, record: &ProcessRecord) -> io::Result<Self> {
        // The reader first, or the writer could not be opened; and the writer before there is a
        // shim, so that from the first moment its death reads as the end of the FIFO.
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

    /// It is to be a shim of the process's own.
    pub(crate) fn leave_group(&mut self) {
        self.group = None;
    }

    /// Begins the shim, or asks that of the group: to start a process, or to adopt the one that left
    /// these descriptors. `patience` is how long the group may take to make room for the request.
    pub(crate) fn begin(
        mut self,
        shims: &Arc<Shims>,
        patience: Duration,
        adoptee: Option<Vec<(FdName, BorrowedFd<'_>)>>,
    ) -> io::Result<(File, Option<Child>)> {
        // A group was asked for that when it began. It stands behind the directory.
        if self.group.is_none() {
            self.words.insert(2, shim_options::IDENTIFY.into());
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
