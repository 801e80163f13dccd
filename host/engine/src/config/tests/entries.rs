//! What is wrong with an entry: what is missing, what is there twice, what cannot be read.

use std::time::Duration;

use super::*;
use crate::hedge::Hedge;

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
fn a_health_url_may_be_an_address_to_connect_to() {
    let loaded = parse(&format!("{SERVICE}health_url = 'tcp://localhost:1'\n"));
    assert_eq!(loaded.diagnostics, []);
    for bad in [
        "tcp://localhost",
        "tcp://localhost:1/x",
        "tcp://u@localhost:1",
    ] {
        error(
            &format!("health_url = '{bad}'\n"),
            (4, 14, "service[0].health_url"),
            "with a host and a port",
            "tcp://example.com:8443",
        );
    }
    error(
        "[[service]]\nname = 'b'\nurl = 'tcp://localhost:1'\n",
        (6, 7, "service[1].url"),
        "not an address to connect to",
        "https://example.com/mcp",
    );
}

#[test]
fn what_a_target_has_of_its_own_is_checked_like_what_all_have() {
    error(
        "health = { interval = 0 }\n",
        (4, 23, "service[0].health.interval"),
        "0",
        "1ms",
    );
    error(
        "[service.circuit]\nopen_for = '6m'\n",
        (5, 12, "service[0].circuit.open_for"),
        "max_open is shorter than open_for",
        "at least as long",
    );
    error(
        "circuit = { max_ejected = 0.5 }\n",
        (4, 13, "service[0].circuit.max_ejected"),
        "unknown key",
        "Remove it",
    );
    error(
        "[circuit]\nmax_ejected = 0\n",
        (5, 15, "circuit.max_ejected"),
        "0 is not from 0.01 to 1",
        "0.01",
    );
    error(
        "[health]\njitter = 0.6\n",
        (5, 10, "health.jitter"),
        "0.6 is not from 0 to 0.5",
        "0.5",
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
fn limits_and_hedges_are_read_in_every_form_and_refused_in_every_other() {
    let service = |rest: &str| format!("[[service]]\nname = 'a'\nurl = 'http://a'\n{rest}\n");
    for (text, requests, per) in [
        ("5/s", 5, Duration::from_secs(1)),
        ("100/1m", 100, Duration::from_secs(60)),
        ("7 / 500ms", 7, Duration::from_millis(500)),
        ("1/24h", 1, Duration::from_secs(24 * 3600)),
    ] {
        let loaded = parse(&service(&format!("rate_limit = '{text}'")));
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let limit = loaded.config.services[0].limits.rate_limit.unwrap();
        assert_eq!((limit.requests.get(), limit.per), (requests, per));
    }
    for text in [
        "",
        "5",
        "5/",
        "/s",
        "0/s",
        "-1/s",
        "5/0s",
        "5/25h",
        "5/fortnight",
        "x/s",
    ] {
        let loaded = parse(&service(&format!("rate_limit = '{text}'")));
        let shown = loaded.diagnostics[0].to_string();
        assert!(
            loaded.has_errors() && shown.contains("not a rate") && shown.contains(":4:"),
            "{text}: {shown}"
        );
    }
    let operation = |hedge: &str| {
        format!(
            "[[service]]\nname = 'a'\nurl = 'http://a'\n[[operation]]\nmatch = '*'\nhedge = {hedge}\n"
        )
    };
    for (text, hedge) in [
        ("'p1'", Hedge::Percentile(1)),
        ("'p99'", Hedge::Percentile(99)),
        ("'300ms'", Hedge::After(Duration::from_millis(300))),
        ("0.5", Hedge::After(Duration::from_millis(500))),
    ] {
        let loaded = parse(&operation(text));
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        assert_eq!(loaded.config.operations[0].hedge, Some(hedge));
    }
    for text in [
        "'p0'", "'p100'", "'p'", "'p9.5'", "'soon'", "0", "-1", "true",
    ] {
        let loaded = parse(&operation(text));
        let shown = loaded.diagnostics[0].to_string();
        assert!(
            loaded.has_errors() && shown.contains(":6:") && shown.contains("p99"),
            "{text}: {shown}"
        );
    }
}

#[test]
fn a_queue_without_a_limit_is_refused() {
    error(
        "max_queue = 3\n",
        (4, 13, "service[0].max_queue"),
        "max_queue without max_concurrent",
        "Add max_concurrent",
    );
}
