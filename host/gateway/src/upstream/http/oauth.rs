//! Signing in at a server that asks for it (MCP 2026-07-28, authorization), with rmcp's OAuth client: with
//! a secret of the gateway's own, or by a person whose browser comes back to a port on loopback
//! (RFC 8252, section 7.3). A token that has run out is refreshed where it can be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use backstop::config::Grant;
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationRequest, ClientCredentialsConfig, OAuthState,
    WWWAuthenticateParams,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_util::task::AbortOnDropHandle;

/// How long a person may take to sign in.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often more may be asked for than was granted.
const UPGRADES: u32 = 3;
const CALLBACK: &str = "/callback";
/// How long a browser may take to send what it comes back with, and how much that may be.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(10);
const BROWSER_BYTES: u64 = 16 * 1024;

/// How to sign in at a server.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct OAuthSpec {
    /// On whose behalf.
    pub grant: Grant,
    /// The client, where it is registered.
    pub client_id: Option<String>,
    /// Its secret.
    pub client_secret: Option<String>,
    /// Where a document about it is to be had.
    pub client_metadata_url: Option<String>,
    /// What to ask for; what the server says where it is empty.
    pub scopes: Vec<String>,
    /// The port a browser comes back to.
    pub redirect_port: Option<u16>,
}

impl OAuthSpec {
    /// What a configuration says.
    pub fn from_config(oauth: &backstop::config::OAuth) -> Self {
        let value = |text: &Option<backstop::config::Expanded>| {
            text.as_ref().map(|text| text.value().to_owned())
        };
        Self {
            grant: oauth.grant,
            client_id: oauth.client_id.clone(),
            client_secret: value(&oauth.client_secret),
            client_metadata_url: value(&oauth.client_metadata_url),
            scopes: oauth.scopes.clone(),
            redirect_port: oauth.redirect_port,
        }
    }
}

// The secret is one.
impl fmt::Debug for OAuthSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuthSpec")
            .field("grant", &self.grant)
            .field("client_id", &self.client_id)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// What came of an attempt to sign in.
pub(super) enum SignedIn {
    /// There is a token, and it is in the header fields.
    Yes,
    /// A person must sign in at this address.
    By(String),
    /// What is asked for is not to be had.
    No,
}

/// Signs in at one server.
pub(super) struct OAuth {
    url: Url,
    spec: OAuthSpec,
    /// Where the token goes.
    headers: Arc<ArcSwap<HeaderMap>>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    manager: Option<AuthorizationManager>,
    upgrades: u32,
    /// A person who was asked to sign in: where, and what waits for it.
    asked: Option<(String, AbortOnDropHandle<()>)>,
}

impl fmt::Debug for OAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OAuth")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl OAuth {
    pub(super) fn new(url: Url, spec: OAuthSpec, headers: Arc<ArcSwap<HeaderMap>>) -> Self {
        Self {
            url,
            spec,
            headers,
            state: Arc::default(),
        }
    }

    /// Looks for other credentials than those that were refused, with this status and challenge.
    pub(super) async fn renew(
        &self,
        service: &str,
        status: u16,
        challenge: Option<&str>,
    ) -> Result<SignedIn, AuthError> {
        let mut state = self.state.lock().await;
        if self.spec.grant == Grant::ClientCredentials {
            return match status {
                401 => self.by_ourselves().await.map(|()| SignedIn::Yes),
                _ => Ok(SignedIn::No),
            };
        }
        if let Some((address, waits)) = &state.asked
            && !waits.is_finished()
        {
            return Ok(SignedIn::By(address.clone()));
        }
        let mut scopes = self.spec.scopes.clone();
        if status == 401 {
            if let Some(manager) = &state.manager {
                match manager.refresh_token().await {
                    Ok(_) => {
                        put(&self.headers, &manager.get_access_token().await?);
                        return Ok(SignedIn::Yes);
                    }
                    Err(AuthError::AuthorizationRequired | AuthError::TokenRefreshRejected(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            state.upgrades = 0;
        } else {
            let params =
                challenge.map(|challenge| WWWAuthenticateParams::parse(challenge, &self.url));
            let Some(params) = params.filter(WWWAuthenticateParams::is_insufficient_scope) else {
                return Ok(SignedIn::No);
            };
            state.upgrades += 1;
            if state.upgrades > UPGRADES {
                return Ok(SignedIn::No);
            }
            if let Some(manager) = &state.manager {
                scopes.extend(manager.get_current_scopes().await);
            }
            let more = params.scope.unwrap_or_default();
            scopes.extend(more.split_whitespace().map(str::to_owned));
            let mut seen = std::collections::HashSet::new();
            scopes.retain(|scope| seen.insert(scope.clone()));
        }
        let address = self.ask(service, &mut state, scopes, challenge).await?;
        Ok(SignedIn::By(address))
    }

    /// Signs in with the client's own secret.
    async fn by_ourselves(&self) -> Result<(), AuthError> {
        let config = ClientCredentialsConfig::ClientSecret {
            client_id: self.spec.client_id.clone().unwrap_or_default(),
            client_secret: self.spec.client_secret.clone().unwrap_or_default(),
            scopes: self.spec.scopes.clone(),
            resource: Some(self.url.to_string()),
        };
        let mut session = OAuthState::new(self.url.clone(), None).await?;
        session.authenticate_client_credentials(config).await?;
        if let Some(manager) = session.into_authorization_manager() {
            put(&self.headers, &manager.get_access_token().await?);
        }
        Ok(())
    }

    /// Begins to wait for a person to sign in. Says where.
    async fn ask(
        &self,
        service: &str,
        state: &mut State,
        scopes: Vec<String>,
        challenge: Option<&str>,
    ) -> Result<String, AuthError> {
        let no_port = |error: std::io::Error| {
            AuthError::InternalError(format!("no port for the browser to come back to: {error}"))
        };
        // The one before gives its port back.
        state.asked = None;
        let port = self.spec.redirect_port.unwrap_or(0);
        let listener = TcpListener::bind(("127.0.0.1", port))
            .await
            .map_err(no_port)?;
        let origin = format!("http://{}", listener.local_addr().map_err(no_port)?);
        let mut request = AuthorizationRequest::new(format!("{origin}{CALLBACK}"))
            .with_client_name("backstop")
            .with_initial_scope_selection();
        if !scopes.is_empty() {
            request = request.with_scopes(scopes);
        }
        if let Some(id) = &self.spec.client_id {
            request = request.with_preregistered_client(id);
        }
        if let Some(secret) = &self.spec.client_secret {
            request = request.with_client_secret(secret);
        }
        if let Some(url) = &self.spec.client_metadata_url {
            request = request.with_client_metadata_url(url);
        }
        if let Some(challenge) = challenge {
            request = request.with_challenge(challenge);
        }
        let mut session = OAuthState::new(self.url.clone(), None).await?;
        session.start_authorization(request).await?;
        let address = session.get_authorization_url().await?;
        tracing::warn!("{service}: sign in at {address}");
        let (there, headers, service) = (
            Arc::downgrade(&self.state),
            self.headers.clone(),
            service.to_owned(),
        );
        let waits = tokio::spawn(async move {
            let back = tokio::time::timeout(PATIENCE, wait(listener, &origin, session));
            let Ok(Some(manager)) = back.await else {
                tracing::warn!("{service}: nobody has signed in");
                return;
            };
            match manager.get_access_token().await {
                Ok(token) => put(&headers, &token),
                Err(error) => {
                    tracing::warn!("{service}: there is no token: {error}");
                    return;
                }
            }
            tracing::info!("{service}: signed in");
            if let Some(state) = there.upgrade() {
                state.lock().await.manager = Some(manager);
            }
        });
        state.asked = Some((address.clone(), AbortOnDropHandle::new(waits)));
        Ok(address)
    }
}

/// Puts a token into the header fields.
fn put(headers: &ArcSwap<HeaderMap>, token: &str) {
    if let Ok(mut value) = HeaderValue::try_from(format!("Bearer {token}")) {
        value.set_sensitive(true);
        let mut new = HeaderMap::clone(&headers.load());
        new.insert(AUTHORIZATION, value);
        headers.store(Arc::new(new));
    }
}

/// Waits for the browser to come back with what makes a token.
async fn wait(
    listener: TcpListener,
    origin: &str,
    mut session: OAuthState,
) -> Option<AuthorizationManager> {
    loop {
        let (mut browser, _) = listener.accept().await.ok()?;
        let asked = tokio::time::timeout(BROWSER_TIMEOUT, asked_for(&mut browser)).await;
        let Ok(Some(path)) = asked else { continue };
        let (status, text) = if !path.starts_with(CALLBACK) {
            ("404 Not Found", "There is nothing here.".to_owned())
        } else {
            match session
                .handle_callback_url(&format!("{origin}{path}"))
                .await
            {
                Ok(()) => (
                    "200 OK",
                    "You are signed in; this page can be closed.".to_owned(),
                ),
                Err(error) => {
                    tracing::warn!(%error, "somebody came back without being signed in");
                    (
                        "400 Bad Request",
                        format!("This did not sign you in: {error}"),
                    )
                }
            }
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        );
        let _ = browser.write_all(answer.as_bytes()).await;
        if status.starts_with("200") {
            return session.into_authorization_manager();
        }
    }
}

/// The path and the query of a request.
async fn asked_for(browser: &mut TcpStream) -> Option<String> {
    let mut lines = BufReader::new(browser.take(BROWSER_BYTES)).lines();
    let first = lines.next_line().await.ok()??;
    while lines
        .next_line()
        .await
        .ok()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut words = first.split(' ');
    let is_get = words.next() == Some("GET");
    words.next().filter(|_| is_get).map(str::to_owned)
}
