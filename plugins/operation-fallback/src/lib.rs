//! The stock strategy `operation-fallback` (level `operation`, priority 40): call another operation.
//!
//! Where a tool cannot be reached, another one may do: a cache in place of the live search, a
//! smaller index in place of the large one. `routes` says which, and how the arguments become its
//! arguments:
//!
//! ```toml
//! [[strategy]]
//! plugin = "operation-fallback"
//!
//! [[strategy.config.routes]]
//! from = "search_web"
//! to = "search_cache"
//! arguments = { map = { query = "q" }, set = { limit = 5 }, drop = ["locale"] }
//! ```
//!
//! Arguments are dropped, then renamed, then set; what is not named stays. The first route that fits
//! and whose operation the call has not tried yet is taken. Every route is declared to the host,
//! which refuses a circle of routes, over all strategies together, before a call meets it.
//!
//! A route acts on outages and on an operation the server does not know, or on its own `kinds`, for
//! example `ToolError`. As these may be custom ones, it declares no kinds to the host.

use std::collections::BTreeMap;

use backstop_sdk::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    routes: Vec<Route>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Route {
    from: String,
    to: String,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    arguments: Option<Arguments>,
    #[serde(default = "default_kinds")]
    kinds: Vec<Kind>,
}

fn default_kinds() -> Vec<Kind> {
    let mut kinds = Vec::from(Kind::OUTAGE);
    kinds.push(Kind::METHOD_NOT_FOUND);
    kinds
}

/// How the arguments of one operation become those of another.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Arguments {
    map: BTreeMap<String, String>,
    set: Map<String, Value>,
    drop: Vec<String>,
}

impl Arguments {
    fn apply(&self, mut present: Map<String, Value>) -> Map<String, Value> {
        for name in &self.drop {
            present.remove(name);
        }
        // All are taken out before any is put back, so that two names can be exchanged.
        let renamed: Vec<_> = self
            .map
            .iter()
            .filter_map(|(old, new)| Some((new.clone(), present.remove(old)?)))
            .collect();
        present.extend(renamed);
        present.extend(self.set.clone());
        present
    }
}

struct OperationFallback {
    routes: Vec<Route>,
}

impl OperationFallback {
    fn route(&self, failure: &Failure, host: &dyn Host) -> Option<&Route> {
        let operation = host.operation();
        let mut fitting = self
            .routes
            .iter()
            .filter(|route| route.from == operation && route.kinds.contains(&failure.kind))
            .peekable();
        fitting.peek()?;
        let attempts = host.attempts();
        fitting.find(|route| !attempts.iter().any(|attempt| attempt.operation == route.to))
    }
}

impl Strategy for OperationFallback {
    type Config = Config;

    fn metadata() -> Metadata {
        Metadata::new(
            "operation-fallback",
            env!("CARGO_PKG_VERSION"),
            "Calls another operation in place of the one that failed, with its arguments mapped.",
        )
        .level(Level::OPERATION)
        .priority(40)
        .config_schema(include_str!("../schema.json"))
    }

    fn configure(config: Config, setup: &mut Setup) -> Result<Self, String> {
        for (index, route) in config.routes.iter().enumerate() {
            if route.from == route.to {
                return Err(format!(
                    "routes[{index}].to: is {:?} like `from`; name another operation",
                    route.to
                ));
            }
            setup.declare_route(&route.from, &route.to);
        }
        Ok(Self {
            routes: config.routes,
        })
    }

    fn condition(&self, failure: &Failure, host: &dyn Host) -> bool {
        self.route(failure, host).is_some()
    }

    fn action(&self, failure: &Failure, host: &dyn Host) -> Decision {
        let Some(route) = self.route(failure, host) else {
            return Decision::decline();
        };
        let arguments = match &route.arguments {
            None => None,
            Some(change) => match host
                .arguments_json()
                .unwrap_or_else(|| Value::Object(Map::new()))
            {
                Value::Object(present) => Some(Value::Object(change.apply(present)).to_string()),
                _ => {
                    return Decision::decline()
                        .because("the present arguments are no object, so they cannot be mapped");
                }
            },
        };
        let action = Action::CallOperation {
            operation: route.to.clone(),
            arguments,
            target: route.target.clone(),
        };
        Decision::from(action).because(format!(
            "{}: {} stands in for {}",
            failure.kind, route.to, route.from
        ))
    }
}

backstop_sdk::export!(OperationFallback);

#[cfg(test)]
mod tests {
    use super::*;
    use backstop_sdk::testing::{FakeHost, Tester};
    use std::time::Duration;

    fn call(operation: &str, arguments: Option<&str>) -> Option<Action> {
        let (operation, arguments) = (operation.into(), arguments.map(Into::into));
        Some(Action::CallOperation {
            operation,
            arguments,
            target: None,
        })
    }

    fn action(config: &str, kind: Kind, host: &FakeHost) -> Option<Action> {
        let tester = Tester::<OperationFallback>::new(config).unwrap();
        tester
            .decide(&Failure::new(kind), host)
            .map(|decision| decision.action)
    }

    const MAPPED: &str = r#"{ "routes": [{
        "from": "search_web", "to": "search_cache",
        "arguments": { "map": { "query": "q", "a": "b", "b": "a" }, "set": { "limit": 5 }, "drop": ["locale"] }
    }] }"#;

    #[test]
    fn arguments_are_dropped_renamed_and_set_and_the_others_stay() {
        let host = FakeHost::new().operation("search_web").arguments(
            r#"{ "query": "x", "locale": "de", "limit": 9, "safe": true, "a": 1, "b": 2 }"#,
        );
        let expected = r#"{"a":2,"b":1,"limit":5,"q":"x","safe":true}"#;
        assert_eq!(
            action(MAPPED, Kind::CONNECTION_ERROR, &host),
            call("search_cache", Some(expected))
        );
    }

    #[test]
    fn without_a_mapping_the_present_arguments_stay_as_they_are() {
        let config = r#"{ "routes": [{ "from": "a", "to": "b" }] }"#;
        let host = FakeHost::new().operation("a").arguments("[1]");
        assert_eq!(
            action(config, Kind::METHOD_NOT_FOUND, &host),
            call("b", None)
        );
    }

    #[test]
    fn arguments_that_cannot_be_mapped_are_not_sent_elsewhere() {
        let host = FakeHost::new().operation("search_web").arguments("[1]");
        assert_eq!(
            action(MAPPED, Kind::CONNECTION_ERROR, &host),
            Some(Action::Decline)
        );
        let none = FakeHost::new().operation("search_web");
        assert_eq!(
            action(MAPPED, Kind::CONNECTION_ERROR, &none),
            call("search_cache", Some(r#"{"limit":5}"#))
        );
    }

    #[test]
    fn a_tool_error_needs_a_route_that_names_it() {
        let host = FakeHost::new().operation("a");
        let silent = r#"{ "routes": [{ "from": "a", "to": "b" }] }"#;
        assert_eq!(action(silent, Kind::TOOL_ERROR, &host), None);
        let named = r#"{ "routes": [{ "from": "a", "to": "b", "kinds": ["ToolError"] }] }"#;
        assert_eq!(action(named, Kind::TOOL_ERROR, &host), call("b", None));
        assert_eq!(action(named, Kind::CONNECTION_ERROR, &host), None);
    }

    #[test]
    fn the_next_route_is_taken_where_the_first_was_tried() {
        let config = r#"{ "routes": [{ "from": "a", "to": "b" }, { "from": "a", "to": "c" }] }"#;
        let tried = |host: FakeHost, operation: &str| {
            host.attempt(Attempt {
                target: "t".into(),
                operation: operation.into(),
                kind: Kind::CONNECTION_ERROR,
                delay: Duration::ZERO,
                duration: Duration::ZERO,
            })
        };
        let host = tried(FakeHost::new().operation("a"), "b");
        assert_eq!(action(config, Kind::BAD_GATEWAY, &host), call("c", None));
        assert_eq!(action(config, Kind::BAD_GATEWAY, &tried(host, "c")), None);
    }

    #[test]
    fn every_route_is_declared_and_one_to_itself_is_refused() {
        let tester = Tester::<OperationFallback>::new(MAPPED).unwrap();
        assert_eq!(
            tester.setup.routes(),
            [("search_web".to_owned(), "search_cache".to_owned())]
        );
        let refused =
            Tester::<OperationFallback>::new(r#"{ "routes": [{ "from": "a", "to": "a" }] }"#)
                .err()
                .unwrap();
        assert!(refused.starts_with("routes[0].to"));
    }
}
