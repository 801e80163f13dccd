//! What `backstop serve` does to be seen: the administration endpoint and the lines of events, where the
//! configuration asks for them.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use backstop::Engine;
use backstop::config::{Admin as AdminConfig, EventLog as LogConfig};
use backstop_gateway::admin::{Admin, Metrics};
use backstop_gateway::event_log::{Destination, EventLog};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::terminal;

/// What goes on until the program ends.
pub(super) struct Observing {
    admin: Option<(CancellationToken, JoinHandle<()>)>,
    log: Option<EventLog>,
}

/// Starts what the configuration asks for. To be called before the first call is made.
pub(super) async fn start(host: &Host) -> anyhow::Result<Observing> {
    let engine = host.gateway.engine();
    let log = match &host.config.events {
        None => None,
        Some(config) => Some(log(engine, config)?),
    };
    let admin = match &host.config.admin {
        None => None,
        Some(config) => Some(admin(engine, config).await?),
    };
    Ok(Observing { admin, log })
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
    engine: &Engine,
    config: &AdminConfig,
) -> anyhow::Result<(CancellationToken, JoinHandle<()>)> {
    let token = token(config)?;
    let metrics = Metrics::install()?;
    let admin = Admin::new(engine, metrics, config.listen, token.as_deref())?;
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
    }
}
