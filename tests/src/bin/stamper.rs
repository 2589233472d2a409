//! Writes the time, in nanoseconds since 1970, as a line every few milliseconds: `stamper LINES
//! MILLISECONDS`. A reader sees how long a line was on its way.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() -> io::Result<()> {
    let mut numbers = std::env::args().skip(1).map_while(|arg| arg.parse::<u64>().ok());
    let (lines, pause) = (numbers.next().unwrap_or(100), numbers.next().unwrap_or(5));
    let mut stdout = io::stdout();
    for _ in 0..lines {
        std::thread::sleep(Duration::from_millis(pause));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        stdout.write_all(format!("{}\n", now.as_nanos()).as_bytes())?;
    }
    Ok(())
}
