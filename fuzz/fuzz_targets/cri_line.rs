//! A line of a log, and output that becomes lines of a log and comes back byte for byte.
#![no_main]

use holdfast_state::cri::{Stream, decode, encode};
use holdfast_state::time::TEXT_LEN;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let mut log = Vec::new();
    let done: Result<(), ()> = encode(Stream::Stderr, [b'0'; TEXT_LEN], bytes, |part| {
        log.extend_from_slice(part);
        Ok(())
    });
    done.expect("nothing fails");
    let mut out = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let entry = decode(&line[..line.len() - 1]).expect("an entry");
        assert_eq!(entry.stream, Stream::Stderr);
        out.extend_from_slice(entry.content);
        if entry.full {
            out.push(b'\n');
        }
    }
    assert_eq!(out, bytes);
});
