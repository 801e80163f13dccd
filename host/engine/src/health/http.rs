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
///
/// Each probe opens a connection of its own, as HAProxy does: that the server still takes new ones is part
/// of the question, and thousands of targets do not hold thousands of idle connections open.
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
            .pool_max_idle_per_host(0)
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::{Read, Write};
    use std::net::TcpListener;

    use crate::registry::{Registry, TargetSpec};

    /// Answers one request with this status; gives the path that was asked for.
    fn serve_once(status: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).unwrap();
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            String::from_utf8_lossy(&buffer[..read])
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        (url, server)
    }

    async fn probe(spec: TargetSpec) -> Result<(), Failure> {
        let target = Registry::builder().build().unwrap().register(spec).unwrap();
        let prober = HttpProber::new().unwrap();
        assert!(prober.covers(&target));
        prober.probe(&target).await
    }

    #[tokio::test]
    async fn a_status_of_2xx_is_well() {
        let (url, server) = serve_once("204 No Content");
        probe(TargetSpec::service("a", "g").url(url)).await.unwrap();
        assert_eq!(server.join().unwrap(), "GET /health HTTP/1.1");
    }

    #[tokio::test]
    async fn a_missing_page_speaks_against_a_configured_url_only() {
        let (url, server) = serve_once("404 Not Found");
        probe(TargetSpec::service("a", "g").url(url)).await.unwrap();
        server.join().unwrap();
        let (url, server) = serve_once("404 Not Found");
        let failure = probe(TargetSpec::service("a", "g").health_url(format!("{url}/live")))
            .await
            .unwrap_err();
        assert_eq!(failure.http_status, Some(404));
        assert_eq!(server.join().unwrap(), "GET /live HTTP/1.1");
    }

    #[tokio::test]
    async fn a_server_error_is_ill_health() {
        let (url, server) = serve_once("503 Service Unavailable");
        probe(TargetSpec::service("a", "g").url(url))
            .await
            .unwrap_err();
        server.join().unwrap();
    }

    #[tokio::test]
    async fn a_refused_connection_is_ill_health_and_says_why() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let failure = probe(TargetSpec::service("a", "g").url(url))
            .await
            .unwrap_err();
        assert_eq!(failure.kind, Kind::CONNECTION_ERROR);
        assert!(
            failure.message.to_lowercase().contains("refused"),
            "{failure}"
        );
    }

    #[test]
    fn a_target_without_a_web_address_is_not_covered() {
        let registry = Registry::builder().build().unwrap();
        let target = registry.register(TargetSpec::service("a", "g")).unwrap();
        assert!(!HttpProber::new().unwrap().covers(&target));
    }
}
