//! How the health of a target is asked for: in the way that says most of it.

use std::sync::Arc;

use backstop::health::{HttpProberError, Prober, UrlProber};
use backstop::registry::Target;
use backstop::{Exchange, Failure, Kind};
use futures_util::future::BoxFuture;
use reqwest::Url;
use tokio::net::TcpStream;

use crate::model::{Model, Models};
use crate::router::Router;
use crate::upstream::Upstream;

/// Asks each target in its own way. See [`Gateway::prober`](crate::Gateway::prober).
pub(crate) struct Probes {
    router: Arc<Router>,
    models: Option<Arc<Models>>,
    url: UrlProber,
}

/// The way in which a target is asked.
enum Way {
    HealthUrl,
    Mcp(Arc<Upstream>),
    Model(Arc<Models>, Arc<Model>),
    Tcp(Url),
}

impl Probes {
    pub(crate) fn new(
        router: Arc<Router>,
        models: Option<Arc<Models>>,
    ) -> Result<Self, HttpProberError> {
        Ok(Self {
            router,
            models,
            url: UrlProber::new()?,
        })
    }

    fn way(&self, target: &Target) -> Option<Way> {
        if target.spec.health_url.is_some() {
            return self.url.covers(target).then_some(Way::HealthUrl);
        }
        if let Some(upstream) = self.router.upstream(&target.name) {
            return Some(Way::Mcp(upstream));
        }
        if let Some(models) = &self.models
            && let Some(model) = models.exchange.known().model(&target.name)
        {
            return Some(Way::Model(models.clone(), model.clone()));
        }
        let url: Url = target.spec.url.as_deref()?.parse().ok()?;
        let is_place = url.has_host() && url.port_or_known_default().is_some();
        is_place.then_some(Way::Tcp(url))
    }

    /// What a probe's outcome says of health. A server that refuses is there: only what speaks of ill
    /// health counts.
    fn judge<X: Exchange>(
        &self,
        exchange: &X,
        probed: Result<(), X::Error>,
    ) -> Result<(), Failure> {
        let Err(error) = probed else { return Ok(()) };
        match exchange.classify(Err(&error), &self.router.engine.detector()) {
            Some(failure) if failure.ill_health => Err(failure),
            _ => Ok(()),
        }
    }
}

/// A connection, which says that somebody listens, and no more.
async fn tcp(url: &Url) -> Result<(), Failure> {
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Ok(());
    };
    // An IPv6 address stands in brackets in a URL.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match TcpStream::connect((host, port)).await {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = format!("{host}:{port}: {error}");
            Err(Failure::new(Kind::CONNECTION_ERROR, text))
        }
    }
}

impl Prober for Probes {
    fn covers(&self, target: &Target) -> bool {
        self.way(target).is_some()
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match self.way(target) {
                // It is not there before its client is.
                Some(Way::Mcp(upstream)) if upstream.is_waiting() => Ok(()),
                Some(Way::HealthUrl) => self.url.probe(target).await,
                Some(Way::Mcp(upstream)) => {
                    self.judge(&self.router.exchange, upstream.probe().await)
                }
                Some(Way::Model(models, model)) => {
                    self.judge(&models.exchange, model.probe().await)
                }
                Some(Way::Tcp(url)) => tcp(&url).await,
                // It has just been taken out.
                None => Ok(()),
            }
        })
    }
}
