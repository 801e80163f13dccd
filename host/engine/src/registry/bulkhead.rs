//! Limits on the requests to one target: how many at once, and how many in a stretch of time.
//!
//! A bulkhead keeps a slow target from drawing every caller in: beyond the limit a request waits in a
//! queue of a given length, in the order of arrival, and beyond that it fails at once and says that the
//! host is overloaded, so that a strategy may ask elsewhere. Neither outcome speaks against the target.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::places::{Found, Places};
use crate::failure::{Failure, Origin};
use crate::kind::Kind;
use crate::nanos::nanos;

/// How many requests one target is sent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyLimit {
    /// At once, at most.
    pub max: NonZeroU32,
    /// How many more may wait for a place; 0 lets none wait.
    pub queue: u32,
}

/// How many requests one target is sent in a stretch of time, spread evenly after a burst (the generic
/// cell rate algorithm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in the stretch of time, and in a burst after a pause.
    pub requests: NonZeroU32,
    /// The stretch of time, more than zero, at most 24 h.
    pub per: Duration,
}

/// The limits of one target, and what they count.
#[derive(Debug)]
pub(super) struct Bulkhead {
    concurrency: Option<Concurrency>,
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Concurrency {
    limit: ConcurrencyLimit,
    places: Places,
}

impl Bulkhead {
    pub(super) fn new(
        concurrency: Option<ConcurrencyLimit>,
        rate: Option<RateLimit>,
        epoch: Instant,
    ) -> Option<Self> {
        if concurrency.is_none() && rate.is_none() {
            return None;
        }
        Some(Self {
            concurrency: concurrency.map(|limit| Concurrency {
                places: Places::new(limit.max),
                limit,
            }),
            rate: rate.map(|limit| Rate::new(limit, epoch)),
        })
    }

    /// Whether a request that came now would be sent at once.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        self.concurrency
            .as_ref()
            .is_none_or(|concurrency| concurrency.places.has_room())
            && self
                .rate
                .as_ref()
                .is_none_or(|rate| rate.wait(now).is_zero())
    }

    /// Requests that wait for a place.
    pub(super) fn waiting(&self) -> u32 {
        self.concurrency
            .as_ref()
            .map_or(0, |concurrency| concurrency.places.waiting())
    }

    /// Takes a place that is free at `now`, and says that it may not be used where the rate forbids it;
    /// `None` where there is a wait. After `Some(Ok(()))` the place must be [given back](Self::leave).
    pub(super) fn try_enter(&self, target: &str, now: Instant) -> Option<Result<(), Failure>> {
        if let Some(concurrency) = &self.concurrency
            && !concurrency.places.try_take()
        {
            return None;
        }
        Some(self.within_rate_or_leave(target, now))
    }

    /// Takes a place, waiting for one until `until`. After `Ok(())` it must be
    /// [given back](Self::leave).
    pub(super) async fn enter(&self, target: &str, until: Instant) -> Result<(), Failure> {
        if let Some(concurrency) = &self.concurrency
            && !concurrency.places.try_take()
        {
            // Apart, so that calls that need not wait do not carry the wait's state.
            Box::pin(concurrency.wait(target, until)).await?;
        }
        self.within_rate_or_leave(target, Instant::now())
    }

    /// Gives a place back.
    pub(super) fn leave(&self) {
        if let Some(concurrency) = &self.concurrency {
            concurrency.places.give_back();
        }
    }

    fn within_rate_or_leave(&self, target: &str, now: Instant) -> Result<(), Failure> {
        self.within_rate(target, now).inspect_err(|_| self.leave())
    }

    /// Counts a request against the rate. Last, so that one that finds no place does not use it up.
    fn within_rate(&self, target: &str, now: Instant) -> Result<(), Failure> {
        let Some(rate) = &self.rate else {
            return Ok(());
        };
        rate.take(now).map_err(|wait| rate.exceeded(target, wait))
    }
}

impl Concurrency {
    async fn wait(&self, target: &str, until: Instant) -> Result<(), Failure> {
        let ConcurrencyLimit { max, queue } = self.limit;
        match self.places.take(queue, until).await {
            Found::Place => Ok(()),
            Found::FullQueue if queue == 0 => Err(overloaded(format!(
                "{target} is busy with {max} requests, all it is given at once"
            ))),
            Found::FullQueue => Err(overloaded(format!(
                "{target} is busy with {max} requests, all it is given at once, and {queue} more wait in its queue"
            ))),
            Found::NoneInTime => Err(overloaded(format!(
                "{target} is busy with {max} requests, all it is given at once, and no place became free in time"
            ))),
        }
    }
}

/// The generic cell rate algorithm (ITU-T I.371): one number says when the bucket is empty again.
#[derive(Debug)]
struct Rate {
    limit: RateLimit,
    epoch: Instant,
    /// Nanoseconds from one request to the next, and how far requests may run ahead of that.
    interval: u64,
    tolerance: u64,
    /// When the next request would be due if all were spread evenly, in nanoseconds since the epoch.
    due: AtomicU64,
}

impl Rate {
    fn new(limit: RateLimit, epoch: Instant) -> Self {
        let requests = u64::from(limit.requests.get());
        let interval = (nanos(limit.per) / requests).max(1);
        Self {
            limit,
            epoch,
            interval,
            tolerance: interval.saturating_mul(requests - 1),
            due: AtomicU64::new(0),
        }
    }

    /// How long a request that came now would have to wait.
    fn wait(&self, now: Instant) -> Duration {
        let now = nanos(now.saturating_duration_since(self.epoch));
        self.wait_after(self.due.load(Ordering::Relaxed), now)
    }

    fn wait_after(&self, due: u64, now: u64) -> Duration {
        Duration::from_nanos(due.saturating_sub(self.tolerance).saturating_sub(now))
    }

    /// Counts a request, or says how long it would have to wait.
    fn take(&self, now: Instant) -> Result<(), Duration> {
        let now = nanos(now.saturating_duration_since(self.epoch));
        self.due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| {
                self.wait_after(due, now)
                    .is_zero()
                    .then(|| due.max(now).saturating_add(self.interval))
            })
            .map(|_| ())
            .map_err(|due| self.wait_after(due, now))
    }

    fn exceeded(&self, target: &str, wait: Duration) -> Failure {
        let RateLimit { requests, per } = self.limit;
        Failure {
            origin: Origin::Local,
            retry_after: Some(wait),
            ..Failure::new(
                Kind::TOO_MANY_REQUESTS,
                format!("{target} has had the {requests} requests it is given in {per:?}"),
            )
        }
    }
}

fn overloaded(message: String) -> Failure {
    Failure::new(Kind::OVERLOADED, message)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout_at;

    use super::*;

    fn bulkhead(max: u32, queue: u32) -> Bulkhead {
        let max = NonZeroU32::new(max).unwrap();
        Bulkhead::new(Some(ConcurrencyLimit { max, queue }), None, Instant::now()).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_requests_wait_in_order_and_beyond_the_queue_they_fail_at_once() {
        let bulkhead = bulkhead(1, 1);
        bulkhead.enter("a", soon()).await.unwrap();
        let began = Instant::now();
        let (second, third) = tokio::join!(bulkhead.enter("a", soon()), async {
            tokio::task::yield_now().await;
            assert_eq!(bulkhead.waiting(), 1);
            let third = bulkhead.enter("a", soon()).await;
            assert_eq!(began.elapsed(), Duration::ZERO);
            bulkhead.leave();
            third
        });
        assert!(second.is_ok());
        let failure = third.unwrap_err();
        assert_eq!(failure.kind, Kind::OVERLOADED);
        assert_eq!(
            (failure.origin, failure.ambiguous, failure.ill_health),
            (Origin::Local, false, false)
        );
        assert_eq!(
            failure.message,
            "a is busy with 1 requests, all it is given at once, and 1 more wait in its queue"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_place_ends_in_time_and_leaves_the_queue() {
        let bulkhead = bulkhead(1, 5);
        bulkhead.enter("a", soon()).await.unwrap();
        let began = Instant::now();
        assert!(bulkhead.enter("a", soon()).await.is_err());
        assert_eq!(began.elapsed(), Duration::from_secs(1));
        // A caller that gives up leaves the queue as well.
        let _ = timeout_at(Instant::now(), bulkhead.enter("a", soon())).await;
        assert_eq!(bulkhead.waiting(), 0);
        assert!(!bulkhead.has_room(Instant::now()));
        bulkhead.leave();
        assert!(bulkhead.has_room(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_allows_a_burst_and_then_an_even_stream() {
        let requests = NonZeroU32::new(10).unwrap();
        let per = Duration::from_secs(1);
        let bulkhead =
            Bulkhead::new(None, Some(RateLimit { requests, per }), Instant::now()).unwrap();
        for _ in 0..10 {
            bulkhead.enter("a", soon()).await.unwrap();
        }
        let failure = bulkhead.enter("a", soon()).await.unwrap_err();
        assert_eq!(failure.kind, Kind::TOO_MANY_REQUESTS);
        assert_eq!(failure.retry_after, Some(Duration::from_millis(100)));
        assert_eq!(failure.origin, Origin::Local);
        assert!(!bulkhead.has_room(Instant::now()));
        let mut sent = 0;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            sent += u32::from(bulkhead.enter("a", soon()).await.is_ok());
        }
        assert_eq!(sent, 100, "ten a second");
        // A pause gives the burst back, and no more than it.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let mut burst = 0;
        while bulkhead.enter("a", soon()).await.is_ok() {
            burst += 1;
        }
        assert_eq!(burst, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_finds_no_place_uses_no_rate_up() {
        let one = NonZeroU32::MIN;
        let (concurrency, rate) = (
            ConcurrencyLimit { max: one, queue: 0 },
            RateLimit {
                requests: NonZeroU32::new(2).unwrap(),
                per: Duration::from_secs(60),
            },
        );
        let bulkhead = Bulkhead::new(Some(concurrency), Some(rate), Instant::now()).unwrap();
        bulkhead.enter("a", soon()).await.unwrap();
        assert_eq!(
            bulkhead.enter("a", soon()).await.unwrap_err().kind,
            Kind::OVERLOADED
        );
        bulkhead.leave();
        assert!(bulkhead.enter("a", soon()).await.is_ok());
        // Beyond the rate the place it had is free again.
        bulkhead.leave();
        assert_eq!(
            bulkhead.enter("a", soon()).await.unwrap_err().kind,
            Kind::TOO_MANY_REQUESTS
        );
        let concurrency = bulkhead.concurrency.as_ref().unwrap();
        assert!(concurrency.places.has_room());
    }
}
