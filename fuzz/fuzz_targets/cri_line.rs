//! A line of a log, and output that becomes lines of a log and comes back byte for byte.
#![no_main]

use holdfast_state::cri::{Mark, Stream, decode, encode, pieces};
use holdfast_state::time::TEXT_LEN;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = decode(bytes);
    let mut log = Vec::new();
    for piece in pieces(bytes) {
        encode(Stream::Stderr, &[b'0'; TEXT_LEN], Mark::Again, piece, &mut log);
    }
    let mut out = Vec::new();
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        let entry = decode(&line[..line.len() - 1]).expect("an entry");
        assert_eq!((entry.stream, entry.mark), (Stream::Stderr, Mark::Again));
        out.extend_from_slice(entry.content);
        if entry.full {
            out.push(b'\n');
        }
    }
    assert_eq!(out, bytes);
});
