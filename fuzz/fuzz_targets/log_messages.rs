//! The logs of the shim and of the runtime, to which a container's runtime may write anything.
#![no_main]

use holdfast_state::log;

libfuzzer_sys::fuzz_target!(|content: &[u8]| {
    let first = log::first_error(content);
    assert!(first.is_none() || log::messages(content).any(|message| Some(message.msg) == first));
    let text = String::from_utf8_lossy(content);
    let line = log::line("error", &text);
    assert_eq!(line.matches('\n').count(), 1);
    assert_eq!(log::first_error(line.as_bytes()).as_deref(), Some(&*text));
});
