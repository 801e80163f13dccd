//! What each server offers, asked for nobody in particular: when it has come up or come back, and when
//! it says that its lists have changed. So the members of a group are known to differ before a call
//! is sent from one to another.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use backstop::event::EventKind;
use backstop::registry::TargetSpec;
use serde_json::json;
use tokio::sync::mpsc;

use super::lists::{LIST_DEADLINE, MAX_PAGES, elements, has_not};
use super::{News, Router};
use crate::catalog::{Changed, Difference, Member, Offer, Section};
use crate::client::Client;
use crate::envelope::{self, Json, Payload};
use crate::exchange::Upstreams;
use crate::gateway::GatewayError;
use crate::upstream::{Crash, Heard, ServiceSpec, Upstream, UpstreamError, Wiring};

/// A server, and the client whose connection it is asked over where that has one of its own.
pub(super) type Surveyed = (Arc<str>, Option<Arc<str>>);

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
        let mut reached_anew = Vec::new();
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
                    let is_reached_anew = same.is_none();
                    let before = there.map(|there| &**there);
                    let new = || {
                        Upstream::new(
                            spec,
                            heard.clone(),
                            self.sole.clone(),
                            self.sampling.clone(),
                            self.workers.clone(),
                            before,
                        )
                    };
                    let made = same.map_or_else(new, Ok);
                    let made = Arc::new(made.map_err(|source| GatewayError::Client {
                        service: name.clone(),
                        source,
                    })?);
                    if let Some(there) = there.filter(|_| is_reached_anew) {
                        reached_anew.push((made.clone(), there.clone()));
                    }
                    made
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
        for (now, before) in reached_anew {
            tokio::spawn(async move { now.take_over(&before).await });
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

    /// Keeps what a server lists to a client, and tells whom it concerns.
    pub(super) fn keep(
        &self,
        member: &Arc<str>,
        section: Section,
        items: Vec<Json>,
        client: Option<&Arc<Client>>,
    ) {
        let offer = Offer::read(section, items);
        let catalog = self.catalog_of(client);
        let own = client.filter(|_| !Arc::ptr_eq(&catalog, &self.catalog));
        if let Some(client) = own {
            let offer = self.catalog.held(member, section, offer.clone());
            let changed = catalog.keep(member, section, offer);
            let methods: HashSet<&str> = changed.sections.iter().map(|s| s.change()).collect();
            for method in methods {
                client.tell(envelope::notification_message(method, None), None);
            }
        }
        // What operations there are to fall back to is looked up for all clients together.
        if own.is_none() || !self.catalog.knows_of(member, section) {
            self.tell(self.catalog.keep(member, section, offer));
        }
    }

    /// Tells clients which lists are others now, and operators which tools differ.
    pub(crate) fn tell(&self, changed: Changed) {
        let methods: HashSet<&str> = changed.sections.iter().map(|s| s.change()).collect();
        for method in methods {
            self.publish(News::new(method.into(), None, false));
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

    /// Asks a server what it offers, to this client where it has a connection of its own: its tools,
    /// and whatever else has been asked of its group. One that is being asked already is not asked
    /// twice.
    pub(crate) async fn survey(&self, service: &Arc<str>, client: Option<&Arc<Client>>) {
        let surveyed = || self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        let catalog = self.catalog_of(client);
        let client = client.filter(|client| client.can_be_asked());
        let key = (service.clone(), client.map(|client| client.id.clone()));
        if !surveyed().insert(key.clone()) {
            return;
        }
        if let Some(upstream) = self.upstream(service).filter(|there| !there.is_waiting()) {
            let mut sections = catalog.sections(&upstream.spec.group);
            if !sections.contains(&Section::Tools) {
                sections.push(Section::Tools);
            }
            for section in sections {
                let asked = everything(&upstream, section, client);
                match tokio::time::timeout(LIST_DEADLINE, asked).await {
                    Ok(Ok(items)) => self.keep(service, section, items, client),
                    // It is asked again when it is back.
                    Ok(Err(error)) => {
                        tracing::debug!(%error, method = section.method(), "not listed")
                    }
                    Err(_) => tracing::debug!(%service, method = section.method(), "slow to list"),
                }
            }
        }
        surveyed().remove(&key);
    }
}

/// All pages of a list of one server.
async fn everything(
    upstream: &Upstream,
    section: Section,
    client: Option<&Arc<Client>>,
) -> Result<Vec<Json>, UpstreamError> {
    let mut items = Vec::new();
    let mut cursor: Option<Json> = None;
    if has_not(upstream, section, client) {
        return Ok(items);
    }
    let wiring = Wiring {
        client: client.cloned(),
        ..Wiring::default()
    };
    for _ in 0..MAX_PAGES {
        let params = cursor
            .take()
            .map(|cursor| Json::of(&json!({})).with_members(&[("cursor", Some(&cursor))]));
        let answer = upstream
            .request(section.method(), params.as_ref(), &wiring, &|| {})
            .await?;
        let result = match answer {
            Payload::Result(result) => result,
            Payload::Error(error) => {
                let text = format!("{:?} was refused: {error:?}", section.method());
                let fault = crate::upstream::Fault::Garbage;
                return Err(UpstreamError::fault(&upstream.spec.name, fault, text));
            }
        };
        items.extend(elements(&result, section));
        cursor = result
            .member("nextCursor")
            .filter(|cursor| cursor.as_bytes() != b"null");
        if cursor.is_none() {
            break;
        }
    }
    Ok(items)
}
