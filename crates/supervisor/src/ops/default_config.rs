//! The OCI configuration of a container that has no bundle of its own.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use holdfast_state::ContainerId;
use nix::sys::resource::{Resource, getrlimit};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
    Mount, MountBuilder, PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, UserBuilder, get_default_maskedpaths, get_default_mounts,
    get_default_readonly_paths,
};

use crate::ops::layout::random_hex;

/// The search path for programs in the container.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The capabilities of the container's root user: Docker's default set, which is enough for the
/// usual services. A container that shares the host's network uses NET_RAW and NET_BIND_SERVICE
/// there.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Returns the soft and the hard limit of open files for the container's programs. The hard limit
/// is that of this process. The soft limit is `soft`, or else that of this process, and at most the
/// hard limit.
pub(crate) fn nofile(soft: Option<u64>) -> io::Result<(u64, u64)> {
    let (own, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok((soft.unwrap_or(own).min(hard), hard))
}

/// Returns the default configuration: a read-only root; private mount, pid, ipc and uts namespaces,
/// and a private cgroup namespace where the kernel supports it; the host's network; a cgroup of its
/// own.
pub(crate) fn default_config(
    id: &ContainerId,
    args: &[String],
    rootfs: &Path,
    further_mounts: Vec<Mount>,
    nofile: (u64, u64),
) -> Result<Spec, OciSpecError> {
    let args = if args.is_empty() { vec!["sh".to_owned()] } else { args.to_vec() };
    let capabilities: HashSet<Capability> = CAPABILITIES.into();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities.clone())
        .effective(capabilities.clone())
        .permitted(capabilities)
        // A program that another user runs gets none of them automatically.
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(args)
        .env([PATH.to_owned(), "HOME=/root".to_owned()])
        .cwd("/")
        .capabilities(capabilities)
        .no_new_privileges(true)
        // The limit is set here because a runtime may have raised its own before it starts the
        // program.
        .rlimits([PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(nofile.0)
            .hard(nofile.1)
            .build()?])
        .build()?;

    let mut mounts = get_default_mounts();
    mounts.extend(further_mounts);
    SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path(rootfs).readonly(true).build()?)
        .hostname(id.as_str().chars().take(63).collect::<String>())
        .process(process)
        .mounts(mounts)
        .linux(
            LinuxBuilder::default()
                .namespaces(namespaces()?)
                // The random part makes it unlikely that this is the cgroup of an earlier
                // container, which a crash may have left.
                .cgroups_path(PathBuf::from(format!("/holdfast/{id}.{}", random_hex(4))))
                .masked_paths(get_default_maskedpaths())
                .readonly_paths(get_default_readonly_paths())
                .build()?,
        )
        .build()
}

fn namespaces() -> Result<Vec<oci_spec::runtime::LinuxNamespace>, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
    ];
    if Path::new("/proc/self/ns/cgroup").exists() {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    kinds.into_iter().map(|kind| LinuxNamespaceBuilder::default().typ(kind).build()).collect()
}

/// Returns a mount with this destination, type, source and options.
pub(crate) fn mount(
    to: impl AsRef<Path>,
    kind: &str,
    from: impl AsRef<Path>,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(to.as_ref())
        .typ(kind)
        .source(from.as_ref())
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
}
