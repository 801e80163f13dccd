//! Which target is asked next.
//!
//! In order: targets that are healthy and whose circuit is closed, by priority level, with a recovering one
//! tried in between; then, where no such target is left, unhealthy ones that live traffic has found nothing
//! against; then, where every circuit of the group is open, the best target, one request at a time.
//!
//! Levels share the load as in Envoy. Within a level two targets are drawn by weight, and the one with less
//! to do for its weight is taken (Mitzenmacher: The Power of Two Choices, 2001): a slow target gets less
//! without anybody having to know that it is slow.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use arc_swap::{ArcSwapOption, Guard};
use smallvec::SmallVec;

use super::roster::{Card, Deck, Moment, Roster, resort_rank, shares};
use super::target::Target;
use super::{Permit, TargetKind};
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

impl PickRequest<'_> {
    /// Whether it leaves the choice to the registry.
    fn is_plain(&self) -> bool {
        self.exclude.is_empty() && self.unsuited.is_empty() && self.name.is_none()
    }
}

/// A target to ask, and the leave to ask it.
#[derive(Debug)]
pub struct Pick {
    /// The target.
    pub target: Arc<Target>,
    /// The leave.
    pub permit: Permit,
}

/// How often a pick begins anew because the target it chose has changed in between.
const TRIES: usize = 3;

/// How many targets are looked at, at most, for one that has room.
const LOOKS: usize = 64;

/// Targets a request must not take, by their place.
type Excluded = SmallVec<[u32; 4]>;

/// The targets of one group.
#[derive(Debug)]
pub(super) struct Group {
    all: Pool,
    /// Services and models apart, where the group has both.
    by_kind: Option<[Pool; 2]>,
}

impl Group {
    pub(super) fn new(targets: Vec<Arc<Target>>) -> Self {
        let of = |kind| {
            let of_kind = targets.iter().filter(|target| target.spec.kind == kind);
            of_kind.cloned().collect::<Vec<_>>()
        };
        let (services, models) = (of(TargetKind::Service), of(TargetKind::Model));
        let is_mixed = !services.is_empty() && !models.is_empty();
        Self {
            by_kind: is_mixed.then(|| [Pool::new(services), Pool::new(models)]),
            all: Pool::new(targets),
        }
    }

    /// Highest priority first.
    pub(super) fn targets(&self) -> &[Arc<Target>] {
        &self.all.targets
    }

    fn pool(&self, kind: Option<TargetKind>) -> Option<&Pool> {
        match (kind, &self.by_kind) {
            (None, _) => Some(&self.all),
            (Some(TargetKind::Service), Some([services, _])) => Some(services),
            (Some(TargetKind::Model), Some([_, models])) => Some(models),
            (Some(kind), None) => {
                let uniform = self.all.targets.first();
                uniform
                    .filter(|first| first.spec.kind == kind)
                    .map(|_| &self.all)
            }
        }
    }

    /// Picks a target and asks its circuit.
    pub(super) fn pick(
        &self,
        request: &PickRequest<'_>,
        moment: &Moment<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        self.pool(request.kind)?.pick(request, moment, random)
    }

    /// The target a pick would most likely take now.
    pub(super) fn peek(
        &self,
        request: &PickRequest<'_>,
        moment: &Moment<'_>,
    ) -> Option<&Arc<Target>> {
        self.pool(request.kind)?.peek(request, moment)
    }
}

/// Targets that stand in for one another, highest priority first.
struct Pool {
    targets: Vec<Arc<Target>>,
    /// Runs of the same priority.
    levels: SmallVec<[Range<usize>; 2]>,
    by_name: HashMap<Arc<str>, u32>,
    /// Whether any of them limits its requests.
    limited: bool,
    roster: ArcSwapOption<Roster>,
    /// Held by the one who makes a new roster.
    making: Mutex<()>,
}

impl Pool {
    fn new(mut targets: Vec<Arc<Target>>) -> Self {
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
        let places = (0..).zip(&targets);
        Self {
            by_name: places
                .map(|(at, target)| (target.name.clone(), at))
                .collect(),
            limited: targets.iter().any(|target| target.is_limited()),
            targets,
            levels,
            roster: ArcSwapOption::empty(),
            making: Mutex::new(()),
        }
    }

    fn target(&self, at: u32) -> &Arc<Target> {
        &self.targets[at as usize]
    }

    fn place_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    fn excluded(&self, request: &PickRequest<'_>) -> Excluded {
        let names = request.exclude.iter().chain(request.unsuited);
        let mut places: Excluded = names.filter_map(|name| self.place_of(name)).collect();
        // A caller may name a target twice; what is left of a level is reckoned by their number.
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Where no target that could serve lets anything through, the one that is tried all the same: `None`
    /// inside where the call has tried one, since another is not asked because that one has failed.
    fn last_resort(
        &self,
        roster: &Roster,
        request: &PickRequest<'_>,
        moment: &Moment<'_>,
    ) -> Option<Option<u32>> {
        let untried = || {
            let mut names = request.exclude.iter();
            names.all(|name| request.unsuited.contains(name) || self.place_of(name).is_none())
        };
        if request.unsuited.is_empty() {
            let best = roster.last_resort?;
            return Some(untried().then_some(best));
        }
        let suited = (0u32..)
            .zip(&self.targets)
            .filter(|(_, target)| !request.unsuited.contains(&target.name) && !target.is_held());
        let mut standings = suited
            .clone()
            .map(|(_, target)| target.standing(moment.now));
        if standings.any(|standing| standing.admitted) {
            return None;
        }
        let (best, _) = suited.min_by_key(|(_, target)| resort_rank(target))?;
        Some(untried().then_some(best))
    }

    /// How the targets stand. While another makes a new roster the old one serves: the circuits have the
    /// last word in any case.
    fn roster(&self, moment: &Moment<'_>) -> Guard<Option<Arc<Roster>>> {
        let present = self.roster.load();
        if present
            .as_ref()
            .is_some_and(|roster| roster.is_current(moment))
        {
            return present;
        }
        let _making = match self.making.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) if present.is_some() => return present,
            Err(TryLockError::WouldBlock) => {
                self.making.lock().unwrap_or_else(PoisonError::into_inner)
            }
        };
        let new = Roster::new(&self.targets, &self.levels, moment);
        self.roster.store(Some(Arc::new(new)));
        self.roster.load()
    }

    fn pick(
        &self,
        request: &PickRequest<'_>,
        moment: &Moment<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let admit = |at: u32, forced| self.target(at).admit(moment.config, moment.now, forced);
        if request.is_plain()
            && let Some(roster) = self.roster(moment).as_ref()
            && let Some(permit) = roster.only.and_then(|only| admit(only, false))
        {
            return Some(permit);
        }
        let excluded = self.excluded(request);
        if let Some(name) = request.name {
            let at = self.place_of(name).filter(|at| !excluded.contains(at))?;
            return admit(at, false).or_else(|| {
                let roster = self.roster(moment);
                self.last_resort(roster.as_ref()?, request, moment)?;
                admit(at, true)
            });
        }
        for _ in 0..TRIES {
            let roster = self.roster(moment);
            let roster = roster.as_ref()?;
            if let Some(best) = self.last_resort(roster, request, moment) {
                return best.and_then(|best| admit(best, true));
            }
            let permit = self
                .pick_ready(roster, &excluded, moment, random)
                .or_else(|| self.pick_doubtful(roster, &excluded, moment, random));
            if permit.is_some() {
                return permit;
            }
        }
        // Circuits open and close faster than they can be read: whoever lets a request through.
        let others = (0u32..).zip(&self.targets);
        others
            .filter(|(at, _)| !excluded.contains(at))
            .find_map(|(_, target)| target.admit(moment.config, moment.now, false))
    }

    fn pick_ready(
        &self,
        roster: &Roster,
        excluded: &[u32],
        moment: &Moment<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        let overprovisioning = moment.config.balance.overprovisioning_percent;
        let (mut decks, mut healths) = (SmallVec::<[&Deck; 4]>::new(), SmallVec::<[u32; 4]>::new());
        let mut sum = 0;
        for level in &roster.levels {
            if let Some(permit) = self.try_each(&level.probes, excluded, moment) {
                return Some(permit);
            }
            if let Some(health) = level.health(excluded, overprovisioning) {
                decks.push(&level.ready);
                healths.push(health);
                sum += health;
                if sum >= 100 {
                    break;
                }
            }
        }
        let deck = match decks.as_slice() {
            [] => return None,
            [only] => only,
            several => {
                let mut roll = below(random(), 100) as u32;
                let chosen = shares(&healths).into_iter().position(|share| {
                    let hit = roll < share;
                    roll = roll.saturating_sub(share);
                    hit
                });
                several.get(chosen.unwrap_or(0))?
            }
        };
        self.draw(deck, excluded, moment, random)?
            .admit(moment.config, moment.now, false)
    }

    fn pick_doubtful(
        &self,
        roster: &Roster,
        excluded: &[u32],
        moment: &Moment<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Permit> {
        // Where a ready one is left that has just been taken away, it is not yet the turn of these.
        let overprovisioning = moment.config.balance.overprovisioning_percent;
        let mut levels = roster.levels.iter();
        if levels.any(|level| level.health(excluded, overprovisioning).is_some()) {
            return None;
        }
        let mut levels = roster.levels.iter();
        levels
            .find_map(|level| self.draw(&level.doubtful, excluded, moment, random))
            .and_then(|target| target.admit(moment.config, moment.now, false))
            .or_else(|| {
                let mut levels = roster.levels.iter();
                levels.find_map(|level| self.try_each(&level.doubtful_probes, excluded, moment))
            })
    }

    /// The first of these whose circuit lets a request through.
    fn try_each(&self, places: &[u32], excluded: &[u32], moment: &Moment<'_>) -> Option<Permit> {
        let mut places = places.iter().filter(|at| !excluded.contains(at));
        places.find_map(|at| self.target(*at).admit(moment.config, moment.now, false))
    }

    /// Draws two by weight, and takes the one with less to do for its weight.
    fn draw(
        &self,
        deck: &Deck,
        excluded: &[u32],
        moment: &Moment<'_>,
        random: &mut dyn FnMut() -> u64,
    ) -> Option<&Arc<Target>> {
        let fits = |card: &&Card| !excluded.contains(&card.target);
        let cards = match deck.cards() {
            [] => return None,
            [only] => return fits(&only).then(|| self.target(only.target)),
            several => several,
        };
        // From a card drawn on, around: where it does not fit, the next one that does.
        let mut cards_from_drawn = || {
            let place = deck.draw(random());
            cards[place..].iter().chain(&cards[..place])
        };
        let first = cards_from_drawn().find(fits)?;
        let second = cards_from_drawn()
            .filter(fits)
            .find(|card| card.target != first.target)
            .unwrap_or(first);
        let (one, other) = (self.target(first.target), self.target(second.target));
        let load =
            |target: &Target, card: &Card| u128::from(target.in_flight()) * u128::from(card.weight);
        // Each one's load over its own weight: multiplied out, so by the other's.
        let (one_load, other_load) = (load(one, second), load(other, first));
        if !self.limited {
            return Some(if other_load < one_load { other } else { one });
        }
        // Who would be let through at once goes first; where nobody would, the wait is shared.
        let (one_free, other_free) = (one.has_room(moment.now), other.has_room(moment.now));
        match (one_free, other_free) {
            (true, true) if other_load < one_load => Some(other),
            (true, _) => Some(one),
            (false, true) => Some(other),
            (false, false) => {
                let looked = cards_from_drawn().take(LOOKS).filter(fits);
                let mut looked = looked.map(|card| self.target(card.target));
                looked
                    .find(|target| target.has_room(moment.now))
                    .or(Some(one))
            }
        }
    }

    fn peek(&self, request: &PickRequest<'_>, moment: &Moment<'_>) -> Option<&Arc<Target>> {
        let excluded = self.excluded(request);
        let roster = self.roster(moment);
        let roster = roster.as_ref()?;
        if let Some(name) = request.name {
            let target = self.target(self.place_of(name).filter(|at| !excluded.contains(at))?);
            let asked = target.standing(moment.now).admitted
                || self.last_resort(roster, request, moment).is_some();
            return asked.then_some(target);
        }
        if let Some(best) = self.last_resort(roster, request, moment) {
            return best.map(|best| self.target(best));
        }
        let overprovisioning = moment.config.balance.overprovisioning_percent;
        let first_of = |places: &[u32]| {
            let mut places = places.iter().filter(|at| !excluded.contains(at));
            places.next().map(|at| self.target(*at))
        };
        for level in &roster.levels {
            if let Some(probe) = first_of(&level.probes) {
                return Some(probe);
            }
            if level.health(&excluded, overprovisioning).is_some() {
                return self.heaviest(&level.ready, &excluded, moment);
            }
        }
        let mut levels = roster.levels.iter();
        levels
            .find_map(|level| self.heaviest(&level.doubtful, &excluded, moment))
            .or_else(|| {
                let mut levels = roster.levels.iter();
                levels.find_map(|level| first_of(&level.doubtful_probes))
            })
    }

    /// The heaviest of a deck that has room, and of several the one with the least to do.
    fn heaviest(&self, deck: &Deck, excluded: &[u32], moment: &Moment<'_>) -> Option<&Arc<Target>> {
        let fits = |card: &&Card| !excluded.contains(&card.target);
        let full = |card: &Card| self.limited && !self.target(card.target).has_room(moment.now);
        let best = deck.heaviest.iter().filter(fits).min_by_key(|card| {
            (
                full(card),
                std::cmp::Reverse(card.weight),
                self.target(card.target).in_flight(),
            )
        });
        // The heaviest are all excluded or full: whoever else is left.
        let best = match best {
            Some(best) if !full(best) => Some(best),
            best => {
                let mut others = deck.cards().iter().filter(fits);
                others.find(|card| !full(card)).or(best)
            }
        };
        best.map(|card| self.target(card.target))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.targets).finish()
    }
}
