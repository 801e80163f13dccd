//! What records the metrics of the process, for Prometheus.

use std::time::Duration;

use backstop::metrics::{DURATION_BUCKETS, describe};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;

/// A target or a group that is gone is told of no longer than this after the last look at it.
const GAUGES_KEPT: Duration = Duration::from_secs(60);

/// What records the metrics of this process.
///
/// Installed once, before the engine's first call; what is counted before is lost. The engine counts
/// where it was built with [`EngineBuilder::metrics`](backstop::EngineBuilder::metrics).
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// The metrics of the process cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("the metrics of the process cannot be recorded")]
pub struct MetricsError(#[from] BuildError);

fn builder() -> Result<PrometheusBuilder, BuildError> {
    Ok(PrometheusBuilder::new()
        .set_buckets(&DURATION_BUCKETS)?
        .with_recommended_naming(true)
        // Counters and histograms stay: whoever adds to them holds on to them.
        .idle_timeout(MetricKindMask::GAUGE, Some(GAUGES_KEPT)))
}

impl Metrics {
    /// Installs the recorder of the process.
    ///
    /// # Errors
    /// [`MetricsError`] if the process has one already.
    pub fn install() -> Result<Self, MetricsError> {
        let handle = builder()?.install_recorder()?;
        describe();
        crate::telemetry::describe();
        Ok(Self(handle))
    }

    /// Everything recorded, in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds what was recorded into the buckets, which bounds the memory it takes.
    pub(super) fn fold(&self) {
        self.0.run_upkeep();
    }
}
