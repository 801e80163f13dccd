//! Which target is asked next.
//!
//! In order: targets that are healthy and whose circuit is closed, by priority level and weight, with a
//! recovering one tried in between; then, where no such target is left, unhealthy ones that live traffic
//! has found nothing against; then, where every circuit of the group is open, the best target, one request at a time.

use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::target::{Availability, Permit, Target};
use super::{RegistryConfig, TargetKind};
use crate::random::below;

/// Which target is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct PickRequest<'a> {
    /// Targets not to take: the call has asked them already.
    pub exclude: &'a [Arc<str>],
    /// Targets that are none for this request: they count neither as tried nor as left.
    pub unsuited: &'a [Arc<str>],
    /// Only targets of this kind.
    pub kind: Option<TargetKind>,
    /// Only this target.
    pub name: Option<&'a str>,
}

/// A target to ask, and the leave to ask it.
#[derive(Debug)]
pub struct Pick {
    /// The target.
    pub target: Arc<Target>,
    /// The leave.
    pub permit: Permit,
}

/// The targets of one group, highest priority first.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) targets: Vec<Arc<Target>>,
    /// Runs of the same priority.
    levels: SmallVec<[Range<usize>; 2]>,
    /// Whether any of them limits its requests.
    limited: bool,
}

/// A priority level with something healthy in it.
type Scored = (Range<usize>, u32);

/// A circuit that may be tried, and what a healthy level holds.
struct Survey {
    /// Recovering targets found on the way to the levels that take load.
    probes: SmallVec<[usize; 2]>,
    scored: SmallVec<[Scored; 4]>,
}

impl Group {
    pub(super) fn new(mut targets: Vec<Arc<Target>>) -> Self {
        targets.sort_by(|a, b| {
            b.spec
                .priority
                .cmp(&a.spec.priority)
                .then_with(|| a.name.cmp(&b.name))
        });
        let mut levels: SmallVec<[Range<usize>; 2]> = SmallVec::new();
        for (index, target) in targets.iter().enumerate() {
            match levels.last_mut() {
                Some(level) if targets[level.start].spec.priority == target.spec.priority => {
                    level.end = index + 1
                }
                _ => levels.push(index..index + 1),
            }
        }
        let limited = targets.iter().any(|target| target.is_limited());
        Self {
            targets,
            levels,
            limited,
        }
    }

    /// Picks a target and asks its circuit.
    pub(super) fn pick(
        &self,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Pick> {
        let permit = match request.name {
            Some(name) => {
                let target = self.targets.iter().find(|target| *target.name == *name)?;
                if !eligible(target, request) {
                    return None;
                }
                target.admit(config, now, false)
            }
            None => self
                .pick_ready(request, config, now, random)
                .or_else(|| self.pick_doubtful(request, config, now, random)),
        };
        let permit = permit.or_else(|| {
            self.last_resort(request, config, now)?
                .admit(config, now, true)
        })?;
        Some(Pick {
            target: permit.target().clone(),
            permit,
        })
    }

    /// The target a pick would most likely take now.
    pub(super) fn peek(
        &self,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
    ) -> Option<Arc<Target>> {
        if let Some(name) = request.name {
            let target = self.targets.iter().find(|target| *target.name == *name)?;
            let open =
                eligible(target, request) && target.availability(config, now) != Availability::Shut;
            return open
                .then(|| target.clone())
                .or_else(|| self.last_resort(request, config, now).cloned());
        }
        let survey = self.survey(request, config, now);
        if let Some(index) = survey.probes.first() {
            return Some(self.targets[*index].clone());
        }
        let mut best: Option<((Availability, bool), u64, &Arc<Target>)> = None;
        for target in self
            .targets
            .iter()
            .filter(|target| eligible(target, request))
        {
            let availability = target.availability(config, now);
            let standing = (availability, self.limited && !target.has_room(now));
            let weight = target.present_weight(config, now);
            // The first of equals stays: the list is sorted by priority.
            let better = best.is_none_or(|(found, heaviest, other)| {
                standing < found
                    || standing == found
                        && other.spec.priority == target.spec.priority
                        && weight > heaviest
            });
            if availability != Availability::Shut && better {
                best = Some((standing, weight, target));
            }
        }
        best.map(|(_, _, target)| target)
            .or_else(|| self.last_resort(request, config, now))
            .cloned()
    }

    /// Looks at the levels from the top, as far as they are needed to carry the load.
    fn survey(&self, request: &PickRequest<'_>, config: &RegistryConfig, now: Instant) -> Survey {
        let mut survey = Survey {
            probes: SmallVec::new(),
            scored: SmallVec::new(),
        };
        let mut sum = 0;
        for level in &self.levels {
            let (mut total, mut ready) = (0, 0);
            for index in level.clone() {
                let target = &self.targets[index];
                if !eligible(target, request) {
                    continue;
                }
                total += 1;
                match target.availability(config, now) {
                    Availability::Ready => ready += 1,
                    Availability::Probe => survey.probes.push(index),
                    _ => {}
                }
            }
            if ready > 0 {
                let score = level_health(ready, total, config.balance.overprovisioning_percent);
                sum += score;
                survey.scored.push((level.clone(), score));
                if sum >= 100 {
                    break;
                }
            }
        }
        survey
    }

    fn pick_ready(
        &self,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let survey = self.survey(request, config, now);
        for index in &survey.probes {
            if let Some(permit) = self.targets[*index].admit(config, now, false) {
                return Some(permit);
            }
        }
        let level = match survey.scored.as_slice() {
            [] => return None,
            [(only, _)] => only,
            several => {
                let scores: SmallVec<[u32; 4]> = several.iter().map(|(_, score)| *score).collect();
                let mut roll = below(random(), 100) as u32;
                let chosen = shares(&scores).into_iter().position(|share| {
                    let hit = roll < share;
                    roll = roll.saturating_sub(share);
                    hit
                });
                &several[chosen.unwrap_or(0)].0
            }
        };
        self.pick_weighted(
            level.clone(),
            Availability::Ready,
            request,
            config,
            now,
            random,
        )
        // A circuit opened in between: whatever else is ready will do.
        .or_else(|| {
            survey.scored.iter().find_map(|(level, _)| {
                self.pick_weighted(
                    level.clone(),
                    Availability::Ready,
                    request,
                    config,
                    now,
                    random,
                )
            })
        })
    }

    fn pick_doubtful(
        &self,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let mut levels = self.levels.iter();
        levels
            .find_map(|level| {
                self.pick_weighted(
                    level.clone(),
                    Availability::Doubtful,
                    request,
                    config,
                    now,
                    random,
                )
            })
            .or_else(|| {
                let mut eligible = self
                    .targets
                    .iter()
                    .filter(|target| eligible(target, request));
                eligible.find_map(|target| target.admit(config, now, false))
            })
    }

    fn pick_weighted(
        &self,
        level: Range<usize>,
        wanted: Availability,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let targets = &self.targets[level];
        let fits = |target: &Arc<Target>| {
            eligible(target, request) && target.availability(config, now) == wanted
        };
        // Who would be let through at once goes first; where nobody would, the wait is shared by weight.
        let only_with_room = self.limited
            && targets
                .iter()
                .any(|target| fits(target) && target.has_room(now));
        let matches =
            |target: &&Arc<Target>| fits(target) && (!only_with_room || target.has_room(now));
        let mut candidates = targets.iter().filter(matches);
        let first = candidates.next()?;
        let chosen = match candidates.next() {
            None => first,
            Some(_) => {
                let sum = targets
                    .iter()
                    .filter(matches)
                    .map(|target| target.present_weight(config, now))
                    .sum();
                let mut roll = below(random(), sum);
                let hit = targets.iter().filter(matches).find(|target| {
                    let weight = target.present_weight(config, now);
                    let hit = roll < weight;
                    roll = roll.saturating_sub(weight);
                    hit
                });
                hit.unwrap_or(first)
            }
        };
        chosen.admit(config, now, false)
    }

    /// The best target where no circuit of the group lets anything through, the excluded ones included:
    /// a cooling target is not asked because a better one has just failed.
    fn last_resort(
        &self,
        request: &PickRequest<'_>,
        config: &RegistryConfig,
        now: Instant,
    ) -> Option<&Arc<Target>> {
        let of_kind = || {
            self.targets
                .iter()
                .filter(|target| is_of_kind(target, request))
        };
        if of_kind().any(|target| target.availability(config, now) != Availability::Shut) {
            return None;
        }
        of_kind()
            .filter(|target| eligible(target, request))
            .min_by_key(|target| {
                (
                    target.health().is_unhealthy(),
                    std::cmp::Reverse(target.spec.priority),
                    target.open_until(),
                )
            })
    }
}

fn is_of_kind(target: &Target, request: &PickRequest<'_>) -> bool {
    request.kind.is_none_or(|kind| target.spec.kind == kind)
        && !request.unsuited.contains(&target.name)
        && !target.is_draining()
}

fn eligible(target: &Target, request: &PickRequest<'_>) -> bool {
    is_of_kind(target, request)
        && request.name.is_none_or(|name| *target.name == *name)
        && !request.exclude.contains(&target.name)
}

/// Envoy: `health(P) = min(100, 1.4 · 100 · healthy / total)`.
fn level_health(healthy: u32, total: u32, overprovisioning_percent: u16) -> u32 {
    let health = u64::from(overprovisioning_percent) * u64::from(healthy) / u64::from(total.max(1));
    health.min(100) as u32
}

/// The load of each level in percent, from their health, best level first. Adds up to 100.
fn shares(health: &[u32]) -> SmallVec<[u32; 4]> {
    let sum: u32 = health.iter().sum();
    let total = sum.clamp(1, 100);
    let mut left = 100;
    let mut shares: SmallVec<[u32; 4]> = health
        .iter()
        .map(|health| {
            let share = ((health * 100 + total / 2) / total).min(left);
            left -= share;
            share
        })
        .collect();
    // What rounding left over goes to the last level that carries anything.
    if let Some(last) = shares.iter_mut().rev().find(|share| **share > 0) {
        *last += left;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_spills_over_to_the_next_level_as_in_envoy() {
        let of = |healthy: &[u32]| {
            let health: Vec<u32> = healthy
                .iter()
                .map(|healthy| level_health(*healthy, 100, 140))
                .collect();
            shares(&health).to_vec()
        };
        assert_eq!(of(&[100, 100]), [100, 0]);
        assert_eq!(of(&[72, 100]), [100, 0]);
        assert_eq!(of(&[71, 100]), [99, 1]);
        assert_eq!(of(&[50, 100]), [70, 30]);
        assert_eq!(of(&[25, 25, 20]), [36, 36, 28]);
        assert_eq!(of(&[0, 25]), [0, 100]);
    }
}
