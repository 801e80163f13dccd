//! One look at the plugin folder and its lock file: what lies there, without opening a plugin.

use std::path::Path;

use super::lock::PluginLock;
use super::set::Problem;
use crate::config::Config;
use crate::strategy::component::{LoadError, PluginFile, PluginFolder};

/// What one look finds. Two looks that find the same are equal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// The plugins, by name.
    pub(super) files: Vec<PluginFile>,
    /// The lock file, where there is to be one.
    pub(super) lock: Option<PluginLock>,
    /// What is wrong with the folder as a whole.
    pub(super) problems: Vec<Problem>,
    /// The files are all there are.
    pub(super) is_whole: bool,
}

impl Look {
    /// Looks, off the async threads. Where the folder or its lock cannot be read, what the look before
    /// found is taken to be there still: a folder that is not mounted at the moment is no order to
    /// stop.
    pub(super) async fn take(config: &Config, before: Option<&Self>) -> Self {
        let Some(folder) = config.plugins.clone() else {
            return Self {
                is_whole: true,
                ..Self::default()
            };
        };
        let lock = config.plugins_lock.clone();
        let work = move || Self::at(&folder, lock.as_deref());
        let failed = match tokio::task::spawn_blocking(work).await {
            Ok(Ok(look)) => return look,
            Ok(Err(problem)) => problem,
            Err(_) => Problem::of("plugins", None, &LoadError::Aborted { plugin: "*".into() }),
        };
        Self {
            problems: vec![failed],
            ..before.cloned().unwrap_or_default()
        }
    }

    fn at(folder: &Path, lock: Option<&Path>) -> Result<Self, Problem> {
        let lock = lock
            .map(PluginLock::read)
            .transpose()
            .map_err(|error| Problem::of("plugins_lock", None, &error))?;
        let listing = PluginFolder::open(folder)
            .and_then(|folder| folder.list())
            .map_err(|error| Problem::of("plugins", None, &error))?;
        let problem = |error: &LoadError| {
            let source = match error {
                LoadError::FileName { path } => format!("{path:?}"),
                _ => folder.display().to_string(),
            };
            Problem::of("plugins", Some(source), error)
        };
        Ok(Self {
            files: listing.files,
            lock,
            problems: listing.misnamed.iter().map(problem).collect(),
            is_whole: true,
        })
    }

    /// The file of a plugin.
    pub(super) fn file(&self, plugin: &str) -> Option<&PluginFile> {
        let at = self
            .files
            .binary_search_by(|file| (*file.plugin).cmp(plugin));
        self.files.get(at.ok()?)
    }
}
