//! Counts of the last few seconds, kept without a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::nanos::nanos;

const BUCKETS: u64 = 10;
const FULL: u64 = 0xffff;

/// A sliding window of ten buckets. A bucket is one word, so that counting is one compare-and-swap:
/// tick (32 bits), results (16), failures (16). A bucket that is full is halved, which keeps its rate.
#[derive(Debug, Default)]
pub(super) struct Window {
    buckets: [AtomicU64; BUCKETS as usize],
}

impl Window {
    fn tick(at: Duration, window: Duration) -> u64 {
        let length = (nanos(window) / BUCKETS).max(1);
        // From 1 on: a bucket never used has tick 0. The shortest tick is 0.1 s, so 32 bits wrap after
        // 13 years.
        nanos(at) / length % u64::from(u32::MAX) + 1
    }

    /// Counts one result at a time since the circuit's beginning.
    pub(super) fn record(&self, at: Duration, window: Duration, failed: bool) {
        let tick = Self::tick(at, window);
        let bucket = &self.buckets[(tick % BUCKETS) as usize];
        let _ = bucket.fetch_update(Relaxed, Relaxed, |word| {
            let (mut total, mut failures) = if word >> 32 == tick {
                (word >> 16 & FULL, word & FULL)
            } else {
                (0, 0)
            };
            if total == FULL {
                (total, failures) = (total / 2, failures / 2);
            }
            Some(tick << 32 | (total + 1) << 16 | (failures + u64::from(failed)))
        });
    }

    /// Results and failures within the window.
    pub(super) fn totals(&self, at: Duration, window: Duration) -> (u64, u64) {
        let tick = Self::tick(at, window);
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).fold(
            (0, 0),
            |(total, failures), word| {
                let age = tick.wrapping_sub(word >> 32);
                if age < BUCKETS {
                    (total + (word >> 16 & FULL), failures + (word & FULL))
                } else {
                    (total, failures)
                }
            },
        )
    }

    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            bucket.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn results_leave_the_window_with_time() {
        let window = Window::default();
        window.record(Duration::ZERO, WINDOW, true);
        window.record(Duration::from_secs(5), WINDOW, false);
        assert_eq!(window.totals(Duration::from_secs(9), WINDOW), (2, 1));
        assert_eq!(window.totals(Duration::from_secs(10), WINDOW), (1, 0));
        assert_eq!(window.totals(Duration::from_secs(15), WINDOW), (0, 0));
    }

    #[test]
    fn a_full_bucket_keeps_its_rate() {
        let window = Window::default();
        for n in 0..200_000 {
            window.record(Duration::ZERO, WINDOW, n % 4 == 0);
        }
        let (total, failures) = window.totals(Duration::ZERO, WINDOW);
        assert!(total > 30_000 && (failures as f64 / total as f64 - 0.25).abs() < 0.01);
    }
}
