//! The journal's segments, and what earlier builds kept for each container: lines that are events, and lines
//! that are not.
#![no_main]

use holdfast_state::{Incarnation, journal};

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    for event in journal::events(content) {
        let mut line = serde_json::to_vec(&event).expect("it can be written");
        line.push(b'\n');
        assert_eq!(journal::events(&line).collect::<Vec<_>>(), [event]);
    }
    let container = "web".parse().expect("an id");
    let incarnation = Incarnation::of_earlier_build(None);
    for event in journal::events_of_earlier_build(content, &container, incarnation) {
        let mut line = serde_json::to_vec(&event).expect("it can be written");
        line.push(b'\n');
        assert_eq!(journal::events(&line).collect::<Vec<_>>(), [event]);
    }
});
