//! Who of a group may be asked, worked out once for as long as it holds.
//!
//! To look at every target for every request would make a large group slow to pick from. How targets stand
//! changes far less often than requests come: with a change of a circuit or of health, which a counter
//! tells, and with time, when an open circuit may be tried again or a recovered target bears more. Until
//! then a pick costs the same in a group of ten and of ten thousand.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::RegistryConfig;
use super::target::{Availability, Target};
use crate::random::below;

/// A recovering target takes its weight back in steps: so many over the whole slow start.
const RAMP_STEPS: u32 = 64;

/// How many of the heaviest of a deck are known by name. More than a call asks one after the other.
const KEPT: usize = 8;

/// What the targets are looked at with.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) config: &'a RegistryConfig,
    pub(super) now: Instant,
    /// How often the standing of any target has changed.
    pub(super) standings: u64,
}

/// Targets to draw from, by weight. A target is named by its place in the group.
#[derive(Debug, Default)]
pub(super) struct Deck {
    cards: Vec<Card>,
    /// Heaviest first; the first of equals first.
    pub(super) heaviest: SmallVec<[Card; KEPT]>,
    /// The shares of their weight that they bear now, in thousandths, added up.
    thousandths: u64,
    /// Not all have the same weight.
    is_uneven: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Card {
    pub(super) target: u32,
    pub(super) weight: u64,
    /// Its weight and that of all before it.
    sum: u64,
    share: u64,
}

impl Deck {
    fn add(&mut self, target: u32, weight: u64, share: u64) {
        let weight = weight * share;
        let sum = self.cards.last().map_or(0, |last| last.sum) + weight;
        let card = Card {
            target,
            weight,
            sum,
            share,
        };
        self.is_uneven |= self.cards.last().is_some_and(|last| last.weight != weight);
        self.cards.push(card);
        self.thousandths += share;
        let place = self
            .heaviest
            .iter()
            .rposition(|kept| kept.weight >= weight)
            .map_or(0, |last| last + 1);
        if place < KEPT {
            self.heaviest.truncate(KEPT - 1);
            self.heaviest.insert(place, card);
        }
    }

    pub(super) fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// The place of a card drawn by weight. There must be one.
    pub(super) fn draw(&self, random: u64) -> usize {
        if !self.is_uneven {
            // As below, without a search through memory that a large group does not keep in the cache.
            return below(random, self.cards.len() as u64) as usize;
        }
        let total = self.cards.last().map_or(0, |last| last.sum);
        let roll = below(random, total);
        self.cards.partition_point(|card| card.sum <= roll)
    }

    /// The cards of these targets.
    fn of<'a>(&'a self, targets: &'a [u32]) -> impl Iterator<Item = &'a Card> {
        targets.iter().filter_map(|target| {
            let place = self.cards.binary_search_by_key(target, |card| card.target);
            place.ok().and_then(|place| self.cards.get(place))
        })
    }
}

/// The targets of one priority.
#[derive(Debug)]
pub(super) struct Level {
    members: Range<u32>,
    pub(super) ready: Deck,
    /// Unhealthy, but live traffic has found nothing.
    pub(super) doubtful: Deck,
    /// Healthy, with a circuit that wants to know whether the target is well again.
    pub(super) probes: Vec<u32>,
    pub(super) doubtful_probes: Vec<u32>,
}

impl Level {
    /// What of the load it can bear without some of its targets, in percent, as Envoy reckons it:
    /// `min(100, 1.4 · 100 · healthy / total)`. A target that has just recovered counts in part. `None`
    /// where none is ready.
    pub(super) fn health(&self, without: &[u32], overprovisioning_percent: u16) -> Option<u32> {
        let (mut total, mut ready) = (self.members.len() as u64, self.ready.cards.len());
        let mut thousandths = self.ready.thousandths;
        if !without.is_empty() {
            total -= without
                .iter()
                .filter(|target| self.members.contains(target))
                .count() as u64;
            for card in self.ready.of(without) {
                ready -= 1;
                thousandths -= card.share;
            }
        }
        (ready > 0).then(|| level_health(thousandths, total, overprovisioning_percent))
    }
}

/// How the targets of a group stand, for as long as it holds.
#[derive(Debug)]
pub(super) struct Roster {
    standings: u64,
    /// When time alone makes it wrong.
    until: Option<Instant>,
    pub(super) levels: SmallVec<[Level; 2]>,
    /// Where no circuit of the group lets anything through: the best target.
    pub(super) last_resort: Option<u32>,
    /// Where the best level bears the whole load, and one target of it alone: that one. It is what every
    /// request is given that excludes nobody.
    pub(super) only: Option<u32>,
}

/// See [`Roster::only`].
fn only(levels: &[Level], overprovisioning_percent: u16) -> Option<u32> {
    for level in levels {
        if !level.probes.is_empty() {
            return None;
        }
        match (
            level.health(&[], overprovisioning_percent),
            level.ready.cards(),
        ) {
            (None, _) => {}
            (Some(100), [only]) => return Some(only.target),
            _ => return None,
        }
    }
    None
}

impl Roster {
    pub(super) fn is_current(&self, moment: &Moment<'_>) -> bool {
        self.standings == moment.standings && self.until.is_none_or(|until| moment.now < until)
    }

    /// Looks at every target. `levels` are runs of the same priority, highest first.
    pub(super) fn new(
        targets: &[Arc<Target>],
        levels: &[Range<usize>],
        moment: &Moment<'_>,
    ) -> Self {
        let mut until: Option<Instant> = None;
        let mut changes_at = |at: Instant| until = Some(until.map_or(at, |until| until.min(at)));
        let mut anybody = false;
        let mut look = |members: &Range<usize>| {
            let mut level = Level {
                members: members.start as u32..members.end as u32,
                ready: Deck::default(),
                doubtful: Deck::default(),
                probes: Vec::new(),
                doubtful_probes: Vec::new(),
            };
            for (target, at) in targets[members.clone()].iter().zip(level.members.clone()) {
                let (availability, changes) = target.outlook(moment.config, moment.now);
                if let Some(changes) = changes {
                    changes_at(changes);
                }
                anybody |= availability != Availability::Shut;
                let deck = match availability {
                    Availability::Ready => &mut level.ready,
                    Availability::Doubtful => &mut level.doubtful,
                    Availability::Probe => {
                        level.probes.push(at);
                        continue;
                    }
                    Availability::DoubtfulProbe => {
                        level.doubtful_probes.push(at);
                        continue;
                    }
                    Availability::Shut => continue,
                };
                let (share, ramping) = target.ramp(moment.config, moment.now);
                if let Some(whole) = ramping {
                    let step = (whole / RAMP_STEPS).max(Duration::from_millis(1));
                    changes_at(moment.now + step);
                }
                deck.add(at, u64::from(target.spec.weight.get()), share);
            }
            level
        };
        let levels: SmallVec<_> = levels.iter().map(&mut look).collect();
        let last_resort = (!anybody).then(|| {
            let places = targets.iter().enumerate();
            // One that is held is no resort: who holds it has a reason.
            let places = places.filter(|(_, target)| !target.is_held());
            let best = places.min_by_key(|(_, target)| resort_rank(target));
            best.map(|(at, _)| at as u32)
        });
        Self {
            standings: moment.standings,
            until,
            only: only(&levels, moment.config.balance.overprovisioning_percent),
            levels,
            last_resort: last_resort.flatten(),
        }
    }
}

/// Which of several targets that let nothing through is tried first: the smallest.
pub(super) fn resort_rank(target: &Target) -> impl Ord + use<> {
    (
        target.health().is_unhealthy(),
        std::cmp::Reverse(target.spec.priority),
        target.open_until(),
    )
}

fn level_health(healthy_thousandths: u64, total: u64, overprovisioning_percent: u16) -> u32 {
    let health = u64::from(overprovisioning_percent) * healthy_thousandths / (1000 * total.max(1));
    health.min(100) as u32
}

/// The load of each level in percent, from their health, best level first. Adds up to 100.
pub(super) fn shares(health: &[u32]) -> SmallVec<[u32; 4]> {
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
    // What rounding left over goes to the last level that carries anything, or to the best.
    let last = shares.iter().rposition(|share| *share > 0).unwrap_or(0);
    if let Some(last) = shares.get_mut(last) {
        *last += left;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    #[test]
    fn load_spills_over_to_the_next_level_as_in_envoy() {
        let of = |healthy: &[u64]| {
            let health: Vec<u32> = healthy
                .iter()
                .map(|healthy| level_health(healthy * 1000, 100, 140))
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

    #[test]
    fn the_heaviest_come_first_and_of_equals_the_first() {
        let mut deck = Deck::default();
        for (target, weight) in [5, 9, 5, 1, 9, 5, 5, 5, 5, 5].into_iter().enumerate() {
            deck.add(target as u32, weight, 1000);
        }
        let kept: Vec<u32> = deck.heaviest.iter().map(|card| card.target).collect();
        assert_eq!(kept, [1, 4, 0, 2, 5, 6, 7, 8]);
    }

    proptest! {
        #[test]
        fn shares_add_up_to_a_hundred(
            health in prop::collection::vec(0u32..=100, 1..8),
        ) {
            prop_assert_eq!(shares(&health).iter().sum::<u32>(), 100);
        }

        #[test]
        fn a_draw_hits_each_card_in_the_middle_of_its_weight(
            weights in prop::collection::vec(1u64..1_000, 1..40)
                .prop_flat_map(|weights| {
                    let even = vec![weights[0]; weights.len()];
                    prop_oneof![Just(weights), Just(even)]
                }),
        ) {
            let mut deck = Deck::default();
            for (target, weight) in weights.iter().enumerate() {
                deck.add(target as u32, *weight, 1000);
            }
            let total: u64 = weights.iter().sum();
            prop_assert_eq!(deck.is_uneven, weights.iter().any(|weight| *weight != weights[0]));
            let mut before = 0;
            for (place, weight) in weights.iter().enumerate() {
                let middle = (before as f64 + *weight as f64 / 2.0) / total as f64;
                prop_assert_eq!(deck.draw((middle * u64::MAX as f64) as u64), place);
                before += weight;
            }
        }
    }
}
