//! What each server offers, asked for nobody in particular: when it has come up or come back, and when
//! it says that its lists have changed. So the members of a group are known to differ before a call
//! is sent from one to another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use backstop::event::EventKind;
use backstop::registry::TargetSpec;
use serde_json::json;
use tokio::sync::mpsc;

use super::lists::{LIST_DEADLINE, MAX_PAGES, has_not};
use super::{News, Router};
use crate::catalog::{Changed, Difference, Member, Offer, Section};
use crate::envelope::{self, Json, Payload};
use crate::exchange::Upstreams;
use crate::gateway::GatewayError;
use crate::upstream::{Crash, Heard, ServiceSpec, Upstream, UpstreamError, Wiring};

impl Router {
    /// Makes the servers exactly these. Where `targets` are given, the engine's targets become exactly
    /// those, in the same step.
    ///
    /// A server that leaves is drained: it gets no new request, those under way finish, and then its
    /// connection ends.
    pub(crate) fn replace(
        self: &Arc<Self>,
        services: Vec<ServiceSpec>,
        targets: Option<Vec<TargetSpec>>,
        heard: &mpsc::Sender<Heard>,
    ) -> Result<(), GatewayError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.upstreams();
        let mut new: Upstreams = HashMap::new();
        let mut order: Vec<Arc<str>> = Vec::new();
        for spec in services {
            let name = spec.name.clone();
            if new.contains_key(&name) {
                return Err(GatewayError::Twice(name));
            }
            if !order.contains(&spec.group) {
                order.push(spec.group.clone());
            }
            let upstream = match old.get(&name) {
                Some(old) if old.spec == spec => old.clone(),
                there => {
                    let same = there.and_then(|old| old.with_spec(spec.clone()));
                    let made = same.map_or_else(|| Upstream::new(spec, heard.clone()), Ok);
                    Arc::new(made.map_err(|source| GatewayError::Client {
                        service: name.clone(),
                        source,
                    })?)
                }
            };
            new.insert(name, upstream);
        }
        // A target that is there must be known how to reach, and so must one that has just been picked.
        let leaving: Vec<Arc<str>> = old
            .keys()
            .filter(|name| !new.contains_key(*name))
            .cloned()
            .collect();
        let registry = self.engine.registry();
        let drained: Vec<_> = leaving.iter().map(|name| registry.get(name)).collect();
        let mut both = new.clone();
        both.extend(
            leaving
                .iter()
                .filter_map(|name| Some((name.clone(), old.get(name)?.clone()))),
        );
        self.exchange.upstreams.store(Arc::new(both));
        if let Some(targets) = targets
            && let Err(refused) = registry.replace_all(targets)
        {
            self.exchange.upstreams.store(old);
            return Err(refused.into());
        }
        for (name, target) in leaving.into_iter().zip(drained) {
            let (router, gone) = (Arc::downgrade(self), old.get(&name).cloned());
            tokio::spawn(async move {
                if let Some(target) = target
                    && target.is_draining()
                {
                    target.drained().await;
                }
                // It may be back by now.
                let Some(router) = router.upgrade() else {
                    return;
                };
                let _one_at_a_time = router
                    .changing
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                router.exchange.upstreams.rcu(|there| {
                    let mut there = Upstreams::clone(there);
                    if let (Some(now), Some(gone)) = (there.get(&name), &gone)
                        && Arc::ptr_eq(now, gone)
                        && !router.catalog.has_member(&name)
                    {
                        there.remove(&name);
                    }
                    there
                });
            });
        }
        let mut members = Vec::new();
        for group in order {
            let of_group = |upstream: &&Arc<Upstream>| upstream.spec.group == group;
            let mut of_group: Vec<_> = new.values().filter(of_group).collect();
            let rank = registry.list_group(&group);
            of_group.sort_by_cached_key(|upstream| {
                let name = upstream.spec.name.clone();
                (rank.iter().position(|target| target.name == name), name)
            });
            members.extend(of_group.into_iter().map(|upstream| Member {
                name: upstream.spec.name.clone(),
                group: upstream.spec.group.clone(),
                trusted: upstream.spec.trusted,
            }));
        }
        self.tell(self.catalog.set_members(members));
        Ok(())
    }

    /// Keeps what a server lists, and tells whom it concerns.
    pub(super) fn keep(&self, member: &Arc<str>, section: Section, items: Vec<Json>) {
        self.tell(
            self.catalog
                .keep(member, section, Offer::read(section, items)),
        );
    }

    /// Tells clients which lists are others now, and operators which tools differ.
    pub(crate) fn tell(&self, changed: Changed) {
        let methods: HashSet<&str> = changed.sections.iter().map(|s| s.change()).collect();
        for method in methods {
            let text = envelope::notification_message(method, None);
            // Nobody listens: nothing is lost that anybody waits for.
            let _ = self.news.send(News { uri: None, text });
        }
        for difference in changed.differences {
            let Difference {
                group,
                tool,
                shown,
                other,
                part,
            } = difference;
            tracing::warn!(%group, tool, %shown, %other, part, "the members of a group mean different things by one tool");
            self.engine.announce(EventKind::ToolDiffers {
                group,
                tool,
                shown,
                other,
                part,
            });
        }
    }

    /// Reports a server that keeps ending.
    pub(crate) fn report(&self, crash: Crash) {
        let Crash {
            service,
            starts,
            reason,
            stderr,
            again_after,
        } = crash;
        tracing::warn!(%service, starts, reason, ?stderr, ?again_after, "keeps ending; it is started again");
        self.engine.announce(EventKind::TargetCrashing {
            target: service,
            starts,
            reason,
            stderr,
            again_after,
        });
    }

    /// Asks a server what it offers: its tools, and whatever else clients have asked its group for.
    /// One that is being asked already is not asked twice.
    pub(crate) async fn survey(&self, service: &Arc<str>) {
        let surveyed = || self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        if !surveyed().insert(service.clone()) {
            return;
        }
        if let Some(upstream) = self.upstream(service) {
            let mut sections = self.catalog.sections(&upstream.spec.group);
            if !sections.contains(&Section::Tools) {
                sections.push(Section::Tools);
            }
            for section in sections {
                let asked = tokio::time::timeout(LIST_DEADLINE, everything(&upstream, section));
                match asked.await {
                    Ok(Ok(items)) => self.keep(service, section, items),
                    // It is asked again when it is back.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, method = section.method(), "not listed")
                    }
                    Err(_) => tracing::debug!(%service, method = section.method(), "slow to list"),
                }
            }
        }
        surveyed().remove(service);
    }
}

/// All pages of a list of one server.
async fn everything(upstream: &Upstream, section: Section) -> Result<Vec<Json>, UpstreamError> {
    let mut items = Vec::new();
    let mut cursor: Option<Json> = None;
    if has_not(upstream, section) {
        return Ok(items);
    }
    for _ in 0..MAX_PAGES {
        let params = cursor
            .take()
            .map(|cursor| Json::of(&json!({})).with_members(&[("cursor", Some(&cursor))]));
        let answer = upstream
            .request(
                section.method(),
                params.as_ref(),
                &Wiring::default(),
                &|| {},
            )
            .await?;
        let result = match answer {
            Payload::Result(result) => result,
            Payload::Error(error) => {
                let text = format!("{:?} was refused: {error:?}", section.method());
                let fault = crate::upstream::Fault::Garbage;
                return Err(UpstreamError::fault(&upstream.spec.name, fault, text));
            }
        };
        let list = result.member(section.member());
        items.extend(list.map(|list| list.elements()).unwrap_or_default());
        cursor = result
            .member("nextCursor")
            .filter(|cursor| cursor.as_bytes() != b"null");
        if cursor.is_none() {
            break;
        }
    }
    Ok(items)
}
