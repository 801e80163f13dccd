use std::time::Duration;

use crate::circuit::{CircuitConfig, CircuitConfigError};
use crate::health::{HealthConfig, HealthConfigError};

/// How load is spread among the targets of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalanceConfig {
    /// How much more than its share a healthy target can bear, in percent, 100 to 1000. At 140 a priority
    /// level keeps all of its load until fewer than 72 % of its targets are healthy (Envoy's
    /// overprovisioning factor). Default: 140.
    pub overprovisioning_percent: u16,
    /// The share of a group whose circuits live traffic may open, in percent, 1 to 100 (Envoy's
    /// `max_ejection_percent`). One target may be ejected whatever the share. Beyond it a failing target
    /// stays in use: lower it for a large group whose targets may all fail in part for one common reason.
    /// Default: 100, since a target here is one of a few, and a call has other ways out than to wait for one
    /// that is dead.
    pub max_ejected_percent: u8,
    /// How long a recovered target takes to its full weight, up to 24 h; zero for at once. Default: 30 s.
    pub slow_start: Duration,
    /// The share of its weight it starts with, in percent, 1 to 100 (Envoy's `min_weight_percent`).
    /// Default: 10.
    pub slow_start_floor_percent: u8,
}

impl Default for BalanceConfig {
    fn default() -> Self {
        Self {
            overprovisioning_percent: 140,
            max_ejected_percent: 100,
            slow_start: Duration::from_secs(30),
            slow_start_floor_percent: 10,
        }
    }
}

/// Everything that may be set about targets. Changed as a whole, at run time, by
/// [`Registry::configure`](super::Registry::configure).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    /// The circuit of each target.
    pub circuit: CircuitConfig,
    /// Active health checks.
    pub health: HealthConfig,
    /// How load is spread.
    pub balance: BalanceConfig,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryConfigError {
    /// The circuit's part.
    #[error(transparent)]
    Circuit(#[from] CircuitConfigError),
    /// The health checks' part.
    #[error(transparent)]
    Health(#[from] HealthConfigError),
    /// The part on spreading load.
    #[error("balance: {key} must be {range}")]
    Balance {
        /// The setting.
        key: &'static str,
        /// What it may be.
        range: &'static str,
    },
}

impl RegistryConfig {
    /// Checks every setting against its range.
    ///
    /// # Errors
    /// Names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), RegistryConfigError> {
        self.circuit.validate()?;
        self.health.validate()?;
        let balance = &self.balance;
        for (good, key, range) in [
            (
                (100..=1000).contains(&balance.overprovisioning_percent),
                "overprovisioning_percent",
                "100 to 1000",
            ),
            (
                (1..=100).contains(&balance.max_ejected_percent),
                "max_ejected_percent",
                "1 to 100",
            ),
            (
                balance.slow_start <= Duration::from_secs(24 * 3600),
                "slow_start",
                "at most 24 h",
            ),
            (
                (1..=100).contains(&balance.slow_start_floor_percent),
                "slow_start_floor_percent",
                "1 to 100",
            ),
        ] {
            if !good {
                return Err(RegistryConfigError::Balance { key, range });
            }
        }
        Ok(())
    }
}
