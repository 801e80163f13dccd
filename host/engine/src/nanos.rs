//! Durations as machine words: what a hot path reckons with, since a division of 128 bits costs ten of 64.

use std::time::Duration;

/// Whole nanoseconds, up to 584 years; a longer time counts as that.
pub(crate) fn nanos(time: Duration) -> u64 {
    time.as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::from(time.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_duration_as_far_as_they_fit() {
        for time in [
            Duration::ZERO,
            Duration::new(3, 7),
            Duration::from_secs(86_400),
        ] {
            assert_eq!(u128::from(nanos(time)), time.as_nanos());
        }
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }
}
