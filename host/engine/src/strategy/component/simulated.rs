//! Time and chance of strategies in a simulation: the clock is Tokio's, which may be paused, and chance
//! repeats.

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx};

use super::frozen::Chance;
use super::host_impl::wasi_builder;
use super::runtime::Simulation;
use crate::random::{self, Random};

/// What the strategies of one runtime share.
#[derive(Clone)]
pub(super) struct Simulated {
    began: SystemTime,
    started: Instant,
    chance: Random,
}

impl fmt::Debug for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulated")
            .field("began", &self.began)
            .finish_non_exhaustive()
    }
}

impl Simulated {
    pub(super) fn new(simulation: Simulation) -> Self {
        Self {
            began: simulation.began,
            started: Instant::now(),
            chance: random::seeded(simulation.seed),
        }
    }

    pub(super) fn wall(&self) -> SystemTime {
        self.began + self.started.elapsed()
    }

    pub(super) fn next(&self) -> u64 {
        (self.chance)()
    }

    /// A WASI context of one instance over them.
    pub(super) fn wasi(&self) -> WasiCtx {
        let mut builder = wasi_builder();
        builder
            .wall_clock(self.clone())
            .monotonic_clock(self.clone())
            .secure_random(Chance::seeded(self.next()))
            .insecure_random(Chance::seeded(self.next()))
            .insecure_random_seed(u128::from(self.next()));
        builder.build()
    }
}

impl HostWallClock for Simulated {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        let since = self.wall().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default()
    }
}

impl HostMonotonicClock for Simulated {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
