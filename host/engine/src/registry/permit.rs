//! The leave to send one request to a target.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::target::{Target, traffic};
use crate::circuit::{CircuitConfig, Ticket, Verdict};
use crate::failure::Failure;

/// Leave to send one request to a target.
///
/// Give it back with the result. Dropped without one (the caller gave up, the host could not send), it
/// says nothing about the target, and a half-open circuit's place is free again.
#[must_use = "a permit that is dropped lets nothing be learned from the request"]
#[derive(Debug)]
pub struct Permit {
    target: Arc<Target>,
    ticket: Ticket,
    settled: bool,
    answered_at: Option<Instant>,
    /// Of the target's limited ones, to be given back.
    has_place: bool,
}

impl Permit {
    pub(super) fn new(target: Arc<Target>, ticket: Ticket) -> Self {
        Self {
            target,
            ticket,
            settled: false,
            answered_at: None,
            has_place: false,
        }
    }

    /// The target.
    pub fn target(&self) -> &Arc<Target> {
        &self.target
    }

    /// Waits for a place at the target, where its requests are limited, at most until `until`. To be
    /// called before the request is sent; the place is kept as long as the permit.
    ///
    /// # Errors
    /// The failure of the host to let the request through: [`Overloaded`](crate::Kind::OVERLOADED), or
    /// [`TooManyRequests`](crate::Kind::TOO_MANY_REQUESTS) with the time after which the target's rate
    /// allows the next.
    pub async fn enter(&mut self, until: Instant) -> Result<(), Failure> {
        if let Some(bulkhead) = self.target.bulkhead() {
            bulkhead.enter(&self.target.name, until).await?;
            self.has_place = true;
        }
        Ok(())
    }

    /// Takes a place that is free at `now`. `None`: there is a wait, see [`enter`](Self::enter).
    pub(crate) fn try_enter(&mut self, now: Instant) -> Option<Result<(), Failure>> {
        let Some(bulkhead) = self.target.bulkhead() else {
            return Some(Ok(()));
        };
        let entered = bulkhead.try_enter(&self.target.name, now)?;
        self.has_place = entered.is_ok();
        Some(entered)
    }

    /// Says when the answer came, for [`answered`](Self::answered).
    pub(crate) fn note_answer(&mut self, now: Instant) {
        self.answered_at = Some(now);
    }

    /// The target has just answered well, after `latency`.
    pub fn answered(self, latency: Duration) {
        // The engine has looked at the clock when the answer came, and to look is not cheap.
        let now = self.answered_at.unwrap_or_else(Instant::now);
        self.succeeded(now, latency);
    }

    /// The target answered well, after `latency`.
    pub fn succeeded(mut self, now: Instant, latency: Duration) {
        self.settled = true;
        let verdict = |config: &CircuitConfig| match config.slow_after {
            Some(slow) if latency >= slow => Verdict::Slow,
            _ => Verdict::Well,
        };
        if self.target.settle(&self.ticket, verdict, now) {
            self.target.note_latency(latency);
        }
    }

    /// The target failed. Where that does not speak against its health (throttling, an error that is the
    /// tool's own answer) the target did answer, and its circuit counts it as well. A failure that arose
    /// in the host is no result: drop the permit instead.
    pub fn failed(mut self, now: Instant, ill_health: bool) {
        self.settled = true;
        self.target.note_failure();
        let verdict = if ill_health {
            Verdict::Ill
        } else {
            Verdict::Well
        };
        self.target.settle(&self.ticket, |_| verdict, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.settled {
            self.target.take_back(&self.ticket);
        }
        if self.has_place
            && let Some(bulkhead) = self.target.bulkhead()
        {
            bulkhead.leave();
        }
        self.target.leave(traffic::ENDED);
    }
}
