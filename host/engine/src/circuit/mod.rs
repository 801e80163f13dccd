//! The circuit breaker: stops asking a target that live traffic found ill, and finds out when it is well.
//!
//! Every request to a sick target costs its caller a timeout and the target the load that may keep it
//! sick. The circuit is **closed** while all is well. It **opens** after failures in a row, or a failure
//! rate over a window. Once the open time is over it lets a few requests through, **half-open**: good
//! results close it, a bad one opens it for longer. It never stays open for good: the open time has a
//! cap, and after it there is always one more try.
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
    /// A request failed while the circuit was half-open.
    ProbeFailed,
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

/// How a request ended, as far as the target's health goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Well,
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
    slow: Mutex<Slow>,
}

#[derive(Debug)]
struct Slow {
    openings: u32,
    /// When it last closed.
    closed_at: Instant,
    successes: u32,
    /// Requests under way that were let through while not closed, over all generations: what counts is
    /// how many the target really has to bear.
    leases: SmallVec<[(u64, Instant); 2]>,
    next_lease: u64,
}

impl Slow {
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
            slow: Mutex::new(Slow {
                openings: 0,
                closed_at: epoch,
                successes: 0,
                leases: SmallVec::new(),
                next_lease: 0,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_epoch(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.epoch)
    }

    fn is_due(&self, now: Instant) -> bool {
        self.since_epoch(now).as_nanos() >= u128::from(self.open_until.load(Ordering::Acquire))
    }

    /// Enters a state: a new generation. The lock's guard is asked for as proof.
    fn enter(&self, _: &mut Slow, state: CircuitState) {
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

    /// Whether a request would be let through, without letting one through.
    pub(crate) fn gate(&self, config: &CircuitConfig, now: Instant) -> Gate {
        match self.state() {
            CircuitState::Closed => Gate::Free,
            CircuitState::Open if !self.is_due(now) => Gate::Shut,
            _ if self
                .lock()
                .free_places(config, config.half_open_probes, now) =>
            {
                Gate::Probe
            }
            _ => Gate::Shut,
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
        let mut slow = self.lock();
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
        if !slow.free_places(config, limit, now) {
            return None;
        }
        let transition = (state == CircuitState::Open && !early).then(|| {
            slow.successes = 0;
            self.enter(&mut slow, CircuitState::HalfOpen);
            Transition::HalfOpened
        });
        let lease = Some(slow.lease(now));
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
    pub(crate) fn settle(
        &self,
        ticket: &Ticket,
        verdict: Option<Verdict>,
        config: &CircuitConfig,
        now: Instant,
        random: &dyn Fn() -> u64,
    ) -> (bool, Option<Transition>) {
        if let Some(lease) = ticket.lease {
            return self.settle_probe(ticket, lease, verdict, config, now, random);
        }
        let word = self.word.load(Ordering::Acquire);
        // A ticket without a lease was given while closed, so the same generation means: still closed.
        let Some(verdict) = verdict.filter(|_| word >> 2 == ticket.generation) else {
            return (false, None);
        };
        let at = self.since_epoch(now);
        self.window
            .record(at, config.window, verdict == Verdict::Ill);
        match verdict {
            Verdict::Well => {
                if self.consecutive.load(Ordering::Relaxed) != 0 {
                    self.consecutive.store(0, Ordering::Relaxed);
                }
                (true, None)
            }
            Verdict::Ill => {
                let in_a_row = self
                    .consecutive
                    .fetch_add(1, Ordering::Relaxed)
                    .saturating_add(1);
                let (total, failures) = self.window.totals(at, config.window);
                let cause = if in_a_row >= config.consecutive_failures {
                    OpenCause::ConsecutiveFailures
                } else if total >= u64::from(config.minimum_throughput)
                    && failures * 100 >= u64::from(config.failure_rate_percent) * total
                {
                    OpenCause::FailureRate
                } else {
                    return (true, None);
                };
                let mut slow = self.lock();
                if self.generation() != ticket.generation {
                    return (false, None);
                }
                (true, Some(self.open(&mut slow, cause, config, now, random)))
            }
        }
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
        let mut slow = self.lock();
        let in_time = slow.give_back(lease) && self.generation() == ticket.generation;
        let Some(verdict) = verdict.filter(|_| in_time) else {
            return (false, None);
        };
        let forced = self.state() == CircuitState::Open;
        let transition = match verdict {
            Verdict::Ill if forced => None,
            Verdict::Ill => Some(self.open(&mut slow, OpenCause::ProbeFailed, config, now, random)),
            Verdict::Well => {
                slow.successes = if forced {
                    1
                } else {
                    slow.successes.saturating_add(1)
                };
                if slow.successes >= config.successes_to_close {
                    Some(self.close(&mut slow, now))
                } else if forced {
                    self.enter(&mut slow, CircuitState::HalfOpen);
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
        slow: &mut Slow,
        cause: OpenCause,
        config: &CircuitConfig,
        now: Instant,
        random: &dyn Fn() -> u64,
    ) -> Transition {
        if self.state() == CircuitState::Closed {
            let closed_for = now.saturating_duration_since(slow.closed_at);
            let forgotten = closed_for.as_nanos() / config.decay.as_nanos().max(1);
            slow.openings = slow
                .openings
                .saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        }
        slow.openings = slow.openings.saturating_add(1);
        let capped = config
            .open_base
            .saturating_mul(slow.openings)
            .min(config.open_max);
        let spread = u128::from(config.jitter_percent) * capped.as_nanos() / 100;
        let extra = (u128::from(random()) * spread) >> 64;
        let open_for = capped + Duration::from_nanos(u64::try_from(extra).unwrap_or(u64::MAX));
        let until = (self.since_epoch(now) + open_for).as_nanos();
        self.open_until
            .store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Release);
        slow.successes = 0;
        self.enter(slow, CircuitState::Open);
        Transition::Opened {
            open_for,
            openings: slow.openings,
            cause,
        }
    }

    fn close(&self, slow: &mut Slow, now: Instant) -> Transition {
        self.consecutive.store(0, Ordering::Relaxed);
        self.window.clear();
        slow.successes = 0;
        slow.closed_at = now;
        self.enter(slow, CircuitState::Closed);
        Transition::Closed
    }
}

#[cfg(test)]
mod tests;
