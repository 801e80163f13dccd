//! Strategies as WebAssembly components.
//!
//! A component is somebody else's code in our process. So each decision runs in an instance of its
//! own, made ahead of it and thrown away after it: nothing leaks from one call to the next except
//! through the state the configuration grants ([`Isolation`] says what else there is). An instance sees no network, no file but those of a granted
//! folder, no environment and no process; its time, its memory and the size of what it says are
//! bounded; and whatever it does, the worst that happens to a call is that the next strategy is
//! asked ([`StrategyFault`]).
//!
//! [`Runtime`] is made once, [`ComponentStrategy::load`] checks a component and says in one sentence
//! what is wrong with it ([`LoadError`]), [`ComponentStrategy::decide`] asks it. [`PluginFolder`]
//! is a folder of them.

mod bindings;
mod cache;
mod capabilities;
mod compile;
mod contract;
mod describe;
mod digest;
mod directory;
mod error;
mod frozen;
mod host_impl;
mod instance;
mod limits;
mod manifest;
mod pool;
mod quarantine;
mod runtime;
mod simulated;
mod state;
mod state_store;
#[cfg(feature = "stock")]
mod stock;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

pub use capabilities::Grants;
pub use compile::Compilations;
pub use describe::Description;
pub use digest::{Digest, DigestError};
pub use directory::{Listing, PluginFile, PluginFolder, Stamp};
pub use error::LoadError;
pub use frozen::{Frozen, LogLevel, Rehearsal};
pub use limits::{LimitError, Limits};
pub use pool::Isolation;
pub use quarantine::{QuarantinePolicy, Standing};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions, Simulation};
pub use state_store::{StateStore, StateStoreError};
#[cfg(feature = "stock")]
pub use stock::stock;

use self::bindings::backstop::strategy::types;
use self::capabilities::Folder;
use self::compile::Code;
use self::contract::{Contract, Pre};
use self::frozen::Standstill;
use self::host_impl::{Cell, MAX_ROUTE_NAME, MAX_ROUTES, Phase, Shared};
use self::instance::{Instance, within, within_since};
use self::manifest::Manifest;
use self::pool::Pool;
use self::quarantine::Quarantine;
use self::state::State;
use super::{Decision, Interest, Situation, StrategyFault, StrategyInfo};

/// Characters of a reason that is not in our words.
const MAX_REASON: usize = 1000;

/// How a strategy is loaded: its part of the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct StrategyOptions {
    /// Its configuration, a JSON object. Default: an empty one.
    pub config: Value,
    /// What it may use.
    pub limits: Limits,
    /// What it is granted.
    pub grants: Grants,
    /// Where its state is kept, if it is granted one, and under which name; strategies of one name
    /// share it. Default: nowhere, the state ends with the strategy.
    pub state: Option<(StateStore, String)>,
    /// Who may have used an instance before a decision does.
    pub isolation: Isolation,
    /// When it is quarantined.
    pub quarantine: QuarantinePolicy,
}

impl Default for StrategyOptions {
    fn default() -> Self {
        Self {
            config: Value::Object(serde_json::Map::new()),
            limits: Limits::default(),
            grants: Grants::default(),
            state: None,
            isolation: Isolation::default(),
            quarantine: QuarantinePolicy::default(),
        }
    }
}

/// A fallback route a strategy has declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The operation it may answer.
    pub source: String,
    /// The operation it may call instead.
    pub fallback: String,
}

/// What there is to know of a loaded component.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// What it says of itself.
    pub info: StrategyInfo,
    /// The contract it was built for, as a version.
    pub contract: String,
    /// What it imports, by name.
    pub imports: Vec<String>,
    /// The routes it declares.
    pub routes: Vec<Route>,
    /// What it may use.
    pub limits: Limits,
    /// What it is granted; what it wants is in `info.capabilities`.
    pub grants: Grants,
    /// Whether its state survives a restart.
    pub state_is_kept: bool,
    /// Who may have used an instance before a decision does.
    pub isolation: Isolation,
    /// The size of its file, in bytes.
    pub size: usize,
    /// The SHA-256 of its file.
    pub sha256: Digest,
}

/// A strategy that is a WebAssembly component, checked, configured and ready to decide.
pub struct ComponentStrategy {
    pool: Arc<Pool>,
    interest: Interest,
    inspection: Inspection,
    quarantine: Quarantine,
    /// Kept for the next strategy of the same content.
    _code: Arc<Code>,
    /// A quarantine has begun that nobody was told of yet.
    newly_quarantined: AtomicBool,
}

impl std::fmt::Debug for ComponentStrategy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ComponentStrategy")
            .field("inspection", &self.inspection)
            .finish_non_exhaustive()
    }
}

impl ComponentStrategy {
    /// Checks, compiles and configures a component. `plugin` is the name it has in the configuration
    /// and in every message, usually its file's stem.
    ///
    /// Compilation runs off the async threads; it takes from a tenth of a second to many seconds
    /// where no cache has the component.
    ///
    /// # Errors
    /// [`LoadError`], one variant for each thing that can be wrong.
    pub async fn load(
        runtime: &Runtime,
        plugin: &str,
        bytes: impl Into<Bytes>,
        options: StrategyOptions,
    ) -> Result<Arc<Self>, LoadError> {
        let StrategyOptions {
            config,
            limits,
            grants,
            state,
            isolation,
            quarantine,
        } = options;
        let kept = state.filter(|_| grants.state);
        let state_is_kept = kept.is_some();
        let compiled = Self::compile(runtime, plugin, bytes.into(), &limits, &grants).await?;
        let Compiled {
            manifest,
            code,
            pre,
            folder,
            size,
            sha256,
        } = compiled;
        let (quota, value_limit) = (limits.state_bytes, limits.state_value_bytes);
        let state = match kept {
            Some((store, name)) => Some(store.state(plugin, name, quota, value_limit).await?),
            None => grants.state.then(|| State::new(quota, value_limit)),
        };
        let shared = Arc::new(Shared {
            name: plugin.into(),
            state,
            folder,
            clock_start: runtime.started(),
            simulated: runtime.simulated().cloned(),
            limits: limits.clone(),
        });

        let info = Self::ask_metadata(runtime, &pre, &shared, &manifest).await?;
        let interest = info.interest().map_err(|source| LoadError::Info {
            plugin: plugin.into(),
            source,
        })?;
        check_grants(plugin, &info, &grants)?;
        let config = check_config(plugin, &info, config).await?;
        let routes = Self::first_configure(runtime, &pre, &shared, &config).await?;

        let Manifest {
            imports, version, ..
        } = manifest;
        let inspection = Inspection {
            info,
            contract: version,
            imports,
            routes,
            limits,
            grants,
            state_is_kept,
            isolation,
            size,
            sha256,
        };
        let quarantine = Quarantine::new(quarantine);
        let pool = Pool::new(runtime.clone(), pre, shared, config, isolation);
        pool.fill();
        Ok(Arc::new(Self {
            pool,
            interest,
            inspection,
            quarantine,
            _code: code,
            newly_quarantined: AtomicBool::new(false),
        }))
    }

    /// What needs no configuration: the file is checked, compiled and linked.
    async fn compile(
        runtime: &Runtime,
        plugin: &str,
        bytes: Bytes,
        limits: &Limits,
        grants: &Grants,
    ) -> Result<Compiled, LoadError> {
        limits.validate().map_err(|source| LoadError::Limit {
            plugin: plugin.into(),
            source,
        })?;
        if bytes.len() > limits.component_bytes {
            return Err(LoadError::TooLarge {
                plugin: plugin.into(),
                limit: limits.component_bytes,
            });
        }
        Compiled::off_thread(runtime, plugin, bytes, grants, limits.folder_file_bytes).await
    }

    async fn ask_metadata(
        runtime: &Runtime,
        pre: &Pre,
        shared: &Arc<Shared>,
        manifest: &Manifest,
    ) -> Result<StrategyInfo, LoadError> {
        let plugin = || shared.name.to_string();
        let mut instance = Self::instance_to_load(runtime, shared).await?;
        let (deadline, turn) = (shared.limits.configure_deadline(), instance.turn());
        let metadata = within(deadline, &turn, async {
            instance.start(pre).await?;
            instance.metadata().await
        })
        .await
        .map_err(|fault| match fault {
            StrategyFault::Shape(part) => LoadError::Shape {
                plugin: plugin(),
                wants: format!("{}@{}", bindings::POLICY, manifest.version),
                offers: Contract::offers(bindings::POLICY),
                part,
            },
            source => LoadError::Metadata {
                plugin: plugin(),
                source,
            },
        })?;
        manifest::info(&shared.name, metadata)
    }

    async fn instance_to_load(
        runtime: &Runtime,
        shared: &Arc<Shared>,
    ) -> Result<Instance, LoadError> {
        let leave = runtime.leave().await.ok_or_else(|| LoadError::Aborted {
            plugin: shared.name.to_string(),
        })?;
        let mut instance = Instance::new(runtime, Cell::new(shared.clone()), leave);
        instance.set_out(shared.limits.configure_deadline());
        Ok(instance)
    }

    async fn first_configure(
        runtime: &Runtime,
        pre: &Pre,
        shared: &Arc<Shared>,
        config: &str,
    ) -> Result<Vec<Route>, LoadError> {
        let plugin = || shared.name.to_string();
        let mut instance = Self::instance_to_load(runtime, shared).await?;
        let (deadline, turn) = (shared.limits.configure_deadline(), instance.turn());
        let answer = within(deadline, &turn, async {
            instance.start(pre).await?;
            instance.cell().phase = Phase::Load(Vec::new());
            instance.configure(config).await
        })
        .await
        .map_err(|source| LoadError::Configure {
            plugin: plugin(),
            source,
        })?;
        answer.map_err(|message| LoadError::Refused {
            plugin: plugin(),
            message: manifest::printable(&message, MAX_REASON),
        })?;
        let Phase::Load(routes) = std::mem::replace(&mut instance.cell().phase, Phase::Start)
        else {
            return Ok(Vec::new());
        };
        let unnamed = |route: &Route| route.source.is_empty() || route.fallback.is_empty();
        if routes.iter().any(unnamed) {
            let reason = format!(
                "a declared route has a name that is empty or longer than {MAX_ROUTE_NAME} bytes"
            );
            return Err(LoadError::Configure {
                plugin: plugin(),
                source: StrategyFault::Garbage(reason),
            });
        }
        if routes.len() > MAX_ROUTES {
            let reason = format!("more than {MAX_ROUTES} routes are declared");
            return Err(LoadError::Configure {
                plugin: plugin(),
                source: StrategyFault::Garbage(reason),
            });
        }
        Ok(routes)
    }

    /// Asks the strategy about a failure: `condition` and, if that says true, `action`, in an
    /// instance that is configured and that nobody else uses. `None` means that the condition said
    /// false.
    ///
    /// The future may be dropped at any time; the instance goes with it. It must be polled on a tokio
    /// runtime with time.
    ///
    /// # Errors
    /// [`StrategyFault`]; each but `Quarantined` counts towards quarantine.
    pub async fn decide(&self, situation: &Situation) -> Result<Option<Decision>, StrategyFault> {
        if let Some(faults) = self.quarantine.held() {
            return Err(StrategyFault::Quarantined { faults });
        }
        let instance = match self.pool.take() {
            Some(instance) => instance,
            None => {
                // Waiting for others is not the strategy's fault: it is bounded by the call, not
                // counted.
                let leave = self.pool.runtime().leave();
                let Ok(Some(leave)) = tokio::time::timeout_at(situation.deadline, leave).await
                else {
                    return Err(StrategyFault::Instantiate(
                        "too many decisions at once".into(),
                    ));
                };
                self.pool.instance(leave)
            }
        };
        let result = self.decide_in(instance, situation).await;
        match &result {
            Ok(_) => self.quarantine.succeeded(),
            Err(fault) => {
                let plugin = self.plugin();
                tracing::warn!(target: "backstop::strategy", plugin, fault = fault.label(), "strategy {plugin} {fault}");
                if let Some(spell) = self.quarantine.faulted() {
                    self.newly_quarantined.store(true, Ordering::Release);
                    tracing::warn!(target: "backstop::strategy", plugin, "strategy {plugin} is quarantined for {spell:?}");
                }
            }
        }
        result
    }

    async fn decide_in(
        &self,
        mut instance: Instance,
        situation: &Situation,
    ) -> Result<Option<Decision>, StrategyFault> {
        let limits = self.limits();
        let deadline = limits.decision_deadline();
        instance.set_out(deadline);
        let turn = instance.turn();
        let began = Instant::now();
        let time_left = situation.deadline.saturating_duration_since(began);
        let asked = within_since(began, deadline, &turn, async {
            if !instance.is_started() {
                self.pool.start(&mut instance).await?;
            }
            instance.decide(situation, time_left).await
        })
        .await;
        let result = asked.and_then(|raw| verdict(raw, limits));
        if result.is_ok() {
            self.pool.give_back(instance);
        } else {
            self.pool.throw_away(instance);
        }
        result
    }

    /// Asks the strategy with time, chance and state that are given: the same question has the same
    /// answer every time. In an instance of its own, in the real sandbox with its real limits; it
    /// counts neither towards quarantine nor as a decision.
    ///
    /// ```no_run
    /// # async fn run(strategy: &backstop::strategy::component::ComponentStrategy) {
    /// use backstop::strategy::{Situation, component::Frozen};
    /// use backstop::{Failure, Kind};
    ///
    /// let situation = Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"));
    /// let frozen = Frozen { seed: 7, ..Frozen::default() };
    /// let first = strategy.rehearse(&situation, &frozen).await;
    /// assert_eq!(strategy.rehearse(&situation, &frozen).await.outcome, first.outcome);
    /// # }
    /// ```
    pub async fn rehearse(&self, situation: &Situation, frozen: &Frozen) -> Rehearsal {
        let mut rehearsal = Rehearsal {
            outcome: Ok(None),
            log: Vec::new(),
            state: Vec::new(),
            took: std::time::Duration::ZERO,
        };
        rehearsal.outcome = self.rehearse_into(situation, frozen, &mut rehearsal).await;
        rehearsal
    }

    async fn rehearse_into(
        &self,
        situation: &Situation,
        frozen: &Frozen,
        rehearsal: &mut Rehearsal,
    ) -> Result<Option<Decision>, StrategyFault> {
        let (shared, limits) = (self.pool.shared(), self.limits());
        let standstill = Standstill::new(frozen, limits, shared.state.is_some())
            .map_err(|error| StrategyFault::Excess(format!("the given state: {error}")))?;
        let Some(leave) = self.pool.runtime().leave().await else {
            return Err(StrategyFault::Instantiate("the program is ending".into()));
        };
        let cell = Cell::frozen(shared.clone(), standstill);
        let mut instance = Instance::new(self.pool.runtime(), cell, leave);
        let turn = instance.turn();
        // As it is when an instance is ready: becoming ready has a time of its own.
        instance.set_out(limits.configure_deadline());
        let started = self.pool.start(&mut instance);
        within(limits.configure_deadline(), &turn, started).await?;
        instance.set_out(limits.decision_deadline());
        let began = std::time::Instant::now();
        let asked = instance.decide(situation, frozen.time_left);
        let asked = within(limits.decision_deadline(), &turn, asked).await;
        rehearsal.took = began.elapsed();
        (rehearsal.log, rehearsal.state) = instance.cell().thaw();
        asked.and_then(|raw| verdict(raw, limits))
    }

    /// Instances that wait for a decision now.
    pub fn ready(&self) -> usize {
        self.pool.waiting()
    }

    /// The name it was loaded under.
    pub fn plugin(&self) -> &str {
        &self.pool.shared().name
    }

    /// What it says of itself.
    pub fn info(&self) -> &StrategyInfo {
        &self.inspection.info
    }

    /// What it wants to be asked about.
    pub fn interest(&self) -> &Interest {
        &self.interest
    }

    /// The fallback routes it has declared.
    pub fn routes(&self) -> &[Route] {
        &self.inspection.routes
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.inspection.limits
    }

    /// All there is to know of it.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// Whether it has been failing.
    pub fn standing(&self) -> Standing {
        self.quarantine.standing()
    }

    /// The faults that led to a quarantine, once for each: for whoever tells of it.
    pub(crate) fn take_quarantine(&self) -> Option<u32> {
        self.newly_quarantined
            .swap(false, Ordering::AcqRel)
            .then(|| self.standing().faults)
    }
}

fn verdict(
    raw: Option<types::Decision>,
    limits: &Limits,
) -> Result<Option<Decision>, StrategyFault> {
    raw.map(|raw| verdict::decision(raw, limits)).transpose()
}

/// What comes of the work that must not block an async thread.
struct Compiled {
    manifest: Manifest,
    code: Arc<Code>,
    pre: Pre,
    folder: Option<Folder>,
    size: usize,
    sha256: Digest,
}

impl Compiled {
    async fn off_thread(
        runtime: &Runtime,
        plugin: &str,
        bytes: Bytes,
        grants: &Grants,
        file_limit: usize,
    ) -> Result<Self, LoadError> {
        let (name, folder) = (plugin.to_owned(), grants.folder.clone());
        let work = {
            let runtime = runtime.clone();
            move || {
                let manifest = Manifest::read(&name, &bytes)?;
                let folder = match folder {
                    None => None,
                    Some(path) => match Folder::open(&path, file_limit) {
                        Ok(folder) => Some(folder),
                        Err(source) => {
                            return Err(LoadError::GrantedFolder {
                                plugin: name,
                                path,
                                source,
                            });
                        }
                    },
                };
                let sha256 = Digest::of(&bytes);
                let code = runtime.compiler().code(&sha256, &bytes);
                let code = code.map_err(|error| LoadError::Compile {
                    plugin: name.clone(),
                    reason: manifest::printable(&format!("{error:#}"), MAX_REASON),
                })?;
                let shape = |error: wasmtime::Error| {
                    tracing::debug!(target: "backstop::strategy", plugin = name, error = %format_args!("{error:#}"), "does not fit its contract");
                    LoadError::Shape {
                        plugin: name.clone(),
                        wants: format!("{}@{}", bindings::POLICY, manifest.version),
                        offers: Contract::offers(bindings::POLICY),
                        part: contract::culprit(&error),
                    }
                };
                let linked = runtime.linker().instantiate_pre(&code.0);
                let pre = linked.and_then(|pre| Pre::new(manifest.contract, pre));
                let pre = pre.map_err(shape)?;
                Ok(Self {
                    manifest,
                    code,
                    pre,
                    folder,
                    size: bytes.len(),
                    sha256,
                })
            }
        };
        // The semaphore is never closed.
        let _turn = runtime.compiler().at_once.acquire().await.ok();
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(LoadError::Aborted {
                plugin: plugin.into(),
            }),
        }
    }
}

/// Checks a configuration against the strategy's own schema, and gives it as text. The schema is the
/// strategy's, and may be as long and as slow as its result limit allows.
async fn check_config(
    plugin: &str,
    info: &StrategyInfo,
    config: Value,
) -> Result<Arc<str>, LoadError> {
    let (name, schema) = (plugin.to_owned(), info.config_schema.clone());
    let work = move || {
        manifest::check_config(&name, &schema, &config)?;
        Ok(config.to_string().into())
    };
    let checked = tokio::task::spawn_blocking(work).await;
    checked.unwrap_or_else(|_| {
        Err(LoadError::Aborted {
            plugin: plugin.into(),
        })
    })
}

fn check_grants(plugin: &str, info: &StrategyInfo, grants: &Grants) -> Result<(), LoadError> {
    let refuse = |capability, remedy| {
        Err(LoadError::NotGranted {
            plugin: plugin.into(),
            capability,
            remedy,
        })
    };
    for capability in &info.capabilities {
        match &**capability {
            "folder" if grants.folder.is_none() => {
                return refuse("folder", "grants.folder = \"PATH\"");
            }
            "state" if !grants.state => return refuse("state", "grants.state = true"),
            _ => {}
        }
    }
    Ok(())
}
