//! A decision that comes out the same every time: time stands still, chance repeats, and the state
//! is the one it was given. For tests of strategies, and for replaying a decision.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use rand_core::TryRng;
use serde::Serialize;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use super::bindings::backstop::strategy::log;
use super::host_impl::wasi_builder;
use super::limits::Limits;
use super::state::State;
use crate::random::{self, Random};
use crate::strategy::{Decision, StrategyFault};

/// What stands still in a [rehearsal](super::ComponentStrategy::rehearse): both clocks, of the
/// contract and of WASI, and every source of chance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// The wall clock. Default: the Unix epoch.
    pub wall: SystemTime,
    /// The monotonic clock. Default: zero.
    pub monotonic: Duration,
    /// What the sources of chance begin with. Default: zero.
    pub seed: u64,
    /// The time left until the call's deadline, as the strategy is told. Default: 60 s.
    pub time_left: Duration,
    /// What the strategy's state holds, if it is granted one: key and value. Its real state is
    /// neither read nor changed. Default: nothing.
    pub state: Vec<(String, Vec<u8>)>,
}

impl Default for Frozen {
    fn default() -> Self {
        Self {
            wall: SystemTime::UNIX_EPOCH,
            monotonic: Duration::ZERO,
            seed: 0,
            time_left: Duration::from_secs(60),
            state: Vec::new(),
        }
    }
}

/// What came of a rehearsal.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Rehearsal {
    /// The decision; `None` means that the condition said false.
    pub outcome: Result<Option<Decision>, StrategyFault>,
    /// What the strategy wrote to its log, within its limits.
    pub log: Vec<(LogLevel, String)>,
    /// What its state holds now, by key.
    pub state: Vec<(String, Vec<u8>)>,
    /// How long `condition` and `action` took, by the real clock.
    pub took: Duration,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl From<log::Level> for LogLevel {
    fn from(level: log::Level) -> Self {
        match level {
            log::Level::Trace => Self::Trace,
            log::Level::Debug => Self::Debug,
            log::Level::Info => Self::Info,
            log::Level::Warn => Self::Warn,
            log::Level::Error => Self::Error,
        }
    }
}

/// [`Frozen`], in use by one instance.
pub(super) struct Standstill {
    pub(super) wall: SystemTime,
    pub(super) monotonic: Duration,
    pub(super) chance: Chance,
    pub(super) state: Option<State>,
    pub(super) log: Vec<(LogLevel, String)>,
    seed: u64,
}

impl Standstill {
    /// `granted` says whether the strategy has a state at all.
    ///
    /// # Errors
    /// A value that does not fit into the limits.
    pub(super) fn new(
        frozen: &Frozen,
        limits: &Limits,
        granted: bool,
    ) -> Result<Self, super::state::StateError> {
        let state = State::new(limits.state_bytes, limits.state_value_bytes);
        for (key, value) in &frozen.state {
            state.set(key, value.clone(), None)?;
        }
        Ok(Self {
            wall: frozen.wall,
            monotonic: frozen.monotonic,
            chance: Chance::seeded(frozen.seed),
            state: granted.then_some(state),
            log: Vec::new(),
            seed: frozen.seed,
        })
    }

    /// A WASI context over the same time and chance.
    pub(super) fn wasi(&self) -> WasiCtx {
        let mut builder = wasi_builder();
        let now = self
            .wall
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        builder
            .wall_clock(Stopped(now))
            .monotonic_clock(Stopped(self.monotonic))
            // Streams of their own, so that one does not depend on how much the other is used.
            .secure_random(Chance::seeded(self.seed ^ 1))
            .insecure_random(Chance::seeded(self.seed ^ 2))
            .insecure_random_seed(u128::from(self.seed));
        builder.build()
    }
}

struct Stopped(Duration);

impl HostWallClock for Stopped {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        self.0
    }
}

impl HostMonotonicClock for Stopped {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A seeded source, in the form WASI wants.
pub(super) struct Chance(Random);

impl Chance {
    pub(super) fn seeded(seed: u64) -> Self {
        Self(random::seeded(seed))
    }

    pub(super) fn next(&self) -> u64 {
        (self.0)()
    }
}

impl TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        // The upper half, which is the better one of most generators.
        Ok((self.next() >> 32) as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.next())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}
