//! Backoff: how long to wait before a retry.
//!
//! Many clients that failed at the same moment must not come back at the same moment; a schedule
//! spreads retries over time, jitter spreads clients over the schedule. The kinds and their formulas
//! are those of "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
//!
//! Three things always hold: the cap is applied before jitter, an overflow gives the cap, and the
//! random source is a parameter.
//!
//! ```
//! use std::time::Duration;
//! use backstop::backoff::{Backoff, Jitter};
//!
//! let backoff = Backoff::exponential(Duration::from_millis(100), 2.0, Duration::from_secs(60))?
//!     .with_jitter(Jitter::None);
//! let mut rng = || 0;
//! assert_eq!(backoff.delay(3, None, &mut rng), Duration::from_millis(800));
//! assert_eq!(backoff.delay(10_000, None, &mut rng), Duration::from_secs(60));
//! # Ok::<(), backstop::backoff::BackoffError>(())
//! ```

use std::time::Duration;

/// How a delay of the schedule is randomised. `b` is the schedule's delay, already capped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "config", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Jitter {
    /// `b` itself.
    None,
    /// `U(0, b)`: the widest spread, but the delay may collapse to nothing.
    Full,
    /// `b/2 + U(0, b/2)`: the default, since half of the schedule's delay is kept for sure.
    #[default]
    Equal,
    /// `min(cap, U(first delay, 3 · previous delay))`: grows from what was really waited.
    Decorrelated,
}

/// The delays before jitter.
#[derive(Debug, Clone, PartialEq)]
enum Schedule {
    Fixed(Duration),
    Exponential {
        initial: Duration,
        factor: f64,
        max: Duration,
    },
    List(Box<[Duration]>),
}

/// A schedule of delays with its jitter. Always valid: the constructors check.
#[derive(Debug, Clone, PartialEq)]
pub struct Backoff {
    schedule: Schedule,
    jitter: Jitter,
}

impl Backoff {
    /// The same delay before every retry, without jitter.
    ///
    /// # Errors
    /// [`BackoffError::ZeroDelay`] if it is zero.
    pub fn fixed(delay: Duration) -> Result<Self, BackoffError> {
        if delay.is_zero() {
            return Err(BackoffError::ZeroDelay);
        }
        Ok(Self {
            schedule: Schedule::Fixed(delay),
            jitter: Jitter::None,
        })
    }

    /// `min(max, initial · factorⁿ)` before retry `n`, counted from 0, with [`Jitter::Equal`].
    ///
    /// # Errors
    /// [`BackoffError::ZeroDelay`] if `initial` is zero, [`BackoffError::Factor`] if `factor` is not
    /// a finite number of at least 1, [`BackoffError::MaxBelowInitial`] if `max` is less than
    /// `initial`.
    pub fn exponential(
        initial: Duration,
        factor: f64,
        max: Duration,
    ) -> Result<Self, BackoffError> {
        if initial.is_zero() {
            return Err(BackoffError::ZeroDelay);
        }
        if !factor.is_finite() || factor < 1.0 {
            return Err(BackoffError::Factor(factor));
        }
        if max < initial {
            return Err(BackoffError::MaxBelowInitial { initial, max });
        }
        Ok(Self {
            schedule: Schedule::Exponential {
                initial,
                factor,
                max,
            },
            jitter: Jitter::Equal,
        })
    }

    /// These delays in turn, the last one for every retry after that, without jitter. A zero in the
    /// list means at once.
    ///
    /// # Errors
    /// [`BackoffError::EmptyList`] if there is none.
    pub fn list(delays: impl Into<Box<[Duration]>>) -> Result<Self, BackoffError> {
        let delays = delays.into();
        if delays.is_empty() {
            return Err(BackoffError::EmptyList);
        }
        Ok(Self {
            schedule: Schedule::List(delays),
            jitter: Jitter::None,
        })
    }

    /// A table's row, which is known not to be empty.
    pub(crate) fn of_millis(first: u64, rest: &[u64]) -> Self {
        let delays = std::iter::once(&first)
            .chain(rest)
            .copied()
            .map(Duration::from_millis)
            .collect();
        Self {
            schedule: Schedule::List(delays),
            jitter: Jitter::Equal,
        }
    }

    /// The defaults of the literature: 0.1 s, doubling, at most 60 s, equal jitter.
    pub(crate) fn standard() -> Self {
        Self {
            schedule: Schedule::Exponential {
                initial: Duration::from_millis(100),
                factor: 2.0,
                max: Duration::from_secs(60),
            },
            jitter: Jitter::Equal,
        }
    }

    /// The same schedule with another jitter.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The jitter.
    pub fn jitter(&self) -> Jitter {
        self.jitter
    }

    /// The schedule's delay before retry `retry`, counted from 0: capped, and without jitter.
    pub fn base(&self, retry: u32) -> Duration {
        match &self.schedule {
            Schedule::Fixed(delay) => *delay,
            Schedule::Exponential {
                initial,
                factor,
                max,
            } => {
                let exponent = i32::try_from(retry).unwrap_or(i32::MAX);
                let seconds = initial.as_secs_f64() * factor.powi(exponent);
                // An infinity or a number no Duration can hold is beyond every cap.
                Duration::try_from_secs_f64(seconds).map_or(*max, |delay| delay.min(*max))
            }
            Schedule::List(delays) => {
                let index = usize::try_from(retry)
                    .unwrap_or(usize::MAX)
                    .min(delays.len().saturating_sub(1));
                delays.get(index).copied().unwrap_or_default()
            }
        }
    }

    /// The longest delay there can be.
    pub fn cap(&self) -> Duration {
        match &self.schedule {
            Schedule::Fixed(delay) => *delay,
            Schedule::Exponential { max, .. } => *max,
            Schedule::List(delays) => delays.iter().max().copied().unwrap_or_default(),
        }
    }

    /// The delay before retry `retry`, counted from 0. `previous` is the delay that was waited before
    /// the retry before it, which only [`Jitter::Decorrelated`] looks at; `random` must be spread
    /// evenly over all of `u64`.
    pub fn delay(
        &self,
        retry: u32,
        previous: Option<Duration>,
        random: &mut dyn FnMut() -> u64,
    ) -> Duration {
        self.delay_with(self.jitter, retry, previous, random)
    }

    /// The delay for a throttled request: as [`Backoff::delay`], but full jitter, which could send
    /// the next request at once, becomes equal jitter.
    pub fn throttled_delay(
        &self,
        retry: u32,
        previous: Option<Duration>,
        random: &mut dyn FnMut() -> u64,
    ) -> Duration {
        let jitter = if self.jitter == Jitter::Full {
            Jitter::Equal
        } else {
            self.jitter
        };
        self.delay_with(jitter, retry, previous, random)
    }

    fn delay_with(
        &self,
        jitter: Jitter,
        retry: u32,
        previous: Option<Duration>,
        random: &mut dyn FnMut() -> u64,
    ) -> Duration {
        let base = self.base(retry);
        match jitter {
            Jitter::None => base,
            Jitter::Full => up_to(base, random),
            Jitter::Equal => {
                let half = base / 2;
                half + up_to(base - half, random)
            }
            Jitter::Decorrelated => {
                let first = self.base(0);
                let previous = previous.unwrap_or(first).min(self.cap());
                let above = previous.saturating_mul(3).saturating_sub(first);
                first.saturating_add(up_to(above, random)).min(self.cap())
            }
        }
    }
}

/// `U(0, bound)`, both ends included.
fn up_to(bound: Duration, random: &mut dyn FnMut() -> u64) -> Duration {
    let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
    let scaled = ((u128::from(nanos) + 1) * u128::from(random())) >> 64;
    Duration::from_nanos(u64::try_from(scaled).unwrap_or(nanos))
}

/// Why a backoff is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackoffError {
    /// A delay of zero, which would be no backoff at all.
    #[error("the first delay is zero; it must be longer")]
    ZeroDelay,
    /// The factor.
    #[error("the factor {0} is not a finite number of at least 1")]
    Factor(f64),
    /// The cap.
    #[error("the longest delay, {max:?}, is shorter than the first, {initial:?}")]
    MaxBelowInitial {
        /// The first delay.
        initial: Duration,
        /// The cap.
        max: Duration,
    },
    /// The list.
    #[error("the list of delays is empty")]
    EmptyList,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A small generator (SplitMix64): the tests need spread, not secrecy.
    fn seeded(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn exponential_delays_double_up_to_the_cap() {
        let backoff = Backoff::exponential(ms(100), 2.0, ms(1000))
            .unwrap()
            .with_jitter(Jitter::None);
        let delays: Vec<_> = (0..6).map(|n| backoff.delay(n, None, &mut || 0)).collect();
        assert_eq!(
            delays,
            [ms(100), ms(200), ms(400), ms(800), ms(1000), ms(1000)]
        );
    }

    #[test]
    fn a_list_is_followed_and_its_last_delay_stays() {
        let backoff = Backoff::list([ms(1), ms(5), ms(2)]).unwrap();
        let delays: Vec<_> = [0, 1, 2, 3, u32::MAX]
            .map(|n| backoff.delay(n, None, &mut || 7))
            .into();
        assert_eq!(delays, [ms(1), ms(5), ms(2), ms(2), ms(2)]);
    }

    #[test]
    fn a_fixed_delay_never_changes() {
        let backoff = Backoff::fixed(ms(250)).unwrap();
        assert_eq!(backoff.delay(0, None, &mut || u64::MAX), ms(250));
        assert_eq!(backoff.delay(10_000, None, &mut || 0), ms(250));
    }

    #[test]
    fn each_jitter_follows_its_formula_at_both_ends_of_the_random_source() {
        let backoff = Backoff::exponential(ms(100), 2.0, ms(10_000)).unwrap();
        let ends = |jitter, previous| {
            let backoff = backoff.clone().with_jitter(jitter);
            (
                backoff.delay(2, previous, &mut || 0),
                backoff.delay(2, previous, &mut || u64::MAX),
            )
        };
        assert_eq!(ends(Jitter::None, None), (ms(400), ms(400)));
        assert_eq!(ends(Jitter::Full, None), (ms(0), ms(400)));
        assert_eq!(ends(Jitter::Equal, None), (ms(200), ms(400)));
        assert_eq!(
            ends(Jitter::Decorrelated, Some(ms(200))),
            (ms(100), ms(600))
        );
        assert_eq!(
            ends(Jitter::Decorrelated, Some(ms(9_000))),
            (ms(100), ms(10_000))
        );
        assert_eq!(ends(Jitter::Decorrelated, None), (ms(100), ms(300)));
    }

    #[test]
    fn the_cap_comes_before_jitter() {
        // Were jitter drawn from the uncapped delay, nearly every draw would end up at the cap.
        let backoff = Backoff::exponential(ms(100), 2.0, ms(1000))
            .unwrap()
            .with_jitter(Jitter::Full);
        let mut rng = seeded(1);
        let at_cap = (0..1000)
            .filter(|_| backoff.delay(60, None, &mut rng) >= ms(990))
            .count();
        assert!(at_cap < 50, "{at_cap} of 1000 draws at the cap");
    }

    #[test]
    fn throttling_never_gets_bare_full_jitter() {
        let backoff = Backoff::exponential(ms(1000), 2.0, ms(60_000))
            .unwrap()
            .with_jitter(Jitter::Full);
        assert_eq!(backoff.delay(0, None, &mut || 0), Duration::ZERO);
        assert_eq!(backoff.throttled_delay(0, None, &mut || 0), ms(500));
        let decorrelated = backoff.with_jitter(Jitter::Decorrelated);
        assert_eq!(
            decorrelated.throttled_delay(5, Some(ms(4000)), &mut || 0),
            ms(1000)
        );
    }

    #[test]
    fn wrong_numbers_are_refused_by_name() {
        let exponential = Backoff::exponential;
        assert_eq!(
            exponential(Duration::ZERO, 2.0, ms(1)),
            Err(BackoffError::ZeroDelay)
        );
        assert_eq!(
            exponential(ms(1), 0.99, ms(1)),
            Err(BackoffError::Factor(0.99))
        );
        assert!(
            matches!(exponential(ms(1), f64::NAN, ms(1)), Err(BackoffError::Factor(f)) if f.is_nan())
        );
        assert_eq!(
            exponential(ms(1), f64::INFINITY, ms(1)),
            Err(BackoffError::Factor(f64::INFINITY))
        );
        let (initial, max) = (ms(2), ms(1));
        assert_eq!(
            exponential(initial, 2.0, max),
            Err(BackoffError::MaxBelowInitial { initial, max })
        );
        assert_eq!(Backoff::fixed(Duration::ZERO), Err(BackoffError::ZeroDelay));
        assert_eq!(Backoff::list([]), Err(BackoffError::EmptyList));
        assert!(exponential(ms(1), 1.0, ms(1)).is_ok());
    }

    #[test]
    fn jitter_is_spread_evenly() {
        let exponential = Backoff::exponential(ms(1000), 2.0, ms(60_000)).unwrap();
        let list = Backoff::list([ms(500), ms(4000)]).unwrap();
        let fixed = Backoff::fixed(ms(4000)).unwrap();
        let mut rng = seeded(42);
        // Each kind of schedule has 4 s before its third retry; the first delay is 1, 0.5 and 4 s.
        for (backoff, first) in [(exponential, 1.0), (list, 0.5), (fixed, 4.0)] {
            for (jitter, low, high) in [
                (Jitter::Full, 0.0_f64, 4.0_f64),
                (Jitter::Equal, 2.0, 4.0),
                // After a delay of 3 s; never beyond the cap.
                (Jitter::Decorrelated, first, 9.0),
            ] {
                let backoff = backoff.clone().with_jitter(jitter);
                let cap = backoff.cap().as_secs_f64();
                let mut tenths = [0_u32; 10];
                let mut at_cap = 0;
                for _ in 0..10_000 {
                    let delay = backoff.delay(2, Some(ms(3000)), &mut rng);
                    let seconds = delay.as_secs_f64();
                    assert!(
                        (low..=high.min(cap)).contains(&seconds),
                        "{jitter:?} {seconds}"
                    );
                    if seconds >= cap {
                        at_cap += 1;
                    } else {
                        let tenth = ((seconds - low) / (high - low) * 10.0) as usize;
                        tenths[tenth.min(9)] += 1;
                    }
                }
                // What the cap cut off is at the cap; the rest is even. 1000 are expected in a tenth,
                // standard deviation 30.
                let whole = ((cap - low) / (high - low) * 10.0).floor() as usize;
                for tenth in tenths.iter().take(whole.min(10)) {
                    assert!((850..1150).contains(tenth), "{jitter:?} {tenths:?}");
                }
                let beyond = ((high - cap) / (high - low)).clamp(0.0, 1.0) * 10_000.0;
                assert!(
                    (f64::from(at_cap) - beyond).abs() < 250.0,
                    "{jitter:?} {at_cap} {beyond}"
                );
            }
        }
    }

    fn any_backoff() -> impl Strategy<Value = Backoff> {
        let delay = || (1_u64..u64::MAX / 4).prop_map(Duration::from_nanos);
        let fixed = delay().prop_map(|delay| Backoff::fixed(delay).unwrap());
        let list = proptest::collection::vec(delay(), 1..12)
            .prop_map(|delays| Backoff::list(delays).unwrap());
        prop_oneof![any_exponential(), fixed, list]
    }

    fn any_exponential() -> impl Strategy<Value = Backoff> {
        (1_u64..10_000_000_000, 1.0_f64..1000.0, 0_u64..u64::MAX / 2).prop_map(
            |(initial, factor, more)| {
                let initial = Duration::from_nanos(initial);
                Backoff::exponential(initial, factor, initial + Duration::from_nanos(more)).unwrap()
            },
        )
    }

    fn any_jitter() -> impl Strategy<Value = Jitter> {
        prop_oneof![
            Just(Jitter::None),
            Just(Jitter::Full),
            Just(Jitter::Equal),
            Just(Jitter::Decorrelated)
        ]
    }

    proptest! {
        #[test]
        fn no_delay_exceeds_the_cap_nor_its_base(
            backoff in any_backoff(), jitter in any_jitter(), retry in any::<u32>(),
            previous in proptest::option::of(any::<u64>()), random in any::<u64>(),
        ) {
            let backoff = backoff.with_jitter(jitter);
            let delay = backoff.delay(retry, previous.map(Duration::from_nanos), &mut || random);
            prop_assert!(delay <= backoff.cap());
            match jitter {
                Jitter::None => prop_assert_eq!(delay, backoff.base(retry)),
                Jitter::Full => prop_assert!(delay <= backoff.base(retry)),
                Jitter::Equal => {
                    prop_assert!(delay <= backoff.base(retry) && delay >= backoff.base(retry) / 2);
                }
                Jitter::Decorrelated => prop_assert!(delay >= backoff.base(0)),
            }
        }

        #[test]
        fn the_base_never_falls_and_ends_at_the_cap(
            backoff in any_exponential(), retry in 0_u32..20_000,
        ) {
            prop_assert!(backoff.base(retry) <= backoff.base(retry + 1));
            prop_assert!(backoff.base(retry) <= backoff.cap());
        }

        #[test]
        fn throttling_keeps_at_least_half_of_what_full_jitter_would_draw_from(
            backoff in any_backoff(), jitter in any_jitter(), retry in any::<u32>(), random in any::<u64>(),
        ) {
            let backoff = backoff.with_jitter(jitter);
            let delay = backoff.throttled_delay(retry, None, &mut || random);
            let floor = if jitter == Jitter::Decorrelated { backoff.base(0) } else { backoff.base(retry) / 2 };
            prop_assert!(delay >= floor.min(backoff.cap()) && delay <= backoff.cap());
        }

        #[test]
        fn a_larger_draw_never_gives_a_shorter_delay(
            backoff in any_backoff(), jitter in any_jitter(), retry in any::<u32>(),
            previous in proptest::option::of(any::<u64>()), draws in any::<(u64, u64)>(),
        ) {
            let backoff = backoff.with_jitter(jitter);
            let previous = previous.map(Duration::from_nanos);
            let (low, high) = (draws.0.min(draws.1), draws.0.max(draws.1));
            let delay = |random| backoff.delay(retry, previous, &mut || random);
            prop_assert!(delay(low) <= delay(high));
        }

        #[test]
        fn a_fixed_delay_is_the_same_before_every_retry(delay in 1_u64..u64::MAX, retry in any::<u32>()) {
            let delay = Duration::from_nanos(delay);
            prop_assert_eq!(Backoff::fixed(delay).unwrap().base(retry), delay);
        }

        #[test]
        fn a_list_is_followed_to_its_end_and_stays_there(
            delays in proptest::collection::vec(0_u64..u64::MAX, 1..20), retry in any::<u32>(),
        ) {
            let delays: Vec<_> = delays.into_iter().map(Duration::from_nanos).collect();
            let backoff = Backoff::list(delays.clone()).unwrap();
            let at = (retry as usize).min(delays.len() - 1);
            prop_assert_eq!(backoff.base(retry), delays[at]);
            prop_assert_eq!(backoff.cap(), *delays.iter().max().unwrap());
        }

        #[test]
        fn an_overflow_gives_the_cap(factor in 1.1_f64..1e300, seconds in 1_u64..u64::MAX) {
            let max = Duration::from_secs(seconds);
            let backoff = Backoff::exponential(Duration::from_secs(1), factor, max).unwrap();
            prop_assert_eq!(backoff.base(10_000), max);
            prop_assert_eq!(backoff.base(u32::MAX), max);
        }
    }
}
