//! Where fronts and supervisor find each other.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The variable that names another directory than [`BASE`], for tests.
pub const BASE_VARIABLE: &str = "HOLDFAST_CONTAINERD_ROOT";

/// The directory of everything that belongs to containerd's tasks.
pub const BASE: &str = "/run/holdfast-containerd";

/// The supervisor's program, beside that of the front or in `PATH`.
pub const SUPERVISOR: &str = "holdfast-containerd";

/// The variable that names another program as the supervisor, for tests.
pub const SUPERVISOR_VARIABLE: &str = "HOLDFAST_CONTAINERD_SUPERVISOR";

/// Where containerd's shims have their sockets, unless it says otherwise.
pub const SOCKETS: &str = "/run/containerd/s";

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The directory of the supervisor that serves the containerd at this address.
#[must_use]
pub fn directory(grpc_address: &str) -> PathBuf {
    let base = std::env::var_os(BASE_VARIABLE).map_or_else(|| PathBuf::from(BASE), PathBuf::from);
    directory_in(&base, grpc_address)
}

/// The same, with another directory than [`BASE`].
#[must_use]
pub fn directory_in(base: &Path, grpc_address: &str) -> PathBuf {
    base.join(&hash(grpc_address)[..16])
}

/// The socket on which a supervisor listens for fronts.
#[must_use]
pub fn supervisor_socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

/// The state root of a namespace.
#[must_use]
pub fn root(directory: &Path, namespace: &str) -> PathBuf {
    directory.join("namespaces").join(namespace)
}

/// The directory of the containers that `delete` could not remove, because no supervisor answered. A
/// supervisor removes them when it starts.
#[must_use]
pub fn cleanups(directory: &Path) -> PathBuf {
    directory.join("cleanup")
}

/// The file for one of these containers. Its content is a [`Cleanup`](crate::front::Cleanup), and a file
/// whose name begins with a dot is not complete. Neither a namespace nor an id has a colon.
#[must_use]
pub fn cleanup(directory: &Path, namespace: &str, id: &str) -> PathBuf {
    cleanups(directory).join(format!("{namespace}:{id}"))
}

/// The path of the socket that a front has for containerd: the same that containerd's own shim would
/// choose, so that it is as long, and found again.
#[must_use]
pub fn front_socket(sockets: &Path, grpc_address: &str, namespace: &str, group: &str) -> PathBuf {
    // As Go joins paths: one slash between the parts.
    let parts = [grpc_address, namespace, group].map(|part| part.trim_matches('/'));
    let slash = if grpc_address.starts_with('/') { "/" } else { "" };
    sockets.join(hash(&format!("{slash}{}", parts.join("/"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fronts_socket_has_the_name_that_containerds_shim_would_choose() {
        // printf %s /run/containerd/containerd.sock/k8s.io/pod | sha256sum
        let socket =
            front_socket(Path::new(SOCKETS), "/run/containerd/containerd.sock", "k8s.io", "pod");
        let name = "b9cab8e84f817f3c3bb561c7ea8dcbfba051d5d8f56ec2c3f204bc387d13f7d0";
        assert_eq!(socket, Path::new(SOCKETS).join(name));
        assert!(socket.as_os_str().len() < 106, "the longest path of a socket");
    }
}
