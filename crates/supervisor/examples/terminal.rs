//! Runs a command in a container with a terminal.
//!
//! `terminal ROOT [COMMAND...]`: our standard input goes to that terminal, and what it shows comes
//! to our standard output. The exit code is that of the command. The default command is `sh`.

use std::error::Error;
use std::io::{self, IsTerminal, Read, Write, stdin};
use std::os::fd::AsFd;
use std::process::ExitCode;

use holdfast_supervisor::{ContainerOptions, Mark, Stdin, Stdio, Supervisor, TerminalSize};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Our terminal passes each key on as it is, until this is dropped.
struct RawMode(Termios);

impl RawMode {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(stdin().as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin().as_fd(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(stdin().as_fd(), SetArg::TCSADRAIN, &self.0) {
            eprintln!("the terminal stays in raw mode: {error}");
        }
    }
}

/// Returns the size of our terminal, or the usual size.
fn size() -> TerminalSize {
    TerminalSize::of(std::io::stdin()).unwrap_or(TerminalSize { width: 80, height: 24 })
}

/// Reads our standard input on a thread of its own. This program does not wait for the end of that
/// thread; a Tokio runtime would wait for the end of a read by `tokio::io::stdin`.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, typed) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdin().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    typed
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let root = args.next().ok_or("usage: terminal ROOT [COMMAND...]")?;
    let command: Result<Vec<_>, _> = args.map(|arg| arg.into_string()).collect();
    let command = command.map_err(|arg| format!("not UTF-8: {arg:?}"))?;
    let shim = std::env::current_exe()?.with_file_name("../holdfast-shim");
    let supervisor = Supervisor::builder(root).shim(shim).open().await?;

    // With `Once` the command reads the end of its input if this process is killed, and with
    // `auto_remove` the next one deletes what is left.
    let stdio = Stdio::new().stdin(Stdin::Once).terminal(size());
    let options = ContainerOptions::host_rootfs().args(command).stdio(stdio).auto_remove();
    // Input and output are opened before the command begins, because it may end at once.
    let container = supervisor.create(options).await?;
    let (mut input, mut output) = (container.stdin()?, container.logs()?);
    container.start().await?;

    let mut resized = signal(SignalKind::window_change())?;
    let raw = stdin().is_terminal().then(RawMode::begin).transpose()?;
    // A task of its own: while the command does not read, its output is shown all the same.
    tokio::spawn(async move {
        let mut typed = typed();
        while let Some(keys) = typed.recv().await {
            // It fails once the command has ended.
            input.write_all(&keys).await?;
        }
        input.shutdown().await
    });
    let mut shown = io::stdout();
    loop {
        tokio::select! {
            chunk = output.follow() => match chunk? {
                Some(chunk) if chunk.mark == Mark::Notice => {
                    eprint!("{}\r", String::from_utf8_lossy(&chunk.bytes));
                }
                Some(chunk) => {
                    shown.write_all(&chunk.bytes)?;
                    shown.flush()?;
                }
                None => break,
            },
            Some(()) = resized.recv() => if let Err(error) = container.resize(size()) {
                eprint!("{error}\r\n");
            },
        }
    }
    drop(raw);
    let status = container.wait().await?;
    supervisor.shutdown().await;
    Ok(status.as_number().into())
}
