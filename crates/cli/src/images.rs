//! Images that are given where a root file system belongs: Holdfast has no images, and says what to do.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::bail;
use serde_json::Value;

/// How many entries of an archive are looked at.
const MOST_ENTRIES: usize = 1000;
const BLOCK: usize = 512;
const LARGEST_MANIFEST: u64 = 1 << 20;

/// Refuses an image in place of a root file system.
pub(crate) fn refuse(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let has = |name: &str| path.join(name).is_file();
    if path.is_dir() {
        if has("oci-layout") && has("index.json") {
            bail!(
                "{shown} is an OCI image layout, not a root file system: unpack it with \
                 `umoci unpack --image {shown}:TAG BUNDLE` and give --bundle BUNDLE (docs/images.md)"
            );
        }
        if has("manifest.json") && is_docker_manifest(&path.join("manifest.json")) {
            bail!(
                "{shown} is an unpacked docker archive, not a root file system: copy the archive with \
                 `skopeo copy docker-archive:FILE oci:DIR:TAG` and unpack that (docs/images.md)"
            );
        }
        return Ok(());
    }
    let Ok(Some(kind)) = File::open(path).and_then(kind_of) else { return Ok(()) };
    match kind {
        Archive::Docker => bail!(
            "{shown} is a docker archive, not a root file system: `skopeo copy docker-archive:{shown} \
             oci:DIR:TAG`, then `umoci unpack --image DIR:TAG BUNDLE`, and give --bundle BUNDLE \
             (docs/images.md)"
        ),
        Archive::Oci => bail!(
            "{shown} is an OCI archive, not a root file system: `skopeo copy oci-archive:{shown} \
             oci:DIR:TAG`, then `umoci unpack --image DIR:TAG BUNDLE`, and give --bundle BUNDLE \
             (docs/images.md)"
        ),
        Archive::Other => bail!(
            "{shown} is an archive, not a directory: unpack it with `mkdir DIR && tar -xf {shown} -C DIR` \
             and give --rootfs DIR"
        ),
    }
}

/// Whether a file lists layers, as that of a docker archive does: a program may have a file of that name.
fn is_docker_manifest(path: &Path) -> bool {
    let content = File::open(path).and_then(|file| {
        let mut content = Vec::new();
        file.take(LARGEST_MANIFEST).read_to_end(&mut content)?;
        Ok(content)
    });
    let manifest = content.ok().and_then(|it| serde_json::from_slice::<Value>(&it).ok());
    manifest.is_some_and(|manifest| manifest[0]["Layers"].is_array())
}

#[derive(Debug, PartialEq, Eq)]
enum Archive {
    Docker,
    Oci,
    Other,
}

/// What kind of tar archive a file is, by the names in it; `None` for anything else.
fn kind_of(mut file: File) -> std::io::Result<Option<Archive>> {
    let mut header = [0; BLOCK];
    let mut kind = None;
    for _ in 0..MOST_ENTRIES {
        if file.read_exact(&mut header).is_err() || &header[257..262] != b"ustar" {
            break;
        }
        let text = |range: std::ops::Range<usize>| {
            let field = header[range].split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(field).trim().to_owned()
        };
        match text(0..100).trim_start_matches("./") {
            // A docker archive of today is an OCI layout, too.
            "manifest.json" => return Ok(Some(Archive::Docker)),
            "oci-layout" => kind = Some(Archive::Oci),
            _ => kind = kind.or(Some(Archive::Other)),
        }
        let Ok(size) = i64::from_str_radix(&text(124..136), 8) else { break };
        let blocks = (size + 511) / 512;
        file.seek(SeekFrom::Current(blocks.saturating_mul(512)))?;
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn archives_and_layouts_are_told_from_root_file_systems() {
        let dir = std::env::temp_dir().join(format!("holdfast-images-{}", std::process::id()));
        let at = |name: &str| dir.join(name);
        for (tree, files) in [
            ("layout", &["index.json", "oci-layout", "blobs/sha256/x"][..]),
            ("docker", &["a/layer.tar", "manifest.json"]),
            ("root", &["bin/sh", "etc/passwd"]),
            ("app", &["app", "manifest.json"]),
        ] {
            for file in files {
                let path = at(tree).join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                let content = match (tree, *file) {
                    ("docker", "manifest.json") => r#"[{"Layers":["a/layer.tar"]}]"#.to_owned(),
                    _ => "x".repeat(700),
                };
                std::fs::write(path, content).unwrap();
            }
            let mut tar = Command::new("tar");
            tar.arg("-cf").arg(at(&format!("{tree}.tar"))).arg("-C").arg(at(tree)).arg(".");
            assert!(tar.status().unwrap().success());
        }
        for (name, said) in [
            ("layout", Some("OCI image layout")),
            ("docker", Some("unpacked docker archive")),
            ("root", None),
            ("app", None),
            ("layout.tar", Some("OCI archive")),
            ("docker.tar", Some("is a docker archive")),
            ("root.tar", Some("tar -xf")),
            ("root/etc/passwd", None),
            ("missing", None),
        ] {
            let refused = refuse(&at(name)).err().map(|error| error.to_string());
            match said {
                None => assert_eq!(refused, None, "{name}"),
                Some(said) => assert!(
                    refused.as_ref().is_some_and(|it| it.contains(said)),
                    "{name}: {refused:?}"
                ),
            }
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
