//! Whole files: what is read, what is left, and what the schema says of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::call::RepeatSafety;
use crate::kind::Kind;

#[test]
fn paths_are_relative_to_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("p")).unwrap();
    let file = folder.path().join("backstop.toml");
    let text = "plugins = 'p'\n[[service]]\nname = 'a'\ncommand = './run'\ncwd = 'p'\n\
                [[service]]\nname = 'b'\ncommand = 'npx'\n";
    std::fs::write(&file, text).unwrap();
    let Loaded {
        config,
        diagnostics,
    } = Config::load(&file);
    assert_eq!(diagnostics, []);
    let inside = folder.path().join("p");
    assert_eq!(config.plugins, Some(inside.clone()));
    let Transport::Stdio { command, cwd, .. } = &config.services[0].transport else {
        panic!()
    };
    assert!(Path::new(command).is_absolute() && command.ends_with("run"));
    assert_eq!(cwd.as_deref(), Some(inside.as_path()));
    let Transport::Stdio { command, .. } = &config.services[1].transport else {
        panic!()
    };
    assert_eq!(command, "npx");
}

const EVERYTHING: &str = include_str!("everything.toml");

#[test]
fn every_key_is_read() {
    let Loaded {
        config,
        diagnostics,
    } = parse_here(EVERYTHING);
    assert_eq!(diagnostics, []);
    let seconds = Duration::from_secs;
    assert_eq!(
        (
            config.services[0].priority,
            config.services[0].weight,
            config.services[0].trusted
        ),
        (-1, 3, true)
    );
    assert_eq!(config.models[0].model, "small-2");
    let strategy = &config.strategies[0];
    assert_eq!(
        strategy.config,
        serde_json::json!({ "a": [1, 2.5, "x", true], "when": "2026-01-02" })
    );
    assert_eq!(
        (strategy.limits.memory, strategy.limits.configure_deadline),
        (Some(16 << 20), Some(seconds(2)))
    );
    let limits = &strategy.limits;
    assert_eq!(
        [
            limits.ready,
            limits.uses,
            limits.table_elements,
            limits.instances,
            limits.memories,
            limits.state_operations,
            limits.log_lines,
        ],
        [3, 9, 7, 6, 5, 4, 8].map(Some)
    );
    assert_eq!(
        (limits.state_value, limits.folder_file),
        (Some(100), Some(1 << 10))
    );
    assert_eq!(
        (strategy.on_fault, strategy.enabled, strategy.grants.state),
        (OnFault::Decline, false, true)
    );
    assert_eq!(strategy.isolation, Isolation::Reuse);
    assert_eq!(config.retry.default.jitter, Some(Jitter::Decorrelated));
    let delays = config.retry.kinds[&Kind::TOO_MANY_REQUESTS]
        .delays
        .clone()
        .unwrap();
    assert_eq!(
        delays,
        [seconds(1), Duration::from_millis(2500), seconds(4)]
    );
    assert_eq!(
        (config.health.timeout, config.health.jitter),
        (Duration::from_millis(1500), 0.0)
    );
    assert_eq!(
        (config.circuit.max_open, config.circuit.failure_rate),
        (seconds(7200), 0.25)
    );
    assert_eq!(
        (config.circuit.slow_after, config.circuit.max_ejected),
        (Some(seconds(20)), 0.5)
    );
    let own = &config.services[0].policies;
    assert_eq!(
        (own.health.interval, own.circuit.max_open),
        (Some(seconds(10)), Some(seconds(60)))
    );
    assert_eq!(config.models[0].policies.circuit.jitter, Some(1.0));
    assert_eq!(config.services[1].policies, TargetPolicies::default());
    assert_eq!(
        (
            config.budget.reserve_per_second,
            config.deadline.attempt_max
        ),
        (0, seconds(100))
    );
    assert_eq!(config.operations[0].repeat, Some(RepeatSafety::ReadOnly));
    assert_eq!(
        (
            config.patterns[0].kind.as_str(),
            config.patterns[0].retryable
        ),
        ("QuotaOfTeamSpent", Some(false))
    );
    assert_eq!(config.cache.as_ref().unwrap().max_bytes, 1_000_000);
    assert_eq!(
        (
            config.gateway.listen.port(),
            config.admin.unwrap().listen.port()
        ),
        (1, 2)
    );
}

fn parse_here(text: &str) -> Loaded {
    // A folder that is there, whatever the tests run in.
    Config::parse(text, &std::env::temp_dir().join("backstop.toml"), &env)
}

#[test]
fn what_is_printed_reads_back() {
    let config = parse_here(EVERYTHING).config;
    let again = Config::parse(
        &toml::to_string(&config).unwrap(),
        Path::new("again.toml"),
        &env,
    );
    assert_eq!(again.diagnostics, []);
    assert_eq!(again.config, config);
}

#[test]
fn the_schema_knows_the_keys_the_reader_knows_and_no_others() {
    let file = std::env::temp_dir().join("backstop.toml");
    let cx = Cx::new(EVERYTHING, &file, &env);
    let _ = Config::read(EVERYTHING, &cx);
    let mut read: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, keys) in cx.asked.borrow().iter() {
        let path: String = path.chars().filter(|c| !c.is_ascii_digit()).collect();
        let path = if path.starts_with("retry.") {
            "retry.*".into()
        } else {
            path
        };
        read.entry(path)
            .or_default()
            .extend(keys.iter().map(|key| key.to_string()));
    }
    let schema = serde_json::to_value(Config::json_schema()).unwrap();
    let mut known = BTreeMap::new();
    collect(&schema, &schema, "", &mut known);
    assert_eq!(read, known);
}

/// The properties of every object in a schema, by path, as the reader writes paths.
fn collect(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    path: &str,
    known: &mut BTreeMap<String, BTreeSet<String>>,
) {
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|target| target.strip_prefix("#/$defs/"))
    {
        collect(root, &root["$defs"][name], path, known);
    }
    for part in ["anyOf", "oneOf", "allOf"] {
        for choice in schema[part].as_array().into_iter().flatten() {
            collect(root, choice, path, known);
        }
    }
    if schema["items"].is_object() {
        collect(root, &schema["items"], &format!("{path}[]"), known);
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        // `[retry]` holds tables by kind: `default` is one of them.
        let by_kind = path == "retry";
        if !by_kind {
            known
                .entry(path.to_owned())
                .or_default()
                .insert(key.clone());
        }
        let key = if by_kind { "*" } else { key };
        let inner_path = if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        };
        collect(root, inner, &inner_path, known);
    }
}

#[test]
fn one_of_each_mistake_is_reported_at_once_and_all_else_loads() {
    let text = include_str!("mistakes.toml");
    let Loaded {
        config,
        diagnostics,
    } = parse(text);
    // Each line that is wrong says so itself.
    let announced: Vec<(usize, &str)> = text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| Some((index + 1, line.split_once("# wrong: ")?.1)))
        .collect();
    let found: Vec<(usize, String)> = diagnostics
        .iter()
        .map(|d| (d.line, format!("{}: {}", d.field, d.message)))
        .collect();
    let found: Vec<(usize, &str)> = found
        .iter()
        .map(|(line, text)| (*line, text.as_str()))
        .collect();
    assert_eq!(found, announced);
    assert!(
        diagnostics
            .iter()
            .all(|d| !d.reason.is_empty() && !d.remedy.is_empty())
    );

    assert_eq!(config.plugins, None);
    assert_eq!(
        config
            .services
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>(),
        ["first", "second"]
    );
    assert_eq!(
        config
            .models
            .iter()
            .map(|m| m.name.as_str())
            .collect::<Vec<_>>(),
        ["model"]
    );
    assert_eq!(
        config
            .strategies
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>(),
        ["retry"]
    );
    assert_eq!(
        config.health,
        Health {
            rise: 9,
            ..Health::default()
        }
    );
    assert_eq!(
        config.retry.kinds[&Kind::TIMEOUT_ERROR],
        Retry {
            max_retries: Some(1),
            ..Retry::default()
        }
    );
    assert_eq!(config.operations.len(), 1);
    assert_eq!(config.patterns.len(), 1);
    assert_eq!(
        config.gateway,
        Gateway {
            path: "/other".into(),
            ..Gateway::default()
        }
    );
}
