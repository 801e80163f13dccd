//! Where chance comes from: jitter, weights, samples. Injected, so that a simulation repeats exactly.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of numbers spread evenly over all of `u64`.
pub type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// SplitMix64 (Steele, Lea, Flood 2014), seeded. Good for spreading load and jitter, not for secrets.
pub fn seeded(seed: u64) -> Random {
    let state = AtomicU64::new(seed);
    Arc::new(move || {
        let mut z = state
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
            .wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// The same, with a seed of the operating system's: differs from run to run.
pub fn from_os() -> Random {
    seeded(RandomState::new().hash_one(0))
}

/// A number below `bound`, evenly (Lemire's multiplication, without the correction of its bias of at
/// most `bound / 2^64`).
pub(crate) fn below(random: u64, bound: u64) -> u64 {
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_two_seeds_differ() {
        let draw = |seed| {
            let random = seeded(seed);
            [random(), random(), random()]
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        // The published test vector of SplitMix64 for seed 1234567.
        assert_eq!(seeded(1_234_567)(), 6_457_827_717_110_365_317);
    }

    #[test]
    fn below_stays_below() {
        assert_eq!(below(u64::MAX, 10), 9);
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u64::MAX / 2 + 1, 10), 5);
    }
}
