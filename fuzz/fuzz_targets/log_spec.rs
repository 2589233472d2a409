//! The text that says where output goes: refused, or read back as it was meant.
#![no_main]

use holdfast_state::LogSpec;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(spec) = text.parse::<LogSpec>() {
        assert_eq!(spec.to_string().parse::<LogSpec>().as_ref(), Ok(&spec));
    }
});
