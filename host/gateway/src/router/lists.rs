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
use crate::catalog::{Catalog, Section};
use crate::client::Client;
use crate::envelope::{Json, Payload};
use crate::exchange::{McpAnswer, McpRequest};
use crate::upstream::Upstream;

/// How long a group's list may take.
pub(super) const LIST_DEADLINE: Duration = Duration::from_secs(10);
/// Pages of one list; a server that never ends its list is cut off there.
pub(super) const MAX_PAGES: usize = 256;

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
        let catalog = self.catalog_of(asker.client.as_ref());
        let groups = catalog.groups();
        let refreshed = groups
            .iter()
            .map(|group| self.refresh(group, section, asker));
        let mut failed = None;
        let mut only = None;
        let mut known = groups.is_empty();
        for (group, refreshed) in groups.iter().zip(join_all(refreshed).await) {
            match refreshed {
                Ok(whole) => only = whole.filter(|_| groups.len() == 1),
                Err(answer) => failed = failed.or(Some(answer)),
            }
            if catalog.knows(group, section) {
                known = true;
            } else {
                catalog.missed(group, section);
            }
        }
        let merged = catalog.merged(section);
        match (failed, only) {
            (
                Some(McpAnswer {
                    payload: Payload::Error(error),
                    ..
                }),
                _,
            ) if !known => Err(Refused {
                code: error
                    .member("code")
                    .and_then(|code| code.read().ok())
                    .unwrap_or(backstop::mcp::rpc::INTERNAL_ERROR),
                message: error.text_member("message").unwrap_or_default(),
                data: error.member("data"),
            }),
            // One server's whole list needs no other form, where nobody has anything to add.
            (_, Some(whole)) if elements(&whole, section) == merged => Ok(whole),
            _ => {
                Ok(Json::of(&json!({}))
                    .with_members(&[(section.member(), Some(&Json::of(&merged)))]))
            }
        }
    }

    /// Makes sure that the lists are known as far as they can be.
    pub(super) async fn load(&self, catalog: &Arc<Catalog>, section: Section, asker: &Asker) {
        let is_unknown = |group: &Arc<str>| !catalog.is_current(group, section);
        let groups = catalog.groups();
        if !groups.iter().any(is_unknown) {
            return;
        }
        let mut tried = self.loading.lock().await;
        let mut due = groups.to_vec();
        due.retain(|group| is_unknown(group) && tried.is_due(group, section));
        let look = |group| self.look(catalog, group, section, asker);
        let loaded = join_all(due.iter().map(look)).await;
        for (group, is_current) in due.iter().zip(loaded) {
            if !is_current {
                tried
                    .failed
                    .insert((group.clone(), section), Instant::now());
            }
        }
    }

    /// Asks for a list: whoever has shown that it changed, else any member.
    async fn look(
        &self,
        catalog: &Arc<Catalog>,
        group: &Arc<str>,
        section: Section,
        asker: &Asker,
    ) -> bool {
        let doubted = catalog.doubted(group, section);
        if doubted.is_empty() {
            return self.refresh(group, section, asker).await.is_ok();
        }
        let survey = |member| self.survey(member, asker.client.as_ref());
        join_all(doubted.iter().map(survey)).await;
        catalog.is_current(group, section)
    }

    /// Asks a group for its list. The list as its server gave it, where it came in one page.
    async fn refresh(
        &self,
        group: &Arc<str>,
        section: Section,
        asker: &Asker,
    ) -> Result<Option<Json>, McpAnswer> {
        let client = asker.client.as_ref();
        let upstreams = self.upstreams();
        let members = upstreams
            .values()
            .filter(|upstream| upstream.spec.group == *group);
        if members
            .clone()
            .all(|upstream| has_not(upstream, section, client))
        {
            for upstream in members {
                self.keep(&upstream.spec.name, section, Vec::new(), client);
            }
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
                items.extend(elements(result, section));
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
        // Without a server it was the last known good list, which is known already.
        if let Some(member) = served_by {
            self.keep(&member, section, items, client);
        }
        Ok(
            whole.and_then(|outcome| match outcome::tell(Ok(outcome)).payload {
                Payload::Result(result) => Some(result),
                Payload::Error(_) => None,
            }),
        )
    }
}

/// The items of a list.
pub(super) fn elements(result: &Json, section: Section) -> Vec<Json> {
    let list = result.member(section.member());
    list.map(|list| list.elements()).unwrap_or_default()
}

/// Whether a server has said to this client that it has no such list.
pub(super) fn has_not(upstream: &Upstream, section: Section, client: Option<&Arc<Client>>) -> bool {
    upstream
        .known_peer(client)
        .is_some_and(|peer| peer.capabilities.member(section.capability()).is_none())
}
