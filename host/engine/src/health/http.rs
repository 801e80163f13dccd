use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::Prober;
use crate::failure::Failure;
use crate::kind::Kind;
use crate::registry::Target;

/// Probes over HTTP: `GET` on the target's health URL.
///
/// A status of 2xx is well, and so is 429: a busy server is not an ill one. At a URL that nobody
/// configured (`{url}/health`), any other 4xx is well too: the server is there and says that it has no such
/// page, as most MCP servers do.
#[derive(Debug, Clone)]
pub struct HttpProber {
    client: reqwest::Client,
}

/// Why no HTTP client could be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for health probes could not be made")]
pub struct HttpProberError(#[source] reqwest::Error);

impl HttpProber {
    /// A prober with a client of its own, which follows no redirect.
    ///
    /// # Errors
    /// If the system's TLS configuration cannot be read.
    pub fn new() -> Result<Self, HttpProberError> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .build()
            .map_err(HttpProberError)?;
        Ok(Self::with_client(client))
    }

    /// A prober that uses this client, for example one with credentials.
    pub fn with_client(client: reqwest::Client) -> Self {
        Self { client }
    }
}

impl Prober for HttpProber {
    fn covers(&self, target: &Target) -> bool {
        target
            .spec
            .effective_health_url()
            .is_some_and(|url| url.starts_with("http://") || url.starts_with("https://"))
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let Some(url) = target.spec.effective_health_url() else {
                return Err(Failure::new(
                    Kind::INVALID_PARAMETER,
                    "the target has no health URL",
                ));
            };
            let configured = target.spec.health_url.is_some();
            let response = self.client.get(&*url).send().await.map_err(|error| {
                Failure::new(Kind::CONNECTION_ERROR, format!("{url}: {}", chain(&error)))
            })?;
            let status = response.status();
            if status.is_success()
                || status.as_u16() == 429
                || status.is_client_error() && !configured
            {
                return Ok(());
            }
            let mut failure = Failure::new(Kind::SERVICE_UNAVAILABLE, format!("{url}: {status}"));
            failure.http_status = Some(status.as_u16());
            Err(failure)
        }
        .boxed()
    }
}

/// An error and its causes in one line; the URL is said by the caller.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |cause| cause.source())
        .fold("no answer".to_owned(), |text, cause| {
            format!("{text}: {cause}")
        })
}
