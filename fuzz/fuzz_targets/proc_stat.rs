//! `/proc/PID/stat`: the name of a process is whatever the process likes.
#![no_main]

use holdfast_sys::Termination;
use holdfast_sys::proc::Stat;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Stat::parse(bytes);
    let mut line = b"17 (".to_vec();
    line.extend_from_slice(bytes);
    line.extend_from_slice(b") Z 3");
    line.extend_from_slice(&b" 0".repeat(17));
    line.extend_from_slice(b" 4711");
    line.extend_from_slice(&b" 0".repeat(29));
    line.extend_from_slice(b" 10752\n");
    let stat = Stat::parse(&line).expect("a name shifts no field");
    assert_eq!((stat.ppid, stat.start_time.as_str()), (3, "4711"));
    assert_eq!(stat.zombie(), Some(Termination::Exited(42)));
});
