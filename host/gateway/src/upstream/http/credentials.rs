//! The header fields that let the gateway in at a server, and the place they come from.
//!
//! A token in a file is exchanged by others while the gateway runs. When the server refuses the one
//! that is known, the file is read again, once for all who are refused at the same time.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use reqwest::header::HeaderMap;

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

/// The header fields of one server, for all connections to it.
#[derive(Debug)]
pub(in crate::upstream) struct Credentials {
    headers: ArcSwap<HeaderMap>,
    reread: Option<Reread>,
    /// Held while they are read again.
    reading: tokio::sync::Mutex<()>,
}

impl Credentials {
    pub(in crate::upstream) fn new(headers: HeaderMap, reread: Option<Reread>) -> Self {
        Self {
            headers: ArcSwap::from_pointee(headers),
            reread,
            reading: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn headers(&self) -> Arc<HeaderMap> {
        self.headers.load_full()
    }

    /// Whether there are others than those that were refused.
    pub(super) async fn are_renewed(&self, service: &str, refused: &Arc<HeaderMap>) -> bool {
        let Some(reread) = self.reread.clone() else {
            return false;
        };
        let _one_at_a_time = self.reading.lock().await;
        if !Arc::ptr_eq(&self.headers(), refused) {
            return true;
        }
        match tokio::task::spawn_blocking(move || (reread.read)()).await {
            Ok(Ok(headers)) if headers != **refused => {
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
