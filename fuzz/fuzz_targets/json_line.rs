//! The same of a log in Docker's format.
#![no_main]

use holdfast_state::cri::{Mark, Stream, pieces};
use holdfast_state::json_file::{decode, encode};
use holdfast_state::time::TEXT_LEN;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let mut log = Vec::new();
    for piece in pieces(bytes) {
        encode(Stream::Stdout, &[b'0'; TEXT_LEN], Mark::Plain, piece, &mut log);
    }
    let mut out = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let entry = decode(&line[..line.len() - 1]).expect("an entry");
        out.extend_from_slice(&entry.content);
    }
    assert_eq!(out, bytes);
});
