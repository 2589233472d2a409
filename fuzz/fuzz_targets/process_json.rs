//! `process.json`: whatever is in it, a record or an error; and a record is written as it is read.
#![no_main]

use holdfast_state::ProcessRecord;

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    if let Ok(record) = ProcessRecord::from_json(content) {
        let again = ProcessRecord::from_json(&record.to_json()).expect("what we write we read");
        assert_eq!(again, record);
    }
});
