//! The circuit breaker: stops asking a target that live traffic found ill, and finds out when it is well.
//!
//! Every request to a sick target costs its caller a timeout and the target the load that may keep it
//! sick. The circuit is **closed** while all is well. It **opens** after failures in a row, or a failure
//! rate over a window. Once the open time is over it lets a few requests through, **half-open**: good
//! results close it, a bad one opens it for longer. It never stays open for good: the open time has a
//! cap, and after it there is always one more try.
//!
//! Where the configuration says from when on an answer is slow, a rate of slow ones opens it as well, and a
//! slow answer does not pass for a good one while half-open.
//!
//! A request carries the circuit's *generation*, which grows with each change of state; a result of an
//! older generation says nothing about the present one and is ignored. A half-open request holds a
//! *lease*, which returns however the request ends, and expires where it does not end.
//!
//! While closed, admission is one atomic load and a success two atomic operations; locks belong to the other states.

mod config;
mod window;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

pub use config::{CircuitConfig, CircuitConfigError};
use window::Window;

/// The state of a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// Requests pass.
    Closed,
    /// No request passes until the open time is over.
    Open,
    /// A few requests pass, to find out.
    HalfOpen,
}

/// What opened a circuit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OpenCause {
    /// Failures in a row.
    ConsecutiveFailures,
    /// The share of failures in the window.
    FailureRate,
    /// The share of slow answers in the window.
    SlowRate,
    /// A request failed while the circuit was half-open.
    ProbeFailed,
    /// An operator.
    Operator,
}

/// A change of state, for the one who reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transition {
    Opened {
        open_for: Duration,
        openings: u32,
        cause: OpenCause,
    },
    HalfOpened,
    Closed,
}

/// Whether a request would be let through now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Closed: any number.
    Free,
    /// As a half-open request.
    Probe,
    Shut,
}

/// What a request let through carries until its result.
#[derive(Debug)]
pub(crate) struct Ticket {
    generation: u64,
    lease: Option<u64>,
}

impl Ticket {
    /// Whether it is one of the few of a circuit that is not closed.
    pub(crate) fn is_probe(&self) -> bool {
        self.lease.is_some()
    }
}

/// How a request ended, as far as the target's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Well,
    /// Well, but it took longer than the configuration likes.
    Slow,
    Ill,
}

#[derive(Debug)]
pub(crate) struct Circuit {
    epoch: Instant,
    /// generation << 2 | state. Written only under the lock.
    word: AtomicU64,
    /// Nanoseconds since the epoch. Written before `word` says open.
    open_until: AtomicU64,
    consecutive: AtomicU32,
    window: Window,
    /// Answers, and slow ones among them. Only kept where the configuration says what is slow.
    slow_window: Window,
    rare: Mutex<Rare>,
}

/// What only a circuit that is not closed needs.
#[derive(Debug)]
struct Rare {
    openings: u32,
    /// When it last closed.
    closed_at: Instant,
    successes: u32,
    /// Requests under way that were let through while not closed, over all generations: what counts is
    /// how many the target really has to bear.
    leases: SmallVec<[(u64, Instant); 2]>,
    next_lease: u64,
}

impl Rare {
    fn free_places(&mut self, config: &CircuitConfig, limit: u32, now: Instant) -> bool {
        self.leases
            .retain(|(_, since)| now.saturating_duration_since(*since) < config.lease_timeout);
        self.leases.len() < limit as usize
    }

    fn lease(&mut self, now: Instant) -> u64 {
        self.next_lease += 1;
        self.leases.push((self.next_lease, now));
        self.next_lease
    }

    /// Gives a lease back; false where it had expired.
    fn give_back(&mut self, lease: u64) -> bool {
        let found = self.leases.iter().position(|(id, _)| *id == lease);
        found.map(|index| self.leases.swap_remove(index)).is_some()
    }
}

fn state_of(word: u64) -> CircuitState {
    match word & 3 {
        0 => CircuitState::Closed,
        1 => CircuitState::Open,
        _ => CircuitState::HalfOpen,
    }
}

impl Circuit {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            word: AtomicU64::new(0),
            open_until: AtomicU64::new(0),
            consecutive: AtomicU32::new(0),
            window: Window::default(),
            slow_window: Window::default(),
            rare: Mutex::new(Rare {
                openings: 0,
                closed_at: epoch,
                successes: 0,
                leases: SmallVec::new(),
                next_lease: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rare> {
        self.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.since_epoch(now).as_nanos() >= u128::from(self.open_until.load(Ordering::Acquire))
    }

    /// Enters a state: a new generation. The lock's guard is asked for as proof.
    fn enter(&self, _: &mut Rare, state: CircuitState) {
        let bits = match state {
            CircuitState::Closed => 0,
            CircuitState::Open => 1,
            CircuitState::HalfOpen => 2,
        };
        let generation = (self.word.load(Ordering::Relaxed) >> 2) + 1;
        self.word.store(generation << 2 | bits, Ordering::Release);
    }

    pub(crate) fn state(&self) -> CircuitState {
        state_of(self.word.load(Ordering::Acquire))
    }

    /// When an open circuit may be tried again; `None` while it is not open.
    pub(crate) fn open_until(&self) -> Option<Instant> {
        (self.state() == CircuitState::Open)
            .then(|| self.epoch + Duration::from_nanos(self.open_until.load(Ordering::Acquire)))
    }

    /// Whether a request would be let through, without letting one through; and when that changes with
    /// nothing but time.
    pub(crate) fn outlook(&self, config: &CircuitConfig, now: Instant) -> (Gate, Option<Instant>) {
        match self.state() {
            CircuitState::Closed => (Gate::Free, None),
            CircuitState::Open if !self.is_due(now) => (Gate::Shut, self.open_until()),
            _ => {
                let mut rare = self.lock();
                if rare.free_places(config, config.half_open_probes, now) {
                    return (Gate::Probe, None);
                }
                let oldest = rare.leases.iter().map(|(_, since)| *since).min();
                let expires = oldest.map(|since| since + config.lease_timeout);
                (Gate::Shut, expires)
            }
        }
    }

    /// Lets a request through, or not.
    pub(crate) fn admit(
        &self,
        config: &CircuitConfig,
        now: Instant,
    ) -> Option<(Ticket, Option<Transition>)> {
        let word = self.word.load(Ordering::Acquire);
        match state_of(word) {
            CircuitState::Closed => Some((
                Ticket {
                    generation: word >> 2,
                    lease: None,
                },
                None,
            )),
            _ => self.admit_probe(config, now, false),
        }
    }

    /// Lets one request at a time through although the circuit is open: for when there is no other
    /// target. A good result counts; a bad one does not make the open time longer.
    pub(crate) fn force(
        &self,
        config: &CircuitConfig,
        now: Instant,
    ) -> Option<(Ticket, Option<Transition>)> {
        self.admit_probe(config, now, true)
    }

    #[cold]
    fn admit_probe(
        &self,
        config: &CircuitConfig,
        now: Instant,
        forced: bool,
    ) -> Option<(Ticket, Option<Transition>)> {
        let mut rare = self.lock();
        let state = self.state();
        let early = state == CircuitState::Open && !self.is_due(now);
        let limit = match (state, early) {
            (CircuitState::Closed, _) => {
                return Some((
                    Ticket {
                        generation: self.generation(),
                        lease: None,
                    },
                    None,
                ));
            }
            (_, true) if !forced => return None,
            (_, true) => 1,
            (_, false) => config.half_open_probes,
        };
        if !rare.free_places(config, limit, now) {
            return None;
        }
        let transition = (state == CircuitState::Open && !early).then(|| {
            rare.successes = 0;
            self.enter(&mut rare, CircuitState::HalfOpen);
            Transition::HalfOpened
        });
        let lease = Some(rare.lease(now));
        Some((
            Ticket {
                generation: self.generation(),
                lease,
            },
            transition,
        ))
    }

    fn generation(&self) -> u64 {
        self.word.load(Ordering::Acquire) >> 2
    }

    /// Takes a request's ticket back, with its result where there is one. Returns whether the result
    /// counted, and what it changed.
    ///
    /// A circuit that is about to open asks `leave` first, and holds what it gets until it is open; where it
    /// gets nothing it stays closed and begins to count anew.
    pub(crate) fn settle<L>(
        &self,
        ticket: &Ticket,
        verdict: Option<Verdict>,
        config: &CircuitConfig,
        now: Instant,
        random: &dyn Fn() -> u64,
        leave: impl FnOnce(OpenCause) -> Option<L>,
    ) -> (bool, Option<Transition>) {
        if let Some(lease) = ticket.lease {
            return self.settle_probe(ticket, lease, verdict, config, now, random);
        }
        let word = self.word.load(Ordering::Acquire);
        // A ticket without a lease was given while closed, so the same generation means: still closed.
        let Some(verdict) = verdict.filter(|_| word >> 2 == ticket.generation) else {
            return (false, None);
        };
        let Some(cause) = self.count(verdict, config, now) else {
            return (true, None);
        };
        let Some(_leave) = leave(cause) else {
            self.count_anew();
            return (true, None);
        };
        let mut rare = self.lock();
        if self.generation() != ticket.generation {
            return (false, None);
        }
        (true, Some(self.open(&mut rare, cause, config, now, random)))
    }

    /// Counts a result of a closed circuit; says what it is to open for, if it is.
    fn count(&self, verdict: Verdict, config: &CircuitConfig, now: Instant) -> Option<OpenCause> {
        let at = self.since_epoch(now);
        let ill = verdict == Verdict::Ill;
        self.window.record(at, config.window, ill);
        let too_many = |window: &Window, percent: u8| {
            let (total, bad) = window.totals(at, config.window);
            total >= u64::from(config.minimum_throughput) && bad * 100 >= u64::from(percent) * total
        };
        if ill {
            let in_a_row = self.consecutive.fetch_add(1, Ordering::Relaxed);
            if in_a_row.saturating_add(1) >= config.consecutive_failures {
                return Some(OpenCause::ConsecutiveFailures);
            }
            return too_many(&self.window, config.failure_rate_percent)
                .then_some(OpenCause::FailureRate);
        }
        if self.consecutive.load(Ordering::Relaxed) != 0 {
            self.consecutive.store(0, Ordering::Relaxed);
        }
        config.slow_after?;
        let slow = verdict == Verdict::Slow;
        self.slow_window.record(at, config.window, slow);
        (slow && too_many(&self.slow_window, config.slow_rate_percent))
            .then_some(OpenCause::SlowRate)
    }

    fn count_anew(&self) {
        self.consecutive.store(0, Ordering::Relaxed);
        self.window.clear();
        self.slow_window.clear();
    }

    fn settle_probe(
        &self,
        ticket: &Ticket,
        lease: u64,
        verdict: Option<Verdict>,
        config: &CircuitConfig,
        now: Instant,
        random: &dyn Fn() -> u64,
    ) -> (bool, Option<Transition>) {
        let mut rare = self.lock();
        let in_time = rare.give_back(lease) && self.generation() == ticket.generation;
        let Some(verdict) = verdict.filter(|_| in_time) else {
            return (false, None);
        };
        let forced = self.state() == CircuitState::Open;
        let transition = match verdict {
            Verdict::Ill | Verdict::Slow if forced => None,
            Verdict::Ill | Verdict::Slow => {
                Some(self.open(&mut rare, OpenCause::ProbeFailed, config, now, random))
            }
            Verdict::Well => {
                rare.successes = if forced {
                    1
                } else {
                    rare.successes.saturating_add(1)
                };
                if rare.successes >= config.successes_to_close {
                    Some(self.close(&mut rare, now))
                } else if forced {
                    self.enter(&mut rare, CircuitState::HalfOpen);
                    Some(Transition::HalfOpened)
                } else {
                    None
                }
            }
        };
        (true, transition)
    }

    fn open(
        &self,
        rare: &mut Rare,
        cause: OpenCause,
        config: &CircuitConfig,
        now: Instant,
        random: &dyn Fn() -> u64,
    ) -> Transition {
        if self.state() == CircuitState::Closed {
            let closed_for = now.saturating_duration_since(rare.closed_at);
            let forgotten = closed_for.as_nanos() / config.decay.as_nanos().max(1);
            rare.openings = rare
                .openings
                .saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        }
        rare.openings = rare.openings.saturating_add(1);
        let capped = config
            .open_base
            .saturating_mul(rare.openings)
            .min(config.open_max);
        let spread = u128::from(config.jitter_percent) * capped.as_nanos() / 100;
        let extra = (u128::from(random()) * spread) >> 64;
        let open_for = capped + Duration::from_nanos(u64::try_from(extra).unwrap_or(u64::MAX));
        let until = (self.since_epoch(now) + open_for).as_nanos();
        self.open_until
            .store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
        rare.successes = 0;
        self.enter(rare, CircuitState::Open);
        Transition::Opened {
            open_for,
            openings: rare.openings,
            cause,
        }
    }

    /// Opens it by hand: after `open_for` it is tried again as ever. Its openings are not counted for it.
    pub(crate) fn open_by_hand(&self, open_for: Duration, now: Instant) -> Transition {
        let mut rare = self.lock();
        let until = (self.since_epoch(now) + open_for).as_nanos();
        self.open_until
            .store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
        rare.successes = 0;
        self.enter(&mut rare, CircuitState::Open);
        Transition::Opened {
            open_for,
            openings: rare.openings,
            cause: OpenCause::Operator,
        }
    }

    /// Closes it by hand and forgets what was counted; `None` where it was closed.
    pub(crate) fn close_by_hand(&self, now: Instant) -> Option<Transition> {
        let mut rare = self.lock();
        rare.openings = 0;
        if self.state() == CircuitState::Closed {
            self.count_anew();
            return None;
        }
        Some(self.close(&mut rare, now))
    }

    fn close(&self, rare: &mut Rare, now: Instant) -> Transition {
        self.count_anew();
        rare.successes = 0;
        rare.closed_at = now;
        self.enter(rare, CircuitState::Closed);
        Transition::Closed
    }
}

#[cfg(test)]
mod tests;
