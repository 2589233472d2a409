//! The bundle that is passed to the runtime: the caller's own, a changed copy of its configuration,
//! or one created for a root file system.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use holdfast_state::ContainerId;
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, Spec};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::model::options::{ContainerOptions, Source, TerminalSize};
use crate::ops::default_config::{default_config, mount, nofile};

/// A bundle that is ready for the runtime.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The directory of the bundle.
    pub(crate) path: PathBuf,
    /// The `process` object of its configuration.
    pub(crate) process: Map<String, Value>,
    /// The uid and gid, on the host, of the container's root user.
    pub(crate) root_ids: (u32, u32),
}

/// The largest size in bytes of a file that is accepted as a configuration.
const CONFIG_LIMIT: u64 = 16 * 1024 * 1024;

/// Prepares the bundle. New files are written to `scratch`, which the runtime will know as `own`
/// once the container is published.
pub(crate) fn prepare(
    id: &ContainerId,
    options: &ContainerOptions,
    soft_nofile: Option<u64>,
    scratch: &Path,
    own: &Path,
) -> Result<Bundle, Error> {
    let terminal = options.stdio.terminal;
    let nofile = nofile(soft_nofile).map_err(Error::io("read the limit of open files"))?;
    let (path, config) = match &options.source {
        Source::Bundle(path) => given(path, options, scratch, own)?,
        Source::Rootfs(path) => {
            let bad = |reason: String| Error::Rootfs { path: path.clone(), reason };
            let rootfs = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            if !rootfs.is_dir() {
                return Err(bad("not a directory".to_owned()));
            }
            made(
                default_config(id, &options.args, &rootfs, vec![], nofile),
                terminal,
                scratch,
                own,
            )?
        }
        Source::Host => {
            let rootfs = own.join("rootfs");
            let mounts = host_rootfs(&scratch.join("rootfs"))?;
            made(
                default_config(id, &options.args, &rootfs, mounts, nofile),
                terminal,
                scratch,
                own,
            )?
        }
    };
    let process = config["process"].as_object().cloned().unwrap_or_default();
    let mapped = |kind: &str| host_id(&config["linux"][kind], 0);
    Ok(Bundle { path, process, root_ids: (mapped("uidMappings"), mapped("gidMappings")) })
}

/// Writes a configuration that we generated. Returns its bundle and the configuration.
fn made(
    spec: Result<Spec, OciSpecError>,
    terminal: Option<TerminalSize>,
    scratch: &Path,
    own: &Path,
) -> Result<(PathBuf, Value), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Bundle {
        path: own.to_owned(),
        reason: error.to_string(),
    };
    let mut config = serde_json::to_value(spec.map_err(|e| failed(&e))?).map_err(|e| failed(&e))?;
    set_terminal(&mut config["process"], terminal);
    Ok((write(scratch, own, &config)?, config))
}

/// Prepares the caller's bundle. It is used as it is if nothing in it has to change.
fn given(
    path: &Path,
    options: &ContainerOptions,
    scratch: &Path,
    own: &Path,
) -> Result<(PathBuf, Value), Error> {
    let bad = |reason: String| Error::Bundle { path: path.to_owned(), reason };
    let bundle = path.canonicalize().map_err(|error| bad(error.to_string()))?;
    let mut config = read_config(&bundle).map_err(bad)?;

    let before = config["process"].clone();
    if !options.args.is_empty() {
        config["process"]["args"] = json!(options.args);
    }
    // The caller decides at each start whether there is a terminal, and not the bundle: `runc spec`
    // always writes true.
    set_terminal(&mut config["process"], options.stdio.terminal);
    if config["process"] == before {
        return Ok((bundle, config));
    }
    // Relative paths in a configuration refer to the directory of its bundle, and the copy is
    // elsewhere.
    absolute(&mut config["root"]["path"], &bundle);
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let bind = mount["options"]
            .as_array()
            .is_some_and(|o| o.iter().any(|o| o == "bind" || o == "rbind"));
        if bind {
            absolute(&mut mount["source"], &bundle);
        }
    }
    Ok((write(scratch, own, &config)?, config))
}

/// Sets whether an OCI process has a terminal, and the size of the terminal.
pub(crate) fn set_terminal(process: &mut Value, terminal: Option<TerminalSize>) {
    let Some(process) = process.as_object_mut() else { return };
    if let Some(size) = terminal {
        process.insert("terminal".to_owned(), json!(true));
        process.insert("consoleSize".to_owned(), json!(size));
        // TERM tells programs what the terminal can do. Many refuse to work without it.
        let env = process.entry("env").or_insert_with(|| json!([])).as_array_mut();
        if let Some(env) = env
            && !env.iter().any(|v| v.as_str().is_some_and(|v| v.starts_with("TERM=")))
        {
            env.push(json!("TERM=xterm"));
        }
    } else if process.get("terminal").is_some_and(|terminal| terminal != &json!(false)) {
        process.insert("terminal".to_owned(), json!(false));
    }
}

fn read_config(bundle: &Path) -> Result<Value, String> {
    let path = bundle.join("config.json");
    let metadata = fs::metadata(&path).map_err(|error| format!("config.json: {error}"))?;
    if !metadata.is_file() || metadata.len() > CONFIG_LIMIT {
        return Err(format!("config.json: not a regular file of at most {CONFIG_LIMIT} bytes"));
    }
    let content = fs::read(&path).map_err(|error| format!("config.json: {error}"))?;
    let config: Value = serde_json::from_slice(&content)
        .map_err(|error| format!("config.json: not JSON: {error}"))?;
    let missing = |what: &str| Err(format!("config.json: not an OCI configuration: no {what}"));
    if !config["ociVersion"].is_string() {
        return missing("ociVersion");
    }
    if !config["root"]["path"].is_string() {
        return missing("root.path");
    }
    if config["process"]["args"].as_array().is_none_or(Vec::is_empty) {
        return missing("process.args");
    }
    Ok(config)
}

fn absolute(path: &mut Value, base: &Path) {
    if let Some(text) = path.as_str()
        && !text.starts_with('/')
    {
        *path = json!(base.join(text));
    }
}

fn write(scratch: &Path, own: &Path, config: &Value) -> Result<PathBuf, Error> {
    let attempt = || format!("write {}", own.join("config.json").display());
    make_dir(scratch).map_err(Error::io(attempt()))?;
    fs::write(scratch.join("config.json"), config.to_string()).map_err(Error::io(attempt()))?;
    Ok(own.to_owned())
}

fn make_dir(path: &Path) -> std::io::Result<()> {
    // All users must be able to search this directory: the container's user may have any uid of the
    // host.
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Returns the id on the host of an id in the container, by the mappings of a configuration. An id
/// without a mapping is returned as it is.
pub(crate) fn host_id(mappings: &Value, id: u32) -> u32 {
    let number =
        |mapping: &Value, name: &str| mapping[name].as_u64().and_then(|n| u32::try_from(n).ok());
    for mapping in mappings.as_array().into_iter().flatten() {
        if let (Some(inside), Some(outside), Some(size)) =
            (number(mapping, "containerID"), number(mapping, "hostID"), number(mapping, "size"))
            && let Some(offset) = id.checked_sub(inside)
            && offset < size
        {
            return outside.saturating_add(offset);
        }
    }
    id
}

/// Creates an empty root with mount points. Returns the mounts that show the host's programs there.
fn host_rootfs(rootfs: &Path) -> Result<Vec<Mount>, Error> {
    let failed = |cause| Error::Io { attempt: format!("create {}", rootfs.display()), cause };
    make_dir(rootfs).map_err(failed)?;
    for name in ["proc", "dev", "sys", "tmp"] {
        make_dir(&rootfs.join(name)).map_err(failed)?;
    }
    let mut mounts = Vec::new();
    for entry in fs::read_dir("/").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !(matches!(name, "usr" | "bin" | "sbin" | "etc") || name.starts_with("lib")) {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_symlink() {
            // On a host with a merged /usr, /bin is a link to usr/bin. It is the same in the
            // container.
            let target = fs::read_link(entry.path()).map_err(failed)?;
            symlink(target, rootfs.join(name)).map_err(failed)?;
        } else {
            make_dir(&rootfs.join(name)).map_err(failed)?;
            mounts.push(mount(
                entry.path(),
                "none",
                entry.path(),
                &["bind", "ro", "nosuid", "nodev"],
            ));
        }
    }
    mounts.push(mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=1777", "size=65536k"]));
    mounts
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|error| Error::Rootfs { path: rootfs.to_owned(), reason: error.to_string() })
}
