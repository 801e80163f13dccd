//! The HTTP clients for one server: one for each thread that serves connections, so that a call and the
//! connection it is sent over are on one thread.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::{Client, Url, redirect};
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{self, ClientConfig};

use super::response::Resolver;
use crate::workers;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// So many threads have a client of their own; further ones share theirs.
const OWN: usize = 64;

/// The clients for one server. Cloning shares them.
#[derive(Debug, Clone)]
pub(crate) struct Clients(Arc<Made>);

#[derive(Debug)]
struct Made {
    url: Url,
    /// For threads that are no workers.
    common: Client,
    own: [OnceLock<Client>; OWN],
}

impl Clients {
    pub(crate) fn new(url: &Url) -> Result<Self, reqwest::Error> {
        Ok(Self(Arc::new(Made {
            url: url.clone(),
            common: client(url)?,
            own: [const { OnceLock::new() }; OWN],
        })))
    }

    /// The one to be used on this thread.
    pub(crate) fn here(&self) -> &Client {
        let Made { url, common, own } = &*self.0;
        match workers::number() {
            0 => common,
            number => own[number % OWN].get_or_init(|| {
                client(url).unwrap_or_else(|error| {
                    tracing::warn!(%error, "no HTTP client of its own for a thread");
                    common.clone()
                })
            }),
        }
    }
}

/// What clients speak TLS with. To read the system's certificates takes longer than many calls do, so all
/// clients share what was read first.
fn tls() -> Result<ClientConfig, rustls::Error> {
    static SHARED: OnceLock<ClientConfig> = OnceLock::new();
    if let Some(config) = SHARED.get() {
        return Ok(config.clone());
    }
    let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(SHARED.get_or_init(|| config).clone())
}

fn client(url: &Url) -> Result<Client, reqwest::Error> {
    // There is one retry loop, and credentials never follow a redirect to another host.
    let same_origin = redirect::Policy::custom(|attempt| {
        let from = attempt.previous().last().map(Url::origin);
        if attempt.previous().len() < 5 && from == Some(attempt.url().origin()) {
            attempt.follow()
        } else {
            attempt.stop()
        }
    });
    let mut client = Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(same_origin)
        .retry(reqwest::retry::never())
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(Resolver));
    if url
        .host_str()
        .is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"))
    {
        client = client.no_proxy();
    }
    // Where there is none to share, the client says why.
    if let Ok(tls) = tls() {
        client = client.tls_backend_preconfigured(tls);
    }
    client.build()
}
