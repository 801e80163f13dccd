//! The stock strategy `data-fallback` (level `data`, priority 20): answer with data.
//!
//! Where no server can be asked, yesterday's answer or a default may be better than none. In this
//! order: the host's last known good answer, unless it is older than `max_age_s`; the file that
//! `defaults` names for the operation; the file `<operation>.json`. Files lie in the folder the
//! configuration grants, and hold JSON: a `CallToolResult` or any other value. The host labels the
//! answer as stale or degraded.
//!
//! ```toml
//! [[strategy]]
//! plugin = "data-fallback"
//! grants.folder = "defaults"
//! config = { max_age_s = 600, defaults = { "search_*" = "no-results.json" } }
//! ```
//!
//! Without a granted folder only the last known good answer is left, so the folder is not declared as
//! something that must be granted.
//!
//! It acts on outages and broken answers, or on `kinds` instead, but never on what is the caller's
//! fault: data would hide it. As `kinds` may name custom ones, it declares no kinds to the host.

use std::collections::BTreeMap;
use std::time::Duration;

use backstop_sdk::prelude::*;
use serde::Deserialize;
use serde::de::IgnoredAny;

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    kinds: Vec<Kind>,
    last_known_good: bool,
    max_age_s: u64,
    defaults: BTreeMap<String, String>,
    folder_defaults: bool,
}

impl Default for Config {
    fn default() -> Self {
        let mut kinds = Vec::from(Kind::OUTAGE);
        kinds.push(Kind::PROTOCOL_ERROR);
        Self {
            kinds,
            last_known_good: true,
            max_age_s: 3600,
            defaults: BTreeMap::new(),
            folder_defaults: true,
        }
    }
}

/// The kinds which data must not hide.
const NEVER: [Kind; 3] = [Kind::INVALID_PARAMETER, Kind::UNAUTHORIZED, Kind::FORBIDDEN];

struct DataFallback {
    config: Config,
}

impl DataFallback {
    /// The files that may hold a default for an operation, the most particular first.
    fn files(&self, operation: &str) -> Vec<String> {
        let defaults = &self.config.defaults;
        let mut globs: Vec<_> = defaults
            .iter()
            .filter(|(glob, _)| *glob != operation && matches(glob, operation))
            .collect();
        globs.sort_by_key(|(glob, _)| std::cmp::Reverse(glob.len()));
        let named = defaults
            .get(operation)
            .into_iter()
            .chain(globs.into_iter().map(|(_, file)| file))
            .cloned();
        let own = (self.config.folder_defaults && is_file_name(operation))
            .then(|| format!("{operation}.json"));
        named.chain(own).collect()
    }

    /// The first of these files that can be read and is JSON.
    fn read(&self, operation: &str, host: &dyn Host) -> Option<(String, String)> {
        for file in self.files(operation) {
            match host.read_file(&file) {
                Ok(content) => match String::from_utf8(content) {
                    Ok(text) if serde_json::from_str::<IgnoredAny>(&text).is_ok() => {
                        return Some((file, text));
                    }
                    _ => log::warn!(host, "{file} is no JSON and is passed over"),
                },
                Err(FolderError::NotGranted) => {
                    if !self.config.defaults.is_empty() {
                        log::warn!(host, "defaults are configured, but no folder is granted");
                    }
                    return None;
                }
                // A missing file is worth a word only where the configuration names it.
                Err(FolderError::NotFound)
                    if !self.config.defaults.values().any(|named| *named == file) => {}
                Err(error) => log::warn!(host, "{file} cannot be read: {error}"),
            }
        }
        None
    }
}

impl Strategy for DataFallback {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "data-fallback",
            env!("CARGO_PKG_VERSION"),
            "Answers with the last known good answer or a default from the granted folder.",
        )
        .level(Level::DATA)
        .priority(20)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, _: &mut Setup) -> Result<Self, String> {
        match config.kinds.iter().find(|kind| NEVER.contains(kind)) {
            Some(kind) => Err(format!(
                "kinds: {kind} is the caller's fault, which data would hide; remove it"
            )),
            None => Ok(Self { config }),
        }
    }

    fn condition(&self, failure: &Failure, _: &dyn Host) -> bool {
        self.config.kinds.contains(&failure.kind)
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        let known = if self.config.last_known_good {
            host.last_known_good()
        } else {
            None
        };
        if let Some(entry) = &known
            && entry.age <= Duration::from_secs(self.config.max_age_s)
        {
            return Decision::last_known_good().because(format!(
                "{}: {} answered this {} s ago",
                failure.kind,
                entry.target,
                entry.age.as_secs()
            ));
        }
        match self.read(&host.operation(), host) {
            Some((file, json)) => {
                Decision::answer(json).because(format!("{}: {file} is the default", failure.kind))
            }
            None if known.is_some() => {
                Decision::decline().because("the last known good answer is too old")
            }
            None => Decision::decline().because("there is neither an earlier answer nor a default"),
        }
    }
}

/// Whether an operation's name can be a file's name as it stands. A URI cannot.
fn is_file_name(operation: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !operation.is_empty() && !operation.starts_with('.') && operation.chars().all(plain)
}

/// Whether text matches a glob in which `*` stands for any text and `?` for any one character.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t) = (0, 0);
    // Where the last `*` stands, and up to where it has swallowed text.
    let mut star = None;
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => {
                let Some((at, swallowed)) = star else {
                    return false;
                };
                star = Some((at, swallowed + 1));
                g = at + 1;
                t = swallowed + 1;
            }
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

backstop_sdk::export!(DataFallback);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};

    fn action(config: &str, kind: Kind, host: &FakeHost) -> Option<Action> {
        let tester = Tester::<DataFallback>::new(config).unwrap();
        tester
            .decide(&Failure::new(kind), host)
            .map(|decision| decision.action)
    }

    fn answer(json: &str) -> Option<Action> {
        Some(Decision::answer(json).action)
    }

    #[test]
    fn the_last_known_good_answer_is_given_until_it_is_too_old() {
        let known = |age| FakeHost::new().last_known_good(Duration::from_secs(age), "a", "{}");
        let stale = Some(Decision::last_known_good().action);
        assert_eq!(action("{}", Kind::CONNECTION_ERROR, &known(3600)), stale);
        assert_eq!(
            action("{}", Kind::CONNECTION_ERROR, &known(3601)),
            Some(Action::Decline)
        );
        let config = r#"{ "last_known_good": false }"#;
        assert_eq!(
            action(config, Kind::CONNECTION_ERROR, &known(1)),
            Some(Action::Decline)
        );
    }

    #[test]
    fn a_default_is_read_from_the_granted_folder_the_most_particular_first() {
        let config = r#"{ "defaults": { "search_*": "any.json", "search_w*": "w.json", "search_x": "x.json" } }"#;
        let host = |operation: &str| {
            FakeHost::new()
                .operation(operation)
                .file("any.json", "1")
                .file("w.json", "2")
                .file("x.json", "3")
                .file("other.json", "4")
        };
        let given = |operation| action(config, Kind::BAD_GATEWAY, &host(operation));
        assert_eq!(given("search_x"), answer("3"));
        assert_eq!(given("search_web"), answer("2"));
        assert_eq!(given("search_a"), answer("1"));
        assert_eq!(given("other"), answer("4"));
        assert_eq!(given("unknown"), Some(Action::Decline));
        assert_eq!(
            action(
                r#"{ "folder_defaults": false }"#,
                Kind::BAD_GATEWAY,
                &host("other")
            ),
            Some(Action::Decline)
        );
    }

    #[test]
    fn a_file_that_is_no_json_is_passed_over_and_logged() {
        let host = FakeHost::new()
            .operation("a")
            .file("a.json", "{ no")
            .file("b.json", "[]");
        assert_eq!(
            action("{}", Kind::BAD_GATEWAY, &host),
            Some(Action::Decline)
        );
        assert!(host.logs()[0].1.contains("a.json"));
        let config = r#"{ "defaults": { "a": "gone.json", "*": "b.json" } }"#;
        assert_eq!(action(config, Kind::BAD_GATEWAY, &host), answer("[]"));
        assert!(host.logs()[1].1.contains("gone.json"));
    }

    #[test]
    fn defaults_without_a_granted_folder_are_worth_a_word() {
        let host = FakeHost::new().operation("a");
        assert_eq!(
            action("{}", Kind::BAD_GATEWAY, &host),
            Some(Action::Decline)
        );
        assert!(host.logs().is_empty());
        let config = r#"{ "defaults": { "a": "a.json" } }"#;
        assert_eq!(
            action(config, Kind::BAD_GATEWAY, &host),
            Some(Action::Decline)
        );
        assert!(host.logs()[0].1.contains("no folder is granted"));
    }

    #[test]
    fn an_operation_that_is_no_file_name_reads_no_file_of_its_own() {
        for operation in ["../secret", "file:///etc", ".hidden", ""] {
            let host = FakeHost::new()
                .operation(operation)
                .file(format!("{operation}.json"), "1");
            assert_eq!(
                action("{}", Kind::BAD_GATEWAY, &host),
                Some(Action::Decline)
            );
        }
    }

    #[test]
    fn the_callers_fault_is_never_hidden() {
        let host = FakeHost::new().last_known_good(Duration::ZERO, "a", "{}");
        for kind in NEVER {
            assert_eq!(action("{}", kind.clone(), &host), None);
            let config = serde_json::json!({ "kinds": [kind] }).to_string();
            assert!(Tester::<DataFallback>::new(&config).is_err());
            let parsed = serde_json::from_str(&config).unwrap();
            assert!(
                DataFallback::configure(parsed, &mut Setup::default())
                    .err()
                    .unwrap()
                    .starts_with("kinds: ")
            );
        }
    }

    #[test]
    fn globs_match_whole_names() {
        for (glob, text) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("a?c", "abc"),
            ("*_x*", "a_b_xy"),
            ("**", "ä"),
        ] {
            assert!(matches(glob, text), "{glob} {text}");
        }
        for (glob, text) in [
            ("", "a"),
            ("a", "ab"),
            ("a?c", "ac"),
            ("a*b", "abc"),
            ("?", ""),
        ] {
            assert!(!matches(glob, text), "{glob} {text}");
        }
    }
}
