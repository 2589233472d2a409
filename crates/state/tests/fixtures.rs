//! Files that earlier builds wrote, kept for ever: whatever this build is, it reads them all.
//!
//! A new schema version adds files here; none is ever changed or removed.

// All of this file is a test, its helpers too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use holdfast_state::record::SCHEMA;
use holdfast_state::{
    Evidence, ExitRecord, ExitStatus, Incarnation, Launch, ProcessDir, ProcessRecord,
    UnknownReason, journal,
};
use serde_json::Value;

/// The fixtures of a kind, by name.
fn fixtures(kind: &str) -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(kind);
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    };
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

#[test]
fn records_of_every_version_load_and_lose_nothing() {
    let all = fixtures("records");
    for version in 0..=SCHEMA {
        let prefix = format!("v{version}-");
        assert!(all.iter().any(|(name, _)| name.starts_with(&prefix)), "none of schema {version}");
    }
    for (name, content) in all {
        let record = ProcessRecord::from_json(&content).unwrap_or_else(|e| panic!("{name}: {e}"));
        // The seed's have no object of ours.
        assert_eq!(record.holdfast.is_none(), name.starts_with("v0-"), "{name}");
        let before: Value = serde_json::from_slice(&content).unwrap();
        let after: Value = serde_json::from_slice(&record.to_json()).unwrap();
        for (key, value) in before.as_object().unwrap() {
            // Go's null for an empty list.
            let expected = if value.is_null() { &serde_json::json!([]) } else { value };
            assert_eq!(&after[key], expected, "{name}: {key}");
        }
    }
}

#[test]
fn what_the_records_of_version_1_say_is_understood() {
    let all = fixtures("records");
    let launch = |file: &str| {
        let (_, content) = all.iter().find(|(name, _)| name == file).unwrap();
        ProcessRecord::from_json(content).unwrap().holdfast.unwrap().launch
    };
    assert_eq!(launch("v1-create.json"), Launch::Create);
    assert_eq!(launch("v1-run.json"), Launch::Run);
    assert_eq!(launch("v1-exec.json"), Launch::Exec);
    assert_eq!(launch("v1-restore.json"), Launch::Restore);
}

#[test]
fn a_record_of_an_unknown_newer_schema_is_refused_by_its_number_and_left_as_it_is() {
    for (name, content) in
        fixtures("records").into_iter().filter(|(name, _)| name.starts_with("v1-"))
    {
        let mut record: Value = serde_json::from_slice(&content).unwrap();
        record["holdfast"]["schema"] = (SCHEMA + 1).into();
        record["holdfast"]["launch"] = serde_json::json!({ "of": "a later kind" });
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("process.json");
        fs::write(&path, record.to_string()).unwrap();
        let error = ProcessDir::open(temp.path()).unwrap().load().unwrap_err();
        assert!(!error.is_damage(), "{name}");
        assert!(error.to_string().contains(&format!("schema {}", SCHEMA + 1)), "{name}: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), record.to_string(), "{name}");
    }
}

#[test]
fn exits_of_every_version_load() {
    let expected = [
        (ExitStatus::Code(3), Evidence::Shim),
        (ExitStatus::Signal(37), Evidence::Pidfd),
        (ExitStatus::Unknown(UnknownReason::ExitedUnwatched), Evidence::None),
    ];
    for ((name, content), expected) in fixtures("exits").into_iter().zip(expected) {
        let record: ExitRecord = serde_json::from_slice(&content).unwrap();
        assert_eq!((record.status, record.evidence), expected, "{name}");
    }
}

#[test]
fn events_that_earlier_builds_kept_for_each_container_load() {
    let container = "web".parse().unwrap();
    let incarnation = Incarnation::of_earlier_build(None);
    for (name, content) in fixtures("journals") {
        let lines = content.iter().filter(|byte| **byte == b'\n').count();
        let events = journal::events_of_earlier_build(&content, &container, incarnation);
        assert_eq!(events.count(), lines, "{name}");
    }
}
