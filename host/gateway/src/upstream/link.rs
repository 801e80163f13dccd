//! A connection to a server, whatever carries it.

use std::sync::{Arc, OnceLock};

use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::http::{Clients, Credentials, Http};
use super::stdio::Stdio;
use super::watch::{Watches, Watching};
use super::{Peer, ServiceSpec, Side, TransportSpec, UpstreamError, Wiring};
use crate::envelope::{Json, Payload};
use crate::workers::Workers;

/// What connections to one server are made with.
#[derive(Debug)]
pub(super) enum Maker {
    Stdio(Arc<OnceLock<Workers>>),
    Http(reqwest::Url, Clients, Arc<Credentials>),
}

impl Maker {
    pub(super) fn new(
        spec: &ServiceSpec,
        workers: Arc<OnceLock<Workers>>,
    ) -> Result<Self, reqwest::Error> {
        Ok(match &spec.transport {
            TransportSpec::Stdio { .. } => Self::Stdio(workers),
            TransportSpec::Http {
                url,
                headers,
                reread,
                oauth,
            } => {
                let (headers, reread) = (headers.clone(), reread.clone());
                let credentials = Credentials::new(url, headers, reread, oauth.clone());
                Self::Http(url.clone(), Clients::new(url)?, Arc::new(credentials))
            }
        })
    }

    /// A connection that is opened when it is first needed, for what is watched already where it takes
    /// the place of another. `permit` is given back with it.
    pub(super) fn make(
        &self,
        spec: &ServiceSpec,
        side: Side,
        before: Option<&Link>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Arc<Link> {
        let watches = before.map(|before| before.watches.clone());
        let watches = watches.unwrap_or_default();
        let transport = match self {
            Self::Http(url, clients, credentials) => Transport::Http(Arc::new(Http::new(
                spec.name.clone(),
                url.clone(),
                credentials.clone(),
                clients.clone(),
                side.clone(),
                watches.clone(),
            ))),
            Self::Stdio(workers) => {
                let workers = workers.clone();
                let stdio = Stdio::new(spec, side.clone(), watches.clone(), workers);
                Transport::Stdio(Arc::new(stdio))
            }
        };
        let link = Arc::new(Link {
            transport,
            watches,
            side,
            _permit: permit,
        });
        link.watches.move_to(&link);
        link
    }
}

/// A connection. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    transport: Transport,
    watches: Arc<Watches>,
    side: Side,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Transport {
    Stdio(Arc<Stdio>),
    Http(Arc<Http>),
}

impl Link {
    /// Connects to the server where something is watched there.
    pub(super) async fn resume(&self) {
        if self.watches.are_any()
            && let Err(error) = self.peer().await
        {
            tracing::warn!(%error, "what is watched there cannot be asked for again yet");
        }
    }

    pub(super) fn side(&self) -> &Side {
        &self.side
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.request(method, params, wiring, alive).await,
            Transport::Http(http) => http.request(method, params, wiring, alive).await,
        }
    }

    /// Says something that needs no answer, if there is anybody to hear it.
    pub(crate) fn notify(&self, method: &str, params: Option<&Json>) {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.notify(method, params),
            Transport::Http(http) => http.notify(method, params),
        }
    }

    pub(super) async fn peer(&self) -> Result<Arc<Peer>, UpstreamError> {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.peer().await,
            Transport::Http(http) => http.peer().await,
        }
    }

    pub(crate) fn known_peer(&self) -> Option<Arc<Peer>> {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.known_peer(),
            Transport::Http(http) => http.known_peer(),
        }
    }

    /// Forgets who the server is, unless it has been greeted since.
    pub(super) fn forget(&self, peer: &Arc<Peer>) {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.end_if(peer),
            Transport::Http(http) => http.forget_if(peer),
        }
    }

    pub(super) async fn close(&self) {
        match &self.transport {
            Transport::Stdio(stdio) => stdio.close().await,
            Transport::Http(http) => http.close().await,
        }
    }

    /// Watches a resource for a client: the server is asked where nobody does so yet.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        service: &Arc<str>,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let uri = params.and_then(|params| params.text_member("uri"));
        let uri = uri.unwrap_or_default();
        let mut answer = Payload::Result(Json::of(&json!({})));
        // In the newest era the listener asks, with everything that is watched.
        if !self.peer().await?.modern && !self.watches.has(&uri) {
            answer = self
                .request("resources/subscribe", params, wiring, alive)
                .await?;
        }
        if let (Payload::Result(_), Some(client)) = (&answer, &wiring.client) {
            client.watch(uri.clone(), Watching::new(service, &self.watches, &uri));
        }
        Ok(answer)
    }

    /// Ends a client's watching of a resource.
    pub(super) async fn end_subscription(
        &self,
        params: Option<&Json>,
        wiring: &Wiring,
        alive: &(dyn Fn() + Send + Sync),
    ) -> Result<Payload, UpstreamError> {
        let uri = params.and_then(|params| params.text_member("uri"));
        let uri = uri.unwrap_or_default();
        let client = wiring.client.as_ref();
        if let Some(client) = client.filter(|client| client.watches(&uri)) {
            client.unwatch(&uri);
        } else if !self.peer().await?.modern && !self.watches.has(&uri) {
            return self
                .request("resources/unsubscribe", params, wiring, alive)
                .await;
        }
        Ok(Payload::Result(Json::of(&json!({}))))
    }

    /// Tells the server that nobody watches a resource any more.
    pub(super) fn unsubscribe(self: &Arc<Self>, uri: &str) {
        let legacy = self.known_peer().is_some_and(|peer| !peer.modern);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if legacy {
            let (link, params) = (self.clone(), Json::of(&json!({ "uri": uri })));
            runtime.spawn(async move {
                let method = "resources/unsubscribe";
                let wiring = Wiring::default();
                let end = link.request(method, Some(&params), &wiring, &|| {});
                if let Ok(Err(error)) = tokio::time::timeout(super::HANDSHAKE_TIMEOUT, end).await {
                    tracing::debug!(%error, method);
                }
            });
        }
    }
}
