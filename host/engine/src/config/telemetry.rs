//! `[telemetry]`: where spans and metrics are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::Reader;
use super::targets::header;
use super::units::{DurationText, Expanded};
use super::{text, value};

/// `[telemetry]`: OpenTelemetry spans and metrics, sent to a collector over OTLP (HTTP, protobuf). The
/// section's presence switches it on.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Telemetry {
    /// Where the collector takes OTLP over HTTP; `/v1/traces` and `/v1/metrics` are added. Default:
    /// `http://127.0.0.1:4318` (OTLP).
    pub endpoint: Expanded,
    /// Header fields for every request to the collector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Expanded>,
    /// Whether spans are sent: one for each request, call, attempt and decision. Default: true.
    pub traces: bool,
    /// The share of requests that are traced, 0 to 1, where the client does not say whether its own is.
    /// Default: 1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Whether metrics are sent. Default: true.
    pub metrics: bool,
    /// How often metrics are sent, 1 s to 1 h. Default: 60 s (OpenTelemetry).
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub interval: Duration,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            endpoint: Expanded::literal("http://127.0.0.1:4318".into()),
            headers: BTreeMap::new(),
            traces: true,
            sample: 1.0,
            metrics: true,
            interval: Duration::from_secs(60),
        }
    }
}

impl Telemetry {
    pub(super) fn read(r: &mut Reader<'_, '_>) -> Self {
        let base = Self::default();
        let interval = Duration::from_secs(1)..=Duration::from_secs(3600);
        Self {
            endpoint: r.read("endpoint", text::url).unwrap_or(base.endpoint),
            headers: r.map("headers", header),
            traces: r.read("traces", value::boolean).unwrap_or(base.traces),
            sample: r
                .read("sample", value::float(0.0..=1.0))
                .unwrap_or(base.sample),
            metrics: r.read("metrics", value::boolean).unwrap_or(base.metrics),
            interval: r
                .read("interval", value::duration(interval))
                .unwrap_or(base.interval),
        }
    }
}
