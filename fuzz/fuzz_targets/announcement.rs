//! A line of the exit FIFO.
#![no_main]

use holdfast_state::announce::Announcement;

libfuzzer_sys::fuzz_target!(|line: &str| {
    if let Some(said) = Announcement::parse(line) {
        let text = said.to_string();
        assert_eq!(Announcement::parse(text.trim_end_matches('\n')), Some(said));
    }
});
