//! Strategies as WebAssembly components.
//!
//! A component is somebody else's code in our process. So each decision runs in an instance of its
//! own, made for it and thrown away after it: nothing leaks from one call to the next except through
//! the state the configuration grants. An instance sees no network, no file but those of a granted
//! folder, no environment and no process; its time, its memory and the size of what it says are
//! bounded; and whatever it does, the worst that happens to a call is that the next strategy is
//! asked ([`StrategyFault`]).
//!
//! [`Runtime`] is made once, [`ComponentStrategy::load`] checks a component and says in one sentence
//! what is wrong with it ([`LoadError`]), [`ComponentStrategy::decide`] asks it. [`scan`] reads a
//! plugin folder.

mod bindings;
mod capabilities;
mod directory;
mod error;
mod host_impl;
mod instance;
mod limits;
mod manifest;
mod quarantine;
mod runtime;
mod state;
#[cfg(feature = "stock")]
mod stock;
mod verdict;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;

pub use capabilities::Grants;
pub use directory::{Found, scan};
pub use error::LoadError;
pub use limits::{LimitError, Limits};
pub use quarantine::{QuarantinePolicy, Standing};
pub use runtime::{Runtime, RuntimeError, RuntimeOptions};
#[cfg(feature = "stock")]
pub use stock::stock;

use self::bindings::StrategyPre;
use self::capabilities::Folder;
use self::host_impl::{Cell, MAX_ROUTE_NAME, MAX_ROUTES, Phase, Shared};
use self::instance::{Instance, within};
use self::manifest::Manifest;
use self::quarantine::Quarantine;
use self::state::State;
use super::{Decision, Interest, Situation, StrategyFault, StrategyInfo};

/// How a strategy is loaded: its part of the configuration.
#[derive(Debug, Clone)]
pub struct StrategyOptions {
    /// Its configuration, a JSON object. Default: an empty one.
    pub config: Value,
    /// What it may use.
    pub limits: Limits,
    /// What it is granted.
    pub grants: Grants,
    /// When it is quarantined.
    pub quarantine: QuarantinePolicy,
}

impl Default for StrategyOptions {
    fn default() -> Self {
        Self {
            config: Value::Object(serde_json::Map::new()),
            limits: Limits::default(),
            grants: Grants::default(),
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
    /// What it is granted.
    pub grants: Grants,
    /// The size of its file, in bytes.
    pub size: usize,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: String,
}

/// A strategy that is a WebAssembly component, checked, configured and ready to decide.
pub struct ComponentStrategy {
    runtime: Runtime,
    pre: StrategyPre<Cell>,
    shared: Arc<Shared>,
    config: Arc<str>,
    interest: Interest,
    inspection: Inspection,
    quarantine: Quarantine,
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
            quarantine,
        } = options;
        limits.validate().map_err(|source| LoadError::Limit {
            plugin: plugin.into(),
            source,
        })?;
        let bytes = bytes.into();
        if bytes.len() > limits.component_bytes {
            return Err(LoadError::TooLarge {
                plugin: plugin.into(),
                limit: limits.component_bytes,
            });
        }

        let compiled =
            Compiled::off_thread(runtime, plugin, bytes, &grants, limits.folder_file_bytes).await?;
        let Compiled {
            manifest,
            pre,
            folder,
            size,
            sha256,
        } = compiled;
        let shared = Arc::new(Shared {
            name: plugin.into(),
            state: grants
                .state
                .then(|| State::new(limits.state_bytes, limits.state_value_bytes)),
            folder,
            clock_start: runtime.started(),
            limits: limits.clone(),
        });

        let info = Self::ask_metadata(runtime, &pre, &shared).await?;
        let interest = info.interest().map_err(|source| LoadError::Info {
            plugin: plugin.into(),
            source,
        })?;
        check_grants(plugin, &info, &grants)?;
        manifest::check_config(plugin, &info.config_schema, &config)?;
        let config: Arc<str> = config.to_string().into();
        let routes = Self::first_configure(runtime, &pre, &shared, &config).await?;

        let Manifest { imports, contract } = manifest;
        let inspection = Inspection {
            info,
            contract,
            imports,
            routes,
            limits,
            grants,
            size,
            sha256,
        };
        let quarantine = Quarantine::new(quarantine);
        Ok(Arc::new(Self {
            runtime: runtime.clone(),
            pre,
            shared,
            config,
            interest,
            inspection,
            quarantine,
            newly_quarantined: AtomicBool::new(false),
        }))
    }

    async fn ask_metadata(
        runtime: &Runtime,
        pre: &StrategyPre<Cell>,
        shared: &Arc<Shared>,
    ) -> Result<StrategyInfo, LoadError> {
        let fault = |source| LoadError::Metadata {
            plugin: shared.name.to_string(),
            source,
        };
        let _slot = runtime.slot().await;
        let deadline = shared.limits.configure_deadline();
        let mut instance = Instance::new(runtime, pre, shared, None, deadline);
        let metadata = within(deadline, async {
            instance.start().await?;
            instance.metadata().await
        })
        .await
        .map_err(fault)?;
        manifest::info(&shared.name, metadata)
    }

    async fn first_configure(
        runtime: &Runtime,
        pre: &StrategyPre<Cell>,
        shared: &Arc<Shared>,
        config: &str,
    ) -> Result<Vec<Route>, LoadError> {
        let plugin = || shared.name.to_string();
        let _slot = runtime.slot().await;
        let deadline = shared.limits.configure_deadline();
        let mut instance = Instance::new(runtime, pre, shared, None, deadline);
        let answer = within(deadline, async {
            instance.start().await?;
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
            message,
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

    /// Asks the strategy about a failure, in an instance of its own: `configure`, `condition` and,
    /// if that says true, `action`. `None` means that the condition said false.
    ///
    /// The future may be dropped at any time; the instance goes with it.
    ///
    /// # Errors
    /// [`StrategyFault`]; each but `Quarantined` counts towards quarantine.
    pub async fn decide(&self, situation: &Situation) -> Result<Option<Decision>, StrategyFault> {
        if let Some(faults) = self.quarantine.held() {
            return Err(StrategyFault::Quarantined { faults });
        }
        // Waiting for others is not the strategy's fault: it is bounded by the call, not counted.
        let Ok(_slot) = tokio::time::timeout_at(situation.deadline, self.runtime.slot()).await
        else {
            return Err(StrategyFault::Instantiate(
                "too many decisions at once".into(),
            ));
        };
        let result = self.decide_in_fresh_instance(situation).await;
        match &result {
            Ok(_) => self.quarantine.succeeded(),
            Err(fault) => {
                let plugin = &*self.shared.name;
                tracing::warn!(target: "backstop::strategy", plugin, fault = fault.label(), "strategy {plugin} {fault}");
                if let Some(spell) = self.quarantine.faulted() {
                    self.newly_quarantined.store(true, Ordering::Release);
                    tracing::warn!(target: "backstop::strategy", plugin, "strategy {plugin} is quarantined for {spell:?}");
                }
            }
        }
        result
    }

    async fn decide_in_fresh_instance(
        &self,
        situation: &Situation,
    ) -> Result<Option<Decision>, StrategyFault> {
        let limits = &self.shared.limits;
        let situation = situation.clone();
        let failure = verdict::failure(&situation);
        let deadline = limits.decision_deadline();
        let mut instance = Instance::new(
            &self.runtime,
            &self.pre,
            &self.shared,
            Some(situation),
            deadline,
        );
        let decision = within(deadline, async {
            instance.start().await?;
            instance.cell().phase = Phase::Configure;
            if let Err(message) = instance.configure(&self.config).await? {
                // It took the same configuration when it was loaded.
                return Err(StrategyFault::Garbage(format!(
                    "`configure` now says: {message}"
                )));
            }
            instance.cell().phase = Phase::Decide;
            if !instance.condition(&failure).await? {
                return Ok(None);
            }
            instance.action(&failure).await.map(Some)
        })
        .await?;
        decision
            .map(|raw| verdict::decision(raw, limits))
            .transpose()
    }

    /// The name it was loaded under.
    pub fn plugin(&self) -> &str {
        &self.shared.name
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

/// What comes of the work that must not block an async thread.
struct Compiled {
    manifest: Manifest,
    pre: StrategyPre<Cell>,
    folder: Option<Folder>,
    size: usize,
    sha256: String,
}

impl Compiled {
    async fn off_thread(
        runtime: &Runtime,
        plugin: &str,
        bytes: Bytes,
        grants: &Grants,
        file_limit: usize,
    ) -> Result<Self, LoadError> {
        let (runtime, name, folder) = (runtime.clone(), plugin.to_owned(), grants.folder.clone());
        let work = move || {
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
            let component =
                Component::new(runtime.engine(), &bytes).map_err(|error| LoadError::Compile {
                    plugin: name.clone(),
                    reason: format!("{error:#}"),
                })?;
            let link = |error: wasmtime::Error| LoadError::Link {
                plugin: name.clone(),
                offers: manifest::offered(),
                reason: format!("{error:#}"),
            };
            let pre = runtime.linker().instantiate_pre(&component).map_err(link)?;
            let pre = StrategyPre::new(pre).map_err(link)?;
            let sha256 =
                Sha256::digest(&bytes)
                    .iter()
                    .fold(String::with_capacity(64), |mut text, byte| {
                        let _ = write!(text, "{byte:02x}");
                        text
                    });
            Ok(Self {
                manifest,
                pre,
                folder,
                size: bytes.len(),
                sha256,
            })
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(_) => Err(LoadError::Aborted {
                plugin: plugin.into(),
            }),
        }
    }
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
