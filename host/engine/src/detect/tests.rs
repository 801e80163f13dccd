use super::*;

const NO_HEADER: &dyn Fn(&str) -> Option<String> = &|_| None;

fn http(status: u16, body: &str, session: bool) -> Failure {
    http_with(status, NO_HEADER, body, session)
}

fn http_with(
    status: u16,
    header: &dyn Fn(&str) -> Option<String>,
    body: &str,
    session: bool,
) -> Failure {
    let signal = Signal::Http {
        status,
        header,
        body: body.as_bytes(),
        now: SystemTime::UNIX_EPOCH,
        session,
    };
    Detector::default().detect(signal)
}

fn rpc(detector: &Detector, code: i64, message: &str) -> Failure {
    detector.detect(Signal::JsonRpc {
        code,
        message,
        data: None,
    })
}

/// What the first column of the table describes. A hint is given wherever the signal has a place for one.
fn signal_of(text: &str) -> Failure {
    let detector = Detector::default();
    if let Some((what, quoted)) = text.split_once('`') {
        let quoted = quoted.trim_end_matches('`');
        return match what.trim() {
            "tool" => detector.detect(Signal::ToolResult { text: quoted }),
            "error" => detector.detect(Signal::Error {
                class: quoted,
                message: "",
            }),
            what => match what.split_whitespace().collect::<Vec<_>>()[..] {
                ["http", status, "message"] => http_with(
                    status.parse().unwrap(),
                    HINT,
                    &format!(r#"{{"error":{{"message":"{quoted}"}}}}"#),
                    false,
                ),
                ["json-rpc", code, "message"] => detector.detect(Signal::JsonRpc {
                    code: code.parse().unwrap(),
                    message: quoted,
                    data: Some(r#"{"retryAfter":7}"#),
                }),
                _ => panic!("{what}"),
            },
        };
    }
    let words: Vec<_> = text.split_whitespace().collect();
    match words[..] {
        ["transport", word] => {
            let all = TransportFault::ALL;
            let fault = *all.iter().find(|fault| fault.as_str() == word).unwrap();
            detector.detect(Signal::Transport { fault, message: "" })
        }
        ["http", status] => http_with(status.parse().unwrap(), HINT, "", false),
        ["http", status, "session"] => http_with(status.parse().unwrap(), HINT, "", true),
        ["http", status, "code", code] => http_with(
            status.parse().unwrap(),
            HINT,
            &format!(r#"{{"error":{{"code":"{code}"}}}}"#),
            false,
        ),
        ["json-rpc", code] => detector.detect(Signal::JsonRpc {
            code: code.parse().unwrap(),
            message: "",
            data: Some(r#"{"retryAfter":7}"#),
        }),
        ["host", what] => tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(host::failure(what)),
        _ => panic!("{text}"),
    }
}

const HINT: &dyn Fn(&str) -> Option<String> = &|name| (name == "retry-after").then(|| "7".into());

/// Failures that arise in the host, from calls in which they do.
mod host {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use crate::call::RepeatSafety;
    use crate::registry::TargetSpec;
    use crate::{Call, Engine, Failure, Hedge};

    pub(super) async fn failure(what: &str) -> Failure {
        let engine = Engine::builder().build().unwrap();
        let one = NonZeroU32::MIN;
        let register = |spec| drop(engine.registry().register(spec).unwrap());
        let target = || TargetSpec::service("a", "g");
        let after = |seconds| {
            engine.execute(
                Call::new("g", "op")
                    .attempt_timeout(Duration::from_secs(5))
                    .deadline(Duration::from_secs(9)),
                move |_| async move {
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                    Ok::<_, std::io::Error>(())
                },
            )
        };
        let cause = match what {
            "silence" => {
                register(target());
                after(6).await.unwrap_err().error.cause
            }
            "deadline" => {
                register(target());
                let call = Call::new("g", "op").deadline(Duration::from_secs(1));
                let silent = |_| std::future::pending::<Result<(), std::io::Error>>();
                engine.execute(call, silent).await.unwrap_err().error.cause
            }
            "no-time" => {
                register(target());
                let call = Call::new("g", "op").deadline(Duration::ZERO);
                let good = |_| async { Ok::<_, std::io::Error>(()) };
                engine.execute(call, good).await.unwrap_err().error.cause
            }
            "no-target" => after(0).await.unwrap_err().error.cause,
            "queue-full" => {
                register(target().concurrency(one, 0));
                let (_, second) = tokio::join!(after(1), after(0));
                second.unwrap_err().error.cause
            }
            "rate-limit" => {
                register(target().rate_limit(one, Duration::from_secs(60)));
                after(0).await.unwrap();
                after(0).await.unwrap_err().error.cause
            }
            "given-up" => {
                register(target());
                register(TargetSpec::service("b", "g"));
                let call = Call::new("g", "op")
                    .repeat_safety(RepeatSafety::ReadOnly)
                    .hedge(Hedge::After(Duration::from_millis(1)));
                let slow_once = std::sync::atomic::AtomicBool::new(true);
                let slow_once = &slow_once;
                let send = move |_| async move {
                    if slow_once.swap(false, std::sync::atomic::Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                    Ok::<_, std::io::Error>(())
                };
                let outcome = engine.execute(call, send).await.unwrap();
                outcome.trouble.unwrap().attempts[0].failure.clone()
            }
            _ => panic!("{what}"),
        };
        Failure::clone(&cause)
    }
}

const TABLE: &str = include_str!("signals.md");

/// The first column of the documented table.
fn documented() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE
        .lines()
        .filter(|line| line.starts_with("| "))
        .skip(1)
        .map(|line| {
            (
                line.trim_matches('|').split('|').next().unwrap().trim(),
                line,
            )
        })
}

#[test]
fn the_documented_table_is_what_the_detector_does() {
    let yes = |value| if value { "yes" } else { "no" };
    let mut wrong = Vec::new();
    for (signal, line) in documented() {
        let failure = signal_of(signal);
        let right = format!(
            "| {signal} | {} | {} | {} | {} | {} | {} |",
            failure.kind,
            yes(failure.retryable),
            yes(failure.retry_after.is_some()),
            yes(failure.ambiguous),
            yes(failure.ill_health),
            match failure.origin {
                crate::Origin::Remote => "remote",
                crate::Origin::Local => "local",
            },
        );
        if line != right {
            wrong.push(right);
        }
    }
    assert!(
        wrong.is_empty(),
        "signals.md should say:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn the_documented_table_names_every_signal_there_is() {
    let rows: std::collections::BTreeSet<_> = documented().map(|(signal, _)| signal).collect();
    let there = |row: &str| assert!(rows.contains(row), "signals.md has no row {row:?}");
    for fault in TransportFault::ALL {
        there(&format!("transport {}", fault.as_str()));
    }
    for code in jsonrpc::code::WITH_MEANING {
        there(&format!("json-rpc {code}"));
    }
    // Those that are not named are treated as the first of their hundred, or as the rest of them is.
    let treated = |status| {
        let failure = http(status, "", false);
        (
            failure.kind,
            failure.retryable,
            failure.ambiguous,
            failure.ill_health,
        )
    };
    for (hundred, usual) in [(300, 304), (400, 418), (500, 507)] {
        there(&format!("http {usual}"));
        for status in hundred..hundred + 100 {
            if treated(status) != treated(usual) {
                there(&format!("http {status}"));
            }
        }
    }
    for (word, ..) in http::PROVIDER_WORDS {
        let row = |row: &&&str| row.ends_with(&format!(" code {word}"));
        assert!(
            rows.iter().any(|r| row(&r)),
            "signals.md has no row for the word {word:?}"
        );
    }
    // Each built-in pattern decides at least one row; those by message have the expressions of those by class.
    let decided: std::collections::BTreeSet<_> = rows
        .iter()
        .filter_map(|row| signal_of(row).detail("error.pattern").map(str::to_owned))
        .collect();
    for pattern in patterns::built_in() {
        let by_class = pattern.name.replace(".message", ".class");
        assert!(
            decided.contains(&by_class) || decided.contains(&pattern.name),
            "signals.md has no row that {} decides",
            pattern.name
        );
    }
}

#[test]
fn every_built_in_pattern_compiles_and_names_differ() {
    let names: std::collections::BTreeSet<_> =
        patterns::built_in().into_iter().map(|p| p.name).collect();
    assert_eq!(names.len(), patterns::built_in().len());
    assert_eq!(BUILT_IN.len(), names.len());
}

#[test]
fn a_json_rpc_error_in_an_http_400_or_404_says_more_than_the_status() {
    let body = |code: i64, message: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":{code},"message":"{message}","data":{{"a":1}}}}}}"#
        )
    };
    let failure = http(400, &body(-32022, "unsupported version"), false);
    assert_eq!(
        (failure.http_status, failure.rpc_code),
        (Some(400), Some(-32022))
    );
    assert_eq!(
        (failure.kind.as_str(), failure.detail(jsonrpc::REMEDY)),
        ("ProtocolError", Some("renegotiate"))
    );
    assert_eq!(failure.detail("error.data"), Some(r#"{"a":1}"#));
    assert_eq!(
        http(404, &body(-32601, "no method"), false).kind,
        Kind::METHOD_NOT_FOUND
    );
    // The old era's 404 means the session, whatever the body says.
    assert_eq!(
        http(404, &body(-32001, "gone"), true).kind,
        Kind::SESSION_EXPIRED
    );
    assert_eq!(
        http(
            400,
            &body(-32000, "Bad Request: No valid session ID provided"),
            true
        )
        .kind,
        Kind::SESSION_EXPIRED
    );
    // A code without meaning leaves the status its own.
    assert_eq!(
        http(400, &body(-32000, "hm"), false).kind,
        Kind::INVALID_PARAMETER
    );
    assert_eq!(
        http(502, &body(-32602, "hm"), false).kind,
        Kind::BAD_GATEWAY
    );
}

#[test]
fn the_bodies_of_model_providers_are_understood() {
    for (status, body, kind, retryable) in [
        (
            400,
            r#"{"error":{"message":"...","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            "ContextLength",
            false,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens"}}"#,
            "ContextLength",
            false,
        ),
        (
            400,
            r#"{"error":{"code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            "ContentFilter",
            false,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low"}}"#,
            "TooManyRequests",
            false,
        ),
        (
            429,
            r#"{"error":{"message":"...","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            "TooManyRequests",
            false,
        ),
        (
            429,
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}"#,
            "TooManyRequests",
            true,
        ),
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            "ServiceUnavailable",
            true,
        ),
        (
            503,
            r#"[{"error":{"code":503,"status":"UNAVAILABLE","message":"overloaded"}}]"#,
            "ServiceUnavailable",
            true,
        ),
        (
            401,
            r#"{"error":{"code":"rate_limit_exceeded"}}"#,
            "Unauthorized",
            false,
        ),
    ] {
        let failure = http(status, body, false);
        assert_eq!(
            (failure.kind.as_str(), failure.retryable),
            (kind, retryable),
            "{body}"
        );
    }
    let failure = http(
        429,
        r#"{"error":{"message":"Slow down","code":"rate_limit_exceeded"}}"#,
        false,
    );
    assert_eq!(failure.message, "HTTP 429: Slow down");
    assert_eq!(
        failure.detail("error.provider-code"),
        Some("rate_limit_exceeded")
    );
}

#[test]
fn hints_count_for_throttling_and_unavailability_only() {
    let header: &dyn Fn(&str) -> Option<String> =
        &|name| (name == "retry-after").then(|| "7".to_owned());
    let hint = |status| http_with(status, header, "", false).retry_after;
    assert_eq!([429, 503, 529].map(hint), [Some(Duration::from_secs(7)); 3]);
    assert_eq!([400, 500, 502].map(hint), [None; 3]);
    let body = r#"{"error":{"status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"3s"}]}}"#;
    assert_eq!(
        http(429, body, false).retry_after,
        Some(Duration::from_secs(3))
    );
    let signal = Signal::JsonRpc {
        code: -32000,
        message: "rate limit exceeded",
        data: Some(r#"{"retryAfter":2}"#),
    };
    assert_eq!(
        Detector::default().detect(signal).retry_after,
        Some(Duration::from_secs(2))
    );
}

#[test]
fn a_pushback_that_forbids_the_retry_is_obeyed() {
    let with = |value: &'static str| {
        let header = move |name: &str| (name == "grpc-retry-pushback-ms").then(|| value.to_owned());
        http_with(503, &header, "", false)
    };
    assert!(!with("-1").retryable);
    assert!(!with("1000,1000").retryable);
    let allowed = with("1000");
    assert_eq!(
        (allowed.retryable, allowed.retry_after),
        (true, Some(Duration::from_secs(1)))
    );
}

#[test]
fn an_ambiguous_status_is_a_matter_of_configuration() {
    let detector = Detector::default();
    let detect = |status| {
        let now = SystemTime::UNIX_EPOCH;
        detector
            .detect(Signal::Http {
                status,
                header: NO_HEADER,
                body: b"",
                now,
                session: false,
            })
            .ambiguous
    };
    assert_eq!((detect(503), detect(502)), (false, true));
    detector.set_ambiguous_status(503, true);
    detector.set_ambiguous_status(502, false);
    assert_eq!((detect(503), detect(502)), (true, false));
}

#[test]
fn words_decide_where_a_json_rpc_code_says_nothing() {
    let detector = Detector::default();
    assert_eq!(
        rpc(&detector, -32001, "Request timed out").kind,
        Kind::TIMEOUT_ERROR
    );
    assert_eq!(
        rpc(&detector, -32001, "Session not found").kind,
        Kind::SESSION_EXPIRED
    );
    assert_eq!(
        rpc(&detector, -32002, "Resource not found").kind,
        Kind::NOT_FOUND
    );
    assert_eq!(
        rpc(&detector, -32602, "Request timed out").kind,
        Kind::INVALID_PARAMETER
    );
}

#[test]
fn what_a_server_says_of_its_own_troubles_does_not_prove_that_it_did_nothing() {
    let detector = Detector::default();
    for text in [
        "webhook failed: connect ECONNREFUSED 10.0.0.5",
        "the service is temporarily unavailable",
        "something else",
    ] {
        let failure = rpc(&detector, -32000, text);
        assert!(failure.ambiguous, "{text}: {failure:?}");
    }
    assert!(!rpc(&detector, -32000, "rate limit exceeded").ambiguous);
}

#[test]
fn a_code_that_fits_no_field_is_not_bent_to_fit() {
    assert_eq!(rpc(&Detector::default(), i64::MAX, "x").rpc_code, None);
    assert_eq!(
        rpc(&Detector::default(), -32603, "x").rpc_code,
        Some(-32603)
    );
}

#[test]
fn custom_patterns_go_before_built_in_ones_in_their_order() {
    let detector = Detector::default();
    let add = |name: &str, text: &str, kind: &str| {
        detector
            .add_pattern(Pattern::message(name, text, kind.into()))
            .unwrap()
    };
    add("first", "timed out", "SlowTeam");
    add("second", "timed", "Never");
    assert_eq!(
        rpc(&detector, -32000, "timed out").kind,
        Kind::new("SlowTeam")
    );
    assert_eq!(
        rpc(&detector, -32000, "timed out").detail("error.pattern"),
        Some("first")
    );
    add("first", "nothing", "SlowTeam");
    assert_eq!(rpc(&detector, -32000, "timed out").kind, Kind::new("Never"));
    let listed: Vec<_> = detector
        .patterns()
        .into_iter()
        .take(2)
        .map(|p| p.name)
        .collect();
    assert_eq!(listed, ["first", "second"]);
    assert!(detector.remove_pattern("second"));
    assert!(!detector.remove_pattern("second"));
    assert_eq!(
        rpc(&detector, -32000, "timed out").kind,
        Kind::TIMEOUT_ERROR
    );
    assert!(detector.remove_pattern("builtin.timeout.message"));
    assert_eq!(rpc(&detector, -32000, "timed out").kind, Kind::UNKNOWN);
}

#[test]
fn a_pattern_beats_a_signals_own_meaning_only_in_a_scope_that_names_it() {
    let detector = Detector::default();
    let pattern = Pattern::message("maintenance", "maintenance", "Maintenance".into());
    detector.add_pattern(pattern.clone()).unwrap();
    assert_eq!(
        rpc(&detector, -32603, "in maintenance").kind,
        Kind::INTERNAL_SERVER_ERROR
    );
    detector
        .add_pattern(pattern.scope(Scope::JsonRpc).retryable(true))
        .unwrap();
    let failure = rpc(&detector, -32603, "in maintenance");
    assert_eq!(
        (failure.kind.as_str(), failure.retryable),
        ("Maintenance", true)
    );
    assert!(
        failure.ambiguous,
        "a new name does not undo what the code says of the server's action"
    );
}

#[test]
fn a_class_and_a_message_must_both_match() {
    let detector = Detector::default();
    let pattern = Pattern {
        message: Some("disk".into()),
        ..Pattern::class("io", "^IoError$", "DiskFull".into())
    };
    detector.add_pattern(pattern).unwrap();
    let kind = |class, message| detector.detect(Signal::Error { class, message }).kind;
    assert_eq!(kind("IoError", "disk full"), Kind::new("DiskFull"));
    assert_eq!(kind("IoError", "tape full"), Kind::UNKNOWN);
    assert_eq!(kind("MyIoError", "disk full"), Kind::UNKNOWN);
}

#[test]
fn a_bad_pattern_is_refused_by_name_and_place_and_changes_nothing() {
    let detector = Detector::default();
    let good = Pattern::message("good", "x", Kind::UNKNOWN);
    let bad = Pattern::message("bad", "(unclosed", Kind::UNKNOWN);
    let error = detector.set_patterns(vec![good.clone(), bad]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pattern \"bad\" (number 2): its message is not a valid regular expression"
    );
    assert!(
        std::error::Error::source(&error)
            .unwrap()
            .to_string()
            .contains("unclosed group")
    );
    let error = detector
        .set_patterns(vec![good.clone(), good.clone()])
        .unwrap_err();
    assert!(matches!(error, PatternError::Duplicate { position: 2, .. }));
    let empty = Pattern {
        message: None,
        ..good
    };
    assert!(matches!(
        detector.add_pattern(empty),
        Err(PatternError::Empty { position: 1, .. })
    ));
    assert_eq!(detector.patterns().len(), BUILT_IN.len());
}

#[test]
fn the_retryable_kinds_change_while_running_and_a_patterns_word_goes_first() {
    let detector = Detector::default();
    let clone = detector.clone();
    detector.set_retryable(Kind::INTERNAL_SERVER_ERROR, false);
    detector.set_retryable(Kind::TIMEOUT_ERROR, false);
    assert!(!rpc(&clone, -32603, "x").retryable);
    assert!(!clone.timed_out(Duration::from_secs(1)).retryable);
    detector.set_retryable("TeamQuota".into(), true);
    detector
        .add_pattern(Pattern::message("quota", "quota", "TeamQuota".into()))
        .unwrap();
    assert!(rpc(&clone, -32000, "quota").retryable);
    detector
        .add_pattern(Pattern::message("quota", "quota", "TeamQuota".into()).retryable(false))
        .unwrap();
    assert!(!rpc(&clone, -32000, "quota").retryable);
    detector.reset_retryable(&Kind::INTERNAL_SERVER_ERROR);
    assert!(rpc(&clone, -32603, "x").retryable);
}

#[test]
fn a_long_message_is_cut_at_a_character() {
    let text = "é".repeat(MAX_MESSAGE);
    let failure = Detector::default().detect(Signal::ToolResult {
        text: &format!("x{text}"),
    });
    assert_eq!(failure.message.len(), MAX_MESSAGE - 1);
    let body = format!(r#"{{"error":"{text}"}}"#);
    assert!(http(500, &body, false).message.len() <= MAX_MESSAGE + 16);
}

#[test]
fn a_body_that_is_no_json_is_shown_unless_it_is_a_page() {
    assert_eq!(
        http(503, "down for maintenance\n", false).message,
        "HTTP 503: down for maintenance"
    );
    assert_eq!(http(503, "<html>...</html>", false).message, "HTTP 503");
    assert_eq!(http(503, "{broken", false).kind, Kind::SERVICE_UNAVAILABLE);
}

#[test]
fn a_context_keeps_the_failure_and_its_circumstances() {
    let request = RequestContext {
        group: "g".into(),
        operation: "search".into(),
        target: Some("a".into()),
    };
    let failure = Failure::new(Kind::TOOL_ERROR, "no");
    let timestamp = SystemTime::UNIX_EPOCH;
    let context = Detector::default().context(
        failure.clone(),
        request.clone(),
        Some("r1".into()),
        timestamp,
    );
    assert_eq!(
        (context.failure, context.request, context.timestamp),
        (failure, request, timestamp)
    );
    assert_eq!(context.request_id.as_deref(), Some("r1"));
}
