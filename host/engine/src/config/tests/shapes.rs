//! What is wrong with any value: its key, its type, its range.

use super::*;

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
        "24h",
    );
    error(
        "[health]\ninterval = -5\n",
        (5, 12, "health.interval"),
        "-5 s is not from 1ms",
        "24h",
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
