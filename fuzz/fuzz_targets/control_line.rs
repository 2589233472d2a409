//! A line of the control FIFO, to which anyone may write.
#![no_main]

use holdfast_state::control::{Control, MAX_LINE};

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    if let Some(message) = Control::parse(line) {
        let text = message.to_string();
        assert!(text.len() <= MAX_LINE);
        assert_eq!(Control::parse(text.as_bytes()), Some(message));
    }
});
