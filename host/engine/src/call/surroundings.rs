//! What a strategy may ask during a call, as a snapshot that outlives the borrow of the call.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::Instant;

use super::CallFacts;
use crate::cache::CacheKey;
use crate::engine::Shared;
use crate::registry::{PickRequest, TargetKind};
use crate::strategy::{KnownGood, Surroundings, TargetView};

pub(super) struct CallSurroundings {
    pub(super) shared: Arc<Shared>,
    pub(super) group: Arc<str>,
    pub(super) call: Arc<CallFacts>,
    /// The arguments the caller gave.
    pub(super) arguments: Option<Bytes>,
    pub(super) present: Option<Arc<str>>,
    /// Asked for the present operation and arguments already, or unfit for them.
    pub(super) asked: Vec<Arc<str>>,
    pub(super) known: OnceLock<Option<KnownGood>>,
}

impl Surroundings for CallSurroundings {
    fn targets(&self) -> Vec<TargetView> {
        let now = Instant::now();
        self.shared
            .registry
            .list_group(&self.group)
            .iter()
            .map(|target| {
                let standing = target.standing(now);
                TargetView {
                    name: target.name.clone(),
                    kind: target.spec.kind.as_str(),
                    priority: target.spec.priority,
                    weight: target.spec.weight.get(),
                    healthy: standing.healthy,
                    admitted: standing.admitted,
                    tried: self.asked.contains(&target.name),
                    present: self.present.as_ref() == Some(&target.name),
                }
            })
            .collect()
    }

    fn best_target(&self, kind: Option<&str>) -> Option<Arc<str>> {
        // A kind nobody has is an answer, not a missing filter.
        let kind = match kind {
            None => None,
            Some(word) => Some(TargetKind::from_name(word)?),
        };
        let request = PickRequest {
            exclude: &self.asked,
            kind,
            name: None,
        };
        let now = Instant::now();
        let target = self.shared.registry.peek_best(&self.group, &request, now);
        // Where every circuit is open the registry names a last resort, which nobody may switch to.
        let target = target.filter(|target| target.standing(now).admitted)?;
        Some(target.name.clone())
    }

    fn target_attribute(&self, target: &str, key: &str) -> Option<String> {
        let target = self
            .shared
            .registry
            .get(target)
            .filter(|target| target.spec.group == self.group)?;
        target.attribute(key).map(Into::into)
    }

    fn last_known_good(&self) -> Option<KnownGood> {
        self.known
            .get_or_init(|| {
                let cache = self.shared.cache.load();
                let key = CacheKey::new(
                    self.call.level,
                    self.call.group.clone(),
                    self.call.operation.clone(),
                    self.arguments.as_deref(),
                );
                cache
                    .as_ref()?
                    .find(key, self.call.caller.as_ref(), Instant::now())
            })
            .clone()
    }

    fn wall_clock(&self) -> SystemTime {
        self.shared.wall_clock()
    }

    fn random(&self) -> u64 {
        (self.shared.random)()
    }
}
