//! The public API of the library, compared with the listing in docs/public-api.txt.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are in the workspace")
}

/// Returns the listing of a crate, one item a line.
fn listing(package: &str, target: &Path) -> Vec<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(workspace())
        .args(["rustdoc", "--package", package, "--lib", "--locked", "--quiet", "--target-dir"])
        .arg(target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json"])
        // The JSON form of rustdoc is not stable. The toolchain is pinned, and so is `public-api`.
        .env("RUSTC_BOOTSTRAP", "1");
    let output = cargo.output().expect("cargo can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json = target.join("doc").join(format!("{}.json", package.replace('-', "_")));
    let api = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()
        .expect("the JSON form of this toolchain is that of `public-api`");
    api.items().map(ToString::to_string).collect()
}

/// Returns the types of the crate `holdfast_state` that a line names.
fn types_of_state(line: &str) -> impl Iterator<Item = &str> {
    line.split("holdfast_state::").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let path = &rest[..end.unwrap_or(rest.len())];
        path.split("::").find(|part| part.starts_with(char::is_uppercase))
    })
}

/// The name of an exported type of `holdfast_state` may differ from its own.
const RENAMED: [(&str, &str); 1] = [("OutputStream", "Stream")];

#[test]
fn the_public_interface_is_the_one_that_is_listed() {
    let target = workspace().join("target/public-api");
    let own = listing("holdfast-supervisor", &target);
    let exported: BTreeSet<&str> = own
        .iter()
        .filter_map(|line| line.strip_prefix("pub use holdfast_supervisor::"))
        .map(|name| RENAMED.iter().find(|(new, _)| *new == name).map_or(name, |(_, old)| old))
        .collect();
    assert!(exported.len() > 20, "{exported:?}");
    let hidden: BTreeSet<&str> = own
        .iter()
        .flat_map(|line| types_of_state(line))
        .filter(|name| !exported.contains(name))
        .collect();
    assert!(hidden.is_empty(), "in public signatures, and not exported: {hidden:?}");
    let of_state = listing("holdfast-state", &target);
    // The item itself comes first in its line.
    let of_state = of_state
        .iter()
        .filter(|line| types_of_state(line).next().is_some_and(|name| exported.contains(name)));
    let all: Vec<&str> = own.iter().chain(of_state).map(String::as_str).collect();
    let text = all.join("\n") + "\n";
    let (found, listed) = (target.join("public-api.txt"), PathBuf::from("docs/public-api.txt"));
    std::fs::write(&found, &text).expect("write what was found");
    let before = std::fs::read_to_string(workspace().join(&listed)).unwrap_or_default();
    let before: BTreeSet<&str> = before.lines().collect();
    let now: BTreeSet<&str> = text.lines().collect();
    let changes: Vec<String> = before
        .difference(&now)
        .map(|line| format!("- {line}"))
        .chain(now.difference(&before).map(|line| format!("+ {line}")))
        .collect();
    assert!(
        changes.is_empty(),
        "the public interface has changed. If it was meant to: cp {} {}\n{}",
        found.display(),
        listed.display(),
        changes.join("\n")
    );
}
