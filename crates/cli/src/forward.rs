//! Signals and the end of our input, on their way to a process.
//!
//! They go by a thread of their own: so they get through while our standard output is blocked, and a person
//! can leave by Ctrl-C while the daemon does not answer or a start hangs.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use holdfast_daemon::api::{KillRequest, Of, Started};
use nix::sys::signal::Signal;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::away::is_away;
use crate::client::Client;
use crate::signals::forwarded;
use crate::streams::complain;
use crate::terminal;

/// Interrupts that are further apart are not in a row.
const IN_A_ROW: Duration = Duration::from_secs(5);
/// As a shell says it of a command that was interrupted.
const INTERRUPTED: i32 = 128 + Signal::SIGINT as i32;

/// What becomes of our signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    Forwarded,
    /// Each does to us what it does.
    Ours,
}

/// The thread, as seen from outside.
#[derive(Debug)]
pub(crate) struct Forwarder {
    news: UnboundedSender<News>,
    /// Signals that no daemon has had yet.
    unsent: Arc<Mutex<VecDeque<i32>>>,
}

#[derive(Debug)]
enum News {
    /// A daemon knows the process.
    Up(Box<Started>),
    /// There is no daemon.
    Down,
    /// Our input has ended, and so does that of the process.
    InputOver,
    Signal(i32),
}

impl Forwarder {
    /// Begins before the request: a signal during a start is not lost. `what` is named to who leaves.
    pub(crate) fn begin(client: &Client, signals: Signals, what: String) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ours = match signals {
            Signals::Forwarded => {
                // They come to the runtime of the thread, and not to the one that calls.
                let _entered = runtime.enter();
                Some(forwarded()?)
            }
            Signals::Ours => None,
        };
        let (news, received) = unbounded_channel();
        let unsent = Arc::new(Mutex::new(VecDeque::new()));
        let delivery = Delivery {
            client: client.clone(),
            process: None,
            unsent: unsent.clone(),
            input_over: false,
        };
        let sender = news.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::spawn(async move {
                    if let Some(ours) = ours {
                        listen(ours, &sender, &what).await;
                    }
                });
                delivery.run(received).await;
            });
        })?;
        Ok(Self { news, unsent })
    }

    /// A daemon knows the process, and gets what is due.
    pub(crate) fn up(&self, process: &Started) {
        self.tell(News::Up(Box::new(process.clone())));
    }

    /// The daemon went away.
    pub(crate) fn down(&self) {
        self.tell(News::Down);
    }

    /// The input of the process is to end.
    pub(crate) fn input_over(&self) {
        self.tell(News::InputOver);
    }

    fn tell(&self, news: News) {
        // The thread ends with us only.
        let _ = self.news.send(news);
    }

    /// Returns the signals that no daemon has had.
    pub(crate) fn unsent(&self) -> Vec<i32> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect()
    }
}

/// Passes signals on, and leaves at the third interrupt in a row.
async fn listen(mut ours: UnboundedReceiver<i32>, sender: &UnboundedSender<News>, what: &str) {
    let mut row = Row::default();
    while let Some(signal) = ours.recv().await {
        if signal == Signal::SIGINT as i32 {
            match row.add(Instant::now()) {
                1 => {}
                2 => complain(format_args!(
                    "{what} may not react; a third Ctrl-C leaves it to itself"
                )),
                _ => {
                    terminal::restore();
                    complain(format_args!(
                        "left {what} to itself: see `holdfast ps -a`, `holdfast attach`, `holdfast stop`"
                    ));
                    std::process::exit(INTERRUPTED);
                }
            }
        }
        let _ = sender.send(News::Signal(signal));
    }
}

/// Interrupts in a row.
#[derive(Debug, Default)]
struct Row {
    last: Option<Instant>,
    number: u32,
}

impl Row {
    fn add(&mut self, now: Instant) -> u32 {
        let goes_on = self.last.is_some_and(|last| now.duration_since(last) < IN_A_ROW);
        self.number = if goes_on { self.number + 1 } else { 1 };
        self.last = Some(now);
        self.number
    }
}

/// What no daemon has had yet, and whom it is for. It is kept while there is no daemon.
#[derive(Debug)]
struct Delivery {
    client: Client,
    /// The process, while a daemon knows it.
    process: Option<Box<Started>>,
    unsent: Arc<Mutex<VecDeque<i32>>>,
    input_over: bool,
}

impl Delivery {
    async fn run(mut self, mut received: UnboundedReceiver<News>) {
        while let Some(news) = received.recv().await {
            match news {
                News::Up(process) => self.process = Some(process),
                News::Down => self.process = None,
                News::InputOver => self.input_over = true,
                News::Signal(signal) => self.queue().push_back(signal),
            }
            self.deliver().await;
        }
    }

    fn queue(&self) -> std::sync::MutexGuard<'_, VecDeque<i32>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn deliver(&mut self) {
        let Some(process) = &self.process else { return };
        loop {
            let Some(signal) = self.queue().front().copied() else { break };
            if forward(&self.client, process, signal).await == Delivered::NotYet {
                return;
            }
            self.queue().pop_front();
        }
        if self.input_over && close_stdin(&self.client, process).await == Delivered::Yes {
            self.input_over = false;
        }
    }
}

/// Whether a daemon has had a message. One that has died since may have acted on it all the same: a
/// signal is rather sent twice than not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivered {
    Yes,
    NotYet,
}

impl Delivered {
    fn of(sent: &anyhow::Result<()>) -> Self {
        match sent {
            Err(error) if is_away(error) => Self::NotYet,
            _ => Self::Yes,
        }
    }
}

async fn forward(client: &Client, process: &Started, signal: i32) -> Delivered {
    let request = KillRequest { signal, process: Some(process.process.clone()) };
    let path = format!("/containers/{}/kill", process.container);
    let sent = client.post::<()>(&path, &request).await;
    let delivered = Delivered::of(&sent);
    if delivered == Delivered::Yes
        && let Err(error) = sent
    {
        // It may just have ended; then its status follows at once.
        complain(format_args!("signal {signal} not forwarded: {error:#}"));
    }
    delivered
}

async fn close_stdin(client: &Client, process: &Started) -> Delivered {
    let request = Of { process: Some(process.process.clone()) };
    let path = format!("/containers/{}/close-stdin", process.container);
    // Should it just have ended, it needs no input.
    Delivered::of(&client.post::<()>(&path, &request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interrupts_that_follow_each_other_soon_are_in_a_row() {
        let begin = Instant::now();
        let mut row = Row::default();
        let numbers = [0, 1, 2, 8, 9, 20].map(|after| row.add(begin + Duration::from_secs(after)));
        assert_eq!(numbers, [1, 2, 3, 1, 2, 1]);
    }
}
