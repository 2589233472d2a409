//! Signals by name, and those that are passed on.

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The first real-time signal that programs may use (the C library keeps two for itself).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// A signal as a person writes it: `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.
pub(crate) fn parse_signal(text: &str) -> Result<i32, String> {
    let unknown = || {
        format!(
            "no such signal: {text:?}; give a name as in TERM or RTMIN+3, or a number from 1 to 64"
        )
    };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: i32, rest: &str| {
        let offset = if rest.is_empty() { Some(0) } else { rest.parse::<i32>().ok() };
        offset.map(|offset| base + offset).filter(|number| (RTMIN..=RTMAX).contains(number))
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return real_time(RTMIN, rest).ok_or_else(unknown);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return real_time(RTMAX, rest).ok_or_else(unknown);
    }
    format!("SIG{name}").parse::<Signal>().map(|signal| signal as i32).map_err(|_| unknown())
}

/// The signals that a person or a service manager sends to a foreground `run`, from now on.
pub(crate) fn forwarded() -> std::io::Result<mpsc::UnboundedReceiver<i32>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        let mut stream = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(kind.as_raw_value()).is_ok() {}
        });
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "NOPE", "RTMIN-1", "RTMIN+31", "RTMIN+x"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }
}
