use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::bulkhead::{ConcurrencyLimit, RateLimit};
use crate::circuit::CircuitConfig;
use crate::failure::Failure;
use crate::health::HealthConfig;

/// What a target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// An MCP server, or another service.
    #[default]
    Service,
    /// A model.
    Model,
}

impl TargetKind {
    /// The kind's name, as strategies see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Model => "model",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "service" => Some(Self::Service),
            "model" => Some(Self::Model),
            _ => None,
        }
    }
}

/// What is known of a target when it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TargetSpec {
    /// Its name, unique in the host.
    pub name: Arc<str>,
    /// The group it belongs to: targets of a group stand in for one another.
    pub group: Arc<str>,
    /// What it is.
    pub kind: TargetKind,
    /// Where it is, if it is on a network.
    pub url: Option<String>,
    /// Where its health is asked for. See [`effective_health_url`](Self::effective_health_url).
    pub health_url: Option<String>,
    /// Whether it is probed at all. Default: yes.
    pub probed: bool,
    /// The time between two probes. More than zero, at most 24 h. Default: the registry's.
    pub health_interval: Option<Duration>,
    /// The time a probe may take. More than zero, at most 24 h. Default: the registry's.
    pub health_timeout: Option<Duration>,
    /// The time to the next probe while the answers are changing. More than zero, at most 24 h. Default: the
    /// registry's.
    pub health_fast_interval: Option<Duration>,
    /// Good probes in a row that make it healthy again. Default: the registry's.
    pub health_rise: Option<NonZeroU32>,
    /// Bad probes in a row that make it unhealthy. Default: the registry's.
    pub health_fall: Option<NonZeroU32>,
    /// Its circuit. Default: the registry's.
    pub circuit: Option<Arc<CircuitConfig>>,
    /// How long it takes to its full weight after a recovery, up to 24 h. Default: the registry's.
    pub slow_start: Option<Duration>,
    /// Higher is preferred. Default: 0.
    pub priority: i32,
    /// Its share among targets of the same priority. Default: 1.
    pub weight: NonZeroU32,
    /// Whether what it says of itself, such as tool annotations, is believed. Default: no.
    pub trusted: bool,
    /// How many requests it is sent at once. Default: any number.
    pub concurrency: Option<ConcurrencyLimit>,
    /// How many requests it is sent in a stretch of time. Default: any number.
    pub rate_limit: Option<RateLimit>,
    /// Whether it may have acted when it answers with an HTTP status, where that differs from what the
    /// detector says. Default: nothing differs, so after a 503 it has not.
    pub ambiguous_statuses: BTreeMap<u16, bool>,
    /// Anything else, by name.
    pub attributes: BTreeMap<String, String>,
}

impl TargetSpec {
    /// A service of a group.
    pub fn service(name: impl Into<Arc<str>>, group: impl Into<Arc<str>>) -> Self {
        Self::new(name.into(), group.into(), TargetKind::Service)
    }

    /// A model of a group.
    pub fn model(name: impl Into<Arc<str>>, group: impl Into<Arc<str>>) -> Self {
        Self::new(name.into(), group.into(), TargetKind::Model)
    }

    fn new(name: Arc<str>, group: Arc<str>, kind: TargetKind) -> Self {
        Self {
            name,
            group,
            kind,
            url: None,
            health_url: None,
            probed: true,
            health_interval: None,
            health_timeout: None,
            health_fast_interval: None,
            health_rise: None,
            health_fall: None,
            circuit: None,
            slow_start: None,
            priority: 0,
            weight: NonZeroU32::MIN,
            trusted: false,
            concurrency: None,
            rate_limit: None,
            ambiguous_statuses: BTreeMap::new(),
            attributes: BTreeMap::new(),
        }
    }

    /// Sets where it is.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = Some(url.into());
        self
    }

    /// Sets where its health is asked for.
    pub fn health_url(mut self, url: impl Into<String>) -> Self {
        self.health_url = Some(url.into());
        self
    }

    /// Leaves it out of active health checks.
    pub fn unprobed(mut self) -> Self {
        self.probed = false;
        self
    }

    /// Sets the time between two probes.
    pub fn health_interval(mut self, interval: Duration) -> Self {
        self.health_interval = Some(interval);
        self
    }

    /// Sets the time a probe may take.
    pub fn health_timeout(mut self, timeout: Duration) -> Self {
        self.health_timeout = Some(timeout);
        self
    }

    /// Sets the time to the next probe while the answers are changing.
    pub fn health_fast_interval(mut self, interval: Duration) -> Self {
        self.health_fast_interval = Some(interval);
        self
    }

    /// Sets how many good probes in a row make it healthy again, and how many bad ones unhealthy.
    pub fn health_thresholds(mut self, rise: NonZeroU32, fall: NonZeroU32) -> Self {
        (self.health_rise, self.health_fall) = (Some(rise), Some(fall));
        self
    }

    /// Gives its circuit a configuration of its own.
    pub fn circuit(mut self, config: CircuitConfig) -> Self {
        self.circuit = Some(Arc::new(config));
        self
    }

    /// Sets how long it takes to its full weight after a recovery.
    pub fn slow_start(mut self, time: Duration) -> Self {
        self.slow_start = Some(time);
        self
    }

    /// Sets the priority.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets the weight.
    pub fn weight(mut self, weight: NonZeroU32) -> Self {
        self.weight = weight;
        self
    }

    /// Believes what it says of itself.
    pub fn trusted(mut self) -> Self {
        self.trusted = true;
        self
    }

    /// Limits how many requests it is sent at once; `queue` more may wait.
    pub fn concurrency(mut self, max: NonZeroU32, queue: u32) -> Self {
        self.concurrency = Some(ConcurrencyLimit { max, queue });
        self
    }

    /// Limits how many requests it is sent in a stretch of time.
    pub fn rate_limit(mut self, requests: NonZeroU32, per: Duration) -> Self {
        self.rate_limit = Some(RateLimit { requests, per });
        self
    }

    /// Says whether it may have acted when it answers with this HTTP status.
    pub fn ambiguous_status(mut self, status: u16, ambiguous: bool) -> Self {
        self.ambiguous_statuses.insert(status, ambiguous);
        self
    }

    /// Corrects a failure of this target by what is known of it.
    pub(crate) fn correct(&self, failure: &mut Failure) {
        let said = failure
            .http_status
            .and_then(|status| self.ambiguous_statuses.get(&status));
        if let Some(ambiguous) = said {
            failure.ambiguous = *ambiguous;
        }
    }

    /// Adds anything else, by name.
    pub fn attribute(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.attributes.insert(key.into(), value.into());
        self
    }

    /// The health URL: the one given, else `{url}/health` for a service. A model's API has no such
    /// convention, so a model is asked for its health only where a URL is given.
    pub fn effective_health_url(&self) -> Option<Cow<'_, str>> {
        match (&self.health_url, &self.url, self.kind) {
            (Some(given), _, _) => Some(given.into()),
            (None, Some(url), TargetKind::Service) => {
                Some(format!("{}/health", url.trim_end_matches('/')).into())
            }
            _ => None,
        }
    }

    /// The health checks it gets: its own settings over the registry's.
    pub(crate) fn health_checks(&self, base: &HealthConfig) -> HealthConfig {
        HealthConfig {
            interval: self.health_interval.unwrap_or(base.interval),
            timeout: self.health_timeout.unwrap_or(base.timeout),
            fast_interval: self.health_fast_interval.unwrap_or(base.fast_interval),
            rise: self.health_rise.map_or(base.rise, NonZeroU32::get),
            fall: self.health_fall.map_or(base.fall, NonZeroU32::get),
            ..base.clone()
        }
    }

    /// Whether the two limit requests in the same way, so that what is counted for one holds for the other.
    pub(super) fn same_limits(&self, other: &Self) -> bool {
        self.concurrency == other.concurrency && self.rate_limit == other.rate_limit
    }

    /// Whether the two are asked for their health in the same way, so that what is known of one holds
    /// for the other.
    pub(super) fn same_health_source(&self, other: &Self) -> bool {
        self.probed == other.probed && self.url == other.url && self.health_url == other.health_url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_url_defaults_to_the_path_health_below_the_url() {
        let spec = TargetSpec::service("a", "g").url("http://localhost:1/");
        assert_eq!(
            spec.effective_health_url().unwrap(),
            "http://localhost:1/health"
        );
        let given = spec.health_url("http://localhost:2/live");
        assert_eq!(
            given.effective_health_url().unwrap(),
            "http://localhost:2/live"
        );
        assert_eq!(TargetSpec::service("a", "g").effective_health_url(), None);
        assert_eq!(
            TargetSpec::model("a", "g")
                .url("http://localhost:1")
                .effective_health_url(),
            None
        );
    }
}
