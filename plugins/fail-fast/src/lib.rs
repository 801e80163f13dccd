//! The stock strategy `fail-fast` (level `fail-fast`, priority 0): end the call with a clean error.
//!
//! Some failures no retry and no other target mends: a wrong parameter, missing rights, a content
//! filter. Without this strategy such a call ends as well, once every strategy has declined; with it
//! the caller is told so in the operator's words, and an operator who raises its priority ends the
//! call before any other strategy is asked.
//!
//! ```toml
//! [[strategy]]
//! plugin = "fail-fast"
//! priority = 200
//! config = { kinds = ["Unauthorized"], message = "{target} does not know you; sign in again" }
//! ```
//!
//! A message may contain `{operation}`, `{target}`, `{kind}`, `{attempts}` and `{message}`, the
//! failure's own. As `kinds` may name custom ones, it declares no kinds to the host.

use backstop_sdk::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<Kind>,
    message: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kinds: vec![
                Kind::INVALID_PARAMETER,
                Kind::UNAUTHORIZED,
                Kind::FORBIDDEN,
                Kind::CONTENT_FILTER,
            ],
            message: "{operation} failed with {kind}, which trying again cannot mend: {message}"
                .into(),
        }
    }
}

struct FailFast {
    kinds: Vec<Kind>,
    message: Vec<Piece>,
}

/// A piece of a message.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Operation,
    Target,
    Kind,
    Attempts,
    Message,
}

/// Takes a message apart, once, so that a misspelt name is found when it is configured.
fn pieces(mut template: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    while let Some((text, rest)) = template.split_once('{') {
        let (name, after) = rest
            .split_once('}')
            .ok_or("message: a { is not closed by }")?;
        pieces.push(Piece::Text(text.to_owned()));
        pieces.push(match name {
            "operation" => Piece::Operation,
            "target" => Piece::Target,
            "kind" => Piece::Kind,
            "attempts" => Piece::Attempts,
            "message" => Piece::Message,
            _ => {
                return Err(format!(
                    "message: {{{name}}} is unknown; use {{operation}}, {{target}}, {{kind}}, {{attempts}} or {{message}}"
                ));
            }
        });
        template = after;
    }
    pieces.push(Piece::Text(template.to_owned()));
    Ok(pieces)
}

impl Strategy for FailFast {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "fail-fast",
            env!("CARGO_PKG_VERSION"),
            "Ends the call with a clean error where nothing can mend it.",
        )
        .level(Level::FAIL_FAST)
        .priority(0)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        Ok(Self {
            message: pieces(&config.message)?,
            kinds: config.kinds,
        })
    }

    fn condition(&self, failure: &Failure, _: &dyn Host) -> bool {
        self.kinds.contains(&failure.kind)
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        let fill = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Operation => host.operation(),
            Piece::Target => host.target(),
            Piece::Kind => failure.kind.to_string(),
            Piece::Attempts => failure.attempts.to_string(),
            Piece::Message => host.message(),
        };
        let message: String = self.message.iter().map(fill).collect();
        Decision::fail(message)
            .because(format!("{} cannot be mended by trying again", failure.kind))
    }
}

backstop_sdk::export!(FailFast);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};

    fn message(config: &str, failure: &Failure) -> Option<String> {
        let host = FakeHost::new()
            .operation("search")
            .message("no {such} key")
            .target(Target {
                present: true,
                ..Target::service("a")
            });
        match Tester::<FailFast>::new(config)
            .unwrap()
            .decide(failure, &host)?
            .action
        {
            Action::Fail { message } => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_mended_ends_the_call_and_says_so() {
        let failure = Failure::new(Kind::INVALID_PARAMETER);
        let expected =
            "search failed with InvalidParameter, which trying again cannot mend: no {such} key";
        assert_eq!(message("{}", &failure).as_deref(), Some(expected));
        assert_eq!(message("{}", &Failure::new(Kind::CONNECTION_ERROR)), None);
    }

    #[test]
    fn kinds_and_message_are_the_operators() {
        let config =
            r#"{ "kinds": ["QuotaOfTeamSpent"], "message": "{target}: {kind} after {attempts}." }"#;
        let failure = Failure::new(Kind::new("QuotaOfTeamSpent"));
        assert_eq!(
            message(config, &failure).as_deref(),
            Some("a: QuotaOfTeamSpent after 1.")
        );
        assert_eq!(message(config, &Failure::new(Kind::FORBIDDEN)), None);
    }

    #[test]
    fn a_message_with_an_unknown_name_is_refused() {
        for message in ["{tool} failed", "{operation"] {
            let refused = Tester::<FailFast>::new(&format!(r#"{{ "message": "{message}" }}"#))
                .err()
                .unwrap();
            assert!(refused.starts_with("message: "), "{refused}");
        }
    }
}
