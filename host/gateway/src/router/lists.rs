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
use crate::catalog::Section;
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
        let groups = self.catalog.groups();
        let refreshed = groups
            .iter()
            .map(|group| self.refresh(group, section, asker));
        let mut failed = None;
        let mut known = groups.is_empty();
        for (group, refreshed) in groups.iter().zip(join_all(refreshed).await) {
            if let Err(answer) = refreshed {
                failed = failed.or(Some(answer));
            }
            if self.catalog.knows(group, section) {
                known = true;
            } else {
                self.catalog.missed(group, section);
            }
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
            _ => Ok(Json::of(&json!({})).with_members(&[(
                section.member(),
                Some(&Json::of(&self.catalog.merged(section))),
            )])),
        }
    }

    /// Makes sure that the lists are known as far as they can be.
    pub(super) async fn load(&self, section: Section) {
        let is_unknown = |group: &Arc<str>| !self.catalog.is_current(group, section);
        let groups = self.catalog.groups();
        if !groups.iter().any(is_unknown) {
            return;
        }
        let mut tried = self.loading.lock().await;
        let mut due = groups.to_vec();
        due.retain(|group| is_unknown(group) && tried.is_due(group, section));
        let asker = Asker::default();
        let look = |group| self.look(group, section, &asker);
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
    async fn look(&self, group: &Arc<str>, section: Section, asker: &Asker) -> bool {
        let doubted = self.catalog.doubted(group, section);
        if doubted.is_empty() {
            return self.refresh(group, section, asker).await.is_ok();
        }
        join_all(doubted.iter().map(|member| self.survey(member))).await;
        self.catalog.is_current(group, section)
    }

    /// Whether every server of a group has said that it has no such list.
    fn nobody_has(&self, group: &Arc<str>, section: Section) -> bool {
        let upstreams = self.upstreams();
        let mut members = upstreams
            .values()
            .filter(|upstream| upstream.spec.group == *group);
        members.all(|upstream| has_not(upstream, section))
    }

    async fn refresh(
        &self,
        group: &Arc<str>,
        section: Section,
        asker: &Asker,
    ) -> Result<(), McpAnswer> {
        if self.nobody_has(group, section) {
            for upstream in self.upstreams().values() {
                if upstream.spec.group == *group {
                    self.keep(&upstream.spec.name, section, Vec::new());
                }
            }
            return Ok(());
        }
        let mut items = Vec::new();
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
            let request = McpRequest::new(section.method(), params);
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
            served_by = outcome.served_by.or(served_by);
            if cursor.is_none() || served_by.is_none() {
                break;
            }
        }
        // Without a server it was the last known good list, which is known already.
        if let Some(member) = served_by {
            self.keep(&member, section, items);
        }
        Ok(())
    }
}

/// Whether a server has said that it has no such list.
pub(super) fn has_not(upstream: &Upstream, section: Section) -> bool {
    upstream
        .known_peer()
        .is_some_and(|peer| peer.capabilities.member(section.capability()).is_none())
}
