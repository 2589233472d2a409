//! What an attack has tried, and the line that says what came of it.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// The longest line: one attack may try a thousand things.
const LONGEST: usize = 6000;
/// How much of what has succeeded is named.
const MOST_BROKEN: usize = 30;

/// What came of the acts of an attack.
#[derive(Debug, Default)]
pub(crate) struct Report {
    acts: usize,
    broken: Vec<String>,
    seen: Vec<String>,
}

impl Report {
    /// Notes an act that must fail; returns what it gave if it did not.
    pub(crate) fn must_fail<T, E: Display>(
        &mut self,
        act: impl Display,
        outcome: Result<T, E>,
    ) -> Option<T> {
        self.acts += 1;
        match outcome {
            Ok(value) => {
                self.broken.push(act.to_string());
                Some(value)
            }
            Err(error) => {
                self.seen.push(format!("{act}: {}", short(&error.to_string())));
                None
            }
        }
    }

    /// Notes an act that may succeed, since what it leads to decides.
    pub(crate) fn may_fail<T, E: Display>(
        &mut self,
        act: impl Display,
        outcome: Result<T, E>,
    ) -> Option<T> {
        self.acts += 1;
        match outcome {
            Ok(value) => {
                self.seen.push(format!("{act}: done"));
                Some(value)
            }
            Err(error) => {
                self.seen.push(format!("{act}: {}", short(&error.to_string())));
                None
            }
        }
    }

    /// Notes that the attack has succeeded.
    pub(crate) fn broke(&mut self, what: impl Display) {
        self.broken.push(what.to_string());
    }

    /// Notes what was seen.
    pub(crate) fn saw(&mut self, what: impl Display) {
        self.acts += 1;
        self.seen.push(what.to_string());
    }

    /// Prints the line, and returns the exit code that says the same.
    pub(crate) fn print(self) -> ExitCode {
        let verdict = if self.broken.is_empty() { "held" } else { "broken" };
        let mut line = format!("{verdict}: ");
        if !self.broken.is_empty() {
            let named = &self.broken[..self.broken.len().min(MOST_BROKEN)];
            let others = self.broken.len() - named.len();
            line += &format!("{} and {others} more; beside that: ", named.join(", "));
        }
        line += &format!("{} acts; {}", self.acts, self.seen.join("; "));
        // It may hold what the host or a neighbour chose.
        line = line.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect();
        line.push('\n');
        // Its standard output may be what it has attacked.
        let _ = io::stdout().write_all(line.as_bytes());
        if self.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) }
    }
}

/// An error without the number in brackets that the standard library adds.
fn short(error: &str) -> &str {
    error.split_once(" (os error").map_or(error, |(text, _)| text)
}
