//! What is wrong with listening, with secrets, and what is probably not meant.

use super::*;

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
    error(
        "[gateway]\ntls_key = 'Cargo.toml'\n",
        (5, 11, "gateway.tls_key"),
        "of use together only",
        "tls_certificate",
    );
    error(
        "[gateway]\nidle = '100ms'\n",
        (5, 8, "gateway.idle"),
        "is not from 1s to 24h",
        "from 1s",
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
fn what_is_said_of_models_must_fit_together() {
    const MODEL: &str = "[[model]]\nname = 'm'\nbase_url = 'http://localhost:6/v1'\n";
    let config = parse(MODEL).config;
    let model = &config.models[0];
    assert_eq!(
        (model.group.as_str(), model.model.as_str()),
        ("models", "m")
    );
    assert_eq!(
        (model.tools, model.vision, model.prefill),
        (true, true, false)
    );

    let found = |text: String| {
        let loaded = parse(&text);
        loaded
            .diagnostics
            .iter()
            .map(ToString::to_string)
            .collect::<String>()
    };
    for (text, said) in [
        (
            format!("{MODEL}api_key_env = 'TOKEN'\napi_key_file = 'none'\n"),
            ["two keys", "no such file"],
        ),
        (
            format!("{MODEL}api = 'antropic'\n"),
            ["unknown word", "did you mean \"anthropic\"?"],
        ),
        (
            format!("{MODEL}[gateway]\npath = '/v1/mcp'\n"),
            ["one path for two", "[completion]"],
        ),
        (
            format!("{MODEL}[completion]\ndeadline = '10s'\n"),
            ["completion.deadline", "attempt beyond call"],
        ),
        (
            format!("{MODEL}[completion]\nhold_back = '1m'\n"),
            ["completion.hold_back", "30s"],
        ),
        (
            format!("{MODEL}[completion]\nsampling = 'defolt'\n"),
            ["completion.sampling", "[[model]]"],
        ),
    ] {
        let found = found(text);
        assert!(said.iter().all(|said| found.contains(said)), "{found}");
    }
}
