//! Hedging: a second target is asked before the first has answered, and whichever answers first is
//! heard.
//!
//! It cuts the slow tail of operations that change nothing, at the price of a few requests more (Dean,
//! Barroso: The Tail at Scale, 2013). It is off unless a call asks for it; it is done for read-only
//! operations only, at most once in a call, only to a target that would be let through at once, and
//! each hedge is taken out of the group's retry budget: where everything is slow, hedging stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quick_cache::sync::Cache;

/// After how long without an answer a second target is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hedge {
    /// After this time.
    After(Duration),
    /// After the time in which so many of a hundred calls of the operation are answered, 1 to 99. While
    /// fewer than [`MIN_SAMPLES`] answers are known, the operation is not hedged.
    Percentile(u8),
}

/// How many answers must be known before a percentile means anything.
pub const MIN_SAMPLES: u32 = 20;

/// Operations whose answer times are kept, at most.
const MAX_OPERATIONS: usize = 1024;

/// A hedge is never sent sooner: below it the two requests are as good as simultaneous.
const SOONEST: Duration = Duration::from_millis(1);

/// How long the answers of operations took.
pub(crate) struct AnswerTimes(Cache<(Arc<str>, Arc<str>), Arc<Histogram>>);

impl Default for AnswerTimes {
    fn default() -> Self {
        Self(Cache::new(MAX_OPERATIONS))
    }
}

impl AnswerTimes {
    /// What is known of an operation of a group.
    fn of(&self, group: &Arc<str>, operation: &Arc<str>) -> Arc<Histogram> {
        let key = (group.clone(), operation.clone());
        match self.0.get(&key) {
            Some(known) => known,
            None => {
                let new = Arc::new(Histogram::default());
                self.0.insert(key, new.clone());
                new
            }
        }
    }
}

/// When the second target is asked, and where the time of the answer is noted.
pub(crate) struct Schedule {
    /// `None`: too little is known.
    pub(crate) after: Option<Duration>,
    times: Option<Arc<Histogram>>,
}

impl Hedge {
    pub(crate) fn schedule(
        self,
        times: &AnswerTimes,
        group: &Arc<str>,
        operation: &Arc<str>,
    ) -> Schedule {
        match self {
            Self::After(after) => Schedule {
                after: Some(after.max(SOONEST)),
                times: None,
            },
            Self::Percentile(percent) => {
                let times = times.of(group, operation);
                Schedule {
                    after: times
                        .percentile(percent.clamp(1, 99))
                        .map(|after| after.max(SOONEST)),
                    times: Some(times),
                }
            }
        }
    }
}

impl Schedule {
    /// Notes how long the answer took, from the start of the first attempt. Where the hedge answered, the
    /// first would have taken longer still; to note nothing then would make the percentile sink with each
    /// hedge.
    pub(crate) fn answered(&self, took: Duration) {
        if let Some(times) = &self.times {
            times.record(took);
        }
    }
}

/// Each power of two of microseconds in so many steps: a percentile is at most an eighth too high.
const STEPS: usize = 8;
/// Up to 2^32 µs, more than an hour; longer ones count as that.
const BUCKETS: usize = 30 * STEPS;
/// From here on all counts are halved, so that the past fades.
const FULL: u32 = 2048;

/// Counts of answer times. Two at the same moment may miscount by one: it is an estimate.
struct Histogram {
    total: AtomicU32,
    counts: [AtomicU32; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            total: AtomicU32::new(0),
            counts: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }
}

impl Histogram {
    fn record(&self, took: Duration) {
        if let Some(count) = self.counts.get(bucket(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        if self.total.fetch_add(1, Ordering::Relaxed) + 1 >= FULL {
            let mut left = 0;
            for count in &self.counts {
                let half = count.load(Ordering::Relaxed) / 2;
                count.store(half, Ordering::Relaxed);
                left += half;
            }
            self.total.store(left, Ordering::Relaxed);
        }
    }

    /// The upper end of the bucket in which so many percent of the answers are reached.
    fn percentile(&self, percent: u8) -> Option<Duration> {
        let total = self.total.load(Ordering::Relaxed);
        if total < MIN_SAMPLES {
            return None;
        }
        let wanted = (u64::from(total) * u64::from(percent)).div_ceil(100);
        let mut sum = 0;
        let at = self.counts.iter().position(|count| {
            sum += u64::from(count.load(Ordering::Relaxed));
            sum >= wanted
        })?;
        Some(upper_end(at))
    }
}

/// The bucket of a time: linear up to eight microseconds, then eight to a power of two.
fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if micros < STEPS as u64 {
        return micros as usize;
    }
    let exponent = micros.ilog2() as usize;
    let step = (micros >> (exponent - 3)) as usize - STEPS;
    ((exponent - 2) * STEPS + step).min(BUCKETS - 1)
}

fn upper_end(bucket: usize) -> Duration {
    if bucket < STEPS {
        return Duration::from_micros(bucket as u64 + 1);
    }
    let (shift, step) = (bucket / STEPS - 1, bucket % STEPS);
    Duration::from_micros(((STEPS + step) as u64 + 1) << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_below_the_upper_end_of_its_bucket_and_at_most_an_eighth_away() {
        for micros in (0..100_000).chain((17..32).map(|power| (1 << power) - 1)) {
            let took = Duration::from_micros(micros);
            let end = upper_end(bucket(took));
            assert!(took < end, "{took:?} {end:?}");
            assert!(
                end <= took + took / 8 + Duration::from_micros(1),
                "{took:?} {end:?}"
            );
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_percentile_needs_samples_and_follows_them() {
        let times = Histogram::default();
        for _ in 1..MIN_SAMPLES {
            times.record(Duration::from_millis(10));
        }
        assert_eq!(times.percentile(95), None);
        for _ in 0..81 {
            times.record(Duration::from_millis(10));
        }
        let ten = times.percentile(95).unwrap();
        assert!((10..=12).contains(&ten.as_millis()), "{ten:?}");
        // Slow for a long time: the past fades.
        for _ in 0..4 * FULL {
            times.record(Duration::from_millis(100));
        }
        let hundred = times.percentile(50).unwrap();
        assert!((100..=113).contains(&hundred.as_millis()), "{hundred:?}");
        assert!(times.total.load(Ordering::Relaxed) < FULL);
    }

    #[test]
    fn operations_are_told_apart() {
        let times = AnswerTimes::default();
        let (group, fast, slow): (Arc<str>, Arc<str>, Arc<str>) =
            ("g".into(), "fast".into(), "slow".into());
        for _ in 0..MIN_SAMPLES {
            for (operation, millis) in [(&fast, 1), (&slow, 1000)] {
                Hedge::Percentile(90)
                    .schedule(&times, &group, operation)
                    .answered(Duration::from_millis(millis));
            }
        }
        let after = |operation| {
            Hedge::Percentile(90)
                .schedule(&times, &group, operation)
                .after
                .unwrap()
        };
        assert!(after(&fast) < Duration::from_millis(2));
        assert!(after(&slow) > Duration::from_millis(999));
        assert_eq!(
            Hedge::After(Duration::ZERO)
                .schedule(&times, &group, &fast)
                .after,
            Some(SOONEST)
        );
    }
}
