//! Which containers share a front.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

/// The annotations that name a group; the first that is there counts.
const ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

#[derive(Deserialize)]
struct Config {
    annotations: Option<BTreeMap<String, String>>,
}

/// The group of a container, from the `config.json` of its bundle: a pod, or the container alone.
pub(crate) fn of(bundle: &Path, id: &str) -> Result<String, String> {
    let path = bundle.join("config.json");
    let content = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
    choose(&content, id).map_err(|error| format!("read {}: {error}", path.display()))
}

fn choose(config: &[u8], id: &str) -> Result<String, serde_json::Error> {
    let config: Config = serde_json::from_slice(config)?;
    let mut annotations = config.annotations.unwrap_or_default();
    let group = ANNOTATIONS.iter().find_map(|name| annotations.remove(*name));
    Ok(group.filter(|group| !group.is_empty()).unwrap_or_else(|| id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_annotation_that_is_there_names_the_group() {
        for (config, group) in [
            (r#"{"ociVersion":"1.1.0","process":{"args":["a"]}}"#, "id"),
            (r#"{"annotations":null}"#, "id"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":""}}"#, "id"),
            (r#"{"annotations":{"other":"x","io.kubernetes.cri.sandbox-id":"pod"}}"#, "pod"),
            (
                r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#,
                "g",
            ),
        ] {
            assert_eq!(choose(config.as_bytes(), "id").unwrap(), group, "{config}");
        }
        assert!(choose(b"{", "id").is_err());
    }
}
