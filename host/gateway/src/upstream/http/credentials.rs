//! The header fields that let the gateway in at a server, and the place they come from.
//!
//! A token in a file is exchanged by others while the gateway runs. When the server refuses the one
//! that is known, the file is read again, once for all who are refused at the same time.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use reqwest::Url;
use reqwest::header::HeaderMap;

use super::oauth::{OAuth, OAuthSpec, SignedIn};
use crate::exchange::chain;

/// Reads the header fields of a server again.
#[derive(Clone)]
pub struct Reread {
    written: Arc<str>,
    read: Arc<dyn Fn() -> Result<HeaderMap, String> + Send + Sync>,
}

impl Reread {
    /// `written` says what is read; two that say the same are taken for one. `read` may block.
    pub fn new(
        written: impl Into<Arc<str>>,
        read: impl Fn() -> Result<HeaderMap, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            written: written.into(),
            read: Arc::new(read),
        }
    }
}

impl PartialEq for Reread {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

impl fmt::Debug for Reread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reread").field(&self.written).finish()
    }
}

/// What a refusal comes to.
pub(super) enum Refusal {
    /// There are others than those that were refused.
    Renewed,
    /// A person must sign in at this address.
    SignIn(String),
    /// It stands.
    Final,
}

/// The header fields of one server, for all connections to it.
#[derive(Debug)]
pub(in crate::upstream) struct Credentials {
    headers: Arc<ArcSwap<HeaderMap>>,
    reread: Option<Reread>,
    oauth: Option<OAuth>,
    /// Held while they are read again.
    reading: tokio::sync::Mutex<()>,
}

impl Credentials {
    pub(in crate::upstream) fn new(
        url: &Url,
        headers: HeaderMap,
        reread: Option<Reread>,
        oauth: Option<Box<OAuthSpec>>,
    ) -> Self {
        let headers = Arc::new(ArcSwap::from_pointee(headers));
        let oauth = oauth.map(|spec| OAuth::new(url.clone(), *spec, headers.clone()));
        Self {
            headers,
            reread,
            oauth,
            reading: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn headers(&self) -> Arc<HeaderMap> {
        self.headers.load_full()
    }

    /// Looks for others than those that a server refused with this status and this challenge.
    pub(super) async fn refused(
        &self,
        service: &str,
        known: &Arc<HeaderMap>,
        status: u16,
        challenge: Option<&str>,
    ) -> Refusal {
        if self.reread.is_none() && self.oauth.is_none() {
            return Refusal::Final;
        }
        let _one_at_a_time = self.reading.lock().await;
        if !Arc::ptr_eq(&self.headers(), known) {
            return Refusal::Renewed;
        }
        if let Some(reread) = self.reread.clone()
            && self.are_others(service, reread, known).await
        {
            return Refusal::Renewed;
        }
        let Some(oauth) = &self.oauth else {
            return Refusal::Final;
        };
        match oauth.renew(service, status, challenge).await {
            Ok(SignedIn::Yes) => Refusal::Renewed,
            Ok(SignedIn::By(address)) => Refusal::SignIn(address),
            Ok(SignedIn::No) => Refusal::Final,
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(service, error, "it cannot be signed in at");
                Refusal::Final
            }
        }
    }

    /// Whether what is read now is another than what was refused.
    async fn are_others(&self, service: &str, reread: Reread, known: &Arc<HeaderMap>) -> bool {
        match tokio::task::spawn_blocking(move || (reread.read)()).await {
            Ok(Ok(headers)) if headers != **known => {
                tracing::info!(service, "refused; its credentials have been read again");
                self.headers.store(Arc::new(headers));
                true
            }
            Ok(Ok(_)) => false,
            Ok(Err(reason)) => {
                tracing::warn!(service, reason, "its credentials cannot be read again");
                false
            }
            // Reading panicked, or the program ends.
            Err(error) => {
                tracing::warn!(service, %error, "its credentials cannot be read again");
                false
            }
        }
    }
}
