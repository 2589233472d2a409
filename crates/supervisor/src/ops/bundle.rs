//! The bundle that is passed to the runtime: the caller's own, a changed copy of its configuration,
//! or one created for a root file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use holdfast_state::ContainerId;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::model::config::check_process;
use crate::model::options::{ContainerOptions, Source, TerminalSize, UPPER};
use crate::ops::default_config::{TMPFS_FILES, default_config, mount, nofile, unique_name};
use crate::ops::default_seccomp::default_seccomp;
use crate::ops::{rootless, users};
use crate::os::rootless::Rootless;

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

/// The directory that overlayfs needs beside the layer to which a container writes.
const WORK: &str = "work";

/// The caller's last change to a configuration. Its error says why the configuration makes no sense.
pub(crate) type Configure = Box<dyn FnOnce(&mut Value) -> Result<(), String> + Send>;

/// Where the files of a new bundle are written to, and where they will be once the container is
/// published.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) scratch: &'a Path,
    pub(crate) own: &'a Path,
}

/// Prepares the bundle.
pub(crate) fn prepare(
    id: &ContainerId,
    options: &ContainerOptions,
    configure: Option<Configure>,
    soft_nofile: Option<u64>,
    rootless: Option<&Rootless>,
    place: Place<'_>,
) -> Result<Bundle, Error> {
    let nofile = nofile(soft_nofile).map_err(Error::io("read the limit of open files"))?;
    let default = |rootfs: &Path, mounts| {
        let mut config = default_config(id, &options.args, rootfs, mounts, nofile);
        if let Some(rootless) = rootless {
            // The default limit of processes too: `Supervisor::rootless` says so.
            rootless::without_missing_controllers(&mut config, rootless);
        }
        config
    };
    let (given, mut config) = match &options.source {
        Source::Bundle(path) => {
            let bad = |reason: String| Error::Bundle { path: path.clone(), reason };
            let bundle = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            let config = read_config(&bundle).map_err(bad)?;
            (Some((bundle, config.clone())), config)
        }
        Source::Rootfs(path) => {
            let bad = |reason: String| Error::Rootfs { path: path.clone(), reason };
            let rootfs = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            if !rootfs.is_dir() {
                return Err(bad("not a directory".to_owned()));
            }
            (None, default(&rootfs, vec![]))
        }
        Source::Overlay(path) => {
            let bad = |reason: String| Error::Rootfs { path: path.clone(), reason };
            let lower = path.canonicalize().map_err(|error| bad(error.to_string()))?;
            if !lower.is_dir() {
                return Err(bad("not a directory".to_owned()));
            }
            let mount = overlay(&lower, place)?;
            let mut config = default(&place.own.join("rootfs"), vec![]);
            if let Some(mounts) = config["mounts"].as_array_mut() {
                // The others are made on top of it.
                mounts.insert(0, mount);
            }
            (None, config)
        }
        Source::Host => {
            let mounts = host_rootfs(&place.scratch.join("rootfs"))?;
            (None, default(&place.own.join("rootfs"), mounts))
        }
    };
    if !options.args.is_empty() {
        config["process"]["args"] = json!(options.args);
    }
    let path = given.as_ref().map_or(place.own, |(bundle, _)| bundle.as_path());
    let root = root_of(&config, options, path);
    change(&mut config, options, configure, &root)
        .and_then(|()| {
            rootless.map_or(Ok(()), |it| rootless::adapt(&mut config, it, &unique_name(id)))
        })
        .map_err(|reason| match &options.source {
            Source::Bundle(_) => Error::Bundle { path: path.to_owned(), reason },
            _ => Error::InvalidOption(reason),
        })?;
    check(&config, path).map_err(|reason| match &options.source {
        Source::Rootfs(rootfs) | Source::Overlay(rootfs) => {
            Error::Rootfs { path: rootfs.clone(), reason }
        }
        Source::Bundle(_) | Source::Host => Error::Bundle { path: path.to_owned(), reason },
    })?;
    let path = match given {
        // The caller's own bundle is used as it is if nothing in it has to change.
        Some((bundle, before)) if before == config => bundle,
        given => {
            if let Some((bundle, _)) = given {
                make_paths_absolute(&mut config, &bundle);
            }
            write(place, &config)?
        }
    };
    let process = config["process"].as_object().cloned().unwrap_or_default();
    let mapped = |kind: &str| host_id(&config["linux"][kind], 0);
    Ok(Bundle { path, process, root_ids: (mapped("uidMappings"), mapped("gidMappings")) })
}

/// Returns where the files of the container's root are, as far as it has them before its mounts.
fn root_of(config: &Value, options: &ContainerOptions, bundle: &Path) -> PathBuf {
    match &options.source {
        Source::Host => PathBuf::from("/"),
        Source::Overlay(lower) => lower.clone(),
        Source::Bundle(_) | Source::Rootfs(_) => {
            bundle.join(config["root"]["path"].as_str().unwrap_or_default())
        }
    }
}

/// Makes all changes that were asked for.
fn change(
    config: &mut Value,
    options: &ContainerOptions,
    configure: Option<Configure>,
    root: &Path,
) -> Result<(), String> {
    options.config.apply(config)?;
    if let Some(names) = &options.config.user_name {
        config["process"]["user"] = json!(users::look_up_below(root, names)?);
    }
    if !matches!(options.source, Source::Bundle(_)) && options.config.seccomp.is_none() {
        // After the capabilities, which decide on it.
        config["linux"]["seccomp"] =
            default_seccomp(&config["process"]["capabilities"]["permitted"]);
    }
    // Whether there is a terminal is for the caller to decide at each start, not for the bundle:
    // `runc spec` always writes true.
    set_terminal(&mut config["process"], options.stdio.terminal);
    if let Some(configure) = configure {
        configure(config)?;
    }
    check_process(&config["process"])
}

/// Refuses a configuration by which the runtime would change the host. `bundle` is where its relative
/// paths begin.
fn check(config: &Value, bundle: &Path) -> Result<(), String> {
    if let Some(root) = config["root"]["path"].as_str() {
        let root = bundle.join(root);
        for name in ["dev", "proc", "sys"] {
            // A runtime makes files in these directories, and would make them where the link points to.
            let is_link = root.join(name).symlink_metadata().is_ok_and(|it| it.is_symlink());
            if is_link {
                return Err(format!("/{name} is a symbolic link, and has to be a directory"));
            }
        }
    }
    // An empty path is the same as none.
    let cgroup = config["linux"]["cgroupsPath"].as_str().filter(|path| !path.is_empty());
    if let Some(cgroup) = cgroup {
        let below_root =
            Path::new(cgroup).components().any(|it| matches!(it, Component::Normal(_)));
        let leaves = Path::new(cgroup).components().any(|it| it == Component::ParentDir);
        if !below_root || leaves {
            return Err(format!("linux.cgroupsPath {cgroup:?} is not a cgroup below the root"));
        }
    }
    Ok(())
}

/// Does the same for the configuration of a bundle that was used before.
pub(crate) fn check_again(bundle: &Path) -> Result<(), Error> {
    let checked = read_config(bundle).and_then(|config| check(&config, bundle));
    checked.map_err(|reason| Error::Bundle { path: bundle.to_owned(), reason })
}

/// Makes paths absolute that are relative to a bundle, which its configuration leaves.
fn make_paths_absolute(config: &mut Value, bundle: &Path) {
    absolute(&mut config["root"]["path"], bundle);
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        let bind = mount["options"]
            .as_array()
            .is_some_and(|o| o.iter().any(|o| o == "bind" || o == "rbind"));
        if bind {
            absolute(&mut mount["source"], bundle);
        }
    }
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

fn write(place: Place<'_>, config: &Value) -> Result<PathBuf, Error> {
    let attempt = || format!("write {}", place.own.join("config.json").display());
    make_dir(place.scratch).map_err(Error::io(attempt()))?;
    fs::write(place.scratch.join("config.json"), config.to_string())
        .map_err(Error::io(attempt()))?;
    Ok(place.own.to_owned())
}

fn make_dir(path: &Path) -> std::io::Result<()> {
    fs::create_dir(path).or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists if path.is_dir() => Ok(()),
        _ => Err(error),
    })?;
    // All users must be able to search this directory, whatever the umask of the caller's is: the
    // container's user may have any uid of the host.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
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

/// Creates an empty root, and the layers that belong to the container. Returns the mount over that root.
///
/// The runtime makes it in the container's mount namespace, so it ends with the container, however that
/// ends, and there is none on the host.
fn overlay(lower: &Path, place: Place<'_>) -> Result<Value, Error> {
    let failed =
        |cause| Error::Io { attempt: "create the layers of the container".to_owned(), cause };
    make_dir(place.scratch).map_err(failed)?;
    for name in ["rootfs", UPPER, WORK] {
        make_dir(&place.scratch.join(name)).map_err(failed)?;
    }
    // The root of the container is as that of the directory.
    let mode = fs::metadata(lower).map_err(failed)?.permissions();
    fs::set_permissions(place.scratch.join(UPPER), mode).map_err(failed)?;
    let option = |name: &str, path: &Path| {
        // A colon separates layers, a comma options.
        let path =
            path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
        format!("{name}={path}")
    };
    let options = [
        option("lowerdir", lower),
        option("upperdir", &place.own.join(UPPER)),
        option("workdir", &place.own.join(WORK)),
    ];
    Ok(mount("/", "overlay", "overlay", &options.each_ref().map(String::as_str)))
}

/// Creates an empty root with mount points. Returns the mounts that show the host's programs there.
fn host_rootfs(rootfs: &Path) -> Result<Vec<Value>, Error> {
    let failed = |cause| Error::Io { attempt: format!("create {}", rootfs.display()), cause };
    let bundle = rootfs.parent().unwrap_or(rootfs);
    make_dir(bundle).and_then(|()| make_dir(rootfs)).map_err(failed)?;
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
    let options = ["nosuid", "nodev", "mode=1777", "size=65536k", TMPFS_FILES];
    mounts.push(mount("/tmp", "tmpfs", "tmpfs", &options));
    Ok(mounts)
}
