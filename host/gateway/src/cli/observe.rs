//! What `backstop serve` does to be seen: the administration endpoint and the lines of events, where the
//! configuration asks for them.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, bail};
use backstop::Engine;
use backstop::config::{Admin as AdminConfig, Config, EventLog as LogConfig};
use backstop_gateway::admin::{Admin, Metrics};
use backstop_gateway::event_log::{Destination, EventLog};
use backstop_gateway::live::LiveConfig;
use backstop_gateway::otlp::Otlp;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::terminal;

/// What goes on until the program ends.
pub(super) struct Observing {
    metrics: Option<Metrics>,
    admin: Option<(CancellationToken, JoinHandle<()>)>,
    log: Option<EventLog>,
    otlp: Option<(Otlp, JoinHandle<()>)>,
}

/// What sends spans and metrics, where the configuration wants it; whatever else is wrong with that is
/// reported when it is read for all the rest. Spans are the log's business, which comes before.
pub(super) fn telemetry(path: &Path) -> anyhow::Result<Option<Otlp>> {
    let config = Config::load(path).config;
    let otlp = config.telemetry.as_ref().map(Otlp::new).transpose();
    otlp.context("telemetry")
}

/// Starts to note what happens, where the configuration asks for it. To be called before the first call
/// is made.
pub(super) fn start(host: &Host, otlp: Option<Otlp>) -> anyhow::Result<Observing> {
    let log = match &host.config.events {
        None => None,
        Some(config) => Some(log(host.gateway.engine(), config)?),
    };
    let metrics = match (&host.config.admin, &otlp) {
        (None, None) => None,
        (None, Some(otlp)) => {
            Metrics::install_only(otlp)?;
            None
        }
        (Some(_), otlp) => Some(Metrics::install_beside(otlp.as_ref())?),
    };
    let interval = host.config.telemetry.as_ref().map(|config| config.interval);
    let otlp = otlp.zip(interval).map(|(otlp, interval)| {
        let engine = host.gateway.engine().clone();
        // The gauges are read as often as they are sent.
        let sampling = tokio::spawn(async move {
            loop {
                engine.sample_metrics();
                tokio::time::sleep(interval).await;
            }
        });
        (otlp, sampling)
    });
    Ok(Observing {
        metrics,
        admin: None,
        log,
        otlp,
    })
}

fn log(engine: &Engine, config: &LogConfig) -> anyhow::Result<EventLog> {
    let destination = match &config.file {
        None => Destination::Stderr,
        Some(path) => Destination::File {
            path: path.clone(),
            max_bytes: config.max_size,
            keep: config.keep,
        },
    };
    EventLog::start(engine, destination).with_context(|| match &config.file {
        Some(path) => format!("events cannot be written to {}", path.display()),
        None => "events cannot be written".into(),
    })
}

async fn admin(
    live: &LiveConfig,
    engine: &Engine,
    metrics: Metrics,
    config: &AdminConfig,
) -> anyhow::Result<(CancellationToken, JoinHandle<()>)> {
    let token = token(config)?;
    let admin =
        Admin::new(engine, metrics, config.listen, token.as_deref())?.with_config(live.clone());
    let listener = listen(config.listen).await?;
    let address = listener
        .local_addr()
        .context("the listener of `[admin]` has no address")?;
    terminal::complain(&format!("administration at http://{address}/"));
    let shutdown = CancellationToken::new();
    let served = admin.serve(listener, shutdown.clone());
    let task = tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "the administration endpoint ended");
        }
    });
    Ok((shutdown, task))
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}: choose another port with `[admin] listen`")
    })
}

/// The token of the endpoint, where one is asked for.
pub(super) fn token(config: &AdminConfig) -> anyhow::Result<Option<String>> {
    let Some(name) = &config.token_env else {
        return Ok(None);
    };
    // Never open because a variable was forgotten.
    match std::env::var(name) {
        Ok(token) if !token.is_empty() => Ok(Some(token)),
        _ => bail!(
            "`[admin] token_env` names {name}, which is not set: set it to the token callers must send"
        ),
    }
}

impl Observing {
    /// Serves the administration endpoint, where the configuration asks for one.
    pub(super) async fn administer(
        &mut self,
        host: &Host,
        live: &LiveConfig,
    ) -> anyhow::Result<()> {
        if let (Some(metrics), Some(config)) = (self.metrics.take(), &host.config.admin) {
            let engine = host.gateway.engine();
            self.admin = Some(admin(live, engine, metrics, config).await?);
        }
        Ok(())
    }

    /// Ends it; events that have happened are written.
    pub(super) async fn end(self) {
        if let Some((shutdown, task)) = self.admin {
            shutdown.cancel();
            // A client that holds its connection open is not waited for.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), task).await;
        }
        if let Some(log) = self.log {
            log.end().await;
        }
        if let Some((otlp, sampling)) = self.otlp {
            sampling.abort();
            otlp.end().await;
        }
    }
}
