//! `backstop serve`: the gateway itself.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use backstop::health::HealthChecker;
use backstop::plugins::WatchOptions;
use backstop_gateway::{HttpOptions, Workers};
use tokio::net::TcpListener;

use super::host::Host;
use super::{USAGE, observe, terminal};

/// How long requests under way may take to finish when the program is asked to end.
const DRAIN: Duration = Duration::from_secs(10);

pub(super) enum Front {
    Stdio,
    Http(Option<SocketAddr>),
}

pub(super) async fn run(path: &Path, front: Front, strict: bool) -> anyhow::Result<ExitCode> {
    let otlp = observe::telemetry(path)?;
    terminal::log_beside(otlp.as_ref());
    let host = Host::load(path).await?;
    for diagnostic in &host.diagnostics {
        terminal::complain(&diagnostic.to_string());
    }
    let config = &host.config;
    if config.services.is_empty() && config.models.is_empty() && config.discoveries.is_empty() {
        terminal::complain(&format!(
            "backstop: {} has no service and no model that can be used: nothing to serve",
            path.display()
        ));
        return Ok(ExitCode::from(USAGE));
    }
    if strict && host.has_errors() {
        terminal::complain("backstop: not started, because of --strict");
        return Ok(ExitCode::from(USAGE));
    }
    match front {
        Front::Stdio => host.gateway.expect_one_client(),
        Front::Http(_) => {
            let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            let workers = Workers::start(threads).context("the threads of the HTTP front")?;
            host.gateway.use_workers(workers);
        }
    }
    let mut observing = observe::start(&host, otlp)?;
    let live = host.live(path).await;
    observing.administer(&host, &live).await?;
    let engine = host.gateway.engine();
    // Where health checks are off for all, a target may have some of its own.
    let prober = host.gateway.prober();
    let _checks = HealthChecker::spawn(
        engine.registry().clone(),
        Arc::new(prober.context("the client of the health checks")?),
        backstop::random::from_os(),
    );

    let _watch = host.strategies.watch(WatchOptions::default());
    let _follow = live.follow().await.context("SIGHUP")?;

    let gateway = host.gateway.clone();
    let served = async {
        match front {
            Front::Stdio => gateway
                .serve_stdio()
                .await
                .context("standard input and output"),
            Front::Http(address) => {
                let address = address.unwrap_or(host.config.gateway.listen);
                let env = |name: &str| std::env::var(name).ok();
                let options = HttpOptions::from_config(&host.config.gateway, &env)
                    .map_err(anyhow::Error::msg)?;
                let listener = listen(address).await?;
                let address = listener
                    .local_addr()
                    .context("the listener has no address")?;
                let scheme = if options.tls.is_some() {
                    "https"
                } else {
                    "http"
                };
                terminal::complain(&format!(
                    "listening on {scheme}://{address}{}",
                    options.path
                ));
                if !host.config.models.is_empty() {
                    let path = &host.config.completion.path;
                    terminal::complain(&format!("models at {scheme}://{address}{path}"));
                }
                gateway
                    .serve_http(listener, options)
                    .await
                    .context("the HTTP front")
            }
        }
    };
    let ended = tokio::select! {
        ended = served => ended,
        signal = signal() => {
            signal?;
            tracing::info!("ending: requests under way are finished first");
            let _ = tokio::time::timeout(DRAIN, host.gateway.shut_down()).await;
            Ok(())
        }
    };
    host.gateway.shut_down().await;
    host.keep_state().await;
    observing.end().await;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}: stop the program that uses the port, or choose another with --listen or `[gateway] listen`"
        )
    })
}

/// Waits for a signal that asks the program to end.
async fn signal() -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            pressed = tokio::signal::ctrl_c() => pressed.context("SIGINT"),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.context("Ctrl-C")
}
