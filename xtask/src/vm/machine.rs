//! One machine, from power on to power off. The console goes to a file; the second serial port is a
//! pipe to us, a line a message.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::image::Base;
use super::tools::Qemu;

/// How much of the console goes into an error message.
const TAIL_LINES: usize = 60;

/// All that machines have in common.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) qemu: Qemu,
    pub(super) base: Base,
    pub(super) payload: PathBuf,
    /// Where files go that live as long as the run.
    pub(super) scratch: PathBuf,
}

/// What a machine is told at power on.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    /// What runs as pid 1, a path in the payload.
    pub(super) init: &'a str,
    /// Further words for the kernel's command line, where the guest's scripts find them.
    pub(super) words: String,
    /// A disk that keeps what is written to it.
    pub(super) state: Option<&'a Path>,
    /// When all must be over.
    pub(super) limit: Duration,
}

/// A machine under power. Dropped, its power is cut.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    console: PathBuf,
    deadline: Instant,
}

impl Machine {
    /// Switches it on.
    pub(super) fn boot(host: &Host, boot: &Boot) -> anyhow::Result<Self> {
        let console = host.scratch.join("console.log");
        let mut command = host.qemu.command();
        command
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&host.base.kernel)
            .arg("-initrd")
            .arg(&host.base.initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 panic=-1 mitigations=off holdfast.init={} {}",
                boot.init, boot.words
            ))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            // What is written to the root is lost with the machine: the base stays as it is.
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,snapshot=on", host.base.disk.display()))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,readonly=on", host.payload.display()))
            // The overlay of the root.
            .env("TMPDIR", &host.scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(state) = boot.state {
            // No cache of the host's: a write that the guest was told is done is in the file.
            command
                .arg("-drive")
                .arg(format!("file={},format=raw,if=virtio,cache=directsync", state.display()));
        }
        let mut qemu = command.spawn().context("qemu cannot be started")?;
        let results = qemu.stdout.take().context("no standard output")?;
        let complaints = qemu.stderr.take().context("no standard error")?;
        let (sender, lines) = channel();
        for_each_line(complaints, |line| eprintln!("qemu: {line}"));
        for_each_line(results, move |line| _ = sender.send(line));
        Ok(Self { qemu, lines, console, deadline: Instant::now() + boot.limit })
    }

    /// The next line from the guest, or `None` once the machine is off.
    pub(super) fn line(&self) -> anyhow::Result<Option<String>> {
        self.line_until(self.deadline)?.map_or_else(
            || bail!("the machine was not done in time; its console:\n{}", self.console_tail()),
            Ok,
        )
    }

    /// As [`line`](Self::line), but `None` if none has come by then.
    pub(super) fn line_until(&self, then: Instant) -> anyhow::Result<Option<Option<String>>> {
        match self.lines.recv_timeout(then.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(Some(line))),
            Err(RecvTimeoutError::Disconnected) => Ok(Some(None)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    /// Cuts the power, and returns what the guest had still said by then.
    pub(super) fn cut(mut self) -> anyhow::Result<Vec<String>> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        // The pipe's end is read by now or will be at once: its writer is gone.
        Ok(self.lines.iter().collect())
    }

    /// The end of what the kernel and the guest's scripts wrote to the console.
    pub(super) fn console_tail(&self) -> String {
        let console = self.console();
        let lines: Vec<_> = console.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// All of it.
    pub(super) fn console(&self) -> String {
        let content = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&content).replace('\r', "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails if it is off already, and then there is nothing to do.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn for_each_line(
    from: impl std::io::Read + Send + 'static,
    mut act: impl FnMut(String) + Send + 'static,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            act(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
    });
}
