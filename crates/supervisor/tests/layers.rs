//! Tests that the folders of this crate form layers, and that each uses only what is below it.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, the lowest first. A file in no folder is part of the public interface, and may use
/// all of them.
const LAYERS: [&str; 9] =
    ["error", "os", "runtime", "model", "shim", "core", "log", "watch", "ops"];

fn rank(name: &str) -> usize {
    LAYERS.iter().position(|layer| *layer == name).unwrap_or(LAYERS.len())
}

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, all);
        } else {
            all.push(path);
        }
    }
}

/// Returns the first names after `crate::` in a line of code. A comment has none.
fn used(line: &str) -> impl Iterator<Item = &str> {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn each_folder_uses_only_those_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    sources(&root, &mut all);
    assert!(all.len() > 40, "{} files", all.len());
    let mut wrong = Vec::new();
    for path in all {
        let inner = path.strip_prefix(&root).expect("a path below it");
        let layer = inner.iter().next().and_then(|first| first.to_str()).expect("a name");
        let own = rank(layer.trim_end_matches(".rs"));
        let text = fs::read_to_string(&path).expect("a source");
        for (number, line) in text.lines().enumerate() {
            for name in used(line) {
                // The names that the crate exports rank above all layers, like the public
                // interface.
                if rank(name) > own {
                    wrong.push(format!("{}:{}: {name}", inner.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "used from above:\n{}", wrong.join("\n"));
}

#[test]
fn a_use_from_above_is_seen() {
    let found: Vec<_> = used("use crate::watch::{self}; crate::Error").collect();
    assert_eq!(found, ["watch", "Error"]);
    assert!(rank("watch") > rank("model") && rank("Error") > rank("ops"));
    assert_eq!(used("    /// [`crate::Container`]").count(), 0);
}
