//! The servers of a simulation: well, unless a fault of the scenario hits the request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use backstop::call::{Attempt, Degraded, RepeatSafety};
use backstop::config::scenario::{Fault, How, Scenario, Selection};
use backstop::detect::{Detector, Signal, TransportFault};
use backstop::health::Prober;
use backstop::operation::{OperationRule, OperationRules};
use backstop::random::Random;
use backstop::registry::{Registry, Target};
use backstop::{Exchange, Failure, Kind, Origin, Retained};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::{Instant, sleep};

/// What is asked of a server.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) operation: Arc<str>,
    /// As JSON.
    pub(super) arguments: String,
}

/// A fault of the scenario, and whom it hits.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) fault: Fault,
    /// How a request fails, in the terms of the wire where it has any.
    how: How,
    pub(super) targets: BTreeSet<Arc<str>>,
    operations: Option<OperationRules>,
    /// How many requests there were in the stretch of time that began then.
    seen: Mutex<HashMap<Arc<str>, (u128, u32)>>,
}

impl Active {
    fn new(fault: &Fault, registry: &Registry) -> Self {
        let operations = fault.operation.as_deref();
        let operations = operations.and_then(|glob| OperationRule::new(glob).ok());
        Self {
            how: in_terms_of_the_wire(&fault.how),
            targets: hit(fault, registry),
            operations: operations.map(|rule| [rule].into_iter().collect()),
            seen: Mutex::default(),
            fault: fault.clone(),
        }
    }

    fn is_on(&self, at: Duration) -> bool {
        let fault = &self.fault;
        if at < fault.from || fault.until.is_some_and(|until| at >= until) {
            return false;
        }
        let Some((every, lasts)) = fault.cycle else {
            return true;
        };
        (at - fault.from).as_nanos() % every.as_nanos() < lasts.as_nanos()
    }

    /// The times it is on, of a scenario that ends then.
    pub(super) fn times(&self, end: Duration) -> Vec<(Duration, Duration)> {
        let until = self.fault.until.unwrap_or(end).min(end);
        let Some((every, lasts)) = self.fault.cycle else {
            return vec![(self.fault.from, until)];
        };
        let begins = std::iter::successors(Some(self.fault.from), |from| Some(*from + every));
        let begins = begins.take_while(|from| *from < until);
        begins
            .map(|from| (from, (from + lasts).min(until)))
            .collect()
    }

    /// Whether a request is one more than there may be.
    fn is_beyond(&self, target: &Arc<str>, at: Duration) -> bool {
        let Some(limit) = &self.fault.beyond else {
            return true;
        };
        let stretch = at.as_nanos() / limit.per.as_nanos().max(1);
        let mut seen = lock(&self.seen);
        let (present, count) = seen.entry(target.clone()).or_default();
        if *present != stretch {
            (*present, *count) = (stretch, 0);
        }
        *count += 1;
        *count > limit.requests.get()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The targets a fault hits.
fn hit(fault: &Fault, registry: &Registry) -> BTreeSet<Arc<str>> {
    let mut all = BTreeSet::new();
    for group in registry.groups() {
        if fault.group.as_deref().is_some_and(|only| *only != *group) {
            continue;
        }
        // The highest priority first and, among equals, by name.
        let targets = registry.list_group(&group);
        let hit = targets
            .iter()
            .enumerate()
            .filter(|(at, target)| match &fault.target {
                Selection::Named(name) => *target.name == **name,
                Selection::First => *at == 0,
                Selection::Others => *at > 0,
                _ => true,
            });
        all.extend(hit.map(|(_, target)| target.name.clone()));
    }
    all
}

/// The way in which a failure usually has a kind; the kind itself where there is none.
fn in_terms_of_the_wire(how: &How) -> How {
    let How::Kind(kind) = how else {
        return how.clone();
    };
    match kind.as_str() {
        "ConnectionError" => How::Transport(TransportFault::Refused),
        "TimeoutError" => How::Silent,
        "ServiceUnavailable" => How::Http(503),
        "TooManyRequests" => How::Http(429),
        "InternalServerError" => How::Http(500),
        "BadGateway" => How::Http(502),
        "GatewayTimeout" => How::Http(504),
        "InvalidParameter" => How::JsonRpc(-32602),
        "Unauthorized" => How::Http(401),
        "Forbidden" => How::Http(403),
        "NotFound" => How::Http(404),
        "MethodNotFound" => How::JsonRpc(-32601),
        "ToolError" => How::ToolError("the tool failed".into()),
        "StreamInterrupted" => How::Transport(TransportFault::Eof),
        "ProtocolError" => How::Transport(TransportFault::Garbage),
        _ => how.clone(),
    }
}

/// Requests and probes a target got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Got {
    pub(super) requests: u64,
    pub(super) probes: u64,
}

/// The servers.
#[derive(Debug)]
pub(super) struct World {
    pub(super) faults: Vec<Active>,
    latency: Duration,
    began: Instant,
    chance: Chance,
    operations: OperationRules,
    /// The group of an operation that only one is called for.
    groups: BTreeMap<String, Arc<str>>,
    got: Mutex<BTreeMap<Arc<str>, Got>>,
}

/// A source of chance.
pub(super) struct Chance(pub(super) Random);

impl std::fmt::Debug for Chance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chance")
    }
}

impl Chance {
    /// From 0 up to 1.
    pub(super) fn share(&self) -> f64 {
        // As many bits as the number holds.
        ((self.0)() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The duration, give or take a half, in whole milliseconds.
    pub(super) fn about(&self, duration: Duration) -> Duration {
        let about = duration.mul_f64(0.5 + self.share());
        Duration::from_millis(super::millis(&about))
    }
}

impl World {
    pub(super) fn new(
        scenario: &Scenario,
        registry: &Registry,
        operations: OperationRules,
        chance: Random,
    ) -> Self {
        let faults = scenario.faults.iter();
        let mut groups = BTreeMap::new();
        for calls in &scenario.calls {
            if let Some(group) = &calls.group {
                groups.insert(calls.operation.clone(), Arc::from(group.as_str()));
            }
        }
        Self {
            faults: faults.map(|fault| Active::new(fault, registry)).collect(),
            latency: scenario.latency,
            began: Instant::now(),
            chance: Chance(chance),
            operations,
            groups,
            got: Mutex::default(),
        }
    }

    /// What each target got so far.
    pub(super) fn got(&self) -> BTreeMap<Arc<str>, Got> {
        lock(&self.got).clone()
    }

    /// The fault that hits a request, or a probe where there is no operation.
    fn hit_by(&self, target: &Arc<str>, operation: Option<&str>) -> Option<&Active> {
        let at = self.began.elapsed();
        self.faults.iter().find(|active| {
            let fault = &active.fault;
            let is_meant = match (operation, &active.operations) {
                (None, only) => fault.probes && only.is_none(),
                (Some(_), None) => true,
                (Some(operation), Some(only)) => only.of(operation).is_some(),
            };
            is_meant
                && active.targets.contains(target)
                && active.is_on(at)
                && (fault.share >= 1.0 || self.chance.share() < fault.share)
                // A probe is not among what is counted.
                && (operation.is_none() || active.is_beyond(target, at))
        })
    }

    /// Lets a request, or a probe, come to its end.
    async fn serve(&self, target: &Arc<str>, operation: Option<&str>) -> Result<(), Broken> {
        let Some(active) = self.hit_by(target, operation) else {
            sleep(self.chance.about(self.latency)).await;
            return Ok(());
        };
        let took = self.chance.about(active.fault.latency);
        match &active.how {
            How::Silent => std::future::pending().await,
            How::Slow => {
                sleep(took).await;
                Ok(())
            }
            how => {
                sleep(took).await;
                Err(Broken {
                    how: how.clone(),
                    message: active.fault.message.clone(),
                    retry_after: active.fault.retry_after,
                })
            }
        }
    }
}

/// What a server answers that is not well.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    how: How,
    message: Option<String>,
    retry_after: Option<Duration>,
}

impl Broken {
    fn failure(&self, detector: &Detector) -> Failure {
        let message = self.message.as_deref().unwrap_or("simulated");
        match &self.how {
            How::Transport(fault) => detector.detect(Signal::Transport {
                fault: *fault,
                message,
            }),
            How::Http(status) => {
                let hint = self
                    .retry_after
                    .map(|hint| super::millis(&hint).to_string());
                detector.detect(Signal::Http {
                    status: *status,
                    header: &|name| hint.clone().filter(|_| name == "retry-after-ms"),
                    body: message.as_bytes(),
                    now: SystemTime::UNIX_EPOCH,
                    session: false,
                })
            }
            How::JsonRpc(code) => detector.detect(Signal::JsonRpc {
                code: *code,
                message,
                data: None,
            }),
            How::ToolError(words) => detector.detect(Signal::ToolResult {
                text: self.message.as_deref().unwrap_or(words),
            }),
            How::Kind(kind) => {
                let mut failure = Failure::new(kind.clone(), message);
                failure.origin = Origin::Remote;
                failure.retry_after = self.retry_after;
                failure
            }
            // Neither comes back as a failure.
            _ => Failure::new(Kind::UNKNOWN, message),
        }
    }
}

impl Exchange for World {
    type Request = Request;
    type Answer = Bytes;
    type Error = Broken;

    async fn send(&self, attempt: &Attempt, request: &Request) -> Result<Bytes, Broken> {
        let target = &attempt.target.name;
        lock(&self.got).entry(target.clone()).or_default().requests += 1;
        self.serve(target, Some(&request.operation)).await?;
        let answer = json!({ "by": &**target, "operation": &*request.operation });
        Ok(answer.to_string().into())
    }

    fn classify(&self, outcome: Result<&Bytes, &Broken>, detector: &Detector) -> Option<Failure> {
        Some(outcome.err()?.failure(detector))
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        Some(request.arguments.clone().into())
    }

    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        let said = self.operations.repeat_safety(operation);
        said.unwrap_or(RepeatSafety::ReadOnly)
    }

    fn group_of(&self, operation: &str) -> Option<Arc<str>> {
        self.groups.get(operation).cloned()
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        Ok(Request {
            operation: operation.into(),
            arguments: arguments.unwrap_or(&request.arguments).to_owned(),
        })
    }

    fn compose(&self, _: &Request, body: &[u8], _: &Degraded) -> Result<Bytes, String> {
        Ok(Bytes::copy_from_slice(body))
    }

    fn retain(&self, _: &Request, answer: &Bytes) -> Option<Retained> {
        Some(Retained {
            body: answer.clone(),
            shared: true,
            ttl: None,
        })
    }
}

impl Prober for World {
    fn probe<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            lock(&self.got)
                .entry(target.name.clone())
                .or_default()
                .probes += 1;
            let served = self.serve(&target.name, None).await;
            served.map_err(|broken| broken.failure(&Detector::default()))
        })
    }
}
