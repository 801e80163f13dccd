//! The stock strategy `service-failover` (level `service`, priority 80): ask another service.
//!
//! It takes the best service of the group that this call has not asked and that can be asked now.
//! After a timeout it prefers a model, if the group has one: a service that was slow once is often
//! slow everywhere (`prefer_model_for`).
//!
//! ```toml
//! [[strategy]]
//! plugin = "service-failover"
//! config = { avoid = ["archive"], max_switches = 2 }
//! ```
//!
//! It acts on the kinds that say that a target is out of order just now, or on `kinds` instead. As
//! these may be custom ones, it declares no kinds to the host.

use backstop_sdk::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<Kind>,
    avoid: Vec<String>,
    max_switches: Option<u32>,
    prefer_model_for: Vec<Kind>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kinds: Kind::OUTAGE.into(),
            avoid: Vec::new(),
            max_switches: None,
            prefer_model_for: vec![Kind::TIMEOUT_ERROR],
        }
    }
}

struct ServiceFailover {
    config: Config,
}

impl ServiceFailover {
    /// Whom to ask: without names to avoid, the host's own choice of this kind.
    fn switch(&self, kind: TargetKind, host: &dyn Host) -> Option<Decision> {
        let avoid = &self.config.avoid;
        if avoid.is_empty() {
            return host
                .best_target(Some(&kind))
                .map(|_| Decision::switch_to_kind(kind));
        }
        host.best_target_except(&kind, avoid)
            .map(Decision::switch_to)
    }
}

impl Strategy for ServiceFailover {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "service-failover",
            env!("CARGO_PKG_VERSION"),
            "Asks the best other service of the group.",
        )
        .level(Level::SERVICE)
        .priority(80)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        Ok(Self { config })
    }

    fn condition(&self, failure: &Failure, _: &dyn Host) -> bool {
        failure.traits.repeatable
            && self.config.kinds.contains(&failure.kind)
            && self
                .config
                .max_switches
                .is_none_or(|most| failure.fallbacks < most)
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        if self.config.prefer_model_for.contains(&failure.kind)
            && let Some(switch) = self.switch(TargetKind::MODEL, host)
        {
            return switch.because(format!(
                "after a {} a model is the surer choice",
                failure.kind
            ));
        }
        match self.switch(TargetKind::SERVICE, host) {
            Some(switch) => {
                switch.because(format!("{}: another service can be asked", failure.kind))
            }
            None => Decision::decline().because("no other service can be asked"),
        }
    }
}

backstop_sdk::export!(ServiceFailover);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};

    fn action(config: &str, failure: &Failure, host: &FakeHost) -> Option<Action> {
        Tester::<ServiceFailover>::new(config)
            .unwrap()
            .decide(failure, host)
            .map(|decision| decision.action)
    }

    fn to_kind(kind: TargetKind) -> Option<Action> {
        Some(Decision::switch_to_kind(kind).action)
    }

    fn present() -> Target {
        Target {
            present: true,
            tried: true,
            ..Target::service("a")
        }
    }

    #[test]
    fn an_outage_goes_to_another_service_if_there_is_one() {
        let failure = Failure::new(Kind::CONNECTION_ERROR);
        let host = FakeHost::new().target(present());
        assert_eq!(action("{}", &failure, &host), Some(Action::Decline));
        let host = host.target(Target::service("b"));
        assert_eq!(action("{}", &failure, &host), to_kind(TargetKind::SERVICE));
    }

    #[test]
    fn what_is_the_callers_fault_is_not_tried_elsewhere() {
        let host = FakeHost::new().target(Target::service("b"));
        for kind in [
            Kind::INVALID_PARAMETER,
            Kind::UNAUTHORIZED,
            Kind::FORBIDDEN,
            Kind::TOOL_ERROR,
        ] {
            assert_eq!(action("{}", &Failure::new(kind), &host), None);
        }
    }

    #[test]
    fn what_must_not_be_sent_again_is_not_sent_elsewhere_either() {
        let mut failure = Failure::new(Kind::TIMEOUT_ERROR);
        failure.traits.repeatable = false;
        assert_eq!(
            action(
                "{}",
                &failure,
                &FakeHost::new().target(Target::service("b"))
            ),
            None
        );
    }

    #[test]
    fn a_timeout_prefers_a_model_that_can_be_asked() {
        let failure = Failure::new(Kind::TIMEOUT_ERROR);
        let host = FakeHost::new()
            .target(present())
            .target(Target::service("b"));
        let barred = Target {
            admitted: false,
            ..Target::model("m")
        };
        assert_eq!(action("{}", &failure, &host), to_kind(TargetKind::SERVICE));
        let host = host.target(barred);
        assert_eq!(action("{}", &failure, &host), to_kind(TargetKind::SERVICE));
        let host = host.target(Target::model("n"));
        assert_eq!(action("{}", &failure, &host), to_kind(TargetKind::MODEL));
        assert_eq!(
            action(r#"{ "prefer_model_for": [] }"#, &failure, &host),
            to_kind(TargetKind::SERVICE)
        );
    }

    #[test]
    fn an_avoided_target_is_passed_over_by_name() {
        let failure = Failure::new(Kind::BAD_GATEWAY);
        let host = FakeHost::new()
            .target(Target {
                priority: 2,
                ..Target::service("b")
            })
            .target(Target {
                priority: 1,
                ..Target::service("c")
            });
        let to_c = Some(Decision::switch_to("c").action);
        assert_eq!(action(r#"{ "avoid": ["b"] }"#, &failure, &host), to_c);
        assert_eq!(
            action(r#"{ "avoid": ["b", "c"] }"#, &failure, &host),
            Some(Action::Decline)
        );
    }

    #[test]
    fn kinds_and_the_number_of_switches_are_configurable() {
        let host = FakeHost::new().target(Target::service("b"));
        let custom = Failure::new(Kind::new("QuotaOfTeamSpent"));
        let config = r#"{ "kinds": ["QuotaOfTeamSpent"], "max_switches": 1 }"#;
        assert_eq!(action(config, &custom, &host), to_kind(TargetKind::SERVICE));
        assert_eq!(
            action(
                config,
                &Failure {
                    fallbacks: 1,
                    ..custom
                },
                &host
            ),
            None
        );
        assert_eq!(
            action(config, &Failure::new(Kind::BAD_GATEWAY), &host),
            None
        );
    }
}
