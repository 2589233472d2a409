//! Removes the layers of a container with an overlay where this process is not root: files in them may belong
//! to the ids of the container's user namespace, and overlayfs makes a directory that nobody may read.

use std::io;
use std::time::Duration;

use holdfast_state::ContainerId;
use holdfast_state::root::BUNDLE_NAME;

use crate::core::Core;
use crate::model::options::UPPER;
use crate::os::rootless::{IdMapping, Rootless};
use crate::runtime::{command, programs};

/// How long the removal of a large tree may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Removes the bundle that the library has made for a container, if that has layers. As all of it is removed
/// with the container, a crash in between leaves nothing wrong.
pub(crate) async fn remove(core: &Core, id: &ContainerId) -> io::Result<()> {
    let Some(rootless) = &core.rootless else { return Ok(()) };
    let bundle = core.root.path().join(id.as_str()).join(BUNDLE_NAME);
    if !bundle.join(UPPER).exists() {
        return Ok(());
    }
    // The one program of ours that enters user namespaces.
    let program = programs::find_own(programs::EMBEDDED, None).map_err(io::Error::other)?;
    let what = format!("{} remove {}", program.display(), bundle.display());
    let Rootless { uid_mappings, gid_mappings, .. } = rootless;
    let args = [
        program.into(),
        "remove".into(),
        "--uids".into(),
        words(uid_mappings).into(),
        "--gids".into(),
        words(gid_mappings).into(),
        bundle.into(),
    ];
    let removed = command::run(&core.spawned, what, &args, core.root.path(), LIMIT).await;
    removed.map(drop).map_err(io::Error::other)
}

/// Mappings as newuidmap(1) takes them.
fn words(mappings: &[IdMapping]) -> String {
    let numbers = mappings.iter().flat_map(|it| [it.container_id, it.host_id, it.size]);
    numbers.map(|number| number.to_string()).collect::<Vec<_>>().join(" ")
}
