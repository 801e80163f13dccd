//! The stock strategy `model-failover` (level `model`, priority 60): ask another model.
//!
//! It takes the first model of `order` that this call has not asked and that can be asked now, then
//! the best of the group. Beside outages it acts on a context that is too small for the request.
//!
//! ```toml
//! [[strategy]]
//! plugin = "model-failover"
//! config = { order = ["large", "small"], from_models_only = true }
//! ```
//!
//! As `kinds` may name custom ones, it declares no kinds to the host.

use backstop_sdk::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<Kind>,
    order: Vec<String>,
    avoid: Vec<String>,
    max_switches: Option<u32>,
    from_models_only: bool,
}

impl Default for Config {
    fn default() -> Self {
        let mut kinds = Vec::from(Kind::OUTAGE);
        kinds.push(Kind::CONTEXT_LENGTH);
        Self {
            kinds,
            order: Vec::new(),
            avoid: Vec::new(),
            max_switches: None,
            from_models_only: false,
        }
    }
}

struct ModelFailover {
    config: Config,
}

impl ModelFailover {
    /// Whom to ask: where the configuration names nobody, the host's own choice.
    fn switch(&self, host: &dyn Host) -> Option<Decision> {
        let Config { order, avoid, .. } = &self.config;
        if order.is_empty() && avoid.is_empty() {
            return host
                .best_target(Some(&TargetKind::MODEL))
                .map(|_| Decision::switch_to_kind(TargetKind::MODEL));
        }
        if order.is_empty() {
            return host
                .best_target_except(&TargetKind::MODEL, avoid)
                .map(Decision::switch_to);
        }
        let mut models = host.candidates();
        models.retain(|target| target.kind == TargetKind::MODEL && !avoid.contains(&target.name));
        let preferred = order
            .iter()
            .find(|name| models.iter().any(|model| model.name == **name));
        let name = preferred.or_else(|| models.first().map(|model| &model.name))?;
        Some(Decision::switch_to(name))
    }
}

impl Strategy for ModelFailover {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "model-failover",
            env!("CARGO_PKG_VERSION"),
            "Asks the best other model of the group.",
        )
        .level(Level::MODEL)
        .priority(60)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        match config.order.iter().find(|name| config.avoid.contains(name)) {
            Some(both) => Err(format!(
                "order: {both:?} stands in avoid as well; remove it from one of them"
            )),
            None => Ok(Self { config }),
        }
    }

    fn condition(&self, failure: &Failure, host: &dyn Host) -> bool {
        let from_model = || {
            host.targets()
                .iter()
                .any(|target| target.present && target.kind == TargetKind::MODEL)
        };
        failure.traits.repeatable
            && self.config.kinds.contains(&failure.kind)
            && self
                .config
                .max_switches
                .is_none_or(|most| failure.fallbacks < most)
            && (!self.config.from_models_only || from_model())
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        match self.switch(host) {
            Some(switch) => switch.because(format!("{}: another model can be asked", failure.kind)),
            None => Decision::decline().because("no other model can be asked"),
        }
    }
}

backstop_sdk::export!(ModelFailover);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};

    fn action(config: &str, failure: &Failure, host: &FakeHost) -> Option<Action> {
        Tester::<ModelFailover>::new(config)
            .unwrap()
            .decide(failure, host)
            .map(|decision| decision.action)
    }

    fn to(name: &str) -> Option<Action> {
        Some(Decision::switch_to(name).action)
    }

    #[test]
    fn an_outage_or_a_small_context_goes_to_another_model_if_there_is_one() {
        for kind in [Kind::OVERLOADED, Kind::CONTEXT_LENGTH] {
            let failure = Failure::new(kind);
            let host = FakeHost::new().target(Target::service("s"));
            assert_eq!(action("{}", &failure, &host), Some(Action::Decline));
            let host = host.target(Target::model("m"));
            let expected = Decision::switch_to_kind(TargetKind::MODEL).action;
            assert_eq!(action("{}", &failure, &host), Some(expected));
        }
        let host = FakeHost::new().target(Target::model("m"));
        assert_eq!(
            action("{}", &Failure::new(Kind::CONTENT_FILTER), &host),
            None
        );
    }

    #[test]
    fn the_configured_order_comes_before_the_groups() {
        let failure = Failure::new(Kind::BAD_GATEWAY);
        let host = FakeHost::new()
            .target(Target {
                priority: 9,
                ..Target::model("large")
            })
            .target(Target::model("small"))
            .target(Target {
                tried: true,
                ..Target::model("first")
            });
        assert_eq!(
            action(r#"{ "order": ["first", "small"] }"#, &failure, &host),
            to("small")
        );
        assert_eq!(
            action(r#"{ "order": ["first"] }"#, &failure, &host),
            to("large")
        );
        assert_eq!(
            action(r#"{ "avoid": ["large"] }"#, &failure, &host),
            to("small")
        );
    }

    #[test]
    fn it_can_be_kept_to_calls_of_models() {
        let failure = Failure::new(Kind::BAD_GATEWAY);
        let config = r#"{ "from_models_only": true }"#;
        let present = |target| Target {
            present: true,
            tried: true,
            ..target
        };
        let from_service = FakeHost::new()
            .target(present(Target::service("s")))
            .target(Target::model("m"));
        assert_eq!(action(config, &failure, &from_service), None);
        let from_model = FakeHost::new()
            .target(present(Target::model("l")))
            .target(Target::model("m"));
        assert!(action(config, &failure, &from_model).is_some());
    }

    #[test]
    fn switches_are_limited_and_only_what_may_be_sent_again_is() {
        let host = FakeHost::new().target(Target::model("m"));
        let failure = Failure {
            fallbacks: 2,
            ..Failure::new(Kind::BAD_GATEWAY)
        };
        assert_eq!(action(r#"{ "max_switches": 2 }"#, &failure, &host), None);
        assert!(action(r#"{ "max_switches": 3 }"#, &failure, &host).is_some());
        let mut unsafe_now = failure;
        unsafe_now.traits.repeatable = false;
        assert_eq!(action("{}", &unsafe_now, &host), None);
    }

    #[test]
    fn a_name_both_preferred_and_avoided_is_refused() {
        let refused = Tester::<ModelFailover>::new(r#"{ "order": ["a"], "avoid": ["a"] }"#)
            .err()
            .unwrap();
        assert!(refused.starts_with("order: \"a\""));
    }
}
