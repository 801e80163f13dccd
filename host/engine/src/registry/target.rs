use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::bulkhead::Bulkhead;
use super::{Observer, Permit, RegistryConfig, Snapshot, TargetChange, TargetSpec};
use crate::circuit::{
    Circuit, CircuitConfig, CircuitState, Gate, OpenCause, Ticket, Transition, Verdict,
};
use crate::health::{Health, HealthConfig, HealthStatus};
use crate::metrics::TargetMeter;
use crate::nanos::nanos;
use crate::random::Random;

/// What the targets of one registry have in common.
pub(super) struct Shared {
    /// Where the other targets of a group are found. Weak: they hold this.
    pub(super) snapshot: Weak<ArcSwap<Snapshot>>,
    /// Held while a circuit opens where only a share of a group may.
    pub(super) ejecting: Mutex<()>,
    /// Counts every change to how any target stands.
    pub(super) standings: AtomicU64,
    pub(super) epoch: Instant,
    pub(super) epoch_wall: SystemTime,
    pub(super) config: ArcSwap<RegistryConfig>,
    pub(super) observer: Option<Arc<dyn Observer>>,
    pub(super) random: Random,
}

impl Shared {
    pub(super) fn standing_changed(&self) {
        self.standings.fetch_add(1, Ordering::Release);
    }
}

/// One target: what is known of it, and how it stands.
///
/// An update makes a new `Target` with the same state, so a request under way still counts. Only where the
/// update changes the limits of the target do these count anew.
// Aligned, as every call reads it, and writes the count of references beside it.
#[repr(align(128))]
pub struct Target {
    /// Its name, unique in the host.
    pub name: Arc<str>,
    /// What it was registered with.
    pub spec: TargetSpec,
    state: Arc<State>,
    bulkhead: Option<Arc<Bulkhead>>,
    meter: TargetMeter,
}

struct State {
    shared: Arc<Shared>,
    circuit: Circuit,
    health: Health,
    /// Requests let through above, those of them under way below: see [`traffic`].
    traffic: AtomicU64,
    failures: AtomicU64,
    /// A moving mean in nanoseconds; 0 while nothing is known.
    latency: AtomicU64,
    /// When it became unavailable, and when it last recovered, as [`State::stamp`]; 0 for never.
    down_since: AtomicU64,
    recovered_at: AtomicU64,
    draining: AtomicBool,
    /// An operator lets nothing new begin.
    held: AtomicBool,
    drained: Notify,
}

impl State {
    /// Nanoseconds since the epoch plus one, so that 0 is free to mean "never".
    fn stamp(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.shared.epoch).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Requests let through and those under way, in one word: a request that begins, or ends, is one addition.
pub(super) mod traffic {
    /// As many bits for those under way: 16 million at once. The rest counts to 10^12.
    const BITS: u32 = 24;
    /// What ends.
    pub(in super::super) const ENDED: u64 = 1;
    /// What begins.
    pub(super) const BEGUN: u64 = (1 << BITS) | ENDED;

    pub(super) fn under_way(word: u64) -> u32 {
        (word & ((1 << BITS) - 1)) as u32
    }

    pub(super) fn let_through(word: u64) -> u64 {
        word >> BITS
    }
}

/// How a target stands, as a strategy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Standing {
    /// Health checks call it healthy, or know nothing yet.
    pub healthy: bool,
    /// Its circuit would let a request through now.
    pub admitted: bool,
}

/// What a target is good for at the moment, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Availability {
    /// Healthy, circuit closed.
    Ready,
    /// Healthy, and its circuit wants to know whether the target is well again.
    Probe,
    /// Unhealthy, but live traffic has found nothing.
    Doubtful,
    /// Unhealthy, and its circuit wants to know.
    DoubtfulProbe,
    /// Its circuit lets nothing through.
    Shut,
}

impl Target {
    pub(super) fn new(spec: TargetSpec, shared: Arc<Shared>) -> Self {
        let state = State {
            circuit: Circuit::new(shared.epoch),
            health: Health::default(),
            traffic: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: AtomicU64::new(0),
            down_since: AtomicU64::new(0),
            recovered_at: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            held: AtomicBool::new(false),
            drained: Notify::new(),
            shared,
        };
        Self {
            name: spec.name.clone(),
            bulkhead: bulkhead(&spec, state.shared.epoch),
            spec,
            state: Arc::new(state),
            meter: TargetMeter::default(),
        }
    }

    pub(super) fn with_spec(&self, spec: TargetSpec) -> Self {
        let bulkhead = if self.spec.same_limits(&spec) {
            self.bulkhead.clone()
        } else {
            bulkhead(&spec, self.state.shared.epoch)
        };
        Self {
            name: self.name.clone(),
            bulkhead,
            spec,
            state: self.state.clone(),
            meter: TargetMeter::default(),
        }
    }

    /// Whether the two are versions of one target.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// How it stands.
    pub fn standing(&self, now: Instant) -> Standing {
        let availability = self.availability(&self.state.shared.config.load(), now);
        Standing {
            healthy: !self.health().is_unhealthy(),
            admitted: availability != Availability::Shut && !self.is_draining(),
        }
    }

    /// What health checks say of it.
    pub fn health(&self) -> HealthStatus {
        self.state.health.status()
    }

    /// The state of its circuit. An open circuit turns half-open with the request that tries it.
    pub fn circuit(&self) -> CircuitState {
        self.state.circuit.state()
    }

    /// When its open circuit is tried again; `None` while it is not open.
    pub fn open_until(&self) -> Option<Instant> {
        self.state.circuit.open_until()
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        traffic::under_way(self.state.traffic.load(Ordering::SeqCst))
    }

    /// Requests let through since it was registered, those under way included.
    pub fn requests(&self) -> u64 {
        traffic::let_through(self.state.traffic.load(Ordering::Relaxed))
    }

    /// Those of its requests that failed, whatever the reason.
    pub fn failures(&self) -> u64 {
        self.state.failures.load(Ordering::Relaxed)
    }

    /// Since when it is unhealthy or its circuit not closed; `None` while both are well.
    pub fn down_since(&self) -> Option<SystemTime> {
        let stamp = self.state.down_since.load(Ordering::Relaxed);
        let since_epoch = Duration::from_nanos(stamp.checked_sub(1)?);
        self.state.shared.epoch_wall.checked_add(since_epoch)
    }

    /// Whether an operator holds it: nothing new begins.
    pub fn is_held(&self) -> bool {
        self.state.held.load(Ordering::SeqCst)
    }

    pub(crate) fn meter(&self) -> &TargetMeter {
        &self.meter
    }

    pub(super) fn hold(&self) -> bool {
        let is_new = !self.state.held.swap(true, Ordering::SeqCst);
        if is_new {
            self.state.shared.standing_changed();
            self.tell(&TargetChange::Held);
        }
        is_new
    }

    pub(super) fn eject(&self, open_for: Duration, now: Instant) {
        let opened = self.state.circuit.open_by_hand(open_for, now);
        self.state.shared.standing_changed();
        self.report(opened, now);
    }

    pub(super) fn restore(&self, now: Instant) {
        let was_held = self.state.held.swap(false, Ordering::SeqCst);
        if was_held {
            let stamp = self.state.stamp(now);
            self.state.recovered_at.store(stamp, Ordering::Relaxed);
        }
        let closed = self.state.circuit.close_by_hand(now);
        self.forget_health(now);
        if was_held {
            self.tell(&TargetChange::Released);
        }
        if let Some(closed) = closed {
            self.report(closed, now);
        }
    }

    /// Requests that wait for a place, where the target has a concurrency limit with a queue.
    pub fn waiting(&self) -> u32 {
        self.bulkhead
            .as_ref()
            .map_or(0, |bulkhead| bulkhead.waiting())
    }

    /// Whether its limits would let a request through at once.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        self.bulkhead
            .as_ref()
            .is_none_or(|bulkhead| bulkhead.has_room(now))
    }

    pub(crate) fn is_limited(&self) -> bool {
        self.bulkhead.is_some()
    }

    /// A moving mean of how long good answers took (weight of the newest 1/8, as in RFC 6298); `None`
    /// before the first.
    pub fn latency(&self) -> Option<Duration> {
        Some(self.state.latency.load(Ordering::Relaxed))
            .filter(|nanos| *nanos != 0)
            .map(Duration::from_nanos)
    }

    /// When a health check last came to a result.
    pub fn last_checked(&self) -> Option<SystemTime> {
        let checked = self.state.health.last_checked()?;
        self.state
            .shared
            .epoch_wall
            .checked_add(checked.saturating_duration_since(self.state.shared.epoch))
    }

    /// Whether it was taken out of the registry.
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Ordering::SeqCst)
    }

    /// Waits until it was taken out of the registry and no request is under way any more. No request
    /// begins after that.
    pub async fn drained(&self) {
        loop {
            let mut notified = std::pin::pin!(self.state.drained.notified());
            notified.as_mut().enable();
            if self.is_draining() && self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Anything known of it by name: `url`, `latency` (milliseconds), `last-checked` (milliseconds since
    /// the Unix epoch), else one of the attributes it was registered with.
    pub fn attribute(&self, key: &str) -> Option<Cow<'_, str>> {
        match key {
            "url" => self.spec.url.as_deref().map(Cow::from),
            "latency" => Some(self.latency()?.as_millis().to_string().into()),
            "last-checked" => {
                let since = self
                    .last_checked()?
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .ok()?;
                Some(since.as_millis().to_string().into())
            }
            _ => self
                .spec
                .attributes
                .get(key)
                .map(|value| value.as_str().into()),
        }
    }

    fn circuit_config<'a>(&'a self, config: &'a RegistryConfig) -> &'a CircuitConfig {
        self.spec.circuit.as_deref().unwrap_or(&config.circuit)
    }

    fn availability(&self, config: &RegistryConfig, now: Instant) -> Availability {
        self.outlook(config, now).0
    }

    /// What it is good for, and when that changes with nothing but time.
    pub(super) fn outlook(
        &self,
        config: &RegistryConfig,
        now: Instant,
    ) -> (Availability, Option<Instant>) {
        if self.is_held() {
            return (Availability::Shut, None);
        }
        let (gate, until) = self.state.circuit.outlook(self.circuit_config(config), now);
        let availability = match (gate, self.health().is_unhealthy()) {
            (Gate::Free, false) => Availability::Ready,
            (Gate::Probe, false) => Availability::Probe,
            (Gate::Free, true) => Availability::Doubtful,
            (Gate::Probe, true) => Availability::DoubtfulProbe,
            (Gate::Shut, _) => Availability::Shut,
        };
        (availability, until)
    }

    /// The share of its weight it has now, in thousandths, less than all for a while after a recovery; and
    /// how long that while is in all, until it is over. Never 0.
    pub(super) fn ramp(&self, config: &RegistryConfig, now: Instant) -> (u64, Option<Duration>) {
        let recovered = self.state.recovered_at.load(Ordering::Relaxed);
        let slow_start = self.spec.slow_start.unwrap_or(config.balance.slow_start);
        let elapsed = u128::from(self.state.stamp(now).saturating_sub(recovered));
        if recovered == 0 || elapsed >= slow_start.as_nanos() {
            return (1000, None);
        }
        let ramped = (elapsed * 1000 / slow_start.as_nanos()) as u64;
        let floor = u64::from(config.balance.slow_start_floor_percent) * 10;
        (ramped.max(floor), Some(slow_start))
    }

    /// Asks the circuit for a request, or, `forced`, for the one request it allows when no other target
    /// is left.
    pub(super) fn admit(
        self: &Arc<Self>,
        config: &RegistryConfig,
        now: Instant,
        forced: bool,
    ) -> Option<Permit> {
        // Counted before the flag is read, and the flag is set before the count is read: a drained
        // target stays drained.
        self.state
            .traffic
            .fetch_add(traffic::BEGUN, Ordering::SeqCst);
        let circuit = &self.state.circuit;
        let admitted = match (self.is_draining() || self.is_held(), forced) {
            (true, _) => None,
            (false, true) => circuit.force(self.circuit_config(config), now),
            (false, false) => circuit.admit(self.circuit_config(config), now),
        };
        let Some((ticket, transition)) = admitted else {
            self.leave(traffic::BEGUN);
            return None;
        };
        if ticket.is_probe() {
            self.state.shared.standing_changed();
        }
        let permit = Permit::new(self.clone(), ticket);
        if let Some(transition) = transition {
            self.report(transition, now);
        }
        Some(permit)
    }

    /// One less is under way: [`traffic::ENDED`], or [`traffic::BEGUN`] for one that was never let through.
    pub(super) fn leave(&self, less: u64) {
        let before = self.state.traffic.fetch_sub(less, Ordering::SeqCst);
        if traffic::under_way(before) == 1 && self.is_draining() {
            self.state.drained.notify_waiters();
        }
    }

    pub(super) fn drain(&self) {
        self.state.draining.store(true, Ordering::SeqCst);
        self.state.drained.notify_waiters();
    }

    /// Which version of what is known of its health a probe that starts now is about.
    pub(crate) fn health_version(&self) -> u64 {
        self.state.health.version()
    }

    /// How it is probed.
    pub(crate) fn health_checks(&self) -> HealthConfig {
        self.spec
            .health_checks(&self.state.shared.config.load().health)
    }

    /// Whether its last probes do not agree with what health checks say of it: it may be about to change.
    pub(crate) fn is_turning(&self) -> bool {
        self.state.health.is_turning()
    }

    /// A probe's result. Ignored where what is probed has changed since it started.
    pub(crate) fn probed(&self, version: u64, well: bool, now: Instant) {
        let checks = self.health_checks();
        let change = self.state.health.record(version, well, &checks, now);
        if change.is_some() {
            self.state.shared.standing_changed();
        }
        if self.is_draining() {
            return;
        }
        match change {
            Some(true) => {
                self.tell(&TargetChange::Up);
                self.check_recovered(now);
            }
            Some(false) => {
                self.went_down(now);
                self.tell(&TargetChange::Down);
            }
            None => {}
        }
    }

    /// Forgets what health checks said: they look elsewhere from now on, or have ended.
    pub(crate) fn forget_health(&self, now: Instant) {
        let was_unhealthy = self.state.health.reset();
        self.state.shared.standing_changed();
        if was_unhealthy && !self.is_draining() {
            self.tell(&TargetChange::Up);
            self.check_recovered(now);
        }
    }

    /// An answer took so long.
    pub(super) fn note_latency(&self, latency: Duration) {
        let mean = &self.state.latency;
        let newest = nanos(latency).max(1);
        let old = mean.load(Ordering::Relaxed);
        // Two at the same moment may lose one: it is a mean.
        mean.store(
            if old == 0 {
                newest
            } else {
                (old - old / 8 + newest / 8).max(1)
            },
            Ordering::Relaxed,
        );
    }

    pub(super) fn note_failure(&self) {
        self.state.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bulkhead(&self) -> Option<&Bulkhead> {
        self.bulkhead.as_deref()
    }

    fn went_down(&self, now: Instant) {
        let stamp = self.state.stamp(now);
        let _ =
            self.state
                .down_since
                .compare_exchange(0, stamp, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn check_recovered(&self, now: Instant) {
        if self.circuit() != CircuitState::Closed || self.health().is_unhealthy() {
            return;
        }
        let since = self.state.down_since.swap(0, Ordering::Relaxed);
        if since != 0 {
            let stamp = self.state.stamp(now);
            self.state.recovered_at.store(stamp, Ordering::Relaxed);
            self.state.shared.standing_changed();
            self.tell(&TargetChange::Recovered {
                after: Duration::from_nanos(stamp.saturating_sub(since)),
            });
        }
    }

    fn report(&self, transition: Transition, now: Instant) {
        match transition {
            Transition::Opened {
                open_for,
                openings,
                cause,
            } => {
                self.went_down(now);
                self.tell(&TargetChange::CircuitOpened {
                    open_for,
                    openings,
                    cause,
                });
            }
            Transition::HalfOpened => self.tell(&TargetChange::CircuitHalfOpened),
            Transition::Closed => {
                self.tell(&TargetChange::CircuitClosed);
                self.check_recovered(now);
            }
        }
    }

    pub(super) fn tell(&self, change: &TargetChange) {
        if let Some(observer) = &self.state.shared.observer {
            observer.changed(self, change);
        }
    }

    /// Gives a request's ticket back with its result. Says whether the result counted.
    pub(super) fn settle(
        &self,
        ticket: &Ticket,
        verdict: impl FnOnce(&CircuitConfig) -> Verdict,
        now: Instant,
    ) -> bool {
        self.settle_with(ticket, |config| Some(verdict(config)), now)
    }

    /// The same without a result; then the time plays no part.
    pub(super) fn take_back(&self, ticket: &Ticket) {
        self.settle_with(ticket, |_| None, self.state.shared.epoch);
    }

    fn settle_with(
        &self,
        ticket: &Ticket,
        verdict: impl FnOnce(&CircuitConfig) -> Option<Verdict>,
        now: Instant,
    ) -> bool {
        let shared = &self.state.shared;
        let config = shared.config.load();
        let circuit_config = self.circuit_config(&config);
        let (counted, transition) = self.state.circuit.settle(
            ticket,
            verdict(circuit_config),
            circuit_config,
            now,
            &*shared.random,
            |cause| self.leave_to_open(&config, cause),
        );
        drop(config);
        if transition.is_some() || ticket.is_probe() {
            shared.standing_changed();
        }
        if let Some(transition) = transition {
            self.report(transition, now);
        }
        counted
    }

    /// Whether its circuit may open, in view of those of its group that are not closed. What is returned is
    /// kept until it is open, so that two at the same moment do not take the same place.
    fn leave_to_open(
        &self,
        config: &RegistryConfig,
        cause: OpenCause,
    ) -> Option<Option<MutexGuard<'_, ()>>> {
        let most = usize::from(config.balance.max_ejected_percent);
        let only_slow = cause == OpenCause::SlowRate;
        if most >= 100 && !only_slow {
            return Some(None);
        }
        let shared = &self.state.shared;
        // Without the registry there is no group.
        let Some(snapshot) = shared.snapshot.upgrade() else {
            return Some(None);
        };
        let guard = shared
            .ejecting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let snapshot = snapshot.load();
        let group = snapshot.group(&self.spec.group);
        let others = group
            .iter()
            .filter(|other| !other.is_same(self) && other.circuit() != CircuitState::Closed)
            .count();
        let within = others == 0 || (others + 1) * 100 <= most * group.len();
        let last = others + 1 >= group.len();
        (within && !(only_slow && last)).then_some(Some(guard))
    }
}

fn bulkhead(spec: &TargetSpec, epoch: Instant) -> Option<Arc<Bulkhead>> {
    Bulkhead::new(spec.concurrency, spec.rate_limit, epoch).map(Arc::new)
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("spec", &self.spec)
            .field("health", &self.health())
            .field("circuit", &self.circuit())
            .field("in_flight", &self.in_flight())
            .field("draining", &self.is_draining())
            .finish_non_exhaustive()
    }
}
