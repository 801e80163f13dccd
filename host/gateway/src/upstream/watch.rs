//! Resources that are watched at one server, and by how many.
//!
//! Clients share a connection, so one that stops watching must not end it for the others. A new
//! connection is asked for everything that is still watched, also where the server is reached in another
//! way by now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::json;
use tokio::sync::watch;

use super::{Link, Peer};
use crate::envelope::Json;

/// What is watched over one connection, and over what takes its place.
#[derive(Debug)]
pub(crate) struct Watches {
    /// The connection there is now.
    link: Mutex<Weak<Link>>,
    uris: Mutex<BTreeMap<String, usize>>,
    changed: watch::Sender<u64>,
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            link: Mutex::default(),
            uris: Mutex::default(),
            changed: watch::channel(0).0,
        }
    }
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.uris.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on this is the connection.
    pub(super) fn move_to(&self, link: &Arc<Link>) {
        *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(link);
    }

    /// Whether somebody watches something.
    pub(super) fn are_any(&self) -> bool {
        !self.lock().is_empty()
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
    watches: Arc<Watches>,
    uri: String,
}

impl Watching {
    pub(super) fn new(service: &Arc<str>, watches: &Arc<Watches>, uri: &str) -> Self {
        watches.add(uri);
        Self {
            service: service.clone(),
            watches: watches.clone(),
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
        if !self.watches.take(&self.uri) {
            return;
        }
        let link = self.watches.link.lock();
        let link = link.unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(link) = link {
            link.unsubscribe(&self.uri);
        }
    }
}
