//! Reads the configuration file again on SIGHUP.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use crate::file::{Defaults, Loaded};
use crate::systemd::Manager;

/// Changes the level of the daemon's own log; `None` is the default level.
pub type SetLevel = Box<dyn Fn(Option<&str>) -> Result<(), String> + Send + Sync>;

/// What a reload needs.
pub struct Reload {
    /// The configuration file as it was read at the start.
    pub loaded: Loaded,
    /// `None` if a flag has set the level, which then stays.
    pub set_level: Option<SetLevel>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("loaded", &self.loaded).finish_non_exhaustive()
    }
}

/// The defaults of new containers, which a reload replaces.
#[derive(Debug, Clone)]
pub(crate) struct SharedDefaults(Arc<RwLock<Defaults>>);

impl SharedDefaults {
    /// Returns those of a configuration file, if there is one.
    pub(crate) fn of(reload: Option<&Reload>) -> Self {
        let defaults = reload.map(|reload| reload.loaded.file.containers.clone());
        Self(Arc::new(RwLock::new(defaults.unwrap_or_default())))
    }

    pub(crate) fn get(&self) -> Defaults {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, defaults: Defaults) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = defaults;
    }
}

/// Reads the file again whenever `hangups` says so. A file that is wrong changes nothing.
pub(crate) async fn follow(
    mut reload: Option<Reload>,
    hangups: Arc<Notify>,
    defaults: SharedDefaults,
    manager: Option<Arc<Manager>>,
) {
    let tell = |what: fn(&Manager) -> io::Result<()>| {
        if let Some(manager) = &manager
            && let Err(error) = what(manager)
        {
            tracing::warn!(%error, "the service manager is not told of a reload");
        }
    };
    loop {
        hangups.notified().await;
        tell(Manager::reloading);
        match &mut reload {
            Some(reload) => reload.read_again(&defaults).await,
            None => tracing::info!("SIGHUP: there is no configuration to read again; running on"),
        }
        tell(Manager::ready);
    }
}

impl Reload {
    async fn read_again(&mut self, defaults: &SharedDefaults) {
        let Self { loaded, set_level } = self;
        let path = loaded.path.clone();
        let read = tokio::task::spawn_blocking(move || Loaded::read(&path)).await;
        let new = match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(new) => new,
            Err(error) => {
                tracing::error!(%error, "SIGHUP: the configuration is wrong; running on with the last one");
                return;
            }
        };
        let (now, later) = loaded.changes(&new);
        defaults.set(new.file.containers.clone());
        if new.file.log_level != loaded.file.log_level
            && let Some(set_level) = &set_level
            && let Err(error) = set_level(new.file.log_level.as_deref())
        {
            tracing::error!(%error, "SIGHUP: log-level is wrong; it stays as it was");
        }
        tracing::info!(changed = ?now, needs_restart = ?later, "SIGHUP: configuration read again");
        // What needs a restart is still what it was, and is named again next time.
        loaded.take_over(new);
    }
}
