//! The scenarios that come with the program: the ten kinds of failure of
//! [the engine's table](backstop::retry), and a few that are often met.

use backstop::Kind;

/// A scenario that comes with the program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Builtin {
    /// Its name.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// The kinds, in the order of the table.
const KINDS: [Kind; 10] = [
    Kind::CONNECTION_ERROR,
    Kind::TIMEOUT_ERROR,
    Kind::SERVICE_UNAVAILABLE,
    Kind::TOO_MANY_REQUESTS,
    Kind::INTERNAL_SERVER_ERROR,
    Kind::BAD_GATEWAY,
    Kind::GATEWAY_TIMEOUT,
    Kind::INVALID_PARAMETER,
    Kind::UNAUTHORIZED,
    Kind::FORBIDDEN,
];

/// What is the same for every kind.
const OF_A_KIND: &str = include_str!("scenarios/kind.toml");

const WHOLE: [(&str, &str); 7] = [
    ("outage", include_str!("scenarios/outage.toml")),
    ("restart", include_str!("scenarios/restart.toml")),
    ("blackout", include_str!("scenarios/blackout.toml")),
    ("flapping", include_str!("scenarios/flapping.toml")),
    ("brownout", include_str!("scenarios/brownout.toml")),
    ("rate-limit", include_str!("scenarios/rate-limit.toml")),
    ("slow", include_str!("scenarios/slow.toml")),
];

/// All of them.
pub fn builtins() -> Vec<Builtin> {
    let kinds = KINDS.iter().map(|kind| Builtin {
        name: kind.to_string(),
        text: OF_A_KIND.replace("KIND", kind),
    });
    let whole = WHOLE.iter().map(|(name, text)| Builtin {
        name: (*name).to_owned(),
        text: (*text).to_owned(),
    });
    kinds.chain(whole).collect()
}

/// The one of a name.
pub fn builtin(name: &str) -> Option<Builtin> {
    builtins().into_iter().find(|one| one.name == name)
}
