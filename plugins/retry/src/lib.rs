//! The stock strategy `retry` (level `retry`, priority 100): ask the same target again.
//!
//! How often and after which delay depends on the kind of the failure. Without configuration the
//! strategy follows the host's retry policy, which an operator writes as `[retry.KIND]`; an entry
//! under `policies`, by kind or `*`, takes its place:
//!
//! ```toml
//! [[strategy]]
//! plugin = "retry"
//! config.policies.TimeoutError = { max_retries = 1, intervals = "fixed", initial_ms = 250 }
//! config.policies."*" = { max_retries = 2, initial_ms = 50, max_ms = 1000 }
//! ```
//!
//! It declines, so that the next strategy can do better, where
//!
//! - the host would not let the operation be sent again;
//! - the delay, or the server's hint if that is longer, does not fit into the time left;
//! - the server asks to be left alone for longer than `max_hint_wait_ms`, or was silent for a whole
//!   attempt, and another target can be asked;
//! - the caller cares little: below `importance.none_below` nothing is retried, below
//!   `importance.one_below` once. From `importance.more_from` on, a policy of `policies` allows
//!   `importance.extra_retries` more.
//!
//! It declares no kinds, because custom kinds have policies too.

mod policy;

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_sdk::prelude::*;
use policy::Policy;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    policies: BTreeMap<String, Policy>,
    max_hint_wait_ms: u64,
    importance: Importance,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policies: BTreeMap::new(),
            max_hint_wait_ms: 2000,
            importance: Importance::default(),
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Importance {
    none_below: u8,
    one_below: u8,
    more_from: u8,
    extra_retries: u32,
}

impl Default for Importance {
    fn default() -> Self {
        Self {
            none_below: 0,
            one_below: 20,
            more_from: 80,
            extra_retries: 1,
        }
    }
}

impl Importance {
    /// How many retries remain of `usual` for a caller who cares this much.
    fn retries(&self, importance: u8, usual: u32) -> u32 {
        match importance {
            low if low < self.none_below => 0,
            low if low < self.one_below => usual.min(1),
            // Where the policy says never, importance does not change it.
            high if high >= self.more_from && usual > 0 => usual.saturating_add(self.extra_retries),
            _ => usual,
        }
    }
}

struct Retry {
    config: Config,
}

impl Retry {
    /// The policy of the strategy's own for a failure. `*` stands only for failures that a retry may
    /// mend; a kind named by the operator is the operator's judgement.
    fn policy(&self, failure: &Failure) -> Option<&Policy> {
        let any = || {
            failure
                .traits
                .retryable
                .then(|| self.config.policies.get("*"))
                .flatten()
        };
        self.config.policies.get(failure.kind.as_str()).or_else(any)
    }

    fn retries_left(&self, failure: &Failure, usual: u32) -> bool {
        failure.retries < self.config.importance.retries(failure.importance, usual)
    }
}

impl Strategy for Retry {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "retry",
            env!("CARGO_PKG_VERSION"),
            "Asks the same target again, as often and as patiently as the failure's kind, the caller and the time left allow.",
        )
        .level(Level::RETRY)
        .priority(100)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        for (name, policy) in &config.policies {
            policy.check(name)?;
        }
        Ok(Self { config })
    }

    fn condition(&self, failure: &Failure, host: &dyn Host) -> bool {
        failure.traits.repeatable
            && match self.policy(failure) {
                Some(policy) => self.retries_left(failure, policy.max_retries()),
                // The host counts its own retries: any number is fine that importance leaves room for.
                None => self.retries_left(failure, u32::MAX) && host.next_delay().is_some(),
            }
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        let own = self
            .policy(failure)
            .map(|policy| policy.delay(failure.retries, &failure.kind, || host.random()));
        let Some(delay) = own.or_else(|| host.next_delay()) else {
            return Decision::decline();
        };
        let hint = failure.retry_after.unwrap_or_default();
        let wait = delay.max(hint);
        if wait >= failure.time_left {
            return Decision::decline().because(format!(
                "a wait of {wait:?} does not fit into the {:?} left",
                failure.time_left
            ));
        }
        let long_hint = hint > Duration::from_millis(self.config.max_hint_wait_ms);
        if (failure.traits.silent || long_hint) && host.best_target(None).is_some() {
            let why = if long_hint {
                "the server asks for a long wait"
            } else {
                "the target stayed silent"
            };
            return Decision::decline().because(format!("{why} and another target can be asked"));
        }
        let reason = format!(
            "{}: retry {} of this target",
            failure.kind,
            failure.retries.saturating_add(1)
        );
        own.map_or_else(Decision::retry, Decision::retry_after)
            .because(reason)
    }
}

backstop_sdk::export!(Retry);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};

    const MS_100: Duration = Duration::from_millis(100);

    fn action(config: &str, failure: &Failure, host: &FakeHost) -> Option<Action> {
        Tester::<Retry>::new(config)
            .unwrap()
            .decide(failure, host)
            .map(|decision| decision.action)
    }

    fn retry_after(millis: u64) -> Option<Action> {
        Some(Action::Retry {
            delay: Some(Duration::from_millis(millis)),
        })
    }

    #[test]
    fn without_configuration_it_follows_the_policy_of_the_host() {
        let failure = Failure::new(Kind::CONNECTION_ERROR);
        let allowed = action("{}", &failure, &FakeHost::new().next_delay(MS_100));
        assert_eq!(allowed, Some(Action::Retry { delay: None }));
        assert_eq!(action("{}", &failure, &FakeHost::new()), None);
        let custom = Failure::new(Kind::new("QuotaOfTeamSpent"));
        let allowed = action("{}", &custom, &FakeHost::new().next_delay(MS_100));
        assert_eq!(allowed, Some(Action::Retry { delay: None }));
    }

    #[test]
    fn a_policy_of_its_own_beats_the_policy_of_the_host() {
        let config = r#"{ "policies": {
            "TimeoutError": { "delays_ms": [7, 9] }, "*": { "max_retries": 1, "intervals": "fixed", "initial_ms": 3 }
        } }"#;
        let host = FakeHost::new().next_delay(MS_100);
        let failure = Failure::new(Kind::TIMEOUT_ERROR);
        assert_eq!(action(config, &failure, &host), retry_after(7));
        assert_eq!(
            action(
                config,
                &Failure {
                    retries: 1,
                    ..failure.clone()
                },
                &host
            ),
            retry_after(9)
        );
        assert_eq!(
            action(
                config,
                &Failure {
                    retries: 2,
                    ..failure
                },
                &host
            ),
            None
        );
        assert_eq!(
            action(config, &Failure::new(Kind::BAD_GATEWAY), &host),
            retry_after(3)
        );
    }

    #[test]
    fn the_policy_for_any_kind_does_not_retry_what_no_retry_mends() {
        let config = r#"{ "policies": { "*": {} } }"#;
        let mut failure = Failure::new(Kind::INVALID_PARAMETER);
        failure.traits.retryable = false;
        assert_eq!(action(config, &failure, &FakeHost::new()), None);
    }

    #[test]
    fn an_operation_that_must_not_be_sent_again_is_not() {
        let mut failure = Failure::new(Kind::TIMEOUT_ERROR);
        failure.traits.repeatable = false;
        assert_eq!(
            action(
                r#"{ "policies": { "*": {} } }"#,
                &failure,
                &FakeHost::new().next_delay(MS_100)
            ),
            None
        );
    }

    #[test]
    fn a_delay_or_hint_that_does_not_fit_into_the_time_left_is_declined() {
        let host = FakeHost::new().next_delay(MS_100);
        let failure = Failure {
            time_left: MS_100,
            ..Failure::new(Kind::CONNECTION_ERROR)
        };
        assert_eq!(action("{}", &failure, &host), Some(Action::Decline));
        let hinted = Failure {
            time_left: 9 * MS_100,
            retry_after: Some(10 * MS_100),
            ..failure
        };
        assert_eq!(action("{}", &hinted, &host), Some(Action::Decline));
        let fitting = Failure {
            time_left: 11 * MS_100,
            ..hinted
        };
        assert_eq!(
            action("{}", &fitting, &host),
            Some(Action::Retry { delay: None })
        );
    }

    #[test]
    fn a_long_hint_or_a_silent_target_gives_way_to_another_target_only_if_there_is_one() {
        let alone = FakeHost::new().next_delay(MS_100);
        let company = FakeHost::new()
            .next_delay(MS_100)
            .target(Target::service("b"));
        let hinted = Failure {
            retry_after: Some(Duration::from_secs(3)),
            ..Failure::new(Kind::TOO_MANY_REQUESTS)
        };
        let mut silent = Failure::new(Kind::TIMEOUT_ERROR);
        silent.traits.silent = true;
        for failure in [hinted, silent] {
            assert_eq!(
                action("{}", &failure, &alone),
                Some(Action::Retry { delay: None })
            );
            assert_eq!(action("{}", &failure, &company), Some(Action::Decline));
        }
    }

    #[test]
    fn the_less_the_caller_cares_the_fewer_the_retries() {
        let config =
            r#"{ "importance": { "none_below": 10 }, "policies": { "*": { "max_retries": 2 } } }"#;
        let allowed = |importance, retries| {
            let failure = Failure {
                importance,
                retries,
                ..Failure::new(Kind::CONNECTION_ERROR)
            };
            action(config, &failure, &FakeHost::new()).is_some()
        };
        assert!(!allowed(9, 0));
        assert!(allowed(19, 0) && !allowed(19, 1));
        assert!(allowed(50, 1) && !allowed(50, 2));
        assert!(allowed(80, 2) && !allowed(80, 3));

        let host = FakeHost::new().next_delay(MS_100);
        let low = Failure {
            importance: 10,
            ..Failure::new(Kind::CONNECTION_ERROR)
        };
        assert!(action("{}", &low, &host).is_some());
        assert_eq!(action("{}", &Failure { retries: 1, ..low }, &host), None);
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_the_field() {
        let refused = |config| Tester::<Retry>::new(config).err().unwrap();
        assert!(refused(r#"{ "retries": 3 }"#).contains("retries"));
        assert!(
            refused(r#"{ "policies": { "*": { "intervals": "linear" } } }"#)
                .contains("/policies/*/intervals")
        );
        assert!(
            refused(r#"{ "policies": { "*": { "initial_ms": 5, "max_ms": 1 } } }"#)
                .contains("policies.*.initial_ms")
        );
    }
}
