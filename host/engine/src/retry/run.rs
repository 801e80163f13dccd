//! The retry loop by itself, for any async operation outside an engine.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::{RetryContext, RetryManager};
use crate::call::RepeatSafety;
use crate::detect::Detector;
use crate::failure::Failure;

/// What bounds a run.
pub struct RetryRun<'a> {
    detector: &'a Detector,
    deadline: Instant,
    safety: RepeatSafety,
    importance: u8,
    random: Box<dyn FnMut() -> u64 + Send + 'a>,
}

impl<'a> RetryRun<'a> {
    /// A run that ends within `time`, waits included. The operation counts as unsafe to repeat until
    /// [`RetryRun::repeat_safety`] says otherwise.
    pub fn within(time: Duration, detector: &'a Detector) -> Self {
        let now = Instant::now();
        // A time that no clock can hold is as good as a year.
        let deadline = now
            .checked_add(time)
            .unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
        Self {
            detector,
            deadline,
            safety: RepeatSafety::default(),
            importance: 50,
            random: Box::new(entropy),
        }
    }

    /// Whether the operation may be repeated when it is not known if it was carried out.
    #[must_use]
    pub fn repeat_safety(mut self, safety: RepeatSafety) -> Self {
        self.safety = safety;
        self
    }

    /// How much the caller cares, 0 to 100, for policies that ask. Default: 50.
    #[must_use]
    pub fn importance(mut self, importance: u8) -> Self {
        self.importance = importance.min(100);
        self
    }

    /// The source of randomness for jitter, spread evenly over all of `u64`. Default: the process's.
    #[must_use]
    pub fn random(mut self, random: impl FnMut() -> u64 + Send + 'a) -> Self {
        self.random = Box::new(random);
        self
    }
}

impl fmt::Debug for RetryRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryRun")
            .field("deadline", &self.deadline)
            .field("safety", &self.safety)
            .finish_non_exhaustive()
    }
}

/// Jitter needs spread, not secrecy: the standard library seeds each hasher anew.
fn entropy() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Why a run ended without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryEnding {
    /// The policy allows no (further) retry of this failure.
    Exhausted,
    /// The operation may have been carried out and must not be done twice.
    OutcomeUnknown,
    /// The time is up, or the next wait would exceed it.
    DeadlineExceeded,
}

/// A run that ended without success.
#[derive(Debug)]
#[non_exhaustive]
pub struct RetryError<E> {
    /// Why.
    pub ending: RetryEnding,
    /// The last failure, classified.
    pub failure: Failure,
    /// The last error; `None` where the deadline cut the attempt short.
    pub error: Option<E>,
    /// Attempts made.
    pub attempts: u32,
}

impl<E> fmt::Display for RetryError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match self.ending {
            RetryEnding::Exhausted => "failed",
            RetryEnding::OutcomeUnknown => "outcome unknown, not repeated,",
            RetryEnding::DeadlineExceeded => "out of time",
        };
        write!(f, "{ending} after {} attempt(s)", self.attempts)
    }
}

impl<E: fmt::Debug> std::error::Error for RetryError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.failure)
    }
}

impl RetryManager {
    /// Calls `operation` with the number of the attempt, from 1, until it succeeds or the policies,
    /// the deadline or safety say stop. `classify` turns an error into a failure.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use backstop::detect::{Detector, Signal};
    /// use backstop::retry::{RetryManager, RetryRun};
    ///
    /// # async fn fetch() -> Result<u32, std::io::Error> { Ok(7) }
    /// # async fn example() {
    /// let (retry, detector) = (RetryManager::default(), Detector::default());
    /// let answer = retry
    ///     .run(
    ///         RetryRun::within(Duration::from_secs(5), &detector),
    ///         |_attempt| fetch(),
    ///         |error, detector| {
    ///             detector.detect(Signal::Error { class: "io", message: &error.to_string() })
    ///         },
    ///     )
    ///     .await;
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`RetryError`] with the last failure and error, and why there was no further attempt.
    pub async fn run<T, E, F>(
        &self,
        mut run: RetryRun<'_>,
        mut operation: impl FnMut(u32) -> F,
        classify: impl Fn(&E, &Detector) -> Failure,
    ) -> Result<T, RetryError<E>>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut previous = None;
        let mut retries = 0;
        loop {
            let attempts = retries + 1;
            let started = Instant::now();
            let (failure, error) =
                match tokio::time::timeout_at(run.deadline, operation(attempts)).await {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(error)) => (classify(&error, run.detector), Some(error)),
                    Err(_) => (run.detector.timed_out(started.elapsed()), None),
                };
            let fail = |ending, failure| {
                Err(RetryError {
                    ending,
                    failure,
                    error,
                    attempts,
                })
            };
            if failure.ambiguous && !run.safety.is_repeatable() {
                return fail(RetryEnding::OutcomeUnknown, failure);
            }
            let time_left = run.deadline.saturating_duration_since(Instant::now());
            let context = RetryContext {
                safety: run.safety,
                importance: run.importance,
                ..RetryContext::new(&failure, retries, time_left)
            };
            let Some(delay) = self.wanted_delay(&context, previous, &mut run.random) else {
                return fail(RetryEnding::Exhausted, failure);
            };
            if delay >= time_left {
                return fail(RetryEnding::DeadlineExceeded, failure);
            }
            tokio::time::sleep(delay).await;
            previous = Some(delay);
            retries += 1;
        }
    }
}
