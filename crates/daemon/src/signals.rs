//! The signals that a daemon gets: those that end it in order, and those that are sent to it by mistake
//! and would end it without a word.

use std::io;
use std::sync::Arc;

use holdfast_sys::stray;
use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};

/// Those that ask it to end.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT];

/// What is sent to this process, from `begin` on until it has ended.
#[derive(Debug)]
pub(crate) struct Signals {
    ending: mpsc::UnboundedReceiver<Signal>,
    /// Notified of each SIGHUP.
    pub(crate) hangups: Arc<Notify>,
}

impl Signals {
    /// Takes all of them. None of them ends this process by itself from now on, not even once this is
    /// dropped.
    pub(crate) fn begin() -> io::Result<Self> {
        let (sender, ending) = mpsc::unbounded_channel();
        for each in ENDING {
            let mut stream = signal(SignalKind::from_raw(each as i32))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(each).is_err() {
                        tracing::info!("{each}: already going down");
                    }
                }
            });
        }
        let hangups = Arc::<Notify>::default();
        for each in stray::SIGNALS {
            let mut stream = signal(SignalKind::from_raw(each as i32))?;
            let hangups = hangups.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    match each {
                        Signal::SIGHUP => hangups.notify_one(),
                        _ => tracing::info!("{each}: means nothing to a daemon; running on"),
                    }
                }
            });
        }
        Ok(Self { ending, hangups })
    }

    /// Waits for one that asks this process to end. Cancel safe.
    pub(crate) async fn end(&mut self) -> Signal {
        match self.ending.recv().await {
            Some(signal) => signal,
            // The tasks that send live as long as the runtime.
            None => std::future::pending().await,
        }
    }
}
