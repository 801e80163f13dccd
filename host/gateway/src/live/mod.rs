//! The configuration while the program runs: one version after another, each applied in one step.
//!
//! A new version, from the file or from an operator's hand, is read and checked as a whole: every
//! entry, every policy, every plugin compiled and configured. Where anything in it is wrong it is
//! refused with all of its problems, and the old one stays as it is. Otherwise it takes effect at once:
//! calls under way end by the policies and strategies they began with, the next call goes by the new
//! ones, and a server that is not named any more is drained. What cannot change while the program runs
//! (where it listens) is told and left as it is; the rest is applied.
//!
//! The versions that were applied are remembered with their texts, so that one can be had back.

mod behind;
mod changes;
mod edit;
mod follow;
mod history;

use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use backstop::config::{Config, Diagnostic};
use backstop::discovery::{Discovery, Sink, Targets};
use backstop::event::{ConfigVersion, EventKind};
use backstop::plugins::StrategySet;
use backstop::{Engine, Terms};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;

pub use behind::Behind;
use changes::Changes;
pub use follow::Follow;
use history::History;
pub use history::{Origin, Version};

use crate::HttpOptions;
use crate::gateway::Gateway;

/// Why a version is not in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// It is wrong; the old one stays. Warnings are among the diagnostics, and not in the message.
    #[error("{}", lines(.0))]
    Refused(Vec<Diagnostic>),
    /// The file cannot be read; what is in force stays.
    #[error("{}: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The change cannot be made in the text that is in force.
    #[error("{0}")]
    Impossible(String),
    /// There is no such version, or it is too long ago.
    #[error("there is no version {asked}: {oldest} to {newest} are remembered")]
    UnknownVersion {
        /// What was asked for.
        asked: u64,
        /// The first that is remembered.
        oldest: u64,
        /// The last.
        newest: u64,
    },
    /// The file cannot be written.
    #[error("{} cannot be written", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn lines(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| found.is_error());
    let lines: Vec<String> = errors.map(ToString::to_string).collect();
    lines.join("; ")
}

/// The configuration of a gateway that runs. Cloning shares it; where the last clone is dropped the
/// search for targets ends.
#[derive(Clone)]
pub struct LiveConfig {
    shared: Arc<Shared>,
}

struct Shared {
    file: PathBuf,
    gateway: Gateway,
    strategies: StrategySet,
    discovery: Discovery,
    state: Mutex<State>,
}

struct State {
    config: Arc<Config>,
    history: History,
}

impl fmt::Debug for LiveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveConfig")
            .field("file", &self.shared.file)
            .finish_non_exhaustive()
    }
}

impl LiveConfig {
    /// Takes over a gateway that was made of the configuration in `file`, as far as that can be used,
    /// and follows its sources of targets. That is version 1.
    ///
    /// # Panics
    /// Outside a Tokio runtime, as [`tokio::spawn`] does.
    pub fn new(
        file: PathBuf,
        (text, config): (&str, Config),
        gateway: Gateway,
        strategies: StrategySet,
    ) -> Self {
        let config = Arc::new(config);
        let discovery = Discovery::spawn(
            gateway.engine().clone(),
            behind::fixed(&config),
            &config.discoveries,
            sink(&gateway, &config),
            backstop::random::from_os(),
        );
        let first = Version {
            number: 1,
            digest: digest(text),
            applied_at: SystemTime::now(),
            origin: Origin::File,
            changes: Vec::new(),
            needs_restart: Vec::new(),
            text: text.into(),
        };
        Self {
            shared: Arc::new(Shared {
                file,
                gateway,
                strategies,
                discovery,
                state: Mutex::new(State {
                    config,
                    history: History::new(first),
                }),
            }),
        }
    }

    /// Waits until every source of targets has been asked once.
    pub async fn settled(&self) {
        self.shared.discovery.settled().await;
    }

    /// The configuration in force.
    pub async fn config(&self) -> Arc<Config> {
        self.shared.state.lock().await.config.clone()
    }

    /// The versions that were applied and are remembered, the one in force last.
    pub async fn versions(&self) -> Vec<Arc<Version>> {
        self.shared.state.lock().await.history.all()
    }

    /// Puts a text in force, as if it were the file's; the file stays as it is until
    /// [`write_back`](Self::write_back). A text that is in force already makes no new version.
    ///
    /// # Errors
    /// [`LiveError::Refused`] with everything that is wrong in it; then nothing changes. The engine's
    /// subscribers are told either way.
    pub async fn apply(&self, text: &str) -> Result<Arc<Version>, LiveError> {
        self.put(text, Origin::Operator).await
    }

    /// Changes `[retry.KIND]` in the text that is in force and puts that in force, as
    /// [`apply`](Self::apply) does; the rest of the text stays as it is. `null` takes a key out.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); or [`LiveError::Impossible`] where the kind is none, or a value is one that
    /// no key can have.
    pub async fn change_retry(
        &self,
        kind: &str,
        set: &Map<String, Value>,
    ) -> Result<Arc<Version>, LiveError> {
        let mut state = self.shared.state.lock().await;
        let text = edit::with_retry(&state.history.newest().text, kind, set);
        let text = text.map_err(LiveError::Impossible)?;
        self.put_in(&mut state, &text, Origin::Operator).await
    }

    /// Puts the text of an earlier version in force again, as a new version.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); or [`LiveError::UnknownVersion`].
    pub async fn rollback(&self, number: u64) -> Result<Arc<Version>, LiveError> {
        let text = {
            let state = self.shared.state.lock().await;
            let (oldest, newest) = state.history.range();
            let unknown = LiveError::UnknownVersion {
                asked: number,
                oldest,
                newest,
            };
            let version = state.history.get(number).ok_or(unknown)?;
            version.text.clone()
        };
        self.put(&text, Origin::Rollback(number)).await
    }

    /// Reads the file again and puts it in force, whether or not it has changed.
    ///
    /// # Errors
    /// As [`apply`](Self::apply); or [`LiveError::Unreadable`].
    pub async fn reload(&self) -> Result<Arc<Version>, LiveError> {
        let read = tokio::fs::read_to_string(&self.shared.file).await;
        self.offer(read.map_err(|error| format!("it cannot be read: {error}")))
            .await
    }

    /// Writes the version in force to the file, in one step: a reader sees the old text or this one.
    ///
    /// # Errors
    /// [`LiveError::Write`].
    pub async fn write_back(&self) -> Result<(), LiveError> {
        let state = self.shared.state.lock().await;
        let text = state.history.newest().text.clone();
        let file = self.shared.file.clone();
        let work = tokio::task::spawn_blocking(move || write(&file, &text));
        let written = work.await.unwrap_or_else(|error| Err(error.into()));
        written.map_err(|source| LiveError::Write {
            file: self.shared.file.clone(),
            source,
        })
    }

    /// What was found in the file.
    async fn offer(&self, found: Result<String, String>) -> Result<Arc<Version>, LiveError> {
        match found {
            Ok(text) => self.put(&text, Origin::File).await,
            Err(reason) => Err(self.refuse(LiveError::Unreadable {
                file: self.shared.file.clone(),
                reason,
            })),
        }
    }

    async fn put(&self, text: &str, origin: Origin) -> Result<Arc<Version>, LiveError> {
        let mut state = self.shared.state.lock().await;
        self.put_in(&mut state, text, origin).await
    }

    async fn put_in(
        &self,
        state: &mut State,
        text: &str,
        origin: Origin,
    ) -> Result<Arc<Version>, LiveError> {
        if *state.history.newest().text == *text {
            return Ok(state.history.newest().clone());
        }
        match self.try_put(text, state, origin).await {
            Ok(version) => {
                self.announce(&version);
                Ok(version)
            }
            Err(diagnostics) => Err(self.refuse(LiveError::Refused(diagnostics))),
        }
    }

    async fn try_put(
        &self,
        text: &str,
        state: &mut State,
        origin: Origin,
    ) -> Result<Arc<Version>, Vec<Diagnostic>> {
        let Shared {
            file,
            gateway,
            strategies,
            discovery,
            ..
        } = &*self.shared;
        let env = |name: &str| std::env::var(name).ok();
        let loaded = Config::parse(text, file, &env);
        let mut found = loaded.diagnostics;
        let config = Arc::new(loaded.config);
        // What is said below would be the echo of what is wrong already.
        let mut check = |more: Vec<Diagnostic>| {
            found.extend(more);
            match found.iter().any(Diagnostic::is_error) {
                true => Err(std::mem::take(&mut found)),
                false => Ok(()),
            }
        };
        check(Vec::new())?;
        check(nothing_to_serve(&config, file))?;
        let terms = Terms::of(&config, file);
        check(terms.diagnostics)?;
        check(Behind::of(&config, file).diagnostics)?;
        let wrong = |field: &str, reason: String| vec![Diagnostic::error(file, field, reason)];
        let http = match gateway.is_served_over_http() {
            true => Some(HttpOptions::from_config(&config.gateway, &env))
                .transpose()
                .map_err(|reason| wrong("gateway.bearer_token_env", reason))?,
            false => None,
        };
        let policies = (gateway.engine().plan(terms.policies))
            .map_err(|error| wrong("", crate::exchange::chain(&error)))?;
        let plan = strategies.plan(config.clone(), file).await;
        check(plan.new_diagnostics())?;
        // The last that can fail, and the first that changes anything.
        discovery
            .replace(
                behind::fixed(&config),
                &config.discoveries,
                sink(gateway, &config),
            )
            .map_err(|reason| wrong("", reason))?;
        plan.commit_with(policies);
        gateway.set_operations(terms.operations);
        gateway.set_mixed_schemas(config.gateway.mixed_schemas);
        gateway.set_completion(config.completion.clone());
        if let Some(http) = http {
            gateway.set_http_options(http);
        }
        for warning in found {
            tracing::warn!("{warning}");
        }
        let Changes { all, needs_restart } =
            Changes::between(&state.config, &config, gateway.has_models());
        let version = state.history.add(Version {
            number: state.history.newest().number + 1,
            digest: digest(text),
            applied_at: SystemTime::now(),
            origin,
            changes: all,
            needs_restart,
            text: text.into(),
        });
        state.config = config;
        Ok(version)
    }

    fn engine(&self) -> &Engine {
        self.shared.gateway.engine()
    }

    fn source(&self) -> String {
        self.shared.file.display().to_string()
    }

    fn announce(&self, version: &Version) {
        let changes = version.changes.join(", ");
        let (number, digest) = (version.number, version.digest.get(..12).unwrap_or_default());
        tracing::info!("configuration version {number} ({digest}) applied: {changes}");
        for key in &version.needs_restart {
            tracing::warn!("{key} has changed: it holds when the program is started again");
        }
        self.engine().announce(EventKind::ConfigApplied {
            source: self.source(),
            version: Some(Arc::new(ConfigVersion {
                version: number,
                digest: version.digest.clone(),
                changes: version.changes.clone(),
                needs_restart: version.needs_restart.clone(),
            })),
        });
    }

    fn refuse(&self, error: LiveError) -> LiveError {
        let reason = error.to_string();
        tracing::warn!("the configuration is refused, and what it was before stays: {reason}");
        self.engine().announce(EventKind::ConfigRejected {
            source: self.source(),
            reason,
        });
        error
    }
}

/// Makes what discovery finds the targets of the gateway.
fn sink(gateway: &Gateway, config: &Arc<Config>) -> Arc<dyn Sink> {
    let (gateway, config) = (gateway.clone(), config.clone());
    Arc::new(move |targets: &Targets| behind::put(&gateway, &config, targets))
}

/// A program is not started with a configuration that has no target; a running one is not left without
/// any. It is more likely a file that is being written.
fn nothing_to_serve(config: &Config, file: &Path) -> Vec<Diagnostic> {
    let is_empty =
        config.services.is_empty() && config.models.is_empty() && config.discoveries.is_empty();
    let reason = "it has no service, no model and no discovery: add one, or stop the program";
    let refusal = || Diagnostic::error(file, "", reason);
    is_empty.then(refusal).into_iter().collect()
}

fn digest(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    // Where the file is a link, it stays one.
    let file = std::fs::canonicalize(file)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    let permissions = std::fs::metadata(&file)?.permissions();
    new.as_file().set_permissions(permissions)?;
    new.persist(&file)?;
    Ok(())
}
