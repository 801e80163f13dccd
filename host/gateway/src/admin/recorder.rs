//! What records the metrics of the process, for Prometheus.

use std::time::Duration;

use backstop::metrics::{DURATION_BUCKETS, describe};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use metrics_util::layers::FanoutBuilder;

use crate::otlp::Otlp;

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
#[non_exhaustive]
pub enum MetricsError {
    /// There is no recorder to be had.
    #[error("the metrics of the process cannot be recorded")]
    Build(#[from] BuildError),
    /// There is one already, and a process has one only.
    #[error("something else records the metrics of this process")]
    Taken,
}

/// Makes it the recorder of the process.
fn record_with(recorder: impl metrics::Recorder + Sync + 'static) -> Result<(), MetricsError> {
    metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Taken)?;
    describe();
    crate::telemetry::describe();
    Ok(())
}

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
        Self::install_beside(None)
    }

    /// Installs the recorder of the process, which records for a collector as well where there is one.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn install_beside(otlp: Option<&Otlp>) -> Result<Self, MetricsError> {
        let recorder = builder()?.build_recorder();
        let handle = recorder.handle();
        match otlp.and_then(Otlp::recorder) {
            None => record_with(recorder)?,
            Some(collector) => {
                let both = FanoutBuilder::default()
                    .add_recorder(recorder)
                    .add_recorder(collector);
                record_with(both.build())?;
            }
        }
        Ok(Self(handle))
    }

    /// Installs a recorder of the process that records for a collector alone, where it is to have metrics.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn install_only(otlp: &Otlp) -> Result<(), MetricsError> {
        otlp.recorder().map_or(Ok(()), record_with)
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
