//! Resources that are watched over one connection, and by how many.
//!
//! Clients share a connection, so one that stops watching must not end it for the others. A new
//! connection is asked for everything that is still watched.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::json;
use tokio::sync::watch;

use super::{Link, Peer};
use crate::envelope::Json;

/// What is watched over one connection.
#[derive(Debug)]
pub(crate) struct Watches {
    uris: Mutex<BTreeMap<String, usize>>,
    changed: watch::Sender<u64>,
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            uris: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.uris.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody watches this already.
    pub(super) fn has(&self, uri: &str) -> bool {
        self.lock().contains_key(uri)
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn add(&self, uri: &str) {
        *self.lock().entry(uri.to_owned()).or_default() += 1;
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Whether this was the last who watched it.
    fn take(&self, uri: &str) -> bool {
        let mut uris = self.lock();
        let Some(count) = uris.get_mut(uri) else {
            return false;
        };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        uris.remove(uri);
        drop(uris);
        self.changed.send_modify(|generation| *generation += 1);
        true
    }

    /// Tells when the resources that are watched are others.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The parameters of `subscriptions/listen` that ask for all that can be asked for; `None` where
    /// that is nothing.
    pub(super) fn listen_params(&self, peer: &Peer) -> Option<Json> {
        let tells = |list: &str, flag: &str| {
            let list = peer.capabilities.member(list);
            list.and_then(|list| list.member(flag))
                .is_some_and(|flag| flag.as_bytes() == b"true")
        };
        let mut wanted = serde_json::Map::new();
        for (list, name) in [
            ("tools", "toolsListChanged"),
            ("prompts", "promptsListChanged"),
            ("resources", "resourcesListChanged"),
        ] {
            if tells(list, "listChanged") {
                wanted.insert(name.into(), true.into());
            }
        }
        let uris = self.all();
        if !uris.is_empty() {
            wanted.insert("resourceSubscriptions".into(), uris.into());
        }
        (!wanted.is_empty()).then(|| Json::of(&json!({ "notifications": wanted })))
    }
}

/// One who watches a resource; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Watching {
    service: Arc<str>,
    link: Weak<Link>,
    uri: String,
}

impl Watching {
    pub(super) fn new(service: &Arc<str>, link: &Arc<Link>, uri: &str) -> Self {
        link.watches().add(uri);
        Self {
            service: service.clone(),
            link: Arc::downgrade(link),
            uri: uri.to_owned(),
        }
    }

    /// Where it is watched.
    pub(crate) fn service(&self) -> &Arc<str> {
        &self.service
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(link) = self.link.upgrade() else {
            return;
        };
        if link.watches().take(&self.uri) {
            link.unsubscribe(&self.uri);
        }
    }
}
