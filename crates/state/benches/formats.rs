//! The inner loops of what is on disk and of what the parts say to each other: `cargo bench -p
//! holdfast-state`.

use std::hint::black_box;
use std::time::UNIX_EPOCH;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_state::announce::Announcement;
use holdfast_state::control::Control;
use holdfast_state::cri::{self, Mark, Stream};
use holdfast_state::time::{self, TEXT_LEN};
use holdfast_state::{
    Directory, Event, EventKind, Evidence, ExitRecord, ExitStatus, Incarnation, ProcessDir,
    ProcessId, ProcessRecord, Timestamp, journal, json_file,
};
use serde_json::json;

/// As much as a shim reads at a time.
const READ: usize = 64 * 1024;

/// Lines of a length that programs write, 64 KiB of them.
fn lines() -> Vec<u8> {
    let line = format!("{:.<79}\n", "2026-11-24 21:24:06 INFO request served in 12 ms ");
    line.bytes().cycle().take(READ).collect()
}

type Encode = fn(Stream, &[u8; TEXT_LEN], Mark, &[u8], &mut Vec<u8>);

fn log_entries(criterion: &mut Criterion) {
    let read = lines();
    let time = time::format(UNIX_EPOCH);
    let mut group = criterion.benchmark_group("encode 64 KiB of lines");
    group.throughput(Throughput::Bytes(READ as u64));
    for (name, encode) in [("cri", cri::encode as Encode), ("json-file", json_file::encode)] {
        let mut out = Vec::with_capacity(4 * READ);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                for piece in cri::pieces(black_box(&read)) {
                    encode(Stream::Stdout, &time, Mark::Plain, piece, &mut out);
                }
                black_box(out.len())
            });
        });
    }
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    criterion.bench_function("control line", |bencher| {
        bencher.iter(|| Control::parse(black_box(b"1 120 40")));
    });
    criterion.bench_function("announcement", |bencher| {
        let line = "exited code 7";
        assert!(Announcement::parse(line).is_some());
        bencher.iter(|| Announcement::parse(black_box(line)));
    });
}

/// A record of a container as `runc spec` has them, with what the supervisor adds.
fn record() -> Vec<u8> {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let record = json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": ["sleep", "100000"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
        "root": "/run/holdfast/web/init",
        "startTime": "123456",
        "holdfast": {
            "schema": 1,
            "bootId": "5c8a2b5e-0f0b-4c7e-8d0c-2b1f6a3d9e10",
            "created": "2026-11-24T21:24:06.123456789Z",
            "launch": "run",
            "runtime": "/usr/sbin/runc",
            "bundle": "/srv/web",
            "log": "cri",
            "onOrphan": "adopt",
            "autoRemove": false,
            "startTimeoutMs": 30000,
            "pidfs": "254:0102030405060708",
            "shim": { "pid": 4711, "startTime": "123450", "stdout": 5, "stderr": 6 },
        },
    });
    record.to_string().into_bytes()
}

fn records(criterion: &mut Criterion) {
    let content = record();
    let record = ProcessRecord::from_json(&content).expect("a record");
    criterion.bench_function("process.json: parse", |bencher| {
        bencher.iter(|| ProcessRecord::from_json(black_box(&content)));
    });
    criterion.bench_function("process.json: to text", |bencher| {
        bencher.iter(|| black_box(&record).to_json());
    });
    // In memory, as /run is: a disk would be all that is measured.
    let dir = tempfile::tempdir_in("/dev/shm").expect("make a directory");
    let dir = ProcessDir::new(Directory::open(dir.path()).expect("open a directory"));
    criterion.bench_function("process.json: write", |bencher| {
        bencher.iter(|| dir.save(black_box(&record)).expect("write a record"));
    });
    criterion.bench_function("process.json: read", |bencher| {
        bencher.iter(|| dir.load().expect("read a record"));
    });
}

/// The events of a container that was started, ended, and had twenty execs in between.
fn events() -> Vec<u8> {
    let mut seq = 0;
    let mut content = Vec::new();
    let mut add = |process: &str, kind: EventKind| {
        seq += 1;
        let process: ProcessId = process.parse().expect("an id");
        let container = "web-1".parse().expect("an id");
        let incarnation = Incarnation::of_earlier_build(None);
        let time = Timestamp::now();
        let mut event = Event::new(container, (incarnation, 1), process, time, kind);
        event.seq = seq;
        content.extend(serde_json::to_vec(&event).expect("an event"));
        content.push(b'\n');
    };
    let exited = || ExitRecord::now(ExitStatus::Code(0), Evidence::Shim).event();
    add("init", EventKind::Created { pid: 4711 });
    add("init", EventKind::Started);
    for exec in 0..20 {
        let process = format!("check-{exec}");
        add(&process, EventKind::Created { pid: 5000 + exec });
        add(&process, EventKind::Started);
        add(&process, exited());
    }
    add("init", exited());
    content
}

fn journals(criterion: &mut Criterion) {
    let content = events();
    assert_eq!(journal::events(&content).count(), 63);
    let mut group = criterion.benchmark_group("journal");
    group.throughput(Throughput::Elements(63));
    group.bench_function("63 events", |bencher| {
        bencher.iter(|| journal::events(black_box(&content)).count());
    });
    group.finish();
}

criterion_group!(benches, log_entries, messages, records, journals);
criterion_main!(benches);
