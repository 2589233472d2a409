//! Programs started by a process that has no more descriptors than a shim has. All that a process has
//! open is copied for what it starts, and closed there again: with thousands of containers in its
//! care it would take longer than what is to be timed.

use std::io::BufRead;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::Outcome;
use crate::measure::{micros, monotonic};

/// The word by which this program is that process.
pub(crate) const STARTER: &str = "starter";

pub(crate) struct Starter {
    _child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Starter {
    pub(crate) fn begin() -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(STARTER).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let orders = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?).lines();
        Ok(Self { _child: child, orders, answers })
    }

    /// How long a program takes from its start to its end, which must be a good one, in microseconds.
    pub(crate) async fn time(&mut self, words: &[String]) -> Outcome<f64> {
        self.orders.write_all(format!("{}\n", serde_json::to_string(words)?).as_bytes()).await?;
        let answer = self.answers.next_line().await?.ok_or("the starter has ended")?;
        let took: Value = serde_json::from_str(&answer)?;
        took.as_f64().ok_or_else(|| format!("{words:?}: {answer}").into())
    }
}

/// Does what it is told until nobody tells it anything any more.
pub(crate) fn run() -> Outcome<()> {
    for line in std::io::stdin().lock().lines() {
        let words: Vec<String> = serde_json::from_str(&line?)?;
        let [program, args @ ..] = &words[..] else { return Err("nothing to start".into()) };
        let mut command = std::process::Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null());
        let began = monotonic();
        let status = command.status()?;
        let took = micros(began, monotonic());
        let answer = if status.success() { took.into() } else { Value::String(status.to_string()) };
        println!("{answer}");
    }
    Ok(())
}
