//! What every command that uses a configuration begins with: read it, make the engine, reach the
//! servers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use backstop::config::{Config, Diagnostic, Model, Service, Source, Transport};
use backstop::discovery::{Discovery, Targets};
use backstop::plugins::StrategySet;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Assembled, assemble};
use backstop_gateway::Gateway;
use backstop_gateway::model::ModelSpec;
use backstop_gateway::upstream::{ServiceSpec, TransportSpec};

/// How long the start waits for the sources of targets.
const FIRST_SEARCH: Duration = Duration::from_secs(5);

/// A host made from a configuration, with everything that is wrong about it.
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) gateway: Gateway,
    pub(crate) strategies: StrategySet,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Host {
    /// Reads the configuration and makes the host. What cannot be used is left out and reported.
    pub(crate) async fn load(path: &Path) -> anyhow::Result<Self> {
        let loaded = Config::load(path);
        Self::make(loaded.config, loaded.diagnostics, path).await
    }

    /// Makes the host of a configuration that was read from `path`.
    pub(crate) async fn make(
        config: Config,
        mut diagnostics: Vec<Diagnostic>,
        path: &Path,
    ) -> anyhow::Result<Self> {
        let runtime = runtime(&mut diagnostics, path)?;
        let assembled = assemble(&config, path, &runtime)
            .await
            .context("the policies of the configuration")?;
        let Assembled {
            engine,
            strategies,
            operations,
            diagnostics: found,
            ..
        } = assembled;
        diagnostics.extend(found);
        let mut specs = Vec::new();
        for service in &config.services {
            match spec(service) {
                Ok(spec) => specs.push(spec),
                Err(reason) => {
                    diagnostics.push(Diagnostic::error(
                        path,
                        format!("service {:?}", service.name),
                        reason,
                    ));
                    let _ = engine.registry().deregister(&service.name);
                }
            }
            diagnostics.extend(unreachable_command(service, path));
        }
        let mut models = Vec::new();
        for model in &config.models {
            match model_spec(model) {
                Ok(spec) => models.push(spec),
                Err(reason) => {
                    let field = format!("model {:?}", model.name);
                    diagnostics.push(Diagnostic::error(path, field, reason));
                    let _ = engine.registry().deregister(&model.name);
                }
            }
        }
        diagnostics.extend(mixed_groups(&config, path));
        diagnostics.extend(not_served(&config, path));
        let mut gateway = Gateway::new(engine, operations, specs).context("the gateway")?;
        let mut sources = config.discoveries.iter();
        let may_come = sources.any(|source| matches!(source.source, Source::File { .. }));
        if !models.is_empty() || may_come {
            gateway = gateway
                .with_models(models, config.completion.clone())
                .context("the models")?;
        }
        gateway.set_mixed_schemas(config.gateway.mixed_schemas);
        for source in &config.discoveries {
            if let Source::File { file } = &source.source {
                diagnostics.extend(in_file(file));
            }
        }
        Ok(Self {
            config,
            gateway,
            strategies,
            diagnostics,
        })
    }

    /// Follows the sources of targets, if there are any, and waits a while for what they say first.
    pub(crate) async fn discover(&self) -> Option<Discovery> {
        if self.config.discoveries.is_empty() {
            return None;
        }
        let services = self.config.services.iter().filter(|s| spec(s).is_ok());
        let models = self.config.models.iter().filter(|m| model_spec(m).is_ok());
        let fixed = Targets {
            services: services.cloned().collect(),
            models: models.cloned().collect(),
        };
        let (gateway, config) = (self.gateway.clone(), self.config.clone());
        let sink = move |targets: &Targets| {
            let services: Result<Vec<_>, _> = targets.services.iter().map(spec).collect();
            let models: Result<Vec<_>, _> = targets.models.iter().map(model_spec).collect();
            let of_services = targets.services.iter().map(|s| s.target(&config));
            let of_models = targets.models.iter().map(|m| m.target(&config));
            gateway
                .replace(of_services.chain(of_models).collect(), services?, models?)
                .map_err(|error| error.to_string())
        };
        let discovery = Discovery::spawn(
            self.gateway.engine().clone(),
            fixed,
            &self.config.discoveries,
            Arc::new(sink),
            backstop::random::from_os(),
        );
        if tokio::time::timeout(FIRST_SEARCH, discovery.settled())
            .await
            .is_err()
        {
            tracing::warn!("not every source of targets has answered yet");
        }
        Some(discovery)
    }

    /// Waits until what strategies keep is on the disk.
    pub(crate) async fn keep_state(&self) {
        if !self.strategies.keep_state().await {
            tracing::warn!("the last changes of the state of strategies could not be written");
        }
    }

    /// Whether anything is wrong that is not merely odd.
    pub(crate) fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }
}

/// What is wrong in a file of targets. It may come later, so that it is missing is only odd.
fn in_file(file: &Path) -> Vec<Diagnostic> {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            Config::parse_targets(&text, file, &|name| std::env::var(name).ok()).diagnostics
        }
        Err(error) => {
            let reason = format!("no target comes from it yet: {error}");
            vec![Diagnostic::warning(file, "", reason)]
        }
    }
}

/// The WebAssembly runtime, with compiled plugins kept in the user's cache folder.
fn runtime(diagnostics: &mut Vec<Diagnostic>, path: &Path) -> anyhow::Result<Runtime> {
    if let Some(folder) = cache_folder() {
        match Runtime::new(RuntimeOptions::default().with_cache(&folder)) {
            Ok(runtime) => return Ok(runtime),
            Err(error) => {
                let reason = format!(
                    "compiled plugins are not kept in {}: {error}",
                    folder.display()
                );
                diagnostics.push(Diagnostic::warning(path, "plugins", reason));
            }
        }
    }
    Runtime::new(RuntimeOptions::default()).context("the WebAssembly runtime cannot start")
}

/// `$XDG_CACHE_HOME/backstop`, else `$HOME/.cache/backstop` (XDG base directories).
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|cache| cache.join("backstop").join("components"))
}

fn spec(service: &Service) -> Result<ServiceSpec, String> {
    let transport = match &service.transport {
        Transport::Stdio {
            command,
            args,
            env,
            cwd,
        } => TransportSpec::Stdio {
            command: command.clone(),
            args: args.clone(),
            env: env
                .iter()
                .map(|(name, value)| (name.clone(), value.value().to_owned()))
                .collect(),
            cwd: cwd.clone(),
        },
        Transport::Http { url, headers } => {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                // The value may be a secret: only its name is told.
                let header = HeaderName::try_from(name.as_str()).map_err(|_| {
                    format!("the header name {name:?} is not one of HTTP; correct it")
                })?;
                let value = HeaderValue::try_from(value.value()).map_err(|_| {
                    format!("the value of header {name:?} has characters HTTP does not allow")
                })?;
                map.insert(header, value);
            }
            let url = url
                .value()
                .parse()
                .map_err(|error| format!("the url cannot be used: {error}"))?;
            TransportSpec::Http { url, headers: map }
        }
    };
    Ok(ServiceSpec {
        name: service.name.as_str().into(),
        group: service.group.as_str().into(),
        trusted: service.trusted,
        transport,
    })
}

fn model_spec(model: &Model) -> Result<ModelSpec, String> {
    ModelSpec::from_config(model, &|name| std::env::var(name).ok())
}

/// A command that is nowhere to be found will not be there when a call needs it either.
fn unreachable_command(service: &Service, path: &Path) -> Option<Diagnostic> {
    let Transport::Stdio { command, .. } = &service.transport else {
        return None;
    };
    let is_there = if command.contains(std::path::MAIN_SEPARATOR) {
        Path::new(command).is_file()
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).any(|folder| folder.join(command).is_file())
    };
    (!is_there).then(|| {
        let reason = format!(
            "the command {command:?} does not exist: it is no file and not in the PATH; install it or correct the name"
        );
        Diagnostic::error(path, format!("service {:?}.command", service.name), reason)
    })
}

/// Services and models cannot stand in for one another at the front.
fn mixed_groups(config: &Config, path: &Path) -> Vec<Diagnostic> {
    let is_mixed = |group: &&str| config.models.iter().any(|model| model.group == **group);
    let groups: BTreeSet<&str> = config.services.iter().map(|s| s.group.as_str()).collect();
    let mixed = groups.iter().filter(|group| is_mixed(group));
    let warning = |group: &&str| {
        let reason = format!(
            "group {group:?} holds services and models, and no request can be answered by either: give the models a group of their own"
        );
        Diagnostic::warning(path, "model.group", reason)
    };
    mixed.map(warning).collect()
}

/// What the configuration asks for and this version does not serve.
fn not_served(config: &Config, path: &Path) -> Vec<Diagnostic> {
    let mut list = Vec::new();
    if config.admin.is_some() {
        let reason = "this version has no administration endpoint yet; the section is ignored";
        list.push(Diagnostic::warning(path, "admin", reason));
    }
    list
}
