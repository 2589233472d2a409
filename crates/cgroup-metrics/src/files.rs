//! Reads the files of a cgroup. What is missing, or can't be read, is none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use holdfast_ttrpc::metrics::{Rdma, RdmaEntry};

/// Returns a file's text.
pub(crate) fn text(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok()
}

/// Returns the number in a file.
pub(crate) fn number(dir: &Path, name: &str, unlimited: u64) -> Option<u64> {
    let text = text(dir, name)?;
    Some(if text.trim() == "max" { unlimited } else { parse(text.trim()) })
}

/// A number that is negative counts as 0, as one of `memory.stat` can be for a moment.
fn parse(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// Lines of a name and a number.
#[derive(Debug)]
pub(crate) struct Table(BTreeMap<String, u64>);

impl Table {
    /// Reads it from a file.
    pub(crate) fn read(dir: &Path, name: &str) -> Option<Self> {
        let text = text(dir, name)?;
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        Some(Self(pairs.map(|(name, value)| (name.to_owned(), parse(value.trim()))).collect()))
    }

    /// Returns a number, or 0 if there is none of this name.
    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// Returns the sizes of huge pages for which there is a file `hugetlb.SIZE.LAST`.
pub(crate) fn page_sizes(dir: &Path, last: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |name: &str| {
        let (size, rest) = name.strip_prefix("hugetlb.")?.split_once('.')?;
        (rest == last).then(|| size.to_owned())
    };
    let mut sizes: Vec<_> = entries.filter_map(|entry| size(entry.file_name().to_str()?)).collect();
    sizes.sort();
    sizes
}

/// Returns RDMA resources; both versions have the same files.
pub(crate) fn rdma(dir: &Path) -> Option<Rdma> {
    let entries = |name| Some(text(dir, name)?.lines().filter_map(rdma_entry).collect());
    Some(Rdma { current: entries("rdma.current")?, limit: entries("rdma.max")? })
}

/// Parses a line like `mlx4_0 hca_handle=2 hca_object=max`.
fn rdma_entry(line: &str) -> Option<RdmaEntry> {
    let mut fields = line.split_whitespace();
    let mut entry = RdmaEntry { device: fields.next()?.to_owned(), ..RdmaEntry::default() };
    for (name, value) in fields.filter_map(|field| field.split_once('=')) {
        let value = if value == "max" { u32::MAX } else { value.parse().ok()? };
        match name {
            "hca_handle" => entry.hca_handles = value,
            "hca_object" => entry.hca_objects = value,
            _ => {}
        }
    }
    Some(entry)
}
