//! Lists: one call of the engine per group, so that a group's list comes from its best server that
//! can be reached, and the last good one stays while none can.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backstop::Call;
use backstop::call::{Level, RepeatSafety};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use super::{Asker, Refused, Router, outcome};
use crate::catalog::{Catalog, Listing, Section};
use crate::envelope::{Json, Payload};
use crate::exchange::{McpAnswer, McpRequest};
use crate::upstream::Upstream;

/// How long a group's list may take.
pub(super) const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// Pages of one list; a server that never ends its list is cut off there.
const MAX_PAGES: usize = 256;

/// How long a group whose list could not be had is left alone by calls that look for a name.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Which groups' lists could not be had, and when.
#[derive(Debug, Default)]
pub(super) struct Tried {
    failed: HashMap<(Arc<str>, Section), Instant>,
}

impl Tried {
    fn is_due(&self, group: &Arc<str>, section: Section) -> bool {
        let failed = self.failed.get(&(group.clone(), section));
        failed.is_none_or(|at| at.elapsed() >= TRY_AGAIN)
    }
}

impl Router {
    /// The list of every group, as one page. It fails only where nothing is known of any group.
    pub(crate) async fn list(&self, section: Section, asker: &Asker) -> Result<Json, Refused> {
        let catalog = self.catalog_of(asker);
        let groups = catalog
            .groups
            .iter()
            .map(|group| self.refresh(&catalog, group, section, asker));
        let mut failed = None;
        let mut known = catalog.groups.is_empty();
        for (group, refreshed) in catalog.groups.iter().zip(join_all(groups).await) {
            match refreshed {
                Err(answer) => failed = failed.or(Some(answer)),
                // One server's whole list needs no other form.
                Ok(Some(whole)) if catalog.groups.len() == 1 => return Ok(whole),
                Ok(_) => {}
            }
            known |= catalog.knows(group, section);
        }
        match failed {
            Some(McpAnswer {
                payload: Payload::Error(error),
                ..
            }) if !known => Err(Refused {
                code: error
                    .member("code")
                    .and_then(|code| code.read().ok())
                    .unwrap_or(backstop::mcp::rpc::INTERNAL_ERROR),
                message: error.text_member("message").unwrap_or_default(),
                data: error.member("data"),
            }),
            _ => Ok(Json::of(&json!({}))
                .with_members(&[(section.member(), Some(&Json::of(&catalog.merged(section))))])),
        }
    }

    /// Makes sure that the lists are known as far as they can be.
    pub(super) async fn load(&self, catalog: &Catalog, section: Section, asker: &Asker) {
        let is_unknown = |group: &Arc<str>| !catalog.knows(group, section);
        if !catalog.groups.iter().any(is_unknown) {
            return;
        }
        let mut tried = self.loading.lock().await;
        let mut due = catalog.groups.clone();
        due.retain(|group| is_unknown(group) && tried.is_due(group, section));
        let refreshed = due
            .iter()
            .map(|group| self.refresh(catalog, group, section, asker));
        let loaded = join_all(refreshed).await;
        for (group, loaded) in due.iter().zip(loaded) {
            if loaded.is_err() {
                tried
                    .failed
                    .insert((group.clone(), section), Instant::now());
            }
        }
    }

    fn members(&self, group: &Arc<str>) -> impl Iterator<Item = &Arc<Upstream>> {
        let all = self.upstreams().values();
        all.filter(move |upstream| upstream.spec.group == *group)
    }

    /// Whether every server of a group has said that it has no such list.
    fn nobody_has(&self, group: &Arc<str>, section: Section, asker: &Asker) -> bool {
        self.members(group).all(|upstream| {
            upstream
                .known_peer(asker.client.as_ref())
                .is_some_and(|peer| peer.capabilities.member(section.capability()).is_none())
        })
    }

    /// Asks a group for its list. The list as its server gave it, where it came in one page.
    async fn refresh(
        &self,
        catalog: &Catalog,
        group: &Arc<str>,
        section: Section,
        asker: &Asker,
    ) -> Result<Option<Json>, McpAnswer> {
        if self.nobody_has(group, section, asker) {
            catalog.keep(group, section, Listing::default());
            return Ok(None);
        }
        let mut items = Vec::new();
        let mut whole = None;
        let mut served_by: Option<Arc<str>> = None;
        let mut cursor: Option<Json> = None;
        for _ in 0..MAX_PAGES {
            let mut call = Call::new(group.clone(), section.method())
                .level(Level::Other)
                .repeat_safety(RepeatSafety::ReadOnly)
                .deadline(LIST_DEADLINE);
            if let Some(caller) = &asker.caller {
                call = call.caller(caller.clone());
            }
            // A cursor means something only to the server that gave it.
            if let Some(target) = &served_by {
                call = call.pin(target.clone()).without_fallback();
            }
            let params = cursor
                .take()
                .map(|cursor| Json::of(&json!({})).with_members(&[("cursor", Some(&cursor))]));
            let mut request = McpRequest::new(section.method(), params);
            request.wiring.client = asker.client.clone();
            let outcome = match self.engine.call(&self.exchange, call, &request).await {
                Ok(outcome) => outcome,
                Err(failed) => return Err(outcome::tell(Err(failed))),
            };
            if let Payload::Result(result) = &outcome.answer.payload {
                items.extend(
                    result
                        .member(section.member())
                        .map(|list| list.elements())
                        .unwrap_or_default(),
                );
                cursor = result
                    .member("nextCursor")
                    .filter(|cursor| cursor.as_bytes() != b"null");
            }
            let first = served_by.is_none();
            served_by = outcome.served_by.clone().or(served_by);
            if cursor.is_none() || served_by.is_none() {
                whole = Some(outcome).filter(|_| first);
                break;
            }
        }
        // A tool's next call may go to any server of the group: one that is not trusted must not gain
        // by what another says.
        let trusted = self.members(group).all(|upstream| upstream.spec.trusted);
        let listing = Listing::read(section, items, trusted);
        // What operations there are to fall back to is looked up for all clients together.
        if !std::ptr::eq(catalog, &*self.catalog) && !self.catalog.knows(group, section) {
            self.catalog.keep(group, section, listing.clone());
        }
        catalog.keep(group, section, listing);
        Ok(
            whole.and_then(|outcome| match outcome::tell(Ok(outcome)).payload {
                Payload::Result(result) => Some(result),
                Payload::Error(_) => None,
            }),
        )
    }
}
