use std::borrow::Cow;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::{HttpProber, HttpProberError, Prober};
use crate::failure::Failure;
use crate::kind::Kind;
use crate::registry::Target;

/// Probes by opening a TCP connection: for a target whose health URL is `tcp://host:port`.
///
/// A target that takes a connection is well. Nothing is sent. The weakest of probes, for a server that can
/// be asked for nothing without it doing something.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpProber;

/// Host and port of a `tcp://` URL.
fn address(url: &str) -> Option<&str> {
    let address = url.strip_prefix("tcp://")?.trim_end_matches('/');
    Some(address).filter(|address| address.contains(':'))
}

fn health_url(target: &Target) -> Option<Cow<'_, str>> {
    target.spec.effective_health_url()
}

impl Prober for TcpProber {
    fn covers(&self, target: &Target) -> bool {
        health_url(target).is_some_and(|url| address(&url).is_some())
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        async move {
            let url = health_url(target).unwrap_or_default();
            let Some(address) = address(&url) else {
                return Err(Failure::new(
                    Kind::INVALID_PARAMETER,
                    "the target has no health URL of the form tcp://host:port",
                ));
            };
            match TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(Failure::new(
                    Kind::CONNECTION_ERROR,
                    format!("{url}: {error}"),
                )),
            }
        }
        .boxed()
    }
}

/// Probes by the health URL: over HTTP as [`HttpProber`], over TCP as [`TcpProber`].
#[derive(Debug, Clone)]
pub struct UrlProber {
    http: HttpProber,
    tcp: TcpProber,
}

impl UrlProber {
    /// A prober with an HTTP client of its own.
    ///
    /// # Errors
    /// If the system's TLS configuration cannot be read.
    pub fn new() -> Result<Self, HttpProberError> {
        Ok(Self {
            http: HttpProber::new()?,
            tcp: TcpProber,
        })
    }
}

impl Prober for UrlProber {
    fn covers(&self, target: &Target) -> bool {
        self.tcp.covers(target) || self.http.covers(target)
    }

    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        if self.tcp.covers(target) {
            self.tcp.probe(target)
        } else {
            self.http.probe(target)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::TcpListener;

    use crate::registry::{Registry, TargetSpec};

    async fn probe(url: &str) -> Result<(), Failure> {
        let spec = TargetSpec::service("a", "g").health_url(url);
        let target = Registry::builder().build().unwrap().register(spec).unwrap();
        let prober = UrlProber::new().unwrap();
        assert!(prober.covers(&target), "{url}");
        prober.probe(&target).await
    }

    #[tokio::test]
    async fn a_server_that_takes_the_connection_is_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap());
        probe(&url).await.unwrap();
        drop(listener);
        let failure = probe(&url).await.unwrap_err();
        assert_eq!(failure.kind, Kind::CONNECTION_ERROR);
        assert!(failure.message.contains(&url), "{failure}");
        assert!(
            failure.message.to_lowercase().contains("refused"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn the_scheme_of_the_url_says_how_to_ask() {
        // Takes the connection and never answers: well for TCP, and nothing for HTTP.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        probe(&format!("tcp://{address}")).await.unwrap();
        drop(listener.accept().unwrap());
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        probe(&format!("http://{address}")).await.unwrap_err();
        closing.join().unwrap();
    }

    #[test]
    fn a_url_without_a_port_is_not_covered() {
        let spec = TargetSpec::service("a", "g").health_url("tcp://host");
        let target = Registry::builder().build().unwrap().register(spec).unwrap();
        assert!(!TcpProber.covers(&target));
    }
}
