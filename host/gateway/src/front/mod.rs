//! Fronts: where clients come in. Each reads messages, has them answered side by side, and lets a
//! client that gives up take its request with it.

pub(crate) mod http;
pub(crate) mod stdio;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::envelope::{Envelope, Json};
use crate::router::News;

/// What is known of one client: the requests it waits for and the resources it watches.
#[derive(Debug, Default)]
pub(crate) struct Session {
    requests: Mutex<HashMap<Bytes, CancellationToken>>,
    watched: Mutex<HashSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Registers a request for as long as the guard lives.
    pub(crate) fn begin(self: &Arc<Self>, id: &Json) -> Running {
        let cancelled = CancellationToken::new();
        lock(&self.requests).insert(id.bytes(), cancelled.clone());
        Running {
            session: self.clone(),
            id: id.bytes(),
            cancelled,
        }
    }

    /// Takes note of a message that is no request.
    pub(crate) fn heed(&self, envelope: &Envelope) {
        let Envelope::Notification {
            method,
            params: Some(params),
        } = envelope
        else {
            return;
        };
        if &**method == "notifications/cancelled" {
            let request = params
                .member("requestId")
                .and_then(|id| lock(&self.requests).get(&id.bytes()).cloned());
            if let Some(request) = request {
                request.cancel();
            }
        }
    }

    /// Takes note of a subscription.
    pub(crate) fn watch(&self, method: &str, params: Option<&Json>) {
        let Some(uri) = params.and_then(|params| params.text_member("uri")) else {
            return;
        };
        match method {
            "resources/subscribe" => drop(lock(&self.watched).insert(uri)),
            "resources/unsubscribe" => drop(lock(&self.watched).remove(&uri)),
            _ => {}
        }
    }

    /// Whether this client is to be told.
    pub(crate) fn wants(&self, news: &News) -> bool {
        news.uri
            .as_ref()
            .is_none_or(|uri| lock(&self.watched).contains(uri))
    }
}

/// A request somebody waits for.
pub(crate) struct Running {
    session: Arc<Session>,
    id: Bytes,
    /// Set when the client takes the request back.
    pub(crate) cancelled: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.session.requests).remove(&self.id);
    }
}
