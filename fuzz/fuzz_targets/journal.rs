//! `events.jsonl`: lines that are events, and lines that are not.
#![no_main]

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    for event in holdfast_state::journal::events(content) {
        let mut line = serde_json::to_vec(&event).expect("it can be written");
        line.push(b'\n');
        assert_eq!(holdfast_state::journal::events(&line).collect::<Vec<_>>(), [event]);
    }
    let kept = holdfast_state::journal::newest_half(content);
    assert!(kept.len() <= content.len());
});
