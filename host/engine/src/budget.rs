//! Retry budgets: how many extra attempts a group can afford.
//!
//! A retry helps against a fault of one target and harms in an outage of all: three retries of every
//! call are four times the load on a system that is failing already. A budget ties the extra attempts
//! of a group (retries, hedges and fallbacks alike) to the calls made. An empty budget means
//! no retry; nobody ever waits for one.
//!
//! Two policies, one interface:
//! - [`BudgetPolicy::Ratio`], as in Finagle and tower: a share of the calls of the last seconds, plus a
//!   reserve for groups that are called rarely. The default.
//! - [`BudgetPolicy::Tokens`], as in gRPC (proposal A6): failures drain a bucket, successes fill it
//!   slowly, and no retry goes out while it is at most half full.
//!
//! Counting, which every call does, is lock-free; withdrawing, which only failures do, takes a
//! short lock, so that two failures never share the last token. Time is a parameter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::nanos::nanos;

/// The unit of account: 1/1000 of a retry.
const UNIT: i64 = 1000;

/// The window is divided into this many slots; what is older than the window goes slot by slot.
const SLOTS: u32 = 10;

/// How a budget is reckoned.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum BudgetPolicy {
    /// A share of recent calls, and a reserve.
    Ratio {
        /// How long a deposit lasts, 1 s to 60 s. Default: 10 s.
        ttl: Duration,
        /// Retries allowed per second whatever the number of calls, 0 to 1 000 000. Default: 10.
        reserve_per_second: u32,
        /// Retries per call, 0 to 10. Default: 0.2.
        ratio: f64,
    },
    /// gRPC's token bucket.
    Tokens {
        /// The bucket's size, 1 to 1000. It starts full.
        max_tokens: u32,
        /// What a success puts back, more than 0 up to `max_tokens`; three decimals count.
        token_ratio: f64,
    },
}

impl Default for BudgetPolicy {
    fn default() -> Self {
        Self::Ratio {
            ttl: Duration::from_secs(10),
            reserve_per_second: 10,
            ratio: 0.2,
        }
    }
}

impl BudgetPolicy {
    fn validate(&self) -> Result<(), BudgetError> {
        match *self {
            Self::Ratio {
                ttl,
                reserve_per_second,
                ratio,
            } => {
                if !(Duration::from_secs(1)..=Duration::from_secs(60)).contains(&ttl) {
                    return Err(BudgetError::Ttl(ttl));
                }
                if reserve_per_second > 1_000_000 {
                    return Err(BudgetError::Reserve(reserve_per_second));
                }
                if !(0.0..=10.0).contains(&ratio) {
                    return Err(BudgetError::Ratio(ratio));
                }
            }
            Self::Tokens {
                max_tokens,
                token_ratio,
            } => {
                if !(1..=1000).contains(&max_tokens) {
                    return Err(BudgetError::MaxTokens(max_tokens));
                }
                if !(0.001..=f64::from(max_tokens)).contains(&token_ratio) {
                    return Err(BudgetError::TokenRatio(token_ratio));
                }
            }
        }
        Ok(())
    }
}

/// Why a budget is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// The time to live.
    #[error("the budget's ttl {0:?} is not between 1 s and 60 s")]
    Ttl(Duration),
    /// The reserve.
    #[error("the budget's reserve of {0} retries per second is more than 1000000")]
    Reserve(u32),
    /// The ratio.
    #[error("the budget's ratio {0} is not between 0 and 10")]
    Ratio(f64),
    /// The bucket's size.
    #[error("the budget's bucket of {0} tokens is not between 1 and 1000")]
    MaxTokens(u32),
    /// What a success puts back.
    #[error("the budget's token ratio {0} is not between 0.001 and the size of the bucket")]
    TokenRatio(f64),
}

/// The budget of one group. Share it with an `Arc`.
#[derive(Debug)]
pub struct RetryBudget {
    policy: BudgetPolicy,
    account: Account,
    /// Held while something is withdrawn: between looking and taking nobody else may take.
    withdrawing: Mutex<()>,
}

#[derive(Debug)]
enum Account {
    Ratio {
        start: Instant,
        /// The length of a slot, in nanoseconds.
        slot: u64,
        /// What one call brings, in units.
        deposit: i64,
        /// What is always there within one window, in units.
        reserve: i64,
        /// Deposits less withdrawals of one slot each: see [`pack`].
        slots: [AtomicU64; SLOTS as usize],
    },
    Tokens {
        /// In units.
        max: i64,
        /// In units.
        success: i64,
        /// In units, never below 0 nor above `max`.
        tokens: AtomicU64,
    },
}

impl Default for RetryBudget {
    /// The default policy, from now on.
    fn default() -> Self {
        Self::of(BudgetPolicy::default(), Instant::now())
    }
}

impl RetryBudget {
    /// A budget that starts at `now`.
    ///
    /// # Errors
    /// A [`BudgetError`] that names the number that is out of range.
    pub fn new(policy: BudgetPolicy, now: Instant) -> Result<Self, BudgetError> {
        policy.validate()?;
        Ok(Self::of(policy, now))
    }

    /// The same of a policy that is in range.
    fn of(policy: BudgetPolicy, now: Instant) -> Self {
        let account = match policy {
            BudgetPolicy::Ratio {
                ttl,
                reserve_per_second,
                ratio,
            } => Account::Ratio {
                start: now,
                slot: nanos(ttl / SLOTS),
                deposit: units(ratio),
                reserve: units(f64::from(reserve_per_second) * ttl.as_secs_f64()),
                slots: std::array::from_fn(|_| AtomicU64::new(0)),
            },
            BudgetPolicy::Tokens {
                max_tokens,
                token_ratio,
            } => Account::Tokens {
                max: i64::from(max_tokens) * UNIT,
                success: units(token_ratio),
                tokens: AtomicU64::new(u64::from(max_tokens) * UNIT.unsigned_abs()),
            },
        };
        Self {
            policy,
            account,
            withdrawing: Mutex::new(()),
        }
    }

    /// A new budget of the same policy, that starts at `now`.
    #[must_use]
    pub fn renewed(&self, now: Instant) -> Self {
        Self::of(self.policy, now)
    }

    /// The policy.
    pub fn policy(&self) -> BudgetPolicy {
        self.policy
    }

    /// Whether [`call_succeeded`](Self::call_succeeded) plays a part.
    pub(crate) fn counts_answers(&self) -> bool {
        matches!(self.account, Account::Tokens { .. })
    }

    /// Counts a call that begins, which is what [`BudgetPolicy::Ratio`] reckons by. Lock-free.
    pub fn call_began(&self, now: Instant) {
        if let Account::Ratio {
            start,
            slot,
            deposit,
            slots,
            ..
        } = &self.account
        {
            book(slots, generation(*start, *slot, now), *deposit);
        }
    }

    /// Counts a call that was answered, by whichever attempt, which is what [`BudgetPolicy::Tokens`]
    /// reckons by. Lock-free.
    pub fn call_succeeded(&self) {
        if let Account::Tokens {
            max,
            success,
            tokens,
        } = &self.account
        {
            let max = max.unsigned_abs();
            let success = success.unsigned_abs();
            // A full bucket, which is what a healthy group has, costs one read.
            if tokens.load(Ordering::Relaxed) < max {
                let _ = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |have| {
                    Some(have.saturating_add(success).min(max))
                });
            }
        }
    }

    /// Takes one extra attempt out of the budget; says whether it was there. To be asked after every
    /// failure that would be followed by one: in gRPC's policy the question itself counts as the
    /// failure and drains the bucket.
    pub fn try_withdraw(&self, now: Instant) -> bool {
        let _guard = self
            .withdrawing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &self.account {
            Account::Ratio {
                start, slot, slots, ..
            } => {
                if self.units_left(now) < UNIT {
                    return false;
                }
                book(slots, generation(*start, *slot, now), -UNIT);
                true
            }
            Account::Tokens { tokens, .. } => {
                let _ = tokens.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |have| {
                    Some(have.saturating_sub(UNIT.unsigned_abs()))
                });
                self.units_left(now) > 0
            }
        }
    }

    /// How many extra attempts could be withdrawn now.
    pub fn remaining(&self, now: Instant) -> u64 {
        let left = self.units_left(now).max(0);
        let whole = match self.account {
            Account::Ratio { .. } => left / UNIT,
            // After the withdrawal something must still be left above the half.
            Account::Tokens { .. } => (left - 1).max(0) / UNIT,
        };
        whole.unsigned_abs()
    }

    /// What is left to spend, in units: of the window, or above the bucket's half.
    fn units_left(&self, now: Instant) -> i64 {
        match &self.account {
            Account::Ratio {
                start,
                slot,
                reserve,
                slots,
                ..
            } => {
                let current = generation(*start, *slot, now);
                let oldest = current.saturating_sub(SLOTS - 1);
                let booked: i64 = slots
                    .iter()
                    .map(|slot| unpack(slot.load(Ordering::Relaxed)))
                    .filter(|(generation, _)| (oldest..=current).contains(generation))
                    .map(|(_, amount)| i64::from(amount))
                    .sum();
                reserve + booked
            }
            Account::Tokens { max, tokens, .. } => {
                i64::try_from(tokens.load(Ordering::Relaxed)).unwrap_or(i64::MAX) - max / 2
            }
        }
    }
}

fn units(amount: f64) -> i64 {
    // The constructor has bounded the amount far inside the range.
    (amount * UNIT as f64).round() as i64
}

/// The number of the slot that `now` falls into; an instant before the start counts as the start.
fn generation(start: Instant, slot: u64, now: Instant) -> u32 {
    let slots = nanos(now.saturating_duration_since(start)) / slot.max(1);
    u32::try_from(slots).unwrap_or(u32::MAX)
}

/// A slot in one word: its generation above, its amount in units below. Both change together, so a
/// slot that begins a new turn of the wheel loses no deposit.
fn pack(generation: u32, amount: i32) -> u64 {
    (u64::from(generation) << 32) | u64::from(amount.cast_unsigned())
}

fn unpack(word: u64) -> (u32, i32) {
    (
        (word >> 32) as u32,
        ((word & u64::from(u32::MAX)) as u32).cast_signed(),
    )
}

/// Adds to the slot of a generation, saturating.
fn book(slots: &[AtomicU64; SLOTS as usize], generation: u32, units: i64) {
    let Some(slot) = slots.get((generation % SLOTS) as usize) else {
        return;
    };
    let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
        let (stamp, amount) = unpack(word);
        // A thread that was held up may come with an older time than the slot's; its deposit counts
        // where it lands.
        let (stamp, amount) = if stamp >= generation {
            (stamp, amount)
        } else {
            (generation, 0)
        };
        let sum = i64::from(amount)
            .saturating_add(units)
            .clamp(i64::from(i32::MIN), i64::from(i32::MAX));
        Some(pack(stamp, i32::try_from(sum).unwrap_or(amount)))
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    fn ratio(ttl_seconds: u64, reserve_per_second: u32, ratio: f64) -> (RetryBudget, Instant) {
        let now = Instant::now();
        let ttl = Duration::from_secs(ttl_seconds);
        (
            RetryBudget::new(
                BudgetPolicy::Ratio {
                    ttl,
                    reserve_per_second,
                    ratio,
                },
                now,
            )
            .unwrap(),
            now,
        )
    }

    fn withdraw_all(budget: &RetryBudget, now: Instant) -> u32 {
        (0..100_000)
            .take_while(|_| budget.try_withdraw(now))
            .count() as u32
    }

    #[test]
    fn the_default_is_the_one_of_the_rules() {
        let BudgetPolicy::Ratio {
            ttl,
            reserve_per_second,
            ratio,
        } = BudgetPolicy::default()
        else {
            panic!()
        };
        assert_eq!(
            (ttl, reserve_per_second, ratio),
            (Duration::from_secs(10), 10, 0.2)
        );
    }

    #[test]
    fn one_call_in_five_may_be_retried() {
        let (budget, now) = ratio(10, 0, 0.2);
        assert!(!budget.try_withdraw(now), "nothing was deposited yet");
        for _ in 0..100 {
            budget.call_began(now);
        }
        assert_eq!(budget.remaining(now), 20);
        assert_eq!(withdraw_all(&budget, now), 20);
        assert_eq!(budget.remaining(now), 0);
    }

    #[test]
    fn the_reserve_serves_a_group_without_traffic_and_comes_back_after_the_ttl() {
        let (budget, now) = ratio(10, 10, 0.2);
        assert_eq!(withdraw_all(&budget, now), 100);
        assert_eq!(withdraw_all(&budget, now + Duration::from_secs(9)), 0);
        assert_eq!(withdraw_all(&budget, now + Duration::from_secs(10)), 100);
    }

    #[test]
    fn a_deposit_lasts_for_its_ttl() {
        let (budget, now) = ratio(10, 0, 1.0);
        for second in 0..5 {
            budget.call_began(now + Duration::from_secs(second));
        }
        let remaining = |second| budget.remaining(now + Duration::from_secs(second));
        assert_eq!([4, 9, 10, 12, 14, 15].map(remaining), [5, 5, 4, 2, 0, 0]);
    }

    #[test]
    fn a_slot_used_again_forgets_its_former_turn() {
        let (budget, now) = ratio(10, 0, 1.0);
        budget.call_began(now);
        budget.call_began(now + Duration::from_secs(10));
        assert_eq!(budget.remaining(now + Duration::from_secs(10)), 1);
        // Late by a whole turn: counted where it lands, and the newer slot is not lost.
        budget.call_began(now);
        assert_eq!(budget.remaining(now + Duration::from_secs(10)), 2);
    }

    #[test]
    fn an_outage_with_full_traffic_adds_no_more_than_the_share_and_the_reserve() {
        let (budget, start) = ratio(10, 10, 0.2);
        let mut retries = 0_u32;
        let mut calls = 0_u32;
        for tick in 0..60_000_u64 {
            let now = start + Duration::from_millis(tick);
            calls += 1;
            budget.call_began(now);
            // Every call fails and wants three retries.
            for _ in 0..3 {
                retries += u32::from(budget.try_withdraw(now));
            }
        }
        let (low, high) = (calls / 5, calls / 5 + 7 * 100);
        assert!(
            (low..=high).contains(&retries),
            "{retries} retries of {calls} calls"
        );
    }

    #[test]
    fn concurrent_withdrawals_never_take_more_than_there_is() {
        let (budget, now) = ratio(60, 0, 1.0);
        for _ in 0..1000 {
            budget.call_began(now);
        }
        let (budget, taken) = (Arc::new(budget), Arc::new(AtomicU32::new(0)));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| taken.fetch_add(withdraw_all(&budget, now), Ordering::Relaxed));
            }
        });
        assert_eq!(taken.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn concurrent_deposits_are_all_counted() {
        let (budget, now) = ratio(60, 0, 1.0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| budget.call_began(now)));
            }
        });
        assert_eq!(budget.remaining(now), 40_000);
    }

    #[test]
    fn traffic_beyond_every_measure_saturates() {
        let (budget, now) = ratio(1, 1_000_000, 10.0);
        for _ in 0..300_000 {
            budget.call_began(now);
        }
        assert!(budget.remaining(now) >= 2_000_000);
        assert!(budget.try_withdraw(now + Duration::from_secs(u64::from(u32::MAX))));
    }

    #[test]
    fn tokens_stop_at_half_and_successes_bring_them_back() {
        let now = Instant::now();
        let budget = RetryBudget::new(
            BudgetPolicy::Tokens {
                max_tokens: 10,
                token_ratio: 0.5,
            },
            now,
        )
        .unwrap();
        assert_eq!(budget.remaining(now), 4);
        assert_eq!(withdraw_all(&budget, now), 4);
        assert_eq!(budget.remaining(now), 0);
        for _ in 0..3 {
            budget.call_succeeded();
        }
        assert_eq!(budget.remaining(now), 1);
        for _ in 0..1000 {
            budget.call_succeeded();
        }
        assert_eq!(budget.remaining(now), 4, "never more than the bucket holds");
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        let now = Instant::now();
        let refused = |policy| RetryBudget::new(policy, now).unwrap_err();
        let of = |ttl, reserve_per_second, ratio| BudgetPolicy::Ratio {
            ttl: Duration::from_millis(ttl),
            reserve_per_second,
            ratio,
        };
        assert_eq!(
            refused(of(999, 10, 0.2)),
            BudgetError::Ttl(Duration::from_millis(999))
        );
        assert_eq!(
            refused(of(60_001, 10, 0.2)),
            BudgetError::Ttl(Duration::from_millis(60_001))
        );
        assert_eq!(
            refused(of(1000, 1_000_001, 0.2)),
            BudgetError::Reserve(1_000_001)
        );
        assert_eq!(refused(of(1000, 10, -0.1)), BudgetError::Ratio(-0.1));
        assert!(matches!(
            refused(of(1000, 10, f64::NAN)),
            BudgetError::Ratio(_)
        ));
        let tokens = |max_tokens, token_ratio| BudgetPolicy::Tokens {
            max_tokens,
            token_ratio,
        };
        assert_eq!(refused(tokens(0, 0.1)), BudgetError::MaxTokens(0));
        assert_eq!(refused(tokens(1001, 0.1)), BudgetError::MaxTokens(1001));
        assert_eq!(refused(tokens(10, 0.0)), BudgetError::TokenRatio(0.0));
        assert!(matches!(
            refused(tokens(10, f64::NAN)),
            BudgetError::TokenRatio(_)
        ));
    }
}
