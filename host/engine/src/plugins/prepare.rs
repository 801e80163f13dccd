//! One plugin of a plan: read, checked against the lock, compiled and configured, once for each use
//! of it that is not running as it is wanted already.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::look::Look;
use super::set::{Current, Origin, Problem};
use super::wanted::{Plugin, STOCK, Wanted};
use crate::config::Config;
use crate::strategy::component::{
    ComponentStrategy, Digest, Limits, LoadError, PluginFile, PluginFolder, Runtime, Stamp,
};

/// How long after its last write a file that cannot be used is taken to be unfinished. Whoever copies
/// a file writes it without a pause of this length; whoever made a mistake waits this long for word.
const GRACE: Duration = Duration::from_millis(400);

/// What came of one use of a plugin.
pub(super) enum Outcome {
    /// It runs as it is wanted.
    Keep,
    /// It is ready to run.
    Ready {
        component: Arc<ComponentStrategy>,
        origin: Origin,
        source: String,
    },
    /// It cannot be used. What runs under its name goes on.
    Failed,
    /// It may not be used any more. What runs under its name, of the folder, ends.
    Revoked,
    /// Its file is being written.
    Unfinished,
}

/// A plugin, prepared.
pub(super) struct Prepared {
    pub(super) plugin: String,
    /// What its file was known by, where it was read.
    pub(super) known: Option<(Stamp, Digest)>,
    pub(super) uses: Vec<(Wanted, Outcome, Option<Problem>)>,
}

/// What preparing needs to know.
pub(super) struct Preparing<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) config: &'a Config,
    pub(super) current: &'a Current,
    pub(super) look: &'a Look,
    /// The look before this one, where one was taken to see which files are still being written.
    pub(super) settled: Option<&'a Look>,
}

/// A file of the folder: known, and read if it must be.
struct Content {
    file: PluginFile,
    digest: Digest,
    bytes: Option<Bytes>,
}

impl Preparing<'_> {
    pub(super) async fn prepare(&self, plugin: Plugin) -> Prepared {
        let mut prepared = Prepared {
            plugin: plugin.name.clone(),
            known: None,
            uses: Vec::new(),
        };
        let mut content = match plugin.file.clone() {
            None => Ok(None),
            Some(file) if self.is_changing(&file) => Err(None),
            Some(file) => self.open(file).await.map(Some).map_err(Some),
        };
        if let Ok(Some(content)) = &content {
            prepared.known = Some((content.file.stamp, content.digest));
        }
        for wanted in &plugin.uses {
            let (outcome, problem) = match &mut content {
                Err(None) => (Outcome::Unfinished, None),
                Err(Some(error)) => self.failed(&plugin, wanted, None, error),
                Ok(None) => self.stock(&plugin, wanted).await,
                Ok(Some(content)) => self.file(&plugin, wanted, content).await,
            };
            let outcome = match outcome {
                // Nothing runs that could go on, so the stock strategy of that name does.
                Outcome::Failed if !self.current.strategies.contains_key(&wanted.name) => self
                    .stand_in(&plugin, wanted)
                    .await
                    .unwrap_or(Outcome::Failed),
                Outcome::Revoked => self
                    .stand_in(&plugin, wanted)
                    .await
                    .unwrap_or(Outcome::Revoked),
                outcome => outcome,
            };
            prepared.uses.push((wanted.clone(), outcome, problem));
        }
        prepared
    }

    /// Whether a file is not what it was when it was last looked at.
    fn is_changing(&self, file: &PluginFile) -> bool {
        self.settled
            .is_some_and(|settled| settled.file(&file.plugin) != Some(file))
    }

    /// A file written a moment ago that cannot be used may be one half of itself.
    fn is_fresh(&self, file: &PluginFile) -> bool {
        let age = |modified| SystemTime::now().duration_since(modified).ok();
        self.settled.is_some()
            && file
                .stamp
                .modified()
                .and_then(age)
                .is_some_and(|age| age < GRACE)
    }

    async fn open(&self, file: PluginFile) -> Result<Content, LoadError> {
        match self.current.known.get(&file.plugin) {
            Some((stamp, digest)) if *stamp == file.stamp => Ok(Content {
                digest: *digest,
                file,
                bytes: None,
            }),
            _ => {
                let (bytes, digest) = self.read(&file).await?;
                Ok(Content {
                    file,
                    digest,
                    bytes: Some(bytes),
                })
            }
        }
    }

    async fn read(&self, file: &PluginFile) -> Result<(Bytes, Digest), LoadError> {
        let aborted = || LoadError::Aborted {
            plugin: file.plugin.clone(),
        };
        let folder = self.config.plugins.clone().ok_or_else(aborted)?;
        let (file, limit) = (file.clone(), Limits::default().component_bytes);
        let plugin = file.plugin.clone();
        let work = move || {
            let bytes = PluginFolder::open(&folder)?.read(&file, limit)?;
            let digest = Digest::of(&bytes);
            Ok((bytes, digest))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(read) => read,
            Err(_) => Err(LoadError::Aborted { plugin }),
        }
    }

    async fn file(
        &self,
        plugin: &Plugin,
        wanted: &Wanted,
        content: &mut Content,
    ) -> (Outcome, Option<Problem>) {
        let origin = Origin::File(content.digest);
        if let (Some(path), Some(lock)) = (&self.config.plugins_lock, &self.look.lock)
            && let Err(error) = lock.check(&plugin.name, content.digest, path)
        {
            // Not of the content's making: with another lock it may be accepted.
            let (outcome, problem) = self.failed(plugin, wanted, None, &error);
            return match error {
                LoadError::NotLocked { .. } => (Outcome::Revoked, problem),
                _ => (outcome, problem),
            };
        }
        if let Some(settled) = self.settled_before(wanted, origin) {
            return settled;
        }
        let bytes = match content.bytes.clone() {
            Some(bytes) => bytes,
            None => match self.read(&content.file).await {
                Ok((_, digest)) if digest != content.digest => return (Outcome::Unfinished, None),
                Ok((bytes, _)) => content.bytes.insert(bytes).clone(),
                Err(error) => return self.failed(plugin, wanted, Some(origin), &error),
            },
        };
        let source = content.file.path.display().to_string();
        match self.load(plugin, wanted, bytes).await {
            Ok(component) => (
                Outcome::Ready {
                    component,
                    origin,
                    source,
                },
                None,
            ),
            Err(_) if self.is_fresh(&content.file) => (Outcome::Unfinished, None),
            Err(error) => self.failed(plugin, wanted, Some(origin), &error),
        }
    }

    async fn stock(&self, plugin: &Plugin, wanted: &Wanted) -> (Outcome, Option<Problem>) {
        if let Some(settled) = self.settled_before(wanted, Origin::Stock) {
            return settled;
        }
        match self.load_stock(plugin, wanted).await {
            Ok(ready) => (ready, None),
            Err(error) => self.failed(plugin, wanted, Some(Origin::Stock), &error),
        }
    }

    /// The stock strategy where the file of its name cannot be used. That the file cannot is told
    /// already.
    async fn stand_in(&self, plugin: &Plugin, wanted: &Wanted) -> Option<Outcome> {
        plugin.stock?;
        let runs = self.current.strategies.get(&wanted.name);
        if runs.is_some_and(|runs| runs.is(Origin::Stock, &wanted.options)) {
            return Some(Outcome::Keep);
        }
        self.load_stock(plugin, wanted).await.ok()
    }

    async fn load_stock(&self, plugin: &Plugin, wanted: &Wanted) -> Result<Outcome, LoadError> {
        let bytes = Bytes::from_static(plugin.stock.unwrap_or_default());
        Ok(Outcome::Ready {
            component: self.load(plugin, wanted, bytes).await?,
            origin: Origin::Stock,
            source: STOCK.to_owned(),
        })
    }

    async fn load(
        &self,
        plugin: &Plugin,
        wanted: &Wanted,
        bytes: Bytes,
    ) -> Result<Arc<ComponentStrategy>, LoadError> {
        let options = wanted.options.clone();
        ComponentStrategy::load(self.runtime, &plugin.name, bytes, options).await
    }

    /// What is known of the same content with the same options, so that nothing is tried twice.
    fn settled_before(
        &self,
        wanted: &Wanted,
        origin: Origin,
    ) -> Option<(Outcome, Option<Problem>)> {
        let (name, options) = (&wanted.name, &wanted.options);
        let runs = self.current.strategies.get(name);
        if runs.is_some_and(|runs| runs.is(origin, options)) {
            return Some((Outcome::Keep, None));
        }
        let rejected = self.current.rejected.get(name)?;
        let is_same = rejected.problem.origin == Some(origin) && rejected.options == *options;
        if !is_same || rejected.problem.is_passing {
            return None;
        }
        Some(match &rejected.ready {
            // It was refused for what the others are, and they may have changed.
            Some((component, source)) => (
                Outcome::Ready {
                    component: component.clone(),
                    origin,
                    source: source.clone(),
                },
                None,
            ),
            None => (Outcome::Failed, Some(rejected.problem.clone())),
        })
    }

    fn failed(
        &self,
        plugin: &Plugin,
        wanted: &Wanted,
        origin: Option<Origin>,
        error: &LoadError,
    ) -> (Outcome, Option<Problem>) {
        if self.settled.is_some() && matches!(error, LoadError::Changing { .. }) {
            return (Outcome::Unfinished, None);
        }
        let source = match (origin, &plugin.file) {
            (Some(Origin::Stock), _) | (_, None) => STOCK.to_owned(),
            (_, Some(file)) => file.path.display().to_string(),
        };
        let field = format!("strategy {:?} ({source})", wanted.name);
        let problem = Problem {
            origin,
            is_passing: error.is_passing(),
            ..Problem::of(field, Some(source), error)
        };
        (Outcome::Failed, Some(problem))
    }
}
