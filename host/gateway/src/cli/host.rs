//! What every command that uses a configuration begins with: read it, make the engine, reach the
//! servers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use backstop::config::{Config, Diagnostic, Source};
use backstop::plugins::StrategySet;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Assembled, Engine, assemble_with};
use backstop_gateway::live::{Behind, LiveConfig};
use backstop_gateway::{Gateway, Tls};

/// How long the start waits for the sources of targets.
const FIRST_SEARCH: Duration = Duration::from_secs(5);

/// A host made from a configuration, with everything that is wrong about it.
pub(crate) struct Host {
    pub(crate) config: Config,
    /// The text of the configuration, where it was read from a file.
    text: String,
    pub(crate) gateway: Gateway,
    pub(crate) strategies: StrategySet,
    pub(crate) diagnostics: Vec<Diagnostic>,
}

impl Host {
    /// Reads the configuration and makes the host. What cannot be used is left out and reported.
    pub(crate) async fn load(path: &Path) -> anyhow::Result<Self> {
        let (text, loaded) = match std::fs::read_to_string(path) {
            Ok(text) => {
                let loaded = Config::parse(&text, path, &|name| std::env::var(name).ok());
                (text, loaded)
            }
            Err(_) => (String::new(), Config::load(path)),
        };
        let host = Self::make(loaded.config, loaded.diagnostics, path).await?;
        Ok(Self { text, ..host })
    }

    /// Makes the host of a configuration that was read from `path`.
    pub(crate) async fn make(
        config: Config,
        mut diagnostics: Vec<Diagnostic>,
        path: &Path,
    ) -> anyhow::Result<Self> {
        let runtime = runtime(&mut diagnostics, path)?;
        let mut builder = Engine::builder();
        let sends_metrics = config
            .telemetry
            .as_ref()
            .is_some_and(|telemetry| telemetry.metrics);
        if config.admin.is_some() || sends_metrics {
            builder = builder.metrics();
        }
        let assembled = assemble_with(builder, &config, path, &runtime)
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
        let behind = Behind::of(&config, path);
        diagnostics.extend(behind.diagnostics);
        for name in &behind.unusable {
            let _ = engine.registry().deregister(name);
        }
        if let Err(error) = Tls::of(&config.gateway) {
            let reason = format!("{:#}", anyhow::Error::new(error));
            diagnostics.push(Diagnostic::error(path, "gateway.tls_certificate", reason));
        }
        let mut gateway =
            Gateway::new(engine, operations, behind.services).context("the gateway")?;
        // Models may come while it runs.
        if config.has_room_for_models() {
            gateway = gateway
                .with_models(behind.models, config.completion.clone())
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
            text: String::new(),
            gateway,
            strategies,
            diagnostics,
        })
    }

    /// Makes the configuration one that may change, follows its sources of targets, and waits a while
    /// for what these say first.
    pub(crate) async fn live(&self, path: &Path) -> LiveConfig {
        let live = LiveConfig::new(
            path.to_owned(),
            (self.text.as_str(), self.config.clone()),
            self.gateway.clone(),
            self.strategies.clone(),
        );
        if tokio::time::timeout(FIRST_SEARCH, live.settled())
            .await
            .is_err()
        {
            tracing::warn!("not every source of targets has answered yet");
        }
        live
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
