//! After a number of failed attempts, moves the call to the next best target; where none is left, gives
//! the last known good answer.

use backstop_sdk::prelude::*;
use serde::Deserialize;

struct NextBest {
    config: Config,
}

/// What the operator may write. `schema.json` says the same to the host, which refuses anything else
/// before it gets here.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    after: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { after: 2 }
    }
}

impl Strategy for NextBest {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            "Moves a call that keeps failing to the next best target, or to the last known good answer.",
        )
        .level(Level::SERVICE)
        .priority(90)
        .kinds([
            Kind::CONNECTION_ERROR,
            Kind::TIMEOUT_ERROR,
            Kind::SERVICE_UNAVAILABLE,
        ])
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        Ok(Self { config })
    }

    fn condition(&self, failure: &Failure, _: &dyn Host) -> bool {
        failure.attempts >= self.config.after
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        let attempts = failure.attempts;
        // The list is sorted: best priority first.
        let next = host
            .targets()
            .into_iter()
            .find(|target| target.healthy && target.is_available());
        if let Some(next) = next {
            log::info!(host, "{} is left after {attempts} attempts", host.target());
            return Decision::switch_to(&next.name).because(format!(
                "{} is the next best after {attempts} attempts",
                next.name
            ));
        }
        match host.last_known_good() {
            Some(known) => Decision::last_known_good().because(format!(
                "no target is left, an answer of {} s ago is",
                known.age.as_secs()
            )),
            None => Decision::decline(),
        }
    }
}

backstop_sdk::export!(NextBest);

#[cfg(test)]
mod tests {
    use backstop_sdk::testing::{FakeHost, Tester};

    use super::*;

    #[test]
    fn it_waits_for_the_second_failure() {
        let strategy = Tester::<NextBest>::new("{}").unwrap();
        let host = FakeHost::new().target(Target::service("backup"));
        let first = Failure::new(Kind::TIMEOUT_ERROR);
        assert_eq!(strategy.decide(&first, &host), None);
        let second = Failure {
            attempts: 2,
            ..first
        };
        assert_eq!(
            strategy.decide(&second, &host),
            Some(Decision::switch_to("backup").because("backup is the next best after 2 attempts"))
        );
    }
}
