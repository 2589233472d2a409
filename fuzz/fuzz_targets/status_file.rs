//! `exitStatus` and `exit.json`: a number, unknown, or nothing; and 0 only where there stands 0.
#![no_main]

use holdfast_state::status::parse_status_file;
use holdfast_state::{ExitRecord, ExitStatus};

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    if parse_status_file(content).is_some_and(ExitStatus::success) {
        assert!(content.contains(&b'0'));
    }
    if let Ok(record) = serde_json::from_slice::<ExitRecord>(content) {
        assert_eq!(record.status.as_number() == 0, record.status.success());
        let json = serde_json::to_vec(&record).expect("it can be written");
        assert_eq!(serde_json::from_slice::<ExitRecord>(&json).expect("and read"), record);
    }
});
