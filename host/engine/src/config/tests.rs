//! The file's contract: what is read, what is refused, and what is said about it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;
use crate::call::RepeatSafety;
use crate::kind::Kind;

fn env(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "s3cret".to_owned())
}

fn parse(text: &str) -> Loaded {
    Config::parse(text, Path::new("backstop.toml"), &env)
}

/// The one diagnostic of a text, as (line, column, field), message and reason, remedy.
#[track_caller]
fn only(text: &str) -> ((usize, usize, String), String, String, Severity) {
    let found = parse(text).diagnostics;
    assert_eq!(found.len(), 1, "{found:#?}");
    let d = found.into_iter().next().unwrap();
    (
        (d.line, d.column, d.field),
        format!("{}: {}", d.message, d.reason),
        d.remedy,
        d.severity,
    )
}

/// A good service before the text under test, so that nothing else is amiss: three lines.
const SERVICE: &str = "[[service]]\nname = 'ok'\nurl = 'http://localhost/mcp'\n";

#[track_caller]
fn error(text: &str, place: (usize, usize, &str), said: &str, remedy: &str) {
    let (at, message, advice, severity) = only(&format!("{SERVICE}{text}"));
    assert_eq!((at.0, at.1, at.2.as_str()), place);
    assert!(message.contains(said), "{message:?} lacks {said:?}");
    assert!(advice.contains(remedy), "{advice:?} lacks {remedy:?}");
    assert_eq!(severity, Severity::Error);
}

#[track_caller]
fn warning(text: &str, place: (usize, usize, &str), said: &str, remedy: &str) {
    let (at, message, advice, severity) = only(&format!("{SERVICE}{text}"));
    assert_eq!((at.0, at.1, at.2.as_str()), place);
    assert!(message.contains(said), "{message:?} lacks {said:?}");
    assert!(advice.contains(remedy), "{advice:?} lacks {remedy:?}");
    assert_eq!(severity, Severity::Warning);
}

#[test]
fn an_empty_file_is_fine_and_has_no_target() {
    let loaded = parse("");
    assert_eq!(loaded.config, Config::default());
    assert!(!loaded.has_errors());
    assert_eq!(
        loaded.diagnostics[0].to_string(),
        "backstop.toml:1:1: warning: no target: without a [[service]] or a [[model]] every call fails. \
         Add a [[service]] with name and url."
    );
}

#[test]
fn broken_toml_loads_nothing_and_every_broken_line_is_reported() {
    let loaded = parse("[[service]]\nname = 'a'\nurl = \n[health\ninterval = 3\n");
    assert_eq!(loaded.config, Config::default());
    let places: Vec<_> = loaded
        .diagnostics
        .iter()
        .map(|d| (d.line, d.column))
        .collect();
    assert_eq!(places, [(3, 7), (4, 8)]);
    assert!(loaded.has_errors());
    assert!(
        loaded
            .diagnostics
            .iter()
            .all(|d| d.remedy.contains("nothing of this file was loaded"))
    );
}

#[test]
fn a_key_given_twice_is_broken_toml() {
    let loaded = parse("stock = true\nstock = false\n");
    assert_eq!(
        (loaded.diagnostics[0].line, loaded.diagnostics[0].column),
        (2, 1)
    );
}

#[test]
fn a_file_that_cannot_be_read_is_a_diagnostic_without_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let loaded = Config::load(&folder.path().join("none.toml"));
    assert!(loaded.has_errors());
    assert!(
        loaded.diagnostics[0]
            .to_string()
            .contains("none.toml: cannot be read: ")
    );
}

#[test]
fn unknown_keys_are_found_at_every_level_with_the_nearest_known_one() {
    error(
        "retri = 1\n",
        (4, 1, "service[0].retri"),
        "has no such key",
        "the keys are name,",
    );
    error(
        "urll = 'x'\n",
        (4, 1, "service[0].urll"),
        "did you mean \"url\"?",
        "Write \"url\"",
    );
    error(
        "[helth]\n",
        (4, 2, "helth"),
        "did you mean \"health\"?",
        "Write \"health\"",
    );
    error(
        "[health]\n  intervall = 3\n",
        (5, 3, "health.intervall"),
        "did you mean \"interval\"?",
        "remove it",
    );
    error(
        "[retry.TimeoutError]\nfactr = 2\n",
        (5, 1, "retry.TimeoutError.factr"),
        "\"factor\"?",
        "Write",
    );
    let grants = "[[strategy]]\nplugin = 'p'\ngrants = { stat = true }\n";
    error(
        grants,
        (6, 12, "strategy[0].grants.stat"),
        "did you mean \"state\"?",
        "Write",
    );
    error(
        "[[operation]]\nmatch = '*'\nzzz = 1\n",
        (6, 1, "operation[0].zzz"),
        "[[operation]] has no such key",
        "importance",
    );
}

#[test]
fn wrong_types_are_named() {
    error(
        "trusted = 'yes'\n",
        (4, 11, "service[0].trusted"),
        "this is a string, a boolean is wanted",
        "true or false",
    );
    error(
        "priority = 1.5\n",
        (4, 12, "service[0].priority"),
        "this is a float, an integer",
        "whole number",
    );
    error(
        "group = 3\n",
        (4, 9, "service[0].group"),
        "this is an integer, a string",
        "in quotes",
    );
    error(
        "headers = 'a'\n",
        (4, 11, "service[0].headers"),
        "a table is wanted",
        "[service[0].headers]",
    );
    error(
        "[gateway]\nallowed_hosts = 'a'\n",
        (5, 17, "gateway.allowed_hosts"),
        "a list is wanted",
        "brackets",
    );
    error(
        "[gateway]\nallowed_hosts = ['a', 7]\n",
        (5, 23, "gateway.allowed_hosts[1]"),
        "a string is wanted",
        "in quotes",
    );
    error(
        "[budget]\nratio = true\n",
        (5, 9, "budget.ratio"),
        "a number is wanted",
        "without quotes",
    );
    error(
        "[operation]\nmatch = '*'\n",
        (4, 1, "operation"),
        "a list of tables is wanted",
        "[[operation]]",
    );
    error(
        "[health]\ninterval = true\n",
        (5, 12, "health.interval"),
        "a duration is wanted",
        "\"250ms\"",
    );
    error(
        "[cache]\nmax_bytes = 1.5\n",
        (5, 13, "cache.max_bytes"),
        "a size is wanted",
        "\"16MiB\"",
    );
    error(
        "[retry]\nTimeoutError = 3\n",
        (5, 16, "retry.TimeoutError"),
        "a table is wanted",
        "[retry.TimeoutError]",
    );
}

#[test]
fn numbers_out_of_range_are_shown_with_the_range() {
    error(
        "weight = 0\n",
        (4, 10, "service[0].weight"),
        "0 is not from 1 to 1000000",
        "from 1 to 1000000",
    );
    error(
        "[retry.default]\nfactor = 0.5\n",
        (5, 10, "retry.default.factor"),
        "0.5 is not from 1 to 100",
        "from 1",
    );
    error(
        "[retry.default]\nmax_retries = 9223372036854775808\n",
        (5, 15, "retry.default.max_retries"),
        "out of range",
        "0 to 100",
    );
    error(
        "[[operation]]\nmatch = '*'\nimportance = 101\n",
        (6, 14, "operation[0].importance"),
        "101",
        "from 0 to 100",
    );
    error(
        "[circuit]\nfailure_rate = 1.1\n",
        (5, 16, "circuit.failure_rate"),
        "1.1 is not from",
        "to 1",
    );
    error(
        "[circuit]\nfailure_rate = nan\n",
        (5, 16, "circuit.failure_rate"),
        "nan is not from",
        "to 1",
    );
    error(
        "[health]\ninterval = '-5s'\n",
        (5, 12, "health.interval"),
        "-5s is not from 1ms",
        "8760h",
    );
    error(
        "[health]\ninterval = -5\n",
        (5, 12, "health.interval"),
        "-5 s is not from 1ms",
        "8760h",
    );
    error(
        "[health]\ntimeout = 0\n",
        (5, 11, "health.timeout"),
        "0 s is not from 1ms",
        "from 1ms",
    );
    error(
        "[deadline]\ncall = 1e300\n",
        (5, 8, "deadline.call"),
        "1e300 s",
        "8760h",
    );
    error(
        "[gateway]\nmax_body = '2GiB'\n",
        (5, 12, "gateway.max_body"),
        "2GiB is not from 1KiB",
        "1GiB",
    );
    error(
        "[circuit]\nopen_for = '10m'\n",
        (5, 12, "circuit.open_for"),
        "max_open is shorter than open_for",
        "at least as long",
    );
    error(
        "[deadline]\nattempt_max = '1s'\n",
        (5, 15, "deadline.attempt_max"),
        "shorter than attempt",
        "at least as long",
    );
}

#[test]
fn what_cannot_be_read_as_a_duration_or_a_size_is_shown() {
    error(
        "[health]\ninterval = 'soon'\n",
        (5, 12, "health.interval"),
        "\"soon\" cannot be read",
        "\"1m30s\"",
    );
    error(
        "[cache]\nmax_bytes = '16M'\n",
        (5, 13, "cache.max_bytes"),
        "\"16M\" cannot be read",
        "\"16MiB\"",
    );
}

#[test]
fn a_service_has_either_a_url_or_a_command() {
    error(
        "command = 'x'\n",
        (4, 11, "service[0].command"),
        "both url and command",
        "Remove one",
    );
    error(
        "[[service]]\nname = 'b'\n",
        (4, 1, "service[1]"),
        "neither url nor command",
        "Add url",
    );
    error(
        "args = []\n",
        (4, 8, "service[0].args"),
        "args without command",
        "Remove it",
    );
    let headers = "[[service]]\nname = 'b'\ncommand = 'x'\nheaders = {}\n";
    error(
        headers,
        (7, 11, "service[1].headers"),
        "headers without url",
        "Remove it",
    );
    error(
        "[[service]]\nname = 'b'\ncommand = ''\n",
        (6, 11, "service[1].command"),
        "empty command",
        "program",
    );
}

#[test]
fn what_an_entry_cannot_be_without_is_asked_for() {
    error(
        "[[service]]\nurl = 'http://a'\n",
        (4, 1, "service[1].name"),
        "\"name\" is missing",
        "Add name = \"NAME\"",
    );
    error(
        "[[model]]\nname = 'm'\n",
        (4, 1, "model[0].base_url"),
        "[[model]] cannot be without it",
        "Add base_url",
    );
    error(
        "[[strategy]]\n",
        (4, 1, "strategy[0].plugin"),
        "\"plugin\" is missing",
        "Add plugin",
    );
    error(
        "[[pattern]]\nname = 'p'\nkind = 'X'\n",
        (4, 1, "pattern[0]"),
        "nothing to match",
        "Add message",
    );
}

#[test]
fn urls_are_http() {
    let second = |url: &str| format!("[[service]]\nname = 'b'\nurl = '{url}'\n");
    error(
        &second("ftp://a/b"),
        (6, 7, "service[1].url"),
        "not an HTTP URL",
        "https://example.com/mcp",
    );
    error(
        &second("a/b"),
        (6, 7, "service[1].url"),
        "not a URL",
        "https://",
    );
    error(
        "health_url = 'file:///x'\n",
        (4, 14, "service[0].health_url"),
        "not an HTTP URL",
        "https://",
    );
    error(
        "[[model]]\nname = 'm'\nbase_url = 'x'\n",
        (6, 12, "model[0].base_url"),
        "not a URL",
        "https://",
    );
}

#[test]
fn names_are_unique_across_services_and_models() {
    let second = "[[service]]\nname = 'ok'\nurl = 'http://b'\n";
    error(
        second,
        (5, 8, "service[1].name"),
        "an earlier service has the name \"ok\"",
        "this service",
    );
    error(
        "[[model]]\nname = 'ok'\nbase_url = 'http://b'\n",
        (5, 8, "model[0].name"),
        "an earlier service",
        "this model",
    );
    error(
        "[[service]]\nname = 'a b'\nurl = 'http://b'\n",
        (5, 8, "service[1].name"),
        "not a name",
        "without blanks",
    );
}

#[test]
fn two_strategies_of_one_plugin_need_names() {
    let text = "[[strategy]]\nplugin = 'p'\n[[strategy]]\nplugin = 'p'\n";
    error(
        text,
        (7, 10, "strategy[1].plugin"),
        "an earlier [[strategy]] has the name \"p\"",
        "name = ",
    );
    let named =
        format!("{SERVICE}[[strategy]]\nplugin = 'p'\n[[strategy]]\nplugin = 'p'\nname = 'q'\n");
    assert!(parse(&named).diagnostics.is_empty());
    error(
        "[[strategy]]\nplugin = 'a/p.wasm'\n",
        (5, 10, "strategy[0].plugin"),
        "not a strategy's name",
        "\".wasm\"",
    );
}

#[test]
fn folders_must_be_there() {
    let text = format!("plugins = 'gone'\n{SERVICE}");
    let (at, message, remedy, _) = only(&text);
    assert_eq!(at, (1, 11, "plugins".into()));
    assert_eq!(message, "no such folder: gone does not exist");
    assert!(remedy.contains("Create it"));
    let grants = "[[strategy]]\nplugin = 'p'\ngrants = { folder = 'gone' }\n";
    error(
        grants,
        (6, 21, "strategy[0].grants.folder"),
        "does not exist",
        "relative to this file",
    );
}

#[test]
fn a_broken_expression_is_shown_where_it_breaks() {
    let pattern =
        |message: &str| format!("[[pattern]]\nname = 'p'\nkind = 'Mine'\nmessage = '{message}'\n");
    error(
        &pattern("quöta (all"),
        (7, 11, "pattern[0].message"),
        "at character 7: unclosed group",
        "syntax",
    );
    error(
        &pattern("a{1000}{1000}{1000}"),
        (7, 11, "pattern[0].message"),
        "not a regular expression",
        "Correct",
    );
    error(
        "[[operation]]\nmatch = 'a['\n",
        (5, 9, "operation[0].match"),
        "not a glob: \"a[\"",
        "search_*",
    );
}

#[test]
fn an_unknown_word_gets_the_nearest_one() {
    error(
        "[retry.default]\njitter = 'ful'\n",
        (5, 10, "retry.default.jitter"),
        "did you mean \"full\"?",
        "\"decorrelated\"",
    );
    error(
        "[[operation]]\nmatch = '*'\nrepeat = 'never'\n",
        (6, 10, "operation[0].repeat"),
        "none of those",
        "\"read-only\"",
    );
    error(
        "[[strategy]]\nplugin = 'p'\non_fault = 'Skip'\n",
        (6, 12, "strategy[0].on_fault"),
        "\"skip\"?",
        "\"decline\"",
    );
}

#[test]
fn listen_addresses_paths_and_doors() {
    error(
        "[gateway]\nlisten = 'here:1'\n",
        (5, 10, "gateway.listen"),
        "not an IP address and a port",
        "127.0.0.1:8808",
    );
    error(
        "[admin]\nlisten = '127.0.0.1:8808'\n",
        (5, 10, "admin.listen"),
        "listens on 127.0.0.1:8808 already",
        "another port",
    );
    error(
        "[gateway]\npath = 'mcp'\n",
        (5, 8, "gateway.path"),
        "does not begin with a slash",
        "\"/mcp\"",
    );
    let open = "[gateway]\nlisten = '0.0.0.0:1'\n";
    warning(
        open,
        (5, 10, "gateway.listen"),
        "no token is asked for",
        "bearer_token_env",
    );
    assert!(
        parse(&format!("{SERVICE}{open}bearer_token_env = 'TOKEN'\n"))
            .diagnostics
            .is_empty()
    );
}

#[test]
fn an_unset_variable_is_reported_and_a_secret_never_shown() {
    error(
        "headers = { A = 'x${GONE}' }\n",
        (4, 17, "service[0].headers.A"),
        "GONE is not set",
        "Set GONE",
    );
    error(
        "headers = { A = '${' }\n",
        (4, 17, "service[0].headers.A"),
        "variable's name",
        "$${",
    );
    error(
        "headers = { 'A b' = 'x' }\n",
        (4, 21, "service[0].headers.\"A b\""),
        "not a header name",
        "hyphens",
    );
    warning(
        "[admin]\ntoken_env = 'GONE'\n",
        (5, 13, "admin.token_env"),
        "no caller can be let in",
        "Set GONE",
    );
    error(
        "[admin]\ntoken_env = 's3-cr3t'\n",
        (5, 13, "admin.token_env"),
        "not the secret itself",
        "environment",
    );

    let loaded = parse(&format!(
        "{SERVICE}headers = {{ A = 'Bearer ${{TOKEN}}' }}\n"
    ));
    assert!(loaded.diagnostics.is_empty());
    let Transport::Http { headers, .. } = &loaded.config.services[0].transport else {
        panic!()
    };
    assert_eq!(headers["A"].value(), "Bearer s3cret");
    let printed = format!(
        "{:?}{}",
        loaded.config,
        serde_json::to_string(&loaded.config).unwrap()
    );
    assert!(!printed.contains("s3cret"));
    // What a variable holds may be no URL; it is still not shown.
    let url = "[[service]]\nname = 'b'\nurl = '${TOKEN}'\n";
    error(url, (6, 7, "service[1].url"), "\"${TOKEN}\"", "https://");
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    warning(
        "[retry.TimeoutErorr]\n",
        (4, 8, "retry.TimeoutErorr"),
        "did you mean \"TimeoutError\"?",
        "your own",
    );
    let delays = "[retry.default]\ndelays = [1, '2s']\nfactor = 3\n";
    warning(
        delays,
        (6, 10, "retry.default.factor"),
        "factor has no effect",
        "Remove factor or delays",
    );
    let cap = "[retry.default]\ninitial_delay = 5\nmax_delay = 1\n";
    warning(
        cap,
        (5, 17, "retry.default.initial_delay"),
        "cut to max_delay",
        "raise max_delay",
    );
    warning(
        "[health]\ntimeout = '1m'\n",
        (5, 11, "health.timeout"),
        "longer than the time",
        "shorter than interval",
    );
    warning(
        "[deadline]\ncall = '5s'\n",
        (5, 8, "deadline.call"),
        "no fallback",
        "Make attempt shorter",
    );
    assert!(
        parse(&format!(
            "{SERVICE}[retry.QuotaOfTeamSpent]\nmax_retries = 0\n"
        ))
        .diagnostics
        .is_empty()
    );
}

#[test]
fn a_value_json_cannot_hold_does_not_reach_a_strategy() {
    let text = "[[strategy]]\nplugin = 'p'\nconfig = { a = [1, nan] }\n";
    error(
        text,
        (6, 10, "strategy[0].config"),
        "nan has no form in JSON",
        "finite",
    );
}

#[test]
fn no_strategy_listed_means_the_stock_ones_and_a_broken_one_does_not() {
    assert!(parse("").config.uses_stock_defaults());
    assert!(!parse("stock = false").config.uses_stock_defaults());
    assert!(
        !parse("[[strategy]]\nplugin = 'p'\n")
            .config
            .uses_stock_defaults()
    );
    assert!(!parse("[[strategy]]\n").config.uses_stock_defaults());
}

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

/// Every key, with a value other than its default.
const EVERYTHING: &str = r#"
plugins = "."
stock = false

[[service]]
name = "remote"
group = "search"
url = "https://example.com/${TOKEN}"
headers = { Authorization = "Bearer ${TOKEN}" }
health_url = "https://example.com/health"
priority = -1
weight = 3
trusted = true

[[service]]
name = "child"
command = "npx"
args = ["-y", "server"]
env = { KEY = "${TOKEN}" }
cwd = "."

[[model]]
name = "small"
group = "models"
base_url = "https://api.example.com/v1"
model = "small-2"
api_key_env = "TOKEN"
priority = 2
weight = 4

[[strategy]]
plugin = "mine"
name = "mine-too"
priority = 7
config = { a = [1, 2.5, "x", true], when = 2026-01-02 }
limits = { decision_deadline = "50ms", configure_deadline = 2, memory = "16MiB", state_quota = 1000, log_bytes = "1KB", result_size = "2MiB" }
grants = { folder = ".", state = true }
on_fault = "decline"
enabled = false

[retry.default]
max_retries = 1
initial_delay = "250ms"
max_delay = "1m30s"
factor = 1.5
jitter = "decorrelated"

[retry.TooManyRequests]
delays = [1, 2.5, "4s"]

[health]
enabled = false
interval = "1m"
timeout = 1.5
rise = 4
fall = 5
jitter = 0
slow_start = 0

[circuit]
enabled = false
consecutive_failures = 6
failure_rate = 0.25
window = "1m"
minimum_throughput = 30
open_for = "10s"
max_open = "2h"
jitter = 0.2
half_open_probes = 2
half_open_successes = 3
max_ejected = 0.1

[budget]
enabled = false
ratio = 0.5
reserve_per_second = 0
ttl = "20s"

[deadline]
call = "2m"
attempt = "10s"
attempt_max = "1m40s"

[[operation]]
match = "search_*"
repeat = "read-only"
deadline = "5s"
attempt_timeout = "1s"
importance = 100

[[pattern]]
name = "quota"
class = "^Quota"
message = '(?i)limit \d+'
kind = "QuotaOfTeamSpent"
retryable = false

[cache]
max_entries = 10
max_bytes = "1MB"
max_age = "1h30m"

[gateway]
listen = "[::1]:1"
path = "/x"
allowed_origins = ["https://a"]
allowed_hosts = ["a"]
bearer_token_env = "TOKEN"
max_body = "1MiB"

[admin]
listen = "127.0.0.1:2"
token_env = "TOKEN"
"#;

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
    assert_eq!(
        (strategy.on_fault, strategy.enabled, strategy.grants.state),
        (OnFault::Decline, false, true)
    );
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
