//! The same for many containers, some at a time.

use std::time::{Duration, Instant};

use futures::StreamExt;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::streams::{OutputError, complain, print};

/// How many at the same time.
const AT_ONCE: usize = 8;
/// The time after which a terminal shows how far it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does something to each, and goes on where that fails. Prints what it returns. The last failure is returned, and
/// those before it are reported.
pub(crate) async fn each<T>(
    all: &[T],
    act: impl AsyncFn(&T) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<()> {
    let bar = bar(all.len());
    let begun = Instant::now();
    let mut done = futures::stream::iter(all).map(|one| act(one)).buffered(AT_ONCE);
    let mut failed: Option<anyhow::Error> = None;
    while let Some(result) = done.next().await {
        bar.inc(1);
        if bar.is_hidden() && begun.elapsed() > PATIENCE {
            // Nothing is shown if that is no terminal.
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let told = result.and_then(|text| match text {
            Some(text) => Ok(bar.suspend(|| print(text))?),
            None => Ok(()),
        });
        let Err(error) = told else { continue };
        // The next one would fail by that, too.
        let is_last = error.is::<OutputError>();
        if let Some(earlier) = failed.replace(error) {
            bar.suspend(|| complain(format_args!("{earlier:#}")));
        }
        if is_last {
            break;
        }
    }
    bar.finish_and_clear();
    failed.map_or(Ok(()), Err)
}

fn bar(length: usize) -> ProgressBar {
    let length = u64::try_from(length).ok();
    let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
    match ProgressStyle::with_template("{wide_bar} {pos} of {len}, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
